"""Answers of convex programs: records with both sides, multipliers by name, and a status whose value is the advice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from formulations.norms import Array
from formulations.status import Status


@dataclass(frozen=True)
class Residuals:
    """Primal: largest violation of a row or constraint at δ. Dual: ‖w + Aᵀλ + Σ y_j − box‖∞. Gap: value − lower (absolute)."""

    primal: float
    dual: float
    gap: float


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """One min-norm program solved.

    value        ‖Wδ‖ at `delta`: an *estimate* from above of the optimum (exact up to the primal residual)
    lower        verified lower bound of the optimum, by weak duality from the multipliers; +inf when infeasible
    delta        the minimiser (d,), NaN when there is none
    multipliers  {"margin": λ (K,), name: array, …}: boxes (2, d) lower/upper ≥ 0; polytopes η then ν; TV one z per edge; balls one u per coordinate
    prices       {name: …}: how fast the optimum falls per unit of the constraint's level (array for rows and boxes, float for budgets and radii)
    duals        multipliers piece by piece, in the order of the set's parts: what `dual_bound` and certificates take
    """

    status: Status
    value: float
    lower: float
    delta: Array
    multipliers: dict[str, Array]
    prices: dict[str, Any]
    duals: tuple[Array, ...]
    residuals: Residuals
    solver: str
    seconds: float

    @property
    def gap(self) -> float:
        """(value − lower)/max(1, |value|): 0 up to rounding at an optimum."""
        return (self.value - self.lower) / max(1.0, abs(self.value)) if np.isfinite(self.value) else float("nan")

    def __repr__(self) -> str:
        return f"Solution({self.status.name}: {self.lower:.6g} ≤ optimum ≤ {self.value:.6g}, {len(self.delta)} features, multipliers of {', '.join(self.multipliers)})"


class Solutions(ABC):
    """A batch of n programs: `record[i]` is one `Solution`; the arrays stack what fits.

    value, lower (n,); delta (n, d); multipliers {name: (n, …)}; status: list of n.
    """

    value: Array
    lower: Array
    delta: Array
    status: list[Status]

    def __len__(self) -> int:
        return len(self.value)

    @abstractmethod
    def __getitem__(self, i: int) -> Solution: ...

    def __iter__(self) -> Iterator[Solution]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        counts = Counter(s.name for s in self.status)
        return f"{type(self).__name__}({', '.join(f'{n} {name}' for name, n in counts.items()) or 'empty'})"

    @property
    @abstractmethod
    def multipliers(self) -> dict[str, Array]: ...


class SolvedOneByOne(Solutions):
    """A batch as a tuple of its programs' solutions."""

    def __init__(self, items: Sequence[Solution]) -> None:
        self.items = tuple(items)
        self.value, self.lower = np.array([s.value for s in items]), np.array([s.lower for s in items])
        self.delta, self.status = np.stack([s.delta for s in items]), [s.status for s in items]

    def __getitem__(self, i: int) -> Solution:
        return self.items[i]

    @property
    def multipliers(self) -> dict[str, Array]:
        return {k: np.stack([s.multipliers[k] for s in self.items]) for k in self.items[0].multipliers}
