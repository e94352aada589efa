r"""Robust training: the dual network's bound with the weights as the parameters, in the place of the loss.

On z ∈ [x − r, x + r] ∩ [lo, hi] every rival's margin m_k of a network of linear layers and ReLUs has the bound  D_k ≤ m_k  of one dual pass (slopes as CROWN takes
them; Wong & Kolter 2018, Zhang et al. 2020). Since log(1 + Σ e^{−m_k}) falls in every m_k,

    cross-entropy at every such z  ≤  log(1 + Σ_k e^{−D_k})                                                             (`robust_loss`)

so its gradient in the weights pushes the worst case down. The bound is evaluated here in the training's own arithmetic: it trains, it does not certify.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from formulations.errors import InputError


def margin_bounds(model: nn.Sequential, x: Tensor, labels: Tensor, radius: float, lower: float = 0.0, upper: float = 1.0) -> Tensor:
    """Lower bounds (n, classes) of f_y − f_k on the ℓ∞ ball of that radius around x (n, *shape) within the box; 0 for k = y. Differentiable in the weights.

    Raises InputError on a layer that is neither Linear, ReLU nor Flatten, by name.
    """
    layers = _layers(model)
    flat = x.flatten(1)
    low, high = (flat - radius).clamp(min=lower), (flat + radius).clamp(max=upper)
    mid, half = (low + high) / 2, (high - low) / 2
    lines: list[tuple[Tensor, Tensor, Tensor]] = []
    for t, layer in enumerate(layers[:-1]):
        if t == 0:
            centre, spread = layer(mid), half @ layer.weight.abs().T
            l, u = centre - spread, centre + spread
        else:
            both = torch.cat([layer.weight, -layer.weight]).expand(len(x), -1, -1)
            shift = torch.cat([layer.bias, -layer.bias]).expand(len(x), -1)
            least = _least(layers[:t], lines, both, shift, mid, half)
            l, negative = least.chunk(2, 1)
            u = torch.maximum(-negative, l)
        below, above = l.clamp(max=0), u.clamp(min=0)
        up = above / (above - below).clamp(min=1e-12)
        low_slope = torch.where(u <= 0, 0.0, torch.where(l >= 0, 1.0, (up > 0.5).to(up.dtype))).detach()
        lines.append((up, -up * below, low_slope))
    head = layers[-1]
    rows = head.weight[labels][:, None] - head.weight
    return _least(layers[:-1], lines, rows, head.bias[labels][:, None] - head.bias, mid, half)


def robust_loss(model: nn.Sequential, x: Tensor, labels: Tensor, radius: float, lower: float = 0.0, upper: float = 1.0) -> Tensor:
    """``mean log(1 + Σ_{k≠y} exp(−D_k))``: above the cross-entropy of every input within the radius and the box."""
    bounds = margin_bounds(model, x, labels, radius, lower, upper)
    return torch.logsumexp(-bounds, 1).mean()  # k = y gives the 1


def _least(
    layers: list[nn.Linear], lines: list[tuple[Tensor, Tensor, Tensor]], A: Tensor, const: Tensor, mid: Tensor, half: Tensor
) -> Tensor:
    """Lower bounds (n, s) of A·relu(…) + const over the box mid ± half."""
    for layer, (up, cut, slope) in zip(reversed(layers), reversed(lines), strict=True):
        positive, negative = A.clamp(min=0), A.clamp(max=0)
        const = const + (negative * cut[:, None]).sum(-1)
        A = positive * slope[:, None] + negative * up[:, None]
        const = const + A @ layer.bias
        A = A @ layer.weight
    return const + (A @ mid[..., None])[..., 0] - (A.abs() @ half[..., None])[..., 0]


def _layers(model: nn.Sequential) -> list[nn.Linear]:
    out: list[nn.Linear] = []
    for name, layer in model.named_children():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            out.append(layer)
        elif not isinstance(layer, nn.ReLU | nn.Flatten):
            raise InputError(
                f"robust training: layer {name!r} ({type(layer).__name__}) is neither a Linear with a bias, a ReLU nor a Flatten; use another model."
            )
    if not out:
        raise InputError("robust training: the model has no linear layer.")
    return out
