"""What a search for witnesses answers: the records, the statuses, the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from formulations.errors import InputError
from formulations.norms import Array


class WitnessStatus(Enum):
    """Three answers that must not be confused. A search gives only the first two: that nothing flips is for a certificate to say."""

    FOUND = "A real input of the set flips the decision: `upper` is an upper bound of the radius."
    NOT_FOUND = "The search failed, which proves nothing: raise the budget, or certify that no allowed change flips the decision."
    PROVED_UNREACHABLE = "No allowed change flips the decision: certified, not searched."


class Stop(Enum):
    """Why the search ended."""

    COMPLETE = "Every start converged or ran out of its passes."
    TIME = "The time limit came first: the best witnesses so far are returned."
    INTERRUPTED = "Interrupted: the best witnesses so far are returned."


@dataclass(frozen=True)
class Budget:
    """What one input may cost: network passes (a backward pass comes with a forward pass, and both count), and seconds for the whole batch.

    The default is that of the published comparisons: about 1,000 passes of each kind.
    """

    forward: int = 1324
    backward: int = 200
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.forward < 1 or self.backward < 1 or (self.seconds is not None and not self.seconds > 0):
            raise InputError(f"{self}: every limit must be positive; a search needs at least one pass of each kind.")


@dataclass(frozen=True, eq=False)
class Witness:
    """One input's answer. `delta` (d,) is NaN and `upper` is inf when none was found."""

    status: WitnessStatus
    delta: Array
    upper: float
    rival: int
    row: int
    margin: float
    violation: float
    forward: int
    backward: int
    regions: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Witnesses:
    """A batch of n searches.

    delta       (n, d) change that flips the decision within the set, NaN where none was found
    upper       (n,) its norm, rounded up: an upper bound of the radius v*; +inf where none was found
    rival       (n,) the class (or side) that wins there, −1 where none was found; `row` (n,) is its margin row
    margin      (n,) that row's margin at x0 + delta in float64 (≤ 0), NaN where none was found
    violation   (n,) largest violation of the set at delta (≤ 1e-9), NaN where none was found
    forward     (n,) forward passes spent, backward (n,) backward passes spent
    regions     (n,) convex programs of activation regions that were solved (small ReLU networks alone); each counts as a pass of each kind too
    """

    delta: Array
    upper: Array
    rival: NDArray[np.intp]
    row: NDArray[np.intp]
    margin: Array
    violation: Array
    forward: NDArray[np.intp]
    backward: NDArray[np.intp]
    regions: NDArray[np.intp]
    stop: Stop
    seconds: float

    @property
    def found(self) -> NDArray[np.bool_]:
        return np.isfinite(self.upper)

    @property
    def status(self) -> list[WitnessStatus]:
        return [WitnessStatus.FOUND if f else WitnessStatus.NOT_FOUND for f in self.found]

    @property
    def passes(self) -> NDArray[np.intp]:
        """(n, 2): forward and backward passes of every input."""
        return np.stack([self.forward, self.backward], axis=1)

    def __len__(self) -> int:
        return len(self.upper)

    def __getitem__(self, i: int) -> Witness:
        return Witness(
            self.status[i], self.delta[i], float(self.upper[i]), int(self.rival[i]), int(self.row[i]), float(self.margin[i]),
            float(self.violation[i]), int(self.forward[i]), int(self.backward[i]), int(self.regions[i]),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Witness]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        upper = np.array2string(self.upper, precision=4, threshold=8, edgeitems=3)
        return f"Witnesses({int(self.found.sum())} of {len(self)} found: upper {upper}, {self.seconds:.3g} s, {self.stop.name})"
