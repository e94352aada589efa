r"""(diag(w₀) + Kᵀ diag(ω) K) x = r for a batch of weights over one sparse K: Cholesky on block-tridiagonal bands.

Reverse Cuthill–McKee brings the entries of KᵀK near the diagonal (a grid's into bands as wide as its short side); with blocks at least as wide as the band

    A_1 = L_1 L_1ᵀ,     B_k = A_{k+1,k} L_k⁻ᵀ,     A_{k+1} − B_k B_kᵀ = L_{k+1} L_{k+1}ᵀ

so d coordinates in blocks of s cost d s² instead of d³, in d/s steps that each serve the whole batch. Rows of K with many entries would fill the band and are
left to the caller (`Bands.full`), who takes them as a border. A K that nothing brings near the diagonal is one block: a dense Cholesky.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

FULL = 16  # entries of a row of K above which it is left to the border
BLOCK = 16  # least size of a block: fewer, larger steps


@dataclass(frozen=True, eq=False)
class Bands:
    """Where diag(w₀) + Kᵀ diag(ω) K has its entries.

    full    rows of K (f,) that are left out
    order   coordinate at each place (d,), −1 where a block is only filled up
    size    of a block; steps: how many
    entry   (e,) places of the lower entries in the storage of all blocks; weigh (e, d + m) sparse: from (w₀, ω) to them
    """

    full: Tensor
    order: Tensor
    place: Tensor
    size: int
    steps: int
    entry: Tensor
    weigh: Tensor

    @staticmethod
    def of(K: sp.csr_matrix, device: torch.device) -> Bands:
        """The bands of K (m, d)."""
        m, d = K.shape
        count = np.diff(K.indptr)
        thin = sp.diags((count <= FULL).astype(float)) @ K
        thin.eliminate_zeros()
        pattern = ((abs(thin.T) @ abs(thin)) + sp.identity(d)).tocsr()
        order = np.asarray(reverse_cuthill_mckee(pattern, symmetric_mode=True), dtype=np.int64)
        place = np.empty(d, dtype=np.int64)
        place[order] = np.arange(d)
        row, column = pattern.nonzero()
        size = max(int(np.abs(place[row] - place[column]).max(initial=0)), min(BLOCK, d))
        if 3 * size >= d:
            size = d
        steps = -(-d // size)
        at, by, value = [np.arange(d)], [np.arange(d)], [np.ones(d)]
        key = [place * steps * size + place]
        thin = thin.tocsr()
        for k in np.unique(np.diff(thin.indptr)):
            rows = np.flatnonzero(np.diff(thin.indptr) == k)
            if k == 0:
                continue
            entries = thin.indptr[rows][:, None] + np.arange(k)
            where, what = place[thin.indices[entries]], thin.data[entries]
            for p in range(k):
                for q in range(k):
                    lower = where[:, p] >= where[:, q]
                    key.append((where[:, p] * steps * size + where[:, q])[lower])
                    by.append(d + rows[lower])
                    value.append((what[:, p] * what[:, q])[lower])
        place_of, entry = np.unique(np.concatenate(key), return_inverse=True)
        i, j = place_of // (steps * size), place_of % (steps * size)
        below = i // size - j // size  # 0 or 1
        storage = ((below * steps + j // size) * size + i % size) * size + j % size
        weigh = sp.csr_matrix((np.concatenate(value), (entry, np.concatenate(by))), shape=(len(place_of), d + m))
        filled = np.full(steps * size, -1)
        filled[:d] = order
        del at
        return Bands(
            torch.as_tensor(np.flatnonzero(count > FULL), device=device), torch.as_tensor(filled, device=device), torch.as_tensor(place, device=device),
            size, steps, torch.as_tensor(storage, device=device),
            torch.sparse_csr_tensor(torch.as_tensor(weigh.indptr.astype(np.int64)), torch.as_tensor(weigh.indices.astype(np.int64)), torch.as_tensor(weigh.data), weigh.shape, device=device),
        )  # fmt: skip

    def factor(self, w: Tensor) -> Factor:
        """Of weights (R, d + m)."""
        R, s, n = len(w), self.size, self.steps
        flat = torch.zeros(R, (2 * n - 1) * s * s, dtype=w.dtype, device=w.device)
        flat[:, self.entry] = (self.weigh @ w.T).T
        store = flat.reshape(R, 2 * n - 1, s, s)
        rest = torch.nonzero(self.order < 0).flatten()
        store[:, n - 1, rest % s, rest % s] = 1.0
        lower, below = [], []
        for k in range(n):
            A = store[:, k]
            if k:
                A = torch.baddbmm(A, below[-1], below[-1].mT, alpha=-1)
            L = torch.linalg.cholesky_ex(A)[0]
            lower.append(L)
            if k < n - 1:
                below.append(torch.linalg.solve_triangular(L, store[:, n + k].mT, upper=False).mT)
        return Factor(self, lower, below)


@dataclass(frozen=True, eq=False)
class Factor:
    bands: Bands
    lower: list[Tensor]
    below: list[Tensor]

    def solve(self, r: Tensor) -> Tensor:
        """x (R, d, c) for right sides r (R, d, c)."""
        b = self.bands
        s, n, d = b.size, b.steps, r.shape[1]
        full = torch.zeros(len(r), n * s, r.shape[2], dtype=r.dtype, device=r.device)
        full[:, b.place] = r
        parts = list(full.reshape(len(r), n, s, -1).unbind(1))
        for k in range(n):
            v = parts[k] if not k else torch.baddbmm(parts[k], self.below[k - 1], parts[k - 1], alpha=-1)
            parts[k] = torch.linalg.solve_triangular(self.lower[k], v, upper=False)
        for k in range(n - 1, -1, -1):
            v = parts[k] if k == n - 1 else torch.baddbmm(parts[k], self.below[k].mT, parts[k + 1], alpha=-1)
            parts[k] = torch.linalg.solve_triangular(self.lower[k].mT, v, upper=True)
        return torch.cat(parts, 1)[:, b.place]
