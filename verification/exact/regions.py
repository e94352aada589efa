r"""Outward enumeration of activation regions: the region whose bound is nearest is split at a neuron, until none lies below the witness.

    v* = min over the regions of (min ‖Wδ‖ s.t. the region's sign rows, its affine margin row ≤ 0, δ ∈ C)

A region with free neurons is bounded by its triangle relaxation, one with all signs fixed exactly (`relaxation`); a part keeps the bound of the whole
where its own is lower. A region whose margin's backward bound is positive up to the witness's radius needs no program. Bounds of pre-activations hold
up to that radius, so they tighten as witnesses are found.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field, replace

import numpy as np

from formulations.norms import INF, Array
from formulations.support import Region
from verification.exact.answers import Leaf
from verification.exact.bounds import Bounds, Propagation
from verification.exact.relaxation import Splits
from verification.exact.search import GAP, Search

REFRESH = 0.98  # the bounds of all regions are computed anew when the witness has come this much nearer


@dataclass(order=True, frozen=True)
class _Node:
    """A region: its verified bound, and the neuron to split it at (None: settled)."""

    lower: float
    order: int
    row: int = field(compare=False)
    splits: Splits = field(compare=False)
    bounds: Bounds = field(compare=False)
    branch: tuple[int, int] | None = field(compare=False)

    def leaf(self) -> Leaf:
        return Leaf(self.row, tuple((layer, j, on) for (layer, j), on in sorted(self.splits.items())), self.lower)


class RegionSearch(Search):
    """Best first over the regions of all margin rows at once. Interrupted at any region, the open ones keep their bounds."""

    _covered = False

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The regions that cover the last stage, once every margin row has been bounded."""
        return tuple(n.leaf() for n in (*self._settled, *self._open)) if self._covered else ()

    def _so_far(self) -> float:
        return min((n.lower for n in (*self._settled, *self._open)), default=INF) if self._covered else 0.0

    def _settle(self, radius: float) -> float:
        self._radius, self._covered = radius, False
        self._open: list[_Node] = []
        self._settled: list[_Node] = []
        self._order = itertools.count()
        self._propagation = Propagation(self.q.weights, self.q.shifts, self.q.first_shift_size, self.device)
        self._place()
        roots = [self._visit(row, {}, self._root, 0.0, None) for row in self.rows]
        self._covered = True
        for node in roots:
            self._file(node)
        while self._open:
            node = self._open[0]
            if node.lower >= self._cutoff:
                break
            assert node.branch is not None
            parts = [self._visit(node.row, {**node.splits, node.branch: on}, node.bounds, node.lower, node.branch) for on in (True, False)]
            heapq.heappop(self._open)
            for part in parts:
                self._file(part)
        return self._so_far()

    @property
    def _cutoff(self) -> float:
        return min(self._radius, self.upper) * (1 - GAP)

    def _file(self, node: _Node) -> None:
        if node.branch is None or node.lower >= self._cutoff:
            self._settled.append(node)
        else:
            heapq.heappush(self._open, node)

    def _place(self) -> None:
        """Bounds of all regions for changes up to the radius, or up to the witness where that is nearer."""
        radius = min(self._radius, self.upper)
        region = Region.build(self.q.norm, self.q.parts, radius, self.q.dim, device=self.device)
        self._placed = radius
        self._root = self._propagation.bounds(region)
        self._plain = replace(region, coupling=None)  # a larger region whose support function is a closed form
        lo, hi = region.hull()
        self._hull = np.maximum(np.abs(lo.cpu().numpy()), np.abs(hi.cpu().numpy()))[0] * (1 + 1e-12)

    def _visit(self, row: int, splits: Splits, bounds: Bounds, lower: float, branch: tuple[int, int] | None) -> _Node:
        """The region with these splits: bounded, and where it stays open, with the neuron to split next."""
        self.spend()
        self.nodes += 1
        if branch is not None:
            bounds = self._propagation.bounds(self._plain, bounds.within(self._root).held(*branch, splits[branch]), branch[0] + 1)
        cap = INF if self._placed >= self.reach else self._placed  # the bounds say nothing beyond that radius
        if bounds.empty or self._propagation.least(self._plain, bounds, *self.q.margin_row(row)) > 0:
            return _Node(cap, next(self._order), row, splits, bounds, None)
        answer = self.relaxation.bound(row, bounds, splits, self._hull, time_limit=self.seconds_left())
        lower = max(lower, min(answer.lower, cap))
        if lower < self._cutoff and self.take(self.descent.at(answer.delta, row, self.upper)) and self.upper < REFRESH * self._placed:
            self._place()
        return _Node(lower, next(self._order), row, splits, bounds, _widest(answer.score, bounds, splits))


def _widest(score: tuple[Array, ...], bounds: Bounds, splits: Splits) -> tuple[int, int] | None:
    """The free neuron whose triangle the relaxation uses most; where it uses none, the one with the largest triangle; None when every sign is known."""
    free = bounds.unstable()
    for layer, j in splits:
        free[layer][j] = False
    used = [np.where(f, s, 0.0) for f, s in zip(free, score, strict=True)]
    if max((float(s.max(initial=0.0)) for s in used), default=0.0) <= 0:
        used = [np.where(f, -l * u / np.where(f, u - l, 1.0), 0.0) for f, l, u in zip(free, bounds.lower, bounds.upper, strict=True)]
    layer = int(np.argmax([s.max(initial=0.0) for s in used])) if used else 0
    if not used or used[layer].max(initial=0.0) <= 0:
        return None
    return layer, int(np.argmax(used[layer]))
