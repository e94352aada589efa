r"""Frank–Wolfe methods for smooth functions on polytopes with a cheap linear minimiser, many problems (lanes) in lockstep on torch.

    v = argmin_{v ∈ P} ⟨∇f(x), v⟩,     gap(x) = ⟨∇f(x), x − v⟩ ≥ 0,     x ← x + γ(v − x)

For convex f the gap bounds f(x) − min f; for a nonconvex f it only measures stationarity (0 exactly at stationary points).

    PLAIN         steps towards v
    AWAY          x is kept as a convex combination of vertices; where that promises more, steps away from the worst of them
    LAZY          a known vertex is taken whenever it promises at least Θ; the linear minimiser is asked only when none does (Θ is halved then)
    LAZY_AWAY     both

A stochastic method is PLAIN with the OPEN step and an oracle that draws its gradients. Sources: Jaggi (2013); Lacoste-Julien and Jaggi (2015) for away
steps; Braun, Pokutta, Zink (2017) for lazy ones; Pedregosa, Negiar, Askari, Jaggi (2020) for ADAPTIVE; Carderera, Besançon, Pokutta for MONOTONE.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from formulations.errors import InputError
from formulations.vertex_sets import Birkhoff, Polytope, SparseBox

Function = Callable[[Tensor], Tensor]  # (lanes, d) → (lanes,)
Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]  # (lanes, d) → values (lanes,), gradients (lanes, d)


class Variant(Enum):
    PLAIN = "plain"
    AWAY = "away"
    LAZY = "lazy"
    LAZY_AWAY = "lazy-away"

    @property
    def away(self) -> bool:
        return self in (Variant.AWAY, Variant.LAZY_AWAY)

    @property
    def lazy(self) -> bool:
        return self in (Variant.LAZY, Variant.LAZY_AWAY)


class Step(Enum):
    """Length γ of step t = 0, 1, …

    OPEN      1/√(t + 1)
    MONOTONE  2^−N/√(t + 1), N raised until f does not rise (it never falls again)
    ADAPTIVE  min(gap/(M‖d‖²), γ_max) with the curvature M found by doubling until f falls as M promises
    """

    OPEN = "open"
    MONOTONE = "monotone"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, eq=False)
class FrankWolfeResult:
    """point (lanes, d), value and dual_gap (lanes,) there (the gap of one last linear minimisation), and what it took.

    gradients, evaluations, minimisations count the calls for the whole batch: one lane's share is the same number. values: f after every step (steps, lanes).
    """

    point: Tensor
    value: Tensor
    dual_gap: Tensor
    iterations: int
    gradients: int
    evaluations: int
    minimisations: int
    values: Tensor
    seconds: float


def gradient_of(f: Function) -> Gradient:
    """(value, gradient) by reverse differentiation. Raises InputError when f does not depend differentiably on its point."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        point = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            value = f(point)
            if not value.requires_grad:
                raise InputError("the function gives no gradient at its point; a model must not detach its input.")
            (slope,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), slope

    return both


