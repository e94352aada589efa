r"""Multipliers of  min ‖v‖  s.t.  a·v + b ≤ 0,  v ∈ box,  K v ∈ S  by operator splitting, for a batch of programs (‖·‖²/2 for p = 2: the same multipliers).

With s the point, its image and its row, (v, Kv, â·v) for â = a/‖a‖, both halves of a step are cheap for the whole batch:

    z = prox_{t(‖·‖ + box)} × P_S × P_{· ≤ −b/‖a‖} (s)        q = (x, Kx, â·x),  x = (I + KᵀK + ââᵀ)⁻¹ (1, Kᵀ, â)(2z − s)
    T(s) = s + 2(q − z)                                        Peaceman–Rachford; multipliers  (s − z)/t, those of K over that of the row

Iterates are drawn towards where the round began, s ← s₀/(k+2) + T(s)(k+1)/(k+2) (Halpern), and a round ends when ‖q − z‖ has fallen far, rises again or takes
long; then t is brought towards the ratio of the ways that points and multipliers went (restarts as Lu & Yang 2024, Chen et al. 2024 for linear programs, where
they converge linearly, which plain splitting does not show before many steps). Any multiplier gives a bound, so nothing here has to be exact: `value`, the
verified bound, judges the iterates, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from formulations.coupling import Coupling, CutCoupling, Rows

EVERY = 20  # steps between looks at the bound
DONE = 1e-6  # relative gap of the bound to ‖z‖ of a nearly feasible z, below which a program leaves
FAR, RISING, LONG = (
    0.2,
    0.8,
    0.3,
)  # a round ends: residual at this part of its first; at this part and rising; steps as this part of all so far
LEAST = 8  # steps of a round
SPAN = 3  # by which t may leave its first size for p = 1, ∞, where early ways of points and multipliers say little of later ones
NEWTON = 6  # steps for the ceiling
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class _State:
    """Per program, (R, 1, …): coupling, box, step t and its first, iterate s; of the round its first s, z and multipliers, steps k, first and last residual."""

    link: CutCoupling
    lo: Tensor
    hi: Tensor
    t: Tensor
    t0: Tensor
    s: Tensor
    first: Tensor
    z0: Tensor
    m0: Tensor
    k: Tensor
    begun: Tensor
    last: Tensor
    roots: tuple[Tensor, ...]  # soft thresholds of the proximal maps, from one step to the next

    def take(self, index: Tensor) -> _State:
        tensors = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name not in ("link", "roots")}
        return _State(link=self.link.take(index), roots=tuple(root[index] for root in self.roots), **tensors)


def split_multipliers(
    a: Tensor, b: Tensor, lo: Tensor, hi: Tensor, p: float, link: Coupling, value: Callable[[Tensor, Tensor], Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """(u (R, m), bound (R,)): the best multipliers of the pieces of C, over the row's own, that were met in so many steps.

    a (R, d), b (R,), box (R, d); `link` for the same programs; `value(u, index)` the verified bound of the programs at `index` under u.
    """
    size = torch.linalg.vector_norm(a, dim=-1).clamp(min=TINY)
    at = torch.arange(len(a), device=a.device)
    best = torch.zeros(len(a), link.size, dtype=a.dtype, device=a.device)
    bound = value(best, at)
    now = _start(CutCoupling.of(link, (a / size[:, None])[:, None], (-b / size)[:, None, None]), lo[:, None], hi[:, None], p)
    for done in range(0, steps, EVERY):
        z, m, gap = now.s, now.m0, now.t
        for j in range(min(EVERY, steps - done)):
            now, z, m, gap = _step(now, p, done + j)
        u = m[:, 0, a.shape[1] :]
        price = u[:, -1:] / size[at, None]  # of the row
        u = torch.where(price > 0, u[:, :-1] / price.clamp(min=TINY), 0.0)
        new = value(torch.nan_to_num(u, 0.0, 0.0, 0.0), at)
        better = new > bound[at]
        best[at[better]], bound[at[better]] = u[better], new[better]
        length = torch.linalg.vector_norm(z[:, 0, : a.shape[1]], p, dim=-1)
        settled = (gap[:, 0, 0] <= DONE * z[:, 0].norm(dim=-1)) & (bound[at] >= length * (1 - DONE))
        left = torch.nonzero(~settled & torch.isfinite(bound[at])).flatten()
        if not len(left):
            break
        if len(left) < 0.8 * len(at):
            now, at = now.take(left), at[left]
    return best, bound


def _start(link: CutCoupling, lo: Tensor, hi: Tensor, p: float) -> _State:
    """From the row's nearest point, brought into the box; t of the size of the change for p = ∞, of a coordinate of it for p = 1."""
    row = link.blocks[-1][1]
    assert isinstance(row, Rows)
    z = torch.minimum(torch.maximum(link.cut * row.h, lo), hi)
    length = z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    t = torch.ones_like(length) if p == 2 else length * (z.shape[-1] ** -0.5 if p == 1 else 1.0)
    s = torch.cat([z, link.apply(z)], -1)
    none = torch.zeros_like(t)
    return _State(link, lo, hi, t, t, s, s, s, torch.zeros_like(s), none, none, none, (none,) + (none[..., 0],) * len(link.blocks))


