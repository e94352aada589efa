r"""Good multipliers for support functions of coupled sets, by batched ADMM.

    max A·δ   s.t.   δ ∈ B (ball ∩ box),   K δ ∈ S            split as  z = δ ∈ B,  z_K = Kδ ∈ S,   scaled multipliers y, u

    δ   = (I + KᵀK)⁻¹ ((A − y)·t + z + Kᵀ(z_K − u t))          one inverse for the whole batch; t = 1/penalty, of the size of δ
    z   = P_B(δ + y t),  z_K = P_S(Kδ + u t),  y, u += (δ − z)/t, (Kδ − z_K)/t     over-relaxed (Boyd et al. 2011)

The u of any step is a valid multiplier, so this file needs no care for rounding: it works in float32 with warm-started scalar roots, rows leave the batch
when they have converged, and what is reported is evaluated elsewhere, in float64 (formulations/support.py). Averages of u are tried beside the last one:
they settle where p = 1 and ∞ make single iterates swing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from formulations.ball_box import affine_support, level, project
from formulations.coupling import Coupling

SMALL = 1e-30
RELAX = 1.5
EVERY = 20  # steps between looks at the bound
CONVERGED = 1e-4  # relative distance of bound and primal estimate, or gain of the bound in three looks, at which a row leaves


@dataclass(frozen=True, eq=False)
class Problem:
    """R programs: rows A (R, 1, d), boxes (R, 1, d), radii (R, 1), exponent p, coupling for the same rows."""

    A: Tensor
    lo: Tensor
    hi: Tensor
    radius: Tensor
    p: float
    link: Coupling

    def take(self, index: Tensor) -> Problem:
        return replace(self, A=self.A[index], lo=self.lo[index], hi=self.hi[index], radius=self.radius[index], link=self.link.take(index))

    def bound(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(c, μ), each (R, 1), of the bound c + μ·ℓ(t) at multipliers u (R, 1, m)."""
        c, mu = affine_support(self.A - self.link.back(u), self.lo, self.hi, self.radius, self.p)
        for where, block in self.link.blocks:
            constant, slope = block.sigma(u[..., where])
            c, mu = c + constant, mu + slope
        return c, mu

    def value(self, u: Tensor) -> Tensor:
        c, mu = self.bound(u)
        return torch.nan_to_num(c + mu * level(self.radius, self.p), nan=torch.inf)


@dataclass(frozen=True, eq=False)
class _State:
    z: Tensor
    y: Tensor
    zk: Tensor
    u: Tensor
    total: Tensor
    roots: tuple[Tensor, ...]  # last soft thresholds: of B, then of each block

    def take(self, index: Tensor) -> _State:
        z, y, zk, u, total = (v[index] for v in (self.z, self.y, self.zk, self.u, self.total))
        return _State(z, y, zk, u, total, tuple(r[index] for r in self.roots))


def ascend(problem: Problem, steps: int) -> Tensor:
    """Multipliers (R, 1, m) whose bound is the best met, never worse (up to float32) than that of u = 0."""
    size = problem.A.norm(dim=-1, keepdim=True).clamp(min=SMALL)
    now = replace(problem, A=problem.A / size)
    best = torch.zeros(len(size), 1, now.link.size, dtype=size.dtype, device=size.device)
    value = now.value(best)
    largest = now.A.abs().amax(-1, keepdim=True).clamp(min=SMALL)
    root = torch.zeros_like(now.radius)
    far, _ = project(now.A * (now.radius.unsqueeze(-1) / largest * 1e3), now.lo, now.hi, now.radius, now.p, root, rounds=12)
    t = 0.8 * far.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    flat = torch.zeros_like(now.A)
    state = _State(flat, flat, torch.zeros_like(best), torch.zeros_like(best), torch.zeros_like(best), (root,) * (1 + len(now.link.blocks)))
    active, calm = torch.arange(len(size), device=size.device), torch.zeros_like(value)
    for done in range(0, steps, EVERY):
        count = min(EVERY, steps - done)
        state, x = _run(now, state, t, count)
        split = (x - state.z).norm(dim=-1) + (now.link.apply(state.z) - state.zk).norm(dim=-1)
        before = value[active]
        estimate = torch.where(split <= 1e-3 * t.squeeze(-1), (now.A * state.z).sum(-1), -torch.inf)
        for candidate in (state.u, state.total / count):
            u = torch.cat([block.feasible(candidate[..., where]) for where, block in now.link.blocks], -1)
            new = now.value(u)
            better = (new < value[active]).squeeze(-1)
            best[active[better]], value[active[better]] = u[better], new[better]
        tail = value[active]
        calm = torch.where(before - tail <= CONVERGED * tail.abs(), calm + 1, 0)
        left = (((tail - estimate).abs() > CONVERGED * tail.abs()) & (calm < 3)).squeeze(-1)
        if not bool(left.any()):
            break
        if float(left.double().mean()) < 0.8:
            kept = torch.nonzero(left).flatten()
            now, state, t, active, calm = now.take(kept), state.take(kept), t[kept], active[kept], calm[kept]
    result: Tensor = best * size
    return result


def _run(problem: Problem, state: _State, t: Tensor, count: int) -> tuple[_State, Tensor]:
    """`count` steps; the state with the sum of their u, and the last δ."""
    link, roots = problem.link, list(state.roots)
    z, y, zk, u, total, x = state.z, state.y, state.zk, state.u, torch.zeros_like(state.u), state.z
    for _ in range(count):
        x = link.solve((problem.A - y) * t + z + link.back(zk - u * t))
        xr, kr = RELAX * x + (1 - RELAX) * z, RELAX * link.apply(x) + (1 - RELAX) * zk
        z, roots[0] = project(xr + y * t, problem.lo, problem.hi, problem.radius, problem.p, roots[0])
        y = y + (xr - z) / t
        target = kr + u * t
        parts = []
        for j, (where, block) in enumerate(link.blocks):
            part, roots[j + 1] = block.project(target[..., where], problem.radius, roots[j + 1])
            parts.append(part)
        zk = torch.cat(parts, -1)
        u = (target - zk) / t
        total = total + u
    return _State(z, y, zk, u, total, tuple(roots)), x
