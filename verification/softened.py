"""A network of ReLUs made twice differentiable: T·log(1 + e^{z/T}) in the place of max(z, 0), within T·log 2 of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from formulations.errors import InputError

_RELU = frozenset({nn.functional.relu, nn.functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
_LEAKY = frozenset({nn.functional.leaky_relu, nn.functional.leaky_relu_})
SOFTENED_CALLS = _RELU | _LEAKY


class Softened(nn.Module):
    """The same network with every ReLU (module or function, leaky ones too) run as T·log(1 + e^{z/T}): within T·log 2 of it, and twice differentiable.

    Other kinks (max pooling, clamps, absolute values) stay. Raises InputError on a temperature that is not positive.
    """

    def __init__(self, inner: nn.Module, temperature: float) -> None:
        super().__init__()
        if not (np.isfinite(temperature) and temperature > 0):
            raise InputError(
                f"Softened: temperature={temperature} must be positive and finite; a tenth of the usual pre-activations is a start."
            )
        self.inner, self.temperature = inner, float(temperature)

    def forward(self, x: Tensor) -> Any:
        with _Soften(self.temperature):
            return self.inner(x)


class _Soften(TorchFunctionMode):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RELU:
            return self._soft(args[0] if args else kwargs["input"])
        if func in _LEAKY:
            z = args[0] if args else kwargs["input"]
            slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
            return slope * z + (1 - slope) * self._soft(z)
        return func(*args, **kwargs)

    def _soft(self, z: Tensor) -> Tensor:
        return nn.functional.softplus(z, beta=1 / self.temperature, threshold=50.0)
