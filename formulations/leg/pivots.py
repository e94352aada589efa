r"""The pivots of a network simplex on the pixels of a grid: loops over tables, compiled by numba (the extra `fast`; uncompiled they would take minutes).

The mathematics stands in `formulations.leg.simplex`, which owns the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from formulations.norms import Array

Table = NDArray[np.int32]
Function = TypeVar("Function", bound=Callable[..., object])

# Columns of `pixels` (p, 13): the pixel above and the edge to it, edges to the root, first child, next and previous sibling (−1: none), how much more can
# flow to the parent and from it, 1 if its edges are to be looked at again, and the edges at it (−1: none).
PARENT, EDGE, DEPTH, CHILD, AFTER, BEFORE, UP, DOWN, STALE, AROUND = range(10)
# Columns of `edges` (m, 6): both ends in the order of D; z; the piece of a tree edge; 1 for tree edges; 1 for edges in the queue
TAIL, HEAD, FLOW, PIECE, ON, QUEUED = range(6)

_ANY = 2**20  # room without end


def compiled(function: Function) -> Function:
    """numba's translation, kept on disk where it can be; the function itself without numba."""
    try:
        import numba
    except ImportError:
        return function
    try:
        return cast(Function, numba.njit(cache=True)(function))
    except RuntimeError:  # no folder to keep it in
        return cast(Function, numba.njit(function))


@compiled
def _slope(piece: int, lo: float, hi: float) -> float:
    if piece == 0:
        return lo
    return hi if piece == 3 else min(max(0.0, lo), hi)


@compiled
def _room(piece: int, z: int, forward: bool) -> int:
    """How far z may rise (forward) or fall within its piece."""
    if forward:
        return piece - 1 - z if piece < 3 else _ANY
    return z - (piece - 2) if piece > 0 else _ANY


@compiled
def _urge(t: float, z: int, lo: float, hi: float) -> float:
    """How far t lies above (positive: z wants to rise) or below (negative) the slopes beside the kink z."""
    near = min(max(0.0, lo), hi)
    above, below = hi if z == 1 else near, lo if z == -1 else near
    if t > above:
        return t - above
    return t - below if t < below else 0.0


@compiled
def _hang(x: int, parent: int, edge: int, pixels: Table) -> None:
    """Pixel x becomes a child of `parent`."""
    first = pixels[parent, CHILD]
    pixels[x, PARENT], pixels[x, EDGE], pixels[x, AFTER], pixels[x, BEFORE] = parent, edge, first, -1
    if first >= 0:
        pixels[first, BEFORE] = x
    pixels[parent, CHILD] = x


@compiled
def _cut(x: int, pixels: Table) -> None:
    """Pixel x is taken from its parent's children."""
    before, after = pixels[x, BEFORE], pixels[x, AFTER]
    if before >= 0:
        pixels[before, AFTER] = after
    else:
        pixels[pixels[x, PARENT], CHILD] = after
    if after >= 0:
        pixels[after, BEFORE] = before


@compiled
def plant(root: int, w: int, pixels: Table, edges: Table) -> None:
    """z = 0 on the tree of the root's row and all vertical edges, in pieces where a flow towards the root has room."""
    row, column, verticals = root // w, root % w, len(pixels) - w
    pixels[:, PARENT:AROUND] = -1
    edges[:, FLOW], edges[:, PIECE], edges[:, ON] = 0, 1, 0
    for x in range(len(pixels)):
        i, j = x // w, x % w
        pixels[x, DEPTH], pixels[x, UP], pixels[x, DOWN] = abs(i - row) + abs(j - column), 1, 0
        if x == root:
            continue
        if i != row:
            parent, edge = (x - w, x - w) if i > row else (x + w, x)
        else:
            edge = verticals + row * (w - 1) + j
            parent, edge = (x - 1, edge - 1) if j > column else (x + 1, edge)
        _hang(x, parent, edge, pixels)
        edges[edge, ON], edges[edge, PIECE] = 1, 1 if edges[edge, HEAD] == x else 2


