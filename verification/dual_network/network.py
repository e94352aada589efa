r"""The dual network:  frozen rows → dual layer → projection layer → dual objective → a valid lower bound of the true radius.

    L(α, u; r) = min( r, min_k D_k(u_k) ),      D_k from rows a_k(α), b_k(α) that are minorants of the margins on ‖Wδ‖ ≤ r, δ ∈ C

Every output is a valid lower bound of  v* = min { ‖Wδ‖ : some m_k(δ) ≤ 0, δ ∈ C }.  Proof. Take a flip δ ∈ C, m_k(δ) ≤ 0. If ‖Wδ‖ > r there is nothing to show.
Else δ lies in the region on which row k is a minorant for any α in [0, 1] (rows.py clamps α, and bounds the layers over a region that holds it), so
a_k·δ + b_k ≤ m_k(δ) ≤ 0; by δ ∈ C and u in the domain of σ_S (the projection layer's output always is), the added row holds too, and ‖Wδ‖ ≥ D_k(u_k) (layers.py).
No step of the proof asks that anything has converged. Where r reaches beyond C's box, the first case cannot occur and min_k D_k is the bound by itself: +inf
says that no allowed change flips. Rounding: float64 throughout, with terms far above its error taken off each row, and D_k is rounded outwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from formulations.coupling import Ball, Coupling
from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, CustomPiece, Part, RowsPiece
from formulations.solution import Solutions
from formulations.support import Region, _fold_balls
from verification.dual_network.interior import bands_for, interior_multipliers
from verification.dual_network.layers import DualLayer, DualObjective, ProjectionLayer
from verification.dual_network.rows import FixedRows, FrozenRows
from verification.dual_network.splitting import split_multipliers

SETTLING = 400  # steps


class DualNetwork(nn.Module):
    """`forward()` → (n,) valid lower bounds at the radii `radius` (n,); parameters: slopes α (of `rows`), multipliers η, z, prices (of `dual`).

    `rows` a FrozenRows or FixedRows; `parts` over the change, for the region's norm. Raises InputError on a GroupNorm and on sets of one's own.
    """

    def __init__(
        self, rows: FrozenRows | FixedRows, norm: Norm, parts: tuple[Part, ...], region: Region, radius: Tensor | None = None, real: Tensor | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(norm, GroupNorm):
            raise InputError("DualNetwork: a GroupNorm has no closed form here; use certified_radius.")
        if any(isinstance(p.piece, CustomPiece) for p in parts):
            raise InputError("DualNetwork: a set known only by its CVXPY constraints has no multipliers here; use certified_radius.")
        self.rows, self.parts, self.norm, self.region = rows, parts, norm, region
        n = region.count
        self.link = region.coupling
        self.register_buffer("radius", torch.full_like(region.radius, INF) if radius is None else radius.clone())
        with torch.no_grad():
            a, b = rows(torch.minimum(self.get_buffer("radius"), region.limit))
        self.register_buffer("real", torch.ones_like(b, dtype=torch.bool) if real is None else real)
        self.dual = None if self.link is None else DualLayer(n, b.shape[1], self.link, a.norm(dim=-1))
        self.projection = None if self.link is None else ProjectionLayer(self.link)
        self.objective = DualObjective(self.link, region.lo, region.hi, region.p)
        if self.dual is not None and self.link is not None:  # towards what the box alone would do wrong
            with torch.no_grad():
                wrong = self.link.apply(self._step(a, b))
                self.dual.u.copy_(0.05 * wrong / wrong.abs().amax(-1, keepdim=True).clamp(min=1e-12))
                self.project()

    def forward(self) -> Tensor:
        least = self.values().amin(1)
        r = self.get_buffer("radius")
        covers = r >= self.region.reach() * (1 + 1e-9)
        return torch.where(covers, least, torch.minimum(r, least))

    def values(self) -> Tensor:
        """D_k (n, K), +inf for rows that only fill up the batch."""
        a, b = self.rows(torch.minimum(self.get_buffer("radius"), self.region.limit))
        found = self.objective(a, b, *self._multipliers())
        return torch.where(self.get_buffer("real"), found, INF)

    def move(self, radius: Tensor) -> None:
        """Other radii (n,) from here on."""
        self.get_buffer("radius").copy_(radius)

    @torch.no_grad()
    def project(self) -> None:
        """Parameters back to where their layers would bring them, so that steps do not wander off."""
        if isinstance(self.rows, FrozenRows):
            self.rows.project()
        if self.dual is not None and self.link is not None:
            self.dual.price.clamp_(min=0)
            ball = 0
            for where, block in self.link.blocks:
                if isinstance(block, Ball):
                    if block.labels is None and block.p == 1:
                        t = self.dual.price[..., ball : ball + 1]
                        self.dual.u[..., where] = torch.minimum(torch.maximum(self.dual.u[..., where], -t), t)
                    ball += 1
                else:
                    self.dual.u[..., where] = block.feasible(self.dual.u[..., where])

    @torch.no_grad()
    def warm_start(self, solutions: Sequence[Solutions]) -> None:
        """Multipliers of solved programs, one batch of n per row k: Clarabel's u over λ (the rows here have multiplier one)."""
        if self.dual is None or self.link is None:
            return
        kept = _fold_balls(self.norm, self.parts, self.region.dim, self.region.count)[1]
        index = [j for j, part in enumerate(self.parts) if any(part.piece is piece for piece in kept)]
        size = self.dual.get_buffer("size")
        for k, batch in enumerate(solutions):
            for i, solved in enumerate(batch):
                lam = float(np.sum(solved.multipliers["margin"]))
                if not lam > 0:
                    continue
                ball = 0
                for j, (where, block) in zip(index, self.link.blocks, strict=True):
                    u = torch.as_tensor(_own_units(self.parts[j], solved.duals[j] / lam, self.region), device=size.device) / size[i, k]
                    self.dual.u[i, k, where] = u
                    if isinstance(block, Ball):
                        one = block.take(torch.tensor([i], device=size.device)) if block.e.shape[0] > 1 else block
                        self.dual.price[i, k, ball] = _dual_size(one, u)
                        ball += 1

    @torch.no_grad()
    def settle(self, steps: int = SETTLING) -> None:
        """Multipliers of each row's program, by interior points where C is polyhedral (interior.py), else by splitting (splitting.py); kept where better."""
        if self.dual is None or self.projection is None or self.link is None or not steps:
            return
        link, projection = self.link, self.projection
        a, b = self.rows(torch.minimum(self.get_buffer("radius"), self.region.limit))
        n, K, d = a.shape
        owner = torch.arange(n, device=a.device).repeat_interleave(K)
        size, flat, level = self.dual.get_buffer("size"), a.reshape(n * K, d), b.reshape(-1)
        lo, hi = self.region.lo[owner], self.region.hi[owner]
        every = link.take(owner)

        def bound(u: Tensor, index: Tensor) -> Tensor:
            some, of = projection.over(every.take(index)), self.objective.over(lo[index], hi[index])
            found: Tensor = of(flat[index, None], level[index, None], *some(u[:, None], prices(every.take(index), u[:, None])))
            return found[:, 0]

        before, bands, program = self.objective(a, b, *self._multipliers()), bands_for(link), (flat, level, lo, hi, self.region.p, every)
        u, found = split_multipliers(*program, bound, steps) if bands is None else interior_multipliers(*program, bands, bound, steps)
        better = (found.reshape(n, K) > before)[..., None]
        price = prices(every, u[:, None]).reshape(n, K, -1)
        self.dual.u.copy_(torch.where(better, u.reshape(n, K, -1) / size[..., None], self.dual.u))
        self.dual.price.copy_(torch.where(better, price / size[..., None], self.dual.price))

    def _multipliers(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if self.dual is None or self.projection is None:
            return None, None
        u, price = self.dual()
        return cast("tuple[Tensor, Tensor]", self.projection(u, price))

    def _step(self, a: Tensor, b: Tensor) -> Tensor:
        """The change that the box alone would make, (n, K, d)."""
        lam = b / a.square().sum(-1).clamp(min=1e-300)
        return torch.minimum(torch.maximum(-lam[..., None] * a, self.region.lo[:, None]), self.region.hi[:, None])


def prices(link: Coupling, u: Tensor) -> Tensor:
    """The least price of every ball under its multipliers, of u (…, m): (…, balls)."""
    found = [_dual_size(block, u[..., where]) for where, block in link.blocks if isinstance(block, Ball)]
    return torch.stack(found, -1) if found else u[..., :0]


def _dual_size(block: Ball, u: Tensor) -> Tensor:
    """‖u‖_* of a ball's multipliers (…, m)."""
    if block.labels is not None and block.omega is not None:
        return (block.lengths(u) / block.omega).amax(-1)
    size: Tensor = torch.linalg.vector_norm(u, {1.0: INF, 2.0: 2.0, INF: 1.0}[block.p], dim=-1)
    return size


def _own_units(part: Part, u: Array, region: Region) -> Array:
    """A piece's multiplier in the units of its block: K is M W⁻¹ brought to length one (formulations/coupling.py)."""
    piece, scale = part.piece, region.scale.cpu().numpy()
    if isinstance(piece, RowsPiece):
        size = np.sqrt(np.asarray((piece.G.multiply(1 / scale)).power(2).sum(1))).ravel()
        return np.asarray(u * np.where(size > 0, size, 1.0))
    assert isinstance(piece, BallPiece)
    weight = np.ones(piece.M.shape[0]) if isinstance(piece.norm, GroupNorm) else piece.norm.scale(piece.M.shape[0])
    K = abs(piece.M.multiply(weight[:, None]).multiply(1 / scale))
    return np.asarray(u / weight * np.sqrt(max(K.sum(0).max() * K.sum(1).max(), 1e-300)))
