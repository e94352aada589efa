"""Whether a map lies where the truth does: masks (n, *shape) or (n, h, w), true on the deciding features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from formulations.errors import InputError
from formulations.norms import Array


def pointing_game(maps: ArrayLike | Tensor, masks: ArrayLike | Tensor) -> Array:
    """(n,) 1 where the largest value lies in the mask; of several largest, the share of them that do."""
    m, inside = _pair(maps, masks)
    largest = m == m.max(1, keepdims=True)
    return np.asarray((largest & inside).sum(1) / largest.sum(1))


def iou(maps: ArrayLike | Tensor, masks: ArrayLike | Tensor) -> Array:
    """(n,) |A ∩ M|/|A ∪ M|, A the |M| features of largest value: at matched area. Equal values at the border are taken by position."""
    m, inside = _pair(maps, masks)
    out = []
    for row, mask in zip(m, inside, strict=True):
        chosen = np.zeros(len(row), dtype=bool)
        chosen[np.argsort(-row, kind="stable")[: int(mask.sum())]] = True
        out.append((chosen & mask).sum() / (chosen | mask).sum())
    return np.array(out)


def relevance_mass(maps: ArrayLike | Tensor, masks: ArrayLike | Tensor) -> Array:
    """(n,) share of the positive relevance that lies in the mask; 0 where there is none."""
    m, inside = _pair(maps, masks)
    positive = np.maximum(m, 0.0)
    total = positive.sum(1)
    return np.asarray(np.where(total > 0, (positive * inside).sum(1) / np.where(total > 0, total, 1.0), 0.0))


def _pair(maps: ArrayLike | Tensor, masks: ArrayLike | Tensor) -> tuple[Array, NDArray[np.bool_]]:
    """(n, features) each; maps with channels are summed over them where the masks have none. Raises InputError on other shapes and on an empty mask."""
    m, inside = (np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v) for v in (maps, masks))
    m = m.astype(float)
    if m.ndim == inside.ndim + 1 and m.ndim >= 4:
        m = m.sum(1)
    if m.shape != inside.shape or m.ndim < 2:
        raise InputError(f"maps of shape {m.shape} and masks of shape {inside.shape} do not fit; give (n, *shape) for both.")
    if not np.isfinite(m).all():
        raise InputError("maps: hold a value that is not finite.")
    flat = inside.reshape(len(inside), -1).astype(bool)
    empty = np.flatnonzero(~flat.any(1))
    if len(empty):
        raise InputError(f"masks: mask {int(empty[0])} is empty; every input needs at least one deciding feature.")
    return m.reshape(len(m), -1), flat
