r"""Conditional gradients with a second-order model: min f over a polytope whose Euclidean projection is cheap, many problems (lanes) in lockstep.

    z ≈ argmin_{z ∈ P} ⟨∇f(x), z − x⟩ + ½⟨z − x, B(z − x)⟩,      x ← x + γ(z − x),   γ = 1, ½, ¼, … until f falls by Armijo's rule

The model is minimised by accelerated projected gradient steps, which ask f nothing: one gradient of f an iteration, and fewer iterations where f is badly
conditioned, as a distortion with a stiff output is. B = θI + Σ ± u uᵀ is Broyden–Fletcher–Goldfarb–Shanno with Powell's damping, so it stays positive
definite where f is not convex, and every z is a direction of descent. The iterates never leave P; the gap is that of `frank_wolfe`.

Sources: Schmidt, van den Berg, Friedlander, Murphy (2009); Carderera and Pokutta, "Second-order conditional gradient sliding" (2020); Powell (1978).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from formulations.frank_wolfe import FrankWolfeResult, Function, Gradient
from formulations.vertex_sets import Polytope

_ARMIJO = 1e-4
_DAMPING = 0.2  # Powell's: the measured curvature ⟨p, y⟩ is raised to this share of the model's
_INNER = 100  # steps on one model at most
_ACCURATE = 1e-3  # a model's minimiser is good enough when a step moves it by this share of its distance from x


class Projectable(Polytope, Protocol):
    def project(self, y: Tensor) -> Tensor:
        """argmin_{v ∈ P} ‖v − y‖₂ for every lane: (lanes, d) → (lanes, d)."""


class _Curvature:
    """B = θI + Uᵀ diag(c) U of every lane: θ (lanes,), U (lanes, 2T, d), c (lanes, 2T) of ones, minus ones and zeros."""

    def __init__(self, theta: Tensor, d: int) -> None:
        lanes = len(theta)
        self.theta, self.rows, self.signs = theta, theta.new_zeros(lanes, 0, d), theta.new_zeros(lanes, 0)
        self.fresh = torch.ones(lanes, dtype=torch.bool, device=theta.device)
        self.top = torch.ones(lanes, d, dtype=theta.dtype, device=theta.device)

    def times(self, v: Tensor) -> Tensor:
        """Bv (lanes, d)."""
        inner = self.signs * torch.einsum("btd,bd->bt", self.rows, v)
        return self.theta[:, None] * v + torch.einsum("btd,bt->bd", self.rows, inner)

    def largest(self) -> Tensor:
        """An estimate of the largest eigenvalue (lanes,), from below by power steps from the last one's vector, raised by a tenth."""
        for _ in range(8):
            image = self.times(self.top)
            self.top = image / torch.clamp(torch.linalg.vector_norm(image, dim=1, keepdim=True), min=1e-300)
        return 1.1 * torch.maximum((self.top * self.times(self.top)).sum(1), self.theta)

    def learn(self, p: Tensor, y: Tensor, moved: Tensor) -> None:
        """The update for a step p with gradient change y, of the lanes that moved; a lane's first pair sets its θ as well."""
        bend, size = (p * y).sum(1), torch.clamp((p * p).sum(1), min=1e-300)
        first = self.fresh & moved & (bend > 0)
        self.theta = torch.where(first, (y * y).sum(1) / torch.clamp(bend, min=1e-300), self.theta)
        self.fresh = self.fresh & ~first
        image = self.times(p)
        model = (p * image).sum(1)
        good = moved & (size > 1e-30) & (model > 1e-300)
        share = torch.where(bend >= _DAMPING * model, torch.ones_like(bend), (1 - _DAMPING) * model / torch.clamp(model - bend, min=1e-300))
        damped = share[:, None] * y + (1 - share)[:, None] * image
        curve = torch.clamp((p * damped).sum(1), min=1e-300)
        up = damped / torch.sqrt(curve)[:, None]
        down = image / torch.sqrt(torch.clamp(model, min=1e-300))[:, None]
        self.rows = torch.cat([self.rows, torch.where(good[:, None], up, 0.0)[:, None], torch.where(good[:, None], down, 0.0)[:, None]], 1)
        self.signs = torch.cat([self.signs, good[:, None].to(p), -good[:, None].to(p)], 1)


