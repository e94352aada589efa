r"""Rigorous upper bounds of linear functions over { N(δ) ≤ radius } ∩ C, in outward-rounded float64. It needs numpy and python-flint only.

For the boxes lo ≤ δ ≤ hi (the ball's own box included), the ball ‖Wδ‖ ≤ r and the other parts K_j δ ∈ S_j, with *any* w and u_j

    max A·δ  ≤  Σ_i max(q_i lo_i, q_i hi_i) + r‖w‖_* + Σ_j σ_j(u_j),       q = A − w − Σ_j K_jᵀu_j

    rows K δ ≤ h      σ = u·h, u ≥ 0 (equalities: u free)
    ball ‖K δ + e‖ ≤ ρ       σ = ρ‖u‖_* − u·e

which is the theorem of verification/checking/theorem.py once more. So nothing has to be believed about w and u: u comes from a heuristic in float32
(multipliers.py), w from closed forms, and what is returned is this sum, evaluated with all rounding errors on the upper side. What the
floats miss of q meets |δ_i| ≤ max(|lo_i|, |hi_i|). A group norm's ball is one of the parts; custom sets are left out (a larger region).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verification.checking.document import Cell, Document, NormSpec
from verification.checking.rationals import exact, float_down, float_up
from verification.checking.theorem import Hull
from verification.rechecking.multipliers import Search, cut_multiplier, length_multiplier
from verification.rechecking.rounding import INFLATE, TINY, Array, U, gamma

CHUNK = 1 << 22  # numbers in one temporary of the search for multipliers
DENSE = 1 << 16
Places = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Matrix:
    """K (m, d) by its entries: dense where it is small, else one list of places per entry of a row, and of a column."""

    data: Array
    row: Places
    column: Places
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        self.__dict__["dense"] = None
        if self.shape[0] * self.shape[1] <= DENSE:
            self.__dict__["dense"] = np.zeros(self.shape, self.data.dtype)
            np.add.at(self.__dict__["dense"], (self.row, self.column), self.data)
        else:
            self.__dict__["halves"] = (
                _slots(self.data, self.row, self.column),
                _slots(self.data, self.column, self.row),
            )

    def scaled(self, rows: Array, columns: Array, dtype: Any) -> Matrix:
        return Matrix((self.data * rows[self.row] * columns[self.column]).astype(dtype), self.row, self.column, self.shape)

    def absolute(self) -> Matrix:
        return Matrix(np.abs(self.data), self.row, self.column, self.shape)

    def times(self, x: Any) -> Any:
        """x (R, d) → x Kᵀ (R, m)."""
        dense = self.__dict__["dense"]
        return _gather(self.__dict__["halves"][0], x, self.shape[0]) if dense is None else x @ dense.T

    def back(self, u: Any) -> Any:
        """u (R, m) → u K (R, d)."""
        dense = self.__dict__["dense"]
        return _gather(self.__dict__["halves"][1], u, self.shape[1]) if dense is None else u @ dense

    def dense_row(self, j: int) -> Array:
        at = self.row == j
        out: Array = np.bincount(self.column[at], self.data[at], minlength=self.shape[1]).astype(np.float64)
        return out

    @property
    def longest(self) -> int:
        """Entries in the fullest column."""
        return int(np.bincount(self.column, minlength=1).max(initial=0))


def _slots(data: Array, target: Places, source: Places) -> list[tuple[Places, Places, Array]]:
    """(targets, sources, data) of the first entry of every target, of the second, …"""
    order = np.argsort(target, kind="stable")
    target, source, data = target[order], source[order], data[order]
    rank = np.arange(len(target)) - np.searchsorted(target, target)
    return [(target[rank == k], source[rank == k], data[rank == k]) for k in range(int(rank.max(initial=-1)) + 1)]


def _gather(slots: list[tuple[Places, Places, Array]], x: Any, size: int) -> Any:
    out = np.zeros((len(x), size), dtype=x.dtype)
    for target, source, data in slots:
        if len(target) == size:
            out += x[:, source] * data
        else:
            out[:, target] += x[:, source] * data
    return out


@dataclass(frozen=True, eq=False)
class Block:
    """One part over the change: rows `at` of K. kind: "rows", "equalities", "ball". right: h, or e, off by at most `off`; rho is rounded up."""

    at: slice
    kind: str
    right: Array
    off: Array
    rho: float = 0.0
    norm: NormSpec | None = None

    def feasible(self, u: Array) -> Array:
        return np.maximum(u, 0) if self.kind == "rows" else u

    def sigma(self, u: Array) -> Array:
        """An upper bound of σ(u) for u (R, k)."""
        size, terms = np.abs(u), u.shape[1]
        error = size @ self.off + gamma(terms + 2) * (size @ np.abs(self.right))
        total = u @ self.right * (1 if self.norm is None else -1)
        if self.norm is not None:
            ball = self.rho * dual_up(self.norm, u)
            total, error = total + ball, error + 4 * U * (np.abs(total) + ball)
        out: Array = total + error * INFLATE + terms * TINY
        return out


def dual_up(norm: NormSpec, w: Array, scale: Array | None = None) -> Array:
    """An upper bound of ‖w‖_* (R,) of rows w (R, d); `scale`: the diagonal of W, where it is not the norm's own."""
    scale = (np.ones(1) if norm.weights is None else np.array(norm.weights)) if scale is None else scale
    if norm.p == "group":
        v = np.stack([np.sqrt((w[:, g] ** 2).sum(1)) for g in norm.groups], 1) / np.array(norm.weights)
        out: Array = v.max(1)
    else:
        v = np.abs(w) / scale
        out = v.max(1, initial=0) if norm.p == "1" else v.sum(1) if norm.p == "inf" else np.sqrt((v**2).sum(1))
    out = out * (1 + gamma(w.shape[1] + 8)) + w.shape[1] * 2.0**-500 / scale.min()
    return out  # squares below 2^-1022 may vanish, which is what the last term covers


