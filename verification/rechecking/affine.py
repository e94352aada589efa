r"""Affine layers in outward-rounded float64: what level B of the checker needs of each, and why every number errs on the safe side. It needs numpy only.

y = W x + t with |W − Ŵ| ≤ θ|Ŵ| and |t − t̂| ≤ τ: Ŵ, t̂ are floats, θ, τ cover the roundings in them (batch norm, average pooling). Pushing a row A back,
Â = fl(A Ŵ) is *taken as the coefficient*: any coefficient will do. What it misses of A W x is at most

    κ · |A| (|Ŵ| |x|),      κ = γ_m + θ (1 + γ_m),   m terms in an entry of A Ŵ

and, with bounds of |x| over the region, goes into the constant. So coefficients stay plain floats and all error is one number per row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from verification.rechecking.rounding import INFLATE, TINY, Array, Shape, U, gamma, widen
from verification.rechecking.sliding import Sliding

__all__ = ["Add", "Affine", "Conv", "Dense", "Reshape", "Scale"]


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
        """Bounds of y over lo ≤ x ≤ hi: W middle ± |W| half, and what floats miss of both: 2γ + θ, and some roundings more, of |W|(|middle| + half)."""
        middle = lo + (hi - lo) / 2
        half = np.nextafter(np.maximum(hi - middle, middle - lo), np.inf)
        y, (width, size) = self.apply(middle[None])[0], self.apply(np.stack([half, np.abs(middle) + half]), absolute=True)
        error = width + (2 * gamma(self.terms + 6) + 1.01 * self.theta) * size * INFLATE + 2 * (self.terms + 2) * TINY
        if self.shift is not None:
            y = y + self.shift
            error = error + 4 * U * (np.abs(self.shift) + np.abs(y)) + (0 if self.tau is None else self.tau * INFLATE)
        return widen(y - error, y + error)


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
    """Cross-correlation in two dimensions: W (groups, out/groups, in/groups, kh, kw), zero padding."""

    W: Array = field(default_factory=lambda: np.zeros((0, 0, 0, 0, 0)))
    sliding: Sliding = field(default_factory=lambda: Sliding((1, 1)))

    @staticmethod
    def of(W: Array, shift: Array | None, shape_in: Shape, sliding: Sliding, groups: int) -> Conv:
        """W (out, in/groups, kh, kw) as the file holds it. Raises ValueError where the shapes do not fit."""
        out, each, kh, kw = W.shape
        c, h, w = shape_in
        if c != each * groups or out % groups or sliding.kernel != (kh, kw):
            raise ValueError(f"a kernel {W.shape} does not fit {shape_in}")
        shape = (out, *sliding.outputs(h, w))
        offset = None if shift is None else np.broadcast_to(shift[:, None, None], shape)
        kernel = W.reshape(groups, out // groups, each, kh, kw)
        return Conv(shape_in, shape, each * kh * kw, out // groups * kh * kw, 0.0, offset, None, kernel, sliding)

    def apply(self, x: Array, absolute: bool = False) -> Array:
        (top, bottom, left, right), g = self.sliding.pads, self.W.shape[0]
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        out, W = np.zeros((len(x), g, self.W.shape[1], self.shape[1] * self.shape[2]), x.dtype), np.abs(self.W) if absolute else self.W
        for i, j, rows, columns in self.sliding.entries(*self.shape[1:]):
            out += W[:, :, :, i, j] @ padded[:, :, rows, columns].reshape(len(x), g, self.W.shape[2], -1)
        return out.reshape(len(x), *self.shape)

    def fold(self, A: Array) -> Array:
        """A Ŵ for rows over a block of outputs (R, channels, rows, columns): rows over the block of padded inputs that they look at."""
        g, (rows, columns) = self.W.shape[0], A.shape[2:]
        out, heads = np.zeros((len(A), self.shape_in[0], *self.sliding.grown(rows, columns))), A.reshape(len(A), g, self.W.shape[1], -1)
        for i, j, down, across in self.sliding.entries(rows, columns):
            part = self.W[:, :, :, i, j].transpose(0, 2, 1) @ heads
            out[:, :, down, across] += part.reshape(len(A), -1, rows, columns)
        return out

    def back(self, A: Array) -> Array:
        return self.sliding.cropped(self.fold(A), self.shape_in)


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

    def interval(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        return lo.reshape(self.shape), hi.reshape(self.shape)

    def apply(self, x: Array, absolute: bool = False) -> Array:
        return x.reshape(len(x), *self.shape)

    def back(self, A: Array) -> Array:
        return A.reshape(len(A), *self.shape_in)


@dataclass(frozen=True)
class Add:
    """The sum of two values of one shape: a residual connection."""

    shape: Shape
