"""Box(lower, upper) = {z : lower ≤ z ≤ upper}."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Array
from formulations.pieces import BoxPiece, Part
from formulations.sets.base import ConvexSet, on_input, vector


class Box(ConvexSet):
    """``{z : lower ≤ z ≤ upper}``, entries may be infinite; scalars fit any dimension. Over the input unless said otherwise.

    Raises InputError when some lower exceeds its upper, or a bound is NaN.
    """

    def __init__(self, lower: ArrayLike, upper: ArrayLike, *, on: str = "input", name: str = "box") -> None:
        lo, hi = vector("Box: lower", lower, allow_infinite=True), vector("Box: upper", upper, allow_infinite=True)
        sizes = {v.size for v in (lo, hi) if v.ndim}
        if len(sizes) > 1:
            raise InputError(f"Box: lower has {lo.size} entries and upper has {hi.size}; give one bound per feature.")
        self.dim = sizes.pop() if sizes else None
        self.lower, self.upper = np.broadcast_arrays(lo.ravel() if lo.ndim else lo, hi.ravel() if hi.ndim else hi)
        bad = np.flatnonzero(~(self.lower <= self.upper) | (self.lower == INF) | (self.upper == -INF))
        if len(bad):
            i = int(bad[0])
            low, high = self.lower.ravel()[i], self.upper.ravel()[i]
            raise InputError(f"Box: lower[{i}]={low} exceeds upper[{i}]={high}; the set is empty, swap or widen them.")
        self.on, self.name = on_input(on), name

    def bounds(self, dim: int) -> tuple[Array, Array]:
        self.check_dim(dim)
        return np.broadcast_to(self.lower, (dim,)).astype(float), np.broadcast_to(self.upper, (dim,)).astype(float)

    def parts(self, dim: int) -> tuple[Part, ...]:
        lo, hi = self.bounds(dim)
        return (Part(self.name, BoxPiece(lo, hi), self.on),)

    def support(self, a: ArrayLike) -> float:
        v = np.asarray(a, dtype=float)
        lo, hi = self.bounds(len(v))
        with np.errstate(invalid="ignore"):
            return float(np.where(v > 0, v * hi, np.where(v < 0, v * lo, 0.0)).sum())

    def project(self, v: ArrayLike) -> Array:
        p = np.asarray(v, dtype=float)
        return np.asarray(np.clip(p, *self.bounds(len(p))))

    def describe(self) -> str:
        lo, hi = np.min(self.lower), np.max(self.upper)
        return (
            f"every coordinate of the {self.on} within [{lo:g}, {hi:g}]"
            if self.dim is None
            else f"{self.dim} coordinate ranges of the {self.on}"
        )

    def __repr__(self) -> str:
        return f"Box({self.lower}, {self.upper})" if self.dim is None else f"Box(d={self.dim})"
