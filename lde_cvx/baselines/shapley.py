r"""Shapley values of cells, exactly, and their local forms on a graph of neighbours.

    φ_i = Σ_{T ∌ i} (v(T ∪ i) − v(T)) / (|N| C(|N| − 1, |T|)),       v(T) = f(x on the cells T, r elsewhere)

    "shapley"     N = all cells (at most 16)
    "l-shapley"   N = the cells within k steps of i, the cells beyond kept: wrong only through interactions that reach further than k
    "c-shapley"   only connected sets U of those cells: Σ_{U ∋ i} 2/((|U| + 2)(|U| + 1)|U|) (v(U) − v(U \ i)), everything else at r

Neighbours of a vector's cells are the ones before and after; of an image's, the four beside. Source: Chen, Song, Wainwright, Jordan (2019),
whose L-Shapley, like ours here with `context="removed"`, sets the cells beyond the neighbourhood to r; "kept" leaves them at x.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from lde_cvx.baselines.base import at_least, cells_of, reference_like, score
from lde_cvx.baselines.gradients import Reference

_MOST_CELLS, _MOST_NEIGHBOURS = 16, 13
Cells = frozenset[int]


def exact_terms(cells: Cells, i: int) -> list[tuple[Cells, float]]:
    """Shapley's value of i in the game on `cells` as Σ weight·v(set)."""
    rest = sorted(cells - {i})
    out: list[tuple[Cells, float]] = []
    for size in range(len(rest) + 1):
        w = 1.0 / (len(cells) * comb(len(rest), size))
        for chosen in combinations(rest, size):
            T = frozenset(chosen)
            out += [(T | {i}, w), (T, -w)]
    return out


def connected_terms(cells: Cells, i: int, beside: dict[int, set[int]]) -> list[tuple[Cells, float]]:
    """The connected sets U with i ∈ U ⊆ cells, each with its weight in C-Shapley."""
    found: set[Cells] = {frozenset({i})}
    edge = set(found)
    while edge:
        grown = {U | {j} for U in edge for u in U for j in beside[u] & cells if j not in U}
        edge = grown - found
        found |= edge
    out: list[tuple[Cells, float]] = []
    for U in found:
        w = 2.0 / ((len(U) + 2) * (len(U) + 1) * len(U))
        out += [(U, w), (U - {i}, -w)]
    return out


def neighbours(shape: tuple[int, ...]) -> dict[int, set[int]]:
    """Of every cell of a chain (n,) or a grid (h, w), the ones beside it."""
    h, w = shape if len(shape) == 2 else (1, shape[0])
    out: dict[int, set[int]] = {}
    for a in range(h):
        for b in range(w):
            near = [(a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)]
            out[a * w + b] = {p * w + q for p, q in near if 0 <= p < h and 0 <= q < w}
    return out


def within(beside: dict[int, set[int]], i: int, steps: int) -> Cells:
    """The cells at most `steps` away from i, i with them."""
    seen = {i}
    for _ in range(steps):
        seen |= {k for j in seen for k in beside[j]}
    return frozenset(seen)


def evaluate(model: nn.Module, x: Tensor, r: Tensor, cells: Tensor, terms: list[list[tuple[Cells, float]]], target: int) -> Tensor:
    """Σ weight·v(set) of every cell (count,), each set asked of the model once. x, r (1, *shape)."""
    number: dict[Cells, int] = {}
    for row in terms:
        for T, _ in row:
            number.setdefault(T, len(number))
    kept = torch.zeros(len(number), int(cells.max()) + 1, dtype=torch.bool)
    for T, k in number.items():
        kept[k, list(T)] = True
    v = score_of_sets(model, x, r, cells, kept, target)
    return torch.stack([sum((w * v[number[T]] for T, w in row), v.new_zeros(())) for row in terms])


def score_of_sets(model: nn.Module, x: Tensor, r: Tensor, cells: Tensor, kept: Tensor, target: int) -> Tensor:
    """v of every row of `kept` (sets, count)."""
    flat = cells.ravel().cpu()
    return torch.cat(
        [score(model, torch.where(part[:, flat].reshape(-1, *x.shape[1:]).to(x.device), x, r), target) for part in torch.split(kept, 256)]
    )


