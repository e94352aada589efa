r"""Layers in outward-rounded float64: what level B of the checker needs of each, and why every number errs on the safe side. It needs numpy and python-flint only.

Arithmetic. u = 2^-53, one rounding. A sum of n products in any order, fused or not, is off by at most γ_n Σ|a||b|, γ_n = n u/(1 − n u) (Higham 2002,
§3.1), plus n·TINY where products underflow or are flushed. Error terms are sums of non-negative numbers, themselves rounded: they are multiplied by
INFLATE, which covers 2^22 roundings. Overflow ends in inf or NaN, and such a bound is worth nothing.

Affine layers. y = W x + t with |W − Ŵ| ≤ θ|Ŵ| and |t − t̂| ≤ τ: Ŵ, t̂ are floats, θ, τ cover the roundings in them (batch norm, average pooling).
Pushing a row A back, Â = fl(A Ŵ) is *taken as the coefficient*: any coefficient will do. What it misses of A W x is at most

    κ · |A| (|Ŵ| |x|),      κ = γ_m + θ (1 + γ_m),   m terms in an entry of A Ŵ

and, with bounds of |x| over the region, goes into the constant. So coefficients stay plain floats and all error is one number per row.

Activations φ. For *any* slopes, φ(z) ≥ s z + min_{[l,u]}(φ − s·) and φ(z) ≤ s z + max_{[l,u]}(φ − s·): slopes are only a proposal, the intercepts are computed
here, on bounds [l, u] that were proved here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

__all__ = [
    "Activation", "Add", "Affine", "Conv", "Dense", "Lines", "MaxPool", "Rectifier", "Reshape", "Scale", "Sigmoid", "Tanh", "gamma", "lines", "widen",
]  # fmt: skip

Array = NDArray[np.float64]
Shape = tuple[int, ...]
U = 2.0**-53
TINY = 2.0**-1000
INFLATE = 1 + 2.0**-30
MAX_TERMS = 1 << 22


def gamma(n: int) -> float:
    """An upper bound of γ_n."""
    if n > MAX_TERMS:
        raise OverflowError(f"{n} terms in one sum")
    return n * U * INFLATE


def widen(lo: Array, hi: Array) -> tuple[Array, Array]:
    """One step outwards; NaN becomes infinite."""
    low, high = np.nextafter(lo, -np.inf), np.nextafter(hi, np.inf)
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


# ------------------------------------------------------------------------------------------------------------------ affine layers


@dataclass(frozen=True, eq=False)
class Affine:
    """y = W x + t. `terms`: products in one output; `back_terms`: in one entry of A W; θ, τ as above. Subclasses apply W; arrays are (batch, *shape)."""

    shape_in: Shape
    shape: Shape
    terms: int = 0
    back_terms: int = 0
    theta: float = 0.0
    shift: Array | None = None
    tau: Array | None = None

    def apply(self, x: Array, absolute: bool = False) -> Array:
        """Ŵ x, or |Ŵ| x, in floats."""
        raise NotImplementedError

    def back(self, A: Array) -> Array:
        """A Ŵ in floats."""
        raise NotImplementedError

    def spread(self, size: Array) -> Array:
        """|Ŵ| size (*shape), rounded up, for size ≥ 0 (*shape_in)."""
        out: Array = self.apply(size[None], absolute=True)[0] * INFLATE + self.terms * TINY
        return out

    def interval(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Bounds of y over lo ≤ x ≤ hi."""
        middle = lo + (hi - lo) / 2
        half = np.maximum(hi - middle, middle - lo) * INFLATE
        y, size = self.apply(middle[None])[0], np.abs(middle)
        error = self.spread(half + (gamma(self.terms + 1) + self.theta * 1.01) * (size + half))
        if self.shift is not None:
            y = y + self.shift
            error = error + 2 * U * (np.abs(self.shift) + np.abs(y)) + (0 if self.tau is None else self.tau)
        return widen(y - error * INFLATE - TINY, y + error * INFLATE + TINY)


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """W (out, in) along the last axis."""

    W: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @staticmethod
    def of(W: Array, shift: Array | None, shape_in: Shape) -> Dense:
        shape = (*shape_in[:-1], W.shape[0])
        return Dense(shape_in, shape, W.shape[1], W.shape[0], 0.0, None if shift is None else np.broadcast_to(shift, shape), None, W)

    def apply(self, x: Array, absolute: bool = False) -> Array:
        out: Array = x @ (np.abs(self.W) if absolute else self.W).T
        return out

    def back(self, A: Array) -> Array:
        out: Array = A @ self.W
        return out


