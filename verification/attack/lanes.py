"""Lanes: the points under search, all inputs together, sorted by input. What one input's lanes do never depends on another's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lanes:
    """`who` (L,) inputs, ascending; `row` (L,) margin rows aimed at; `delta` (L, d) changes; `length` (L,) their norms, +inf while not flipped."""

    who: Tensor
    row: Tensor
    delta: Tensor
    length: Tensor

    def __len__(self) -> int:
        return len(self.who)

    def take(self, index: Tensor) -> Lanes:
        return Lanes(self.who[index], self.row[index], self.delta[index], self.length[index])

    def put(self, index: Tensor, delta: Tensor, length: Tensor) -> None:
        self.delta[index], self.length[index] = delta, length

    @staticmethod
    def join(*groups: Lanes) -> Lanes:
        """All lanes, sorted by input; within an input the earlier group comes first."""
        order = torch.cat([g.who for g in groups]).argsort(stable=True)
        return Lanes(*(torch.cat(f)[order] for f in zip(*((g.who, g.row, g.delta, g.length) for g in groups), strict=True)))


def place(who: Tensor) -> Tensor:
    """Position of every lane among the lanes of its input, for lanes sorted by input."""
    index = torch.arange(len(who), device=who.device)
    if not len(who):
        return index
    fresh = torch.cat([torch.ones_like(who[:1], dtype=torch.bool), who[1:] != who[:-1]])
    return index - torch.cummax(torch.where(fresh, index, 0), 0)[0]


def smallest(who: Tensor, size: Tensor, count: int) -> Tensor:
    """Indices of the `count` lanes of least `size` of every input, sorted by input, then size; ties keep their order."""
    order = size.argsort(stable=True)
    order = order[who[order].argsort(stable=True)]
    return order[place(who[order]) < count]


def distinct(who: Tensor, point: Tensor) -> Tensor:
    """Indices of the lanes that lie apart (by a hundredth of their size) from every earlier lane of their input, for lanes sorted by input."""
    size, place_ = point.abs().amax(1), place(who)
    near = torch.zeros_like(who, dtype=torch.bool)
    for shift in range(1, int(place_.max()) + 1 if len(who) else 0):
        apart = (point[shift:] - point[:-shift]).abs().amax(1)
        near[shift:] |= (place_[shift:] >= shift) & (apart <= 0.01 * size[shift:])
    return (~near).nonzero()[:, 0]
