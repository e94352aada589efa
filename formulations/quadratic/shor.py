r"""The Shor dual of the quadratic model, climbed.

    maximise D(y) = c(y) − ½ l(y)ᵀP(y)⁻¹l(y)   over   y ≥ 0 (where signed),  P(y) ≻ 0                     (terms.py)

D is concave, and *every* admissible y is a lower bound of the model's optimum, so a climb may stop anywhere. `climb` is a projected limited-memory
quasi-Newton method (two-metric projection, Bertsekas 1982); each value costs one Cholesky factorisation of P, or O(rk²) by Woodbury's
identity where P is a diagonal plus k columns. Where the relaxation is not tight the optimum has P singular and quasi-Newton steps stall in front of
it: `barrier.py` follows the central path to it instead, at the price of dense Newton systems.

At p = ∞ it climbs D − ½S², S = Σν: scaling y by s gives sD − ½s²S², at its best D²/(2S²), so the two are largest together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from formulations.norms import Array
from formulations.quadratic.terms import Sum, Terms

STALL = 30  # steps without a rise of 1e-7 relative after which a climb ends
MARGIN = 1e-13  # smallest eigenvalue of P relative to its size, for P to count as positive definite


class Factor:
    """P = LLᵀ, or P = A − VV' by Woodbury: `solve` only. `factorise` says None where P is not positive definite with the margin."""

    def solve(self, b: Array) -> Array:
        raise NotImplementedError


class DenseFactor(Factor):
    def __init__(self, L: Array) -> None:
        self.L = L

    def solve(self, b: Array) -> Array:
        return np.asarray(scipy.linalg.cho_solve((self.L, True), b, check_finite=False))


class WoodburyFactor(Factor):
    """P = diag(q) + V₊V₊ᵀ − V₋V₋ᵀ = A − V₋V₋ᵀ ≻ 0 exactly when q > 0 and I − V₋ᵀA⁻¹V₋ ≻ 0 (Schur complement)."""

    def __init__(self, q: Array, plus: Array, minus: Array) -> None:
        self.q, self.plus, self.minus = q, plus, minus
        self.inner = np.linalg.cholesky(np.eye(plus.shape[1]) + (plus.T / q) @ plus)
        self.Am = self._base(minus)
        self.outer = np.linalg.cholesky(np.eye(minus.shape[1]) * (1 - 100 * MARGIN) - minus.T @ self.Am)

    def _base(self, b: Array) -> Array:
        y = (b.T / self.q).T
        return np.asarray(y - ((self.plus @ scipy.linalg.cho_solve((self.inner, True), self.plus.T @ y)).T / self.q).T)

    def solve(self, b: Array) -> Array:
        y = self._base(b)
        return np.asarray(y + self.Am @ scipy.linalg.cho_solve((self.outer, True), self.minus.T @ y))


def factorise(t: Terms, y: Array) -> Factor | None:
    """A factorisation that proves P(y) ≻ 0 (up to the margin), else None."""
    try:
        if t.diagonal:
            q = t.P0 + t.F.gram_diagonal(y[t.kappa][t.owner])
            if not (q > MARGIN * q.max(initial=0.0)).all():
                return None
            s = y[0] * t.e
            return WoodburyFactor(q, t.U[:, s > 0] * np.sqrt(s[s > 0]), t.U[:, s < 0] * np.sqrt(-s[s < 0]))
        P = t.matrix(y)
        return DenseFactor(np.linalg.cholesky(P - MARGIN * np.abs(np.diag(P)).max(initial=0.0) * np.eye(len(P))))
    except np.linalg.LinAlgError:
        return None


@dataclass(frozen=True, eq=False)
class Point:
    """D at y, the minimiser z of the Lagrangian there, ∂D/∂y, and the size of the terms that D was summed from."""

    y: Array
    D: float
    z: Array
    gradient: Array
    size: float

    def lower(self, t: Terms) -> float:
        """√(2D/S)·unit after a deduction for rounding: a lower bound of the model's optimum."""
        total = float(self.y[t.nu].sum()) if t.nu.stop else 1.0
        safe = self.D - 1e-13 * (1 + len(self.z)) * self.size
        return t.unit * float(np.sqrt(max(2 * safe / total, 0.0))) if total > 0 else 0.0


