r"""Kinks: the units y_k = max_q v_kq at which a piecewise linear network bends, read from a run of the network itself.

    ReLU  max(0, u)      leaky ReLU  max(αu, u), α < 1      |u|  max(−u, u)      max pooling  the window's largest

All are maxima of a few pieces that are affine in the input as long as no unit before them bends. They are met by watching the calls of torch's functions,
so neither layers nor their order need to be known; what is watched for in vain (a smooth network) has no kinks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Kinks(TorchFunctionMode):
    """While active, collects for every kink layer met `pieces` (lanes, K, q) and `outputs`, the tensors y that they are the maxima of."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        split = _SPLIT.get(getattr(func, "__name__", ""))
        if split is not None and isinstance(y, Tensor) and isinstance(args[0], Tensor) and args[0].dim() > 1:
            pieces = split(*args, **(kwargs or {}))
            if pieces is not None:
                self.pieces.append(pieces)
                self.outputs.append(y)
        return y


@dataclass(frozen=True, eq=False)
class Bends:
    """The pieces (lanes, K_l, q_l) of every kink layer at some points; units are numbered through the layers."""

    layers: list[Tensor]

    def highest(self) -> tuple[Tensor, Tensor]:
        """(values, numbers) of the piece that holds: (lanes, units)."""
        tops = [v.max(2) for v in self.layers]
        return torch.cat([t.values for t in tops], 1), torch.cat([t.indices for t in tops], 1)

    def values(self, piece: Tensor) -> Tensor:
        """(lanes, units) values of the pieces named (lanes, units)."""
        parts = piece.split([v.shape[1] for v in self.layers], 1)  # type: ignore[no-untyped-call]
        return torch.cat([v.gather(2, k[:, :, None])[:, :, 0] for v, k in zip(self.layers, parts, strict=True)], 1)

    def value(self, lane: int, unit: int, piece: int) -> float:
        for v in self.layers:
            if unit < v.shape[1]:
                return float(v[lane, unit, piece])
            unit -= v.shape[1]
        raise IndexError(unit)


def _relu(u: Tensor, inplace: bool = False) -> Tensor | None:
    flat = u.flatten(1)
    return None if inplace else torch.stack([torch.zeros_like(flat), flat], 2)  # on a tie the first piece holds, as in autograd


def _leaky(u: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    flat = u.flatten(1)
    return None if inplace or not 0 <= negative_slope < 1 else torch.stack([negative_slope * flat, flat], 2)


def _abs(u: Tensor) -> Tensor:
    flat = u.flatten(1)
    return torch.stack([-flat, flat], 2)


def _max_pool2d(
    u: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if ceil_mode or return_indices or u.dim() != 4:
        return None
    size, step, pad, apart = ((v, v) if isinstance(v, int) else tuple(v) for v in (kernel_size, stride or kernel_size, padding, dilation))
    wide = F.pad(u, (pad[1], pad[1], pad[0], pad[0]), value=-torch.inf)
    for axis, (k, s, a) in zip((2, 3), zip(size, step, apart, strict=True), strict=True):
        wide = wide.unfold(axis, a * (k - 1) + 1, s)[..., ::a]
    return wide.flatten(4).flatten(1, 3)


_SPLIT: dict[str, Callable[..., Tensor | None]] = {
    "relu": _relu, "leaky_relu": _leaky, "abs": _abs, "max_pool2d": _max_pool2d,
}  # fmt: skip
