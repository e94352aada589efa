r"""What couples the coordinates: every piece of a set that is no box, stacked as K v ∈ S for a whole batch, in torch.

Blocks of S and what their multipliers u bound (formulations/pieces.py has the derivations):

    Rows   v ≤ h or v = h          u·v ≤ u·h
    Ball   ‖v + e‖ ≤ ρ              u·v ≤ ρ‖u‖_* − u·e

K acts on scaled changes Wδ; each row, or a ball as a whole, is brought to length one so that one penalty suits all (formulations/support.py).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from formulations.ball_box import threshold
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, RowsPiece, identity


@dataclass(frozen=True, eq=False)
class Rows:
    """v ≤ h or v = h for the block v of Kδ; h (n or 1, 1, m)."""

    h: Tensor
    equality: bool

    def take(self, index: Tensor) -> Rows:
        return replace(self, h=_take(self.h, index))

    def to(self, dtype: torch.dtype) -> Rows:
        return replace(self, h=self.h.to(dtype))

    def feasible(self, u: Tensor) -> Tensor:
        return u if self.equality else u.clamp(min=0)

    def sigma(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(constant, slope in the radius) of σ(u)."""
        return (u * self.h).sum(-1), torch.zeros_like(u[..., 0])

    def project(self, v: Tensor, radius: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        return (self.h.expand_as(v) if self.equality else torch.minimum(v, self.h)), root


@dataclass(frozen=True, eq=False)
class Ball:
    """‖v + e‖ ≤ ρ, unweighted p = 1, 2, ∞ or Σ_g ω_g‖v_g‖₂; e (n or 1, 1, m), ρ (n or 1, 1), None for the region's own radius."""

    e: Tensor
    rho: Tensor | None
    p: float
    labels: Tensor | None = None
    omega: Tensor | None = None

    def take(self, index: Tensor) -> Ball:
        return replace(self, e=_take(self.e, index), rho=None if self.rho is None else _take(self.rho, index))

    def to(self, dtype: torch.dtype) -> Ball:
        rho, omega = (None if v is None else v.to(dtype) for v in (self.rho, self.omega))
        return replace(self, e=self.e.to(dtype), rho=rho, omega=omega)

    def feasible(self, u: Tensor) -> Tensor:
        return u

    def sigma(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.labels is not None and self.omega is not None:
            dual = (self.lengths(u) / self.omega).amax(-1)
        else:
            dual = torch.linalg.vector_norm(u, {1.0: INF, 2.0: 2.0, INF: 1.0}[self.p], dim=-1)
        shift = -(u * self.e).sum(-1)
        return (shift, dual) if self.rho is None else (shift + self.rho * dual, torch.zeros_like(dual))

    def project(self, v: Tensor, radius: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """(the nearest point of the ball, its soft threshold), the threshold refined from the given one."""
        w, rho = v + self.e, (radius if self.rho is None else self.rho).expand(v.shape[:-1])
        if self.labels is not None and self.omega is not None:
            size = self.lengths(w)
            root = threshold(size, self.omega, None, rho, root)
            out = w * (1 - root.unsqueeze(-1) * self.omega / size).clamp(min=0)[..., self.labels]
        elif self.p == 2:
            out = w * (rho.unsqueeze(-1) / w.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        elif self.p == INF:
            out = torch.minimum(torch.maximum(w, -rho.unsqueeze(-1)), rho.unsqueeze(-1))
        else:
            root = threshold(w.abs(), torch.ones_like(w[..., :1]), None, rho, root)
            out = w.sign() * (w.abs() - root.unsqueeze(-1)).clamp(min=0)
        return out - self.e, root

    def lengths(self, u: Tensor) -> Tensor:
        assert self.labels is not None
        assert self.omega is not None
        total = torch.zeros(*u.shape[:-1], len(self.omega), dtype=u.dtype, device=u.device)
        return total.index_add(-1, self.labels, u.square()).clamp(min=1e-37).sqrt()


@dataclass(frozen=True, eq=False)
class Coupling:
    """K (m, d) over all pieces that are not boxes, its blocks, and (I + KᵀK)⁻¹; shared by the batch."""

    K: Tensor
    Kt: Tensor
    inverse: Tensor
    blocks: tuple[tuple[slice, Rows | Ball], ...]

    @property
    def size(self) -> int:
        """Number of multipliers."""
        return int(self.K.shape[0])

    def apply(self, x: Tensor) -> Tensor:
        return _times(self.K, x)

    def back(self, u: Tensor) -> Tensor:
        return _times(self.Kt, u)

    def solve(self, x: Tensor) -> Tensor:
        """(I + KᵀK)⁻¹ x, row by row."""
        return x @ self.inverse

    def take(self, index: Tensor) -> Coupling:
        return replace(self, blocks=tuple((s, b.take(index)) for s, b in self.blocks))

    def to(self, dtype: torch.dtype) -> Coupling:
        blocks = tuple((s, b.to(dtype)) for s, b in self.blocks)
        return Coupling(self.K.to(dtype), self.Kt.to(dtype), self.inverse.to(dtype), blocks)


@dataclass(frozen=True, eq=False)
class CutCoupling(Coupling):
    """A coupling with one more row a·v ≤ h for each row of the batch; `cut` (R, 1, d) of length one. (M + aaᵀ)⁻¹ by Sherman and Morrison."""

    cut: Tensor
    tilt: Tensor

    @staticmethod
    def of(link: Coupling, cut: Tensor, h: Tensor) -> CutCoupling:
        """The coupling with rows cut·v ≤ h (R, 1, 1); K is kept as it is."""
        m = link.K.shape[0]
        tilt = link.solve(cut)
        tilt = tilt / (1 + (tilt * cut).sum(-1, keepdim=True)).sqrt()
        return CutCoupling(link.K, link.Kt, link.inverse, (*link.blocks, (slice(m, m + 1), Rows(h, False))), cut, tilt)

    @property
    def size(self) -> int:
        return super().size + 1

    def apply(self, x: Tensor) -> Tensor:
        return torch.cat([super().apply(x), (x * self.cut).sum(-1, keepdim=True)], -1)

    def back(self, u: Tensor) -> Tensor:
        return super().back(u[..., :-1]) + u[..., -1:] * self.cut

    def solve(self, x: Tensor) -> Tensor:
        return super().solve(x) - (x * self.tilt).sum(-1, keepdim=True) * self.tilt

    def take(self, index: Tensor) -> CutCoupling:
        base = super().take(index)
        return CutCoupling(base.K, base.Kt, base.inverse, base.blocks, self.cut[index], self.tilt[index])

    def to(self, dtype: torch.dtype) -> CutCoupling:
        base = super().to(dtype)
        return CutCoupling(base.K, base.Kt, base.inverse, base.blocks, self.cut.to(dtype), self.tilt.to(dtype))


def couple(balls: list[tuple[Norm, None]], pieces: list[Any], scale: Array, like: dict[str, Any]) -> Coupling | None:
    """Stack the pieces over the scaled change v = Wδ, each row (or ball as a whole) brought to length one."""
    matrices, blocks, start = [], [], 0
    own = [BallPiece(identity(len(scale)), np.zeros(len(scale)), np.nan, norm) for norm, _ in balls]
    for piece in [*own, *pieces]:
        K = sp.csr_matrix(piece.G if isinstance(piece, RowsPiece) else piece.M, dtype=float)
        if K.shape[0] == 0:
            continue
        block: Rows | Ball
        if isinstance(piece, RowsPiece):
            K = K @ sp.diags(1 / scale)
            size = sp.linalg.norm(K, axis=1)
            size = np.where(size > 0, size, 1.0)
            K = sp.diags(1 / size) @ K
            block = Rows(torch.as_tensor(np.atleast_2d(piece.h / size)[:, None], **like), piece.equality)
        else:
            group = piece.norm if isinstance(piece.norm, GroupNorm) else None
            weight = np.ones(K.shape[0]) if group else piece.norm.scale(K.shape[0])
            K = sp.diags(weight) @ K @ sp.diags(1 / scale)
            size = np.sqrt(max(abs(K).sum(0).max() * abs(K).sum(1).max(), 1e-300))  # ≥ the spectral norm
            if any(piece is o for o in own):
                size = 1.0  # ρ is the region's radius, in its own units
            rho = None if any(piece is o for o in own) else torch.as_tensor(np.atleast_1d(piece.rho / size)[:, None], **like)
            labels = None if group is None else torch.as_tensor(group.labels, device=like["device"])
            omega = None if group is None else torch.as_tensor(np.array(group.omega), **like)
            block = Ball(torch.as_tensor(np.atleast_2d(piece.e * weight / size)[:, None], **like), rho, piece.norm.p, labels, omega)
            K = K / size
        matrices.append(K)
        blocks.append((slice(start, start + K.shape[0]), block))
        start += K.shape[0]
    if not blocks:
        return None
    K = sp.vstack(matrices, format="csr")
    inverse = np.linalg.inv(np.eye(len(scale)) + (K.T @ K).toarray())
    return Coupling(_matrix(K, like), _matrix(K.T.tocsr(), like), torch.as_tensor(inverse, **like), tuple(blocks))


def _matrix(K: Any, like: dict[str, Any]) -> Tensor:
    """Dense when small, else CSR."""
    if K.shape[0] * K.shape[1] <= 1 << 16 or K.nnz > 0.1 * K.shape[0] * K.shape[1]:
        return torch.as_tensor(K.toarray(), **like)
    with warnings.catch_warnings():  # torch calls the format "beta", once per process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.as_tensor(K.indptr, dtype=torch.int64), torch.as_tensor(K.indices, dtype=torch.int64), K.data, K.shape, **like
        )


def _times(K: Tensor, x: Tensor) -> Tensor:
    """x (…, d) → x Kᵀ (…, m)."""
    if not K.is_sparse_csr:
        return x @ K.T
    return (K @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], K.shape[0])


def _take(v: Tensor, index: Tensor) -> Tensor:
    return v if v.shape[0] == 1 else v[index]
