r"""Newton's step for the conditions of `inequalities.py`: slopes of the Lagrangian, residuals of the inequalities, products of slacks and multipliers.

With W = z/y, a pair weighs as its cap leaves the equations: by 4W⁺W⁻/(W⁺ + W⁻), with its cap following by θ = (W⁺ − W⁻)/(W⁺ + W⁻); a range weighs W⁺ + W⁻, a
group by what is left of W⁻² without its head (cones.py). What remains for Δv and a border Δβ,

    [ M  C ] [ Δv ]     M = [f = ‖·‖²/2] + K̂ᵀ Ω K̂ without full rows (bands.py)
    [ Cᵀ E ] [ Δβ ]     β: the cap of p = ∞, ζ of each budget, multipliers of full rows and of the row

with E = Σ(W⁺ + W⁻), −Σω²/(W⁺ + W⁻) − y/ζ, −1/ω, is solved by M's factors and the border's Schur complement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from formulations.norms import INF
from verification.dual_network.bands import Bands, Factor
from verification.dual_network.inequalities import Complementarity, Inequalities


@dataclass(frozen=True, eq=False)
class Newton:
    """The equations about one point. Of caps: total (R, C); of pairs and tails: lean (R, X); of w: weight; held: full rows, the row."""

    of: Inequalities
    at: Complementarity
    total: Tensor
    lean: Tensor
    weight: Tensor
    held: list[int]
    C: Tensor
    MC: Tensor
    schur: tuple[Tensor, Tensor]
    factor: Factor

    @staticmethod
    def about(of: Inequalities, at: Complementarity, bands: Bands, room: Tensor) -> Newton:
        """Factored; `room` is `bands.storage`."""
        W = of.parts(at.W)
        alpha, tilt, own, beside = at.cones.reduced(of.beside)
        pairs, d, shared = W.plus + W.minus, of.dim, of.p == INF
        total = torch.cat([pairs, alpha], -1)
        lean = torch.cat([(W.plus - W.minus) / pairs, tilt], -1)
        weigh = torch.cat([4 * W.plus * W.minus / pairs, own], -1)
        if shared:
            weigh[:, :d] = pairs[:, :d]
        weight = of.spread(W.up + W.down, weigh)
        diagonal = weight[:, :-1].clone()
        if of.p == 2:
            diagonal[:, :d] += 1
        factor = bands.factor(torch.cat([diagonal, beside], -1), room)
        columns = [(W.minus - W.plus)[:, :d]] if shared else []
        corner = [pairs[:, :d].sum(-1)] if shared else []
        none = torch.zeros_like(W.up)
        for j, ball in enumerate(of.balls):
            mine = torch.zeros_like(of.load)
            mine[:, ball] = of.load[:, ball]
            columns.append(of.pull(of.spread(none, lean * of.of_entries(mine))))
            corner.append(-((of.load[:, ball].square() / total[:, ball]).sum(-1) + 1 / W.budgets[:, j]))
        held = [*(d + row for row in bands.full.tolist()), weight.shape[1] - 1]
        for row in held[:-1]:
            unit = torch.zeros_like(weight)
            unit[:, row] = 1.0
            columns.append(of.pull(unit))
        columns.append(of.link.cut[:, 0])
        corner += [-1 / weight[:, row] for row in held]
        C = torch.stack(columns, -1)
        MC = factor.solve(C)
        schur = torch.linalg.lu_factor_ex(torch.diag_embed(torch.stack(corner, -1)) - C.mT @ MC)
        return Newton(of, at, total, lean, weight, held, C, MC, (schur.LU, schur.pivots), factor)

    def step(self, slopes: tuple[Tensor, Tensor], residual: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Δv, Δc, Δz) for which, to first order, slopes and residuals vanish and the products fall by `products`."""
        of, d, shared, load = self.of, self.of.dim, self.of.p == INF, self.of.load
        q = self.at.lead(products, residual)
        part, norm = of.parts(q), of.norm
        heads, tails = of.cones.split(part.cones)
        caps = torch.cat([part.plus + part.minus, heads], -1) - slopes[1]
        loose = caps / self.total  # Δc = lean Δw + loose − ω Δζ/total
        force = torch.cat([part.plus - part.minus, -tails], -1)
        pushed = force - self.lean * of.of_entries(caps)
        if shared:
            pushed[:, :d] = force[:, :d]
        push = of.spread(part.up - part.down, pushed)
        given = -push[:, self.held] / self.weight[:, self.held]
        push[:, self.held] = 0.0
        right = -slopes[0] - of.pull(push)
        corner = [caps[:, :d].sum(-1)] if shared else []
        budgets = slice(of.straight - len(of.balls), of.straight)
        over = products[:, budgets] / self.at.z[:, budgets] - residual[:, budgets]
        corner += [over[:, j] - (load[:, ball] * loose[:, ball]).sum(-1) for j, ball in enumerate(of.balls)]
        corner += given.unbind(-1)
        Mr = self.factor.solve(right[..., None])
        beta = torch.linalg.lu_solve(*self.schur, torch.stack(corner, -1)[..., None] - self.C.mT @ Mr)
        dv, beta = (Mr - self.MC @ beta)[..., 0], beta[..., 0]
        w = of.image(dv)
        follow = self.lean * of.gather(w, (*of.pairs, *of.tails))
        pairs = follow.shape[1] - len(of.cones.labels)
        dc = (torch.cat([follow[:, :pairs], of.cones.sums(follow[:, pairs:])], -1) if of.cones.count else follow) + loose
        if shared:
            dc[:, norm] = beta[:, :1]
        prices = beta[:, int(shared) : int(shared) + len(of.balls)]
        for j, ball in enumerate(of.balls):
            dc[:, ball] -= load[:, ball] * prices[:, j : j + 1] / self.total[:, ball]
        dz = self.at.rise(of.apply(w, dc), q)
        dz[:, budgets] = prices
        row = sum(s.stop - s.start for s in of.ranges) - 1
        dz[:, row] = beta[:, -1]
        return dv, dc, dz
