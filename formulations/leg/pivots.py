r"""The pivots of a network simplex on the pixels of a grid: loops over tables, compiled by numba (the extra `fast`; uncompiled they would take minutes).

The mathematics stands in `formulations.leg.simplex`, which owns the tables. Edge x joins pixel x to the one below and edge p + x to the one on its right, so
that all vertical and all horizontal differences are two long lines; those that would leave the grid have no limits and never enter.
"""

from __future__ import annotations

import numpy as np

from formulations.leg.tree import AFTER, ANY, DOWN, EDGE, PARENT, SHIFT, UP, Links, Marks, Table, blocking, compiled, inlined, rehang
from formulations.norms import Array

# Rows of `edges` (2, 2p): z; the piece of a tree edge, −1 off the tree
FLOW, PIECE = range(2)
# Rows of `limits` (3, 2p): the middle of [lo, hi]; what t may be, ± the tolerance, for an edge off the tree
CENTRE, LOW, HIGH = range(3)

_STRETCH = 1024  # pixels whose edges are compared at once, a multiple of eight
_BLOCK = 10  # edges looked at before the worst of them enters


@inlined
def _ends(e: int, p: int, w: int) -> tuple[int, int]:
    """Tail and head of edge e."""
    right = e >= p
    tail = e - p * right
    return tail, tail + (1 if right else w)


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
def _fence(e: int, edges: Table, limits: Array, radius: float, tolerance: float) -> None:
    """What t may be for edge e off the tree."""
    z, lo, hi = edges[FLOW, e], limits[CENTRE, e] - radius, limits[CENTRE, e] + radius
    near = min(max(0.0, lo), hi)
    limits[LOW, e] = (lo if z == -1 else near) - tolerance
    limits[HIGH, e] = (hi if z == 1 else near) + tolerance


@compiled
def _fences(flow: Table, piece: Table, centre: Array, low: Array, high: Array, radius: float, tolerance: float) -> None:
    """As `_fence` for all edges, none on the tree."""
    for e in range(len(flow)):
        lo, hi = centre[e] - radius, centre[e] + radius
        near = min(max(0.0, lo), hi)
        least, most = (lo if flow[e] == -1 else near) - tolerance, (hi if flow[e] == 1 else near) + tolerance
        low[e], high[e] = -np.inf if piece[e] >= 0 else least, np.inf if piece[e] >= 0 else most


@inlined
def _refitted(piece: int, z: int, upwards: bool, lo: float, hi: float) -> int:
    """The piece of a tree edge that has gained or lost a kink, such that some flow to the root keeps its room."""
    if lo > 0:
        piece = max(piece, 1)
    elif piece == 1 and (z < -1 or (z == -1 and not upwards)):
        piece = 0
    if hi < 0:
        piece = min(piece, 1)
    elif piece == 1 and (z > 1 or (z == 1 and upwards)):
        piece = 2
    return piece


@compiled
def carry(
    root: int, pixels: Links, order: Links, edges: Table, limits: Array, before: float, radius: float, now: Array, then: Array
) -> None:
    """The tree from one radius to the next: what g is at the first, `now`, and at the second, `then`, both 0 at the root.

    g follows from the slopes of the tree edges: equal along edges of slope 0, so a plateau is flat to the bit.
    """
    now[root] = then[root] = 0.0
    x = order[AFTER, root]
    while x != root:
        e, parent = pixels[x, EDGE], pixels[x, PARENT]
        upwards, centre, piece = parent > x, limits[CENTRE, e], edges[PIECE, e]
        lo, hi = centre - radius, centre + radius
        sign = 1.0 - 2.0 * upwards
        now[x] = now[parent] + sign * _slope(piece, centre - before, centre + before)
        if (abs(centre) > radius) != (abs(centre) > before):
            z = edges[FLOW, e]
            edges[PIECE, e] = piece = _refitted(piece, z, upwards, lo, hi)
            pixels[x, UP], pixels[x, DOWN] = _room(piece, z, upwards, lo, hi), _room(piece, z, not upwards, lo, hi)
        then[x] = then[parent] + sign * _slope(piece, lo, hi)
        x = order[AFTER, x]


@compiled
def _outside(heads: Array, tails: Array, low: Array, high: Array, marks: Marks) -> None:
    """Which differences lie outside their limits."""
    for k in range(len(low)):
        t = heads[k] - tails[k]
        marks[k] = (t < low[k]) | (t > high[k])


