r"""Exact solutions of the one-row programs, batched in torch, without a solver.

    min ‖Wδ‖_p   s.t.   a·δ + b ≤ 0,   lo ≤ δ ≤ hi

Turn every coordinate so that it lowers the row by growing: u = −sgn(a)·δ ∈ [·, e]. Its shortest point is u⁰ = clip(0, ·, e), and where
u⁰ < e it travels on from u⁰ ≥ 0, so |δ_i| = u_i along the way and the row falls by |a_i|(u_i − u⁰_i). With need = b − Σ|a|u⁰ what remains is

    min ‖W u‖_p   s.t.   Σ |a_i|(u_i − u⁰_i) ≥ need,   u⁰ ≤ u ≤ e                    (need ≤ 0: the answer is u⁰)

    p = 1   fractional knapsack: fill the coordinates by |a_i|/w_i, largest first; λ = w_k/|a_k| of the last one touched
    p = 2   u_i(μ) = clip(μ|a_i|/w_i², u⁰_i, e_i), the μ at which the row is met (KKT of ½‖Wδ‖²); λ = μ/‖Wδ‖
    p = ∞   u_i(μ) = clip(μ/w_i, u⁰_i, e_i); λ = 1/Σ_free |a_i|/w_i, or 0 while μ < ‖Wu⁰‖ (then the box alone sets the norm)

For p = 2, ∞ the fall is non-decreasing and piecewise linear in μ. Its breakpoints are sorted, a binary search finds the interval of the root by
evaluating the fall itself (sums of non-negative terms: no cancellation), and μ follows exactly from the coordinates that are free there.
Time O(d log d), memory O(d) an instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from formulations.errors import InputError
from formulations.norms import INF, GroupNorm, Norm
from formulations.status import Status

Real = Tensor | ArrayLike
CLOSE = 1e-6  # how far, relatively, a value may lie below the verified bound and still be called optimal
BLOCK = 1 << 15  # entries worked on at once on a CPU, so that intermediate arrays stay in the cache


@dataclass(frozen=True, eq=False)
class BoxSolution:
    """n one-row programs solved; all tensors on the device and in the dtype of `a`.

    value       (n,) ‖Wδ‖ at `delta`; +inf where infeasible
    lower       (n,) verified lower bound of the optimum: weak duality from `lam`, rounded outwards; +inf where infeasible
    delta       (n, d) the minimiser, inside the box to the last bit, the row met up to rounding; NaN where infeasible
    lam         (n,) multiplier of the row for the norm itself (not its square): d value/d b; +inf where infeasible
    feasible    (n,) booleans: some point of the box meets the row, proved in spite of rounding
    infeasible  (n,) booleans: no point of the box meets the row, proved in spite of rounding

    Where neither is proved (the box reaches the row only just), `delta` is the best try and the status is UNKNOWN.
    """

    value: Tensor
    lower: Tensor
    delta: Tensor
    lam: Tensor
    feasible: Tensor
    infeasible: Tensor

    @property
    def status(self) -> list[Status]:
        met = ~(self.value < self.lower * (1 - CLOSE))  # where numbers underflow, δ falls short of the row and only `lower` stands
        verdicts = zip((self.feasible & met).tolist(), self.infeasible.tolist(), strict=True)
        return [Status.OPTIMAL if yes else Status.INFEASIBLE if no else Status.UNKNOWN for yes, no in verdicts]


def linear_radius(a: Real, b: Real, norm: Norm | float | str = 2) -> BoxSolution:
    """``b / ‖W⁻¹a‖_{p*}``: the distance to the half-space ``a·δ + b ≤ 0``; 0 where b ≤ 0, +inf where a = 0 < b.

    a (n, d), b (n,). Ties at p = 1 go to the first coordinate. Raises InputError on shapes, NaN, or a GroupNorm.
    """
    norm = Norm.of(norm)
    rows, level, w = _arguments(a, b, norm)
    ratio = rows.abs() / w
    length = torch.linalg.vector_norm(ratio, norm.dual_p, dim=1)
    infeasible = (level > 0) & (rows == 0).all(1)
    lam = torch.where((level > 0) & ~infeasible, 1 / length, 0.0)
    if norm.p == 1.0:
        shape = torch.zeros_like(rows).scatter(1, ratio.argmax(1, keepdim=True), 1.0)
    else:
        shape = ratio * lam[:, None] if norm.p == 2.0 else torch.ones_like(rows)
    value = level * lam
    delta = -value[:, None] * rows.sign() * shape / w
    lower = value * (1 - _gamma(rows.shape[1] + 6, rows.dtype))  # computed value ≤ exact·(1 + γ)
    return _blanked(value, lower, delta, lam, ~infeasible, infeasible)


def min_norm_box(a: Real, b: Real, lo: Real, hi: Real, norm: Norm | float | str = 2) -> BoxSolution:
    """``min ‖Wδ‖_p  s.t.  a·δ + b ≤ 0, lo ≤ δ ≤ hi``, one row and one box per instance, exact up to rounding.

    a (n, d), b (n,); lo, hi broadcast to (n, d), may be infinite, equal, or exclude 0. An instance with some lo > hi is infeasible.
    Ties at p = 1 are broken arbitrarily. Raises InputError on shapes, NaN, or a GroupNorm.
    """
    norm = Norm.of(norm)
    rows, level, w = _arguments(a, b, norm, lo, hi)
    low, high = _bounds("lo", lo, rows), _bounds("hi", hi, rows)
    n, size = len(rows), max(1, len(rows)) if rows.is_cuda else max(1, BLOCK // rows.shape[1])
    blocks = [slice(i, i + size) for i in range(0, max(n, 1), size)]
    parts = [_solve(rows[k], level[k], low[k], high[k], w, norm.p) for k in blocks]
    return parts[0] if len(parts) == 1 else _blanked(*(torch.cat(field) for field in zip(*map(_fields, parts), strict=True)))


def _solve(a: Tensor, b: Tensor, lo: Tensor, hi: Tensor, w: Tensor, p: float) -> BoxSolution:
    sign, slope = a.sign(), a.abs()
    base = torch.zeros_like(a).clamp(lo, hi)
    start = -sign * base
    end = torch.maximum(-sign * lo, -sign * hi).nan_to_num(0.0, INF, -INF)  # 0·inf: a coordinate that is not in the row stays at 0
    room = end - start

    empty = ~((hi - lo).amin(1) >= 0)  # also where both bounds are the same infinity
    at_base, base_error = _row(slope, b, start)
    at_end, end_error = _row(slope, b, end)
    at_once = (start == 0).all(1) & (b <= 0)  # the row at δ = 0 is b itself, without rounding
    feasible = (at_once | (at_base + base_error <= 0) | (at_end + end_error < 0) | (at_end == -INF)) & ~empty
    infeasible = (at_end - end_error > 0) | empty

    need = at_base.masked_fill(infeasible, 0.0).clamp(min=0.0)
    still = need <= 0
    if p == 1.0:
        step, lam, free = _knapsack(slope, room, w, need)
    else:
        speed = slope / (w * w) if p == 2.0 else (1 / w).expand_as(a)
        mu, rate, free = _root(slope, speed, start, end, need)
        step = (mu[:, None] * speed).clamp(start, end) - start
        lam = mu if p == 2.0 else 1 / rate
    delta = (base - sign * step).clamp(lo, hi)
    delta[still] = base[still]
    value = torch.linalg.vector_norm(w * delta, p, dim=1)
    if p == 2.0:
        lam = lam / value
    elif p == INF:
        lam = torch.where(mu < (w * base).abs().amax(1), 0.0, lam)
    lam = torch.where(still | ~torch.isfinite(lam), 0.0, lam)
    lower = _dual_bound(a, b, lo, hi, w, p, lam, delta, value, free & ~still[:, None])
    return _blanked(value, lower, delta, lam, feasible, infeasible)


def _knapsack(slope: Tensor, room: Tensor, w: Tensor, need: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """min Σ w·step  s.t.  Σ slope·step ≥ need, 0 ≤ step ≤ room: the steps, the multiplier, and the coordinate that is filled in part."""
    worth = slope / w * (room > 0)
    order = _argsort(-worth)
    steep, room = slope.gather(1, order), room.gather(1, order)
    filled = (steep * room).cumsum(1)
    k = torch.minimum((filled < need[:, None]).sum(1), (worth > 0).sum(1) - 1).clamp(min=0)[:, None]  # the last coordinate touched
    before = torch.where(k > 0, filled.gather(1, (k - 1).clamp(min=0)), 0.0)
    part = torch.minimum(((need[:, None] - before) / steep.gather(1, k)).clamp(min=0), room.gather(1, k)).nan_to_num(0.0)
    rank = torch.arange(slope.shape[1], device=slope.device)
    fill = (room * (rank < k)).nan_to_num(0.0).scatter(1, k, part)  # 0·inf: room without end is never filled
    at = order.gather(1, k)
    free = torch.zeros_like(slope, dtype=torch.bool).scatter(1, at, True)
    return torch.zeros_like(slope).scatter(1, order, fill), 1 / worth.gather(1, at)[:, 0], free


def _root(slope: Tensor, speed: Tensor, start: Tensor, end: Tensor, need: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least μ with fall(μ) = Σ slope·(clip(μ·speed, start, end) − start) ≥ need, d fall/dμ there, and the coordinates that move there."""
    top = torch.finfo(slope.dtype).max
    starts, ends = (start / speed).nan_to_num(top, top), (end / speed).nan_to_num(top, top)
    breaks = _sort(torch.cat([starts, ends], 1) if bool((start > 0).any()) else ends)
    m = breaks.shape[1]

    def fall(mu: Tensor) -> Tensor:
        return (slope * ((mu * speed).clamp(start, end) - start)).sum(1, keepdim=True)

    first, last = torch.zeros_like(need, dtype=torch.long)[:, None], torch.full_like(need, m, dtype=torch.long)[:, None]
    for _ in range(m.bit_length()):  # invariant: the fall is < need at every break before `first`, ≥ need from `last` on
        middle = (first + last) // 2
        enough = (fall(breaks.gather(1, middle.clamp(max=m - 1))) >= need[:, None]) | (middle >= m)
        first, last = torch.where(enough, first, middle + 1), torch.where(enough, middle, last)
    right = torch.where(last < m, breaks.gather(1, last.clamp(max=m - 1)), top)
    left = torch.where(last > 0, breaks.gather(1, (last - 1).clamp(min=0)), 0.0).clamp(min=0.0)
    free = (starts <= left) & (ends >= right) & (start < end)
    rate = (free * slope * speed).sum(1, keepdim=True)
    mu = torch.where(rate > 0, left + (need[:, None] - fall(left)) / rate, left)
    return torch.minimum(torch.maximum(mu, left), right)[:, 0], rate[:, 0], free


