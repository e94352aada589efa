"""How a search spends its passes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How one input's passes are spent.

    `rivals` lanes take up to `steps` approach steps; the `growing` nearest of their rows are followed in growing balls for `growing_steps`, most of them by
    the nearest alone. At p = 1 over a box, up to `leap_steps` leaps are made, for each of which `leaps` entries are tried (leaping.py), and the shortest
    lanes found walk along the boundary in the stages (keep, times) of `walk` (walking.py). `probes` random extreme points of C are tried as well
    (`lost_probes` where nothing else flipped; `rays` far out where that finds nothing and the set has no end, beyond.py). Then for every (keep, times) of
    `polish`, the `keep` shortest lanes are polished `times` times; a crossing is searched with `crossing` passes (`last_crossing` at the end), and
    `saturated` more where margins say little about distances. Before each entry of `polish` but the first, `samples` changes no longer than the best
    witness are looked at, and the `restarts` of them that are nearest to flipping are approached as well. The best witness is solved at its folds up to
    `folds` times, each with up to `fold_rounds` programs that take up to `fold_rows` more rows each. On chains of at most `neurons` ReLUs (128 features,
    20,000 weights), where the convex program of an activation region costs little, up to `regions` of them are solved at the end.
    """

    rivals: int = 9
    steps: int = 4
    growing: int = 3
    growing_steps: int = 100
    leaps: int = 0
    leap_steps: int = 16
    walk: tuple[tuple[int, int], ...] = ()
    probes: int = 8
    lost_probes: int = 32
    rays: int = 32
    samples: int = 150
    restarts: int = 1
    polish: tuple[tuple[int, int], ...] = ((4, 2), (2, 2))
    folds: int = 8
    fold_rounds: int = 4
    fold_rows: int = 8
    crossing: int = 4
    last_crossing: int = 10
    saturated: int = 8
    regions: int = 40
    neurons: int = 64

    @property
    def phases(self) -> int:
        """How many steps a search reports to `progress`, at most."""
        return (
            (1 + len(self.polish)) * (self.steps + 1)
            + self.growing_steps
            + self.folds
            + 4
            + sum(times for _, times in (*self.polish, *self.walk))
            + self.leap_steps
        )
