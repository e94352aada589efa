r"""Both sides of LEG-TV at a map and a circulation, in one pass over the edges, compiled by numba (the extra `fast`).

What `LegProgram` evaluates with arrays for every solver; a path that asks for both sides at fifty levels would spend much of its time on that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from formulations.leg.tree import any_order, compiled
from formulations.norms import Array

Integers = NDArray[np.int64]
_PART = 256  # edges that are looked at together, at the least


@compiled
def conserved(w: int, z: Integers) -> bool:
    """Whether Dᵀz = 0, in integers."""
    h = (len(z) + w) // (2 * w - 1)
    right = (h - 1) * w  # the first horizontal edge
    for i in range(h):
        for j in range(w):
            net = 0
            if i > 0:
                net += z[(i - 1) * w + j]
            if i < h - 1:
                net -= z[i * w + j]
            if j > 0:
                net += z[right + i * (w - 1) + j - 1]
            if j < w - 1:
                net -= z[right + i * (w - 1) + j]
            if net != 0:
                return False
    return True


@compiled
def _terms(t: Array, z: Integers, lo: Array, hi: Array, variance: float, terms: Array, rough: Array, y: Array) -> int:
    """Per edge the term of −φ*(z), what its rounding is small against, and the multiplier (u − z)/σ² of the best split z = u − σ²y.

    How many t lie outside [lo, hi]. No branch and no sum, so that the processor takes several edges at once.
    """
    outside = 0
    for e in range(len(t)):
        flow, low, high = float(z[e]), lo[e], hi[e]
        near = min(max(low, 0.0), high)
        terms[e] = min(min(abs(low) - flow * low, abs(high) - flow * high), abs(near) - flow * near)
        # for |z| ≤ 1 a term is 0, |t| or 2|t|, without rounding
        rough[e] = (abs(flow) + 1) * max(abs(low), abs(high)) if abs(flow) > 1 else 0.0
        inner = min(max(flow, -1.0), 1.0)
        u = 1.0 if low > 0 else (-1.0 if high < 0 else inner)
        y[e] = (u - flow) / variance
        outside += not ((t[e] >= low) & (t[e] <= high))
    return outside


@compiled
def _differences(image: Array, first: int, rows: int, length: int, w: int, step: int, t: Array) -> None:
    """image[x + step] − image[x] at the first `length` pixels x of each of the rows from pixel `first` on."""
    for i in range(rows):
        for j in range(length):
            x = first + i * w + j
            t[i * length + j] = image[x + step] - image[x]


@any_order
def _sum(values: Array) -> float:
    total = 0.0
    for k in range(len(values)):
        total += values[k]
    return total


@any_order
def _sum_of_sizes(values: Array) -> float:
    total = 0.0
    for k in range(len(values)):
        total += abs(values[k])
    return total


@compiled
def both_sides(
    w: int, g: Array, mean: float, z: Integers, lo: Array, hi: Array, variance: float, image: Array, y: Array
) -> tuple[float, float, float]:
    """(Σ|t|, a lower bound of the optimum, the largest violation) at the map `image`, g moved to the given mean, and the circulation z; y are the multipliers.

    The bound is that of `formulations.leg.network.circulation_value`, but here the sums of the parts, too, are added in floating point.
    """
    h, p = len(g) // w, len(g)
    moved = mean - _sum(g) / p
    for x in range(p):
        image[x] = g[x] + moved  # plateaus stay exactly flat: one constant is added to equal numbers
    rows = 1 + _PART // w  # whole rows at a time, so that what is written is read again from the cache
    t, terms, rough = np.empty(rows * w), np.empty(rows * w), np.empty(rows * w)
    violation, total, value, size, slack = 0.0, 0.0, 0.0, 0.0, 0.0
    for turn in range(2):  # vertical edges, horizontal ones
        count, length, step = (h - 1, w, w) if turn == 0 else (h, w - 1, 1)
        for top in range(0, count, rows):
            n = min(rows, count - top) * length
            first = turn * (p - w) + top * length
            _differences(image, top * w, min(rows, count - top), length, w, step, t)
            here = slice(first, first + n)
            if _terms(t[:n], z[here], lo[here], hi[here], variance, terms, rough, y[here]):
                for k in range(n):
                    excess = max(lo[first + k] - t[k], t[k] - hi[first + k])
                    violation = max(violation, excess) if excess < np.inf else np.inf  # what is not a number is no map
            total += _sum_of_sizes(t[:n])
            value += _sum(terms[:n])
            size += _sum_of_sizes(terms[:n])
            slack += _sum(rough[:n])
    # any number is added to at most 2 _PART + w others of its part, and the sum of that to those of at most 2h more
    slack = (4 * slack + (2 * _PART + w + 2 * h) * size) * 2.0**-52
    return total, value - slack if value > slack else min(value, 0.0), violation
