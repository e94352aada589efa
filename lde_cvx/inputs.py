"""Reading what callers hand over: one input or a batch, as a tensor or an array, checked before anything is computed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array


@dataclass(frozen=True, eq=False)
class Batch:
    """x (n, *shape) in float64, outputs (n, m) of the float64 network; `single` when the caller gave one input without a batch."""

    x: Tensor
    outputs: Array
    single: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def flat(self) -> Array:
        """(n, d)"""
        return self.x.detach().cpu().numpy().reshape(len(self.x), -1)


def float64_copy(model: Any, device: str | torch.device | None) -> nn.Module:
    """A frozen float64 copy in evaluation mode; float32 and float16 weights convert exactly."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model: got {type(model).__name__}; give a torch.nn.Module that maps (n, *shape) to (n, outputs).")
    twin = copy.deepcopy(model).to(device=device, dtype=torch.float64).eval()
    for p in twin.parameters():
        p.requires_grad_(False)
        if not torch.isfinite(p).all():
            raise InputError("model: a weight is NaN or infinite; retrain or reload it.")
    return twin


def read_batch(model: nn.Module, x0: Any, device: str | torch.device | None = None) -> Batch:
    """Whether x0 is one input or a batch is what the network says: x0[None] is tried first, so (1, *shape) is one input where both readings work.

    Raises InputError on NaN, on a shape the network does not take, and on outputs that are not (n, m) or not finite.
    """
    x = (x0.detach() if isinstance(x0, Tensor) else _tensor(x0)).to(dtype=torch.float64, device=device)
    bad = torch.nonzero(~torch.isfinite(x))
    if len(bad):
        place = ", ".join(str(int(k)) for k in bad[0])
        raise InputError(f"input: entry [{place}] is {float(x[tuple(bad[0])])}; replace it with a finite number.")
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"input: has shape {tuple(x.shape)}; give one input or a batch of them.")
    for single, batch in ((True, x[None]), (False, x)):
        outputs = _outputs(model, batch)
        if outputs is not None:
            one = single or len(batch) == 1
            return Batch(_with_batch_axis(model, batch), _finite(outputs), one)
    takes = expected_size(model)
    raise InputError(f"input: shape {tuple(x.shape)} does not fit the model{f', which takes {takes}' if takes else ''}; reshape it.")


def _tensor(x0: Any) -> Tensor:
    try:
        return torch.as_tensor(np.array(x0, dtype=float))
    except (TypeError, ValueError):
        raise InputError(f"input: {type(x0).__name__} holds something that is not a number; give a numeric array or tensor.") from None


def _outputs(model: nn.Module, batch: Tensor) -> Array | None:
    """(n, m) outputs, or None when the network does not take this shape."""
    try:
        with torch.no_grad():
            y = model(batch)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):  # what torch raises on shapes that do not fit
        return None
    return y.cpu().numpy() if isinstance(y, Tensor) and y.ndim == 2 and len(y) == len(batch) else None


def _with_batch_axis(model: nn.Module, batch: Tensor) -> Tensor:
    """(1, 1, *shape) read as one input whose leading 1 the network flattens away: drop it when the network takes it without."""
    if batch.ndim > 2 and batch.shape[:2] == (1, 1) and _outputs(model, batch[0]) is not None:
        return batch[0]
    return batch


def _finite(outputs: Array) -> Array:
    bad = np.argwhere(~np.isfinite(outputs))
    if len(bad):
        raise InputError(f"model: output {bad[0][1]} of input {bad[0][0]} is {outputs[tuple(bad[0])]}; it must be finite.")
    return outputs


def expected_size(model: nn.Module) -> str | None:
    """What the first layer with a size says that it takes, in words."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            return f"{layer.in_features} features"
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return f"inputs with {layer.in_channels} channel{'s' if layer.in_channels > 1 else ''}"
    return None
