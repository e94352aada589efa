r"""Proved bounds of a network's values over one cell, and affine minorants on them: the arithmetic of level B. It needs numpy and python-flint only.

A backward bound pass of its own (Zhang et al. 2018, CROWN), with every rounding error on the safe side:

1. Bounds of all values: the input's from the cell's hull, the others' from their sources (intervals); what enters an activation or a max pooling is bounded
   again by rows of its own, 2 and 3 below, over the region itself (region.py). A neuron split cuts its value's bounds, as the cell demands.
2. A row A·v over a value v goes back layer by layer (layers.py): affine layers give A W and A t; an activation gives the line below it where A ≥ 0
   and the line above it where A < 0; max pooling the input with the largest lower bound. What floats miss goes into the constant's error.
3. At the input: a·x + c − error ≤ A·v on the cell, x = x0 + δ.
4. A stored row a'·δ + b lies below that when max over the region of (a' − a)·δ, plus b − c − a·x0 + error, all rounded up, is at most 0.

Any slopes of the lines give a valid row, so they may come from the certificate; the intercepts are always computed here, on the bounds that step 1 proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from verification.certificate_format import Document, Inner, Split
from verification.rechecking.layers import (
    INFLATE,
    TINY,
    Activation,
    Add,
    Affine,
    Array,
    Lines,
    MaxPool,
    Rectifier,
    U,
    gamma,
    lines,
    widen,
)  # fmt: skip
from verification.rechecking.network import Network, Node
from verification.rechecking.region import Region

__all__ = ["Bounds", "enclose"]

BLOCK = 1 << 23  # numbers in one matrix of rows
DUST = 2.0**-900  # far above what underflow can do to a row, per unit of the values


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


class Bounds:
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
        self.network, self.region, self.known = network, region, known
        self._inner = _by_value(network, inner)
        shape = network.shape_in
        self.x0 = np.array(doc.x0)
        low, high = widen(self.x0 + region.lo, self.x0 + region.hi)
        self.source = (low.reshape(shape), high.reshape(shape))
        self.bounds: list[tuple[Array, Array]] = []
        self.lines: dict[int, Lines] = {}
        for i, node in enumerate(network.nodes):
            if not isinstance(node.layer, Affine | Add):
                drawn = self._refine(node.sources[0], node.layer, splits)
            if isinstance(node.layer, Activation):
                with np.errstate(all="ignore"):
                    self.lines[i] = lines(node.layer, *self.of(node.sources[0]), drawn)
            self.bounds.append(self._cut(i, splits, *self.interval(node)))

    def of(self, i: int) -> tuple[Array, Array]:
        return self.source if i < 0 else self.bounds[i]

    def interval(self, node: Node) -> tuple[Array, Array]:
        """Bounds of a node's value from those of its sources."""
        return _interval(node, [self.of(j) for j in node.sources])

    def size(self, i: int) -> Array:
        """max |v| of a value, flat."""
        low, high = self.of(i)
        out: Array = np.maximum(np.abs(low), np.abs(high)).ravel()
        return out

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

    def _refine(self, i: int, layer: Activation | MaxPool, splits: dict[int, list[Split]]) -> tuple[Array, Array]:
        """Bounds of value i by rows, where it matters: for a rectifier only neurons whose sign is open. They are kept where they beat the intervals.

        Returns the bounds as the rows alone give them: on those the slopes are chosen, as CROWN does.
        """
        if i < 0:
            return self.source
        shape, n = self.network.shape(i), math.prod(self.network.shape(i))
        low, high, first, last = (v.ravel().copy() for v in (*self.bounds[i], *self.bounds[i]))
        wanted = np.flatnonzero((low < 0) & (high > 0)) if isinstance(layer, Rectifier) else np.arange(n)
        wide = max((math.prod(self.network.shape(j)) for j in range(-1, i + 1)), default=n)
        width = max(1, BLOCK // (2 * wide))
        for start in range(0, len(wanted), width):
            index = wanted[start : start + width]
            A = np.zeros((2 * len(index), n))
            A[np.arange(len(index)), index], A[np.arange(len(index)) + len(index), index] = 1.0, -1.0
            a, const, error = self.at_x0(*self.back(i, A.reshape(-1, *shape)))
            below = self._least(a, const, error)
            if i in self._inner:  # the certificate's slopes, row by row where they are better
                b, other, missed = self.at_x0(*self.back(i, A.reshape(-1, *shape), low=self._low_slopes(i, index)))
                second = self._least(b, other, missed)
                better = second > below
                a, below = np.where(better[:, None], b, a), np.where(better, second, below)
                const, error = np.where(better, other, const), np.where(better, missed, error)
            is_open = (below < 0).reshape(2, -1).all(0) if isinstance(layer, Rectifier) else np.ones(len(index), dtype=bool)
            rows = np.flatnonzero(np.tile(is_open, 2))
            places = np.concatenate([index[is_open], n + index[is_open]])
            if len(rows):
                store = self.known.setdefault(i, np.zeros((2 * n, self.region.K.shape[0])))
                most, store[places] = self.region.above(-a[rows], store[places])
                raised = const[rows] - error[rows] - most
                below[rows] = np.fmax(below[rows], raised - 4 * U * (np.abs(const[rows]) + np.abs(raised) + error[rows]))
            below = np.where(np.isnan(below), -np.inf, below)
            first[index], last[index] = below[: len(index)], -below[len(index) :]
        low, high = np.maximum(low, first), np.minimum(high, last)
        low, high = np.minimum(low, high), np.maximum(low, high)
        self.bounds[i] = self._cut(i, splits, low.reshape(shape), high.reshape(shape))
        return self._cut(i, splits, first.reshape(shape), last.reshape(shape))

    def _least(self, a: Array, const: Array, error: Array) -> Array:
        """A lower bound of a·δ + const − error over ball and box."""
        below = const - error - self.region.above(-a, search=False)[0]
        out: Array = below - 4 * U * (np.abs(const) + np.abs(below) + error)
        return out

    def _low_slopes(self, i: int, index: NDArray[np.intp]) -> dict[int, Array]:
        """The certificate's slopes for the lower, then the upper bounds of the neurons `index` of value i; the lines' own where it has none."""
        out = {}
        for place, table in self._inner[i]:
            own, known = self.lines[place].low.ravel(), np.searchsorted(table.neurons, index)
            found = np.array(table.neurons, dtype=int)[np.minimum(known, len(table.neurons) - 1)] == index
            slopes = np.tile(own, (2, len(index), 1))
            low, high = (v.ravel() for v in self.of(self.network.nodes[place].sources[0]))
            open_ = np.array([j for j in range(len(table.inputs)) if low[table.inputs[j]] < 0 < high[table.inputs[j]]], dtype=int)
            columns = np.array(table.inputs, dtype=int)[open_]
            for side, values in enumerate((table.low, table.up)):
                slopes[side][np.ix_(found, columns)] = np.array(values)[np.ix_(known[found], open_)]
            out[place] = slopes.reshape(2 * len(index), -1)
        return out

    # ------------------------------------------------------------------------------------------------------ steps 2 and 3: rows

    def back(
        self,
        start: int,
        A: Array,
        slopes: Sequence[Array] | None = None,
        low: Mapping[int, Array] | None = None,
        also: Mapping[int, Array] | None = None,
    ) -> tuple[Array, Array, Array]:
        """(a (R, d), c (R,), error (R,)) with a·x + c − error ≤ A·v for all inputs x of the cell; A (R, *shape) over value `start`.

        Instead of the lines chosen here, `slopes`: of every activation in the network's order, one flat array; `low`: by activation, (R, neurons) slopes of
        the lines below it. `also`: rows over earlier values, whose products are added to A·v.
        """
        R = len(A)
        waiting: dict[int, Array] = {**(also or {}), start: A}
        c, error = np.zeros(R), np.zeros(R)
        proposed = {} if slopes is None else dict(zip(self.network.activations(), slopes, strict=True))
        for i in range(start, -1, -1):
            if i not in waiting:
                continue
            A, node = waiting.pop(i), self.network.nodes[i]
            flat = A.reshape(R, -1)
            if isinstance(node.layer, Add):
                moved, step, missed = A, np.zeros(R), np.zeros(R)
            elif isinstance(node.layer, Affine):
                moved, step, missed = self._affine(node.layer, node.sources[0], A, flat)
            elif isinstance(node.layer, MaxPool):
                moved, step, missed = self._max(node.layer, node.sources[0], flat)
            else:
                moved, step, missed = self._activation(i, flat, proposed.get(i), None if low is None else low.get(i))
            c = c + step
            error = error + missed + U * np.abs(c)
            for j in node.sources:
                if j in waiting:
                    waiting[j] = waiting[j] + moved
                    error = error + U * (np.abs(waiting[j]).reshape(R, -1) @ self.size(j))
                else:
                    waiting[j] = moved
                error = error + DUST * (1 + self.size(j).sum())
        a = waiting.get(-1, np.zeros((R, *self.network.shape_in))).reshape(R, -1)
        return a, c, error * INFLATE

    def _affine(self, layer: Affine, source: int, A: Array, flat: Array) -> tuple[Array, Array, Array]:
        size, step, missed = np.abs(flat), np.zeros(len(A)), np.zeros(len(A))
        if layer.shift is not None:
            t = layer.shift.ravel()
            step = flat @ t
            missed = gamma(len(t) + 1) * (size @ np.abs(t)) + (0 if layer.tau is None else size @ layer.tau.ravel())
        if layer.terms:
            kappa = gamma(layer.back_terms + 1) + 1.01 * layer.theta
            missed = missed + kappa * (size @ layer.spread(self.size(source).reshape(layer.shape_in)).ravel())
        return layer.back(A), step, missed

    def _activation(self, i: int, A: Array, slopes: Array | None, below: Array | None) -> tuple[Array, Array, Array]:
        node = self.network.nodes[i]
        (low, high), shape = self.of(node.sources[0]), self.network.shape(i)
        if below is not None:
            chosen, layer = self.lines[i], node.layer
            assert isinstance(layer, Activation)
            with np.errstate(all="ignore"):
                at = layer.least(below, low.ravel(), high.ravel())
            s, t = np.where(A >= 0, below, chosen.up.ravel()), np.where(A >= 0, at, chosen.up_at.ravel())
        elif slopes is None:
            chosen = self.lines[i]
            s = np.where(A >= 0, chosen.low.ravel(), chosen.up.ravel())
            t = np.where(A >= 0, chosen.low_at.ravel(), chosen.up_at.ravel())
        else:
            s, layer = slopes.reshape(shape), node.layer
            assert isinstance(layer, Activation)
            with np.errstate(all="ignore"):
                t = np.where(A >= 0, layer.least(s, low, high).ravel(), layer.most(s, low, high).ravel())
            s = s.ravel()
        t = np.where(A == 0, 0.0, t)
        moved = A * s
        missed = gamma(A.shape[1] + 1) * np.abs(A * t).sum(1) + U * (np.abs(moved) @ self.size(node.sources[0]))
        return moved.reshape(len(A), *shape), (A * t).sum(1), missed

    def _max(self, layer: MaxPool, source: int, A: Array) -> tuple[Array, Array, Array]:
        low, high = self.of(source)
        first, alone, most = layer.choice(low, high)
        moved = np.where((A > 0) | alone, A, 0.0)
        step = np.where((A < 0) & ~alone, A * most, 0.0)
        out = np.zeros((len(A), math.prod(layer.shape_in)))
        np.add.at(out.T, first, moved.T)
        missed = gamma(A.shape[1] + 1) * np.abs(step).sum(1) + gamma(int(np.bincount(first).max())) * (
            np.abs(moved) @ self.size(source)[first]
        )
        return out.reshape(len(A), *layer.shape_in), step.sum(1), missed

    def at_x0(self, a: Array, c: Array, error: Array) -> tuple[Array, Array, Array]:
        """Rows over x as rows over δ: (a, a·x0 + c, its error)."""
        total = c + a @ self.x0
        return (
            a,
            total,
            (error + gamma(len(self.x0) + 2) * (np.abs(a) @ np.abs(self.x0)) + 2 * U * (np.abs(c) + np.abs(total))) * INFLATE + TINY,
        )

    # ------------------------------------------------------------------------------------------------------------------ step 4

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


def _by_value(network: Network, inner: Sequence[Inner]) -> dict[int, list[tuple[int, Inner]]]:
    """{value: [(activation, slopes)]} for the tables that fit the network and whose neurons ascend; others are no help."""
    places, out = network.activations(), dict[int, list[tuple[int, Inner]]]()
    for table in inner:
        if table.of >= len(places) or not table.neurons:
            continue
        value, place = network.nodes[places[table.of]].sources[0], places[table.by]
        sizes = (math.prod(network.shape(value)), math.prod(network.shape(place)))
        fits = all(v == sorted(set(v)) and v[-1] < size for v, size in zip((table.neurons, table.inputs), sizes, strict=True) if v)
        if value >= 0 and place < value and fits:
            out.setdefault(value, []).append((place, table))
    return out