def _step(now: _State, p: float, done: int) -> tuple[_State, Tensor, Tensor, Tensor]:
    """(the state after one step, z, multipliers, ‖q − z‖)."""
    d, link = now.lo.shape[-1], now.link
    z, roots = _prox(now, p)
    back = 2 * z - now.s
    x = link.solve(back[..., :d] + link.back(back[..., d:]))
    q = torch.cat([x, link.apply(x)], -1)
    gap = torch.linalg.vector_norm(q - z, dim=-1, keepdim=True)
    fresh, m = now.k == 0, (now.s - z) / now.t
    begun = torch.where(fresh, gap, now.begun)
    z0, m0 = torch.where(fresh, z, now.z0), torch.where(fresh, m, now.m0)
    k = now.k + 1
    s = (now.first + (now.s + 2 * (q - z)) * k) / (k + 1)
    over = (k > LEAST) & ((gap <= FAR * begun) | ((gap <= RISING * begun) & (gap > now.last)) | (k >= LONG * (done + 1)))
    way, turn = ((v - w).norm(dim=-1, keepdim=True) for v, w in ((z, z0), (m, m0)))
    want = (now.t * way / turn.clamp(min=TINY)).sqrt()
    if p != 2:
        want = torch.minimum(torch.maximum(want, now.t0 / SPAN), now.t0 * SPAN)
    t = torch.where(over & (way > 0) & (turn > 0), want, now.t)
    s = torch.where(over, z + m * t, s)  # the same point and multipliers under the new t
    first, k = torch.where(over, s, now.first), torch.where(over, 0.0, k)
    return _State(link, now.lo, now.hi, t, now.t0, s, first, z0, m0, k, begun, gap, roots), z, m, gap


def _prox(now: _State, p: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(z, roots), block by block; thresholds are found by Newton steps from where they were last."""
    d = now.lo.shape[-1]
    w, t, root = now.s[..., :d], now.t, now.roots[0]
    if p == 2:
        point = torch.minimum(torch.maximum(w / (1 + t), now.lo), now.hi)
    elif p == 1:
        point = torch.minimum(torch.maximum(w.sign() * (w.abs() - t).clamp(min=0), now.lo), now.hi)
    else:
        root = _ceiling(w.abs(), torch.where(w >= 0, now.hi, -now.lo), t, root)
        point = torch.minimum(torch.maximum(w, torch.maximum(now.lo, -root)), torch.minimum(now.hi, root))
    parts, roots = [point], [root]
    for (where, block), warm in zip(now.link.blocks, now.roots[1:], strict=True):
        v = now.s[..., d:][..., where]
        _, near = block.project(v, now.t[..., 0], warm)
        part, near = block.project(v, now.t[..., 0], near)
        parts.append(part)
        roots.append(near)
    return torch.cat(parts, -1), tuple(roots)


def _ceiling(size: Tensor, cap: Tensor, t: Tensor, guess: Tensor) -> Tensor:
    """c ≥ 0 with Σ (size − c) over min(size, cap) > c equal to t, or 0 when that is below it: the ceiling of prox t‖·‖_∞ in a box."""
    top = torch.minimum(size, cap)
    low, high = torch.zeros_like(t), top.amax(-1, keepdim=True)
    c = torch.minimum(guess, high)
    for _ in range(NEWTON):
        over = top > c
        excess = torch.where(over, size - c, 0.0).sum(-1, keepdim=True) - t
        low, high = torch.where(excess > 0, c, low), torch.where(excess > 0, high, c)
        step = c + excess / over.sum(-1, keepdim=True).clamp(min=1)
        c = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return c