def minimise_by_models(
    oracle: Gradient,
    polytope: Projectable,
    start: Tensor,
    *,
    function: Function,
    steps: int = 60,
    tolerance: float = 1e-7,
    progress: Callable[[int, int], None] | None = None,
) -> FrankWolfeResult:
    """From `start` (lanes, d) in P until every lane's gap is at most `tolerance`, no lane falls any more, or `steps` steps were made. Values never rise.

    `minimisations` counts the linear ones, one an iteration for the gap; steps on the models ask f nothing and are not counted.
    """
    begun, x = time.perf_counter(), start.detach().clone()
    value, slope = oracle(x)
    # the first model steps about one unit: what it costs is one pair
    B = _Curvature(torch.clamp(torch.linalg.vector_norm(slope, dim=1), min=1e-12), x.shape[1])
    gradients, evaluations, minimisations, values, t = 1, 0, 0, [value], 0
    for t in range(1, steps + 1):
        gap = ((x - polytope.minimise(slope)) * slope).sum(1)
        minimisations += 1
        direction = _model_minimiser(polytope, B, x, slope) - x
        fall = (direction * slope).sum(1)
        moving = (gap > tolerance) & (fall < 0)
        if not bool(moving.any()):
            break
        gamma, reached, asked = _armijo(function, x, direction, value, fall, moving)
        evaluations += asked
        moved = reached < value
        if not bool(moved.any()):
            break
        new = torch.where(moved[:, None], x + gamma[:, None] * direction, x)
        value_new, slope_new = oracle(new)
        gradients += 1
        B.learn(new - x, slope_new - slope, moved)
        x, value, slope = new, value_new, slope_new
        values.append(value)
        if progress is not None:
            progress(t, steps)
    gap = ((x - polytope.minimise(slope)) * slope).sum(1)
    return FrankWolfeResult(
        x, value, gap, t, gradients, evaluations, minimisations + 1, torch.stack(values), time.perf_counter() - begun
    )  # fmt: skip


def _model_minimiser(polytope: Projectable, B: _Curvature, x: Tensor, slope: Tensor) -> Tensor:
    """Accelerated projected gradient steps from x on the model, restarted where they turn uphill. No worse than x on the model."""
    length = 1.0 / B.largest()[:, None]
    z = y = x
    t = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    # a lane that is done waits: what it answers does not hang on the others
    rests = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
    for _ in range(_INNER):
        new = torch.where(rests, z, polytope.project(y - length * (slope + B.times(y - x))))
        uphill = ((y - new) * (new - z)).sum(1, keepdim=True) > 0
        t_new = torch.where(uphill, torch.ones_like(t), (1 + torch.sqrt(1 + 4 * t * t)) / 2)
        y = torch.where(uphill, new, new + (t - 1) / t_new * (new - z))
        rests = rests | ((new - z).abs().amax(1, keepdim=True) <= _ACCURATE * (new - x).abs().amax(1, keepdim=True))
        z, t = new, t_new
        if bool(rests.all()):
            break
    step = z - x
    worse = (step * slope).sum(1) + 0.5 * (step * B.times(step)).sum(1) >= 0
    return torch.where(worse[:, None], polytope.project(x - length * slope), z)


def _armijo(function: Function, x: Tensor, direction: Tensor, value: Tensor, fall: Tensor, moving: Tensor) -> tuple[Tensor, Tensor, int]:
    """(γ, f there, calls of f): halved until f ≤ f(x) + 10⁻⁴ γ⟨∇f, direction⟩; γ = 0 where it never is, and where nothing moves."""
    gamma = moving.to(x)
    reached, asked = value, 0
    for _ in range(30):
        with torch.no_grad():
            reached = function(x + gamma[:, None] * direction)
        asked += 1
        high = moving & ~(reached <= value + _ARMIJO * gamma * fall)
        if not bool(high.any()):
            break
        gamma = torch.where(high, gamma / 2, gamma)
    lost = high | ~moving
    return torch.where(lost, 0.0, gamma), torch.where(lost, value, reached), asked
