r"""min Σ|t_e| over t = Dg on a grid with lo ≤ t ≤ hi, by a primal network simplex on the pixels: every level of a path starts from the last one's tree.

The dual is a min-cost circulation z, Dᵀz = 0, whose cost φ_e* is piecewise linear with slopes

    piece 0, z ≤ −1: lo     piece 1, −1 ≤ z ≤ 0: near     piece 2, 0 ≤ z ≤ 1: near     piece 3, z ≥ 1: hi          near = the point of [lo, hi] nearest to 0

A basis is a spanning tree of pixels with a piece for each of its edges; the other edges lie at a kink z ∈ {−1, 0, 1}. The tree gives g: t_e is the slope
of e's piece. An edge off the tree with t_e outside the slopes beside its kink enters; z is pushed around the cycle that it closes until a tree edge (or
the edge itself) meets a kink. When no edge can enter, g and z are both optimal. A level moves the slopes alone, so z stays a circulation and the tree
a basis. Trees are kept strongly feasible (some flow can always be pushed from any pixel to the root), which rules out cycling (Cunningham 1976).

The loops are in `formulations.leg.pivots`. Nothing rests on them: `NetworkSimplex.solve` hands out g and the heights of the faces, both sides are evaluated
elsewhere, and what integral heights give is a circulation whatever happened here.
"""

from __future__ import annotations

import math
import time

import numpy as np

from formulations.leg.network import Circulation, faces_of
from formulations.leg.pivots import AROUND, FLOW, HEAD, TAIL, improve, plant, potentials
from formulations.norms import Array

_BLOCK = 5  # edges looked at before the worst of them enters
_CHUNK = 4096  # pivots between two looks at the clock
_TOLERANCE = 1e-13  # of the largest bound: what an edge off the tree may exceed its slopes by


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
        plant(self.root, w, self.pixels, self.edges)

    def solve(self, lo: Array, hi: Array, time_limit: float | None = None) -> Circulation | None:
        """Optimal g and heights for lo ≤ hi; None where the time or the patience (a hundred pivots an edge) is over, and the tree can go on from there."""
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        tolerance = _TOLERANCE * float(np.maximum(np.abs(lo), np.abs(hi)).max())
        tree = (self.pixels, self.edges, self.potentials)
        for _ in range(1 + 100 * len(lo) // _CHUNK):
            if time.monotonic() > deadline:
                return None
            potentials(self.root, *tree, lo, hi)
            if improve(*tree, self._moved, self._queue, lo, hi, tolerance, _BLOCK, _CHUNK):
                potentials(self.root, *tree, lo, hi)  # the shifts left rounding errors
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
