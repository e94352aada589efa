r"""What the two engines have in common: limits, the first witnesses, and stages.

Bounds of pre-activations need a radius r. Where a witness is known, r is its value and one stage settles the question. Where none is, r is
raised stage by stage: a stage that ends without a witness has proved v* ≥ r, and once r covers the whole set, v* = +∞.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import numpy as np
import torch

from formulations.norms import INF
from formulations.pieces import bounding_box
from formulations.support import Region
from verification.exact.answers import ExactStatus, Leaf
from verification.exact.descent import Descent
from verification.exact.question import Question, Witness
from verification.exact.relaxation import Relaxation

GAP = 1e-7  # relative: a bound this close to the witness meets it
CLOSE = 1e-6  # final gap, relative to max(1, upper), under which the bracket is an answer
STAGE = 4.0  # growth of r from stage to stage
FARTHEST = 1e6  # where the set is unbounded, r never grows beyond this multiple of its first value


class OutOfBudget(Exception):
    """The time or node limit was reached."""

    def __init__(self, status: ExactStatus) -> None:
        super().__init__(status.value)
        self.status = status


class Search(ABC):
    """One question's search below `upper`, over the margin rows `rows`. Stopped by its limits at any point, it keeps `lower` and `witness`."""

    tolerance = 0.0  # taken off the bound, relative to max(1, bound), before it is called a lower bound

    def __init__(
        self,
        question: Question,
        rows: list[int],
        upper: float,
        time_limit: float | None,
        node_limit: int | None,
        device: torch.device | str | None,
    ) -> None:
        self.q, self.rows, self.upper, self.device = question, rows, upper, device
        self.deadline = INF if time_limit is None else time.perf_counter() + time_limit
        self.node_limit = INF if node_limit is None else node_limit
        self.nodes = 0
        self.witness: Witness | None = None
        self.proved = 0.0

    @property
    def lower(self) -> float:
        """What is proved so far."""
        safe = self.proved if self.proved in (0.0, INF) else max(self.proved - self.tolerance * max(1.0, self.proved), 0.0)
        return min(safe, self.upper)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return ()

    def run(self) -> ExactStatus:
        try:
            return self._stages()
        except OutOfBudget as limit:
            self.proved = max(self.proved, self._so_far())
            return limit.status

    @abstractmethod
    def _settle(self, radius: float) -> float:
        """Searches below min(radius, upper) and returns what it proves: a lower bound of v*, which beyond that radius may be cut off there."""

    @abstractmethod
    def _so_far(self) -> float:
        """What an interrupted `_settle` has proved."""

    def _stages(self) -> ExactStatus:
        self.spend()
        self.relaxation = Relaxation(self.q)
        self.descent = Descent(self.q, self.relaxation)
        guess = self._first_witnesses()
        lo, hi = bounding_box(self.q.parts, self.q.dim)
        nearest = float(self.q.norm.value(np.clip(0.0, lo, hi)))  # > 0 where x0 itself is not allowed
        if nearest * (1 - GAP) >= self.upper:
            self.proved = self.upper
            return ExactStatus.NONE_BELOW
        self.reach = float(Region.build(self.q.norm, self.q.parts, max(nearest, 1.0) * (1 + GAP), self.q.dim).reach()[0]) * (1 + 1e-9)
        radius = min(self.upper if self.upper < INF else 2 * max(guess, nearest), self.reach)
        farthest = min(FARTHEST * radius, self.reach)
        while True:
            radius = max(radius, nearest * (1 + GAP))
            bound = self._settle(radius)
            self.proved = max(self.proved, bound if radius >= self.reach else min(bound, radius))
            if self.upper <= radius:
                return self._verdict()
            if bound < radius * (1 - 2 * GAP):
                return ExactStatus.UNRESOLVED
            if radius >= self.reach:
                return (
                    (ExactStatus.UNREACHABLE if self.upper == INF else ExactStatus.NONE_BELOW) if bound == INF else ExactStatus.UNRESOLVED
                )
            if radius >= farthest:
                return ExactStatus.BEYOND
            radius = min(radius * STAGE, farthest)

    def _verdict(self) -> ExactStatus:
        if self.upper - self.lower > (CLOSE + self.tolerance) * max(1.0, self.upper):
            return ExactStatus.UNRESOLVED
        return ExactStatus.CLOSED if self.witness is not None else ExactStatus.NONE_BELOW

    def _first_witnesses(self) -> float:
        """Tries every margin row by linearisation; returns the smallest radius that the linearisations guess, or a scale of x0 where none does."""
        guesses = {row: self.descent.guess(row) for row in self.rows}
        self.rows = sorted(self.rows, key=lambda k: guesses[k])
        for row in self.rows:
            self.spend()
            if guesses[row] < self.upper:  # only a guess, but the search itself misses nothing
                self.take(self.descent.start(row, self.upper))
        guess = min(guesses.values(), default=INF)
        return guess if 0 < guess < INF else max(1.0, float(self.q.norm.value(self.q.x0)))

    def take(self, witness: Witness | None) -> bool:
        """Keeps a witness that is shorter than all before."""
        if witness is None or witness.upper >= self.upper:
            return False
        self.witness, self.upper = witness, witness.upper
        return True

    def spend(self) -> None:
        """Raises OutOfBudget when a limit is reached."""
        if self.nodes >= self.node_limit:
            raise OutOfBudget(ExactStatus.NODES)
        if time.perf_counter() >= self.deadline:
            raise OutOfBudget(ExactStatus.TIME)

    def seconds_left(self) -> float | None:
        return None if self.deadline == INF else max(self.deadline - time.perf_counter(), 1e-3)
