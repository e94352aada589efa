r"""min Σ|t_e| over differences t = Dg on a grid with lo ≤ t ≤ hi: solved exactly by min cuts on the faces of the grid.

A grid is planar, so Dᵀz = 0 exactly when z = CᵀH for heights H of the faces (the outer face has height 0): z_e = H_a − H_b for the faces a, b beside e.
The dual is therefore unconstrained,

    max −F(H),   F(H) = Σ_e φ_e*(H_a − H_b),   φ_e(t) = |t| on [lo_e, hi_e]

and since every φ_e* is piecewise linear with breakpoints −1 and 1 it has an integral optimum: F is L♮-convex, and steepest descent H ← H + 1_S ends at an
optimum after at most max H* − min H* steps (Murota, "Discrete convex analysis", section 10.3). The steepest S is a min cut. When no S descends, the
flow of that cut problem is a t with t_e ∈ ∂φ_e*(z_e) and Ct = 0, that is t = Dg with the same value: both optima, and a plateau of g is flat to the bit.

Flows are 64-bit integers in units of 2^−s, with lo and hi rounded inwards; where that costs too much, a second pass with a finer unit removes it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from formulations.norms import Array

Integers = NDArray[np.int64]
_COARSE, _FINE = 28, 46  # bits of the largest bound in the two passes
_CAP = 2**30  # most that one maximum-flow call carries along an arc: its integers have 32 bits
_GOOD = 1e-9  # relative gap below which the second pass is not needed
_PART = 128  # terms that are added in floating point before the exact sum


@dataclass(frozen=True, eq=False)
class Circulation:
    """On a grid of `shape`: flow z (m,) integral with Dᵀz = 0 exactly, potentials g (p,) with lo ≤ Dg ≤ hi, number of cuts."""

    shape: tuple[int, int]
    flow: Integers
    potentials: Array
    cuts: int

    @property
    def heights(self) -> Integers:
        """H (faces,) with z = CᵀH: a horizontal edge carries the height below less the height above."""
        h, w = self.shape
        return np.asarray(np.cumsum(self.flow[(h - 1) * w :].reshape(h, w - 1)[:-1], axis=0)).ravel()

    @property
    def differences(self) -> Array:
        """Dg (m,)."""
        g = self.potentials.reshape(self.shape)
        return np.concatenate([(g[1:] - g[:-1]).ravel(), (g[:, 1:] - g[:, :-1]).ravel()])

    @property
    def objective(self) -> float:
        """Σ|Dg|."""
        return float(np.abs(self.differences).sum())


class Faces:
    """The faces of an h × w grid and a flow network on them: node F is the outer face, F + 1 the source, F + 2 the sink."""

    def __init__(self, h: int, w: int) -> None:
        self.shape, self.count = (h, w), (h - 1) * (w - 1)
        F = self.count
        face = np.full((h + 1, w + 1), F)
        face[1:h, 1:w] = np.arange(F).reshape(h - 1, w - 1)  # face[i + 1, j + 1] lies below and right of pixel (i, j)
        self.a = np.concatenate([face[1:h, 0:w].ravel(), face[1 : h + 1, 1:w].ravel()])
        self.b = np.concatenate([face[1:h, 1 : w + 1].ravel(), face[0:h, 1:w].ravel()])
        edges = np.arange(len(self.a))
        signs = np.ones(len(edges), dtype=np.int64)
        self.curl = sp.csr_array(
            (np.concatenate([signs, -signs]), (np.concatenate([self.a, self.b]), np.tile(edges, 2))), shape=(F + 1, len(edges))
        )
        # the outer face shares several edges with a corner face: such edges form one arc pair, filled one after the other
        low, high = np.minimum(self.a, self.b), np.maximum(self.a, self.b)
        code, self.pair = np.unique(low * (F + 1) + high, return_inverse=True)
        self.low, self.high = code // (F + 1), code % (F + 1)
        self.sign = np.where(self.a == low, 1, -1)
        order = np.argsort(self.pair, kind="stable")
        first = np.searchsorted(self.pair[order], np.arange(len(code)))
        rank = np.empty(len(edges), dtype=np.int64)
        rank[order] = np.arange(len(edges)) - first[self.pair[order]]
        self.layers = [np.flatnonzero(rank == r) for r in range(int(rank.max(initial=-1)) + 1)]
        self._pattern()

    def _pattern(self) -> None:
        """One sparsity pattern for every cut, with an arc back for each arc, so that only the capacities change."""
        F, P = self.count, len(self.low)
        nodes, S, T = np.arange(F + 1), np.full(F + 1, F + 1), np.full(F + 1, F + 2)
        tails = np.concatenate([self.low, self.high, S, nodes, nodes, T])
        heads = np.concatenate([self.high, self.low, nodes, S, T, nodes])
        order = np.lexsort((heads, tails))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self.forward, self.backward = place[:P], place[P : 2 * P]
        self.source, self.sink = place[2 * P : 2 * P + F + 1], place[2 * P + 2 * (F + 1) : 2 * P + 3 * (F + 1)]
        self.indices = heads[order].astype(np.int32)
        self.tails = tails[order]
        self.indptr = np.searchsorted(self.tails, np.arange(F + 4)).astype(np.int32)

    def flow_of(self, heights: Integers) -> Integers:
        """z = CᵀH (m,)."""
        padded = np.append(heights, 0)
        return np.asarray(padded[self.a] - padded[self.b])

    def integrate(self, t: NDArray[Any]) -> NDArray[Any]:
        """g (p,) with Dg = t and g[0, 0] = 0, for t with Ct = 0."""
        h, w = self.shape
        vertical, horizontal = t[: (h - 1) * w].reshape(h - 1, w), t[(h - 1) * w :].reshape(h, w - 1)
        g = np.zeros((h, w), dtype=t.dtype)
        g[0, 1:] = np.cumsum(horizontal[0])
        g[1:] = g[0] + np.cumsum(vertical, axis=0)
        return g.ravel()

    def push(self, forward: Integers, backward: Integers, excess: Integers) -> Integers:
        """A maximum flow from faces with excess > 0 to those with excess < 0, at most _CAP along an arc; how much more runs along each edge (m,)."""
        up, down = self._pair_capacities(forward, backward)
        data = np.zeros(len(self.indices), dtype=np.int32)
        data[self.forward], data[self.backward] = np.minimum(up, _CAP), np.minimum(down, _CAP)
        data[self.source], data[self.sink] = np.clip(excess, 0, _CAP), np.clip(-excess, 0, _CAP)
        graph = sp.csr_array((data, self.indices, self.indptr), shape=(self.count + 3, self.count + 3))
        graph.has_sorted_indices = True
        flow = maximum_flow(graph, self.count + 1, self.count + 2).flow
        net = flow.data[self.forward].astype(np.int64)  # the flow matrix has the pattern of the graph, as every arc has its arc back
        more = np.zeros(len(self.a), dtype=np.int64)
        for layer in self.layers:
            pair, sign = self.pair[layer], self.sign[layer]
            taken = np.clip(sign * net[pair], -backward[layer], forward[layer])
            more[layer] = taken
            net[pair] -= sign * taken  # one edge per pair in a layer
        return more

    def reached(self, forward: Integers, backward: Integers, excess: Integers) -> NDArray[np.bool_]:
        """Faces (F + 1,) that can still be reached, along edges with room, from faces with excess > 0."""
        up, down = self._pair_capacities(forward, backward)
        room = np.zeros(len(self.indices), dtype=bool)
        room[self.forward], room[self.backward], room[self.source] = up > 0, down > 0, excess > 0
        indptr = np.concatenate([[0], np.cumsum(room)])[self.indptr].astype(np.int32)
        graph = sp.csr_array((np.ones(int(room.sum())), self.indices[room], indptr), shape=(self.count + 3, self.count + 3))
        seen = np.zeros(self.count + 3, dtype=bool)
        seen[breadth_first_order(graph, self.count + 1, return_predecessors=False)] = True
        return seen[: self.count + 1]

    def _pair_capacities(self, forward: Integers, backward: Integers) -> tuple[Integers, Integers]:
        up, down = np.zeros((2, len(self.low)), dtype=np.int64)
        for layer in self.layers:
            plus = self.sign[layer] > 0
            up[self.pair[layer]] += np.where(plus, forward[layer], backward[layer])
            down[self.pair[layer]] += np.where(plus, backward[layer], forward[layer])
        return up, down


@lru_cache(maxsize=8)
def faces_of(h: int, w: int) -> Faces:
    return Faces(h, w)


def solve_circulation(
    shape: tuple[int, int], lo: Array, hi: Array, *, start: Circulation | None = None, time_limit: float | None = None
) -> Circulation:
    """min Σ|t_e| s.t. t = Dg, lo ≤ t ≤ hi, and its dual, for lo < hi with (lo + hi)/2 = Dg of some g. `start` is the answer to a neighbouring problem.

    After `time_limit` seconds the best heights so far are returned with the midpoint as primal: both stay feasible, the gap is open.
    """
    h, w = shape
    mid: Array = (lo + hi) / 2
    if h == 1 or w == 1:  # no face: every t is a difference
        free = np.clip(0.0, lo, hi)
        return Circulation(shape, np.zeros(len(free), dtype=np.int64), np.append(0.0, np.cumsum(free)), 0)
    faces, largest = faces_of(h, w), float(np.maximum(np.abs(lo), np.abs(hi)).max())
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    H = np.zeros(faces.count, dtype=np.int64) if start is None else start.heights
    g: Array = faces.integrate(mid)  # feasible, though far from optimal
    guess, cuts = (mid if start is None else start.differences), 0
    for bits in (_COARSE, _FINE):
        unit = 2.0 ** (math.frexp(largest)[1] - bits)  # a power of two: dividing by it is exact
        if float((hi - lo).min()) < 4 * unit:  # too narrow for this unit: rounding inwards could empty the set
            continue
        low, high = np.ceil(lo / unit).astype(np.int64), np.floor(hi / unit).astype(np.int64)
        H, whole, more = _descend(faces, H, np.rint(guess / unit).astype(np.int64), low, high, deadline)
        cuts += more
        if whole is None:
            break
        guess, g = np.asarray(whole * unit), np.asarray(faces.integrate(whole) * unit)
        objective = float(np.abs(guess).sum())
        if objective + _value(faces, H, lo, hi) <= _GOOD * objective:
            break
    return Circulation(shape, faces.flow_of(H), g, cuts)


def _value(faces: Faces, H: Integers, lo: Array, hi: Array) -> float:
    """F(H)."""
    z, near = faces.flow_of(H).astype(float), np.clip(0.0, lo, hi)
    return float(np.maximum(np.maximum(z * lo - np.abs(lo), z * hi - np.abs(hi)), z * near - np.abs(near)).sum())


def _descend(
    faces: Faces, H: Integers, t: Integers, low: Integers, high: Integers, deadline: float
) -> tuple[Integers, Integers | None, int]:
    """(optimal heights, t with Ct = 0 on the optimal pieces, number of max flows); t is None when the time is over."""
    near, cuts, F = np.clip(0, low, high), 0, faces.count
    while True:
        z = faces.flow_of(H)  # slopes of φ* just below and just above z
        least, most = np.where(z > 1, high, np.where(z > -1, near, low)), np.where(z >= 1, high, np.where(z >= -1, near, low))
        t = np.clip(t, least, most)
        while True:
            excess = -(faces.curl @ t)
            if not excess.any():
                return H, t, cuts
            if time.monotonic() > deadline:
                return H, None, cuts
            t = t + faces.push(most - t, t - least, excess)
            cuts += 1
            excess = -(faces.curl @ t)
            if not excess.any():
                return H, t, cuts
            seen = faces.reached(most - t, t - least, excess)
            if not (seen & (excess < 0)).any():  # a cut: raising it lowers F by what could not leave it
                break
        H = H - (~seen[:F]).astype(np.int64) if seen[F] else H + seen[:F]  # heights are relative to the outer face


def circulation_value(z: Integers, lo: Array, hi: Array) -> float:
    """−Σ φ_e*(z_e) of an integral circulation, rounded down: a lower bound of min Σ|t_e| over differences t = Dg with lo ≤ t ≤ hi."""
    if not len(z):
        return 0.0
    flow, near = z.astype(float), np.minimum(np.maximum(lo, 0.0), hi)
    terms = np.minimum(np.minimum(np.abs(lo) - flow * lo, np.abs(hi) - flow * hi), np.abs(near) - flow * near)
    # |t| − z t is exact for |z| ≤ 1, else one product and one difference: within 2ε(|z| + 1)max(|lo|, |hi|) of its value. A sum of k numbers in any order
    # is within (k − 1)ε/2 of theirs times Σ|terms|, here k = 128; fsum adds the parts without error
    rough = np.where(np.abs(flow) > 1, (np.abs(flow) + 1) * np.maximum(np.abs(lo), np.abs(hi)), 0.0)
    value = math.fsum(np.add.reduceat(terms, np.arange(0, len(terms), _PART)))
    slack = float(4 * rough.sum() + _PART * np.abs(terms).sum()) * np.finfo(float).eps
    return value - slack if value > slack else min(value, 0.0)
