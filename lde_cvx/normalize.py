"""Affine input normalisation as a layer that files hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import InputError


class Normalize(nn.Module):
    """``y = (x − mean)/std``, elementwise: mean and std broadcast against one input, (features,), or (channels, 1, 1) for images.

    With it in front, a network takes raw inputs, so that norms, sets and certificates speak of these. Mean and std are fixed, stored in float64, and go into
    model files; they are not trained. Raises InputError on values that are not finite, a std that is not positive, and shapes that differ.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor | Sequence[Any] | float | None = None,
        std: Tensor | Sequence[Any] | float | None = None,
        *,
        shape: Sequence[int] = (),
    ) -> None:
        """`shape` instead of values: zeros and ones of this shape, for a file to fill."""
        super().__init__()
        low = torch.zeros(tuple(shape)) if mean is None else torch.as_tensor(mean, dtype=torch.float64)
        wide = torch.ones_like(low) if std is None else torch.as_tensor(std, dtype=torch.float64)
        low, wide = (v.reshape(1) if v.ndim == 0 else v for v in (low, wide))
        if low.shape != wide.shape:
            raise InputError(f"Normalize: mean has shape {tuple(low.shape)}, std {tuple(wide.shape)}; give them one shape.")
        if not low.is_meta and not (bool(torch.isfinite(low).all()) and bool((wide > 0).all()) and bool(torch.isfinite(wide).all())):
            raise InputError("Normalize: mean and std must be finite, and std positive.")
        self.register_buffer("mean", low.detach().double())
        self.register_buffer("std", wide.detach().double())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.mean, self.std
        if mean.dtype != x.dtype:  # a cast to the same type would be traced as one
            mean, std = mean.to(x.dtype), std.to(x.dtype)
        return (x - mean) / std

    def extra_repr(self) -> str:
        return f"shape={self.shape}"
