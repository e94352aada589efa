r"""The support function of a ball { ‖v‖_p ≤ R } ∩ [lo, hi], batched, by a multiplier μ of the ball (formulations/ball_box.py):

p = ∞   σ(B) = B·c + |B|·h                                    box [c − h, c + h], the ball inside it
p = 2   σ(B) ≤ Σ max_v (B v − ½ μ v²) + ½ μ R²                any μ > 0
p = 1   σ(B) ≤ Σ hi (B − μ)₊ + Σ (−lo)(−B − μ)₊ + μ R         any μ ≥ 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from formulations.norms import INF


@dataclass(frozen=True, eq=False)
class Face:
    """The ball and the boxes in one dtype: −lo, hi, their middle and half-width (d,), all within [−R, R], and R."""

    p: float
    radius: float
    lo: Tensor
    hi: Tensor
    mid: Tensor
    half: Tensor

    def to(self, dtype: torch.dtype) -> Face:
        return Face(self.p, self.radius, *(v.to(dtype) for v in (self.lo, self.hi, self.mid, self.half)))

    def peak(self, B: Tensor, mu: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(σ(B), a maximiser, μ) for rows B (…, d): the steps of a search. μ is what the last call gave for nearby rows."""
        if self.p == INF:
            return B @ self.mid + B.abs() @ self.half, torch.addcmul(self.mid, B.sign(), self.half), B[..., 0]
        if self.p == 2.0:
            mu = self._mu_l2(B, mu)
            v = torch.maximum(torch.minimum(B / mu.unsqueeze(-1), self.hi), self.lo)
            return (v * torch.addcmul(B, v, mu.unsqueeze(-1), value=-0.5)).sum(-1) + mu * (self.radius**2 / 2), v, mu
        cap = torch.addcmul(self.half, B.sign(), self.mid)  # hi where B > 0, −lo where B < 0
        gain = B.abs() * (cap > 0)
        mu, share = _knapsack(gain, cap, self.radius)
        v = B.sign() * cap * ((gain > mu).to(B.dtype) + (gain == mu).to(B.dtype) * share)
        return ((gain - mu).clamp(min=0) * cap).sum(-1) + mu.squeeze(-1) * self.radius, v, mu.squeeze(-1)

    def bound(self, B: Tensor, mu: Tensor) -> Tensor:
        """The upper bound of max B·v that multiplier μ gives."""
        if self.p == INF:
            return B @ self.mid + B.abs() @ self.half
        m = mu.unsqueeze(-1)
        if self.p == 2.0:
            v = torch.maximum(torch.minimum(B / m, self.hi), self.lo)
            return (v * torch.addcmul(B, v, m, value=-0.5)).sum(-1) + mu * (self.radius**2 / 2)
        return (B - m).clamp(min=0) @ self.hi - (-B - m).clamp(min=0) @ self.lo + mu * self.radius

    def _mu_l2(self, B: Tensor, mu: Tensor | None) -> Tensor:
        """A few rounds of  μ ← ‖free part of B‖ / √(R² − ‖stopped part of v‖²);  any μ > 0 is valid."""
        square, rounds = self.radius**2, 4 if mu is None else 2
        mu = (B.norm(dim=-1) / self.radius).clamp(min=1e-18) if mu is None else mu
        for _ in range(rounds):
            free = B / mu.unsqueeze(-1)
            v = torch.maximum(torch.minimum(free, self.hi), self.lo)
            moving = (v == free).to(B.dtype)
            length, open_ = v.square().sum(-1), (v.square() * moving).sum(-1)
            left = square - (length - open_)
            mu = torch.where(left > 0, mu * (open_ / left.clamp(min=1e-12 * square)).sqrt(), mu * 2).clamp(min=1e-18)
        return mu


def _knapsack(gain: Tensor, cap: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """(μ, share), each (…, 1): the gain at which the budget is spent when the largest gains go first, and which part of those with gain μ is bought."""
    if gain.is_cuda:
        order = gain.argsort(-1, descending=True)
    else:
        order = torch.from_numpy(np.argsort(-gain.numpy(), axis=-1))  # vectorised, unlike torch's
    spent = cap.gather(-1, order).cumsum(-1)
    at = (spent < budget).sum(-1, keepdim=True)
    full = at == gain.shape[-1]
    mu = gain.gather(-1, order.gather(-1, at.clamp(max=gain.shape[-1] - 1)))
    mu = torch.where(full, torch.zeros_like(mu), mu)
    used = ((gain > mu) * cap).sum(-1, keepdim=True)
    room = ((gain == mu) * cap).sum(-1, keepdim=True)
    return mu, ((budget - used) / room.clamp(min=1e-30)).clamp(0, 1)
