r"""Both sides of LEG-TV at a map and a circulation, in one pass over the edges, compiled by numba (the extra `fast`).

What `LegProgram` evaluates with arrays for every solver; a path that asks for both sides at fifty levels would spend much of its time on that. Edge x joins
pixel x to the one below and edge p + x to the one on its right, as in `formulations.leg.tree`: those that would leave the grid carry nothing, have no
difference and are centred at 0, so that they add nothing to either side, and all edges are two long lines.
"""

from __future__ import annotations

import numpy as np

from formulations.leg.tree import Table, any_order, compiled
from formulations.norms import Array

_PART = 256  # edges that are looked at together, at the least


@compiled
def conserved(w: int, z: Table) -> bool:
    """Whether Dᵀz = 0, in integers, and nothing leaves the grid."""
    p = len(z) // 2
    down, right = z[:p], z[p:]
    amiss = 0
    for x in range(p - w, p):
        amiss |= down[x]
    for x in range(w - 1, p, w):
        amiss |= right[x]
    amiss |= down[0] + right[0]
    for x in range(1, w):
        amiss |= right[x - 1] - down[x] - right[x]
    for x in range(w, p):  # the last pixel of a row has nothing on its right
        amiss |= down[x - w] + right[x - 1] - down[x] - right[x]
    return bool(amiss == 0)


@compiled
def _differences(heads: Array, tails: Array, exists: Array, centre: Array, radius: float, violation: float, t: Array) -> int:
    """t per edge; how many lie further outside [lo, hi] than `violation`, or are no numbers.

    Here as in the next one there is no branch, no sum and few tables, so that the processor takes several edges at once.
    """
    worse = 0
    for e in range(len(centre)):
        t[e] = (heads[e] - tails[e]) * exists[e]
        worse += not (abs(t[e] - centre[e]) - radius <= violation)
    return worse


@compiled
def _terms(z: Table, centre: Array, radius: float, terms: Array, rough: Array) -> None:
    """Per edge the term of −φ*(z), and what its rounding is small against."""
    for e in range(len(centre)):
        flow, lo, hi = float(z[e]), centre[e] - radius, centre[e] + radius
        near = min(max(lo, 0.0), hi)
        least = hi if flow > 1 else (lo if flow < -1 else near)  # where |t| − z t is least on [lo, hi]
        terms[e] = abs(least) - flow * least
        # for |z| ≤ 1 a term is 0, |t| or 2|t|, without rounding
        rough[e] = (abs(flow) + 1) * (abs(centre[e]) + radius) if abs(flow) > 1 else 0.0


@any_order
def _sums(t: Array, terms: Array, rough: Array) -> tuple[float, float, float, float]:
    """Σ|t|, Σ terms, Σ|terms|, Σ rough."""
    total, value, size, slack = 0.0, 0.0, 0.0, 0.0
    for k in range(len(t)):
        total += abs(t[k])
        value += terms[k]
        size += abs(terms[k])
        slack += rough[k]
    return total, value, size, slack


@any_order
def _mean(values: Array) -> float:
    total = 0.0
    for k in range(len(values)):
        total += values[k]
    return total / len(values)


@compiled
def both_sides(w: int, image: Array, mean: float, z: Table, centre: Array, radius: float) -> tuple[float, float, float]:
    """(Σ|t|, a lower bound of the optimum, the largest violation) at the map `image`, which is moved to the mean, and the circulation z.

    The bound is that of `formulations.leg.network.circulation_value`, but here the sums of the parts, too, are added in floating point.
    """
    p, rows = len(image), 1 + _PART // w  # whole rows at a time, so that what is written is read again from the cache
    image += mean - _mean(image)  # plateaus stay exactly flat: one constant is added to equal numbers
    exists, t, terms, rough = np.ones(rows * w), np.empty(rows * w), np.empty(rows * w), np.empty(rows * w)
    violation, total, value, size, slack = 0.0, 0.0, 0.0, 0.0, 0.0
    for turn in range(2):  # vertical edges, horizontal ones
        end, step = (p - w, w) if turn == 0 else (p, 1)
        if turn == 1:
            exists[w - 1 :: w] = 0.0
        for first in range(0, end, rows * w):
            n = min(rows * w, end - first)
            k = min(n, p - step - first)  # the last pixel of all has none on its right
            flow, middle = z[turn * p + first : turn * p + first + n], centre[turn * p + first : turn * p + first + n]
            t[n - 1] = 0.0
            if _differences(image[first + step : first + step + k], image[first : first + k], exists, middle[:k], radius, violation, t):
                for e in range(k):
                    excess = abs(t[e] - middle[e]) - radius
                    violation = max(violation, excess) if excess < np.inf else np.inf  # what is not a number is no map
            _terms(flow, middle, radius, terms, rough)
            a, b, c, d = _sums(t[:n], terms[:n], rough[:n])
            total, value, size, slack = total + a, value + b, size + c, slack + d
    # any number is added to at most 2 _PART + w others of its part, and the sum of that to those of at most 2h more
    slack = (4 * slack + (2 * _PART + w + 2 * (p // w)) * size) * 2.0**-52
    return total, value - slack if value > slack else min(value, 0.0), violation
