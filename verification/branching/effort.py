"""How much work branch and bound puts where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Where the work goes. root_steps, steps, trial_steps: evaluations per ascent at the root, in cells, and for each candidate of a split; batch: cells at
    once; rounds: of narrowing at the root, each further one earned by a relative gain of some slack; cell_rounds, cell_gain: the same
    for each other cell."""

    root_steps: int = 20
    steps: int = 8
    trial_steps: int = 3
    candidates: int = 6
    batch: int = 32
    rounds: int = 12
    gain: float = 0.03
    cell_rounds: int = 12
    cell_gain: float = 0.035
