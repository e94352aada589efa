"""What an explanation's λ says.

A published bound is not always the value of the program whose multipliers are shown: it may be the radius within which the program's row holds, a value of
the lower row that level B derives, or what a tree of other programs proves. And a program without a solution has no λ: its multipliers are a ray, which
proves as much at twice its size.
"""

from __future__ import annotations

import math
from enum import Enum

from formulations.norms import INF
from formulations.solution import Solution
from formulations.status import Status
from verification.checking.outward import down_words

SAME = 2e-3  # relative: the search for radii ends within 1e-3, and level B may take off a little more


class Reading(Enum):
    """What an explanation's λ says. The value is the reading."""

    BOUND = "λ of the certified program, whose value is the certified lower bound."
    RADIUS = "λ of the certified program. Its value is above the certified lower bound: its row holds within a radius only, or the checker derives a lower row."
    TREE = "λ of the certified program before branching. Its value is not the certified lower bound: the tree certifies more."
    LINEARISED = "λ of the linearised program: a local model, which certifies nothing."
    RAY = "There is no λ: no allowed change makes the program's row fall. The multipliers prove that at any size, and price nothing."
    UNREACHABLE = "There is no λ: no allowed change flips the decision. The multipliers are no prices."
    UNSOLVED = "There is no λ: the program was not solved; a looser set or a longer time limit may help. Bounds that are published stand."
    NONE = "There is no λ: nothing is certified."

    @staticmethod
    def of(solution: Solution | None, lower: float, certifies: bool) -> Reading:
        """The reading of a solved program's multipliers beside the published `lower`; `certifies`: its row is a minorant, not a linearisation."""
        if lower == INF:
            return Reading.UNREACHABLE
        if solution is None or (certifies and not lower > 0):
            return Reading.NONE
        if solution.status is Status.INFEASIBLE:
            return Reading.RAY
        if not math.isfinite(solution.value) or not (certifies or solution.status.is_answer):
            return Reading.UNSOLVED
        if not certifies:
            return Reading.LINEARISED
        if lower > solution.lower * (1 + SAME):
            return Reading.TREE
        return Reading.RADIUS if lower < solution.lower * (1 - SAME) else Reading.BOUND

    @property
    def has_lambda(self) -> bool:
        return self in (Reading.BOUND, Reading.RADIUS, Reading.TREE, Reading.LINEARISED)

    def words(self, lam: float, own: float, lower: float) -> str:
        """λ and what it is of, in one clause; `own`: what its program certifies by itself, `lower`: what is published."""
        if self is Reading.BOUND:
            return f"certified λ {lam:.4g}"
        if self is Reading.LINEARISED:
            return f"λ of the linearised program {lam:.4g} (not certified)"
        if self is Reading.RADIUS:
            why = "its row holds within a radius only, or the checker derives a lower row"
            return f"λ {lam:.4g} of a program of value {down_words(own, 4)}; certified is {down_words(lower, 4)} ({why})"
        if self is Reading.TREE:
            return f"λ {lam:.4g} of the program before branching, which certifies {down_words(own, 4)}; the tree certifies {down_words(lower, 4)}"
        if self is Reading.RAY and lower > 0:
            return f"no λ: no allowed change makes the certified row fall, but it holds within a radius only; certified is {down_words(lower, 4)}"
        if self is Reading.RAY:
            return "no λ: no allowed change makes the linearised row fall; that certifies nothing"
        return str(self.value).replace("There is no λ", "no λ").rstrip(".")
