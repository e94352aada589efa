"""Adam over slopes and multipliers together; every step's output is a bound, the best one is kept, radii follow what is proved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.norms import INF, Array, Norm
from formulations.programs import check_inside, relative_parts
from formulations.sets.base import ConvexSet
from formulations.support import Region
from verification.decision import Decision
from verification.dual_network.network import SETTLING, DualNetwork
from verification.dual_network.rows import FrozenRows
from verification.model import batch_of, decide, linearise, outputs, stack
from verification.radius_search import FAR
from verification.relu_chain import ReluChain

STEPS, RATE = 200, 0.05
PATIENCE, GAIN = 40, 1e-5  # steps without this relative gain after which an input counts as done
FOLLOW = 0.4  # how far a radius moves towards what was just proved
START = 0.75  # of the linearised radius
OTHERS = 0.1  # weight of rivals that do not limit the radius
AHEAD = 1.2  # a rival this far beyond the radius needs no more


@dataclass(frozen=True, eq=False)
class DualTraining:
    """lower (n,): the best bound met, valid like every one of `history` (steps, n), each at its own radius; +inf: no allowed change flips.

    steps made, seconds, and `stopped`: every input had stopped gaining before the steps ran out. `network`: parameters and radii of each input's best step.
    """

    lower: Array
    history: Array
    steps: int
    stopped: bool
    seconds: float
    network: DualNetwork = field(repr=False)


def train(
    network: DualNetwork, *, steps: int = STEPS, settling: int = SETTLING, rate: float = RATE, follow: float = FOLLOW, patience: int = PATIENCE,
    seconds: float | None = None, progress: Callable[[int, int], None] | None = None,
) -> DualTraining:  # fmt: skip
    """Raises the bounds of all inputs by Adam (Kingma & Ba 2015), its rate falling along a half cosine; `follow` 0 keeps the radii.

    Multipliers of coupled sets start from at most `settling` steps on fixed slopes (`DualNetwork.settle`), or from where a warm start put them when that is better.
    """
    begun = time.monotonic()
    radius, moving = network.get_buffer("radius"), isinstance(network.rows, FrozenRows) and follow > 0
    network.settle(settling)
    best, since = torch.zeros_like(radius), torch.zeros_like(radius, dtype=torch.long)
    values, optimiser = network.values(), None  # the first pass fills the slopes in
    learnable = [p for p in network.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in (*learnable, radius)]  # an item of the batch each along the first axis
    history: list[Tensor] = []
    made = 0
    for made in range(1, steps + 1):
        if made > 1:
            values = network.values()
        with torch.no_grad():
            least = values.amin(1)
            covers = radius >= network.region.reach() * (1 + 1e-9)
            bound = torch.where(covers, least, torch.minimum(radius, least))
            history.append(bound)
            since = torch.where(bound > best * (1 + GAIN), 0, since + 1)
            gained = torch.nonzero(bound > best).flatten()
            for old, new in zip(kept, (*learnable, radius), strict=True):
                old[gained] = new.detach()[gained]
            best = torch.maximum(best, bound)
        late = seconds is not None and time.monotonic() - begun > seconds
        if progress is not None:
            progress(made, steps)
        if made == steps or late or not learnable or bool((since >= patience).all()):
            break
        if optimiser is None:
            optimiser = torch.optim.Adam(learnable, rate, betas=(0.9, 0.99), eps=1e-15)
            falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0.02 * rate)
        optimiser.zero_grad()
        _loss(values, radius, network.get_buffer("real")).backward()  # type: ignore[no-untyped-call]
        for p in network.parameters():
            if p.grad is not None:
                torch.nan_to_num_(p.grad, 0.0, 0.0, 0.0)
        optimiser.step()
        falling.step()
        network.project()
        if moving:
            goal = torch.where(torch.isfinite(least), least, 2 * radius)
            network.move((radius + follow * (goal - radius)).clamp(min=1e-9))
    with torch.no_grad():
        for old, new in zip(kept, (*learnable, radius), strict=True):
            new.copy_(old)
    return DualTraining(
        best.cpu().numpy(), torch.stack(history).cpu().numpy(), made, bool((since >= patience).all()), time.monotonic() - begun, network
    )  # fmt: skip


def dual_radii(
    model: nn.Module | ReluChain,
    x0: ArrayLike | Tensor,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    decisions: Decision | Sequence[Decision] | None = None,
    radius: ArrayLike | None = None,
    steps: int = STEPS,
    rate: float = RATE,
    seconds: float | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DualTraining:
    """``lower_i ≤ min { ‖Wδ‖ : some margin of decision i ≤ 0 at x0_i + δ, δ ∈ C }`` for a ReLU chain, by training a dual network for the batch.

    x0 (n, *shape); `radius` (n,) where to start (certified radii, say; by default three quarters of the linearised ones).
    Raises InputError as `certified_radius` does, and by name on a layer that is neither affine nor a ReLU, a GroupNorm and sets of one's own.
    """
    norm = Norm.of(norm)
    x = batch_of(x0, None, device)
    chain = model if isinstance(model, ReluChain) else ReluChain.from_model(model, tuple(x.shape[1:]), device=device)
    net = _Chain(chain)
    flat = x.flatten(1).to(chain.weights[0].device)
    chosen = decide(outputs(net, flat), decisions)
    Q, s, real = stack(chosen, flat)
    parts = relative_parts(constraints, flat.shape[1], flat.cpu().numpy(), len(flat))
    check_inside(parts, len(flat))
    region = Region.build(norm, parts, np.zeros(len(flat)), flat.shape[1], count=len(flat), device=flat.device)
    if radius is None:
        linear = torch.where(real, region.distance(*linearise(net, flat, Q, s)), INF).amin(1)
        start = torch.where(torch.isfinite(linear), START * linear, torch.minimum(region.reach(), FAR * (1 + flat.norm(dim=-1))))
    else:
        start = torch.as_tensor(np.asarray(radius, dtype=float), device=flat.device).expand(len(flat))
    rows = FrozenRows(chain, flat, Q, s, region)
    network = DualNetwork(rows, norm, parts, region, start.clamp(min=1e-9), real)
    return train(network, steps=steps, rate=rate, seconds=seconds, progress=progress)


def _loss(values: Tensor, radius: Tensor, real: Tensor) -> Tensor:
    """Minus the smallest value and a share of all, in units of the radius; values beyond AHEAD·r, +inf among them, pull no more."""
    unit = torch.where(torch.isfinite(radius), radius, values.detach().amin(1).clamp(min=1e-12))
    unit = torch.where(torch.isfinite(unit), unit, 1.0)
    free = torch.where(torch.isfinite(radius), AHEAD, INF)
    share = torch.where(real & torch.isfinite(values), values / unit[:, None], 0.0)
    share = torch.minimum(share, free[:, None])
    least = torch.where(real & torch.isfinite(values), values / unit[:, None], INF).amin(1)
    return -(torch.where(torch.isfinite(least), least, 0.0) + OTHERS * share.sum(1)).sum()


class _Chain(nn.Module):
    """A chain as a module over flat inputs."""

    def __init__(self, chain: ReluChain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x)
