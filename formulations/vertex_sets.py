"""Polytopes whose linear minimiser is cheap: what Frank–Wolfe methods walk on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from formulations.errors import InputError


class Polytope(Protocol):
    def minimise(self, gradient: Tensor) -> Tensor:
        """argmin_{v ∈ P} ⟨gradient, v⟩ for every lane: (lanes, d) → (lanes, d), vertices."""


@dataclass(frozen=True, eq=False)
class SparseBox:
    """P = {s ∈ [0, 1]^d : Σ s_i ≤ k}, a rate k (lanes,) per lane. A vertex has the ⌊k⌋ most negative entries of the gradient at 1, the next at k − ⌊k⌋.

    Raises InputError on a rate that is negative or not finite.
    """

    rates: Tensor

    def __post_init__(self) -> None:
        bad = self.rates[~(torch.isfinite(self.rates) & (self.rates >= 0))]
        if len(bad):
            raise InputError(f"rate={float(bad[0])} must be a number ≥ 0.")

    def minimise(self, gradient: Tensor) -> Tensor:
        order = torch.argsort(gradient, dim=1, stable=True)
        place = torch.arange(gradient.shape[1], device=gradient.device, dtype=gradient.dtype)
        share = torch.clamp(self.rates.to(gradient)[:, None] - place, 0.0, 1.0).expand_as(gradient)
        vertex = torch.zeros_like(gradient).scatter(1, order, share)
        return torch.where(gradient < 0, vertex, torch.zeros_like(vertex))

    def project(self, y: Tensor) -> Tensor:
        """argmin_{v ∈ P} ‖v − y‖₂ = clip(y − τ, 0, 1) with the least τ ≥ 0 that keeps Σ ≤ k: the sum is piecewise linear in τ with bends at y_i and y_i − 1."""
        rates = self.rates.to(y)[:, None]
        bends, order = torch.sort(torch.cat([y, y - 1], 1), dim=1, descending=True)
        slopes = torch.where(order < y.shape[1], 1.0, -1.0).to(y).cumsum(1)  # entries strictly between 0 and 1 just below each bend
        sums = torch.cat([torch.zeros_like(rates), (slopes[:, :-1] * -bends.diff(dim=1)).cumsum(1)], 1)  # Σ at τ = bend
        last = (torch.searchsorted(sums, rates, right=True) - 1).clamp(0, bends.shape[1] - 1)
        room = rates - sums.gather(1, last)
        tau = bends.gather(1, last) - room / torch.clamp(slopes.gather(1, last), min=1.0)
        return torch.clamp(y - torch.clamp(tau, min=0.0), 0.0, 1.0)


@dataclass(frozen=True)
class Birkhoff:
    """P = doubly stochastic n × n matrices, flattened row by row; its vertices are the permutations, found by the assignment algorithm."""

    n: int

    def minimise(self, gradient: Tensor) -> Tensor:
        out = np.zeros((len(gradient), self.n, self.n))
        for lane, cost in enumerate(gradient.detach().cpu().numpy().reshape(-1, self.n, self.n)):
            out[lane][linear_sum_assignment(cost)] = 1.0
        return torch.as_tensor(out.reshape(len(gradient), -1), dtype=gradient.dtype, device=gradient.device)