def _dual_bound(
    a: Tensor, b: Tensor, lo: Tensor, hi: Tensor, w: Tensor, p: float, lam: Tensor, delta: Tensor, value: Tensor, free: Tensor
) -> Tensor:
    """(λb + Σ min(r lo, r hi)) / max(1, ‖W⁻¹(r − λa)‖_{p*}) ≤ optimum for every λ ≥ 0 and every r; computed with outward rounding.

    Proof: ω = r − λa gives ω·δ ≤ ‖W⁻¹ω‖_{p*}‖Wδ‖, and ω·δ = r·δ − λ(a·δ) ≥ Σ min(r lo, r hi) + λb on the feasible set.
    r is taken as the float it is, so it carries no error; at the optimum ω is a subgradient of the norm and the bound is tight.
    """
    pull, sign = lam[:, None] * a, delta.sign()
    if p == 1.0:
        omega = torch.minimum(torch.maximum(w * sign - pull * (1 - sign.abs()), -w), w)
    elif p == 2.0:
        omega = w * w * delta / torch.where(value > 0, value, 1.0)[:, None]
    else:  # where λ = 0 one longest coordinate carries the whole norm
        longest = torch.zeros_like(a).scatter(1, (w * delta.abs()).argmax(1, keepdim=True), 1.0)
        omega = (lam == 0)[:, None] * longest * w * sign
    r = (pull + omega) * ~free
    terms = torch.minimum((r * lo).nan_to_num(0.0, INF, -INF), (r * hi).nan_to_num(0.0, INF, -INF))
    r = r * (terms > -INF)  # where the box has no end on that side, r must be 0 and the norm takes the rest
    terms = terms.nan_to_num(0.0, 0.0, 0.0)
    unit, gamma = torch.finfo(a.dtype).eps, _gamma(a.shape[1] + 8, a.dtype)
    total = lam * b + terms.sum(1) - gamma * ((lam * b).abs() + terms.abs().sum(1))
    slack = ((r - pull).abs() + 2 * unit * (r.abs() + pull.abs())) / w
    length: Tensor = torch.linalg.vector_norm(slack, {1.0: INF, 2.0: 2.0, INF: 1.0}[p], dim=1) * (1 + gamma)
    return torch.clamp((total / length.clamp(min=1.0) * (1 - 2 * unit)).nan_to_num(0.0), min=0.0)


