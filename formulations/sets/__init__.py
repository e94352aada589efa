"""Convex sets of allowed changes. One file per set; each lowers to the pieces of `formulations.pieces`."""

from formulations.sets.ball import LpBall
from formulations.sets.base import ConvexSet, Everything, on_input
from formulations.sets.box import Box
from formulations.sets.ellipsoid import Ellipsoid
from formulations.sets.intersection import Intersection
from formulations.sets.polytope import Polytope
from formulations.sets.simplex import Simplex
from formulations.sets.subspace import Frozen, Subspace
from formulations.sets.total_variation import TotalVariation

__all__ = [
    "Box", "ConvexSet", "Ellipsoid", "Everything", "Frozen", "Intersection", "LpBall", "Polytope", "Simplex", "Subspace",
    "TotalVariation", "on_input",
]  # fmt: skip
