r"""The row of a cell, raised over its slopes α and the multipliers β of its splits.

On a cell s_j z_j ≥ 0 for every split j, so for any β ≥ 0:   m ≥ m − Σ β_j s_j z_j ≥ a·v + b,   the last step by lines through every ReLU, any α in [0, 1].
A flip in the cell therefore obeys a·v + b ≤ 0, and there is none within the region when  b − σ(−a) > 0.  That value is concave along β and piecewise
smooth; with v* the maximiser of −a·v, pushed forward through the lines to z*, its slopes are  ∂/∂α_j = A_j⁺ z*_j  and  ∂/∂β_j = −s_j z*_j  (envelope
theorem: multipliers of the set are held at their optimum). Adam climbs it for the whole batch; every iterate is valid and the best one is kept.

Over boxes the first layer's lines may be those of facets.py, with a share κ of its own for every row that is climbed likewise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from formulations.norms import INF
from verification.branching.adam import Adam
from verification.branching.ball import PAD, Ball
from verification.branching.cells import Cells
from verification.branching.coupled import Pull
from verification.branching.facets import FIRST, Aim, Facets
from verification.branching.network import Lines, Network

RATE, DECAY = 0.15, 0.95
BETA = 2.0  # step of β in units of the layer's mean coefficient, per step of α
REFRESH = 5  # steps between new multipliers u of the set
LOOKS = 5  # steps from which the row's facets are turned to where its first step left it


@dataclass(frozen=True, eq=False)
class Raised:
    """The cells after the ascent, and the change v (n, d) in the region at which the last row is least."""

    cells: Cells
    point: Tensor


def ascend(network: Network, ball: Ball, cells: Cells, steps: int) -> Raised:
    """Rows at least as good as the cells' own, by `steps` evaluations."""
    depth = network.depth
    lines = [Lines.of(l, u) for l, u in zip(cells.lower, cells.upper, strict=True)]
    first, offset = network.rows[cells.row], network.offsets[cells.row]
    slope, beta = [v.clone() for v in cells.slope], [v.clone() for v in cells.beta]
    split = [(s != 0).to(s.dtype) for s in cells.sign]
    facets = Facets.of(network, ball.face, cells) if ball.tight else None
    aim, share, cold = Aim(cells.kappa.clamp(min=0), cells.turn), None, cells.kappa < 0
    sight = None if facets is None else facets.sight(aim)
    adam = Adam([*slope, *beta, aim.kappa])
    best = torch.full_like(offset, -INF)
    # rows that overflow are never better than none: 0·v − inf ≤ 0 says nothing
    kept = (torch.zeros_like(cells.a), torch.full_like(offset, -INF), *(v.clone() for v in (*slope, *beta, aim.kappa, aim.turn)))
    reach = torch.zeros_like(offset)
    link = ball.region.coupling
    pulled: Pull | None = Pull(cells.u, cells.z) if link is not None and bool(cells.z.any()) else None
    kept_pull = Pull(cells.u.clone(), cells.z.clone())
    mu = None
    point = torch.zeros_like(cells.a)
    for step in range(max(steps, 1)):
        A, const = first, offset
        heads: list[Tensor] = [A] * depth
        chosen: list[Tensor] = [A] * depth
        for l in reversed(range(depth)):
            heads[l] = A
            up = (A < 0).to(A.dtype)
            chosen[l] = torch.lerp(lines[l].low(slope[l]), lines[l].up, up)
            const = const + (A.clamp(max=0) * lines[l].cut).sum(1)
            negative, A = A.clamp(max=0), A * chosen[l] - beta[l] * cells.sign[l]
            if l == 0 and facets is not None and sight is not None:
                share = facets.share(negative, sight)
                A, const = A + sight.kappa[:, None] * share.head, const + sight.kappa * share.const
            const = const + A @ network.shifts[l]
            A = A @ network.weights[l]
        if share is not None and sight is not None:
            A = A + sight.kappa[:, None] * share.row
        pull, extra = -A, torch.zeros_like(const)
        if link is not None:
            if pulled is None or step % REFRESH == 0 or step == max(steps, 1) - 1:
                began = None if pulled is None else pulled.at((slice(None), None))
                pulled = ball.pull(pull[:, None], began).at((slice(None), 0))
            u = pulled.u.to(pull.dtype)[:, None]
            pull, extra = pull - link.back(u)[:, 0], ball.sigma(u)[:, 0]
        top, v, mu = ball.face.peak(pull, mu)
        top = top + extra
        top = top + PAD * (1 + top.abs())
        value = const - top - PAD * (1 + const.abs())
        better = value > best
        best, reach = torch.where(better, value, best), torch.where(better, top, reach)
        for old, new in zip(kept, (A, const, *slope, *beta, aim.kappa, aim.turn), strict=True):
            old[better] = new[better]
        if pulled is not None:
            kept_pull.u[better], kept_pull.z[better] = pulled.u[better], pulled.z[better]
        point = v
        if step + 1 >= steps or bool((best > 0).all()):
            break
        z, slopes, pulls, grow = v, [], [], torch.zeros_like(const)
        for l in range(depth):
            z = z @ network.weights[l].T + network.shifts[l]
            slopes.append(heads[l].clamp(min=0) * z)
            pulls.append(-cells.sign[l] * z)
            y = chosen[l] * z + (heads[l] < 0) * lines[l].cut
            if l == 0 and facets is not None and sight is not None and share is not None:
                grow = (share.head * z).sum(1) + (share.row * v).sum(1) + share.const
                y = y + (heads[l] < 0) * facets.lift(z, v, sight)
            z = y
        rate = RATE * DECAY**step
        moves = adam.steps([*slopes, *pulls, grow])
        for l in range(depth):
            slope[l] = (slope[l] + rate * moves[l]).clamp(0, 1)
            size = BETA * heads[l].abs().mean(1, keepdim=True)
            beta[l] = (beta[l] + rate * size * moves[depth + l]).clamp(min=0) * split[l]
        if facets is not None and sight is not None:
            aim = Aim((aim.kappa + rate * moves[-1]).clamp(0, 1), aim.turn)
            turned = torch.ones_like(cold) if steps >= LOOKS else cold
            if step == 0 and bool(turned.any()):
                aim = Aim(torch.where(cold, FIRST, aim.kappa), torch.where(turned[:, None], facets.turn(v), aim.turn))
                sight = facets.sight(aim)
            else:
                sight = replace(sight, kappa=aim.kappa)
    a, b = kept[0], kept[1] - PAD * (1 + kept[1].abs())
    slack = _slack(b, reach)
    better = slack > cells.slack
    raised = replace(
        cells,
        a=torch.where(better[:, None], a, cells.a), b=torch.where(better, b, cells.b), slack=torch.maximum(slack, cells.slack),
        slope=tuple(kept[2 : 2 + depth]), beta=tuple(kept[2 + depth : -2]), u=kept_pull.u, z=kept_pull.z,
        kappa=cells.kappa if facets is None else kept[-2], turn=kept[-1],
    )  # fmt: skip
    return Raised(raised, point)


def _slack(b: Tensor, reach: Tensor) -> Tensor:
    """b/σ(−a) − 1 where σ > 0; the sign of b − σ alone where no change moves the row."""
    return torch.where(reach > 0, (b - reach) / reach.clamp(min=1e-300), torch.where(b > reach, INF, -INF))
