r"""min Σ|t_e| over t = Dg on a grid with lo ≤ t ≤ hi, by a primal network simplex on the pixels: every level of a path starts from the last one's tree.

The dual is a min-cost circulation z, Dᵀz = 0, whose cost φ_e* is piecewise linear with slopes

    piece 0, z ≤ −1: lo     piece 1, −1 ≤ z ≤ 1: near     piece 2, z ≥ 1: hi          near = the point of [lo, hi] nearest to 0

and so with kinks at −1 where lo < 0 and at 1 where hi > 0: elsewhere two pieces are one. A basis is a spanning tree of pixels with a piece for each of its
edges; the other edges lie at a kink (or, as from the start, at a z ∈ {−1, 0, 1} that is none until they have entered). The tree gives g: t_e is the slope
of e's piece. An edge off the tree with t_e outside the slopes beside its z enters; z is pushed around the cycle that it closes until a tree edge (or
the edge itself) meets a kink. When no edge can enter, g and z are both optimal. A level moves the slopes alone, so z stays a circulation and the tree
a basis. Trees are kept strongly feasible (some flow can always be pushed from any pixel to the root), which rules out cycling (Cunningham 1976). Nearly all
pivots push nothing: a kink that is none, such as z = 0, would be one more place to stop at, and costs two pivots in three.

The loops are in `formulations.leg.pivots` and `formulations.leg.tree`. Nothing rests on them: both sides are evaluated at the g and z that they leave, by
`formulations.leg.sides`, where it is counted in integers whether z is a circulation.
"""

from __future__ import annotations

import math
import time
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from formulations.leg.network import Integers
from formulations.leg.path import follow
from formulations.leg.pivots import CENTRE, FLOW, PIECE, carry
from formulations.leg.tree import EDGE, SHIFT, Table, plant
from formulations.norms import Array

Number = TypeVar("Number", np.float64, np.int64)
_CHUNK = 2**15  # pivots between two looks at the clock: a tenth of a second on large grids
_TOLERANCE = 1e-13  # of the largest bound: what an edge off the tree may exceed its slopes by


class NetworkSimplex:
    """A tree on an h × w grid, h, w ≥ 2, for differences within a radius of `centre` (m,), that goes on from one radius to the next."""

    def __init__(self, h: int, w: int, centre: Array) -> None:
        p = h * w
        self.shape, self.root, self.radius, self.largest = (h, w), (h // 2) * w + w // 2, math.inf, float(np.abs(centre).max())
        self.pixels, self.order = np.empty((p, 5), dtype=np.uint32), np.empty((3, p), dtype=np.uint32)
        self.edges, self.limits = np.zeros((2, 2 * p), dtype=np.int32), np.empty((3, 2 * p))
        self.potentials, self._queue, self._moved = (
            np.empty(p),
            np.empty(2 * p, dtype=np.uint32),
            np.empty((p - 1 >> SHIFT) + 1, dtype=np.uint8),
        )
        plant(self.root, w, self.pixels, self.order)
        self.limits[CENTRE] = in_lines(h, w, centre)
        self.edges[PIECE] = 1 + in_lines(h, w, np.full(len(centre), -2))  # those that would leave the grid are on a piece: they never enter
        self.edges[PIECE, np.delete(self.pixels[:, EDGE], self.root)] = 1

    def follow(self, radii: Array, mean: float, time_limit: float | None = None) -> tuple[Array, Array, Table]:
        """Per radius (objective, lower, violation) (n, 3), the map (n, p) of the given mean and z (n, 2p), in two lines, at the optimum.

        The values are no numbers where z is no circulation, and where the time for one radius or the patience (a hundred pivots an edge) is over.
        """
        (h, w), n = self.shape, len(radii)
        p, m = h * w, 2 * h * w - h - w
        values, maps, flows = np.full((n, 3), np.nan), np.empty((n, p)), np.empty((n, 2 * p), dtype=np.int32)
        tables = (self.root, w, self.pixels, self.order, self.edges, self.limits, self.potentials, self._queue, self._moved)
        tolerances = _TOLERANCE * (self.largest + radii)
        self._carry(radii[0])
        k, begun, chunks = 0, time.monotonic(), 0
        while k < n:
            reached = follow(*tables, radii, tolerances, k, _CHUNK, mean, values, maps, flows)
            self.radius = float(radii[min(reached, n - 1)])
            if reached == k:
                chunks += 1
                if chunks <= 100 * m // _CHUNK and (time_limit is None or time.monotonic() < begun + time_limit):
                    continue
                reached = k + 1  # as good as it is
                self._carry(radii[min(reached, n - 1)])
            k, begun, chunks = reached, time.monotonic(), 0
        return values, maps, flows

    def _carry(self, radius: float) -> None:
        tables, g = (self.pixels, self.order, self.edges, self.limits), self.potentials
        carry(self.root, *tables, self.radius, radius, np.empty_like(g), g)
        self.radius = radius

    @property
    def flow(self) -> Integers:
        """z (m,) in the order of D."""
        return from_lines(*self.shape, self.edges[FLOW]).astype(np.int64)


def in_lines(h: int, w: int, values: NDArray[Number]) -> NDArray[Number]:
    """Values of the edges (m,), in the order of D, as two lines (2p,) of all vertical and all horizontal edges; 0 at those that would leave the grid."""
    lines, down = np.zeros((2, h, w), dtype=values.dtype), (h - 1) * w
    lines[0, :-1], lines[1, :, :-1] = values[:down].reshape(h - 1, w), values[down:].reshape(h, w - 1)
    return lines.ravel()


def from_lines(h: int, w: int, lines: NDArray[Any]) -> NDArray[Any]:
    """The values of the edges (m,), in the order of D, that `in_lines` put into two lines (2p,)."""
    down, right = lines.reshape(2, h, w)
    return np.concatenate([down[:-1].ravel(), right[:, :-1].ravel()])
