"""ROAR: remove the features that a method calls relevant, train again, and see how much accuracy is lost.

Source: Hooker, Erhan, Kindermans, Kim (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.metrics.removal import blend, order_of

Train = Callable[[Tensor, Tensor, Tensor, Tensor], float]  # (X, y, X_test, y_test) → accuracy of a network trained anew


@dataclass(frozen=True, eq=False)
class Roar:
    """shares (k,) of features removed, accuracy (k,) after training again; a steeper fall is better. `area`: over the shares, by trapezoids."""

    shares: Array
    accuracy: Array

    @property
    def area(self) -> float:
        return float(np.trapezoid(self.accuracy, self.shares))


def roar(
    train: Train,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    maps: Tensor,
    test_maps: Tensor,
    *,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seed: int = 0,
) -> Roar:
    """Features are replaced by the training data's mean, the largest |relevance| of each input first; `train` is called once per share."""
    (X, y), (X_test, y_test) = data, test
    if maps.shape != X.shape or test_maps.shape != X_test.shape:
        raise InputError(f"roar: maps of shapes {tuple(maps.shape)} and {tuple(test_maps.shape)} do not fit the data.")
    wrong = [s for s in shares if not 0 <= s <= 1]
    if wrong or not len(shares):
        raise InputError(f"roar: shares={list(shares)} must lie between 0 and 1, at least one.")
    mean, d, found = X.mean(0), X[0].numel(), []
    for share in shares:
        count = np.array([round(share * d)])
        less, less_test = (
            torch.cat([blend(x, mean, o, count) for x, o in zip(part, order_of(m, seed, size=True), strict=True)])
            for part, m in ((X, maps), (X_test, test_maps))
        )
        found.append(train(less, y, less_test, y_test))
    return Roar(np.asarray(shares, dtype=float), np.array(found))
