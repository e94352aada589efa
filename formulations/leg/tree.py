r"""A spanning tree of the pixels of a grid that is re-hung pivot by pivot: loops over tables, compiled by numba (the extra `fast`).

The tree is kept in preorder, a ring that starts at the root: a subtree is a stretch of it, from its top pixel to its LAST one. So lifting a subtree is two
walks along the ring that meet in the middle, and hanging it elsewhere, by another of its pixels, joins few stretches in a new order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from formulations.norms import Array

Table = NDArray[np.int32]
Links = NDArray[np.uint32]  # without a sign, as an index that cannot be negative is found sooner: walks along a tree wait for nothing else
Marks = NDArray[np.uint8]
Function = TypeVar("Function", bound=Callable[..., object])

# Columns of `pixels` (p, 5): the pixel above and the edge to it (NONE: of the root), how much more can flow to the parent and from it, the last pixel of the subtree
PARENT, EDGE, UP, DOWN, LAST = range(5)
# Rows of `order` (3, p), apart since walks along the ring touch nothing else: the next and the previous pixel, edges to the root
AFTER, BEFORE, DEPTH = range(3)

SHIFT = 6  # pixel x lies in block x >> 6
ANY = 2**20  # room without end
NONE = 2**32 - 1  # the pixel above the root, and the edge to it


def compiled_with(**options: Any) -> Callable[[Function], Function]:
    """numba's translation, kept on disk where it can be; the function itself without numba."""
    try:
        import numba
    except ImportError:
        return lambda function: function

    def translate(function: Function) -> Function:
        try:
            translated = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to keep it in
            return cast(Function, numba.njit(**options)(function))
        _forget_older(translated.stats.cache_path)
        return cast(Function, translated)

    return translate


@cache
def _forget_older(folder: str) -> None:
    """Deletes translations that are older than any file here: numba looks at the file of a function alone, not at those whose functions it calls."""
    newest = max(source.stat().st_mtime for source in Path(__file__).parent.glob("*.py"))
    for index in Path(folder).glob("*.nbi"):
        with suppress(OSError):
            if index.stat().st_mtime < newest:
                index.unlink()


compiled = compiled_with()
inlined = compiled_with(inline="always")  # for what each pivot calls once
any_order = compiled_with(fastmath={"reassoc", "nsz"})  # the numbers of a sum are taken in any order, several at once


@compiled
def plant(root: int, w: int, pixels: Links, order: Links) -> None:
    """The tree of the root's row and all vertical edges. Edge x joins pixel x to the one below, edge p + x to the one on its right; either way one unit."""
    p, row, column = len(pixels), root // w, root % w
    pixels[root, PARENT], pixels[root, EDGE], order[DEPTH, root] = NONE, NONE, 0
    last = root
    for k in range(w):  # columns from the root's to the right, then to the left
        j = column + k if column + k < w else w - 1 - k
        x = row * w + j
        if x != root:
            pixels[x, PARENT], pixels[x, EDGE] = (x - 1, p + x - 1) if j > column else (x + 1, p + x)
            order[AFTER, last], order[BEFORE, x], last = x, last, x
        for step in (w, -w):
            y = x + step
            while 0 <= y < p:
                pixels[y, PARENT], pixels[y, EDGE] = y - step, min(y, y - step)
                order[AFTER, last], order[BEFORE, y], last = y, last, y
                y += step
    order[AFTER, last], order[BEFORE, root] = root, last
    pixels[:, LAST] = NONE
    x = last
    for _ in range(p):  # children before their parents, the last child first
        parent = pixels[x, PARENT]
        pixels[x, UP], pixels[x, DOWN] = 1, 1
        order[DEPTH, x] = abs(x // w - row) + abs(x % w - column)
        if pixels[x, LAST] == NONE:
            pixels[x, LAST] = x
        if parent != NONE and pixels[parent, LAST] == NONE:
            pixels[parent, LAST] = pixels[x, LAST]
        x = order[BEFORE, x]


@inlined
def blocking(u: int, v: int, pixels: Links, order: Links) -> tuple[int, int, int, int, int]:
    """For a push u → v through the entering edge and back through the tree: the least room and its pixel, below the join on u's side and on v's; the join.

    The last blocking edge, counted from the join, leaves. Strong feasibility leaves room above v, so an edge without room on u's side decides at once.
    """
    room_u, room_v, at_u, at_v = ANY, ANY, -1, -1
    depth_u, depth_v = order[DEPTH, u], order[DEPTH, v]
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
def _lift(first: int, last: int, amount: float, deeper: int, order: Links, g: Array, moved: Marks) -> None:
    """A stretch of the ring moves by `amount` and learns its depths, and its blocks are marked: from both ends, as each walk waits for memory."""
    while first != last:
        g[first] += amount
        order[DEPTH, first] += deeper
        moved[first >> SHIFT] = 1
        g[last] += amount
        order[DEPTH, last] += deeper
        moved[last >> SHIFT] = 1
        first = order[AFTER, first]
        if first == last:
            return
        last = order[BEFORE, last]
    g[first] += amount
    order[DEPTH, first] += deeper
    moved[first >> SHIFT] = 1


@compiled
def _join(first: int, second: int, order: Links) -> None:
    order[AFTER, first], order[BEFORE, second] = second, first


@compiled
def _new_last(x: int, was: int, now: int, pixels: Links) -> None:
    """The subtrees of x and the pixels above that ended with `was` end with `now`."""
    while x != NONE and pixels[x, LAST] == was:
        pixels[x, LAST] = now
        x = pixels[x, PARENT]


@inlined
def rehang(
    out: int, inside: int, outside: int, edge: int, up: int, down: int, amount: float, pixels: Links, order: Links, g: Array, moved: Marks,
) -> None:  # fmt: skip
    """The subtree below pixel `out` leaves its parent and hangs, by its pixel `inside`, from `outside`, with the rooms `up` and `down`, lifted by `amount`."""
    end = pixels[out, LAST]
    _new_last(pixels[out, PARENT], end, order[BEFORE, out], pixels)
    _join(order[BEFORE, out], order[AFTER, end], order)
    # the pixels from `inside` to `out` are the stem: each one's subtree less that of the pixel before is a stretch ahead of it and one behind it
    x = inside
    end = tail = pixels[x, LAST]
    ahead, behind = order[BEFORE, x], order[AFTER, end]
    deeper = order[DEPTH, outside] + 1 - order[DEPTH, x]
    _lift(x, tail, amount, deeper, order, g, moved)
    while x != out:
        x = pixels[x, PARENT]
        deeper += 2
        last, earlier = pixels[x, LAST], order[BEFORE, x]
        _lift(x, ahead, amount, deeper, order, g, moved)
        _join(tail, x, order)
        if last == end:
            tail = ahead
        else:
            later = order[AFTER, last]
            _lift(behind, last, amount, deeper, order, g, moved)
            _join(ahead, behind, order)
            end = tail = last
            behind = later
        ahead = earlier
    x, parent = inside, outside
    while True:  # the stem turns round, and every subtree along it ends with the tail
        above, edge_above, up_above, down_above = pixels[x, PARENT], pixels[x, EDGE], pixels[x, DOWN], pixels[x, UP]
        pixels[x, PARENT], pixels[x, EDGE], pixels[x, UP], pixels[x, DOWN], pixels[x, LAST] = parent, edge, up, down, tail
        if x == out:
            break
        x, parent, edge, up, down = above, x, edge_above, up_above, down_above
    _join(tail, order[AFTER, outside], order)
    _join(outside, inside, order)
    _new_last(outside, outside, tail, pixels)
