r"""Cells: batches of nodes of the split trees, in scaled changes v = Wδ.

A cell of margin row k is { v in the region : the signs of its splits hold }. Everything a cell carries holds for the changes in it that *flip* row k, which
is all that is asked: bounds of the neurons, and one row a·v + b ≤ 0, the cell's cap (verification/branching/ball.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Layers = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Cells:
    """n cells; for every hidden layer l of h_l neurons one tensor (n, h_l) of each of:

    lower, upper   bounds of the neuron's input z
    sign           +1, −1 where the cell splits on it (z ≥ 0, z ≤ 0), else 0
    slope, beta    slope of the lower line of an open ReLU, in [0, 1]; multiplier ≥ 0 of the split
    gamma          (n, 2 h_l) last multipliers of the cap, for upper and lower bounds

    and a (n, d), b (n,) the row, which every flip of the cell obeys: a·v + b ≤ 0; slack (n,) = b/σ(−a) − 1, > 0 where the cell is closed;
    row (n,) the margin row k; node (n,) where the cell's splits are written down; u (n, m), z (n, d) the last multipliers of the set's coupled pieces and
    their maximiser (verification/branching/coupled.py; m = d = 0 without such pieces); kappa (n,), turn (n, d) the row's share of the first layer's facets
    (verification/branching/facets.py; d = 0 where they are not used).
    """

    lower: Layers
    upper: Layers
    sign: Layers
    slope: Layers
    beta: Layers
    gamma: Layers
    a: Tensor
    b: Tensor
    slack: Tensor
    row: Tensor
    node: Tensor
    u: Tensor
    z: Tensor
    kappa: Tensor
    turn: Tensor

    def __len__(self) -> int:
        return len(self.b)

    def take(self, index: Tensor) -> Cells:
        picked: list[Any] = [tuple(v[index] for v in value) if isinstance(value, tuple) else value[index] for value in self._values()]
        return Cells(*picked)

    def open_neurons(self) -> Layers:
        """Where the sign of z is not known."""
        return tuple((l < 0) & (u > 0) for l, u in zip(self.lower, self.upper, strict=True))

    def sides(self, places: list[tuple[int, int]]) -> Cells:
        """The cells on the side z ≥ 0 of their (layer, neuron), then all of them on the side z ≤ 0."""
        out = []
        for sign in (1, -1):
            lower, upper, signs = ([v.clone() for v in layers] for layers in (self.lower, self.upper, self.sign))
            for i, (l, j) in enumerate(places):
                signs[l][i, j] = sign
                (lower if sign > 0 else upper)[l][i, j] = 0.0
            out.append(replace(self, lower=tuple(lower), upper=tuple(upper), sign=tuple(signs)))
        return Cells.cat(out)

    def _values(self) -> list[Any]:
        return [getattr(self, f.name) for f in fields(self)]

    @staticmethod
    def cat(batches: list[Cells]) -> Cells:
        if len(batches) == 1:
            return batches[0]
        joined: list[Any] = []
        for values in zip(*(c._values() for c in batches), strict=True):
            joined.append(tuple(torch.cat(v) for v in zip(*values, strict=True)) if isinstance(values[0], tuple) else torch.cat(values))
        return Cells(*joined)


class Pool:
    """Cells that wait, in one block of memory: `put` gives places, `get` takes the cells away from them."""

    def __init__(self) -> None:
        self._store: Cells | None = None
        self._free: list[int] = []

    def put(self, cells: Cells) -> list[int]:
        if self._store is None:
            self._store, self._free = cells.take(torch.zeros(64, dtype=torch.long, device=cells.b.device)), list(range(64))
        if len(self._free) < len(cells):
            size = len(self._store)
            grown = max(size, len(cells))
            self._store = Cells.cat([self._store, cells.take(torch.zeros(grown, dtype=torch.long, device=cells.b.device))])
            self._free += range(size, size + grown)
        places = [self._free.pop() for _ in range(len(cells))]
        at = torch.tensor(places, device=cells.b.device)
        for mine, new in zip(self._store._values(), cells._values(), strict=True):
            for m, v in zip(mine, new, strict=True) if isinstance(mine, tuple) else ((mine, new),):
                m[at] = v
        return places

    def get(self, places: list[int]) -> Cells:
        assert self._store is not None
        self._free += places
        return self._store.take(torch.tensor(places, device=self._store.b.device))
