r"""Inputs whose deciding features are known exactly, to test where explanations lie: there is no mask data set that ships with the project.

    mosaics       four digits in a square; the label is decided by the only tile that shows a 0 or a 1, the other three show 2 … 9. Truth: that tile's box
    watermarks    digits with random labels, so that only a planted patch decides: bright for label 1, absent for label 0. Truth: the patch

Digits are scikit-learn's 8×8 ones (see `lde_cvx.data.digits`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.data import digits

_SIDE = 8


@dataclass(frozen=True, eq=False)
class Located:
    """X (n, *shape) in [0, 1], labels y (n,) in {0, 1}, masks (n, *shape): true on the features that decide, all others are independent of the label."""

    X: Array
    y: NDArray[np.int64]
    masks: NDArray[np.bool_]


def mosaics(n: int, seed: int = 0, *, held_out: bool = False) -> Located:
    """n mosaics (n, 1, 16, 16) of four digits. `held_out`: of the last 397 digits, which the others never show."""
    data, rng = digits(), np.random.default_rng(seed)
    _at_least("mosaics", n)
    chosen = np.arange(1400, len(data.y)) if held_out else np.arange(1400)
    deciding = [chosen[data.y[chosen] == c] for c in (0, 1)]
    others = chosen[data.y[chosen] > 1]
    X, y, masks = np.zeros((n, 1, 2 * _SIDE, 2 * _SIDE)), rng.integers(0, 2, n), np.zeros((n, 1, 2 * _SIDE, 2 * _SIDE), dtype=bool)
    for i in range(n):
        tile = int(rng.integers(4))
        for k in range(4):
            place = (i, 0, slice(_SIDE * (k // 2), _SIDE * (k // 2 + 1)), slice(_SIDE * (k % 2), _SIDE * (k % 2 + 1)))
            X[place] = data.X[rng.choice(deciding[y[i]] if k == tile else others)].reshape(_SIDE, _SIDE)
            masks[place] = k == tile
    return Located(X, y.astype(np.int64), masks)


def watermarks(n: int, seed: int = 0, *, corner: tuple[int, int] = (0, 0), size: int = 2) -> Located:
    """n digits (n, 64) with random labels; the patch of `size`² pixels at `corner` is 1 for label 1 and 0 for label 0. Raises InputError on a patch outside."""
    a, b = corner
    if not (size >= 1 and 0 <= a <= _SIDE - size and 0 <= b <= _SIDE - size):
        raise InputError(f"watermarks: a patch of side {size} at {corner} does not lie in the {_SIDE}×{_SIDE} image.")
    _at_least("watermarks", n)
    data, rng = digits(), np.random.default_rng(seed)
    X = data.X[rng.integers(0, len(data.y), n)].reshape(n, _SIDE, _SIDE).copy()
    y, masks = rng.integers(0, 2, n), np.zeros_like(X, dtype=bool)
    X[:, a : a + size, b : b + size] = y[:, None, None]
    masks[:, a : a + size, b : b + size] = True
    return Located(X.reshape(n, -1), y.astype(np.int64), masks.reshape(n, -1))


def _at_least(who: str, n: int) -> None:
    if n < 1:
        raise InputError(f"{who}: n={n} must be at least 1.")