class Region:
    """The changes of one cell (apart from its neuron splits)."""

    def __init__(self, doc: Document, cell: Cell, effort: int = 0) -> None:
        """`effort`: 0, 1, 2, … how long multipliers of the parts that are no boxes are sought."""
        self.norm, self.dim, self.radius = doc.norm, len(doc.x0), cell.radius
        self.scale = np.ones(self.dim) if doc.norm.weights is None or doc.norm.groups else np.array(doc.norm.weights)
        hull = Hull(doc).within(doc, cell.path)
        lo = np.array([-math.inf if v is None else float_down(v) for v in hull.lo])
        hi = np.array([math.inf if v is None else float_up(v) for v in hull.hi])
        if math.isfinite(cell.radius):
            of_group = {i: w for g, w in zip(doc.norm.groups, doc.norm.weights or (), strict=False) for i in g}
            own = np.array([of_group.get(i, s) for i, s in enumerate(self.scale)])
            reach = np.nextafter(cell.radius / own, np.inf)
            lo, hi = np.maximum(lo, -reach), np.minimum(hi, reach)
        self.lo, self.hi = np.minimum(lo, hi), np.maximum(lo, hi)  # an empty set's hull is only made larger
        self.size = np.maximum(np.abs(self.lo), np.abs(self.hi))
        self.K, self.blocks = _couple(doc, cell.radius)
        self.K_size = self.K.absolute()
        self.capped, self._effort = False, effort
        self._search = Search(self, effort) if self.blocks and np.isfinite(self.size).all() else None

    def cut(self, a: Array, h: float) -> Region:
        """The part of the region with a·δ ≤ h, which becomes its last block. A region takes one such cut."""
        out, m, at = copy.copy(self), self.K.shape[0], np.flatnonzero(a)
        row, column = np.concatenate([self.K.row, np.full(len(at), m)]), np.concatenate([self.K.column, at])
        out.K = Matrix(np.concatenate([self.K.data, a[at]]), row, column, (m + 1, self.dim))
        out.K_size = out.K.absolute()
        out.blocks = [*self.blocks, Block(slice(m, m + 1), "rows", np.array([h]), np.zeros(1))]
        out._search, out.capped = None if self._search is None else Search(out, self._effort), True
        return out

    def seen(self, columns: Places) -> Region:
        """For rows that see the coordinates `columns` (R, k) only, with their entries there: ball and box of those, which is all that `above` then asks."""
        out = copy.copy(self)
        out.lo, out.hi, out.size, out.scale, out.dim = (
            self.lo[columns],
            self.hi[columns],
            self.size[columns],
            self.scale[columns],
            columns.shape[1],
        )
        return out

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.size).all())

    @property
    def coupled(self) -> bool:
        """Is there more to it than ball and box?"""
        return bool(self.blocks)

    @property
    def boxed(self) -> bool:
        """Is it its box? (A group norm's ball is a block.)"""
        return not self.blocks and (not math.isfinite(self.radius) or self.norm.p == "inf")

    def above(self, A: Array, start: Array | None = None, *, search: bool = True) -> tuple[Array, Array]:
        """(an upper bound (R,) of max A·δ, multipliers (R, m) that may start a later search) for rows A (R, d); without `search` u stays 0."""
        best, m = self._bound(A, None), self.K.shape[0]
        if (self._search is None and not self.capped) or not search or not len(A):
            return best, np.zeros((len(A), m)) if start is None else start
        width, found = max(1, CHUNK // (self.dim + m)), np.zeros((len(A), m))
        for i in range(0, len(A), width):
            part = slice(i, i + width)
            if self._search is not None:
                found[part] = self._search.run(A[part], None if start is None else start[part])
                best[part] = np.fmin(best[part], self._bound(A[part], found[part]))
            if self.capped:
                found[part, -1] = 0.0
                u = np.concatenate([b.feasible(found[part, b.at]) for b in self.blocks], 1)
                found[part, -1] = cut_multiplier(self, A[part] - self.K.back(u))
                best[part] = np.fmin(best[part], self._bound(A[part], found[part]))
        return best, found

    def rough(self, A: Array) -> Array:
        """Multipliers (R, m) of the parts that are no boxes, for rows A (R, d), as a search finds them; any are valid once `feasible`."""
        if self._search is None:
            return np.zeros((len(A), self.K.shape[0]))
        u = self._search.run(A, None)
        return np.concatenate([b.feasible(u[:, b.at]) for b in self.blocks], 1)

    def _bound(self, A: Array, u: Array | None) -> Array:
        """The sum of the theorem with multipliers u (R, m), and w in closed form, rounded up."""
        if u is None:
            return self._base(A)
        u = np.concatenate([b.feasible(u[:, b.at]) for b in self.blocks], 1)
        q = A - self.K.back(u)
        missed = gamma(self.K.longest + 1) * self.K_size.back(np.abs(u)) + U * np.abs(q)
        error = (missed @ self.size) * INFLATE + self.dim * TINY
        total = self._base(q)
        for b in self.blocks:
            sigma = b.sigma(u[:, b.at])
            total, error = total + sigma, error + 4 * U * (np.abs(total) + np.abs(sigma))
        out: Array = total + error * INFLATE
        return out

    def _base(self, A: Array) -> Array:
        """Ball and box alone."""
        w = self._share(A)
        q = A - w
        corner = np.where(q > 0, self.hi, self.lo)
        with np.errstate(invalid="ignore"):
            value = np.where(q == 0, 0.0, q * corner).sum(1)
            error = (gamma(self.dim + 3) * np.where(q == 0, 0.0, np.abs(q) * self.size)).sum(1)
        if math.isfinite(self.radius) and self.norm.p in ("1", "2"):
            ball = self.radius * dual_up(self.norm, w, self.scale)
            value, error = value + ball, error + 4 * U * (np.abs(value) + ball)
        out: Array = value + error * INFLATE + self.dim * TINY
        return out

    def _share(self, A: Array) -> Array:
        """w: what the ball takes of A, μ times the scaled change at which A·δ is largest. For p = ∞ the ball is its box; a group norm's ball is a part.

        A box that holds no zero takes its nearest change off the budget first.
        """
        if not math.isfinite(self.radius) or self.norm.p not in ("1", "2"):
            return np.zeros_like(A)
        least = np.clip(0.0, self.lo, self.hi) * self.scale
        if self.norm.p == "2" and least.any():
            return self._apart(A)
        v, cap = np.abs(A) / self.scale, np.abs(np.where(A > 0, self.hi, self.lo)) * self.scale - np.abs(least)
        budget = self.radius - np.broadcast_to(np.abs(least), A.shape).sum(1)
        cap = np.clip(cap, 0, self.radius)
        if self.norm.p == "1":  # μ = the gain at which the budget ends
            order = np.argsort(-v, axis=1)
            spent = np.cumsum(np.take_along_axis(cap, order, 1), 1)
            last = np.minimum((spent < budget[:, None]).sum(1), self.dim - 1)
            mu = np.where(spent[:, -1] <= budget, 0.0, np.take_along_axis(np.take_along_axis(v, order, 1), last[:, None], 1)[:, 0])
            most = mu[:, None] * self.scale
            return np.where(least != 0, most * np.sign(least), np.clip(A, -most, most))
        mu = length_multiplier(v, cap, self.radius)[:, None]
        full = mu * cap * self.scale
        return np.where(np.abs(A) <= full, A, np.sign(A) * full)

    def _apart(self, A: Array) -> Array:
        """w at p = 2 where the box holds no zero: y = clip(A/(μW), …) of length `radius`, by bisection."""
        low, high = np.full(len(A), 1e-30), (np.sqrt(((A / self.scale) ** 2).sum(1)) + 1e-300) / max(self.radius, 1e-300) * 2.0**40
        lo, hi = self.lo * self.scale, self.hi * self.scale
        for _ in range(120):
            mu = np.sqrt(low * high)
            longer = np.sqrt((np.clip(A / self.scale / mu[:, None], lo, hi) ** 2).sum(1)) > self.radius
            low, high = np.where(longer, mu, low), np.where(longer, high, mu)
        most = high[:, None]
        return np.where(most > 1e-29, np.clip(A / self.scale / most, lo, hi) * most * self.scale, 0.0)


def _couple(doc: Document, radius: float) -> tuple[Matrix, list[Block]]:
    """All parts that are no boxes (and a group norm's ball), over the change."""
    dim, at = len(doc.x0), 0
    data: list[float] = []
    row: list[int] = []
    column: list[int] = []
    blocks = []
    if doc.norm.p == "group" and math.isfinite(radius):
        data, row, column = [1.0] * dim, list(range(dim)), list(range(dim))
        blocks.append(Block(slice(0, dim), "ball", np.zeros(dim), np.zeros(dim), radius, doc.norm))
        at = dim
    for part in doc.parts:
        if not part.matrix:
            continue
        right, off = np.empty(len(part.matrix)), np.empty(len(part.matrix))
        for j, (entries, end) in enumerate(zip(part.matrix, part.right, strict=True)):
            offset = sum((exact(g) * exact(doc.x0[i]) for i, g in entries), exact(0.0)) if part.on == "input" else exact(0.0)
            value = exact(end) + offset if part.norm is not None else exact(end) - offset  # K(x0 + δ) + e,  K(x0 + δ) ≤ h
            low, high = float_down(value), float_up(value)
            right[j], off[j] = low, (high - low) * INFLATE
            data += [g for _, g in entries]
            row += [at + j] * len(entries)
            column += [i for i, _ in entries]
        blocks.append(Block(slice(at, at + len(right)), part.kind, right, off, part.rho, part.norm))
        at += len(right)
    return Matrix(np.array(data, dtype=float), np.array(row, dtype=np.intp), np.array(column, dtype=np.intp), (at, dim)), blocks
