r"""Proved bounds of a network's values over one cell, and whether a stored row lies below the network there. It needs numpy and python-flint only.

A backward bound pass of its own (Zhang et al. 2018, CROWN), with every rounding error on the safe side:

1. Bounds of all values: the input's from the cell's hull, the others' from their sources (intervals); what enters an activation or a max pooling is bounded
   again by rows of its own (backward.py) over the region itself (region.py). A neuron split cuts its value's bounds, as the cell demands.
2. A stored row a'·δ + b lies below A·v when, for a row a·x + c − error ≤ A·v of the network, max over the region of (a' − a)·δ, plus b − c − a·x0 + error, all
   rounded up, is at most 0.

Any slopes of the lines give a valid row, so they may come from the certificate; the intercepts are always computed here, on the bounds that step 1 proved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from verification.checking.document import Document, Inner, Split
from verification.rechecking.activations import Activation, Lines, Rectifier, lines
from verification.rechecking.affine import Add, Affine, Reshape, Scale
from verification.rechecking.backward import Backward
from verification.rechecking.graph import Network, Node
from verification.rechecking.places import WHOLE, Blocks, Place, block_rows
from verification.rechecking.pooling import MaxPool
from verification.rechecking.region import Region
from verification.rechecking.rounding import TINY, Array, U, widen

__all__ = ["Bounds", "enclose"]

BLOCK = 1 << 22  # numbers in one matrix of rows
WIDE = (
    1 << 23
)  # rows over an image × coordinates, above which their bounds use only the ball and the box of the region, as those of the bound pass do


def enclose(network: Network, lo: Array, hi: Array) -> list[tuple[Array, Array]]:
    """Bounds of every value for inputs between lo and hi (*shape_in), by interval arithmetic."""
    found: list[tuple[Array, Array]] = []
    for node in network.nodes:
        found.append(_interval(node, [(lo, hi) if i < 0 else found[i] for i in node.sources]))
    return found


def _interval(node: Node, sources: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        if isinstance(node.layer, Add):
            (a, b), (c, d) = sources
            return widen(a + c, b + d)
        return node.layer.interval(*sources[0])


class Bounds(Backward):
    """Proved bounds of every value over one cell, and rows on them."""

    def __init__(
        self,
        network: Network,
        doc: Document,
        region: Region,
        splits: dict[int, list[Split]],
        known: dict[int, Array],
        inner: Sequence[Inner] = (),
    ) -> None:
        """`known`: multipliers of similar regions by value, to start from; updated. `inner`: slopes to try in the bounds of values."""
        super().__init__()
        self.network, self.region, self.known = network, region, known
        self._inner = _by_value(network, inner)
        self._pooled = {node.sources[0] for node in network.nodes if isinstance(node.layer, MaxPool)}
        shape = network.shape_in
        self.x0 = np.array(doc.x0)
        low, high = widen(self.x0 + region.lo, self.x0 + region.hi)
        self.source = (low.reshape(shape), high.reshape(shape))
        self.bounds: list[tuple[Array, Array]] = []
        self.lines: dict[int, Lines] = {}
        for i, node in enumerate(network.nodes):
            if not isinstance(node.layer, Affine | Add):
                drawn = self._refine(node.sources[0], i, splits)
            if isinstance(node.layer, Activation):
                with np.errstate(all="ignore"):
                    self.lines[i] = lines(node.layer, *self.of(node.sources[0]), drawn)
            self.bounds.append(self._cut(i, splits, *self.interval(node)))

    def interval(self, node: Node) -> tuple[Array, Array]:
        """Bounds of a node's value from those of its sources."""
        return _interval(node, [self.of(j) for j in node.sources])

    def _cut(self, i: int, splits: dict[int, list[Split]], low: Array, high: Array) -> tuple[Array, Array]:
        """The bounds on the cell's side of its neuron splits. A side that is empty leaves one point, which is no loss: nothing has to be proved there."""
        if i not in splits:
            return low, high
        low, high = low.copy().ravel(), high.copy().ravel()
        for s in splits[i]:
            if s.side > 0:
                low[s.index] = max(low[s.index], s.cut)
                high[s.index] = max(high[s.index], low[s.index])
            else:
                high[s.index] = min(high[s.index], s.cut)
                low[s.index] = min(low[s.index], high[s.index])
        shape = self.network.shape(i)
        return low.reshape(shape), high.reshape(shape)

    def _refine(self, i: int, above: int, splits: dict[int, list[Split]]) -> tuple[Array, Array]:
        """Bounds of value i, which enters activation or pooling `above`, by rows. They are kept where they beat the intervals.

        Returns the bounds as the rows alone give them: on those the slopes are chosen, as CROWN does.
        """
        if i < 0:
            return self.source
        wanted = self._wanted(i, above)
        shape, n = self.network.shape(i), math.prod(self.network.shape(i))
        low, high, first, last = (v.ravel().copy() for v in (*self.bounds[i], *self.bounds[i]))
        open_only = isinstance(self.network.nodes[above].layer, Rectifier)
        width, start = 1, 0  # the first row tells how many numbers one takes
        while start < len(wanted):
            index = wanted[start : start + width]
            a, place, const, error, most = self._rows(i, index)
            below = self._least(a, place, const, error)
            is_open = (below < 0).reshape(2, -1).all(0) if open_only else np.ones(len(index), dtype=bool)
            rows = np.flatnonzero(np.tile(is_open, 2))
            if len(rows) and self.region.coupled and not (len(shape) == 3 and 2 * len(wanted) * self.region.dim > WIDE):
                dense, places = place.flat(a, self.network.shape_in)[rows], np.concatenate([index[is_open], n + index[is_open]])
                store = self.known.setdefault(i, np.zeros((2 * n, self.region.K.shape[0])))
                greatest, store[places] = self.region.above(-dense, store[places])
                raised = const[rows] - error[rows] - greatest
                below[rows] = np.fmax(below[rows], raised - 4 * U * (np.abs(const[rows]) + np.abs(raised) + error[rows]))
            below = np.where(np.isnan(below), -np.inf, below)
            first[index], last[index] = below[: len(index)], -below[len(index) :]
            start, width = start + width, max(1, BLOCK // (2 * most))
        low, high = np.maximum(low, first), np.minimum(high, last)
        low, high = np.minimum(low, high), np.maximum(low, high)
        self.bounds[i] = self._cut(i, splits, low.reshape(shape), high.reshape(shape))
        return self._cut(i, splits, first.reshape(shape), last.reshape(shape))

    def _wanted(self, i: int, above: int) -> NDArray[np.intp]:
        """The entries of value i of which rows may tell more than intervals do, and more than is needed."""
        node, layer = self.network.nodes[i], self.network.nodes[above].layer
        low, high = (v.ravel() for v in self.bounds[i])
        if isinstance(node.layer, Activation) or (self.region.boxed and self._plain(i)):
            return np.zeros(
                0, dtype=np.intp
            )  # monotone, of a value that was bounded so; or an affine function of a box: intervals are exact
        if not isinstance(layer, Rectifier):
            return np.arange(len(low))
        if above in self._pooled:  # which input of a window is the largest hangs on those that are certainly positive, too
            return np.flatnonzero(high > 0) if layer.negative == 0 else np.arange(len(low))
        return np.flatnonzero((low < 0) & (high > 0))

    def _plain(self, i: int) -> bool:
        """Is value i one affine layer of the input, apart from layers that act on each coordinate alone?"""
        mixed = 0
        while i >= 0:
            node = self.network.nodes[i]
            if not isinstance(node.layer, Affine):
                return False
            mixed += not isinstance(node.layer, Scale | Reshape)
            i = node.sources[0]
        return mixed <= 1

    def _rows(self, i: int, index: NDArray[np.intp]) -> tuple[Array, Place, Array, Array, int]:
        """Rows over δ below +v_j, then below −v_j, j in `index`: (rows, where they stand, constants, errors, numbers a row)."""
        shape, signs = self.network.shape(i), np.repeat([1.0, -1.0], len(index))
        if len(shape) == 3 and i not in self._inner:
            a, place, c, missed, most = self.trace(i, *block_rows(shape, np.tile(index, 2), signs))
            return (a, place, *self.at_x0(a, c, missed, place)[1:], most)
        A = np.zeros((2 * len(index), math.prod(shape)))
        A[np.arange(len(A)), np.tile(index, 2)] = signs
        A = A.reshape(-1, *shape)
        a, _, c, missed, most = self.trace(i, A, WHOLE)
        a, const, error = self.at_x0(a.reshape(len(A), -1), c, missed)
        if i in self._inner:  # the certificate's slopes, row by row where they are better
            b, other, missed = self.at_x0(*self.back(i, A, low=self._low_slopes(i, index)))
            better = self._least(b, WHOLE, other, missed) > self._least(a, WHOLE, const, error)
            a, const, error = np.where(better[:, None], b, a), np.where(better, other, const), np.where(better, missed, error)
        return a, WHOLE, const, error, most

    def _least(self, a: Array, place: Place, const: Array, error: Array) -> Array:
        """A lower bound of a·δ + const − error over ball and box."""
        region = self.region.seen(place.columns()) if isinstance(place, Blocks) else self.region
        below = const - error - region.above(-a.reshape(len(a), -1), search=False)[0]
        out: Array = below - 4 * U * (np.abs(const) + np.abs(below) + error)
        return out

    def _low_slopes(self, i: int, index: NDArray[np.intp]) -> dict[int, Array]:
        """The certificate's slopes for the lower, then the upper bounds of the neurons `index` of value i; the lines' own where it has none."""
        out = {}
        for place, table in self._inner[i]:
            slopes = np.tile(self.lines[place].low.ravel(), (2, len(index), 1))
            low, high = (v.ravel() for v in self.of(self.network.nodes[place].sources[0]))
            is_open, rows = (low < 0) & (high > 0), {int(j): row for row, j in enumerate(index)}
            for neuron, inputs, *sides in zip(table.neurons, table.inputs, table.low, table.up, strict=True):
                if neuron in rows:
                    at = np.array(inputs, dtype=int)
                    kept = is_open[at]
                    for side, values in enumerate(sides):
                        slopes[side, rows[neuron], at[kept]] = np.array(values)[kept]
            out[place] = slopes.reshape(2 * len(index), -1)
        return out

    def shortfall(self, start: int, q: Array, shift: float, row: Array, b: float, slopes: Sequence[Array] | None) -> float:
        """By how much row·δ + b ≤ q·v(δ) + shift is missed on the cell; ≤ 0 proves it."""
        with np.errstate(all="ignore"):
            a, const, error = self.at_x0(*self.back(start, q.reshape(1, *self.network.shape(start)), slopes))
            D = row[None] - a
            error = error + U * (np.abs(D) @ self.region.size) + self.region.dim * TINY
            best = math.inf
            for search in (False, True):
                over = self.region.above(D, search=search)[0]
                short = over + b - shift - const
                short = short + error + 8 * U * (np.abs(over) + abs(b) + abs(shift) + np.abs(const) + error)
                if math.isfinite(short[0]):
                    best = min(best, float(short[0]))
                if best <= 0:
                    break
        return best


def _ascend(places: list[int], size: int) -> bool:
    return not places or (places == sorted(set(places)) and places[-1] < size)


def _by_value(network: Network, inner: Sequence[Inner]) -> dict[int, list[tuple[int, Inner]]]:
    """{value: [(activation, slopes)]} for the tables that fit the network and whose neurons ascend; others are no help."""
    places, out = network.activations(), dict[int, list[tuple[int, Inner]]]()
    for table in inner:
        if table.of >= len(places) or not table.neurons:
            continue
        value, place = network.nodes[places[table.of]].sources[0], places[table.by]
        width = math.prod(network.shape(place))
        fits = _ascend(table.neurons, math.prod(network.shape(value))) and all(_ascend(v, width) for v in table.inputs)
        if value >= 0 and place < value and fits:
            out.setdefault(value, []).append((place, table))
    return out
