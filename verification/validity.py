"""Is the linearised radius true of the network?"""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import ArrayLike

from formulations.norms import Array


class Validity(Enum):
    """What bounds and witness say of the claim "no allowed change within the linearised radius flips the decision". The value is the reading."""

    CERTIFIED = "The bounds prove it on the network."
    REFUTED = "A real input nearer than that flips the decision."
    UNKNOWN = "Neither proved nor refuted: only the stated fraction of it is certified."


def linear_validity(linear: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> tuple[list[Validity], Array]:
    """(validity, certified fraction) of linearised radii v (n,) against certified lower bounds and witnessed upper bounds (n,) of v*.

    CERTIFIED where lower ≥ v, REFUTED where upper < v, else UNKNOWN; fraction = min(1, lower/v): the largest part of v that is certified (1 where v = 0;
    0 where v = +∞ and lower is not). +∞ says "no allowed change", in all three.
    """
    v, low, up = (np.atleast_1d(np.asarray(a, dtype=float)) for a in (linear, lower, upper))
    certified, refuted = low >= v, up < v
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(certified | (v == 0), 1.0, np.where(np.isinf(v), 0.0, low / v))
    verdicts = [Validity.REFUTED if r else Validity.CERTIFIED if c else Validity.UNKNOWN for c, r in zip(certified, refuted, strict=True)]
    return verdicts, np.clip(np.nan_to_num(part), 0.0, 1.0)
