r"""Which ReLU a cell is split at.

The upper line of an open ReLU overshoots by at most its offset −ū l, and the row loses A⁻·(−ū l) to it: the score of Bunel et al. (2020), without their
correction for biases. The neurons with the largest scores are tried (De Palma et al. 2021): the row of both sides is raised by a few cheap
steps on the bounds as they are, and the neuron whose sides come out with the least total shortfall is taken.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from formulations.norms import INF
from verification.branching.ascent import ascend
from verification.branching.ball import Ball
from verification.branching.cells import Cells
from verification.branching.effort import Effort
from verification.branching.network import Lines, Network


def scores(network: Network, cells: Cells) -> Tensor:
    """(n, Σ h_l): what each open neuron's upper line costs the row; −1 where the sign is known."""
    lines = [Lines.of(l, u) for l, u in zip(cells.lower, cells.upper, strict=True)]
    A = network.rows[cells.row]
    cost = []
    for l in reversed(range(network.depth)):
        cost.append((-A).clamp(min=0) * lines[l].cut)
        A = A * torch.where(A < 0, lines[l].up, lines[l].low(cells.slope[l])) - cells.beta[l] * cells.sign[l]
        A = A @ network.weights[l]
    known = torch.cat(cost[::-1], 1).nan_to_num(
        0.0
    )  # what overflowed is open all the same: a cell with open neurons is no activation region
    return torch.where(torch.cat(cells.open_neurons(), 1), known + 1e-12, -1.0)


def choose(network: Network, ball: Ball, cells: Cells, score: Tensor, effort: Effort) -> Tensor:
    """A neuron (over all layers) per cell."""
    n, count = len(cells), min(effort.candidates, score.shape[1])
    best = score.topk(count, 1)
    if count == 1:
        return best.indices[:, 0]
    every = cells.take(torch.arange(n, device=score.device).repeat_interleave(count))
    sides = replace(
        every.sides(network.places(best.indices.flatten())),
        slack=torch.full_like(score[:, :1], -INF).expand(n, 2 * count).reshape(-1),
    )
    slack = ascend(network, ball, sides, effort.trial_steps).cells.slack.view(2, n, count)
    shortfall = -slack.clamp(max=0).sum(0)
    missing = torch.where(best.values > 0, shortfall, INF)
    return best.indices.gather(1, missing.argmin(1, keepdim=True))[:, 0]
