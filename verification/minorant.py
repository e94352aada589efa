"""Affine minorants of margins on a stated region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Minorant:
    """``a_k·δ + b_k ≤ m_k(δ)`` for every δ of the region R_i that the rows were asked for, i < n, k < K; hence ``lower_k ≤ min_R m_k``.

    a (n, K, d), b (n, K), lower (n, K). Where the bounds broke down (NaN, overflow), a = 0 and b = lower = −∞: no bound.
    What an independent derivation of the rows needs besides the weights; empty for rectifiers with fixed slopes on a region with closed forms:
    slopes: of every activation in the network's order, (n, K, neurons), the slope of the line that stands for it in the row;
    inner: {(t, s): (n, 2, neurons of t, neurons of s)}, the slopes of the lines below activation s in the lower and upper bounds of what enters activation t,
    in units of 1/255, −1 where the usual slope does.
    """

    a: Tensor
    b: Tensor
    lower: Tensor
    slopes: tuple[Tensor, ...] = ()
    inner: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
