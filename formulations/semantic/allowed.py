r"""The rules of a schema in model space: the convex set, what a point violates, and what a multiplier costs in the user's units."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property, reduce
from operator import and_
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from formulations.errors import InputError
from formulations.norms import INF, Array
from formulations.semantic.columns import Categorical, Numeric
from formulations.semantic.contradictions import LinearRow
from formulations.semantic.relations import Relation
from formulations.semantic.units import Price, feature_limits, feature_units, row_prices, side_prices, unit_name
from formulations.sets import Box, ConvexSet, Everything, LpBall, Polytope

if TYPE_CHECKING:
    from formulations.semantic.schema import Schema

# Upper ends of one-hot features are 1 + SLACK in the box. The set is the same, since shares ≥ 0 that sum to 1 are ≤ 1; but at a row (a vertex) an end
# of exactly 1 would be active together with the other shares' 0 and the sum, whose gradients cancel, and multipliers could grow along that ray.
SLACK = 2.0**-10


class Rules:
    """What a schema allows, worked out once per schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.columns = schema.columns
        self.fixed: Any = np.concatenate([np.full(c.width, schema.is_fixed(c.name)) for c in schema.columns])
        self.hot = [c for c in schema.columns if isinstance(c, Categorical) and not schema.is_fixed(c.name)]
        live = [r for r in schema.relations if not all(schema.is_fixed(n) for n in r.columns)]
        self.relations = tuple(sorted(live, key=lambda r: r.equality))  # inequalities first: the order of the polytope's rows

    @cached_property
    def convex_set(self) -> ConvexSet:
        """The intersection of the sets named in `schema.py`, those that apply."""
        d, fixed = self.schema.dim, self.fixed
        lo, hi = (np.concatenate(ends) for ends in zip(*(c.encoded_range() for c in self.columns), strict=True))
        for c in self.hot:
            hi[self.schema.places[c.name]] *= 1 + SLACK
        lo, hi = np.where(fixed, -INF, lo), np.where(fixed, INF, hi)
        sets: list[ConvexSet] = []
        if np.isfinite(lo).any() or np.isfinite(hi).any():
            sets.append(Box(lo, hi, name="ranges"))
        if self.hot:
            E = sp.lil_matrix((len(self.hot), d))
            for k, c in enumerate(self.hot):
                E[k, self.schema.places[c.name]] = 1.0
            names = tuple(c.name for c in self.hot)
            sets.append(Polytope(None, None, equal=(E.tocsr(), np.ones(len(names))), name="one_hot", rows=names))
        if fixed.any():
            sets.append(Box(np.where(fixed, 0.0, -INF), np.where(fixed, 0.0, INF), on="change", name="fixed"))
        up, down = (self._mask(names) for names in (self.schema.increasing, self.schema.decreasing))
        if up.any() or down.any():
            sets.append(Box(np.where(up, 0.0, -INF), np.where(down, 0.0, INF), on="change", name="direction"))
        if self.relations:
            G, h, _ = encoded_relations(self.schema, self.relations)
            m = sum(not r.equality for r in self.relations)
            equal = (G[m:], h[m:]) if m < len(h) else None
            names = tuple(r.text for r in self.relations)
            sets.append(Polytope(G[:m] if m else None, h[:m] if m else None, equal=equal, name="relations", rows=names))
        if self.schema.budget is not None:
            sets.append(LpBall(1, self.schema.budget, name="budget"))
        return reduce(and_, sets) if sets else Everything()

    def _mask(self, names: tuple[str, ...]) -> Any:
        return np.concatenate([np.full(c.width, c.name in names) for c in self.columns]) & ~self.fixed

    def violations(self, v: Array, tolerance: float) -> list[str]:
        """Ranges, one-hot groups and relations (of fixed columns too) that the point (d,) violates, in words with values."""
        out: list[str] = []
        for c in self.columns:
            part = v[self.schema.places[c.name]]
            lo, hi = c.encoded_range()
            outside = bool(np.any(~(part >= lo - tolerance)) or np.any(~(part <= hi + tolerance)))  # NaN is outside
            if isinstance(c, Numeric) and outside:
                out.append(f"{c.name}={c.decode(part[None])[0]:g} is outside {c.range_words()}; widen permitted_range")
            elif isinstance(c, Categorical) and not abs(part.sum() - 1) <= tolerance:
                out.append(f"{c.name}: its one-hot features sum to {part.sum():g} instead of 1")
            elif isinstance(c, Categorical) and outside:
                out.append(f"{c.name}={c.mixture(part)} is outside {c.range_words()}; widen permitted_range")
        G, h, _ = encoded_relations(self.schema, self.schema.relations)
        for relation, slack in zip(self.schema.relations, G @ v - h, strict=True):
            if not (abs(slack) if relation.equality else slack) <= tolerance:
                values = ", ".join(f"{n}={self._value(n, v):g}" for n in relation.columns)
                out.append(f"relation {relation.text!r} fails with {values}")
        return out

    def prices(self, name: str, multipliers: Array, at_least: float) -> tuple[Price, ...]:
        """See `Schema.unit_price`."""
        schema, units = self.schema, feature_units(self.columns)
        mu = np.where(np.abs(multipliers) > at_least, multipliers, 0.0)
        features = schema.feature_names
        if name == "ranges":
            limits = list(zip(features, feature_limits(self.columns), strict=True))
            sides = ([f"{f} >= {lo:g}" for f, (lo, _) in limits], [f"{f} <= {hi:g}" for f, (_, hi) in limits])
            return tuple(side_prices(name, sides, mu, schema.scale, units))
        if name in ("fixed", "direction"):
            word = "held fixed" if name == "fixed" else "one-way"
            sides = ([f"{f} ({word}), if it may fall" for f in features], [f"{f} ({word}), if it may rise" for f in features])
            return tuple(side_prices(name, sides, mu, schema.scale, units))
        if name == "one_hot":
            words = tuple(f"shares of {c.name} sum to 1" for c in self.hot)
            return tuple(row_prices(name, words, mu, np.ones(len(self.hot)), tuple(unit_name(c) for c in self.hot)))
        if name == "relations":
            scale = encoded_relations(schema, self.relations)[2]
            sides_unit = tuple(self._side_unit(r) for r in self.relations)
            return tuple(row_prices(name, tuple(r.text for r in self.relations), mu, scale, sides_unit))
        if name == "budget":
            size = float(np.abs(mu).max(initial=0))
            return (Price(name, f"budget of {schema.budget:g}", size, "standardised unit"),) if size else ()
        raise InputError(f"unit_price: no set {name!r} in a schema; known: ranges, one_hot, fixed, direction, relations, budget.")

    def _side_unit(self, relation: Relation) -> str:
        units = {getattr(self.schema.column(n), "unit", "") for n in relation.columns}
        return (units.pop() if len(units) == 1 else "") or "unit of its right-hand side"

    def _value(self, name: str, v: Array) -> float:
        return float(self.schema.column(name).decode(v[None, self.schema.places[name]])[0])


