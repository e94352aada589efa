"""What every explainer of this package has in common, and the reading of targets that they share.

An explainer answers `attribute(inputs, target)` with a tensor like its inputs and `explain(x0)` with a record; metrics and studies ask for no more.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.given import whole
from formulations.norms import Array
from verification.model import numbers


@runtime_checkable
class Explainer(Protocol):
    """One interface for `LagrangeDualExplainer`, `LEG`, `LEGTV`, `RateDistortion` and every `baseline`."""

    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        """(n, *shape) → (n, *shape). target: an output for all inputs, one per input, or None for the predicted class."""

    def explain(self, x0: Any) -> Any:
        """A record for one input (*shape), a list of them for a batch (n, *shape)."""


def targets_of(outputs: Tensor, target: Any, default: int | None = None) -> list[int]:
    """One output per row of `outputs` (n, m): `target` (an int, or one per row), else `default`, else the row's largest.

    Raises InputError on a target that is no output of the model, and on a wrong number of them.
    """
    n, m = outputs.shape
    given = default if target is None else target
    if given is None:
        return [int(k) for k in outputs.argmax(1)]
    raw = np.atleast_1d(np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=object)).ravel()
    if raw.size not in (1, n):
        raise InputError(f"target: {raw.size} targets for {n} inputs; give one, or one each.")
    return [output_number("target", value, m) for value in np.broadcast_to(raw, (n,))]


def output_number(name: str, value: Any, outputs: int) -> int:
    """`value` as an output of a model with so many of them. Raises InputError, with the argument's name, on anything else."""
    try:
        k = whole(name, value)
    except InputError:
        raise InputError(f"{name}={value!r:.60} is no output number; give an int in 0 … {outputs - 1}.") from None
    if not 0 <= k < outputs:
        raise InputError(f"{name}={k} is not one of the model's outputs 0 … {outputs - 1}.")
    return k


def check_inputs(inputs: Any) -> Tensor:
    """`inputs` itself. Raises InputError on anything but a tensor (n, …)."""
    if not isinstance(inputs, Tensor):
        raise InputError(f"attribute: got {type(inputs).__name__}; give a tensor (n, *shape), or use explain.")
    if inputs.ndim < 2 or not len(inputs):
        raise InputError(f"attribute: inputs of shape {tuple(inputs.shape)} must be a batch (n, *shape) of at least one input.")
    return inputs


def references_of(baselines: float | Tensor, x: Tensor) -> Array:
    """One baseline per input, in the shape of x (n, *shape)."""
    given = numbers("baselines", baselines)
    if not bool(torch.isfinite(given).all()):
        raise InputError("baselines: holds a value that is not finite; replace it.")
    try:
        return np.asarray(torch.broadcast_to(given, x.shape).numpy())
    except RuntimeError:
        raise InputError(
            f"baselines: shape {tuple(given.shape)} does not fit inputs of shape {tuple(x.shape)}; give one each, one, or a number."
        ) from None


_PIECE = (
    1 << 15
)  # numbers of input in one forward pass on a CPU: more of them leave the processor's cache (a small conv net takes twice as long an image)


def values(model: nn.Module, x: Tensor) -> Tensor:
    """f(x) (n, m) without gradients, in pieces of bounded size."""
    size = max(16, _PIECE // max(1, x[0].numel())) if x.device.type == "cpu" else 4096
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(x, size)])
