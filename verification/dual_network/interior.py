r"""Multipliers of  min ‖v‖  s.t.  a·v + b ≤ 0,  v ∈ box,  K v ∈ S  by interior points, for a batch of programs (‖·‖²/2 for p = 2): S of rows and of balls of
norms 1, ∞ and of small groups.

Degenerate as these programs are, splitting is slow on them. Mehrotra's (1992) predictor and corrector from an infeasible start: with residuals of the
inequalities and slopes of the Lagrangian (inequalities.py), μ the mean of y z and σ = (μ after the predictor/μ)³,

    predictor    y z → 0,        corrector    y z → σμ − Δy Δz        each by one Newton step, then as far as y, z > 0 allow, y and z apart where f is linear.

Any multiplier gives a bound, so nothing here has to be exact: `value`, the verified bound, judges the iterates, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from formulations.coupling import Coupling, CutCoupling
from formulations.norms import INF
from verification.dual_network.bands import Bands
from verification.dual_network.inequalities import Complementarity, Inequalities, couples, expressible
from verification.dual_network.newton import Newton

WIDEST, BORDER = 256, 48  # block, and full rows, up to which a step is cheap
WIDEN = 1e-9  # of the size of the change: sets without an inside, such as equations, are given one
BACK = 0.995  # of the way to where y or z would vanish
NEAR, EVERY = 1e-5, 5  # a look at the bound: where Σ y z is below this part of f, and of all every few steps
DONE = 1e-6  # relative gap of the bound to f of a nearly feasible v, below which a program leaves
STEPS = 100
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}  # numbers in one temporary
TINY = 1e-300


def bands_for(link: Coupling) -> Bands | None:
    """The bands of K where interior points suit its pieces: inequalities can say them, and a step is cheap."""
    if not expressible(link.blocks):
        return None
    pairs = couples(link).cpu().numpy()
    bands = Bands.of(_rows_of(link.K), link.K.device, pairs)
    full = bands.full.cpu().numpy()
    return bands if bands.size <= WIDEST and len(full) <= BORDER and not np.isin(pairs, full).any() else None


def _rows_of(K: Tensor) -> sp.csr_matrix:
    """K, dense or CSR, as scipy's CSR of the entries that are not zero, never laid out whole."""
    if not K.is_sparse_csr:
        return sp.csr_matrix(K.cpu().numpy())
    data, indices, indptr = (v.cpu().numpy().copy() for v in (K.values(), K.col_indices(), K.crow_indices()))
    rows = sp.csr_matrix((data, indices, indptr), shape=tuple(K.shape))
    rows.eliminate_zeros()
    rows.sort_indices()
    return rows


