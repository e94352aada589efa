r"""min Σ|t_e| over t = Dg on a grid with lo ≤ t ≤ hi, by a primal network simplex on the pixels: every level of a path starts from the last one's tree.

The dual is a min-cost circulation z, Dᵀz = 0, whose cost φ_e* is piecewise linear with slopes

    piece 0, z ≤ −1: lo     piece 1, −1 ≤ z ≤ 1: near     piece 2, z ≥ 1: hi          near = the point of [lo, hi] nearest to 0

and so with kinks at −1 where lo < 0 and at 1 where hi > 0: elsewhere two pieces are one. A basis is a spanning tree of pixels with a piece for each of its
edges; the other edges lie at a kink (or, as from the start, at a z ∈ {−1, 0, 1} that is none until they have entered). The tree gives g: t_e is the slope
of e's piece. An edge off the tree with t_e outside the slopes beside its z enters; z is pushed around the cycle that it closes until a tree edge (or
the edge itself) meets a kink. When no edge can enter, g and z are both optimal. A level moves the slopes alone, so z stays a circulation and the tree
a basis. Trees are kept strongly feasible (some flow can always be pushed from any pixel to the root), which rules out cycling (Cunningham 1976). Nearly all
pivots push nothing: a kink that is none, such as z = 0, would be one more place to stop at, and costs two pivots in three.

The loops are in `formulations.leg.pivots` and `formulations.leg.tree`. Nothing rests on them: `NetworkSimplex.solve` hands out g and z, and both sides are
evaluated elsewhere, where it is counted in integers whether z is a circulation.
"""

from __future__ import annotations

import math
import time

import numpy as np

from formulations.leg.network import Circulation, Integers
from formulations.leg.pivots import FLOW, LEAST, MOST, PIECE, improve
from formulations.leg.tree import EDGE, plant
from formulations.norms import Array

_CHUNK = 2**15  # pivots between two looks at the clock: a tenth of a second on large grids


class NetworkSimplex:
    """A tree on an h × w grid, h, w ≥ 2, that goes on from one problem to the next."""

    def __init__(self, h: int, w: int) -> None:
        p = h * w
        self.shape, self.root = (h, w), (h // 2) * w + w // 2
        self.pixels, self.order = np.zeros((p, 5), dtype=np.int32), np.zeros((3, p), dtype=np.int32)
        self.edges, self.limits = np.zeros((3, 2 * p), dtype=np.int32), np.zeros((5, 2 * p))
        self.potentials, self._queue = np.zeros(p), np.zeros(2 * p, dtype=np.int32)
        plant(self.root, w, self.pixels, self.order)
        outside = np.zeros((2, h, w), dtype=bool)
        outside[0, -1], outside[1, :, -1] = True, True
        self.edges[PIECE] = np.where(outside.ravel(), 1, -1)
        self.edges[PIECE, np.delete(self.pixels[:, EDGE], self.root)] = 1
        self.limits[LEAST], self.limits[MOST] = -np.inf, np.inf

    def solve(self, lo: Array, hi: Array, time_limit: float | None = None) -> Circulation | None:
        """Optimal g and z for lo ≤ hi; None where the time or the patience (a hundred pivots an edge) is over, and the tree can go on from there."""
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        tables = (self.root, self.shape[1], self.pixels, self.order, self.edges, self.limits, self.potentials, self._queue)
        for _ in range(1 + 100 * len(lo) // _CHUNK):
            if time.monotonic() > deadline:
                return None
            if improve(*tables, lo, hi, _CHUNK):
                return Circulation(self.shape, self.flow, self.potentials.copy(), 0)
        return None

    @property
    def flow(self) -> Integers:
        """z (m,) in the order of D."""
        h, w = self.shape
        z = np.empty((h - 1) * w + h * (w - 1), dtype=np.int64)
        z[: (h - 1) * w] = self.edges[FLOW, : (h - 1) * w]
        z[(h - 1) * w :].reshape(h, w - 1)[:] = self.edges[FLOW, h * w :].reshape(h, w)[:, :-1]
        return z
