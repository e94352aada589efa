r"""Rigorous upper bounds of linear functions over { N(δ) ≤ radius } ∩ C, in outward-rounded float64. It needs numpy and python-flint only.

For the boxes lo ≤ δ ≤ hi (the ball's own box included), the ball ‖Wδ‖ ≤ r and the other parts K_j δ ∈ S_j, with *any* w and u_j

    max A·δ  ≤  Σ_i max(q_i lo_i, q_i hi_i) + r‖w‖_* + Σ_j σ_j(u_j),       q = A − w − Σ_j K_jᵀu_j

    rows K δ ≤ h      σ = u·h, u ≥ 0 (equalities: u free)
    ball ‖K δ + e‖ ≤ ρ       σ = ρ‖u‖_* − u·e

which is the theorem of verification/checker.py once more. So nothing has to be believed about w and u: they are found below by heuristics in float32 and
float64 (u by a primal-dual iteration, w in closed form), and what is returned is this sum, evaluated with all rounding errors on the upper side. What the
floats miss of q meets |δ_i| ≤ max(|lo_i|, |hi_i|). A group norm's ball is one of the parts; custom sets are left out (a larger region).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verification.certificate_format import Cell, Document, NormSpec
from verification.checker import Hull, exact, float_down, float_up
from verification.checker_layers import INFLATE, TINY, Array, U, gamma

STEPS, AGAIN = 150, 50  # of the primal-dual iteration, from nothing and from multipliers of a similar region
CHUNK = 1 << 22  # numbers in one temporary of it
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
                _slots(self.data, self.row, self.column, self.shape[0]),
                _slots(self.data, self.column, self.row, self.shape[1]),
            )

    def scaled(self, rows: Array, columns: Array, dtype: Any) -> Matrix:
        return Matrix((self.data * rows[self.row] * columns[self.column]).astype(dtype), self.row, self.column, self.shape)

    def absolute(self) -> Matrix:
        return Matrix(np.abs(self.data), self.row, self.column, self.shape)

    def times(self, x: Array) -> Array:
        """x (R, d) → x Kᵀ (R, m)."""
        dense = self.__dict__["dense"]
        out: Array = _gather(self.__dict__["halves"][0], x, self.shape[0]) if dense is None else x @ dense.T
        return out

    def back(self, u: Array) -> Array:
        """u (R, m) → u K (R, d)."""
        dense = self.__dict__["dense"]
        out: Array = _gather(self.__dict__["halves"][1], u, self.shape[1]) if dense is None else u @ dense
        return out

    @property
    def longest(self) -> int:
        """Entries in the fullest column."""
        return int(np.bincount(self.column, minlength=1).max(initial=0))


def _slots(data: Array, target: Places, source: Places, size: int) -> list[tuple[Places, Places, Array]]:
    """(targets, sources, data) of the first entry of every target, of the second, …"""
    order = np.argsort(target, kind="stable")
    target, source, data = target[order], source[order], data[order]
    rank = np.arange(len(target)) - np.searchsorted(target, target)
    return [(target[rank == k], source[rank == k], data[rank == k]) for k in range(int(rank.max(initial=-1)) + 1)]


def _gather(slots: list[tuple[Places, Places, Array]], x: Array, size: int) -> Array:
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
        return total + error * INFLATE + terms * TINY

    def project(self, v: Array, weights: Array) -> Array:
        """Roughly the nearest point of S to v, both multiplied by `weights` (k,) row by row: a heuristic's step."""
        right = self.right.astype(v.dtype) * weights
        if self.norm is None:
            return np.minimum(v, right) if self.kind == "rows" else np.broadcast_to(right, v.shape)
        return _onto_ball(self.norm, v + right, self.rho, weights) - right


