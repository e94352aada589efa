"""What a certificate says, as typed records; nothing in them is believed yet."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

MARGIN_ROW, FLIP_ROW = -1, -2  # entries of row_of: a·δ + b ≤ m_k(δ) on the cell; a·δ + b ≤ 0 where m_k(δ) ≤ 0 on it

Rows = list[list[tuple[int, float]]]  # a sparse matrix: (column, value) pairs, row by row


class Verdict(Enum):
    """What is known of the decision; the value is the sentence for reports."""

    BRACKETED = "A flipping change is known, and none is nearer than the lower bound."
    CERTIFIED_UNREACHABLE = "No allowed change flips the decision."
    LOWER_ONLY = "No allowed change nearer than the lower bound flips the decision; whether a farther one does is open."
    UNKNOWN = "Neither a positive lower bound nor a flipping change is known."

    @staticmethod
    def of(lower: float, upper: float) -> Verdict:
        if upper < math.inf:
            return Verdict.BRACKETED
        if lower == math.inf:
            return Verdict.CERTIFIED_UNREACHABLE
        return Verdict.LOWER_ONLY if lower > 0 else Verdict.UNKNOWN

    def sentence(self, lower: float) -> str:
        """The value; of a bracket [0, upper], whose lower end says nothing, what is open instead."""
        if self is Verdict.BRACKETED and not lower > 0:
            return "A flipping change is known; no lower bound above 0 is certified, so a nearer one is not excluded."
        return self.value


@dataclass(frozen=True)
class NormSpec:
    """p = "1", "2", "inf": ‖diag(weights)·‖_p; p = "group": Σ_g weights_g ‖·_g‖₂."""

    p: str
    weights: list[float] | None
    groups: list[list[int]]


@dataclass(frozen=True)
class PartSpec:
    """One part of C; `right` is h for rows and equalities, e for a ball."""

    name: str
    on: str
    kind: str
    lo: list[float] = field(default_factory=list)
    hi: list[float] = field(default_factory=list)
    matrix: Rows = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    rho: float = 0.0
    norm: NormSpec | None = None


@dataclass(frozen=True)
class Split:
    """side −1: quantity ≤ cut, side +1: quantity ≥ cut, of coordinate `index` of the input (at = "input") or of a layer's pre-activation."""

    at: str
    index: int
    cut: float
    side: int

    @property
    def question(self) -> tuple[str, int, float]:
        return self.at, self.index, self.cut


@dataclass(frozen=True)
class Inner:
    """Slopes of the lines below activation `by` in the bounds of what enters activation `of`: per neuron its inputs, and low and up, one number per input."""

    of: int
    by: int
    neurons: list[int]
    inputs: list[list[int]]
    low: list[list[float]]
    up: list[list[float]]


@dataclass(frozen=True)
class Cell:
    """One leaf of the split tree."""

    path: list[Split]
    radius: float
    a: list[list[float]]
    b: list[float]
    row_of: list[int]
    lam: list[float]
    duals: list[list[float] | None]
    w: list[float] | None
    slopes: list[list[list[float]]] = field(default_factory=list)
    inner: list[Inner] = field(default_factory=list)
    splits: list[list[float]] = field(default_factory=list)
    facets: list[tuple[float, list[int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A certificate that has the right form; nothing in it is believed yet."""

    x0: list[float]
    x0_sha256: str
    outputs: list[float]
    rows: list[list[float]]
    shifts: list[float]
    norm: NormSpec
    parts: list[PartSpec]
    cells: list[list[Cell]]
    lower: float
    row_lowers: list[float]
    upper: float
    witness: list[float] | None
    witness_outputs: list[float]
    verdict: Verdict
    feasibility: float
    reproducibility: float
    shape: tuple[int, ...] = ()
