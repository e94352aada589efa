r"""Activations in outward-rounded float64: lines below and above them on proved bounds. It needs numpy and python-flint only.

For *any* slopes, φ(z) ≥ s z + min_{[l,u]}(φ − s·) and φ(z) ≤ s z + max_{[l,u]}(φ − s·): slopes are only a proposal, the intercepts are computed here, on
bounds [l, u] that were proved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flint import arb, ctx

from verification.rechecking.rounding import TINY, Array, Shape, U, widen

__all__ = ["Activation", "Lines", "Rectifier", "Sigmoid", "Tanh", "lines", "tanh_bounds"]


@dataclass(frozen=True, eq=False)
class Lines:
    """s z + t below (low) and above (up) of φ on the bounds; slopes are floats as they are, intercepts are rounded outwards.

    An activation φ, monotone and coordinate by coordinate, has: interval(l, u), bounds of φ over [l, u]; slopes(l, u), good ones for lines below and above;
    least(s, l, u) = min_{[l,u]} (φ(z) − s z), rounded down; most(s, l, u), the maximum, rounded up.
    """

    low: Array
    low_at: Array
    up: Array
    up_at: Array


@dataclass(frozen=True)
class Rectifier:
    """φ(z) = max(z, 0) + negative·min(z, 0): ReLU, and leaky ReLU with `negative` in [0, 1]."""

    shape: Shape
    negative: float = 0.0

    def _value(self, z: Array) -> Array:
        return np.where(z >= 0, z, self.negative * z)

    def interval(self, l: Array, u: Array) -> tuple[Array, Array]:
        low, high = self._value(l), self._value(u)
        return (low, high) if self.negative == 0 else widen(low, high)

    def slopes(self, l: Array, u: Array) -> tuple[Array, Array]:
        """The chord above; below, the side of the smaller triangle."""
        below, above = np.minimum(l, 0), np.maximum(u, 0)
        width = above - below
        up = np.where(width > 0, (above - self.negative * below) / np.where(width > 0, width, 1), self.negative)
        up = np.where(np.isfinite(up), up, 1.0)
        return np.where(up > 0.5, 1.0, self.negative), up

    def least(self, s: Array, l: Array, u: Array) -> Array:
        return -self._extreme(-1, s, l, u)

    def most(self, s: Array, l: Array, u: Array) -> Array:
        return self._extreme(1, s, l, u)

    def _extreme(self, sign: int, s: Array, l: Array, u: Array) -> Array:
        """max of sign·(φ(z) − s z): it is linear on either side of 0."""
        ends = []
        for z in (l, u):
            value, line = self._value(z), s * z
            ends.append(sign * (value - line) + 4 * U * (np.abs(value) + np.abs(line)) + np.where(z == 0, 0.0, TINY))
        best = np.maximum(*ends)
        return np.where((l < 0) & (u > 0), np.maximum(best, 0.0), best)


@dataclass(frozen=True)
class Tanh:
    """φ(z) = tanh z: odd, convex below 0 and concave above. Values are python-flint's, rounded outwards.

    Tangents are drawn from the next multiple of `grid` beyond the bound, a choice as good as any, because auto_LiRPA draws them from there.
    """

    shape: Shape
    grid: float = 0.01

    def interval(self, l: Array, u: Array) -> tuple[Array, Array]:
        return tanh_bounds(l)[0], tanh_bounds(u)[1]

    def slopes(self, l: Array, u: Array) -> tuple[Array, Array]:
        a, b = np.tanh(l), np.tanh(u)
        middle = np.tanh((l + u) / 2)
        chord = np.where(u - l > 1e-6, (b - a) / np.where(u > l, u - l, 1), 1 - middle * middle)
        low = np.where(u <= 0, 1 - middle * middle, np.where(l >= 0, chord, _touching(self._beyond(u))))
        up = np.where(l >= 0, 1 - middle * middle, np.where(u <= 0, chord, _touching(self._beyond(-l))))
        # between: the tangent from the far end, unless it touches outside [l, u], where the chord is the line
        low = np.where((l < 0) & (u > 0) & (1 - a * a >= chord), chord, low)
        up = np.where((l < 0) & (u > 0) & (1 - b * b >= chord), chord, up)
        return low, up

    def _beyond(self, u: Array) -> Array:
        out: Array = (np.floor(np.minimum(u, 1e6) / self.grid) + 1) * self.grid
        return out

    def least(self, s: Array, l: Array, u: Array) -> Array:
        return -self.most(s, -u, -l)  # φ is odd

    def most(self, s: Array, l: Array, u: Array) -> Array:
        """On z ≤ 0 φ is convex: an end. On z ≥ 0 it lies below its tangent at any point z0, and the tangent minus the line is largest at an end."""
        best = np.full(l.shape, -np.inf)
        for z, valid in ((l, l < 0), (np.minimum(u, 0), l < 0)):
            value = tanh_bounds(z)[1] - s * z
            best = np.where(valid, np.maximum(best, value + 4 * U * (1 + np.abs(s * z))), best)
        p, q = np.maximum(l, 0), np.maximum(u, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            z0 = np.arctanh(np.sqrt(np.clip(1 - s, 0, 1)))  # φ'(z0) = s
        z0 = np.clip(np.where(np.isfinite(z0), z0, q), p, q)
        below, above = tanh_bounds(z0)
        d_low, d_high = 1 - above * above - 4 * U, 1 - below * below + 4 * U  # bounds of φ'(z0), z0 ≥ 0
        for z in (p, q):
            turn = np.where(z >= z0, d_high, d_low) * (z - z0)
            value = above + turn - s * z + 8 * U * (1 + np.abs(turn) + np.abs(s * z))
            best = np.where((u > 0) | (l >= 0), np.maximum(best, value), best)
        return best


@dataclass(frozen=True)
class Sigmoid:
    """φ(z) = 1/(1 + e^−z) = ½ + ½ tanh(z/2)."""

    shape: Shape

    def interval(self, l: Array, u: Array) -> tuple[Array, Array]:
        low, high = Tanh(self.shape).interval(l / 2, u / 2)
        return widen(0.5 + low / 2, 0.5 + high / 2)

    def slopes(self, l: Array, u: Array) -> tuple[Array, Array]:
        low, up = Tanh(self.shape, 0.005).slopes(l / 2, u / 2)
        return low / 4, up / 4

    def least(self, s: Array, l: Array, u: Array) -> Array:
        return np.nextafter(0.5 + Tanh(self.shape).least(4 * s, l / 2, u / 2) / 2, -np.inf)

    def most(self, s: Array, l: Array, u: Array) -> Array:
        return np.nextafter(0.5 + Tanh(self.shape).most(4 * s, l / 2, u / 2) / 2, np.inf)


Activation = Rectifier | Tanh | Sigmoid


def lines(layer: Activation, l: Array, u: Array, drawn: tuple[Array, Array]) -> Lines:
    """The layer's own choice of slopes on the bounds `drawn`, proved on [l, u]."""
    low, up = layer.slopes(*drawn)
    return Lines(low, layer.least(low, l, u), up, layer.most(up, l, u))


