"""Random changes no longer than the best witness: where the boundary folds, a nearer piece of it is often met by looking about."""

from __future__ import annotations

import torch
from torch import Tensor

from formulations.norms import INF
from verification.attack.lanes import Lanes


def spread(noise: Tensor, p: float) -> Tensor:
    """Normal noise (lanes, d) as changes with ‖δ‖_p ≤ 1, where minimisers tend to be: few coordinates at p = 1, half of them at their ends at p = ∞."""
    if p == INF:
        return torch.clamp(2 * torch.erf(noise / 2**0.5), -1, 1)
    shape = noise * noise.abs() ** 3 if p == 1.0 else noise
    return torch.as_tensor(shape / torch.linalg.vector_norm(shape, p, dim=1, keepdim=True).clamp(min=1e-300))


def mixed(who: Tensor, noise: Tensor, lanes: Lanes, anchor: Tensor) -> Tensor:
    """(lanes, d) random points of the convex hull of an input's anchor and two of its `lanes`: in C whatever C is. `who` is sorted, as are the lanes."""
    inputs = torch.arange(len(anchor), device=who.device)
    begin, end = torch.searchsorted(lanes.who, inputs), torch.searchsorted(lanes.who, inputs, right=True)
    count = (end - begin)[who]
    chance = torch.special.ndtr(noise[:, :1].expand(-1, 2) if noise.shape[1] < 2 else noise[:, :2])  # uniform in (0, 1)
    first, second = (begin[who] + torch.minimum((chance[:, k] * count).long(), (count - 1).clamp(min=0)) for k in (0, 1))
    share = torch.special.ndtr(noise.sum(1) / noise.shape[1] ** 0.5)[:, None]
    base = anchor[who]
    if not len(lanes):
        return base
    last = len(lanes) - 1
    ends = share * lanes.delta[first.clamp(max=last)] + (1 - share) * lanes.delta[second.clamp(max=last)]
    reach = torch.sqrt(chance[:, :1])
    return torch.where((count > 0)[:, None], base + reach * (ends - base), base)
