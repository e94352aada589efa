r"""min f over the box [0, 1]^d by projected gradient steps, many problems (lanes) in lockstep on torch.

    x ← P(x − α∇f(x)),   α from Barzilai and Borwein, halved until f falls by Armijo's rule

The measure of stationarity is the same as in `frank_wolfe`: ⟨∇f, x⟩ − min over the box = Σ_i max(∇_i x_i, −∇_i (1 − x_i)), 0 exactly at stationary points.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from formulations.frank_wolfe import FrankWolfeResult, Function, Gradient

_ARMIJO = 1e-4


def minimise_over_box(
    oracle: Gradient, function: Function, start: Tensor, *, steps: int = 300, tolerance: float = 1e-7
) -> FrankWolfeResult:
    """From `start` (lanes, d), until every lane's gap is at most `tolerance`, no lane moves any more, or `steps` steps were made. Values never rise."""
    begun, x = time.perf_counter(), start.detach().clone()
    value, slope = oracle(x)
    alpha = 1.0 / torch.clamp(slope.abs().amax(1), min=1e-12)
    gradients, evaluations, values = 1, 0, [value]
    t = 0
    for t in range(1, steps + 1):  # noqa: B007
        if bool((_gap(x, slope) <= tolerance).all()):
            break
        trial, reached, found = x, value, torch.zeros_like(value, dtype=torch.bool)
        for _ in range(40):
            step = torch.clamp(x - alpha[:, None] * slope, 0.0, 1.0)
            with torch.no_grad():
                new = function(step)
            evaluations += 1
            good = new <= value + _ARMIJO * ((step - x) * slope).sum(1)
            take = good & ~found
            trial, reached, found = torch.where(take[:, None], step, trial), torch.where(take, new, reached), found | good
            if bool(found.all()):
                break
            alpha = torch.where(found, alpha, alpha / 2)
        moved = trial - x
        if not bool(moved.any()):
            break
        x, before = trial, slope
        value, slope = oracle(x)
        gradients += 1
        bend = (moved * (slope - before)).sum(1)
        alpha = torch.where(bend > 0, (moved**2).sum(1) / torch.clamp(bend, min=1e-300), 2 * alpha)
        alpha = torch.clamp(alpha, 1e-12, 1e12)
        values.append(value)
    return FrankWolfeResult(
        x, value, _gap(x, slope), t, gradients, evaluations, 0, torch.stack(values), time.perf_counter() - begun
    )  # fmt: skip


def _gap(x: Tensor, slope: Tensor) -> Tensor:
    return torch.maximum(slope * x, -slope * (1 - x)).sum(1)
