"""What an exact search answers, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from formulations.norms import Array


class Engine(Enum):
    """How the smallest flipping change is searched for. The value says what the bounds rest on."""

    REGIONS = "Activation regions, best first: every bound is weak duality evaluated with its rounding errors. All norms and sets but a user's own cones."
    MILP = "One mixed-integer program per rival, solved by HiGHS: exact up to the solver's tolerances. ℓ1 and ℓ∞ over polyhedra."


class Evidence(Enum):
    """What `lower` rests on."""

    VERIFIED = "Weak duality at every region, rounding errors counted: a certified bound."
    SOLVER = "The solver's own dual bound less a documented tolerance: a reference to compare with, not a certificate."


class ExactStatus(Enum):
    """Outcome of an exact search; the value is the advice that goes with it."""

    CLOSED = "Solved: the lower bound meets the witness."
    UNREACHABLE = "No allowed change flips the decision: every activation region is refuted."
    NONE_BELOW = "No allowed change below the given upper value flips the decision: that value stands."
    TIME = "The time limit came first: the bracket is valid. Raise the limit, or give a witness value as `upper`."
    NODES = "The node limit came first: the bracket is valid. Raise the limit."
    BEYOND = "Nothing flips within `lower` and the set is unbounded: intersect it with a box to have more proved."
    UNRESOLVED = "Every region was visited and some bound stayed short of its value: the bracket is valid. Rescale the inputs."

    @property
    def is_answer(self) -> bool:
        return self in (ExactStatus.CLOSED, ExactStatus.UNREACHABLE, ExactStatus.NONE_BELOW)


@dataclass(frozen=True)
class Leaf:
    """A region that ended the search: margin row `row` cannot fall below `lower` where the neurons (layer, index) have the signs `splits`.

    splits holds (layer, neuron, active); neurons that are not named are free, or have one sign wherever ‖Wδ‖ ≤ the upper value.
    """

    row: int
    splits: tuple[tuple[int, int, bool], ...]
    lower: float


@dataclass(frozen=True, eq=False)
class ExactResult:
    """v* = min ‖Wδ‖ over the allowed changes that flip the decision, bracketed.

    lower     lower bound of v*, rounded down; +inf when no allowed change flips. `evidence` says whether it is a certificate
    upper     upper bound of v*: the norm of `delta`, rounded up; the caller's value where nothing shorter was found; +inf without either
    delta     (d,) a change within the set (to 1e-9) that flips the network in float64; NaN when none was found
    row       the margin row that falls there, rival its class; −1 without delta
    margin    that row's value at x0 + delta, ≤ 0
    nodes     convex programs solved (regions), or branch-and-bound nodes (MILP)
    leaves    the regions that cover the search (Engine.REGIONS)
    """

    status: ExactStatus
    lower: float
    upper: float
    delta: Array
    row: int
    rival: int
    margin: float
    engine: Engine
    evidence: Evidence
    nodes: int
    seconds: float
    leaves: tuple[Leaf, ...] = ()

    @property
    def closed(self) -> bool:
        """Is the radius known, or known to be infinite?"""
        return self.status.is_answer

    @property
    def gap(self) -> float:
        """(upper − lower)/upper; 0 when unreachable, NaN without an upper value."""
        if self.lower == float("inf") or self.upper == 0:
            return 0.0
        return (self.upper - self.lower) / self.upper if self.upper < float("inf") else float("nan")