@compiled
def potentials(root: int, pixels: Table, edges: Table, g: Array, lo: Array, hi: Array) -> None:
    """g from the slopes of the tree edges, 0 at the root: equal along edges of slope 0, so a plateau is flat to the bit."""
    x = root
    g[root] = 0.0
    while True:
        if pixels[x, CHILD] >= 0:
            x = pixels[x, CHILD]
        else:
            while x != root and pixels[x, AFTER] < 0:
                x = pixels[x, PARENT]
            if x == root:
                return
            x = pixels[x, AFTER]
        e = pixels[x, EDGE]
        t = _slope(edges[e, PIECE], lo[e], hi[e])
        g[x] = g[pixels[x, PARENT]] + (t if edges[e, HEAD] == x else -t)


@compiled
def _collect(count: int, moved: Table, queue: Table, pixels: Table, edges: Table, g: Array, lo: Array, hi: Array, tolerance: float) -> int:
    """The edges at the `count` moved pixels that could enter make the queue; its size."""
    size = 0
    for k in range(count):
        x = moved[k]
        pixels[x, STALE] = 0
        for q in range(AROUND, AROUND + 4):
            e = pixels[x, q]
            if e < 0 or edges[e, ON] or edges[e, QUEUED]:
                continue
            if abs(_urge(g[edges[e, HEAD]] - g[edges[e, TAIL]], edges[e, FLOW], lo[e], hi[e])) > tolerance:
                edges[e, QUEUED], queue[size] = 1, e
                size += 1
    return size


@compiled
def _blocking(u: int, v: int, pixels: Table) -> tuple[int, int, int, int, int]:
    """For a push u → v through the entering edge and back through the tree: the least room and its pixel, below the join on u's side and on v's; the join.

    The last blocking edge, counted from the join, leaves. Strong feasibility leaves room above v, so an edge without room on u's side decides at once.
    """
    room_u, room_v, at_u, at_v = _ANY, _ANY, -1, -1
    depth_u, depth_v = pixels[u, DEPTH], pixels[v, DEPTH]
    while u != v:
        if depth_u >= depth_v:
            if pixels[u, DOWN] < room_u:
                room_u, at_u = pixels[u, DOWN], u
                if room_u == 0:
                    break
            u = pixels[u, PARENT]
            depth_u -= 1
        else:
            if pixels[v, UP] <= room_v:
                room_v, at_v = pixels[v, UP], v
            v = pixels[v, PARENT]
            depth_v -= 1
    return room_u, at_u, room_v, at_v, u


@compiled
def _push(x: int, join: int, amount: int, rising: bool, pixels: Table, edges: Table) -> None:
    """`amount` flows along the tree from x up to the join (rising), or from the join down to x."""
    while x != join:
        e = pixels[x, EDGE]
        upwards = edges[e, TAIL] == x
        edges[e, FLOW] += amount if upwards == rising else -amount
        pixels[x, UP] = _room(edges[e, PIECE], edges[e, FLOW], upwards)
        pixels[x, DOWN] = _room(edges[e, PIECE], edges[e, FLOW], not upwards)
        x = pixels[x, PARENT]


@compiled
def _rehang(out: int, inside: int, outside: int, edge: int, pixels: Table, edges: Table) -> None:
    """The subtree below pixel `out` leaves its parent and hangs, by its pixel `inside`, from `outside`."""
    edges[pixels[out, EDGE], ON], edges[edge, ON] = 0, 1
    upwards = edges[edge, TAIL] == inside
    up, down = _room(edges[edge, PIECE], edges[edge, FLOW], upwards), _room(edges[edge, PIECE], edges[edge, FLOW], not upwards)
    x, parent = inside, outside
    while True:  # the stem from `inside` to `out` turns round
        above, edge_above, up_above, down_above = pixels[x, PARENT], pixels[x, EDGE], pixels[x, DOWN], pixels[x, UP]
        _cut(x, pixels)
        _hang(x, parent, edge, pixels)
        pixels[x, UP], pixels[x, DOWN] = up, down
        if x == out:
            return
        x, parent, edge, up, down = above, x, edge_above, up_above, down_above


