"""Rounding in float64: the few constants from which level B of the checker builds its error bounds. It needs numpy only.

u = 2^-53, one rounding. A sum of n products in any order, fused or not, is off by at most γ_n Σ|a||b|, γ_n = n u/(1 − n u) (Higham 2002, §3.1), plus n·TINY
where products underflow or are flushed. Error terms are sums of non-negative numbers, themselves rounded: they are multiplied by INFLATE, which covers
2^22 roundings. Overflow ends in inf or NaN, and such a bound is worth nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["INFLATE", "TINY", "Array", "Shape", "U", "gamma", "widen"]

Array = NDArray[np.float64]
Shape = tuple[int, ...]
U = 2.0**-53
TINY = 2.0**-1000
INFLATE = 1 + 2.0**-30
MAX_TERMS = 1 << 22


def gamma(n: int) -> float:
    """An upper bound of γ_n."""
    if n > MAX_TERMS:
        raise OverflowError(f"{n} terms in one sum")
    return n * U * INFLATE


def widen(lo: Array, hi: Array) -> tuple[Array, Array]:
    """One step outwards; NaN becomes infinite."""
    low, high = np.nextafter(lo, -np.inf), np.nextafter(hi, np.inf)
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