@compiled
def _sift(size: int, start: int, stop: int, step: int, first: int, g: Array, low: Array, high: Array, marks: Marks, queue: Links) -> int:
    """Of the edges from the pixels of a stretch to those `step` further, those outside their limits join the queue; its size."""
    stop = min(stop, len(g) - step)
    if start >= stop:
        return size
    eights = marks[: (stop - start + 7) // 8 * 8].view(np.uint64)
    eights[-1] = 0
    _outside(g[start + step : stop + step], g[start:stop], low[first + start : first + stop], high[first + start : first + stop], marks)
    for i in range(len(eights)):
        if eights[i] != 0:  # one of eight marks
            for k in range(8 * i, 8 * i + 8):
                queue[size] = first + start + k  # overwritten by the next one unless it counts: cheaper than a branch
                size += marks[k]
    return size


@compiled
def compare(w: int, g: Array, low: Array, high: Array, moved: Marks, seen: Marks, marks: Marks, queue: Links) -> int:
    """The edges outside their limits, of those that have an end in a block where something moved, join the empty queue; its size. The marks are taken back."""
    seen[:] = moved
    for block in range(len(moved)):
        if moved[block]:  # its pixels are heads, too
            for tail in ((block << SHIFT) - 1, (block << SHIFT) - w, (block << SHIFT) - w + (1 << SHIFT) - 1):
                seen[max(tail, 0) >> SHIFT] = 1
    moved[:] = 0
    size, block = 0, 0
    while block < len(seen):
        end = block
        while end < len(seen) and seen[end]:
            end += 1
        for start in range(block << SHIFT, end << SHIFT, _STRETCH):  # in the order of the image: neighbours are near in memory
            stop = min(start + _STRETCH, end << SHIFT)
            size = _sift(size, start, stop, w, 0, g, low, high, marks, queue)
            size = _sift(size, start, stop, 1, len(g), g, low, high, marks, queue)
        block = end + 1
    return size


@compiled
def _push(x: int, join: int, amount: int, rising: bool, pixels: Links, edges: Table, limits: Array, radius: float) -> None:
    """`amount` flows along the tree from x up to the join (rising), or from the join down to x."""
    while x != join:
        e, upwards = pixels[x, EDGE], pixels[x, PARENT] > x
        z = edges[FLOW, e] + (amount if upwards == rising else -amount)
        edges[FLOW, e] = z
        lo, hi = limits[CENTRE, e] - radius, limits[CENTRE, e] + radius
        pixels[x, UP], pixels[x, DOWN] = _room(edges[PIECE, e], z, upwards, lo, hi), _room(edges[PIECE, e], z, not upwards, lo, hi)
        x = pixels[x, PARENT]


@inlined
def _enter(
    e: int, tail: int, head: int, rising: bool, pixels: Links, order: Links, edges: Table, limits: Array, g: Array, moved: Marks,
    radius: float, tolerance: float,
) -> bool:  # fmt: skip
    """One pivot on edge e; False where nothing ever blocks it, which rounding alone could bring about."""
    u, v = (tail, head) if rising else (head, tail)
    z, lo, hi, piece = edges[FLOW, e], limits[CENTRE, e] - radius, limits[CENTRE, e] + radius, 1
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
        _push(u, join, amount, False, pixels, edges, limits, radius)
        _push(v, join, amount, True, pixels, edges, limits, radius)
    if room_v == amount:
        out, inside, outside = at_v, v, u
    elif own == amount:  # it only moved to its next kink
        _fence(e, edges, limits, radius, tolerance)
        return True
    else:
        out, inside, outside = at_u, u, v
    left = pixels[out, EDGE]
    edges[PIECE, left], edges[PIECE, e], limits[LOW, e], limits[HIGH, e] = -1, piece, -np.inf, np.inf
    _fence(left, edges, limits, radius, tolerance)
    upwards = inside == tail
    up, down = _room(piece, z, upwards, lo, hi), _room(piece, z, not upwards, lo, hi)
    amiss = _slope(piece, lo, hi) - (g[head] - g[tail])
    rehang(out, inside, outside, e, up, down, -amiss if upwards else amiss, pixels, order, g, moved)
    return True


@compiled
def improve(
    w: int, pixels: Links, order: Links, edges: Table, limits: Array, g: Array, queue: Links, moved: Marks, radius: float, tolerance: float,
    pivots: int,
) -> int:  # fmt: skip
    """At most `pivots` pivots for the given radius of all [lo, hi], to which the tree was carried; how many are left, −1 where some edge can still enter."""
    p, size, place, kept, compared = len(g), 0, 0, 0, -1
    low, high, marks, seen = limits[LOW], limits[HIGH], np.empty(_STRETCH, dtype=np.uint8), np.empty_like(moved)
    _fences(edges[FLOW], edges[PIECE], limits[CENTRE], low, high, radius, tolerance)
    moved[:] = 1
    while True:
        entering, most, looked = -1, 0.0, 0
        while looked < _BLOCK or entering < 0:
            if place == size:  # round again, with those that could still enter
                size, place, kept = kept, 0, 0
                if size == 0 or entering >= 0:
                    break
            e = queue[place]
            tail, head = _ends(e, p, w)
            t = g[head] - g[tail]
            urge = max(t - high[e], 0.0) + min(t - low[e], 0.0)
            place += 1
            looked += 1
            queue[kept] = e  # overwritten by the next one unless it counts: a branch here is a guess that often fails
            kept += abs(urge) > 0
            better = abs(urge) > abs(most)
            entering, most = e if better else entering, urge if better else most
        if entering < 0:
            if pivots == compared:  # nothing could enter
                return pivots
            compared = pivots
            size = compare(w, g, low, high, moved, seen, marks, queue)
            continue
        tail, head = _ends(entering, p, w)
        pivots -= 1
        if pivots < 0 or not _enter(entering, tail, head, most > 0, pixels, order, edges, limits, g, moved, radius, tolerance):
            return -1