def encoded_relations(schema: Schema, relations: tuple[Relation, ...]) -> tuple[Array, Array, Array]:
    """(G (m, d), h (m,), s (m,)): row k of G z ≤ h is relation k divided by s_k, a power of two that brings its largest entry to [1, 2).

    Coefficients are moved to model space in rationals and rounded once, so each row errs by half a unit in the last place of its entries.
    """
    m = len(relations)
    G, h, s = np.zeros((m, schema.dim)), np.zeros(m), np.ones(m)
    for k, relation in enumerate(relations):
        bound = relation.bound
        exact: list[tuple[int, Fraction]] = []
        for name, c in relation.coefficients:
            column = schema.column(name)
            assert isinstance(column, Numeric)
            exact.append((schema.places[name].start, c * Fraction(column.std)))
            bound -= c * Fraction(column.mean)
        s[k] = 2.0 ** np.floor(np.log2(max(float(abs(c)) for _, c in exact)))
        for j, c in exact:
            G[k, j] = float(c / Fraction(s[k]))
        h[k] = float(bound / Fraction(s[k]))
    return G, h, s


def linear_rows(schema: Schema) -> list[LinearRow]:
    """Ranges and relations of the columns that relations speak of, in original units: what must have a common point."""
    rows: list[LinearRow] = []
    for name in dict.fromkeys(n for r in schema.relations for n in r.columns):
        c = schema.column(name)
        assert isinstance(c, Numeric)
        source = "permitted_range" if c.given else "range of the data"
        if c.low > -INF:
            rows.append(LinearRow(f"{name} >= {c.low:g} ({source})", ((name, Fraction(-1)),), -Fraction(c.low)))
        if c.high < INF:
            rows.append(LinearRow(f"{name} <= {c.high:g} ({source})", ((name, Fraction(1)),), Fraction(c.high)))
    for r in schema.relations:
        rows.append(LinearRow(f"{r.text} (relation)", r.coefficients, r.bound))
        if r.equality:
            rows.append(LinearRow(f"{r.text} (relation)", tuple((n, -c) for n, c in r.coefficients), -r.bound))
    return rows