@dataclass(eq=False)
class _Vertices:
    """The vertices seen, per lane: points (lanes, T, d) and weights (lanes, T), Σ weights = 1. Without away steps the weights are not used."""

    points: Tensor
    weights: Tensor
    used: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.used = torch.ones_like(self.weights, dtype=torch.bool)

    def products(self, gradient: Tensor) -> Tensor:
        return torch.einsum("btd,bd->bt", self.points, gradient)

    def index_of(self, v: Tensor) -> Tensor:
        """Slot (lanes,) of each lane's vertex v, which is added where it is new."""
        same = (self.points == v[:, None]).all(2) & self.used
        slot = same.to(torch.int64).argmax(1)
        new = ~same.any(1)
        if bool(new.any()):
            free = ~self.used
            if not bool((free.any(1) | ~new).all()):
                lanes, count = self.weights.shape
                grow = max(8, count // 2)
                self.points = torch.cat([self.points, self.points.new_zeros(lanes, grow, v.shape[1])], 1)
                self.weights = torch.cat([self.weights, self.weights.new_zeros(lanes, grow)], 1)
                self.used = torch.cat([self.used, self.used.new_zeros(lanes, grow)], 1)
                free = ~self.used
            place = free.to(torch.int64).argmax(1)
            slot = torch.where(new, place, slot)
            lanes_new = torch.nonzero(new).ravel()
            self.points[lanes_new, slot[lanes_new]] = v[lanes_new]
            self.weights[lanes_new, slot[lanes_new]] = 0.0
            self.used[lanes_new, slot[lanes_new]] = True
        return slot


def minimise(
    oracle: Gradient,
    polytope: Polytope,
    start: Tensor,
    *,
    function: Function | None = None,
    variant: Variant = Variant.PLAIN,
    step: Step = Step.ADAPTIVE,
    steps: int = 200,
    tolerance: float = 1e-7,
    report: Gradient | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FrankWolfeResult:
    """min f over P from the vertex `start` (lanes, d), until every lane's gap is at most `tolerance` or `steps` steps were made.

    function: values alone, cheaper than `oracle`, for the step searches (not needed by OPEN). report: the exact oracle for the final value and gap, where
    `oracle` draws its gradients. The iterates never leave P.
    Raises InputError on a step search without `function`.
    """
    if function is None and step is not Step.OPEN:
        raise InputError(f"step={step.value!r} compares values; pass function=, or use step='open'.")
    begun, x = time.perf_counter(), start.detach().clone()
    lanes = len(x)
    keep = variant.away or variant.lazy
    known = _Vertices(x[:, None].clone(), torch.ones(lanes, 1, dtype=x.dtype, device=x.device)) if keep else None
    theta = torch.full((lanes,), float("nan"), dtype=x.dtype, device=x.device)
    rule = _Rule(step, function, lanes, x)
    count = {"gradients": 0, "minimisations": 0}
    values: list[Tensor] = []
    gap = torch.full((lanes,), float("inf"), dtype=x.dtype, device=x.device)
    t = 0
    for t in range(steps):
        value, slope = oracle(x)
        count["gradients"] += 1
        here = (slope * x).sum(1)
        towards, promise, asked = _direction(polytope, known if variant.lazy else None, slope, here, theta)
        count["minimisations"] += int(asked is not None)
        if asked is not None:
            gap = asked  # of all lanes: the linear minimiser was asked for the batch
            if variant.lazy:
                theta = torch.where(torch.isnan(theta), gap / 2, torch.where(promise >= theta, theta, torch.minimum(gap, theta / 2)))
            if report is None and bool((gap <= tolerance).all()):  # a drawn gradient says nothing about the gap
                break
        direction, longest, slot, away = towards - x, torch.ones_like(here), None, None
        if variant.away:
            assert known is not None
            slot, away, direction, longest, promise = _away(known, slope, here, towards, direction, promise, x)
        moving = (promise > 0) & ((gap > tolerance) | (report is not None))
        gamma = rule.length(x, direction, value, promise, longest, t) * moving
        x = x + gamma[:, None] * direction
        if variant.away:
            assert known is not None
            assert slot is not None
            assert away is not None
            _reweigh(known, slot, away, gamma, longest)
        elif known is not None:
            known.index_of(towards)
        values.append(value)
        if progress is not None:
            progress(t + 1, steps)
    value, slope = (report or oracle)(x)
    gap = ((x - polytope.minimise(slope)) * slope).sum(1)
    values.append(value)
    return FrankWolfeResult(
        x, value, gap, t + 1 if steps else 0, count["gradients"] + 1, rule.evaluations, count["minimisations"] + 1, torch.stack(values),
        time.perf_counter() - begun,
    )  # fmt: skip


def _direction(
    polytope: Polytope, known: _Vertices | None, slope: Tensor, here: Tensor, theta: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(vertex to step towards, ⟨∇f, x − vertex⟩, the true gap where the linear minimiser was asked)."""
    if known is not None and not bool(torch.isnan(theta).any()):
        scores = known.products(slope).masked_fill(~known.used, float("inf"))
        best, place = scores.min(1)
        if bool((here - best >= theta).all()):
            return known.points[torch.arange(len(here)), place], here - best, None
    vertex = polytope.minimise(slope)
    gap = here - (vertex * slope).sum(1)
    return vertex, gap, gap


def _away(
    known: _Vertices, slope: Tensor, here: Tensor, towards: Tensor, direction: Tensor, promise: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per lane, away from the active vertex with the largest ⟨∇f, ·⟩ where that promises more than the step towards."""
    rows = torch.arange(len(x))
    scores = known.products(slope).masked_fill(~(known.used & (known.weights > 0)), float("-inf"))
    worst, place = scores.max(1)
    share = known.weights[rows, place]
    away = (worst - here > promise) & (share < 1)
    slot = torch.where(away, place, known.index_of(torch.where(away[:, None], known.points[rows, place], towards)))
    direction = torch.where(away[:, None], x - known.points[rows, place], direction)
    longest = torch.where(away, share / torch.clamp(1 - share, min=1e-300), torch.ones_like(share))
    return slot, away, direction, longest, torch.where(away, worst - here, promise)


def _reweigh(known: _Vertices, slot: Tensor, away: Tensor, gamma: Tensor, longest: Tensor) -> None:
    """Weights after x ← x + γ(v − x), or x ← x + γ(x − v): they stay ≥ 0 with sum 1; an emptied vertex is dropped."""
    rows = torch.arange(len(slot))
    sign = torch.where(away, -gamma, gamma)
    known.weights = known.weights * (1 - sign)[:, None]
    known.weights[rows, slot] += sign
    known.weights = torch.clamp(known.weights, min=0.0)
    emptied = away & (gamma >= longest)
    known.weights[rows[emptied], slot[emptied]] = 0.0
    known.used = known.used & (known.weights > 0)
    known.weights = known.weights / known.weights.sum(1, keepdim=True)


class _Rule:
    """Step lengths of all lanes, with what each remembers (N or M)."""

    def __init__(self, step: Step, function: Function | None, lanes: int, like: Tensor) -> None:
        self.step, self.function, self.evaluations = step, function, 0
        self.halvings = torch.zeros(lanes, dtype=like.dtype, device=like.device)
        self.curvature = torch.full((lanes,), float("nan"), dtype=like.dtype, device=like.device)

    def _value(self, x: Tensor) -> Tensor:
        assert self.function is not None
        self.evaluations += 1
        with torch.no_grad():
            return self.function(x)

    def length(self, x: Tensor, d: Tensor, value: Tensor, promise: Tensor, longest: Tensor, t: int) -> Tensor:
        if self.step is Step.OPEN:
            return torch.minimum(longest, torch.full_like(longest, (t + 1) ** -0.5))
        if self.step is Step.MONOTONE:
            return self._monotone(x, d, value, longest, t)
        return self._adaptive(x, d, value, promise, longest)

    def _monotone(self, x: Tensor, d: Tensor, value: Tensor, longest: Tensor, t: int) -> Tensor:
        for _ in range(60):
            gamma = torch.minimum(longest, 2.0**-self.halvings * (t + 1) ** -0.5)
            rises = self._value(x + gamma[:, None] * d) > value
            if not bool(rises.any()):
                return gamma
            self.halvings = self.halvings + rises
        return torch.where(rises, torch.zeros_like(gamma), gamma)

    def _adaptive(self, x: Tensor, d: Tensor, value: Tensor, promise: Tensor, longest: Tensor) -> Tensor:
        length2 = torch.clamp((d**2).sum(1), min=1e-300)
        first = torch.isnan(self.curvature)
        M = torch.where(first, promise / length2, 0.7 * self.curvature)  # the first guess makes the full step
        M = torch.clamp(M, min=1e-12)
        for _ in range(60):
            gamma = torch.minimum(longest, promise / (M * length2))
            reached = self._value(x + gamma[:, None] * d)
            high = reached > value - gamma * promise + 0.5 * gamma**2 * M * length2
            if not bool(high.any()):
                break
            M = torch.where(high, 2 * M, M)
        self.curvature = torch.where(high, M * 2.0**-55, M)  # where rounding hides every fall, the lane rests and its M is kept
        return torch.where(high, torch.zeros_like(gamma), gamma)


__all__ = [
    "Birkhoff", "FrankWolfeResult", "Function", "Gradient", "Polytope", "SparseBox", "Step", "Variant", "gradient_of", "minimise",
]  # fmt: skip
