"""Windows that slide over an image: the geometry that convolution and pooling share. It needs numpy only.

Output (i, j) of a layer looks at the inputs (i·stride + a·dilation − pad, j·stride + b·dilation − pad) for the entries (a, b) of its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verification.rechecking.rounding import Array, Shape

__all__ = ["Sliding"]


@dataclass(frozen=True)
class Sliding:
    """(height, width) each; pads: (top, bottom, left, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """How many windows fit. Raises ValueError where none does."""
        sides = zip((height + sum(self.pads[:2]), width + sum(self.pads[2:])), self.kernel, self.stride, self.dilation, strict=True)
        if min(*self.kernel, *self.stride, *self.dilation) < 1 or min(self.pads) < 0:
            raise ValueError(f"a window {self.kernel} with stride {self.stride}, dilation {self.dilation} and padding {self.pads} is none")
        rows, columns = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sides)
        if min(rows, columns) < 1:
            raise ValueError(f"a window {self.kernel} does not fit {height} × {width}")
        return rows, columns

    def grown(self, rows: int, columns: int) -> tuple[int, int]:
        """The block of (padded) inputs that a block of outputs looks at."""
        a, b = ((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip((rows, columns), self.kernel, self.stride, self.dilation, strict=True))
        return a, b

    def entries(self, rows: int, columns: int) -> list[tuple[int, int, slice, slice]]:
        """(a, b, rows, columns): the part of that block which entry (a, b) of the kernel meets."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return [(a, b, slice(a * dh, a * dh + sh * (rows - 1) + 1, sh), slice(b * dw, b * dw + sw * (columns - 1) + 1, sw))
                for a in range(self.kernel[0]) for b in range(self.kernel[1])]  # fmt: skip

    def cropped(self, block: Array, shape_in: Shape) -> Array:
        """The block (R, c, rows, columns) of padded inputs that all outputs look at, as the inputs (R, *shape_in): padding is cut off, unseen ones get 0."""
        _, h, w = shape_in
        inner = block[:, :, self.pads[0] : self.pads[0] + h, self.pads[2] : self.pads[2] + w]
        if inner.shape[2:] == (h, w):
            return inner
        out = np.zeros((len(block), *shape_in))
        out[:, :, : inner.shape[2], : inner.shape[3]] = inner
        return out
