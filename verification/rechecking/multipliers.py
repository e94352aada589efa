r"""Good multipliers for region.py: heuristics, in float32, of which nothing is believed. It needs numpy only.

The primal-dual hybrid gradient method (Chambolle & Pock 2011) for max A·δ over ball ∩ box ∩ {K δ ∈ S}, on v = Wδ with K's rows of length one:

    v⁺ = P_B(v + τ(A/W − Kᵀu)),    u⁺ = y − σ P_S(y/σ),    y = u + σK(2v⁺ − v)

Every EVERY steps the last u and the mean of the recent ones are tried; the u with the smallest bound met is the answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from verification.checking.document import NormSpec
    from verification.rechecking.region import Block, Region

STEPS, AGAIN = 150, 50  # from nothing, and from multipliers of a similar region; at effort 1, 2, …
LONG = 150  # times 4^effort, in float64
EVERY = 25
TANGENTS, SHRINK, CLOSE = (
    30,
    0.05,
    1e-12,
)  # rounds of the search for a cut's multiplier, what each takes off the bracket's ends at least, and when it ends
Rough = NDArray[Any]


class Search:
    """The search over one region."""

    def __init__(self, region: Region, effort: int) -> None:
        self.region, self.p, self.effort, self.dtype = region, region.norm.p, effort, np.float64 if effort else np.float32
        s = region.scale
        data, row, column = region.K.data, region.K.row, region.K.column
        length = np.sqrt(np.bincount(row, (data / s[column]) ** 2, minlength=region.K.shape[0]))
        self.weights = np.where(length > 0, 1 / np.where(length > 0, length, 1), 1.0)
        for b in region.blocks:
            if b.norm is not None:  # a ball's rows are scaled together
                self.weights[b.at] = self.weights[b.at].min()
        self.K = region.K.scaled(self.weights, 1 / s, self.dtype)
        self.weights = self.weights.astype(self.dtype)
        self.lo, self.hi = (np.nan_to_num(v * s).astype(self.dtype) for v in (region.lo, region.hi))
        x = np.random.default_rng(0).normal(size=(1, region.dim)).astype(self.dtype)
        for _ in range(30):
            x = self.K.back(self.K.times(x))
            x /= np.linalg.norm(x) + 1e-30
        self.gain = 1.05 * math.sqrt(float(np.linalg.norm(self.K.back(self.K.times(x))))) + 1e-30

    def run(self, A: Rough, start: Rough | None) -> Rough:
        """Multipliers (R, m) for rows A (R, d)."""
        region = self.region
        size = np.sqrt(((A / region.scale) ** 2).sum(1, keepdims=True)) + 1e-300
        a = (A / region.scale / size).astype(self.dtype)
        u = np.zeros((len(A), region.K.shape[0]), self.dtype) if start is None else (start / size / self.weights).astype(self.dtype)
        steps = LONG * 4**self.effort if self.effort else STEPS if start is None or not start.any() else AGAIN
        v = np.zeros_like(a)
        far = self._inside(a * self.dtype(1e3 * np.abs(self.hi - self.lo).max()))
        t = np.sqrt((far**2).mean()).clip(1e-12) * math.sqrt(region.dim) * 0.5
        tau, sigma = self.dtype(t / self.gain), self.dtype(1 / (t * self.gain))
        best, value = u, self._value(a, u)
        total, count = np.zeros_like(u), 0
        for step in range(1, steps + 1):
            new = self._inside(v + tau * (a - self.K.back(u)))
            y = u / sigma + self.K.times(2 * new - v)
            u = sigma * (y - np.concatenate([_project(b, y[:, b.at], self.weights[b.at]) for b in region.blocks], 1))
            v, total, count = new, total + u, count + 1
            if step % EVERY == 0:
                for candidate in (u, total / self.dtype(count)):
                    bound = self._value(a, candidate)
                    better = bound < value
                    best, value = np.where(better[:, None], candidate, best), np.where(better, bound, value)
                u = best.copy() if not self.effort and step % (2 * EVERY) == 0 else u  # a restart, against swinging
                total, count = np.zeros_like(u), 0
        found: Rough = best.astype(np.float64) * self.weights * size
        return found

    def _value(self, a: Rough, u: Rough) -> Rough:
        region = self.region
        real = u.astype(np.float64) * self.weights
        real = np.concatenate([b.feasible(real[:, b.at]) for b in region.blocks], 1)
        base = region._base(a.astype(np.float64) * region.scale - region.K.back(real))
        out: Rough = base + sum(b.sigma(real[:, b.at]) for b in region.blocks)
        return out

    def _inside(self, v: Rough) -> Rough:
        """Roughly onto ball ∩ box."""
        r = self.region.radius
        x: Rough = np.clip(v, self.lo, self.hi)
        if not math.isfinite(r) or self.p not in ("1", "2"):
            return x
        if self.p == "2":
            outside = (x**2).sum(1, keepdims=True) > r * r
            scale = (r / np.sqrt((v**2).sum(1, keepdims=True) + 1e-30)).astype(self.dtype)
            for _ in range(40 if self.effort else 4):  # from below: what the box stops leaves more of the ball to the others
                y = v * scale
                inside = np.clip(y, self.lo, self.hi)
                free = inside == y
                left = np.maximum(r * r - np.where(free, 0, inside * inside).sum(1, keepdims=True), 0)
                fill = np.sqrt(left / (np.where(free, v * v, 0).sum(1, keepdims=True) + 1e-30)).astype(self.dtype)
                if (fill <= scale).all():
                    break
                scale = np.maximum(scale, fill)
            x = np.where(outside, np.clip(v * np.minimum(scale, 1), self.lo, self.hi), x)
            return x
        cap = np.where(v > 0, self.hi, -self.lo)
        theta = np.zeros((len(v), 1), v.dtype)
        for _ in range(60 if self.effort else 12):
            left = np.abs(v) - theta
            inside = np.clip(left, 0, cap)
            over = inside.sum(1, keepdims=True) - self.dtype(r)
            if (np.abs(np.where(theta > 0, over, np.maximum(over, 0))) <= (1e-12 if self.effort else 1e-4) * r).all():
                break
            moving = ((left > 0) & (left < cap)).sum(1, keepdims=True)
            theta = np.maximum(theta + np.where(over > 0, over, np.minimum(over, 0)) / np.maximum(moving, 1), 0)
        out: Rough = np.sign(v) * inside
        return out


def _project(block: Block, v: Rough, weights: Rough) -> Rough:
    """Roughly the nearest point of a part's S to v, both multiplied by `weights` row by row."""
    right = block.right.astype(v.dtype) * weights
    if block.norm is None:
        return np.minimum(v, right) if block.kind == "rows" else np.broadcast_to(right, v.shape)
    moved: Rough = _onto_ball(block.norm, v + right, block.rho, weights) - right
    return moved