@dataclass(frozen=True, eq=False)
class Conv(Affine):
    """Cross-correlation in two dimensions: W (groups, out/groups, in/groups, kh, kw), zero padding (top, bottom, left, right)."""

    W: Array = field(default_factory=lambda: np.zeros((0, 0, 0, 0, 0)))
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @staticmethod
    def of(
        W: Array, shift: Array | None, shape_in: Shape, *, groups: int, stride: tuple[int, int], dilation: tuple[int, int],
        pads: tuple[int, int, int, int], theta: float = 0.0,
    ) -> Conv:  # fmt: skip
        """W (out, in/groups, kh, kw) as the file holds it. Raises ValueError where the shapes do not fit."""
        out, each, kh, kw = W.shape
        c, h, w = shape_in
        rows = (h + pads[0] + pads[1] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
        columns = (w + pads[2] + pads[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
        if c != each * groups or out % groups or min(rows, columns, *stride, *dilation) < 1 or min(pads) < 0:
            raise ValueError(f"a kernel {W.shape} does not fit {shape_in}")
        shape = (out, rows, columns)
        offset = None if shift is None else np.broadcast_to(shift[:, None, None], shape)
        kernel = W.reshape(groups, out // groups, each, kh, kw)
        return Conv(shape_in, shape, each * kh * kw, out // groups * kh * kw, theta, offset, None, kernel, stride, dilation, pads)

    def _places(self) -> list[tuple[int, int, slice, slice]]:
        """(i, j, rows, columns) of the padded input that kernel entry (i, j) meets."""
        _, ho, wo = self.shape
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return [(i, j, slice(i * dh, i * dh + sh * (ho - 1) + 1, sh), slice(j * dw, j * dw + sw * (wo - 1) + 1, sw))
                for i in range(self.W.shape[3]) for j in range(self.W.shape[4])]  # fmt: skip

    def apply(self, x: Array, absolute: bool = False) -> Array:
        (top, bottom, left, right), g = self.pads, self.W.shape[0]
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        out, W = np.zeros((len(x), g, self.W.shape[1], self.shape[1] * self.shape[2]), x.dtype), np.abs(self.W) if absolute else self.W
        for i, j, rows, columns in self._places():
            out += W[:, :, :, i, j] @ padded[:, :, rows, columns].reshape(len(x), g, self.W.shape[2], -1)
        return out.reshape(len(x), *self.shape)

    def back(self, A: Array) -> Array:
        (top, bottom, left, right), (c, h, w), g = self.pads, self.shape_in, self.W.shape[0]
        padded, rows_of = np.zeros((len(A), c, h + top + bottom, w + left + right)), A.reshape(len(A), g, self.W.shape[1], -1)
        for i, j, rows, columns in self._places():
            part = self.W[:, :, :, i, j].transpose(0, 2, 1) @ rows_of
            padded[:, :, rows, columns] += part.reshape(len(A), c, *self.shape[1:])
        return padded[:, :, top : top + h, left : left + w]


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """y = c ⊙ x + t, c of x's shape: batch norm, and the division of average pooling."""

    c: Array = field(default_factory=lambda: np.zeros(0))

    @staticmethod
    def of(c: Array, shift: Array | None, tau: Array | None, theta: float) -> Scale:
        return Scale(c.shape, c.shape, 1, 1, theta, shift, tau, c)

    @staticmethod
    def batch_norm(mean: Array, variance: Array, eps: float, weight: Array, bias: Array, shape_in: Shape) -> Scale:
        """(x − mean)/√(variance + eps)·weight + bias, channel by channel; six roundings in the slope, two more in the shift."""
        slope = weight / np.sqrt(variance + eps)
        shift = bias - mean * slope
        tau = 16 * U * (np.abs(bias) + np.abs(mean * slope)) + TINY
        wide = (slice(None), *(None,) * (len(shape_in) - 1))
        full = [np.ascontiguousarray(np.broadcast_to(v[wide], shape_in)) for v in (slope, shift, tau)]
        return Scale.of(full[0], full[1], full[2], 8 * U)

    def apply(self, x: Array, absolute: bool = False) -> Array:
        return x * (np.abs(self.c) if absolute else self.c)

    def back(self, A: Array) -> Array:
        return A * self.c


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """The same numbers in another shape."""

    def apply(self, x: Array, absolute: bool = False) -> Array:
        return x.reshape(len(x), *self.shape)

    def back(self, A: Array) -> Array:
        return A.reshape(len(A), *self.shape_in)


@dataclass(frozen=True)
class Add:
    """The sum of two values of one shape: a residual connection."""

    shape: Shape


# -------------------------------------------------------------------------------------------------------------------- activations


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


# -------------------------------------------------------------------------------------------------------------------- max pooling


@dataclass(frozen=True, eq=False)
class MaxPool:
    """y_o = max_j x_{index[o, j]}, index (outputs, window) into the flat input; −1 is padding, which never wins."""

    shape_in: Shape
    shape: Shape
    index: NDArray[np.intp]

    @staticmethod
    def of(shape_in: Shape, kernel: tuple[int, int], stride: tuple[int, int], pads: tuple[int, int], dilation: tuple[int, int]) -> MaxPool:
        c, h, w = shape_in
        place = np.pad(np.arange(c * h * w).reshape(c, h, w), ((0, 0), (pads[0],) * 2, (pads[1],) * 2), constant_values=-1)
        rows = (h + 2 * pads[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
        columns = (w + 2 * pads[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
        if min(rows, columns, *stride, *dilation, *kernel) < 1:
            raise ValueError(f"a window {kernel} does not fit {shape_in}")
        windows = [place[:, i * dilation[0] : i * dilation[0] + stride[0] * (rows - 1) + 1 : stride[0],
                         j * dilation[1] : j * dilation[1] + stride[1] * (columns - 1) + 1 : stride[1]].ravel()
                   for i in range(kernel[0]) for j in range(kernel[1])]  # fmt: skip
        index = np.stack(windows, 1)
        if (index < 0).all(1).any():
            raise ValueError("a window holds padding only")
        return MaxPool(shape_in, (c, rows, columns), index)

    def _gather(self, v: Array) -> Array:
        out: Array = np.where(self.index >= 0, v.ravel()[self.index], -np.inf)
        return out

    def interval(self, l: Array, u: Array) -> tuple[Array, Array]:
        return self._gather(l).max(1).reshape(self.shape), self._gather(u).max(1).reshape(self.shape)

    def choice(self, l: Array, u: Array) -> tuple[NDArray[np.intp], NDArray[np.bool_], Array]:
        """(the input with the largest lower bound, per output; is it the maximum everywhere?; the largest upper bound).

        max_j x_j ≥ x_i for every i; and ≤ x_i where l_i ≥ all other u_j, else ≤ max_j u_j.
        """
        low, high = self._gather(l), self._gather(u)
        first = low.argmax(1)
        rows = np.arange(len(first))
        others = high.copy()
        others[rows, first] = -np.inf
        return self.index[rows, first], low[rows, first] >= others.max(1), high.max(1)
