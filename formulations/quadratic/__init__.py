"""The quadratic model of a margin row: its radius without C exactly, over C bracketed by a dual bound and a point. Never certified for a network."""

from formulations.quadratic.model import QuadraticModel, QuadraticSolution
from formulations.quadratic.program import min_norm_quadratic
from formulations.quadratic.s_lemma import s_lemma

__all__ = ["QuadraticModel", "QuadraticSolution", "min_norm_quadratic", "s_lemma"]
