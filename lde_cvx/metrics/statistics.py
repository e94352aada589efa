"""Means with bootstrap intervals, and paired tests between two methods on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, wilcoxon

from formulations.errors import InputError
from formulations.norms import Array


@dataclass(frozen=True)
class Interval:
    """mean of n values, with a bootstrap interval [low, high] at `confidence`; of a single value, low = high = mean."""

    mean: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class PairedTest:
    """difference: mean of a − b with its interval; p_value: two-sided Wilcoxon signed-rank test of a − b against 0 (1 where all are equal);

    below: share of inputs with a < b, equal ones counted half.
    """

    difference: Interval
    p_value: float
    below: float


def interval(values: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean and percentile bootstrap interval over the values (n,). Raises InputError on none, and on values that are not finite."""
    v = _finite(values)
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must lie between 0 and 1.")
    mean = float(v.mean())
    if len(v) == 1 or np.ptp(v) == 0:
        return Interval(mean, mean, mean, len(v), confidence)
    found = bootstrap(
        (v,), np.mean, confidence_level=confidence, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    )
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), len(v), confidence)


def paired_test(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, *, seed: int = 0) -> PairedTest:
    """Whether a and b (n,), taken on the same inputs, differ. Raises InputError on different lengths."""
    x, y = _finite(a), _finite(b)
    if len(x) != len(y):
        raise InputError(f"paired_test: {len(x)} and {len(y)} values; both must be of the same inputs.")
    d = x - y
    p = 1.0 if not d.any() else float(wilcoxon(d).pvalue)
    return PairedTest(interval(d, confidence, seed=seed), p, float((d < 0).mean() + 0.5 * (d == 0).mean()))


def _finite(values: ArrayLike) -> Array:
    v = np.asarray(values, dtype=float).ravel()
    if not len(v):
        raise InputError("no values were given; give at least one.")
    if not np.isfinite(v).all():
        raise InputError(f"value {int(np.flatnonzero(~np.isfinite(v))[0])} is not finite; leave it out or replace it.")
    return v