def interior_multipliers(
    a: Tensor,
    b: Tensor,
    lo: Tensor,
    hi: Tensor,
    p: float,
    link: Coupling,
    bands: Bands,
    value: Callable[[Tensor, Tensor], Tensor],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """(u (R, m), bound (R,)): the best multipliers of the pieces of C, over the row's own, that were met in at most so many steps (never more than STEPS).

    a (R, d), b (R,), box (R, d); `link` for the same programs and the `bands_for` it; `value(u, index)` the verified bound of the programs at `index`.
    """
    R, d = a.shape
    best = torch.zeros(R, link.size, dtype=a.dtype, device=a.device)
    bound = value(best, torch.arange(R, device=a.device))
    open_ = torch.nonzero((b > 0) & torch.isfinite(bound) & (a != 0).any(-1)).flatten()
    numbers = 4 * (d + link.size) + (2 * bands.blocks - 1) * bands.size**2
    for at in torch.split(open_, max(1, CHUNK.get(a.device.type, CHUNK["cpu"]) // numbers)):
        size = torch.linalg.vector_norm(a[at], dim=-1, keepdim=True)
        cut, h = a[at] / size, -b[at, None] / size
        path = _Path(_start(CutCoupling.of(link.take(at), cut[:, None], h[:, None]), lo[at], hi[at], h, p, bands), at, size)
        path.follow(min(steps, STEPS), best, bound, value)
    return best, bound


@dataclass(frozen=True, eq=False)
class _Point:
    """v (R, d), caps c, slacks y and multipliers z of the inequalities, and the steps' equations."""

    of: Inequalities
    bands: Bands
    room: Tensor
    v: Tensor
    c: Tensor
    y: Tensor
    z: Tensor

    def take(self, index: Tensor) -> _Point:
        return replace(self, of=self.of.take(index), v=self.v[index], c=self.c[index], y=self.y[index], z=self.z[index])

    def change(self) -> Tensor:
        """‖v‖ (R,)."""
        length: Tensor = torch.linalg.vector_norm(self.v, self.of.p, dim=-1)
        return length

    def mean(self) -> Tensor:
        """μ (R, 1)."""
        return _mean(self.of, self.y, self.z)

    def residual(self) -> Tensor:
        return torch.where(self.of.finite, self.of.apply(self.of.image(self.v), self.c) + self.y - self.of.h, 0.0)

    def step(self, residual: Tensor, mu: Tensor) -> tuple[_Point, Tensor]:
        """(the next point, whose equations could not be solved (R,))."""
        of, y, z = self.of, self.y, self.z
        about = Complementarity.about(of, y, z)
        newton, slopes = Newton.about(of, about, self.bands, self.room), of.slopes(self.v, z)
        products = about.products()
        for corrector in (False, True):
            dv, dc, dz = newton.step(slopes, residual, products)
            dy = about.slack(products, dz)
            far, up = of.room(y, dy), of.room(z, dz)
            if corrector:
                break
            if of.p == 2:
                far = up = torch.minimum(far, up)
            after = _mean(of, y + far * dy, z + up * dz)
            products = about.corrected(dy, dz, (after / mu).clamp(0, 1) ** 3 * mu)
        far, up = (BACK * far).clamp(max=1), (BACK * up).clamp(max=1)
        if of.p == 2:
            far = up = torch.minimum(far, up)
        return replace(self, v=self.v + far * dv, c=self.c + far * dc, y=y + far * dy, z=z + up * dz), newton.factor.failed


@dataclass(eq=False)
class _Path:
    """The programs that are still under way: where they are, which they are, and the lengths of their rows (R, 1)."""

    now: _Point
    at: Tensor
    size: Tensor

    def follow(self, steps: int, best: Tensor, bound: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Steps, and looks at the bound on the way: better ones are written into `best` and `bound`."""
        failed = torch.zeros_like(self.at, dtype=torch.bool)
        for k in range(steps + 1):
            now, mu = self.now, self.now.mean()
            f = now.change()
            gap = (now.of.degree * mu)[:, 0] / (f.square() / 2 if now.of.p == 2 else f)
            self.look(torch.nonzero((gap <= NEAR) | failed | (k % EVERY == EVERY - 1) | (k == steps)).flatten(), best, bound, value)
            residual, reached = now.residual(), bound[self.at]
            settled = (gap <= DONE) & (residual.abs().amax(-1) <= DONE * f) & ((reached >= f * (1 - DONE)) | (gap <= DONE * DONE))
            left = torch.nonzero(~(settled | failed) & torch.isfinite(reached) & torch.isfinite(mu[:, 0])).flatten()
            if k == steps or not len(left):
                return
            if len(left) < len(self.at):
                self.now, self.at, self.size = now.take(left), self.at[left], self.size[left]
                residual, mu = residual[left], mu[left]
            self.now, failed = self.now.step(residual, mu)

    def look(self, some: Tensor, best: Tensor, bound: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> None:
        if not len(some):
            return
        now, at = self.now, self.at[some]
        z = now.of.multipliers(now.z[some])[:, now.v.shape[1] :]
        u = torch.nan_to_num(z[:, :-1] / (z[:, -1:] / self.size[some]).clamp(min=TINY), 0.0, 0.0, 0.0)
        new = value(u, at)
        better = new > bound[at]
        best[at[better]], bound[at[better]] = u[better], new[better]


def _start(link: CutCoupling, lo: Tensor, hi: Tensor, h: Tensor, p: float, bands: Bands) -> _Point:
    """From the row's nearest point, brought into the box: slacks no less than a tenth of its size, multipliers as if optimal for the norm, y z even for others."""
    d = lo.shape[1]
    v = torch.minimum(torch.maximum(link.cut[:, 0] * h, lo), hi)
    unit = torch.maximum(v.abs().amax(-1, keepdim=True), h.abs() * d**-0.5)
    of = Inequalities.of(link, lo, hi, p, WIDEN * unit)
    w, budgets, k = of.image(v), of.parts(of.h).budgets, of.straight
    caps = [v.abs() + unit] if p == 1 else [2 * unit.expand(-1, d)] if p == INF else []
    caps += [(budgets[:, j : j + 1] / of.load[:, ball].sum()).expand(-1, ball.stop - ball.start) for j, ball in enumerate(of.balls)]
    c = torch.cat(caps, -1) if caps else v[:, :0]
    y = torch.where(of.finite, of.h - of.apply(w, c), 1.0)
    y[:, :k] = torch.where(of.finite[:, :k], y[:, :k].clamp(min=0.1 * unit), 1.0)
    heads, tails = of.cones.split(y[:, k:])
    y[:, k:] = of.cones.join(torch.maximum(heads, 1.1 * of.cones.sums(tails.square()).sqrt() + 0.1 * unit), tails)
    mu = {1.0: 0.5 * unit, INF: 0.5 * unit / d}.get(p, 0.1 * unit * v.abs().mean(-1, keepdim=True).clamp(min=1e-9 * unit))
    z = torch.cat([torch.where(of.finite[:, :k], mu / y[:, :k], 0.0), mu * of.cones.inverse(y[:, k:])], -1)
    for pairs in (of.parts(z).plus, of.parts(z).minus):
        pairs[:, of.norm] = 0.5 if p == 1 else 0.5 / d
    return _Point(of, bands, bands.storage(len(v), v), v, c, y, z)


def _mean(of: Inequalities, y: Tensor, z: Tensor) -> Tensor:
    """μ = y·z over numbers and cones (R, 1); of numbers that are not there z = 0."""
    mean: Tensor = torch.linalg.vecdot(y, z).unsqueeze(-1) / of.degree
    return mean