def evaluate(t: Terms, y: Array) -> Point | None:
    """The dual at y; None where P(y) is not positive definite."""
    found = factorise(t, y)
    if found is None:
        return None
    c, l = t.assemble(y)
    z = -found.solve(l)
    if not np.isfinite(z).all():
        return None
    return Point(y, c + 0.5 * float(l @ z), z, t.constraint_values(z), abs(c) + float(np.abs(l) @ np.abs(z)))


def start(t: Terms) -> Point:
    """Admissible multipliers: small squares and rows, λ halved until P ≻ 0 (at λ = 0 it is: W² at p = 2, ν > 0 at p = ∞)."""
    y = np.where(t.nonneg, 0.1 / np.sqrt(t.count), 0.0)
    y[t.kappa] /= np.maximum(t.square_level, 1.0)
    if t.nu.stop:
        y[t.nu] = 1.0 / (t.nu.stop - t.nu.start)
    y[0] = 1.0
    while evaluate(t, y) is None:
        y[0] = y[0] / 2 if y[0] > 1e-200 else 0.0
    y[0] /= 2  # not right at the edge
    point = evaluate(t, y)
    assert point is not None
    return point


Merit = Callable[[Array], tuple[float, Array, Point | None]]


class Climb:
    """The variables in which the quasi-Newton climb moves: y itself, but u = t·ω·clip(v) for sums (v in the unit ball of its group)."""

    def __init__(self, t: Terms) -> None:
        self.t = t
        self.low, self.high = np.where(t.nonneg, 0.0, -np.inf), np.full(t.count, np.inf)
        self.steer = np.zeros(t.count, dtype=bool)
        self.steer[[s.at for s in t.sums]] = True
        for s in t.sums:
            if self._single(s):
                self.low[s.block], self.high[s.block] = -1.0, 1.0

    @staticmethod
    def _single(s: Sum) -> bool:
        return len(s.omega) == len(s.labels)

    def to_y(self, v: Array) -> Array:
        y = v.copy()
        for s in self.t.sums:
            y[s.block] = v[s.at] * s.omega[s.labels] * self._shape(s, v[s.block])[0]
        return y

    def from_y(self, y: Array) -> Array:
        v = y.copy()
        for s in self.t.sums:
            v[s.block] = 0.0 if y[s.at] <= 0 else np.clip(y[s.block] / (y[s.at] * s.omega[s.labels]), -0.99, 0.99)
        return v

    def turn(self, v: Array, z: Array) -> Array:
        """v with every closed cone (t = 0, where all u are one point) turned towards the violation of its constraint at z: then ∂/∂t tells the truth."""
        out = v.copy()
        for s in self.t.sums:
            if v[s.at] <= 0:
                image = s.M.times(z) + s.e
                size = np.sqrt(np.bincount(s.labels, image**2, minlength=len(s.omega)))[s.labels]
                out[s.block] = (1.0 if self._single(s) else 1e3) * image / np.maximum(size, 1e-300)
        return out

    def pull_back(self, v: Array, gradient: Array) -> Array:
        """The gradient in v from the one in y."""
        out = gradient.copy()
        for s in self.t.sums:
            shape, n = self._shape(s, v[s.block])
            push = s.omega[s.labels] * gradient[s.block]
            out[s.at] = gradient[s.at] + float(shape @ push)
            if n is None:
                out[s.block] = v[s.at] * push
            else:  # d(v/n)/dv = (I − yyᵀ)/n
                along = np.bincount(s.labels, shape * push, minlength=len(s.omega))[s.labels]
                out[s.block] = v[s.at] * (push - shape * along) / n
        return out

    def _shape(self, s: Sum, v: Array) -> tuple[Array, Array | None]:
        """The point of the unit ball that v stands for: v itself for single rows, v/√(1+‖v_g‖²) for groups."""
        if self._single(s):
            return v, None
        n = np.sqrt(1 + np.bincount(s.labels, v * v, minlength=len(s.omega)))[s.labels]
        return v / n, n


