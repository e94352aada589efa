"""What a solve may say. The value of each status is the advice that goes with it."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """Outcome of a convex program. Only `OPTIMAL` and `INFEASIBLE` are answers; both are verified by weak duality, never taken from a solver."""

    OPTIMAL = "Solved: primal and verified dual value agree."
    INFEASIBLE = "No allowed change makes the rows fall: proved by a verified dual ray."
    INACCURATE = "The solver stopped early: only `.lower` is a bound. Rescale the data, or try solver='SCS' or a looser set."
    LIMIT = "Time or iteration limit: only `.lower` is a bound. Raise the limit."
    UNKNOWN = "Neither solved nor proved infeasible: only `.lower` is a bound. Check that the set has an interior, or try the other solver."
    UNBOUNDED = "The program has no minimum; a norm is bounded below, so a custom set is not what it says."

    @property
    def is_answer(self) -> bool:
        return self in (Status.OPTIMAL, Status.INFEASIBLE)
