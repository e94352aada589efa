r"""min f(v), v ∈ box, a·v ≤ h, K v ∈ S with S of rows and of 1- and ∞-balls, as inequalities, and the Newton steps of their optimality conditions.

With w = (v, Kv, â·v) and caps c of the absolute values that a norm or a ball adds up, the inequalities G(v, c) + y = h, y ≥ 0, with multipliers z ≥ 0 are

    ranges    w ≤ u,  −w ≤ −l                 box, rows, ∞-balls, the row
    pairs     w − c ≤ −e,  −w − c ≤ e         1-balls, Σc ≤ ρ for each (its multiplier ζ), and ‖·‖:  f = Σc for p = 1, f = c, one for all, for p = ∞

With W = z/y and θ = (W⁺ − W⁻)/(W⁺ + W⁻) of a pair, its cap leaves a step's equations: it weighs 4W⁺W⁻/(W⁺ + W⁻), and a range W⁺ + W⁻. What remains,

    [ M  C ] [ Δv ]     M = [f = ‖·‖²/2] + K̂ᵀ diag(ω) K̂ without full rows (bands.py)
    [ Cᵀ E ] [ Δβ ]     β: the cap of p = ∞, each ζ, and ω × (K̂ Δv) of full rows and the row: E = Σ(W⁺ + W⁻), −Σ1/(W⁺ + W⁻) − y/ζ, −1/ω

is solved by M's factors and the Schur complement of the border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from formulations.coupling import Ball, CutCoupling, Rows
from formulations.norms import INF
from verification.dual_network.bands import Bands

Step = tuple[Tensor, Tensor, Tensor]  # of v, c, z


def polyhedral(blocks: tuple[tuple[slice, Rows | Ball], ...]) -> bool:
    """Are all pieces rows or unweighted 1- and ∞-balls of a given radius?"""
    return all(isinstance(b, Rows) or (b.labels is None and b.rho is not None and b.p in (1, INF)) for _, b in blocks)


@dataclass(frozen=True, eq=False)
class Inequalities:
    """Right sides h (R, N), ranges up and down, pairs plus and minus, budgets; `finite`: those that are there. `link` ends in the row; p of the norm.

    ranges, pairs: slices of w; balls: the pairs of each budget, as slices of c. For p = 1, ∞ the first d pairs are the norm's.
    """

    link: CutCoupling
    p: float
    ranges: tuple[slice, ...]
    pairs: tuple[slice, ...]
    balls: tuple[slice, ...]
    h: Tensor
    finite: Tensor

    @staticmethod
    def of(link: CutCoupling, lo: Tensor, hi: Tensor, p: float, widen: Tensor) -> Inequalities:
        """From the box (R, d) and the blocks of `link`, all by `widen` (R, 1) wider, so that there is an inside."""
        R, d = lo.shape
        ranges, pairs, balls, upper, lower, shift, budgets = [slice(0, d)], [], [], [hi], [-lo], [], []
        begun = 0
        if p != 2:
            pairs.append(slice(0, d))
            shift.append(torch.zeros_like(lo))
            begun = d
        for where, block in link.blocks:
            at = slice(d + where.start, d + where.stop)
            if isinstance(block, Rows):
                h = block.h[:, 0].expand(R, -1)
                ranges.append(at)
                upper.append(h)
                lower.append(-h if block.equality else torch.full_like(h, INF))
                continue
            assert block.rho is not None
            e, rho = block.e[:, 0].expand(R, -1), block.rho.expand(R, 1)
            if block.p == INF:
                ranges.append(at)
                upper.append(rho - e)
                lower.append(rho + e)
            else:
                pairs.append(at)
                shift.append(e)
                budgets.append(rho)
                balls.append(slice(begun, begun + e.shape[1]))
                begun += e.shape[1]
        h = torch.cat([*upper, *lower, *(-e for e in shift), *shift, *budgets], -1)
        finite = torch.isfinite(h)
        return Inequalities(link, p, tuple(ranges), tuple(pairs), tuple(balls), torch.where(finite, h + widen, 0.0), finite)

    def take(self, index: Tensor) -> Inequalities:
        return replace(self, link=self.link.take(index), h=self.h[index], finite=self.finite[index])

    @property
    def norm(self) -> slice:
        """The norm's own pairs, as a slice of c."""
        return slice(0, 0 if self.p == 2 else self.link.cut.shape[-1])

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(up, down, plus, minus, budgets) of z (R, N)."""
        n, k = (sum(s.stop - s.start for s in of) for of in (self.ranges, self.pairs))
        up, down, plus, minus, budgets = torch.split(z, [n, n, k, k, len(self.balls)], -1)
        return up, down, plus, minus, budgets

    def image(self, v: Tensor) -> Tensor:
        """w (R, d + m + 1)."""
        return torch.cat([v, self.link.apply(v[:, None])[:, 0]], -1)

    def pull(self, w: Tensor) -> Tensor:
        """The adjoint of `image`."""
        d = self.link.cut.shape[-1]
        back: Tensor = w[:, :d] + self.link.back(w[:, None, d:])[:, 0]
        return back

    def apply(self, w: Tensor, c: Tensor) -> Tensor:
        """G (R, N) of an image and caps."""
        r, q = (torch.cat([w[:, s] for s in of], -1) if of else w[:, :0] for of in (self.ranges, self.pairs))
        return torch.cat([r, -r, q - c, -q - c, *(c[:, b].sum(-1, keepdim=True) for b in self.balls)], -1)

    def spread(self, ranges: Tensor, pairs: Tensor) -> Tensor:
        """Numbers of the ranges and pairs, at their places in w."""
        w = ranges.new_zeros(len(ranges), self.link.cut.shape[-1] + self.link.size)
        for of, numbers in ((self.ranges, ranges), (self.pairs, pairs)):
            begun = 0
            for s in of:
                w[:, s] += numbers[:, begun : begun + s.stop - s.start]
                begun += s.stop - s.start
        return w

    def multipliers(self, z: Tensor) -> Tensor:
        """Of w (R, d + m + 1)."""
        up, down, plus, minus, _ = self.parts(z)
        return self.spread(up - down, plus - minus)

    def slopes(self, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What of the Lagrangian's derivatives in v and in c is left; of p = ∞ the cap's own is the sum over the norm's pairs, and 1 for each is their share."""
        _, _, plus, minus, price = self.parts(z)
        in_v = self.pull(self.multipliers(z))
        in_c = -plus - minus
        for j, ball in enumerate(self.balls):
            in_c[:, ball] += price[:, j : j + 1]
        in_c[:, self.norm] += 1.0 if self.p == 1 else 1.0 / max(self.norm.stop, 1)
        return (in_v + v if self.p == 2 else in_v), in_c

    def newton(self, y: Tensor, z: Tensor, bands: Bands, room: Tensor) -> Newton:
        """The equations of a step from (y, z), factored."""
        W = torch.where(self.finite, z / y, 0.0)
        up, down, plus, minus, budget = self.parts(W)
        total, tilt = plus + minus, plus - minus
        lean = tilt / total
        own = 4 * plus * minus / total
        d, shared = self.link.cut.shape[-1], self.p == INF
        if shared:
            own = torch.cat([total[:, :d], own[:, d:]], -1)
        weight = self.spread(up + down, own)
        diagonal = weight[:, :-1].clone()
        if self.p == 2:
            diagonal[:, :d] += 1
        factor = bands.factor(diagonal, room)
        columns: list[Tensor] = []
        corner: list[Tensor] = []
        if shared:
            columns.append(-tilt[:, :d])
            corner.append(total[:, :d].sum(-1))
        none = torch.zeros_like(up)
        for j, ball in enumerate(self.balls):
            only = torch.zeros_like(lean)
            only[:, ball] = lean[:, ball]
            columns.append(self.pull(self.spread(none, only)))
            corner.append(-((1 / total[:, ball]).sum(-1) + 1 / budget[:, j]))
        for row in bands.full.tolist():
            unit = torch.zeros_like(weight)
            unit[:, d + row] = 1.0
            columns.append(self.pull(unit))
            corner.append(-1 / weight[:, d + row])
        columns.append(self.link.cut[:, 0])
        corner.append(-1 / weight[:, -1])
        C = torch.stack(columns, -1)
        MC = factor.solve(C)
        schur = torch.linalg.lu_factor_ex(torch.diag_embed(torch.stack(corner, -1)) - C.mT @ MC)
        solve = factor.solve
        row = sum(s.stop - s.start for s in self.ranges) - 1
        full = tuple(bands.full.tolist())
        return Newton(self, y, z, W, total, tilt, lean, weight, full, row, C, MC, (schur.LU, schur.pivots), factor.failed, solve)


