r"""(diag(w) + Kᵀ Ω K) x = r for a batch of weights over one sparse K: Cholesky factors of block-tridiagonal matrices. Ω is diagonal but for chosen pairs of rows.

Reverse Cuthill–McKee brings the entries of KᵀK near the diagonal (those of a grid into bands as wide as its short side). With blocks as wide as the band

    A₁ = L₁L₁ᵀ        B_k = A_{k+1,k} L_k⁻ᵀ        A_{k+1} − B_k B_kᵀ = L_{k+1}L_{k+1}ᵀ

so that d coordinates in blocks of s cost d s² in place of d³, in d/s steps that each serve the whole batch. Rows of K with many entries would fill the bands:
they are left to the caller (`full`), as a border.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

FULL = 16  # entries of a row of K above which it is left to the caller
LEAST = 16  # size of a block, that there be few steps


@dataclass(frozen=True, eq=False)
class Bands:
    """Where diag(w) + Kᵀ Ω K has its entries, without the rows `full` (f,) of K.

    size s of a block and their number; place (d,) of each coordinate; entry (e,) places of the lower entries in the blocks' storage, all diagonal blocks first;
    weigh (e, d + m + l): from w, Ω's diagonal and its entries at the pairs to the entries.
    """

    full: Tensor
    size: int
    blocks: int
    place: Tensor
    entry: Tensor
    weigh: Tensor

    @staticmethod
    def of(K: sp.csr_matrix, device: torch.device, pairs: np.ndarray | None = None) -> Bands:
        """The bands of K (m, d), where Ω has entries at `pairs` (2, l) of rows too, none of them full."""
        m, d = K.shape
        count = np.diff(K.indptr)
        thin = (sp.diags((count <= FULL).astype(float)) @ K).tocsr()
        thin.eliminate_zeros()
        i, j = np.zeros((2, 0), dtype=np.int64) if pairs is None else pairs
        meet = sp.identity(m) + sp.csr_matrix((np.ones(2 * len(i)), (np.append(i, j), np.append(j, i))), shape=(m, m))
        pattern = (abs(thin.T) @ meet @ abs(thin) + sp.identity(d)).tocsr()
        place = np.empty(d, dtype=np.int64)
        place[reverse_cuthill_mckee(pattern, symmetric_mode=True)] = np.arange(d)
        row, column = pattern.nonzero()
        size = max(int(np.abs(place[row] - place[column]).max()), min(LEAST, d))
        blocks = -(-d // size)
        row, column, weight, value = _lower_entries(thin, place, i, j)
        key, entry = np.unique(row * d + column, return_inverse=True)
        row, column = key // d, key % d
        block = column // size + blocks * (row // size - column // size)  # a diagonal block, or the one below it
        weigh = sp.csr_matrix((value, (entry, weight)), shape=(len(key), d + m + len(i)))
        with warnings.catch_warnings():  # torch calls the format "beta", once per process
            warnings.simplefilter("ignore", UserWarning)
            indptr, indices = (torch.as_tensor(v.astype(np.int64), device=device) for v in (weigh.indptr, weigh.indices))
            by = torch.sparse_csr_tensor(indptr, indices, torch.as_tensor(weigh.data, device=device), weigh.shape)
        where = torch.as_tensor((block * size + row % size) * size + column % size, device=device)
        full = torch.as_tensor(np.flatnonzero(count > FULL), device=device)
        return Bands(full, size, blocks, torch.as_tensor(place, device=device), where, by)

    def storage(self, count: int, like: Tensor) -> Tensor:
        """Room for the blocks of `count` matrices, to be handed to `factor` again and again: the same entries are written each time."""
        s, n = self.size, self.blocks
        room = like.new_zeros(count, 2 * n - 1, s, s)
        spare = torch.arange(len(self.place) % s or s, s, device=like.device)
        room[:, n - 1, spare, spare] = 1.0
        return room

    def factor(self, weights: Tensor, room: Tensor) -> Factor:
        """Of weights (R, d + m + l), those of full rows left out of account; `room` for at least R."""
        n, room = self.blocks, room[: len(weights)]
        room.flatten(1)[:, self.entry] = (self.weigh @ weights.T).T
        lower: list[Tensor] = []
        below: list[Tensor] = []
        failed = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
        for k in range(n):
            A = torch.baddbmm(room[:, k], below[-1], below[-1].mT, alpha=-1) if k else room[:, k]
            L, info = torch.linalg.cholesky_ex(A)
            failed |= info != 0
            lower.append(L)
            if k < n - 1:
                below.append(torch.linalg.solve_triangular(L, room[:, n + k].mT, upper=False).mT)
        return Factor.of(self, torch.stack(lower), torch.stack(below) if below else room[:, :0].transpose(0, 1), failed)


@dataclass(frozen=True, eq=False)
class Factor:
    """L⁻¹ of each block (blocks, R, s, s), and −L_{k+1}⁻¹B_k and −L_k⁻ᵀB_kᵀ, so that a solution is two products for all blocks at once and a chain of two
    small ones a block. `failed` (R,): not positive definite in floating point, so that what `solve` says of it is worth nothing.
    """

    bands: Bands
    inverse: Tensor
    down: Tensor
    up: Tensor
    failed: Tensor

    @staticmethod
    def of(bands: Bands, lower: Tensor, below: Tensor, failed: Tensor) -> Factor:
        one = torch.eye(bands.size, dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, one.expand_as(lower), upper=False)
        return Factor(bands, inverse, -(inverse[1:] @ below), -(below @ inverse[:-1]).mT, failed)

    def solve(self, r: Tensor) -> Tensor:
        """x (R, d, c) for right sides r (R, d, c)."""
        place, s, n = self.bands.place, self.bands.size, self.bands.blocks
        full = r.new_zeros(n * s, len(r), r.shape[2])
        full[place] = r.transpose(0, 1)
        x = self.inverse @ full.reshape(n, s, len(r), -1).transpose(1, 2)
        for k in range(1, n):
            x[k].baddbmm_(self.down[k - 1], x[k - 1])
        x = self.inverse.mT @ x
        for k in reversed(range(n - 1)):
            x[k].baddbmm_(self.up[k], x[k + 1])
        return x.transpose(1, 2).reshape(n * s, len(r), -1)[place].transpose(0, 1)


def _lower_entries(K: sp.csr_matrix, place: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, ...]:
    """(row, column, index of the weight, factor) of every term of the lower half, rows and columns by `place`: of w, of each row of K, of its rows i and j."""
    m, d = K.shape
    rows, columns, weights, values = [place], [place], [np.arange(d)], [np.ones(d)]
    count = np.diff(K.indptr)
    first, second = np.concatenate([np.arange(m), i]), np.concatenate([np.arange(m), j])
    for n, k in np.unique(np.stack([count[first], count[second]]), axis=1).T:
        of = np.flatnonzero((count[first] == n) & (count[second] == k))
        left, right = K.indptr[first[of]][:, None] + np.arange(n), K.indptr[second[of]][:, None] + np.arange(k)
        for p in range(n):
            for q in range(k):
                x, y = place[K.indices[left[:, p]]], place[K.indices[right[:, q]]]
                twice = np.where(of < m, x >= y, 1 + (x == y))  # a row meets itself in both orders, another one in this one alone
                rows.append(np.maximum(x, y))
                columns.append(np.minimum(x, y))
                weights.append(d + of)
                values.append(K.data[left[:, p]] * K.data[right[:, q]] * twice)
    return tuple(np.concatenate(v) for v in (rows, columns, weights, values))
