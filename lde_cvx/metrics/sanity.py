"""Sanity checks: a map that does not change when the network's weights are thrown away does not explain the network.

Source: Adebayo et al., "Sanity checks for saliency maps" (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.attribution import Explainer, targets_of
from lde_cvx.metrics.stability import rank_correlation
from verification.model import float64_copy, outputs


@dataclass(frozen=True, eq=False)
class Cascade:
    """layers: names in the order of randomisation, from the output; maps (layers + 1, n, *shape), the first of the true network; rank (layers + 1, n):

    correlation of |map| with the true one; spread (layers + 1, n): largest minus least value over that of the true map (0: the map has vanished).
    """

    layers: tuple[str, ...]
    maps: Array
    rank: Array
    spread: Array


def cascading_randomisation(
    make: Callable[[nn.Module], Explainer], model: nn.Module, x: Tensor, *, target: object = None, scale: float | None = None, seed: int = 0
) -> Cascade:
    """The maps of x while layer after layer, from the output, loses its weights, the ones above staying random.

    make: model → explainer. scale: weights and biases are redrawn uniformly on [−scale, scale] (LEG's authors use .05); None: each layer's own initial law.
    """
    net = float64_copy(model)
    targets = torch.tensor(targets_of(outputs(net, x.double()), target))
    layers = [
        (name, m) for name, m in net.named_modules() if isinstance(getattr(m, "weight", None), Tensor) and hasattr(m, "reset_parameters")
    ]
    if not layers:
        raise InputError("cascading_randomisation: the model has no layer with weights.")
    maps = [make(net).attribute(x, targets).double().cpu().numpy()]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for _, layer in reversed(layers):
            if scale is None:
                layer.reset_parameters()  # type: ignore[operator]
            else:
                for p in layer.parameters(recurse=False):
                    nn.init.uniform_(p, -scale, scale)
            maps.append(make(net).attribute(x, targets).double().cpu().numpy())
    stack = np.stack(maps)
    rank = [[rank_correlation(np.abs(a), np.abs(b)) for a, b in zip(stack[0], later, strict=True)] for later in stack]
    width = np.ptp(stack.reshape(*stack.shape[:2], -1), axis=2)
    return Cascade(tuple(name for name, _ in reversed(layers)), stack, np.array(rank), width / np.maximum(width[0], 1e-300))
