"""Several counterfactuals of one input that differ in which columns move: sparse, and made of whole numbers and single categories where a schema says so.

The nearest witness comes first. It is made sparse by holding its smallest moves at zero and searching again, as long as the distance stays within
`stretch` times the nearest; then categories are rounded to one each, the numbers searched again with the categories held there, and whole numbers rounded
outward. Every step is checked on the network and the set. The next counterfactual holds the column that moved most in each one before it, so no two are alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Array, Norm
from formulations.programs import relative_parts
from formulations.semantic.columns import Categorical, Numeric
from formulations.semantic.schema import Schema
from formulations.sets import Box, ConvexSet, Frozen
from formulations.sets.base import FEASIBILITY
from verification.attack.answers import Budget
from verification.attack.feasible import violation
from verification.attack.witness import find_witness
from verification.decision import Decision
from verification.model import batch_of, decide, float64_copy, outputs

MOVED = 1e-6  # a column moves where its largest change exceeds this part of the largest of all, or this in itself
FURTHER = 12  # units that whole numbers are pushed further, one at a time, until the decision falls
MIXTURES = 3  # categories tried for a mixture, largest share first


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """One flipping change δ within the set.

    delta     (d,) the change; `upper` its norm, rounded up; `violation` of the set, ≤ 1e-9; `rival` the class that wins there
    moved     indices of the columns (feature groups) that move, most first; `names` the same in words
    held      the columns held at zero so that it differs from those before it
    relaxed   its distance before whole numbers and categories were rounded (`upper` itself without a schema)
    dense     columns that moved before it was made sparse, and `nearest` the distance then
    whole     whole numbers are whole and every category is single; True without a schema, False where no rounding flipped
    """

    delta: Array
    upper: float
    violation: float
    rival: int
    moved: tuple[int, ...]
    names: tuple[str, ...]
    held: tuple[int, ...]
    relaxed: float
    dense: int
    nearest: float
    whole: bool

    @property
    def price_of_rounding(self) -> float:
        """How much farther the rounded change is: upper − relaxed."""
        return self.upper - self.relaxed


def find_counterfactuals(
    model: torch.nn.Module,
    x0: torch.Tensor | ArrayLike,
    norm: Norm | float | str = 1,
    constraints: ConvexSet | None = None,
    *,
    count: int = 3,
    schema: Schema | None = None,
    decision: Decision | None = None,
    stretch: float = 1.2,
    budget: Budget | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[Counterfactual]:
    """Up to `count` changes δ of one input x0 (*shape) with ``m_k(δ) ≤ 0, δ ∈ C``, each near and sparse, no two moving the same columns.

    constraints  C; with a `schema` None means its polytope. `schema` also says which features form one column, and what must be whole
    stretch      how much farther than the nearest (≥ 1) a counterfactual may be to move fewer columns
    budget       of every search; there are about ten for each counterfactual

    Fewer come back where the search finds no more, none where it finds nothing: that proves nothing. Raises InputError on count < 1, stretch < 1, a
    schema of another dimension, and what find_witness raises.
    """
    if count < 1 or not stretch >= 1:
        raise InputError(f"find_counterfactuals: count={count} and stretch={stretch} must both be at least 1.")
    row = torch.as_tensor(x0)[None]
    if schema is not None and schema.dim != row.numel():
        raise InputError(f"find_counterfactuals: a schema of {schema.dim} features for an input of {row.numel()}.")
    allowed = constraints if constraints is not None or schema is None else schema.polytope()
    look = _Look(model, row, Norm.of(norm), allowed, schema, decision, budget, seed, device)
    found: list[Counterfactual] = []
    held: tuple[int, ...] = ()
    while len(found) < count:
        one = look.counterfactual(held, stretch)
        if one is None or not one.moved:
            return found if one is None else [*found, one]
        found.append(one)
        held = (*held, one.moved[0])
    return found


class _Look:
    """The searches for one input."""

    def __init__(
        self, model: torch.nn.Module, row: torch.Tensor, norm: Norm, allowed: ConvexSet | None, schema: Schema | None,
        decision: Decision | None, budget: Budget | None, seed: int, device: torch.device | str | None,
    ) -> None:  # fmt: skip
        self.norm, self.allowed, self.schema, self.budget, self.seed, self.device = norm, allowed, schema, budget, seed, device
        self.model = float64_copy(model, device)
        place = torch.device(device) if device is not None else next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self.row = batch_of(row, None, place)
        self.x0: Array = self.row.flatten().cpu().numpy()
        self.d = len(self.x0)
        self.decision = decision if decision is not None else decide(outputs(self.model, self.row), None)[0]
        self.groups: Sequence[Sequence[int]] = schema.groups if schema is not None else [(i,) for i in range(self.d)]

    def counterfactual(self, held: tuple[int, ...], stretch: float) -> Counterfactual | None:
        nearest = self._search(held)
        if nearest is None:
            return None
        dense = len(self._moved(nearest))
        delta = self._sparse(nearest, stretch * self._size(nearest))
        one = self._record(delta, held, self._size(delta), dense, self._size(nearest), True)
        if self.schema is None:
            return one
        rounded = self._rounded(delta)
        if rounded is None:
            return replace(one, whole=self._is_whole(delta))
        return self._record(rounded, held, self._size(delta), dense, self._size(nearest), True)

    def _search(self, held: Sequence[int], also: ConvexSet | None = None) -> Array | None:
        """A witness that leaves the columns `held` as they are, and lies in `also`."""
        sets = [c for c in (self.allowed, also) if c is not None]
        still = [i for g in held for i in self.groups[g]]
        if still:
            sets.append(Frozen(still, self.d, name="held"))
        C = None
        for s in sets:
            C = s if C is None else C & s
        w = find_witness(
            self.model, self.row, self.norm, C, decisions=self.decision, budget=self.budget, seed=self.seed, device=self.device
        )  # fmt: skip
        return w.delta[0] if w.found[0] else None

    def _sparse(self, delta: Array, limit: float) -> Array:
        """Fewest columns by bisection: only the largest movers may move, as few of them as flip within the limit."""
        best, low, high = delta, 0, len(self._moved(delta))
        while high - low > 1:
            few = (low + high) // 2
            order = self._moved(best)
            free = set(order[:few])
            tried = self._search([g for g in range(len(self.groups)) if g not in free])
            if tried is not None and self._size(tried) <= limit:
                best, high = tried, min(few, len(self._moved(tried)))
            else:
                low = few
        return best

    def _rounded(self, delta: Array) -> Array | None:
        """The shortest flipping change found with single categories and whole numbers; only columns that move in δ move."""
        schema = self.schema
        assert schema is not None
        moved = self._moved(delta)
        still = [g for g in range(len(self.groups)) if g not in moved]
        mixed = [g for g in moved if isinstance(schema.columns[g], Categorical)]
        best: Array | None = None
        for choice in itertools.islice(itertools.product(*(self._categories(g, delta) for g in mixed)), 2 * MIXTURES):
            lo, hi = np.full(self.d, -INF), np.full(self.d, INF)
            for g, vertex in zip(mixed, choice, strict=True):
                at = list(self.groups[g])
                lo[at] = hi[at] = vertex
            again = self._search(still, Box(lo, hi, name="categories")) if mixed else delta
            whole = None if again is None else self._whole_numbers(again, moved, mixed, choice)
            if whole is not None and (best is None or self._size(whole) < self._size(best)):
                best = whole
        return best

    def _categories(self, g: int, delta: Array) -> list[Array]:
        """Unit vectors of the likeliest categories of a mixture, those that gained first."""
        assert self.schema is not None
        column = self.schema.columns[g]
        assert isinstance(column, Categorical)
        at = list(self.groups[g])
        share = self.x0[at] + delta[at]
        may = np.array([c in column.allowed for c in column.categories]) | (self.x0[at] > 0.5)
        order = [k for k in np.lexsort((-share, delta[at] <= 0)) if may[k]]
        return [np.eye(len(at))[k] for k in order[:MIXTURES]]

    def _whole_numbers(self, delta: Array, moved: Sequence[int], mixed: Sequence[int], choice: Sequence[Array]) -> Array | None:
        """Whole numbers away from x0, then further a unit at a time, until the decision falls within the set; nearest numbers are tried first."""
        assert self.schema is not None
        base = self.x0.copy()  # what does not move stays as it is, to the last bit
        for g in moved:
            base[list(self.groups[g])] += delta[list(self.groups[g])]
        for g, vertex in zip(mixed, choice, strict=True):
            base[list(self.groups[g])] = vertex
        numbers = [(self.groups[g][0], self.schema.columns[g]) for g in moved]
        whole = [(i, c) for i, c in numbers if isinstance(c, Numeric) and c.integer and abs(delta[i]) > MOVED * MOVED]
        for extra in (None, *range(FURTHER + 1)):
            z = base.copy()
            for i, c in whole:
                before, value = float(c.decode(self.x0[i : i + 1, None])[0]), float(c.decode(base[i : i + 1, None])[0])
                away = np.ceil(value) + (extra or 0) if value > before else np.floor(value) - (extra or 0)
                low, high = np.ceil(c.low) if np.isfinite(c.low) else -INF, np.floor(c.high) if np.isfinite(c.high) else INF
                number = float(np.clip(np.rint(value) if extra is None else away, low, high))
                z[i] = c.encode([number], [0])[0, 0] if number != before else self.x0[i]
            change = z - self.x0
            if self._flips(change) and self._outside(change) <= FEASIBILITY:
                return change
        return None

    def _is_whole(self, delta: Array) -> bool:
        assert self.schema is not None
        return not bool(self.schema.fractional(self.x0 + delta).to_numpy().any())

    def _flips(self, delta: Array) -> bool:
        z = self.row + torch.tensor(delta, device=self.row.device).view_as(self.row)
        return bool((self.decision.margins(outputs(self.model, z).detach().cpu().numpy()[0]) <= 0).any())

    def _outside(self, delta: Array) -> float:
        return max(violation(delta, [p.at(0) for p in relative_parts(self.allowed, self.d, self.x0[None], 1)]), 0.0)

    def _size(self, delta: Array) -> float:
        return float(self.norm.value(delta))

    def _moved(self, delta: Array) -> tuple[int, ...]:
        """Columns that move, by the norm of their own change, largest first."""
        w = self.norm.scale(self.d)
        size = np.array([float(np.abs(w[list(g)] * delta[list(g)]).sum()) for g in self.groups])
        return tuple(int(g) for g in np.argsort(-size, kind="stable") if size[g] > MOVED * max(size.max(), MOVED))

    def _record(self, delta: Array, held: tuple[int, ...], relaxed: float, dense: int, nearest: float, whole: bool) -> Counterfactual:
        moved = self._moved(delta)
        names = [c.name for c in self.schema.columns] if self.schema is not None else [str(i) for i in range(self.d)]
        z = self.row + torch.tensor(delta, device=self.row.device).view_as(self.row)
        lowest = int(self.decision.margins(outputs(self.model, z).detach().cpu().numpy()[0]).argmin())
        upper = self._size(delta) * (1 + (self.d + 4) * np.finfo(float).eps)
        return Counterfactual(
            delta, upper, self._outside(delta), int(self.decision.rivals[lowest]), moved, tuple(names[g] for g in moved), held,
            relaxed, dense, nearest, whole,
        )  # fmt: skip
