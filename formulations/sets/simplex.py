"""Simplex(total) = {z ≥ 0, Σ z = total}: mixtures, shares, relaxed one-hot vectors."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.given import whole
from formulations.norms import Array
from formulations.pieces import BoxPiece, Part, RowsPiece
from formulations.sets.base import ConvexSet, level, on_input


class Simplex(ConvexSet):
    """``{z : z ≥ 0, Σ_i z_i = total}`` in `dim` dimensions, over the input unless said otherwise. Multipliers: the box (2, d) under
    `name`, the free one of the sum under `name_sum`."""

    def __init__(self, dim: int, total: float = 1.0, *, on: str = "input", name: str = "simplex") -> None:
        self.dim, self.total = whole("Simplex: dim", dim), level("Simplex: total", total)
        if self.dim < 1:
            raise InputError(f"Simplex: dim={dim} must be at least 1.")
        self.on, self.name = on_input(on), name
        self._row = sp.csr_matrix(np.ones((1, self.dim)))

    def parts(self, dim: int) -> tuple[Part, ...]:
        self.check_dim(dim)
        box = BoxPiece(np.zeros(dim), np.full(dim, self.total))
        return (
            Part(self.name, box, self.on),
            Part(f"{self.name}_sum", RowsPiece(self._row, np.array([self.total]), equality=True), self.on),
        )

    def support(self, a: ArrayLike) -> float:
        return self.total * float(np.max(np.asarray(a, dtype=float)))

    def project(self, v: ArrayLike) -> Array:
        """Threshold at θ with Σ max(v − θ, 0) = total (Held, Wolfe, Crowder 1974)."""
        p = np.asarray(v, dtype=float)
        u = np.sort(p)[::-1]
        theta = (np.cumsum(u) - self.total) / np.arange(1, len(p) + 1)
        k = int(np.flatnonzero(u > theta)[-1]) if self.total > 0 else 0
        return np.maximum(p - theta[k], 0.0) if self.total > 0 else np.zeros_like(p)

    def describe(self) -> str:
        return f"{self.dim} non-negative coordinates of the {self.on} that sum to {self.total:g}"

    def __repr__(self) -> str:
        return f"Simplex({self.dim}, total={self.total:g})"
