r"""Which radius to ask about next.

A question grows fast with its radius: by about a third in cells for every per cent, on networks measured so far, and that rate is fitted as questions close. So the
next radius is the one at which a question should cost four times the last that closed, or less where the budgets do not allow that; what all questions cost together is
then about 4/3 of the last. A question that grows far beyond what it should cost is given up for the radius half way back. The first radius is the goal itself unless
the rows at the root miss by too much: the worst slack (b/σ − 1, verification/branching/cells.py) falls smoothly with the radius and costs next to nothing to look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log

from formulations.norms import INF

EASY = -1.0  # worst slack of the root cells above which most questions close soon
BACK = 0.85  # first steps back
TIMES = 4.0  # cost of a question, in the last one's
PATIENCE = 8.0  # and where it is given up
FEWEST = 96  # cells that every question may have
TRIVIAL, CAUTIOUS, BOLDEST = (
    32,
    0.11,
    1.0,
)  # cells up to which a question says nothing of the rate: the steps double, up to these with and without a witness
SMALLEST = 0.004  # step
WARY = 40.0  # the rate at least, where the budgets set the step
RATE, SLOWEST, FASTEST = 26.0, 8.0, 80.0  # d log(cells) / d log(radius): at first, and at least, at most


@dataclass
class Schedule:
    """What was asked and how it went: (radius, cells), nearest first. `lower`: nothing flips within it."""

    closed: list[tuple[float, int]] = field(default_factory=list)
    given_up: list[tuple[float, int]] = field(default_factory=list)

    @property
    def quota(self) -> int:
        """Cells after which the next question is given up: more and more of them, so that no search without limits goes on for ever."""
        if not self.closed:
            return FEWEST << min(len(self.given_up), 20)
        return max(FEWEST << min(len(self.given_up) // 2, 20), int(PATIENCE * self.closed[-1][1]))

    def rate(self) -> float:
        """The growth between the last two questions that closed and were not trivial."""
        hard = [(r, n) for r, n in self.closed if n >= 16]
        if len(hard) < 2 or not hard[-1][0] > hard[-2][0]:
            return RATE
        (r0, n0), (r1, n1) = hard[-2:]
        return min(max(log(n1 / n0) / (r1 / r0 - 1), SLOWEST), FASTEST)

    def close(self, radius: float, cells: int) -> None:
        """A question closed; what was left of larger radii counts as no more than a question begun at this one."""
        self.closed.append((radius, cells if not self.given_up or not self.closed else min(cells, max(int(self.expected(radius)), 1))))

    def expected(self, radius: float) -> float:
        """Cells of a question at this radius."""
        if not self.closed or not self.closed[-1][0] > 0:
            return FEWEST
        r, n = self.closed[-1]
        return n * exp(min(self.rate() * max(radius / r - 1, 0.0), 30.0))

    def after_closing(self, lower: float, goal: float, boldest: float = BOLDEST, affordable: float = INF) -> float:
        """The next radius after a question closed at `lower` < goal; `affordable`: the cells that it may have."""
        easy = next((k for k, (_, n) in enumerate(reversed(self.closed)) if n >= TRIVIAL), len(self.closed))
        radius = lower * (1 + min(log(TIMES) / self.rate() * 2 ** min(max(easy - 1, 0), 10), boldest))
        radius = min(radius, lower * (1 + max(log(max(affordable, 1.0) / self.closed[-1][1]) / max(self.rate(), WARY), SMALLEST)))
        beaten = [r for r, n in self.given_up if r > lower and n * 2 > self.quota]
        if beaten:
            radius = min(radius, (lower + min(beaten)) / 2)
        return goal if radius > goal * 0.98 and not any(r >= goal * 0.999 for r in beaten) else min(radius, goal)

    @staticmethod
    def after_giving_up(lower: float, radius: float) -> float:
        """The next radius after a question at `radius` was given up."""
        return (lower + radius) / 2 if lower > 0 else BACK * radius
