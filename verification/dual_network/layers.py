r"""Dual layer, projection layer, dual objective.

For rows a_k·v + b_k ≤ 0 over v = Wδ, multipliers u of the pieces K v ∈ S of C that are no boxes, and σ_S(u) ≥ u·Kv on C (formulations/coupling.py):

    a flip of row k in C obeys  (a_k + Kᵀu)·v + (b_k − σ_S(u)) ≤ 0,    for ANY u in the domain of σ_S          [add u·Kv ≤ σ_S(u)]
    ‖Wδ‖ ≥ D_k(u) = min { ‖v‖ : (a_k + Kᵀu)·v + b_k − σ_S(u) ≤ 0, v in the box }                              [one row, one box]

The last program has an exact solution (formulations/closed_form.py): it is the maximum of the weak-duality bound over λ and the box multipliers, so those two
are always at their best and need no steps. Its verified `lower` is what is reported. By the envelope theorem  ∂D/∂b = λ,  ∂D/∂a = λ v*.

Domain of σ_S: η ≥ 0 for inequalities, anything for equalities; for a ball ‖Mv + e‖ ≤ ρ a price t ≥ ‖u‖_*, and σ = ρ t − u·e.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from formulations.closed_form import min_norm_box
from formulations.coupling import Ball, Coupling, Rows
from formulations.norms import INF, Norm

PAD = 1e-12  # of the terms of b − σ, taken off: rounding of Kᵀu and of the sums


class DualLayer(nn.Module):
    """The multipliers, raw: u (n, K, m) for all pieces together, a price t (n, K, balls) for every ball, both in units of `size` (n, K)."""

    def __init__(self, n: int, K: int, link: Coupling, size: Tensor) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(n, K, link.size, dtype=size.dtype, device=size.device))
        balls = sum(isinstance(block, Ball) for _, block in link.blocks)
        self.price = nn.Parameter(torch.full((n, K, balls), 0.05, dtype=size.dtype, device=size.device))
        self.register_buffer("size", size.clamp(min=1e-12))

    def forward(self) -> tuple[Tensor, Tensor]:
        size = self.get_buffer("size")[..., None]
        return self.u * size, self.price * size


class ProjectionLayer(nn.Module):
    """(raw u, t) → (u in the domain of σ_S, σ_S(u)): negative parts of η and of prices are cut, u of a ball is brought within its price."""

    def __init__(self, link: Coupling) -> None:
        super().__init__()
        self.link = link

    def over(self, link: Coupling) -> ProjectionLayer:
        """The same for other inputs."""
        return ProjectionLayer(link)

    def forward(self, u: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        parts, total, ball = [], torch.zeros_like(u[..., 0]), 0
        for where, block in self.link.blocks:
            v = u[..., where]
            if isinstance(block, Rows):
                v = block.feasible(v)
                total = total + block.sigma(v)[0]
            else:
                t = price[..., ball].clamp(min=0)
                v = within(block, v, t)
                assert block.rho is not None
                total = total + block.rho * t - (v * block.e).sum(-1)
                ball += 1
            parts.append(v)
        return torch.cat(parts, -1), total


class DualObjective(nn.Module):
    """D_k(u) of rows a (n, K, d), b (n, K) under u, σ: verified values (n, K), +inf where no allowed change meets the row."""

    def __init__(self, link: Coupling | None, lo: Tensor, hi: Tensor, p: float) -> None:
        super().__init__()
        self.link, self.norm = link, Norm.of(p)
        self.register_buffer("lo", lo)
        self.register_buffer("hi", hi)

    def over(self, lo: Tensor, hi: Tensor) -> DualObjective:
        """The same for other inputs, with boxes lo, hi (n, d)."""
        return DualObjective(self.link, lo, hi, self.norm.p)

    def forward(self, a: Tensor, b: Tensor, u: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        c, beta = a, b
        if self.link is not None and u is not None and sigma is not None:
            c, beta = a + self.link.back(u), b - sigma
            beta = beta - PAD * (b.abs() + sigma.abs() + u.abs().sum(-1) * self.reach(c))
        n, K, d = c.shape
        lo, hi = (self.get_buffer(v)[:, None].expand(n, K, d).reshape(n * K, d) for v in ("lo", "hi"))
        value: Tensor = _Nearest.apply(c.reshape(n * K, d), beta.reshape(-1), lo, hi, self.norm)  # type: ignore[no-untyped-call]
        return value.reshape(n, K)

    def reach(self, c: Tensor) -> Tensor:
        """1 + the largest |v_i| in the box, for the rounding of Kᵀu·v; 1 where there is no box (the row's own size stands for it there)."""
        far = torch.maximum(self.get_buffer("lo").abs(), self.get_buffer("hi").abs())
        return 1 + torch.where(torch.isfinite(far), far, 0.0).amax(-1)[:, None].expand(c.shape[:2])


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: Tensor, beta: Tensor, lo: Tensor, hi: Tensor, norm: Norm) -> Tensor:
        solved = min_norm_box(c, beta, lo, hi, norm)
        length = torch.linalg.vector_norm(c, {1.0: INF, 2.0: 2.0, INF: 1.0}[norm.p], dim=1).clamp(min=1e-300)
        # where b ≤ 0 the value is flat at 0: the slope of the program without the box leads out
        lam = torch.where((beta <= 0) & (solved.lam == 0), 1 / length, solved.lam)
        ctx.save_for_backward(torch.where(torch.isfinite(lam), lam, 0.0), torch.nan_to_num(solved.delta))
        return solved.lower

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        lam, delta = ctx.saved_tensors
        pull = torch.nan_to_num(slopes[0]) * lam
        return pull[:, None] * delta, pull, None, None, None


def within(block: Ball, u: Tensor, price: Tensor) -> Tensor:
    """u brought within ‖u‖_* ≤ price: entry by entry for p = 1, by length otherwise."""
    t = price[..., None]
    if block.labels is None and block.p == 1:
        return torch.minimum(torch.maximum(u, -t), t)
    if block.labels is not None and block.omega is not None:
        size = (block.lengths(u) / block.omega).amax(-1, keepdim=True)
    else:
        size = torch.linalg.vector_norm(u, {2.0: 2.0, INF: 1.0}[block.p], dim=-1, keepdim=True)
    shrunk: Tensor = u * (t / size.clamp(min=1e-300)).clamp(max=1) * (1 - 1e-14)  # rounding must not leave ‖u‖_* above the price
    return shrunk