def dual_up(norm: NormSpec, w: Array) -> Array:
    """An upper bound of ‖w‖_* (R,) of rows w (R, d)."""
    if norm.p == "group":
        lengths = np.stack([np.sqrt((w[:, g] ** 2).sum(1)) for g in norm.groups], 1)
        return (lengths / np.array(norm.weights)).max(1) * (1 + gamma(w.shape[1] + 8)) + TINY
    v = np.abs(w) if norm.weights is None else np.abs(w) / np.array(norm.weights)
    out = {"1": lambda: v.max(1, initial=0), "2": lambda: np.sqrt((v**2).sum(1)), "inf": lambda: v.sum(1)}[norm.p]()
    return out * (1 + gamma(w.shape[1] + 8)) + w.shape[1] * 2.0**-500  # squares below 2^-1022 may vanish


class Region:
    """The changes of one cell (apart from its neuron splits)."""

    def __init__(self, doc: Document, cell: Cell) -> None:
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
        self._quick = _Quick(self) if self.blocks and np.isfinite(self.size).all() else None

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.size).all())

    def above(self, A: Array, start: Array | None = None, *, search: bool = True) -> tuple[Array, Array]:
        """(an upper bound (R,) of max A·δ, multipliers (R, m) that may start a later search) for rows A (R, d); without `search` u stays 0."""
        best, m = self._bound(A, None), self.K.shape[0]
        if self._quick is None or not search or not len(A):
            return best, np.zeros((len(A), m)) if start is None else start
        width, found = max(1, CHUNK // (self.dim + m)), np.zeros((len(A), m))
        for i in range(0, len(A), width):
            part = slice(i, i + width)
            found[part] = self._quick.search(A[part], None if start is None else start[part])
            best[part] = np.fmin(best[part], self._bound(A[part], found[part]))
        return best, found

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
        return total + error * INFLATE

    def _base(self, A: Array) -> Array:
        """Ball and box alone."""
        w = self._share(A)
        q = A - w
        corner = np.where(q > 0, self.hi, self.lo)
        with np.errstate(invalid="ignore"):
            value = np.where(q == 0, 0.0, q * corner).sum(1)
            error = (gamma(self.dim + 3) * np.where(q == 0, 0.0, np.abs(q) * self.size)).sum(1)
        if math.isfinite(self.radius) and self.norm.p in ("1", "2"):
            ball = self.radius * dual_up(self.norm, w)
            value, error = value + ball, error + 4 * U * (np.abs(value) + ball)
        return value + error * INFLATE + self.dim * TINY

    def _share(self, A: Array) -> Array:
        """w: what the ball takes of A. For p = ∞ the ball is its box; a group norm's ball is a part."""
        if not math.isfinite(self.radius) or self.norm.p not in ("1", "2"):
            return np.zeros_like(A)
        v, cap = np.abs(A) / self.scale, np.where(A > 0, self.hi, -self.lo) * self.scale
        cap = np.clip(cap, 0, self.radius)
        if self.norm.p == "1":  # μ = the gain at which the budget ends
            order = np.argsort(-v, axis=1)
            spent = np.cumsum(np.take_along_axis(cap, order, 1), 1)
            last = np.minimum((spent < self.radius).sum(1), self.dim - 1)
            mu = np.where(spent[:, -1] <= self.radius, 0.0, np.take_along_axis(np.take_along_axis(v, order, 1), last[:, None], 1)[:, 0])
            return np.clip(A, -mu[:, None] * self.scale, mu[:, None] * self.scale)
        mu = multiplier(v, cap, self.radius)[:, None]
        full = mu * cap * self.scale
        return np.where(np.abs(A) <= full, A, np.sign(A) * full)


def multiplier(size: Array, cap: Array, radius: float) -> Array:
    """μ ≥ 0 with ‖min(size/μ, cap)‖₂ ≈ radius, row by row; 0 where ‖cap‖₂ is below it."""
    mu = np.sqrt((size**2).sum(1)) / radius
    for _ in range(100):
        stopped = size >= mu[:, None] * cap
        left = radius * radius - np.where(stopped, cap * cap, 0).sum(1)
        free = np.sqrt(np.where(stopped, 0, size * size).sum(1))
        new = np.where(free > 0, np.where(left > 0, free / np.sqrt(np.maximum(left, 1e-300)), mu), 0.0)
        new = np.minimum(new, mu)
        if (new >= mu * (1 - 1e-15)).all():
            break
        mu = new
    out: Array = mu
    return out


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


# ------------------------------------------------------------------------------------------------ heuristics: nothing below is believed


class _Quick:
    """Good multipliers by the primal-dual hybrid gradient method (Chambolle & Pock 2011) in float32, on v = Wδ with K's rows of length one:

    v⁺ = P_B(v + τ(A/W − Kᵀu)),    u⁺ = y − σ P_S(y/σ),  y = u + σK(2v⁺ − v)
    """

    def __init__(self, region: Region) -> None:
        self.region, self.p = region, region.norm.p
        s = region.scale
        data, row, column = region.K.data, region.K.row, region.K.column
        length = np.sqrt(np.bincount(row, (data / s[column]) ** 2, minlength=region.K.shape[0]))
        self.weights = np.where(length > 0, 1 / np.where(length > 0, length, 1), 1.0)
        for b in region.blocks:
            if b.norm is not None:  # a ball's rows are scaled together
                self.weights[b.at] = self.weights[b.at].min()
        self.K = region.K.scaled(self.weights, 1 / s, np.float32)
        self.weights = self.weights.astype(np.float32)
        self.lo, self.hi = (np.nan_to_num(v * s).astype(np.float32) for v in (region.lo, region.hi))
        x = np.random.default_rng(0).normal(size=(1, region.dim)).astype(np.float32)
        for _ in range(30):
            x = self.K.back(self.K.times(x))
            x /= np.linalg.norm(x) + 1e-30
        self.gain = 1.05 * math.sqrt(float(np.linalg.norm(self.K.back(self.K.times(x))))) + 1e-30

    def search(self, A: Array, start: Array | None) -> Array:
        """Multipliers (R, m) for rows A (R, d)."""
        region = self.region
        size = np.sqrt(((A / region.scale) ** 2).sum(1, keepdims=True)) + 1e-300
        a = (A / region.scale / size).astype(np.float32)
        u = np.zeros((len(A), region.K.shape[0]), np.float32) if start is None else (start / size / self.weights).astype(np.float32)
        v = np.zeros_like(a)
        far = self._project(a * np.float32(1e3 * np.abs(self.hi - self.lo).max()))
        t = np.sqrt((far**2).mean()).clip(1e-12) * math.sqrt(region.dim) * 0.5
        tau, sigma = np.float32(t / self.gain), np.float32(1 / (t * self.gain))
        best, value = u, self._value(a, u)
        total, count = np.zeros_like(u), 0
        for step in range(1, (STEPS if start is None or not start.any() else AGAIN) + 1):
            new = self._project(v + tau * (a - self.K.back(u)))
            y = u / sigma + self.K.times(2 * new - v)
            u = sigma * (y - np.concatenate([b.project(y[:, b.at], self.weights[b.at]) for b in region.blocks], 1))
            v, total, count = new, total + u, count + 1
            if step % 25 == 0:
                for candidate in (u, total / np.float32(count)):
                    bound = self._value(a, candidate)
                    better = bound < value
                    best, value = np.where(better[:, None], candidate, best), np.where(better, bound, value)
                u = best.copy() if step % 50 == 0 else u
                total, count = np.zeros_like(u), 0
        return best.astype(np.float64) * self.weights * size

    def _value(self, a: Array, u: Array) -> Array:
        region = self.region
        real = u.astype(np.float64) * self.weights
        real = np.concatenate([b.feasible(real[:, b.at]) for b in region.blocks], 1)
        base = region._base(a.astype(np.float64) * region.scale - region.K.back(real))
        return base + sum(b.sigma(real[:, b.at]) for b in region.blocks)  # type: ignore[no-any-return]

    def _project(self, v: Array) -> Array:
        """Roughly onto ball ∩ box."""
        r = self.region.radius
        x: Array = np.clip(v, self.lo, self.hi)
        if not math.isfinite(r) or self.p not in ("1", "2"):
            return x
        if self.p == "2":
            for _ in range(4):
                length = np.sqrt((x**2).sum(1, keepdims=True)) + np.float32(1e-30)
                if (length <= r * 1.0001).all():
                    break
                v = v * np.minimum(1, np.float32(r) / length)
                x = np.clip(v, self.lo, self.hi)
            return x
        cap = np.where(v > 0, self.hi, -self.lo)
        theta = np.zeros((len(v), 1), v.dtype)
        for _ in range(12):
            left = np.abs(v) - theta
            inside = np.clip(left, 0, cap)
            over = inside.sum(1, keepdims=True) - np.float32(r)
            if (over <= 1e-4 * r).all():
                break
            moving = ((left > 0) & (left < cap)).sum(1, keepdims=True)
            theta = np.maximum(theta + np.where(over > 0, over, np.minimum(over, 0)) / np.maximum(moving, 1), 0)
        return np.sign(v) * inside


def _onto_ball(norm: NormSpec, v: Array, rho: float, weights: Array) -> Array:
    """Roughly the projection of v = weights·y onto { ‖y‖ ≤ ρ }; balls' weights are all the same."""
    r = np.float32(rho * float(weights[0])) if len(weights) else np.float32(rho)
    if norm.p == "group":
        omega = np.array(norm.weights, dtype=v.dtype)
        out = v.copy()
        lengths = np.stack([np.sqrt((v[:, g] ** 2).sum(1)) for g in norm.groups], 1) + np.float32(1e-30)
        theta = _threshold(lengths, omega, r)
        for k, g in enumerate(norm.groups):
            out[:, g] *= np.maximum(0, 1 - theta * omega[k] / lengths[:, k : k + 1])
        return out
    omega = np.ones(v.shape[1], v.dtype) if norm.weights is None else np.array(norm.weights, dtype=v.dtype)
    if norm.p == "inf":
        return np.clip(v, -r / omega, r / omega)
    if norm.p == "2" and norm.weights is None:
        return v * np.minimum(1, r / (np.sqrt((v**2).sum(1, keepdims=True)) + np.float32(1e-30)))
    if norm.p == "2":  # Σ (ω v/(1 + θω²))² = r², by bisection
        low, high = np.zeros((len(v), 1), v.dtype), np.full((len(v), 1), 1e6, v.dtype)
        for _ in range(40):
            theta = (low + high) / 2
            outside = np.sqrt(((omega * v / (1 + theta * omega**2)) ** 2).sum(1, keepdims=True)) > r
            low, high = np.where(outside, theta, low), np.where(outside, high, theta)
        inside = np.sqrt(((omega * v) ** 2).sum(1, keepdims=True)) <= r
        return np.where(inside, v, v / (1 + high * omega**2))
    return np.sign(v) * np.maximum(np.abs(v) - _threshold(np.abs(v), omega, r) * omega, 0)


def _threshold(size: Array, omega: Array, r: Any) -> Array:
    """θ ≥ 0 with Σ ω(size − θω)₊ = r, or 0 when it is below r: by sorting."""
    if (omega == omega.flat[0]).all():
        t = np.sort(size, axis=1)[:, ::-1] / omega.flat[0]
        theta = (np.cumsum(t, 1) - r / omega.flat[0] ** 2) / np.arange(1, t.shape[1] + 1, dtype=t.dtype)
        last = np.maximum((theta < t).sum(1) - 1, 0)
        return np.maximum(theta[np.arange(len(t)), last][:, None], 0)
    ratio = size / omega
    order = np.argsort(-ratio, axis=1)
    a, w, t = (np.take_along_axis(np.broadcast_to(x, size.shape), order, 1) for x in (omega * size, omega * omega, ratio))
    theta = (np.cumsum(a, 1) - r) / np.cumsum(w, 1)
    last = np.maximum((theta < t).sum(1) - 1, 0)
    out: Array = np.maximum(np.take_along_axis(theta, last[:, None], 1), 0)
    return out
