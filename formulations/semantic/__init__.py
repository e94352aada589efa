"""Semantic polytopes: what may change in a table row, said in the user's words and units, as a convex set in model space."""

from formulations.semantic.columns import Categorical, Numeric
from formulations.semantic.contradictions import Contradiction, find_contradiction
from formulations.semantic.relations import Relation, parse_relation
from formulations.semantic.schema import Schema
from formulations.semantic.units import Change, Price

__all__ = ["Categorical", "Change", "Contradiction", "Numeric", "Price", "Relation", "Schema", "find_contradiction", "parse_relation"]
