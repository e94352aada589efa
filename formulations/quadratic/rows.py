"""A matrix that acts on z: dense while small, sparse beyond, and a gather where every row has one entry at most."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from formulations.norms import Array

DENSE = 1 << 18  # entries up to which a dense product beats the overhead of a sparse one


class Rows:
    """M (rows, r): `times(z)` = Mz, `back(u)` = Mᵀu, `gram(k)` = Mᵀdiag(k)M, all in float64."""

    def __init__(self, matrix: Any) -> None:
        self.sparse = sp.csr_matrix(matrix)
        self.sparse.eliminate_zeros()
        self.shape = self.sparse.shape
        counts = np.diff(self.sparse.indptr)
        self.single = bool((counts <= 1).all())  # one entry a row at most: coordinates
        self._col = np.zeros(self.shape[0], dtype=int)
        self._val = np.zeros(self.shape[0])
        if self.single and self.shape[0]:
            self._col[counts == 1], self._val[counts == 1] = self.sparse.indices, self.sparse.data
        small = self.shape[0] * self.shape[1] <= DENSE
        self._matrix = self.dense if small and not self.single else self.sparse
        self._transposed = self._matrix.T if small else self.sparse.T.tocsr()

    @cached_property
    def dense(self) -> Array:
        return np.asarray(self.sparse.toarray())

    def times(self, z: Array) -> Array:
        return self._val * z[self._col] if self.single else np.asarray(self._matrix @ z)

    def back(self, u: Array) -> Array:
        if self.single:
            return self._scatter(self._val * u)
        return np.asarray(self._transposed @ u)

    def _scatter(self, values: Array) -> Array:
        return np.asarray(np.bincount(self._col, values, minlength=self.shape[1]), dtype=np.float64)

    def gram_diagonal(self, k: Array) -> Array:
        """The diagonal of Mᵀdiag(k)M; all of it where `single`."""
        if self.single:
            return self._scatter(k * self._val**2)
        return np.asarray(self.sparse.power(2).T @ k).ravel()

    def gram(self, k: Array) -> Array:
        if self.single:
            return np.diag(self.gram_diagonal(k))
        if isinstance(self._matrix, np.ndarray):
            return np.asarray((self._matrix.T * k) @ self._matrix)
        return np.asarray((self.sparse.T @ sp.diags(k) @ self.sparse).toarray())
