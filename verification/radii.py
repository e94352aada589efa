"""Answers of the search for certified radii."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from formulations.norms import Array, Norm
from formulations.solution import Solution
from verification.evidence import CellEvidence, InnerSlopes, RivalEvidence


class SearchStop(Enum):
    """Why the search ended. In every case `lower` is a valid bound. The value is the advice."""

    COMPLETE = "Every radius is within the tolerance of the largest one that the bounds certify."
    LIMIT = "The limit of bound passes or seconds came first: valid, not the best; raise it."
    INTERRUPTED = "Interrupted: the best bounds so far."


@dataclass(frozen=True, eq=False)
class CertifiedRow:
    """One margin row of one input: ``a·δ + b ≤ m_k(δ)`` for the δ ∈ C with ‖Wδ‖ ≤ radius (inf: on all of C), and the exact program min ‖Wδ‖ s.t. a·δ + b ≤ 0.

    lower = min(radius, solution.lower): no δ ∈ C nearer than that makes this row fall. Without bounds, `solution` is None and lower is 0.
    slopes: of the lines in the row, activation by activation, where a certificate needs them; inner: of the lines in the bounds under it, in the first row
    of those that share a radius.
    """

    rival: int
    radius: float
    a: Array
    b: float
    solution: Solution | None
    lower: float
    slopes: tuple[Array, ...] = ()
    inner: tuple[InnerSlopes, ...] = ()

    def evidence(self, method: str) -> RivalEvidence:
        """The row with its multipliers, as a certificate takes it."""
        if self.solution is None:
            return RivalEvidence((), method)
        cell = CellEvidence(self.radius, self.a, np.array([self.b]), self.solution.multipliers["margin"], self.solution.duals,
                            slopes=[self.slopes] if self.slopes else (), inner=self.inner)  # fmt: skip
        return RivalEvidence((cell,), method)


@dataclass(frozen=True, eq=False)
class CertifiedRadius:
    """One input: ``lower ≤ min { ‖Wδ‖ : some margin ≤ 0, δ ∈ C }``, +inf when no allowed change flips the decision."""

    rows: tuple[CertifiedRow, ...]
    linear: float
    method: str

    @property
    def nearest(self) -> CertifiedRow:
        """The row that limits the radius."""
        return min(self.rows, key=lambda row: row.lower)

    @property
    def lower(self) -> float:
        return self.nearest.lower

    @property
    def unreachable(self) -> bool:
        """Certified: no allowed change flips the decision."""
        return self.lower == float("inf")

    def evidence(self) -> list[RivalEvidence]:
        """One entry per margin row, in the decision's order."""
        return [row.evidence(self.method) for row in self.rows]


@dataclass(frozen=True, eq=False, repr=False)
class CertifiedRadii:
    """A batch of n searches; `record[i]` is one `CertifiedRadius`.

    passes   bound passes over the batch; seconds: of the whole call
    linear   (n,) radii of the linearised programs as the search starts from them: *estimates*, from below for sets that are no boxes
    """

    items: tuple[CertifiedRadius, ...]
    norm: Norm
    method: str
    passes: int
    seconds: float
    stop: SearchStop

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> CertifiedRadius:
        return self.items[i]

    def __iter__(self) -> Iterator[CertifiedRadius]:
        return iter(self.items)

    @property
    def lower(self) -> Array:
        """(n,) certified lower bounds of v*."""
        return np.array([item.lower for item in self.items])

    @property
    def rival(self) -> Array:
        """(n,) the class (or side) whose row limits the radius."""
        return np.array([item.nearest.rival for item in self.items], dtype=int)

    @property
    def linear(self) -> Array:
        return np.array([item.linear for item in self.items])

    def __repr__(self) -> str:
        lower = np.array2string(self.lower, precision=4, threshold=8, edgeitems=3)
        return (
            f"CertifiedRadii({self.norm.label}, {self.method}: lower {lower}, {self.passes} passes, {self.seconds:.3g} s, {self.stop.name})"
        )
