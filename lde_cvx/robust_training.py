r"""Training a network so that its decisions can be certified: cross-entropy and its certified worst case, mixed.

    minimise  (1 − κ) CE(f(x), y) + κ log(1 + Σ_k e^{−D_k(x; r)}),       r rising from 0 to the radius over the first half of the epochs

D_k is the dual network's bound of rival k's margin on the ℓ∞ ball of radius r within the box (verification/dual_network/regulariser.py). A flip that is out of the
bound's reach in training is out of reach of the certified radius too, which is what is reported.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.programs import relative_parts
from formulations.sets import Box
from formulations.support import Region
from lde_cvx.models import mlp, one_thread
from verification.dual_network.regulariser import robust_loss
from verification.lirpa import BoundEngine
from verification.model import decide, stack


def train_robust(
    X: ArrayLike,
    y: ArrayLike,
    *,
    hidden: tuple[int, ...] = (64, 64),
    radius: float = 0.05,
    kappa: float = 0.7,
    epochs: int = 60,
    learning_rate: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> nn.Sequential:
    """A multilayer perceptron X (n, d) in [0, 1] → scores, trained on the mixture above; κ = 0 is ordinary training. In evaluation mode, float64, frozen.

    Raises InputError on a radius or κ out of range and on shapes that do not fit.
    """
    features, labels = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.int64)
    if features.ndim != 2 or labels.shape != (len(features),):
        raise InputError(f"train_robust: X has shape {features.shape} and y {labels.shape}; expected (n, d) and (n,).")
    if not (radius >= 0 and 0 <= kappa <= 1):
        raise InputError(f"train_robust: radius={radius} must be ≥ 0 and kappa={kappa} in [0, 1].")
    model = mlp((features.shape[1], *hidden, int(labels.max()) + 1), seed)
    x, t = torch.tensor(features), torch.tensor(labels)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    steps = epochs * -(-len(x) // batch_size)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with one_thread():
        done = 0
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x), generator=order), batch_size):
                now = radius * min(1.0, 2 * done / steps)
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x[batch]), t[batch])
                if kappa > 0:
                    loss = (1 - kappa) * loss + kappa * robust_loss(model, x[batch], t[batch], now)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                falling.step()
                done += 1
    return model.eval().requires_grad_(False)


def certified_accuracy(model: nn.Module, x: Tensor, labels: ArrayLike, radius: float) -> tuple[float, float]:
    """(share of right answers, share that are right and certified against every ℓ∞ change of that radius within [0, 1]).

    The second by one CROWN pass of the bound engine at that radius: float64, and independent of the training's own bounds.
    """
    truth = torch.as_tensor(np.asarray(labels))
    right = model(x).argmax(1) == truth
    sound = np.zeros(len(x), dtype=bool)
    if bool(right.any()):
        inputs = x[right]
        engine = BoundEngine(model, tuple(x.shape[1:]))
        Q, s, real = stack(decide(model(inputs), None), inputs)
        n, d = len(inputs), inputs[0].numel()
        parts = relative_parts(Box(0, 1), d, inputs.flatten(1).numpy(), n)
        region = Region.build(Norm.of("inf"), parts, np.full(n, radius), d, count=n)
        lower = torch.where(real, engine.rows(inputs, Q, s, region).lower, torch.inf)
        sound[right.numpy()] = (lower > 0).all(1).numpy()
    return float(right.double().mean()), float(sound.mean())
