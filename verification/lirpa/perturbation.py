"""What auto_LiRPA concretizes over: its ℓ∞ box for intervals, and the region's own support function wherever a linear function is asked for.

Importing this file imports the library.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from formulations.support import Region
from verification.lirpa.compat import library

WIDE = (
    1 << 23
)  # neurons of a convolution × coordinates, above which its own bounds use only the ball and the box of C: the dual ascent over the rest would take minutes
lib = library()


class SetPerturbation(lib.PerturbationLpNorm):  # type: ignore[misc, name-defined]
    def __init__(self, x: Tensor, region: Region) -> None:
        lo, hi = region.hull()
        super().__init__(norm=torch.inf, x_L=x + lo.view_as(x), x_U=x + hi.view_as(x))
        self.region, self.flat = region, x.flatten(1)
        self.last: tuple[Tensor, Tensor] | None = (
            None  # (A, its bound over the region) as concretized last: the output's, when a pass has ended
        )

    def concretize_matrix(self, x: Tensor, A: Any, sign: int, extra_constr: Any = None) -> Tensor:
        if isinstance(A, lib.eyeC):  # single coordinates: the hull
            return super().concretize_matrix(x, A, sign, extra_constr)  # type: ignore[no-any-return]
        rows = A.reshape(A.shape[0], A.shape[1], -1)
        if self.region.is_box:
            bound: Tensor = super().concretize_matrix(x, rows, sign, extra_constr)
        else:
            bound = torch.einsum("nsd,nd->ns", rows, self.flat) + sign * self.region.support(sign * rows)
        self.last = rows, bound
        return bound

    def concretize_patches(self, x: Tensor, A: Any, sign: int, extra_constr: Any = None) -> Tensor:
        if A.identity == 1 or self.region.is_box:  # intermediate bounds only: margins come as matrices
            return super().concretize_patches(x, A, sign, extra_constr)  # type: ignore[no-any-return]
        rows = A.patches.shape[0] * (1 if A.unstable_idx is not None else prod(A.patches.shape[2:4]))
        few = prod(A.patches.shape[-3:]) < self.region.dim
        if few and (self.region.coupling is None or rows * self.region.dim > WIDE):
            return self._narrow(x, A, sign)
        matrix = lib.patches_to_matrix(A.patches, x.shape, A.stride, A.padding, A.output_shape, A.unstable_idx)
        bound = self.concretize_matrix(x, matrix, sign)
        return bound if A.unstable_idx is not None else bound.reshape(len(x), A.patches.shape[0], *A.patches.shape[2:4])

    def _narrow(self, x: Tensor, A: Any, sign: int) -> Tensor:
        """Rows that see one window of the image each: the ball and the box of that window say all there is to say."""
        every = A.unstable_idx is None
        rows = A.patches.transpose(0, 1).flatten(-3)  # (n, channels, height, width, k), or (n, unstable, k)
        count = A.patches.shape[0]

        def windows(v: Tensor) -> Tensor:
            seen: Tensor = lib.inplace_unfold(
                v.reshape(-1, *x.shape[1:]), kernel_size=A.patches.shape[-2:], stride=A.stride, padding=A.padding,
                inserted_zeros=A.inserted_zeros, output_padding=A.output_padding,
            ).flatten(3)  # (n, height, width, k)  # fmt: skip
            if every:
                return seen.unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(1, 3)
            place: tuple[Tensor, ...] = A.unstable_idx
            return seen[:, place[1], place[2]]

        flat = rows.flatten(1, 3) if every else rows
        bound = torch.einsum("nsk,nsk->ns", flat, windows(x)) + sign * self.region.window_support(sign * flat, windows)
        return bound.reshape(len(x), count, *A.patches.shape[2:4]) if every else bound
