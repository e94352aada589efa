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

import numpy as np

from formulations.leg.network import Integers
from formulations.leg.path import follow
from formulations.leg.pivots import CENTRE, FLOW, PIECE, carry
from formulations.leg.tree import EDGE, plant
from formulations.norms import Array

_CHUNK = 2**15  # pivots between two looks at the clock: a tenth of a second on large grids
_TOLERANCE = 1e-13  # of the largest bound: what an edge off the tree may exceed its slopes by


class NetworkSimplex:
    """A tree on an h × w grid, h, w ≥ 2, for differences within a radius of `centre` (m,), that goes on from one radius to the next."""

    def __init__(self, h: int, w: int, centre: Array) -> None:
        p, down = h * w, (h - 1) * w
        self.shape, self.root, self.radius, self.largest = (h, w), (h // 2) * w + w // 2, math.inf, float(np.abs(centre).max())
        self.pixels, self.order = np.empty((p, 5), dtype=np.int32), np.empty((3, p), dtype=np.int32)
        self.edges, self.limits = np.zeros((2, 2 * p), dtype=np.int32), np.empty((3, 2 * p))
        self.potentials, self._queue = np.empty(p), np.empty(2 * p, dtype=np.int32)
        plant(self.root, w, self.pixels, self.order)
        middle, piece = self.limits[CENTRE], self.edges[PIECE]
        middle[:down], middle[p:].reshape(h, w)[:, :-1] = centre[:down], centre[down:].reshape(h, w - 1)
        middle[down:p] = middle[p + w - 1 :: w] = 0.0
        piece[:] = -1
        piece[self.pixels[:, EDGE]] = 1  # the root's −1 is the last edge, which leaves the grid, as do these
        piece[down:p] = piece[p + w - 1 :: w] = 1

    def follow(self, radii: Array, mean: float, variance: float, time_limit: float | None = None) -> tuple[Array, Array, Array]:
        """Per radius (objective, lower, violation) (n, 3), the map (n, p) of the given mean and the multipliers (n, m) of the optimum.

        The values are no numbers where z is no circulation, and where the time for one radius or the patience (a hundred pivots an edge) is over.
        """
        n, m = len(radii), len(self.flow)
        values, maps, multipliers = np.full((n, 3), np.nan), np.empty((n, len(self.potentials))), np.empty((n, m))
        tables = (self.root, self.shape[1], self.pixels, self.order, self.edges, self.limits, self.potentials, self._queue)
        tolerances = _TOLERANCE * (self.largest + radii)
        self._carry(radii[0])
        k, begun, chunks = 0, time.monotonic(), 0
        while k < n:
            reached = follow(*tables, radii, tolerances, k, _CHUNK, mean, variance, values, maps, multipliers)
            self.radius = float(radii[min(reached, n - 1)])
            chunks = chunks + 1 if reached == k else 1
            late = time_limit is not None and time.monotonic() > begun + time_limit
            if reached < n and (late or chunks > 100 * m // _CHUNK):
                reached += 1
                self._carry(radii[min(reached, n - 1)])
            if reached > k:
                k, begun, chunks = reached, time.monotonic(), 0
        return values, maps, multipliers

    def _carry(self, radius: float) -> None:
        carry(self.root, self.pixels, self.order, self.edges, self.limits, self.radius, radius, np.empty(len(self.potentials)), self.potentials)
        self.radius = radius

    @property
    def flow(self) -> Integers:
        """z (m,) in the order of D."""
        h, w = self.shape
        z = np.empty((h - 1) * w + h * (w - 1), dtype=np.int64)
        z[: (h - 1) * w] = self.edges[FLOW, : (h - 1) * w]
        z[(h - 1) * w :].reshape(h, w - 1)[:] = self.edges[FLOW, h * w :].reshape(h, w)[:, :-1]
        return z