def climb(
    t: Terms, begin: Point, *, steps: int = 500, memory: int = 20, tolerance: float = 1e-9, enough: float = np.inf
) -> tuple[Point, bool]:
    """(the best point of a projected quasi-Newton climb from `begin`, whether its projected gradient is below the tolerance, which means optimal).

    Ends also after `steps`, at a stall in front of the edge of P ≻ 0, or at D > enough.
    """
    space = Climb(t)

    def merit(v: Array) -> tuple[float, Array, Point | None]:
        point = evaluate(t, space.to_y(v))
        if point is None:
            return -np.inf, np.zeros_like(v), None
        gradient, total = point.gradient.copy(), 0.0
        if t.nu.stop:
            total = float(point.y[t.nu].sum())
            gradient[t.nu] -= total
        return point.D - 0.5 * total**2, space.pull_back(v, gradient), point

    v = space.from_y(begin.y)
    f, g, point = merit(v)
    assert point is not None
    pairs: list[tuple[Array, Array]] = []
    history: list[float] = []
    for _ in range(steps):
        stuck = ((v <= space.low) & (g <= 0)) | ((v >= space.high) & (g >= 0))
        free = ~stuck
        if np.abs(g[free]).max(initial=0.0) <= tolerance * (1 + abs(f)):
            v = space.turn(v, point.z)
            f, g, point = merit(v)
            assert point is not None
            if (g[(v <= space.low) & space.steer] <= tolerance * (1 + abs(f))).all():
                return point, True
            pairs = []
            continue
        history.append(f)
        if f > enough or (len(history) > STALL and f - history[-STALL] <= 1e-7 * abs(f)):
            break
        step = _direction(pairs, g, free)
        if not step @ g > 0:
            pairs, step = [], np.where(free, g, 0.0)
        moved = _search(merit, v, f, g, step, space.low, space.high)
        if moved is None:
            if not pairs:
                break
            pairs = []
            continue
        v_new, f_new, g_new, point = moved
        s, d = v_new - v, g - g_new
        if s @ d > 1e-12 * np.linalg.norm(s) * np.linalg.norm(d):
            pairs = [*pairs[-memory + 1 :], (s, d)]
        v, f, g = v_new, f_new, g_new
    return point, False


def _direction(pairs: list[tuple[Array, Array]], g: Array, free: NDArray[np.bool_]) -> Array:
    """The two-loop recursion (Nocedal 1980) on the free variables."""
    q = np.where(free, g, 0.0)
    kept = [(s * free, d * free) for s, d in pairs]
    used = [(s, d, 1 / (s @ d)) for s, d in kept if s @ d > 1e-14 * (d @ d)]
    alphas = []
    for s, d, rho in reversed(used):
        alphas.append(rho * (s @ q))
        q = q - alphas[-1] * d
    if used:
        s, d, rho = used[-1]
        q = q / (rho * (d @ d))
    else:
        q = q * (0.1 / max(1.0, np.abs(q).max(initial=0.0)))
    for (s, d, rho), alpha in zip(used, reversed(alphas), strict=True):
        q = q + (alpha - rho * (d @ q)) * s
    return np.where(free, q, 0.0)


def _search(merit: Merit, v: Array, f: float, g: Array, step: Array, low: Array, high: Array) -> tuple[Array, float, Array, Point] | None:
    """Backtracking along the projected arc until the rise is a fair part (1e-4) of the promised one; −∞ outside P ≻ 0 counts as no rise."""
    size = 1.0
    for _ in range(60):
        new = np.clip(v + size * step, low, high)
        promised = g @ (new - v)
        f_new, g_new, point = merit(new)
        if point is not None and promised > 0 and f_new >= f + 1e-4 * promised:
            return new, f_new, g_new, point
        size *= 0.5
    return None
