"""Affine minorants of margins on a stated region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Minorant:
    """``a_k·δ + b_k ≤ m_k(δ)`` for every δ of the region R_i that the rows were asked for, i < n, k < K; hence ``lower_k ≤ min_R m_k``.

    a (n, K, d), b (n, K), lower (n, K). Where the bounds broke down (NaN, overflow), a = 0 and b = lower = −∞: no bound.
    slopes: of every activation in the network's order, (n, K, neurons), the slope of the line that stands for it in the row; empty where an independent
    derivation needs none: fixed slopes on a region with closed forms.
    """

    a: Tensor
    b: Tensor
    lower: Tensor
    slopes: tuple[Tensor, ...] = ()
