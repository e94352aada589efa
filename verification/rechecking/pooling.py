r"""Max pooling: linear bounds of a maximum on proved bounds. It needs numpy only.

y = max_j x_j over a window, l ≤ x ≤ u. Below, y ≥ x_i for every i: the input with the largest lower bound is taken. Above, for any slopes 0 ≤ s_j ≤ 1,

    y ≤ Σ_j s_j x_j + t,     t = max_j (u_j − s_j (u_j − l_j)) − Σ_j s_j l_j,

since max_j x_j − Σ s x is largest where all x_i are l_i but the x_j that is the maximum, which is u_j. Slopes are only a proposal: 1 for the input that is the
maximum everywhere; 0, so that t = max u; or, where windows overlap or do not tile the image, (u_j − γ)₊/(u_j − l_j) with γ = max l, if that is nearer at the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verification.rechecking.rounding import INFLATE, TINY, Array, Shape, gamma
from verification.rechecking.sliding import Sliding

__all__ = ["MaxPool", "PoolLines"]


@dataclass(frozen=True, eq=False)
class PoolLines:
    """Slopes below and above (window, *shape) and the intercept above (*shape), rounded up; there is none below."""

    low: Array
    up: Array
    up_at: Array


@dataclass(frozen=True, eq=False)
class MaxPool:
    """y_o = max_j x_{index[o, j]}, index (outputs, window) into the flat input; −1 is padding, which never wins."""

    shape_in: Shape
    shape: Shape
    index: NDArray[np.intp]
    sliding: Sliding

    @staticmethod
    def of(shape_in: Shape, sliding: Sliding) -> MaxPool:
        """Raises ValueError where the shapes do not fit, or a window holds padding only."""
        c, h, w = shape_in
        top, bottom, left, right = sliding.pads
        place = np.pad(np.arange(c * h * w).reshape(c, h, w), ((0, 0), (top, bottom), (left, right)), constant_values=-1)
        rows, columns = sliding.outputs(h, w)
        index = np.stack([place[:, down, across].ravel() for _, _, down, across in sliding.entries(rows, columns)], 1)
        if (index < 0).all(1).any():
            raise ValueError("a window holds padding only")
        return MaxPool(shape_in, (c, rows, columns), index, sliding)

    @property
    def tiles(self) -> bool:
        """Do the windows tile the image?"""
        _, h, w = self.shape_in
        s = self.sliding
        return s.stride == s.kernel and not any(s.pads) and s.dilation == (1, 1) and h % s.kernel[0] == 0 and w % s.kernel[1] == 0

    def windows(self, v: Array, outside: float) -> Array:
        """v (*shape_in) as the windows see it: (window, *shape), `outside` where there is padding."""
        out: Array = np.where(self.index >= 0, v.ravel()[self.index], outside).T.reshape(-1, *self.shape)
        return out

    def interval(self, l: Array, u: Array) -> tuple[Array, Array]:
        return self.windows(l, -np.inf).max(0), self.windows(u, -np.inf).max(0)

    def lines(self, l: Array, u: Array) -> PoolLines:
        low, high = self.windows(l, -np.inf), self.windows(u, -np.inf)
        first, top, most = low.argmax(0)[None], low.max(0), high.max(0)
        chosen = np.arange(len(low)).reshape(-1, 1, 1, 1) == first
        alone = top >= np.where(chosen, -np.inf, high).max(0)  # then the maximum is that input, wherever x is
        up, up_at = np.where(alone, chosen * 1.0, 0.0), np.where(alone, 0.0, most)
        if not self.tiles:
            with np.errstate(all="ignore"):  # bounds that are not finite end in NaN, which is never nearer
                slope, at, near = self._sloped(low, high, top, most)
            up, up_at = np.where(near & ~alone, slope, up), np.where(near & ~alone, at, up_at)
        return PoolLines(chosen * 1.0, up, up_at)

    def _sloped(self, low: Array, high: Array, top: Array, most: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """(slopes, intercept, is it nearer at the middle than max u?) of the line above."""
        real = self.windows(np.ones(self.shape_in), 0.0) > 0  # no padding
        width = np.where(real, high - low, 1.0)
        slope = np.where(real & (high > top), np.clip((high - top) / np.where(width > 0, width, 1.0), 0, 1), 0.0)
        base, size = np.where(real, low, 0.0), np.where(real, np.abs(low) + np.abs(high), 0.0)
        at = np.where(real, high - slope * width, -np.inf).max(0) - (slope * base).sum(0)
        at = at + gamma(len(low) + 6) * ((slope * size).sum(0) + 2 * size.max(0)) * INFLATE + TINY
        return slope, at, (slope * (base + width / 2)).sum(0) + at < most

    def fold(self, A: Array, low: Array, up: Array) -> Array:
        """Rows A (R, channels, rows, columns) over a block of outputs, through lines with slopes (window, …) for A ≥ 0 and A < 0: rows over the padded inputs."""
        rows, columns = A.shape[2:]
        out = np.zeros((*A.shape[:2], *self.sliding.grown(rows, columns)))
        for n, (_, _, down, across) in enumerate(self.sliding.entries(rows, columns)):
            out[:, :, down, across] += A * np.where(A >= 0, low[n], up[n])
        return out