def _touching(u: Array) -> Array:
    """The slope of the tangent of tanh at some d ≤ 0 that passes through (u, tanh u) or just below it, u ≥ 0."""
    u = np.maximum(u, 0)
    target, low, high = np.tanh(u), -u - 20, np.zeros_like(u)
    for _ in range(60):
        d = (low + high) / 2
        t = np.tanh(d)
        under = t + (1 - t * t) * (u - d) <= target
        low, high = np.where(under, d, low), np.where(under, high, d)
    out: Array = 1 - np.tanh(low) ** 2
    return out


def tanh_bounds(z: Array) -> tuple[Array, Array]:
    """Floats around tanh z."""
    low, high = np.empty(z.shape), np.empty(z.shape)
    before, ctx.prec = ctx.prec, 80
    try:
        for i, v in np.ndenumerate(z):
            if not -40 < v < 40:
                low[i], high[i] = (-1.0, 1.0) if v != v else (-1.0, -1 + 2 * U) if v < 0 else (1 - 2 * U, 1.0)
            else:
                t = arb(float(v)).tanh()
                low[i], high[i] = float(t.lower()), float(t.upper())
    finally:
        ctx.prec = before
    return np.maximum(np.nextafter(low, -np.inf), -1.0), np.minimum(np.nextafter(high, np.inf), 1.0)
