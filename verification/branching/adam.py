"""Adam (Kingma & Ba 2015) on tensors that the caller moves: the two running moments, and the step they suggest, of size about one."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, SECOND = 0.9, 0.99
TINY = 1e-12


class Adam:
    def __init__(self, like: list[Tensor]) -> None:
        self._first, self._second, self._t = [torch.zeros_like(v) for v in like], [torch.zeros_like(v) for v in like], 0

    def steps(self, slopes: list[Tensor]) -> list[Tensor]:
        self._t += 1
        one, two = 1 - FIRST**self._t, 1 - SECOND**self._t
        for m, v, g in zip(self._first, self._second, slopes, strict=True):
            m.mul_(FIRST).add_(g, alpha=1 - FIRST)
            v.mul_(SECOND).addcmul_(g, g, value=1 - SECOND)
        return [(m / one) / ((v / two).sqrt() + TINY) for m, v in zip(self._first, self._second, strict=True)]
