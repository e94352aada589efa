r"""Linear functions over a ball and a box together, batched in torch: the closed forms behind `formulations.support`.

For B_r = { δ : ‖δ‖_p ≤ r, lo ≤ δ ≤ hi } and any multiplier μ ≥ 0 of the ball, weak duality in one scalar gives

    σ(A; r) = max_{δ ∈ B_r} A·δ  ≤  C(μ) + μ·ℓ(r),       ℓ(r) = r  (p = 1, ∞),   r²/2  (p = 2)

    p = 1   C(μ) = Σ_i max_{lo_i ≤ δ ≤ hi_i} (A_i δ − μ|δ|)            at μ = the last |A_i| that the budget r reaches: fractional knapsack
    p = 2   C(μ) = Σ_i max_{lo_i ≤ δ ≤ hi_i} (A_i δ − ½ μ δ²)          at the μ where ‖clip(A/μ, lo, hi)‖₂ = r
    p = ∞   C, μ split Σ_i |A_i| min(cap_i, r) by whether the box or the ball stops coordinate i

The pair (C, μ) is a bound for *every* radius, not only for the r it was found at; at that r it is exact. Shapes: A (n, s, d), box (n, 1, d), radius
broadcastable to (n, s). All functions are over an unweighted norm: scale the coordinates by W first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formulations.norms import INF

TINY = {torch.float64: 1e-150, torch.float32: 1e-18}  # a positive number whose square is still one


def level(radius: Tensor, p: float) -> Tensor:
    """ℓ(r), in which the bound C + μ·ℓ(r) is affine."""
    return radius * radius / 2 if p == 2 else radius


def radius_at(levels: Tensor, p: float) -> Tensor:
    """The radius r with ℓ(r) = levels."""
    return (2 * levels.clamp(min=0)).sqrt() if p == 2 else levels


def nearest_to_zero(lo: Tensor, hi: Tensor) -> Tensor:
    """argmin { ‖δ‖ : lo ≤ δ ≤ hi }, the same point in every norm here."""
    return lo.clamp(min=0) + hi.clamp(max=0)


def affine_support(A: Tensor, lo: Tensor, hi: Tensor, radius: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """(C, μ), both (n, s), with max { A·δ : ‖δ‖_p ≤ t, lo ≤ δ ≤ hi } ≤ C + μ·ℓ(t) for every t, and equality at t = radius. Differentiable in A."""
    if p == 2:
        with torch.no_grad():
            mu = _multiplier_l2(A, lo, hi, radius).unsqueeze(-1)
        delta = torch.minimum(torch.maximum(A / mu, lo), hi)
        return (delta * (A - mu / 2 * delta)).sum(-1), torch.where(mu > TINY[mu.dtype], mu, 0.0).squeeze(-1).expand(A.shape[:-1])
    base = nearest_to_zero(lo, hi)  # every other point of the box lies further out in each coordinate, so ‖δ‖₁ = ‖base‖₁ + ‖δ − base‖₁
    gain, cap = A.abs(), torch.where(A >= 0, hi - base, base - lo)
    start, spent = (A * base).sum(-1), base.abs()
    if p == 1:
        mu = _multiplier_l1(gain, cap, (radius - spent.sum(-1)).clamp(min=0))
        over = gain > mu.unsqueeze(-1)
        room = torch.where(over, cap, 0.0)  # an infinite cap is never above the threshold
        return start + (room * torch.where(over, gain - mu.unsqueeze(-1), 0.0)).sum(-1) - mu * spent.sum(-1), mu
    boxed = cap <= radius.unsqueeze(-1) - spent
    constant = torch.where(boxed, torch.where(boxed, cap, 0.0), -spent)
    return start + (gain * constant).sum(-1), torch.where(boxed, 0.0, gain).sum(-1)


def _multiplier_l1(gain: Tensor, cap: Tensor, budget: Tensor) -> Tensor:
    """Threshold μ of the knapsack that spends `budget` on the largest gains first: 0 when everything fits."""
    ordered, order = gain.sort(-1, descending=True)
    spent = cap.expand_as(gain).gather(-1, order).cumsum(-1)
    reached = (spent < budget.unsqueeze(-1)).sum(-1, keepdim=True)
    mu = ordered.gather(-1, reached.clamp(max=gain.shape[-1] - 1))
    return torch.where(reached < gain.shape[-1], mu, 0.0).squeeze(-1)


def _multiplier_l2(A: Tensor, lo: Tensor, hi: Tensor, radius: Tensor, rounds: int = 60) -> Tensor:
    """μ > 0 with ‖clip(A/μ, lo, hi)‖₂ = r; tiny where the box lies inside the ball."""
    tiny = TINY[A.dtype]
    r = radius.clamp(min=tiny)
    mu: Tensor = (A.norm(dim=-1) / r).expand(A.shape[:-1]).clamp(min=tiny)
    if bool((lo <= 0).all() and (hi >= 0).all()):
        # Coordinates leave the free set as μ falls and never return, so the fixpoint iteration ends after finitely many rounds.
        cap, size = torch.where(A >= 0, hi, -lo), A.abs()
        for _ in range(rounds):
            stopped = size >= mu.unsqueeze(-1) * cap
            left = r * r - torch.where(stopped, cap, 0.0).square().sum(-1)
            free = torch.where(stopped, 0.0, size).norm(dim=-1)
            # nothing is free (the box is inside the ball), or rounding ate the rest of the ball: keep μ
            new = torch.where(free > 0, torch.where(left > 0, free / left.clamp(min=tiny**2).sqrt(), mu), tiny)
            new = torch.minimum(new, mu).clamp(min=tiny)
            done = bool((new >= mu * (1 - 1e-15)).all())
            mu = new
            if done:
                break
        return mu
    low, high = mu * 1e-18, mu * 1e18
    for _ in range(90):  # ‖clip(A/μ)‖ falls in μ: bisection in log μ over 36 decades
        middle = (low * high).sqrt()
        outside = torch.minimum(torch.maximum(A / middle.unsqueeze(-1), lo), hi).norm(dim=-1) > r
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return high


def project(v: Tensor, lo: Tensor, hi: Tensor, radius: Tensor, p: float, theta: Tensor, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """(argmin { ‖δ − v‖₂ : ‖δ‖_p ≤ radius, lo ≤ δ ≤ hi }, multiplier θ of the ball), θ (n, s) refined from a first guess: a step of an iteration, never a bound."""
    r = radius.unsqueeze(-1)
    if p == INF:
        return torch.minimum(torch.maximum(v, torch.maximum(lo, -r)), torch.minimum(hi, r)), theta
    if p == 2:
        inside = torch.minimum(torch.maximum(v / (1 + theta.unsqueeze(-1)), lo), hi).norm(dim=-1) <= radius
        theta = torch.where(inside, theta, (v.norm(dim=-1) / radius.clamp(min=1e-30) - 1).clamp(min=0))
        for _ in range(rounds):  # from above: δ = clip(v/(1+θ)), and the free part must fill what the stopped part leaves of the ball
            free = v / (1 + theta.unsqueeze(-1))
            delta = torch.minimum(torch.maximum(free, lo), hi)
            stopped = delta != free
            left = (radius.square() - torch.where(stopped, delta, 0.0).square().sum(-1)).clamp(min=1e-30)
            theta = (torch.where(stopped, 0.0, v).norm(dim=-1) / left.sqrt() - 1).clamp(min=0)
        return torch.minimum(torch.maximum(v / (1 + theta.unsqueeze(-1)), lo), hi), theta
    cap = torch.where(v >= 0, hi, -lo).clamp(min=0)
    theta = threshold(v.abs(), torch.ones_like(v[..., :1]), cap, radius, theta, rounds)
    return torch.minimum(torch.maximum(v.sign() * (v.abs() - theta.unsqueeze(-1)).clamp(min=0), lo), hi), theta


def threshold(size: Tensor, weight: Tensor, cap: Tensor | None, budget: Tensor, theta: Tensor, rounds: int = 3) -> Tensor:
    """θ ≥ 0 with Σ weight·min((size − θ·weight)₊, cap) ≈ budget, or 0 when that is below it: soft thresholds of ℓ1 projections, by Newton from a guess."""
    low, high = torch.zeros_like(theta), (size / weight).amax(-1)
    theta = torch.minimum(theta, high)
    for _ in range(rounds):
        left = (size - theta.unsqueeze(-1) * weight).clamp(min=0)
        moving = left > 0
        if cap is not None:
            moving &= left < cap
            left = torch.minimum(left, cap)
        excess = (weight * left).sum(-1) - budget
        low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
        slope = (weight * weight * moving).sum(-1)
        step = theta + excess / slope.clamp(min=1e-30)
        middle = (low + high) / 2
        theta = torch.where((step >= low) & (step <= high), step, torch.where(step < 0, torch.zeros_like(step), middle))
    return theta