@dataclass(frozen=True, eq=False)
class Newton:
    """A step's equations; `failed` (R,): its matrix was not positive definite in floating point."""

    of: Inequalities
    y: Tensor
    z: Tensor
    W: Tensor
    total: Tensor
    tilt: Tensor
    lean: Tensor
    weight: Tensor
    full: tuple[int, ...]
    row: int
    C: Tensor
    MC: Tensor
    schur: tuple[Tensor, Tensor]
    failed: Tensor
    solve: Callable[[Tensor], Tensor]

    def step(self, slopes: tuple[Tensor, Tensor], residual: Tensor, products: Tensor) -> Step:
        """(Δv, Δc, Δz) for which, to first order, slopes and residuals vanish and y z falls by `products`."""
        of, W = self.of, self.W
        d, shared, norm = of.link.cut.shape[-1], of.p == INF, of.norm
        q = torch.where(of.finite, W * residual - products / self.y, 0.0)  # Δz = W GΔ + q
        up, down, plus, minus, _ = of.parts(q)
        loose = (plus + minus - slopes[1]) / self.total  # Δc = lean Δw + loose − Δζ/total
        pairs = plus - minus - self.tilt * loose
        if shared:
            pairs = torch.cat([(plus - minus)[:, :d], pairs[:, d:]], -1)
        push = of.spread(up - down, pairs)
        held = [*(d + row for row in self.full), push.shape[1] - 1]
        given = -push[:, held] / self.weight[:, held]
        push[:, held] = 0.0
        right = -slopes[0] - of.pull(push)
        corner: list[Tensor] = [(plus + minus - slopes[1])[:, :d].sum(-1)] if shared else []
        budgets = slice(W.shape[1] - len(of.balls), W.shape[1])
        over = products[:, budgets] / self.z[:, budgets] - residual[:, budgets]
        corner += [over[:, j] - loose[:, ball].sum(-1) for j, ball in enumerate(of.balls)]
        corner += given.unbind(-1)
        Mr = self.solve(right[..., None])
        beta = torch.linalg.lu_solve(*self.schur, torch.stack(corner, -1)[..., None] - self.C.mT @ Mr)
        dv, beta = (Mr - self.MC @ beta)[..., 0], beta[..., 0]
        w = of.image(dv)
        dc = self.lean * (torch.cat([w[:, s] for s in of.pairs], -1) if of.pairs else w[:, :0]) + loose
        if shared:
            dc[:, norm] = beta[:, :1]
        prices = beta[:, int(shared) : int(shared) + len(of.balls)]
        for j, ball in enumerate(of.balls):
            dc[:, ball] -= prices[:, j : j + 1] / self.total[:, ball]
        dz = W * of.apply(w, dc) + q
        dz[:, budgets] = prices
        dz[:, self.row] = beta[:, -1]
        return dv, dc, dz