@compiled
def _shift(root: int, amount: float, count: int, moved: Table, pixels: Table, g: Array) -> int:
    """The subtree of `root` is lifted by `amount` and learns its depths; how many pixels have moved now."""
    x, depth = root, pixels[pixels[root, PARENT], DEPTH] + 1
    while True:
        pixels[x, DEPTH] = depth
        g[x] += amount
        if not pixels[x, STALE]:
            pixels[x, STALE], moved[count] = 1, x
            count += 1
        if pixels[x, CHILD] >= 0:
            x = pixels[x, CHILD]
            depth += 1
            continue
        while x != root and pixels[x, AFTER] < 0:
            x = pixels[x, PARENT]
            depth -= 1
        if x == root:
            return count
        x = pixels[x, AFTER]


@compiled
def _enter(e: int, rising: bool, count: int, moved: Table, pixels: Table, edges: Table, g: Array, lo: float, hi: float) -> int:
    """One pivot on edge e; how many pixels have moved now."""
    u, v = (edges[e, TAIL], edges[e, HEAD]) if rising else (edges[e, HEAD], edges[e, TAIL])
    piece = edges[e, FLOW] + (2 if rising else 1)
    own = _room(piece, edges[e, FLOW], rising)
    room_u, at_u, room_v, at_v, join = _blocking(u, v, pixels)
    amount = min(own, min(room_u, room_v))
    if amount > 0:
        edges[e, FLOW] += amount if rising else -amount
        _push(u, join, amount, False, pixels, edges)
        _push(v, join, amount, True, pixels, edges)
    if room_v == amount:
        out, inside, outside = at_v, v, u
    elif own == amount:
        return count  # it only moved to its next kink
    else:
        out, inside, outside = at_u, u, v
    edges[e, PIECE] = piece
    _rehang(out, inside, outside, e, pixels, edges)
    amiss = _slope(piece, lo, hi) - (g[edges[e, HEAD]] - g[edges[e, TAIL]])
    return _shift(inside, amiss if edges[e, HEAD] == inside else -amiss, count, moved, pixels, g)


@compiled
def improve(
    pixels: Table, edges: Table, g: Array, moved: Table, queue: Table, lo: Array, hi: Array, tolerance: float, block: int, pivots: int
) -> bool:
    """At most `pivots` pivots from potentials that fit the tree; whether no edge can enter any more."""
    count, size, place = 0, 0, 0
    pixels[:, STALE] = 0
    for e in range(len(edges)):
        enters = not edges[e, ON] and abs(_urge(g[edges[e, HEAD]] - g[edges[e, TAIL]], edges[e, FLOW], lo[e], hi[e])) > tolerance
        edges[e, QUEUED] = enters
        if enters:
            queue[size] = e
            size += 1
    while True:
        entering, most, looked = -1, 0.0, 0
        while size > 0 and (looked < block or entering < 0):
            place = place if place < size else 0
            e = queue[place]
            urge = 0.0 if edges[e, ON] else _urge(g[edges[e, HEAD]] - g[edges[e, TAIL]], edges[e, FLOW], lo[e], hi[e])
            looked += 1
            if abs(urge) <= tolerance:
                size -= 1
                edges[e, QUEUED], queue[place] = 0, queue[size]
                continue
            if abs(urge) > abs(most):
                entering, most = e, urge
            place += 1
        if entering < 0:  # only edges at moved pixels can have changed their mind
            size, count = _collect(count, moved, queue, pixels, edges, g, lo, hi, tolerance), 0
            if size == 0:
                return True
        elif pivots == 0:
            return False
        else:
            pivots -= 1
            count = _enter(entering, most > 0, count, moved, pixels, edges, g, lo[entering], hi[entering])