def _maps(x: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    return values[cells.ravel()].reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Shapley:
    """Exact Shapley values of at most 16 cells; Σ_i = f(x) − f(r). A cell's value is given to each of its entries."""

    cell: int = 1
    reference: Reference = 0.0
    name: ClassVar[str] = "shapley"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        cells, r = cells_of(tuple(x.shape[1:]), self.cell).to(x.device), reference_like(x, self.reference)
        count = int(cells.max()) + 1
        if count > _MOST_CELLS:
            raise InputError(f"shapley: {count} cells are more than {_MOST_CELLS}; use larger cells, kernel-shap or l-shapley.")
        sets = torch.arange(2**count)  # as bits
        kept = (sets[:, None] >> torch.arange(count) & 1).bool()
        weights = torch.tensor([0.0 if k == count else 1.0 / (count * comb(count - 1, k)) for k in range(count + 1)], dtype=x.dtype)
        out = []
        for k, target in enumerate(targets):
            v = score_of_sets(model, x[k : k + 1], r[k : k + 1], cells, kept, int(target)).cpu()
            without = [sets[~kept[:, i]] for i in range(count)]
            values = torch.stack([(weights[kept[T].sum(1)] * (v[T + 2**i] - v[T])).sum() for i, T in enumerate(without)])
            out.append(_maps(x[k : k + 1], cells, values.to(x.device)))
        return torch.cat(out)


@dataclass(frozen=True, eq=False)
class LShapley:
    """Shapley values in the game of the cells within `order` steps of each cell; beyond them x ("kept") or r ("removed", as in the source)."""

    order: int = 1
    cell: int = 1
    reference: Reference = 0.0
    context: str = "removed"
    name: ClassVar[str] = "l-shapley"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least("order", self.order, 0)
        if self.context not in ("kept", "removed"):
            raise InputError(f"l-shapley: context={self.context!r} is not known; use 'kept' or 'removed'.")

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        cells, r = cells_of(tuple(x.shape[1:]), self.cell).to(x.device), reference_like(x, self.reference)
        beside = neighbours(_layout(cells))
        terms = []
        for i in sorted(beside):
            near = _near(beside, i, self.order, self.name)
            far = frozenset(beside) - near if self.context == "kept" else frozenset()
            terms.append([(T | far, w) for T, w in exact_terms(near, i)])
        return torch.cat(
            [_maps(x[k : k + 1], cells, evaluate(model, x[k : k + 1], r[k : k + 1], cells, terms, int(t))) for k, t in enumerate(targets)]
        )


@dataclass(frozen=True, eq=False)
class CShapley:
    """Marginal contributions to the connected sets within `order` steps, weighted as in the module; everything else at r."""

    order: int = 1
    cell: int = 1
    reference: Reference = 0.0
    name: ClassVar[str] = "c-shapley"
    gradient: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least("order", self.order, 0)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        cells, r = cells_of(tuple(x.shape[1:]), self.cell).to(x.device), reference_like(x, self.reference)
        beside = neighbours(_layout(cells))
        terms = [connected_terms(_near(beside, i, self.order, self.name), i, beside) for i in sorted(beside)]
        return torch.cat(
            [_maps(x[k : k + 1], cells, evaluate(model, x[k : k + 1], r[k : k + 1], cells, terms, int(t))) for k, t in enumerate(targets)]
        )


def _layout(cells: Tensor) -> tuple[int, ...]:
    """(n,) or (h, w): how the cells lie."""
    plane = cells.reshape(-1, *cells.shape[-2:])[0] if cells.ndim > 1 else cells
    if plane.ndim == 1:
        return (int(plane.max()) + 1,)
    wide = int(plane[0].max()) + 1
    return ((int(plane.max()) + 1) // wide, wide)


def _near(beside: dict[int, set[int]], i: int, order: int, who: str) -> Cells:
    near = within(beside, i, order)
    if len(near) > _MOST_NEIGHBOURS:
        raise InputError(f"{who}: order={order} gives neighbourhoods of {len(near)} cells, more than {_MOST_NEIGHBOURS}; lower it.")
    return near
