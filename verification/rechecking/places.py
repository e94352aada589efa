r"""Where rows over a value stand: over all of it, or, in images, over one block of it each. It needs numpy only.

A neuron of a convolution looks at a small block of its inputs, those at a block of theirs, and so on: a row that starts there is zero outside. `Blocks`
keeps only what may be more than zero, an array (R, channels, rows, columns) and the corner of every row's block; `WHOLE` keeps everything, (R, *shape).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verification.rechecking.affine import Affine, Conv, Reshape, Scale
from verification.rechecking.pooling import MaxPool
from verification.rechecking.rounding import Array, Shape

__all__ = ["WHOLE", "Blocks", "Place", "Whole", "block_rows", "merged"]

Places = NDArray[np.intp]


class Whole:
    """Rows (R, *shape)."""

    def pick(self, v: Array) -> Array:
        """The entries of v (*shape) beside those of every row."""
        return v[None]

    def dot(self, A: Array, v: Array) -> Array:
        """A·v for every row (R,)."""
        out: Array = A.reshape(len(A), -1) @ v.ravel()
        return out

    def affine(self, layer: Affine, A: Array) -> tuple[Array, Place]:
        return layer.back(A), self

    def pool(self, layer: MaxPool, A: Array, low: Array, up: Array) -> tuple[Array, Place]:
        return layer.sliding.cropped(layer.fold(A, low[:, None], up[:, None]), layer.shape_in), self

    def flat(self, A: Array, shape: Shape) -> Array:
        return A.reshape(len(A), -1)


WHOLE = Whole()


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows (R, c, rows, columns) over the blocks with upper left corners (top, left) of images of one shape; a block may stick out, and is zero there."""

    top: Places
    left: Places
    size: tuple[int, int]
    shape: Shape

    def _index(self) -> tuple[Places, Places, NDArray[np.bool_]]:
        _, h, w = self.shape
        r, q = self.top[:, None] + np.arange(self.size[0]), self.left[:, None] + np.arange(self.size[1])
        inside = ((r >= 0) & (r < h))[:, :, None] & ((q >= 0) & (q < w))[:, None, :]
        return np.clip(r, 0, h - 1)[:, :, None], np.clip(q, 0, w - 1)[:, None, :], inside

    def pick(self, v: Array) -> Array:
        r, q, _ = self._index()
        out: Array = v[:, r, q].swapaxes(0, 1)
        return out

    def dot(self, A: Array, v: Array) -> Array:
        out: Array = np.einsum("rchw,rchw->r", A, self.pick(v))
        return out

    def affine(self, layer: Affine, A: Array) -> tuple[Array, Place]:
        if isinstance(layer, Conv):
            return self._grown(layer, layer.fold(A))
        if isinstance(layer, Scale):
            return A * self.pick(layer.c), self
        if isinstance(layer, Reshape) and layer.shape_in == layer.shape:
            return A, self
        return layer.back(self.flat(A, self.shape).reshape(-1, *self.shape)), WHOLE

    def pool(self, layer: MaxPool, A: Array, low: Array, up: Array) -> tuple[Array, Place]:
        return self._grown(layer, layer.fold(A, *(np.stack([self.pick(v) for v in table]) for table in (low, up))))

    def _grown(self, layer: Conv | MaxPool, block: Array) -> tuple[Array, Place]:
        """The block of inputs; all of them where it is no smaller."""
        (sh, sw), (top, _, left, _) = layer.sliding.stride, layer.sliding.pads
        out = Blocks(self.top * sh - top, self.left * sw - left, (block.shape[2], block.shape[3]), layer.shape_in)
        block = np.where(out._index()[2][:, None], block, 0.0)  # what meets the padding is multiplied by 0
        if block[0].size >= np.prod(layer.shape_in):
            return out.flat(block, layer.shape_in).reshape(-1, *layer.shape_in), WHOLE
        return block, out

    def flat(self, A: Array, shape: Shape) -> Array:
        c, h, w = shape
        r, q, inside = self._index()
        row, down, across = np.nonzero(inside)
        out = np.zeros((len(A), h, w, c))
        out[row, r[row, down, 0], q[row, 0, across]] = A[row, :, down, across]
        return out.transpose(0, 3, 1, 2).reshape(len(A), -1)

    def columns(self) -> Places:
        """(R, c·rows·columns): the places of a row's entries in the flat image; where the block sticks out, of some other entry."""
        c, h, w = self.shape
        r, q, _ = self._index()
        out: Places = (np.arange(c)[None, :, None, None] * (h * w) + (r * w + q)[:, None]).reshape(len(self.top), -1)
        return out


Place = Whole | Blocks


def block_rows(shape: Shape, index: Places, signs: Array) -> tuple[Array, Blocks]:
    """Rows ±v_j (R, c, 1, 1) for the entries `index` (R,) of a value (*shape) that is an image."""
    channel, top, left = np.unravel_index(index, shape)
    A = np.zeros((len(index), shape[0], 1, 1))
    A[np.arange(len(index)), channel, 0, 0] = signs
    return A, Blocks(top, left, (1, 1), shape)


def merged(one: tuple[Array, Place], other: tuple[Array, Place], shape: Shape) -> tuple[Array, Place]:
    """The sum of rows over one value (*shape): two ways that a residual connection joins."""
    (A, p), (B, q) = one, other
    if isinstance(p, Blocks) and isinstance(q, Blocks) and all((v == v[0]).all() for v in (p.top - q.top, p.left - q.left)):
        top, left = np.minimum(p.top, q.top), np.minimum(p.left, q.left)
        size = [int(np.max(np.maximum(a + m, b + n) - low)) for a, m, b, n, low in
                ((p.top, p.size[0], q.top, q.size[0], top), (p.left, p.size[1], q.left, q.size[1], left))]  # fmt: skip
        out, where = np.zeros((len(A), shape[0], size[0], size[1])), Blocks(top, left, (size[0], size[1]), shape)
        for C, place in ((A, p), (B, q)):
            down, across = place.top - top, place.left - left  # the same for all rows
            out[:, :, down[0] : down[0] + place.size[0], across[0] : across[0] + place.size[1]] += C
        return out, where
    return p.flat(A, shape).reshape(-1, *shape) + q.flat(B, shape).reshape(-1, *shape), WHOLE
