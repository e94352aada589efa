"""The slopes of a pass, read back from auto_LiRPA's nodes for the certificate: those of the margin rows, and those of the bounds under them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from verification.evidence import STEPS

INNER = 1 << 22  # pairs of neurons of which slopes of intermediate bounds are handed on
CARRIED = 1 << 17  # slopes of the margin rows of one input that are handed on: a certificate reads and hashes them all

Slopes = tuple[Tensor, ...]
Inner = dict[tuple[int, int], Tensor]


def slopes_of(net: Any, n: int, K: int) -> Slopes:
    """Per activation (n, K, neurons): coefficient after the pass went through it over coefficient before, 0 where there is none; () where not kept, or too many."""
    out = []
    for node in activations(net):
        before, after, alone = getattr(node, "lA", None), getattr(node.inputs[0], "lA", None), len(node.inputs[0].output_name) == 1
        if not (isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape and alone):
            return ()
        slope = torch.where(before == 0, 0.0, after / torch.where(before == 0, 1.0, before)).detach()
        out.append(slope.transpose(0, 1).reshape(n, K, -1))
    return tuple(out) if sum(s[0].numel() for s in out) <= CARRIED else ()


def _pairs(net: Any) -> Iterator[tuple[int, int, Any, Any, Tensor]]:
    """(t, s, target, source, α) of the ReLUs whose slopes the library keeps for the bounds of what enters another one."""
    relus = activations(net)
    for t, target in enumerate(relus):
        for s, source in enumerate(relus[:t]):
            alpha = getattr(source, "alpha", {}).get(target.inputs[0].name) if type(source).__name__ == "BoundRelu" else None
            if alpha is not None:
                yield t, s, target, source, alpha


def round_slopes(net: Any) -> None:
    """The α of intermediate bounds as a certificate will write them; any are sound."""
    with torch.no_grad():
        for *_, alpha in _pairs(net):
            alpha.copy_((alpha.clamp(0, 1) * STEPS).round() / STEPS)


def inner_slopes(net: Any, n: int) -> Inner:
    """The α of intermediate bounds in units of 1/255, −1 where the usual slope does: where α never moved, or is beyond the window that a convolution sees."""
    found: Inner = {}
    for t, s, target, source, alpha in _pairs(net):
        above, below = (v.lower.flatten(1).shape[1] for v in (target.inputs[0], source.inputs[0]))
        own = alpha.numel() // (2 * n * below)  # one α a neuron, or, for a batch, one a channel
        if above * below > INNER or own == 0 or alpha.numel() != 2 * n * own * below or above % own:
            continue
        low, high = (getattr(source.inputs[0], side).flatten(1) for side in ("lower", "upper"))
        code = (alpha.detach().reshape(2, own, n, below).permute(2, 0, 1, 3) * STEPS).round().to(torch.int16)
        code = code.repeat_interleave(above // own, 2)
        open_, usual = ((low < 0) & (high > 0))[:, None, :], ((high + low > 0).to(torch.int16) * STEPS)[:, None, None, :]
        moved = (code != usual).any(1) & open_ & _window(target.inputs[0], source)
        whole = moved.any(2, keepdim=True) & open_
        kept = whole if 2 * int(moved.sum()) > int(whole.sum()) else moved
        found[t, s] = torch.where(kept[:, None], code, -1)
    return found


def _window(node: Any, source: Any) -> Tensor:
    """(neurons of `node`, neurons of `source`): which a neuron can see; all, where `node` is no convolution of `source`."""
    if type(node).__name__ != "BoundConv" or node.inputs[0] is not source:
        return torch.ones(1, 1, dtype=torch.bool, device=source.inputs[0].lower.device)
    weight = torch.ones_like(node.inputs[1].lower)
    every = torch.eye(prod(source.output_shape[1:]), dtype=weight.dtype, device=weight.device).reshape(-1, *source.output_shape[1:])
    seen: Tensor = node.forward(every, weight, *[weight.new_zeros(len(weight))] * int(node.has_bias))
    return seen.flatten(1).T != 0


def activations(net: Any) -> list[Any]:
    """The elementwise nonlinear layers that the checker knows, in the order of evaluation."""
    return [node for node in net._modules.values() if type(node).__name__ in ("BoundRelu", "BoundLeakyRelu", "BoundTanh", "BoundSigmoid")]
