r"""The pivots of a network simplex on the pixels of a grid: loops over tables, compiled by numba (the extra `fast`; uncompiled they would take minutes).

The mathematics stands in `formulations.leg.simplex`, which owns the tables. Edge x joins pixel x to the one below and edge p + x to the one on its right, so
that all vertical and all horizontal differences are two long lines; those that would leave the grid have no limits and never enter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from formulations.leg.tree import AFTER, ANY, DOWN, EDGE, PARENT, UP, Table, blocking, compiled, compiled_with, inlined, rehang
from formulations.norms import Array

Marks = NDArray[np.uint8]

# Rows of `edges` (3, 2p): z; the piece of a tree edge, −1 off the tree; which kinks are none (1: the lower, 2: the upper), + 4 if that has just changed
FLOW, PIECE, SMOOTH = range(3)
# Rows of `limits` (5, 2p): lo and hi; what t may be, ± the tolerance, for an edge off the tree; t of a tree edge
LEAST, MOST, LOW, HIGH, SLOPE = range(5)

_STRETCH = 256  # pixels whose edges are compared at once, a multiple of eight
_BLOCK = 5  # edges looked at before the worst of them enters
_TOLERANCE = 1e-13  # of the largest bound: what an edge off the tree may exceed its slopes by


@compiled
def _slope(piece: int, lo: float, hi: float) -> float:
    if piece == 0:
        return lo
    return hi if piece == 2 else min(max(0.0, lo), hi)


@compiled
def _room(piece: int, z: int, forward: bool, lo: float, hi: float) -> int:
    """How far z may rise (forward) or fall within its piece."""
    if forward:
        return ANY if piece == 2 or (piece == 1 and hi < 0) else 2 * piece - 1 - z
    return ANY if piece == 0 or (piece == 1 and lo > 0) else z - 2 * piece + 3


@compiled
def _fence(e: int, edges: Table, limits: Array, tolerance: float) -> None:
    """What t may be for edge e off the tree."""
    z, lo, hi = edges[FLOW, e], limits[LEAST, e], limits[MOST, e]
    near = min(max(0.0, lo), hi)
    limits[LOW, e] = (lo if z == -1 else near) - tolerance
    limits[HIGH, e] = (hi if z == 1 else near) + tolerance


@compiled
def _fences(flow: Table, piece: Table, smooth: Table, lo: Array, hi: Array, low: Array, high: Array, slope: Array, tolerance: float) -> int:
    """As `_fence` for all edges, none on the tree, and the slopes of their pieces; how many edges have gained or lost a kink."""
    count = 0
    for e in range(len(flow)):
        near = min(max(0.0, lo[e]), hi[e])
        low[e] = -np.inf if piece[e] >= 0 else (lo[e] if flow[e] == -1 else near) - tolerance
        high[e] = np.inf if piece[e] >= 0 else (hi[e] if flow[e] == 1 else near) + tolerance
        t = lo[e] if piece[e] == 0 else near
        slope[e] = hi[e] if piece[e] == 2 else t
        kinks = np.int32(lo[e] > 0) + np.int32(2) * np.int32(hi[e] < 0)
        changed = kinks != smooth[e] & 3
        smooth[e] = kinks + 4 * np.int32(changed)
        count += changed
    return count


@compiled
def _refit(pixels: Table, edges: Table, limits: Array) -> None:
    """Pieces and rooms of the tree edges that have gained or lost a kink, such that some flow to the root keeps its room."""
    for x in range(len(pixels)):
        e = pixels[x, EDGE]
        if e < 0 or edges[SMOOTH, e] < 4:
            continue
        piece, z, upwards, lo, hi = edges[PIECE, e], edges[FLOW, e], pixels[x, PARENT] > x, limits[LEAST, e], limits[MOST, e]
        if lo > 0:
            piece = max(piece, 1)
        elif piece == 1 and (z < -1 or (z == -1 and not upwards)):
            piece = 0
        if hi < 0:
            piece = min(piece, 1)
        elif piece == 1 and (z > 1 or (z == 1 and upwards)):
            piece = 2
        edges[PIECE, e], limits[SLOPE, e] = piece, _slope(piece, lo, hi)
        pixels[x, UP], pixels[x, DOWN] = _room(piece, z, upwards, lo, hi), _room(piece, z, not upwards, lo, hi)


@compiled
def _potentials(root: int, pixels: Table, order: Table, slope: Array, g: Array) -> None:
    """g from the slopes of the tree edges, 0 at the root: equal along edges of slope 0, so a plateau is flat to the bit."""
    g[root] = 0.0
    x = order[AFTER, root]
    while x != root:
        e, parent = pixels[x, EDGE], pixels[x, PARENT]
        g[x] = g[parent] + (1 - 2 * (parent > x)) * slope[e]
        x = order[AFTER, x]


@compiled
def _copy(values: Array, first: int, length: int, w: int, places: Array) -> None:
    """The values from `first` on, `length` a row, into rows of w."""
    for i in range(len(places) // w):
        for j in range(length):
            places[i * w + j] = values[first + i * length + j]


@compiled_with(fastmath=True)
def _largest(sign: float, values: Array) -> float:
    found = -np.inf
    for k in range(len(values)):
        found = max(found, sign * values[k])
    return found


@compiled
def _prepare(root: int, w: int, pixels: Table, order: Table, edges: Table, limits: Array, g: Array, lo: Array, hi: Array) -> float:
    """The tables for the bounds (lo, hi), in the order of D; the tolerance."""
    p = len(g)
    for bound, limit in ((lo, limits[LEAST]), (hi, limits[MOST])):
        _copy(bound, 0, w, w, limit[: p - w])
        _copy(bound, p - w, w - 1, w, limit[p:])
    tolerance = _TOLERANCE * max(_largest(-1.0, lo), _largest(1.0, hi))  # lo ≤ hi
    if _fences(edges[FLOW], edges[PIECE], edges[SMOOTH], limits[LEAST], limits[MOST], limits[LOW], limits[HIGH], limits[SLOPE], tolerance):
        _refit(pixels, edges, limits)
    _potentials(root, pixels, order, limits[SLOPE], g)
    return tolerance


@compiled
def _outside(heads: Array, tails: Array, low: Array, high: Array, marks: Marks) -> None:
    """Which differences lie outside their limits."""
    for k in range(len(low)):
        t = heads[k] - tails[k]
        marks[k] = (t < low[k]) | (t > high[k])


@compiled
def _sift(size: int, start: int, step: int, first: int, g: Array, low: Array, high: Array, marks: Marks, queue: Table) -> int:
    """Of a stretch of edges, from the pixels from `start` on to those `step` further, those outside their limits join the queue; its size."""
    stop = min(start + len(marks), len(g) - step)
    if stop - start < len(marks):
        marks[:] = 0
    if start >= stop:
        return size
    _outside(g[start + step : stop + step], g[start:stop], low[first + start : first + stop], high[first + start : first + stop], marks)
    eights = marks.view(np.uint64)
    for i in range(len(eights)):
        if eights[i] != 0:  # one of eight marks
            for k in range(8 * i, 8 * i + 8):
                queue[size] = first + start + k  # overwritten by the next one unless it counts: cheaper than a branch
                size += marks[k]
    return size


@compiled
def _push(x: int, join: int, amount: int, rising: bool, pixels: Table, edges: Table, limits: Array) -> None:
    """`amount` flows along the tree from x up to the join (rising), or from the join down to x."""
    while x != join:
        e, upwards = pixels[x, EDGE], pixels[x, PARENT] > x
        z = edges[FLOW, e] + (amount if upwards == rising else -amount)
        edges[FLOW, e] = z
        pixels[x, UP] = _room(edges[PIECE, e], z, upwards, limits[LEAST, e], limits[MOST, e])
        pixels[x, DOWN] = _room(edges[PIECE, e], z, not upwards, limits[LEAST, e], limits[MOST, e])
        x = pixels[x, PARENT]


@inlined
def _enter(
    e: int, tail: int, head: int, rising: bool, pixels: Table, order: Table, edges: Table, limits: Array, g: Array, tolerance: float
) -> bool:
    """One pivot on edge e; False where nothing ever blocks it, which rounding alone could bring about."""
    u, v = (tail, head) if rising else (head, tail)
    z, lo, hi, piece = edges[FLOW, e], limits[LEAST, e], limits[MOST, e], 1
    if rising and z == 1 and hi >= 0:
        piece = 2
    elif not rising and z == -1 and lo <= 0:
        piece = 0
    own = _room(piece, z, rising, lo, hi)
    room_u, at_u, room_v, at_v, join = blocking(u, v, pixels, order)
    amount = min(own, min(room_u, room_v))
    if amount == ANY:
        return False
    if amount > 0:
        z += amount if rising else -amount
        edges[FLOW, e] = z
        _push(u, join, amount, False, pixels, edges, limits)
        _push(v, join, amount, True, pixels, edges, limits)
    if room_v == amount:
        out, inside, outside = at_v, v, u
    elif own == amount:  # it only moved to its next kink
        _fence(e, edges, limits, tolerance)
        return True
    else:
        out, inside, outside = at_u, u, v
    left = pixels[out, EDGE]
    edges[PIECE, left], edges[PIECE, e], limits[LOW, e], limits[HIGH, e] = -1, piece, -np.inf, np.inf
    _fence(left, edges, limits, tolerance)
    upwards = inside == tail
    up, down = _room(piece, z, upwards, lo, hi), _room(piece, z, not upwards, lo, hi)
    limits[SLOPE, e] = _slope(piece, lo, hi)
    amiss = limits[SLOPE, e] - (g[head] - g[tail])
    rehang(out, inside, outside, e, up, down, -amiss if upwards else amiss, pixels, order, g)
    return True


@compiled
def improve(
    root: int, w: int, pixels: Table, order: Table, edges: Table, limits: Array, g: Array, queue: Table, lo: Array, hi: Array, pivots: int
) -> bool:
    """At most `pivots` pivots for the bounds (lo, hi); whether no edge can enter any more."""
    p, size, place, kept = len(g), 0, 0, 0
    tolerance = _prepare(root, w, pixels, order, edges, limits, g, lo, hi)
    low, high, marks = limits[LOW], limits[HIGH], np.empty(_STRETCH, dtype=np.uint8)
    while True:
        entering, most, looked = -1, 0.0, 0
        while looked < _BLOCK or entering < 0:
            if place == size:  # round again, with those that could still enter
                size, place, kept = kept, 0, 0
                if size == 0 or entering >= 0:
                    break
            e = queue[place]
            t = g[e + w] - g[e] if e < p else g[e - p + 1] - g[e - p]
            urge = t - high[e] if t > high[e] else min(t - low[e], 0.0)
            place += 1
            looked += 1
            if urge != 0:
                queue[kept] = e
                kept += 1
            if abs(urge) > abs(most):
                entering, most = e, urge
        if entering < 0:
            for start in range(0, p, _STRETCH):  # in the order of the image: neighbours are near in memory
                size = _sift(size, start, w, 0, g, low, high, marks, queue)
                size = _sift(size, start, 1, p, g, low, high, marks, queue)
            if size == 0:
                _potentials(root, pixels, order, limits[SLOPE], g)  # the lifts left rounding errors
                return True
            continue
        tail, head = (entering, entering + w) if entering < p else (entering - p, entering - p + 1)
        pivots -= 1
        if pivots < 0 or not _enter(entering, tail, head, most > 0, pixels, order, edges, limits, g, tolerance):
            return False
