r"""Dual ascent on the true network: a local KKT point of the smallest change that crosses a boundary, and three scores read off it. LOCAL: never a certificate.

    minimise (1/p)‖δ‖_p^p   subject to   h(x₀ + δ) ≤ 0   [and lo ≤ δ ≤ hi],          p ∈ {1, 2}
    P1  h = f_c − τ         P2  h = f_c − f_t − ε                                  (one margin row: verification/decision.py)

    outer   λ ← [λ + α h(x₀ + δ)]₊                       ascent on the dual function, whose slope is h at the inner minimiser
    inner   δ ← minimiser of  L = (1/p)‖δ‖_p^p + λ h     by descent

h is not convex, so the inner minimiser may jump as λ moves and plain ascent then circles a value of λ at which no single δ has h = 0. With a penalty ρ > 0

    L_ρ = (1/p)‖δ‖_p^p + ([λ + ρh]₊² − λ²)/(2ρ),        α = ρ            (method of multipliers: Hestenes 1969, Powell 1969, Rockafellar 1973)

has the same KKT points and is convex near one where L alone is not; `penalty=0` is the plain scheme. Inner steps linearise h at δ_j and add a proximal term,

    δ_{j+1} = argmin (1/p)‖δ‖_p^p + ([λ + ρ(h_j + a·(δ − δ_j))]₊²)/(2ρ) + (σ/2)‖δ − δ_j‖²  over the box,     a = ∇h(δ_j)

which is δ(μ) coordinate by coordinate, with one scalar μ: clip((σδ_j − μa)/(1 + σ)) at p = 2, clip(soft(δ_j − μa/σ, 1/σ)) at p = 1. σ rises until L_ρ falls.
With σ = ρ = 0 and p = 2 this is the gradient step δ ← −λa, exact for a linear h: there λ* = h(x₀)/‖∇h‖².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from formulations.pieces import BoxPiece, bounding_box
from formulations.programs import relative_parts
from formulations.sets.base import ConvexSet
from verification.decision import Decision
from verification.model import batch_of, decide, float64_copy, outputs, stack

PATIENCE = 8  # outer steps on the boundary without a smaller residual after which an input stops: it sits at a kink
LOCAL = "Local: a KKT point of the true network at best. Not a bound and not a certificate; use LagrangeDualExplainer for those."


@dataclass(frozen=True, eq=False)
class DualAscentHistory:
    """What every outer step ended with, (steps + 1, n): multiplier, h, (1/p)‖δ‖_p^p, KKT residual. An input that has stopped repeats its last row."""

    multiplier: Array
    margin: Array
    objective: Array
    residual: Array


@dataclass(frozen=True, eq=False)
class DualAscentResult:
    """n local answers; `label` says what they are not.

    delta       (n, d) the change δ*
    multiplier  (n,) λ* of (1/p)‖δ‖_p^p (at p = 2 divide by ‖δ‖ for that of the norm)
    margin      (n,) h(x₀ + δ*), in the outputs' units; ≈ 0 at an answer
    residual    (n,) ‖δ* − prox(δ* − sλ*∇h)‖/‖δ*‖: how far from stationary, box included. At a kink of a ReLU network one gradient is not enough, and it stays
    converged   (n,) |h| and the residual below their tolerances
    boundary_gradient, output_gradient  (n, d) ∇h and ∇f_c at x₀ + δ*
    """

    p: int
    delta: Array
    multiplier: Array
    margin: Array
    residual: Array
    converged: NDArray[np.bool_]
    boundary_gradient: Array
    output_gradient: Array
    targets: tuple[int, ...]
    history: DualAscentHistory
    label: str = LOCAL

    @property
    def distance(self) -> Array:
        """‖δ*‖_p (n,): of a local point, neither a lower nor (h may be > 0) an upper bound."""
        return np.asarray(np.linalg.norm(self.delta, self.p, axis=1))

    @property
    def change_scores(self) -> Array:
        """|δ*_i| (n, d)."""
        return np.abs(self.delta)

    @property
    def boundary_scores(self) -> Array:
        """|λ*∇h(x₀ + δ*)|_i (n, d). At a KKT point with p = 2, equal to |δ*_i| on every coordinate that no bound holds."""
        return np.abs(self.multiplier[:, None] * self.boundary_gradient)

    @property
    def output_scores(self) -> Array:
        """|λ*∇f_c(x₀ + δ*)|_i (n, d)."""
        return np.abs(self.multiplier[:, None] * self.output_gradient)


def dual_ascent(
    model: nn.Module,
    x0: ArrayLike | Tensor,
    p: Literal[1, 2] = 2,
    constraints: ConvexSet | None = None,
    *,
    decisions: Decision | Sequence[Decision] | None = None,
    penalty: float = 1.0,
    step: float = 1.0,
    outer: int = 60,
    inner: int = 40,
    tolerance: float = 1e-6,
    device: torch.device | str | None = None,
) -> DualAscentResult:
    """Dual ascent for ``min (1/p)‖δ‖_p^p s.t. h(x₀ + δ) ≤ 0`` on the network itself, batched over the inputs.

    x0 (n, *shape); `constraints` a box or nothing; `decisions` of one row each (`Decision.threshold` is P1, `Decision.pair` is P2), by default the
    predicted class against the runner-up. `penalty` ρ in units of 1/‖∇h(x₀)‖² (raised where h stalls); 0 is plain dual ascent with steps
    `step`/√k in the same units. `tolerance`: of |h| relative to |h(x₀)|, and of the KKT residual.
    Raises InputError for p = 1 without a finite box, for other sets than boxes, and for decisions of several rows.
    """
    if p not in (1, 2):
        raise InputError(f"dual_ascent: p={p} is not one of 1, 2; for p='inf' use LagrangeDualExplainer.")
    net = float64_copy(model, device)
    x = batch_of(x0, None, next((w.device for w in net.parameters()), device))
    d = x[0].numel()
    chosen = _single_rows(outputs(net, x), decisions)
    lo, hi = _box(constraints, x, d, p)
    Q, s, _ = stack(chosen, x)
    task = _Task(net, x, Q[:, 0], s[:, 0], lo, hi, p)
    state, history = _ascend(task, penalty, step, outer, inner, tolerance)
    targets = tuple(int(np.argmax(np.abs(c.rows[0]))) for c in chosen)
    output = task.output_gradient(state.delta, torch.tensor(targets, device=x.device))
    done = (state.h.abs() <= tolerance * task.h0.abs()) & (state.residual <= max(tolerance, 1e-12))
    return DualAscentResult(
        p, _np(state.delta), _np(state.lam), _np(state.h), _np(state.residual), done.cpu().numpy(), _np(state.a), _np(output), targets, history
    )  # fmt: skip


def _single_rows(y: Tensor, decisions: Decision | Sequence[Decision] | None) -> list[Decision]:
    if decisions is None:
        if y.shape[1] == 1:
            raise InputError("dual_ascent: the model has one output; pass decisions=Decision.threshold(0, tau, outputs=1).")
        first, second = y.topk(2, dim=1).indices.T.tolist()
        decisions = [Decision.pair(c, t, y.shape[1]) for c, t in zip(first, second, strict=True)]
    chosen = decide(y, decisions)
    many = next((c for c in chosen if len(c.rows) != 1), None)
    if many is not None:
        raise InputError(
            f"dual_ascent: '{many.label}' has {len(many.rows)} rows; ascent has one multiplier, pass decision.only(k) or Decision.pair."
        )
    return chosen


def _box(constraints: ConvexSet | None, x: Tensor, d: int, p: int) -> tuple[Tensor, Tensor]:
    parts = relative_parts(constraints, d, x.flatten(1).cpu().numpy(), len(x))
    other = next((part for part in parts if not isinstance(part.piece, BoxPiece)), None)
    if other is not None:
        raise InputError(
            f"dual_ascent: the constraint '{other.name}' is no box; the inner descent projects on boxes only, use LagrangeDualExplainer."
        )
    lo, hi = (np.broadcast_to(v, (len(x), d)) for v in bounding_box(parts, d))
    if (lo > 0).any() or (hi < 0).any():
        i, j = np.argwhere((lo > 0) | (hi < 0))[0]
        raise InputError(f"dual_ascent: input {i} lies outside the box at coordinate {j} by {max(lo[i, j], -hi[i, j]):g}; clip it first.")
    if p == 1 and not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise InputError(
            "dual_ascent: p=1 needs a box with finite bounds: on a linear piece with λ|∂h/∂x_i| > 1 the inner problem ‖δ‖₁ + λh is unbounded below; "
            "pass constraints=Box(lower, upper)."
        )
    return torch.tensor(lo, device=x.device), torch.tensor(hi, device=x.device)


@dataclass(eq=False)
class _State:
    """Where the inputs stand: δ, λ, ρ, σ, h and a = ∇h at δ, residual."""

    delta: Tensor
    lam: Tensor
    rho: Tensor
    sigma: Tensor
    h: Tensor
    a: Tensor
    residual: Tensor

    def take(self, index: Tensor) -> _State:
        return _State(*(v[index] for v in vars(self).values()))

    def put(self, index: Tensor, part: _State) -> None:
        for name, value in vars(part).items():
            getattr(self, name)[index] = value


class _Task:
    """The batch: h with gradients at changes of chosen inputs, and the proximal operator of (1/p)‖·‖_p^p over their boxes."""

    def __init__(self, net: nn.Module, x: Tensor, Q: Tensor, s: Tensor, lo: Tensor, hi: Tensor, p: int) -> None:
        self.net, self.shape, self.p = net, tuple(x.shape[1:]), p
        self.x, self.Q, self.s, self.lo, self.hi = x.flatten(1), Q, s, lo, hi
        self.bounded = bool(torch.isfinite(lo).any() or torch.isfinite(hi).any())
        self.h0, self.a0 = self.margin(torch.zeros_like(self.x), torch.arange(len(x), device=x.device))

    def margin(self, delta: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        """(h (k,), ∇h (k, d)) of inputs `who` at their changes."""
        z = (self.x[who] + delta).requires_grad_(True)
        with torch.enable_grad():
            h = (self.net(z.view(-1, *self.shape)) * self.Q[who]).sum(1) + self.s[who]
            (a,) = torch.autograd.grad(h.sum(), z)
        return h.detach(), a

    def output_gradient(self, delta: Tensor, target: Tensor) -> Tensor:
        z = (self.x + delta).requires_grad_(True)
        with torch.enable_grad():
            picked: Tensor = self.net(z.view(-1, *self.shape)).gather(1, target[:, None])
            (g,) = torch.autograd.grad(picked.sum(), z)
        return g.detach()

    def objective(self, delta: Tensor) -> Tensor:
        return delta.abs().sum(1) if self.p == 1 else 0.5 * delta.square().sum(1)

    def shift(self, delta: Tensor, push: Tensor, sigma: Tensor, who: Tensor) -> Tensor:
        """argmin (1/p)‖·‖_p^p + push·(·) + (σ/2)‖· − δ‖² over the box, coordinate by coordinate."""
        sigma = sigma[:, None]
        if self.p == 2:
            free = (sigma * delta - push) / (1 + sigma)
        else:
            pulled = delta - push / sigma
            free = pulled.sign() * (pulled.abs() - 1 / sigma).clamp(min=0)
        return torch.minimum(torch.maximum(free, self.lo[who]), self.hi[who])

    def residual(self, delta: Tensor, lam: Tensor, a: Tensor, who: Tensor) -> Tensor:
        """‖δ − prox(δ − sλ∇h)‖/‖δ‖ with s = 1 at p = 2 and the size of δ at p = 1; 0 exactly at KKT points."""
        reach = delta.norm(dim=1).clamp(min=1e-300)
        sigma = torch.zeros_like(lam) if self.p == 2 else 1 / delta.abs().amax(1).clamp(min=1e-12)
        still: Tensor = delta - self.shift(delta, lam[:, None] * a, sigma, who)
        share: Tensor = still.square().sum(1).sqrt() / reach
        return share


def _ascend(task: _Task, penalty: float, step: float, outer: int, inner: int, tolerance: float) -> tuple[_State, DualAscentHistory]:
    n = len(task.x)
    everyone = torch.arange(n, device=task.x.device)
    square = task.a0.square().sum(1).clamp(min=1e-300)
    lam = task.h0 / square if task.p == 2 else 1 / task.a0.abs().amax(1).clamp(min=1e-300)
    unit = 1 / square if task.p == 2 else lam / task.h0  # λ per unit of h
    delta = torch.zeros_like(task.x)
    sigma = torch.zeros_like(lam) if task.p == 2 else 1 / (task.h0 * lam)
    state = _State(delta, lam, penalty * unit, sigma, task.h0.clone(), task.a0.clone(), torch.ones_like(lam))
    rows = [_row(task, state)]
    active, best = everyone, task.h0.abs().clone()
    closest, since = torch.full_like(lam, torch.inf), torch.zeros(n, dtype=torch.long, device=lam.device)
    for k in range(1, outer + 1):
        part = state.take(active)
        _descend(task, part, active, inner, tolerance)
        alpha = part.rho if penalty > 0 else step * unit[active] / k**0.5
        part.lam = (part.lam + alpha * part.h).clamp(min=0)
        part.residual = task.residual(part.delta, part.lam, part.a, active)
        if penalty > 0:  # h must halve from step to step; where it does not, the penalty is too weak
            stalled = part.h.abs() > 0.5 * best[active]
            part.rho = torch.where(stalled & (part.rho < 1e6 * unit[active]), 3 * part.rho, part.rho)
        best[active] = torch.minimum(best[active], part.h.abs())
        state.put(active, part)
        rows.append(_row(task, state))
        better = part.residual < 0.9 * closest[active]
        closest[active] = torch.minimum(closest[active], part.residual)
        since[active] = torch.where(better, 0, since[active] + 1)
        on_boundary = part.h.abs() <= tolerance * task.h0[active].abs()
        active = active[~(on_boundary & ((part.residual <= tolerance) | (since[active] >= PATIENCE)))]
        if not len(active):
            break
    columns = (np.stack(c) for c in zip(*rows, strict=True))
    return state, DualAscentHistory(*columns)


def _row(task: _Task, state: _State) -> tuple[Array, Array, Array, Array]:
    return _np(state.lam), _np(state.h), _np(task.objective(state.delta)), _np(state.residual)


def _descend(task: _Task, now: _State, who: Tensor, steps: int, tolerance: float) -> None:
    """Proximal-linear descent on L_ρ in place, from where the inputs stand; σ falls after a good step and rises until a step is good."""
    value = _lagrangian(task, now.delta, now.h, now)
    moving = torch.arange(len(who), device=who.device)
    floor = torch.zeros_like(now.sigma) if task.p == 2 else 1e-3 / (task.h0[who] / task.a0[who].abs().amax(1).clamp(min=1e-300))
    for _ in range(steps):
        part, at = now.take(moving), who[moving]
        new = _proximal_step(task, part, at)
        h, a = task.margin(new, at)
        lower = _lagrangian(task, new, h, part)
        gone = new - part.delta
        bend = part.sigma + (1.0 if task.p == 2 else 0.0)  # the step's own model is this strongly convex
        good = lower <= value[moving] - 5e-5 * bend * gone.square().sum(1)
        size = gone.norm(dim=1)
        index = moving[good]
        now.delta[index], now.h[index], now.a[index], value[index] = new[good], h[good], a[good], lower[good]
        now.sigma[index] = torch.where(part.sigma[good] > 1e-3, 0.3 * part.sigma[good], 0.0).maximum(floor[index])
        now.sigma[moving[~good]] = 4 * part.sigma[~good] + (0.25 if task.p == 2 else 0.0)
        small = size <= 0.1 * tolerance * (now.delta[moving].norm(dim=1) + 1e-12)
        moving = moving[~(small | (now.sigma[moving] > 1e12))]
        if not len(moving):
            return


def _lagrangian(task: _Task, delta: Tensor, h: Tensor, state: _State) -> Tensor:
    """L_ρ, or L where ρ = 0."""
    plain = state.lam * h
    rho = state.rho.clamp(min=1e-300)
    bent = ((state.lam + rho * h).clamp(min=0).square() - state.lam.square()) / (2 * rho)
    return task.objective(delta) + torch.where(state.rho > 0, bent, plain)


def _proximal_step(task: _Task, s: _State, who: Tensor) -> Tensor:
    """The step of the module docstring: μ = [λ + ρ(h + a·(δ(μ) − δ))]₊, whose right side falls as μ grows, by regula falsi."""

    def at(mu: Tensor) -> Tensor:
        return task.shift(s.delta, mu[:, None] * s.a, s.sigma, who)

    if not bool((s.rho > 0).any()):
        return at(s.lam)

    def answer(mu: Tensor) -> Tensor:
        return (s.lam + s.rho * (s.h + (s.a * (at(mu) - s.delta)).sum(1))).clamp(min=0)

    if task.p == 2 and not task.bounded:  # δ(μ) is linear
        square = s.a.square().sum(1) / (1 + s.sigma)
        return at((s.lam + s.rho * (s.h - (s.a * s.delta).sum(1) / (1 + s.sigma))).clamp(min=0) / (1 + s.rho * square))
    low = torch.zeros_like(s.lam)
    high = answer(low)
    above, below = high.clone(), answer(high) - high  # answer(μ) − μ at both ends: ≥ 0 and ≤ 0
    side = torch.zeros_like(low)
    for _ in range(30):  # regula falsi, the weight of an end that stays halved (Illinois): superlinear, exact once inside one linear piece
        mid = torch.where(above - below > 0, low + (high - low) * above / (above - below).clamp(min=1e-300), low)
        gap = answer(mid) - mid
        up = gap > 0
        above = torch.where(up, gap, torch.where(side < 0, 0.5 * above, above))
        below = torch.where(up, torch.where(side > 0, 0.5 * below, below), gap)
        low, high, side = torch.where(up, mid, low), torch.where(up, high, mid), torch.where(up, 1.0, -1.0)
        if bool((gap.abs() <= 1e-13 * mid).all()):
            break
    return at(mid)


def _np(v: Tensor) -> Array:
    return np.array(v.detach().cpu().numpy())