def _onto_ball(norm: NormSpec, v: Rough, rho: float, weights: Rough) -> Rough:
    """Roughly the projection of v = weights·y onto { ‖y‖ ≤ ρ }; balls' weights are all the same."""
    out: Rough
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
        out = v * np.minimum(1, r / (np.sqrt((v**2).sum(1, keepdims=True)) + np.float32(1e-30)))
        return out
    if norm.p == "2":  # Σ (ω v/(1 + θω²))² = r², by bisection
        low, high = np.zeros((len(v), 1), v.dtype), np.full((len(v), 1), 1e6, v.dtype)
        for _ in range(40):
            theta = (low + high) / 2
            outside = np.sqrt(((omega * v / (1 + theta * omega**2)) ** 2).sum(1, keepdims=True)) > r
            low, high = np.where(outside, theta, low), np.where(outside, high, theta)
        inside = np.sqrt(((omega * v) ** 2).sum(1, keepdims=True)) <= r
        return np.where(inside, v, v / (1 + high * omega**2))
    out = np.sign(v) * np.maximum(np.abs(v) - _threshold(np.abs(v), omega, r) * omega, 0)
    return out


def _threshold(size: Rough, omega: Rough, r: Any) -> Rough:
    """θ ≥ 0 with Σ ω(size − θω)₊ = r, or 0 when it is below r: by sorting."""
    if (omega == omega.flat[0]).all():
        t = np.sort(size, axis=1)[:, ::-1] / omega.flat[0]
        theta = (np.cumsum(t, 1) - r / omega.flat[0] ** 2) / np.arange(1, t.shape[1] + 1, dtype=t.dtype)
        last = np.maximum((theta < t).sum(1) - 1, 0)
        return np.asarray(np.maximum(theta[np.arange(len(t)), last][:, None], 0))
    ratio = size / omega
    order = np.argsort(-ratio, axis=1)
    a, w, t = (np.take_along_axis(np.broadcast_to(x, size.shape), order, 1) for x in (omega * size, omega * omega, ratio))
    theta = (np.cumsum(a, 1) - r) / np.cumsum(w, 1)
    last = np.maximum((theta < t).sum(1) - 1, 0)
    out: Rough = np.maximum(np.take_along_axis(theta, last[:, None], 1), 0)
    return out


