r"""min Σ|t_e| over t = Dg on a grid with lo ≤ t ≤ hi, by a primal network simplex on the pixels: every level of a path starts from the last one's tree.

The dual is a min-cost circulation z, Dᵀz = 0, whose cost φ_e* is piecewise linear with slopes

    piece 0, z ≤ −1: lo     piece 1, −1 ≤ z ≤ 0: near     piece 2, 0 ≤ z ≤ 1: near     piece 3, z ≥ 1: hi          near = the point of [lo, hi] nearest to 0

A basis is a spanning tree of pixels with a piece for each of its edges; the other edges lie at a kink z ∈ {−1, 0, 1}. The tree gives g: t_e is the slope
of e's piece. An edge off the tree with t_e outside the slopes beside its kink enters; z is pushed around the cycle that it closes until a tree edge (or
the edge itself) meets a kink. When no edge can enter, g and z are both optimal. A level moves the slopes alone, so z stays a circulation and the tree
a basis. Trees are kept strongly feasible (some flow can always be pushed from any pixel to the root), which rules out cycling (Cunningham 1976).

The loops are compiled by numba (the extra `fast`; uncompiled they would take minutes). Nothing rests on them: `NetworkSimplex.solve` hands out g and
the heights of the faces, both sides are evaluated elsewhere, and what integral heights give is a circulation whatever happened here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from formulations.leg.network import Circulation, faces_of
from formulations.norms import Array

Table = NDArray[np.int32]
Function = TypeVar("Function", bound=Callable[..., object])

# Columns of `pixels` (p, 13): the pixel above and the edge to it, edges to the root, first child, next and previous sibling (−1: none), how much more can
# flow to the parent and from it, 1 if its edges are to be looked at again, and the edges at it (−1: none).
PARENT, EDGE, DEPTH, CHILD, AFTER, BEFORE, UP, DOWN, STALE, AROUND = range(10)
# Columns of `edges` (m, 6): both ends in the order of D; z; the piece of a tree edge; 1 for tree edges; 1 for edges in the queue
TAIL, HEAD, FLOW, PIECE, ON, QUEUED = range(6)

_ANY = 2**20  # room without end
_BLOCK = 5  # edges looked at before the worst of them enters
_CHUNK = 4096  # pivots between two looks at the clock
_TOLERANCE = 1e-13  # of the largest bound: what an edge off the tree may exceed its slopes by


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
def _plant(root: int, w: int, pixels: Table, edges: Table) -> None:
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
def _potentials(root: int, pixels: Table, edges: Table, g: Array, lo: Array, hi: Array) -> None:
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
def _improve(
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


class NetworkSimplex:
    """A tree on an h × w grid, h, w ≥ 2, that goes on from one problem to the next."""

    def __init__(self, h: int, w: int) -> None:
        self.shape = (h, w)
        pixel = np.arange(h * w, dtype=np.int32).reshape(h, w)
        down, right = np.arange((h - 1) * w).reshape(h - 1, w), (h - 1) * w + np.arange(h * (w - 1)).reshape(h, w - 1)
        self.edges = np.zeros((down.size + right.size, 6), dtype=np.int32)
        self.edges[:, TAIL] = np.concatenate([pixel[:-1].ravel(), pixel[:, :-1].ravel()])
        self.edges[:, HEAD] = np.concatenate([pixel[1:].ravel(), pixel[:, 1:].ravel()])
        around = np.full((h, w, 4), -1)
        around[:-1, :, 0], around[1:, :, 1], around[:, :-1, 2], around[:, 1:, 3] = down, down, right, right
        self.pixels = np.zeros((h * w, AROUND + 4), dtype=np.int32)
        self.pixels[:, AROUND:] = around.reshape(-1, 4)
        self.potentials = np.zeros(h * w)
        self._moved, self._queue = np.zeros(h * w, dtype=np.int32), np.zeros(len(self.edges), dtype=np.int32)
        self.root = (h // 2) * w + w // 2
        _plant(self.root, w, self.pixels, self.edges)

    def solve(self, lo: Array, hi: Array, time_limit: float | None = None) -> Circulation | None:
        """Optimal g and heights for lo ≤ hi; None where the time or the patience (a hundred pivots an edge) is over, and the tree can go on from there."""
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        tolerance = _TOLERANCE * float(np.maximum(np.abs(lo), np.abs(hi)).max())
        tree = (self.pixels, self.edges, self.potentials)
        for _ in range(1 + 100 * len(lo) // _CHUNK):
            if time.monotonic() > deadline:
                return None
            _potentials(self.root, *tree, lo, hi)
            if _improve(*tree, self._moved, self._queue, lo, hi, tolerance, _BLOCK, _CHUNK):
                _potentials(self.root, *tree, lo, hi)  # the shifts left rounding errors
                return self._circulation()
        return None

    def _circulation(self) -> Circulation:
        h, w = self.shape
        across = self.edges[(h - 1) * w :, FLOW].reshape(h, w - 1)
        heights = np.cumsum(across[:-1], axis=0, dtype=np.int64).ravel()  # a horizontal edge carries the height below less the height above
        g = self.potentials.copy()
        image = g.reshape(h, w)
        t = np.concatenate([(image[1:] - image[:-1]).ravel(), (image[:, 1:] - image[:, :-1]).ravel()])
        return Circulation(heights, faces_of(h, w).flow_of(heights), g, t, float(np.abs(t).sum()), 0)