def _row(slope: Tensor, b: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """b − Σ|a|u as computed, and a bound of its rounding error (the last term is for underflow)."""
    products, info = slope * u, torch.finfo(slope.dtype)
    error = _gamma(slope.shape[1] + 4, slope.dtype) * (products.abs().sum(1) + b.abs()) + slope.shape[1] * info.tiny
    return b - products.sum(1), error


def _gamma(terms: int, dtype: torch.dtype) -> float:
    """γ_k = k·u/(1 − k·u) bounds the relative error of a sum of k products in any order (Higham 2002, §3.1); doubled, to cover its own evaluation."""
    ku = terms * torch.finfo(dtype).eps / 2
    return 2 * ku / (1 - ku)


def _sort(v: Tensor) -> Tensor:
    """Rows in ascending order. On a CPU by NumPy, whose vectorised sort is ten times faster than torch's."""
    return v.sort(dim=1)[0] if v.is_cuda else torch.from_numpy(np.sort(v.numpy(), axis=1))


def _argsort(v: Tensor) -> Tensor:
    return v.argsort(dim=1) if v.is_cuda else torch.from_numpy(np.argsort(v.numpy(), axis=1))


def _blanked(value: Tensor, lower: Tensor, delta: Tensor, lam: Tensor, feasible: Tensor, infeasible: Tensor) -> BoxSolution:
    value, lower, lam = (v.masked_fill(infeasible, INF) for v in (value, lower, lam))
    if bool(infeasible.any()):
        delta = delta.masked_fill(infeasible[:, None], float("nan"))
    return BoxSolution(value, lower, delta, lam, feasible, infeasible)


def _fields(s: BoxSolution) -> tuple[Tensor, ...]:
    return s.value, s.lower, s.delta, s.lam, s.feasible, s.infeasible


def _arguments(a: Real, b: Real, norm: Norm, *others: Real) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, d), levels (n,) and weights (d,), in the finest dtype given: rounding a bound would move it."""
    if isinstance(norm, GroupNorm):
        raise InputError("closed form: a GroupNorm has none; use min_norm.")
    rows, arrays = _tensor(a), [_tensor(v) for v in (a, b, *others) if isinstance(v, Tensor | np.ndarray)]
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"closed form: a has shape {tuple(rows.shape)}; give rows (n, d), one per instance.")
    dtype = reduce(torch.promote_types, (v.dtype for v in arrays), rows.dtype)
    rows = rows.to(dtype if dtype.is_floating_point else torch.float64)
    level = _tensor(b).to(rows)
    if level.ndim > 1 or level.numel() not in (1, len(rows)):
        raise InputError(f"closed form: b has shape {tuple(level.shape)} for {len(rows)} rows; give one number per row.")
    for name, v in (("a", rows), ("b", level)):
        if v.numel() and not bool(torch.isfinite(v.abs().amax())):
            bad = v[~torch.isfinite(v)][0].item()
            raise InputError(f"closed form: {name} holds {bad}; rows must be finite, drop the instance.")
    return rows, level.reshape(-1).expand(len(rows)), torch.tensor(norm.scale(rows.shape[1]), dtype=rows.dtype, device=rows.device)


def _bounds(name: str, values: Real, like: Tensor) -> Tensor:
    v = _tensor(values).to(like)
    if v.numel() and bool(torch.isnan(v.amax())):
        raise InputError(f"closed form: {name} holds NaN; use ±inf where there is no bound.")
    try:
        return v.expand(like.shape)
    except RuntimeError:
        raise InputError(f"closed form: {name} has shape {tuple(v.shape)}, which does not fit {tuple(like.shape)}.") from None


def _tensor(v: Real) -> Tensor:
    return v.detach() if isinstance(v, Tensor) else torch.tensor(np.asarray(v))