# ----------------------------------------------------------------------------------------------- ball and box, and one half-space


def length_multiplier(size: Rough, cap: Rough, radius: float, tolerance: float = 1e-15) -> Rough:
    """μ ≥ 0 with ‖min(size/μ, cap)‖₂ ≈ radius, row by row; 0 where ‖cap‖₂ is below it."""
    mu = np.sqrt((size**2).sum(1)) / radius
    for _ in range(100):
        stopped = size >= mu[:, None] * cap
        left = radius * radius - np.where(stopped, cap * cap, 0).sum(1)
        free = np.sqrt(np.where(stopped, 0, size * size).sum(1))
        new = np.where(free > 0, np.where(left > 0, free / np.sqrt(np.maximum(left, 1e-300)), mu), 0.0)
        new = np.minimum(new, mu)
        if (new >= mu * (1 - tolerance)).all():
            break
        mu = new
    out: Rough = mu
    return out


def peak(region: Region, A: Rough) -> tuple[Rough, Rough]:
    """Roughly (max A·δ, a maximiser) over ball ∩ box, for rows A (R, d)."""
    if region.norm.p == "inf" or not math.isfinite(region.radius):
        mid, half = (region.hi + region.lo) / 2, (region.hi - region.lo) / 2
        v = np.copysign(half, A)
        v += mid
        return A @ mid + np.abs(A) @ half, v
    v = np.where(A > 0, region.hi, np.where(A < 0, region.lo, 0.0))
    if region.norm.p in ("1", "2"):
        size, cap = np.abs(A) / region.scale, np.clip(np.where(A > 0, region.hi, -region.lo) * region.scale, 0, region.radius)
        if region.norm.p == "2":
            mu = length_multiplier(size, cap, region.radius, 1e-9)[:, None]
            take = np.where(mu > 0, np.minimum(size / np.where(mu > 0, mu, 1), cap), cap)
        else:
            order = np.argsort(-size, axis=1)
            caps, take = np.take_along_axis(cap, order, 1), np.empty_like(cap)
            np.put_along_axis(take, order, np.clip(region.radius - np.cumsum(caps, 1) + caps, 0, caps), 1)
        v = np.sign(A) * take / region.scale
    return (A * v).sum(1), v


def cut_multiplier(region: Region, A: Rough) -> Rough:
    """Roughly the γ ≥ 0 (R,) at which max (A − γ a)·δ + γ h over ball ∩ box is least, with a·δ ≤ h the region's cut: where tangents meet, in a bracket."""
    last = region.blocks[-1]
    a, h = region.K.dense_row(last.at.start), float(last.right[0])

    def at(g: Rough) -> tuple[Rough, Rough]:
        top, v = peak(region, A - g[:, None] * a)
        return top + g * h, h - v @ a

    low = np.zeros(len(A))
    low_value, low_slope = at(low)
    best, value, settled = low, low_value, low_slope >= 0
    high, high_value, high_slope = np.full(len(A), np.inf), np.zeros(len(A)), np.zeros(len(A))
    g = 0.5 * np.sqrt((A**2).sum(1)) / (math.sqrt(float(a @ a)) + 1e-300)
    for _ in range(TANGENTS):
        if settled.all():
            break
        here, slope = at(g)
        better, falls = (here < value) & ~settled, slope < 0
        best, value = np.where(better, g, best), np.where(better, here, value)
        low, low_value, low_slope = np.where(falls, g, low), np.where(falls, here, low_value), np.where(falls, slope, low_slope)
        high, high_value, high_slope = np.where(falls, high, g), np.where(falls, high_value, here), np.where(falls, high_slope, slope)
        bounded = np.isfinite(high)
        end = np.where(bounded, high, low + 1)
        meet = (high_value - low_value + low_slope * low - high_slope * end) / np.minimum(low_slope - high_slope, -1e-300)
        g = np.where(bounded, np.clip(meet, low + SHRINK * (end - low), end - SHRINK * (end - low)), 4 * low + 1e-9)
        settled = settled | (end - low <= CLOSE * end) | (bounded & (low_value + low_slope * (meet - low) >= value - CLOSE * np.abs(value)))
    return best
