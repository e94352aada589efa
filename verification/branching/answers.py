"""What branch and bound answers: a bracket, why it stopped, and the trees with their leaves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from formulations.norms import INF, Array

Split = tuple[int, int, int]  # (layer, neuron, sign): sign·z ≥ 0 for that ReLU's input z


class BranchingStop(Enum):
    """Why the search ended; the value is the advice."""

    CLOSED = "Solved: the lower bound meets the upper one, or no allowed change flips the decision."
    TIME = "The time limit came first: the bracket is valid. Raise the limit."
    NODES = "The node limit came first: the bracket is valid. Raise the limit."
    INTERRUPTED = "Interrupted: the bracket is valid."
    UNRESOLVED = "The nearest activation region is solved, but the network in float64 does not flip there by a clear margin: the bracket is valid. Rescale the inputs."
    BEYOND = "Nothing flips within `lower`, there is no witness, and the set is unbounded: intersect it with a box to have more proved."


@dataclass(frozen=True, eq=False)
class Leaf:
    """A cell of row k's tree: the changes with ‖Wδ‖ ≤ radius, δ ∈ C, and the signs of `path`.

    a (K, d), b (K,)   what every change of the cell that flips row k obeys: a·δ + b ≤ 0. The first row bounds the margin, the others (none, where one row
                       says it all) state signs of ReLUs. They need not hold for changes that do not flip
    lower              no change of the cell with ‖Wδ‖ < lower flips row k; at most `radius`, +inf where that is all of C
    lam, duals         verified multipliers, where a convex program gave `lower`; else None
    slopes, splits     of a single row: per layer, slopes of the lines below its ReLUs, and the multipliers of the path's splits. They led to the row, or to
                       one like it; nothing rests on them
    aim                share κ and turn (d,) of the row's lines over the box (verification/branching/facets.py), where the search uses them
    """

    path: tuple[Split, ...]
    a: Array
    b: Array
    radius: float
    lower: float
    lam: Array | None = None
    duals: tuple[Array, ...] | None = None
    slopes: tuple[Array, ...] = ()
    splits: Array | None = None
    aim: tuple[float, Array] | None = None


@dataclass(frozen=True, eq=False)
class RowTree:
    """The leaves of one margin row cover everything; `lower` is their minimum. No leaves: nothing was proved of this row, and lower is the distance of C."""

    row: int
    rival: int
    lower: float
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, eq=False)
class BranchingResult:
    """v* = min ‖Wδ‖ over the allowed changes that flip the decision, bracketed for one input.

    lower    certified lower bound of v*; +inf when no allowed change flips
    upper    the caller's value, or a shorter witness that the search met: `delta` (d,) is that one, NaN where there is none
    nodes    cells bounded, in all trees
    trees    per margin row of the decision
    """

    lower: float
    upper: float
    delta: Array
    stop: BranchingStop
    nodes: int
    seconds: float
    trees: tuple[RowTree, ...]

    @property
    def closed(self) -> bool:
        """Is the radius known?"""
        return self.stop is BranchingStop.CLOSED

    @property
    def leaves(self) -> tuple[tuple[Leaf, ...], ...]:
        return tuple(t.leaves for t in self.trees)

    @property
    def gap(self) -> float:
        """(upper − lower)/upper; 0 when unreachable, NaN without an upper value."""
        if self.lower == INF or self.upper == 0:
            return 0.0
        return (self.upper - self.lower) / self.upper if self.upper < INF else float("nan")
