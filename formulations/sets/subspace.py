"""Subspace(directions) = the span of allowed directions of change; Frozen(features) = the common case of features that do not move."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.given import whole, wholes
from formulations.norms import INF, Array
from formulations.pieces import BoxPiece, Part, RowsPiece
from formulations.sets.base import ConvexSet, vector


class Subspace(ConvexSet):
    """``{δ : δ = Σ_j t_j d_j}`` for `directions` d_j (k, d), over the change. As rows: N δ = 0 with N an orthonormal basis of the complement.

    Raises InputError when no direction is given or all are zero (then nothing may change: use Frozen).
    """

    on = "change"

    def __init__(self, directions: ArrayLike, *, name: str = "subspace") -> None:
        D = np.atleast_2d(vector("Subspace: directions", directions))
        if not np.any(D):
            raise InputError("Subspace: every direction is zero; use Frozen(features) to hold features still.")
        self.dim, self.name = D.shape[1], name
        complement = scipy.linalg.null_space(D).T
        self.rank = self.dim - len(complement)
        self._rows = sp.csr_matrix(complement) if len(complement) else None

    def parts(self, dim: int) -> tuple[Part, ...]:
        self.check_dim(dim)
        if self._rows is None:
            return ()
        return (Part(self.name, RowsPiece(self._rows, np.zeros(self._rows.shape[0]), equality=True), "change"),)

    def project(self, v: ArrayLike) -> Array:
        p = np.asarray(v, dtype=float)
        return p.copy() if self._rows is None else np.asarray(p - self._rows.T @ (self._rows @ p))

    def support(self, a: ArrayLike) -> float:
        v = np.asarray(a, dtype=float)
        return 0.0 if np.abs(self.project(v)).max(initial=0) <= 1e-12 * max(1.0, np.abs(v).max(initial=0)) else INF

    def describe(self) -> str:
        return f"changes within a {self.rank}-dimensional subspace of {self.dim} features"

    def __repr__(self) -> str:
        return f"Subspace(rank {self.rank} of {self.dim})"


class Frozen(ConvexSet):
    """``{δ : δ_i = 0 for every i in features}`` in `dim` dimensions, over the change."""

    on = "change"

    def __init__(self, features: Iterable[int], dim: int, *, name: str = "frozen") -> None:
        index = np.unique(np.asarray(wholes("Frozen: features", features), dtype=int))
        dim = whole("Frozen: dim", dim)
        if len(index) and not (index[0] >= 0 and index[-1] < dim):
            raise InputError(f"Frozen: feature {index[0] if index[0] < 0 else index[-1]} is not one of 0 … {dim - 1}.")
        self.features, self.dim, self.name = index, dim, name

    def parts(self, dim: int) -> tuple[Part, ...]:
        self.check_dim(dim)
        reach = np.full(dim, INF)
        reach[self.features] = 0.0
        return (Part(self.name, BoxPiece(-reach, reach), "change"),)

    def project(self, v: ArrayLike) -> Array:
        p = np.array(v, dtype=float)
        p[self.features] = 0.0
        return p

    def support(self, a: ArrayLike) -> float:
        return INF if np.any(np.delete(np.asarray(a, dtype=float), self.features)) else 0.0

    def describe(self) -> str:
        return f"{len(self.features)} of {self.dim} features held still"

    def __repr__(self) -> str:
        return f"Frozen({len(self.features)} of {self.dim})"
