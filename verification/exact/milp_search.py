"""All margin rows of one question by mixed-integer programs: each below the shortest witness so far, nearest guess first."""

from __future__ import annotations

from formulations.norms import INF
from formulations.support import Region
from verification.exact.answers import ExactStatus
from verification.exact.bounds import Propagation
from verification.exact.mixed_integer import MARGIN, smallest_change
from verification.exact.search import OutOfBudget, Search


class MilpSearch(Search):
    """The smallest of the rows' programs. Its bound is the solver's word, less `MARGIN`."""

    tolerance = MARGIN

    def _settle(self, radius: float) -> float:
        self._bounds: list[float] = []
        propagation = Propagation(self.q.weights, self.q.shifts, self.q.first_shift_size, self.device)
        known, at = None, INF
        for row in self.rows:
            self.spend()
            cap = min(radius, self.upper)
            if known is None or cap < at:
                known, at = propagation.bounds(Region.build(self.q.norm, self.q.parts, cap, self.q.dim, device=self.device)), cap
            answer = smallest_change(self.q, row, known, cap, self.seconds_left())
            self.nodes += answer.nodes
            self._bounds.append(answer.bound)
            self.take(self.descent.at(answer.delta, row, self.upper))
            if not answer.done:
                raise OutOfBudget(ExactStatus.TIME)
        return min(self._bounds)

    def _so_far(self) -> float:
        """Rows that were not reached are not bounded."""
        bounds = getattr(self, "_bounds", [])
        return min(bounds) if len(bounds) == len(self.rows) else 0.0
