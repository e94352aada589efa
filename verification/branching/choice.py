r"""Which ReLU a cell is split at.

The upper line of an open ReLU overshoots by at most its offset −ū l, and the row loses A⁻·(−ū l) to it: the score of Bunel et al. (2020), without their
correction for biases. The neurons with the largest scores are tried (De Palma et al. 2021): the row of both sides is raised by a few cheap
steps on the bounds as they are, and the neuron whose sides come out with the least total shortfall is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verification.branching.cells import Cells
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


def shortfall(slack: Tensor) -> Tensor:
    """Of both sides, (2, …): the sum of what is missing."""
    return -slack.clamp(max=0).sum(0)
