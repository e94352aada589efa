r"""Rows pushed back through a network on proved bounds of its values, every rounding error on the safe side. It needs numpy and python-flint only.

A row A·v over a value v goes back layer by layer: affine layers give A W and A t (affine.py); an activation gives the line below it where A ≥ 0 and the line above
it where A < 0 (activations.py), max pooling likewise (pooling.py). What floats miss goes into the constant's error. At the input: a·x + c − error ≤ A·v on the
region for which the bounds hold. Rows that start at a neuron of an image are kept as blocks as long as that is less (places.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from verification.rechecking.activations import Activation, Lines, Rectifier
from verification.rechecking.affine import Add, Affine
from verification.rechecking.facets import Aim, Facets
from verification.rechecking.graph import Network
from verification.rechecking.places import WHOLE, Place, merged
from verification.rechecking.pooling import MaxPool
from verification.rechecking.rounding import INFLATE, TINY, Array, U, gamma

__all__ = ["DUST", "Backward"]

DUST = 2.0**-900  # far above what underflow can do to a row, per unit of the values
Traced = tuple[
    Array, Place, Array, Array, int
]  # rows, where they stand, constants, errors, and the most numbers that one row took on the way


class Backward:
    """Bounds of every value, lines of every activation, and the rows that follow. Subclasses fill `bounds` and `lines`."""

    network: Network
    x0: Array
    source: tuple[Array, Array]
    bounds: list[tuple[Array, Array]]
    lines: dict[int, Lines]

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[object, Any]] = {}

    def of(self, i: int) -> tuple[Array, Array]:
        return self.source if i < 0 else self.bounds[i]

    def size(self, i: int) -> Array:
        """max |v| of a value, (*shape)."""
        low, high = self.of(i)
        out: Array = np.maximum(np.abs(low), np.abs(high))
        return out

    def _once(self, what: str, i: int, compute: Callable[[], Any]) -> Any:
        """What follows from the bounds of value i alone, computed again when they are others."""
        bounds, known = self.of(i), self._kept.get((what, i))
        if known is None or known[0] is not bounds:
            known = self._kept[what, i] = bounds, compute()
        return known[1]

    def back(
        self,
        start: int,
        A: Array,
        slopes: Sequence[Array] | None = None,
        low: Mapping[int, Array] | None = None,
        also: Mapping[int, Array] | None = None,
        aim: Aim | None = None,
    ) -> tuple[Array, Array, Array]:
        """(a (R, d), c (R,), error (R,)) with a·x + c − error ≤ A·v for all inputs x of the region; A (R, *shape) over value `start`.

        Instead of the lines chosen here, `slopes`: of every activation in the network's order, one flat array; `low`: by activation, (R, neurons) slopes of
        the lines below it. `also`: rows over earlier values, whose products are added to A·v. `aim`: of the lines above the rectifiers of `facets`.
        """
        a, place, c, error, _ = self.trace(start, A, WHOLE, slopes, low, also, aim)
        return place.flat(a, self.network.shape_in), c, error

    def trace(
        self,
        start: int,
        A: Array,
        place: Place,
        slopes: Sequence[Array] | None = None,
        low: Mapping[int, Array] | None = None,
        also: Mapping[int, Array] | None = None,
        aim: Aim | None = None,
    ) -> Traced:
        """The same for rows at `place`, which stay as they are at the input. With blocks, none of `low`, `also`, `aim` can be given."""
        R, net, most = len(A), self.network, 0
        waiting: dict[int, tuple[Array, Place]] = {**{i: (v, WHOLE) for i, v in (also or {}).items()}, start: (A, place)}
        c, error = np.zeros(R), np.zeros(R)
        proposed = {} if slopes is None else dict(zip(net.activations(), slopes, strict=True))
        for i in range(start, -1, -1):
            if i not in waiting:
                continue
            (A, place), layer, sources = waiting.pop(i), net.nodes[i].layer, net.nodes[i].sources
            most = max(most, A[0].size)
            if isinstance(layer, Add):
                step, missed = np.zeros(R), np.zeros(R)
            elif isinstance(layer, Affine):
                A, place, step, missed = self._affine(layer, sources[0], A, place)
            elif isinstance(layer, MaxPool):
                A, place, step, missed = self._pool(layer, sources[0], A, place)
            elif aim is not None and (facets := self.facets(i)) is not None:
                A, step, missed, row = self._faceted(facets, A, aim, None if low is None else low.get(i))
                error = error + self._wait(waiting, facets.source, row, WHOLE)
            else:
                A, step, missed = self._activation(i, layer, A, place, proposed.get(i), None if low is None else low.get(i))
            most = max(most, A[0].size)
            c = c + step
            error = error + missed + U * np.abs(c)
            for j in sources:
                error = error + self._wait(waiting, j, A, place)
        a, place = waiting.get(-1, (np.zeros((R, *net.shape_in)), WHOLE))
        return a, place, c, error * INFLATE, most

    def _wait(self, waiting: dict[int, tuple[Array, Place]], j: int, A: Array, place: Place) -> Array | float:
        """Adds rows over value j to those that wait there; what floats miss of that."""
        dust: float = DUST * (1 + self.size(j).sum())
        if j not in waiting:
            waiting[j] = A, place
            return dust
        waiting[j] = total, at = merged(waiting[j], (A, place), self.network.shape(j))
        return U * at.dot(np.abs(total), self.size(j)) + dust

    def _affine(self, layer: Affine, source: int, A: Array, place: Place) -> tuple[Array, Place, Array, Array]:
        size, step, missed = np.abs(A), np.zeros(len(A)), np.zeros(len(A))
        if layer.shift is not None:
            step = place.dot(A, layer.shift)
            missed = gamma(A[0].size + 1) * place.dot(size, np.abs(layer.shift)) + (0 if layer.tau is None else place.dot(size, layer.tau))
        if layer.terms:
            kappa = gamma(layer.back_terms + 1) + 1.01 * layer.theta
            spread = self._once(f"spread {id(layer)}", source, lambda: layer.spread(self.size(source).reshape(layer.shape_in)))
            missed = missed + kappa * place.dot(size, spread)
        moved, where = place.affine(layer, A)
        return moved, where, step, missed

    def _activation(
        self, i: int, layer: Activation, A: Array, place: Place, slopes: Array | None, below: Array | None
    ) -> tuple[Array, Array, Array]:
        source = self.network.nodes[i].sources[0]
        (low, high), own, shape = self.of(source), self.lines[i], self.network.shape(i)
        s: Array
        with np.errstate(all="ignore"):
            if below is not None:
                at = layer.least(below, low.ravel(), high.ravel()).reshape(-1, *shape)
                s, t = np.where(A >= 0, below.reshape(-1, *shape), own.up), np.where(A >= 0, at, own.up_at)
            elif slopes is None:
                s, t = (
                    np.where(A >= 0, place.pick(own.low), place.pick(own.up)),
                    np.where(A >= 0, place.pick(own.low_at), place.pick(own.up_at)),
                )
            else:
                given = slopes.reshape(shape)
                least, greatest = layer.least(given, low, high), layer.most(given, low, high)
                s, t = place.pick(given), np.where(A >= 0, place.pick(least), place.pick(greatest))
        moved, product = A * s, np.where(A == 0, 0.0, A * np.where(A == 0, 0.0, t))
        missed = gamma(A[0].size + 1) * _sum(np.abs(product)) + U * place.dot(np.abs(moved), self.size(source))
        return moved, _sum(product), missed

    def facets(self, i: int) -> Facets | None:
        """Lines over a box above the rectifiers at place i, where there are such."""
        if i != self.network.boxed_rectifiers:
            return None
        facets: Facets = self._once(f"facets {i}", self.network.nodes[i].sources[0], lambda: Facets.of(self, i))
        return facets

    def _faceted(self, facets: Facets, A: Array, aim: Aim, below: Array | None) -> tuple[Array, Array, Array, Array]:
        """Rows through rectifiers with lines over a box above them: (rows over what enters, constants, errors, rows over the box's value)."""
        i = facets.place
        value, shape = self.network.nodes[i].sources[0], self.network.shape(facets.source)
        A, up = A.reshape(len(A), -1), A.reshape(len(A), -1) < 0
        low, high = (v.ravel() for v in self.of(value))
        slopes = np.broadcast_to(self.lines[i].low.ravel(), A.shape) if below is None else below
        layer = self.network.nodes[i].layer
        assert isinstance(layer, Rectifier)
        with np.errstate(all="ignore"):
            s, tau, t = facets.lines(aim)
            s, t = np.where(up, s, slopes), np.where(up, t, layer.least(slopes, low, high))
            product = np.where(A == 0, 0.0, A * t)
            row, const, missed = facets.across(np.where(up, A * tau, 0.0), aim.turn)
        moved = A * s
        missed = missed + gamma(A.shape[1] + 2) * _sum(np.abs(product)) + 2 * U * np.abs(const) + U * np.abs(_sum(product))
        missed = missed + U * (np.abs(moved) @ self.size(value).ravel())
        return moved.reshape(-1, *self.network.shape(value)), _sum(product) + const, missed, row.reshape(-1, *shape)

    def _pool(self, layer: MaxPool, source: int, A: Array, place: Place) -> tuple[Array, Place, Array, Array]:
        low, high = self.of(source)
        lines, seen = self._once(
            f"pool {id(layer)}",
            source,
            lambda: (drawn := layer.lines(low, high), np.maximum(drawn.low, drawn.up) * layer.windows(self.size(source), 0.0)),
        )
        size = np.abs(A)
        product = np.where(A < 0, A * np.where(A < 0, place.pick(lines.up_at), 0.0), 0.0)
        missed = gamma(A[0].size + 1) * _sum(np.abs(product)) + gamma(len(seen) + 2) * place.dot(size, seen.sum(0) * INFLATE)
        moved, where = place.pool(layer, A, lines.low, lines.up)
        return moved, where, _sum(product), missed

    def at_x0(self, a: Array, c: Array, error: Array, place: Place = WHOLE) -> tuple[Array, Array, Array]:
        """Rows over x as rows over δ: (a, a·x0 + c, its error)."""
        x0 = self.x0.reshape(self.network.shape_in) if place is not WHOLE else self.x0
        total = c + place.dot(a, x0)
        missed = gamma(a[0].size + 2) * place.dot(np.abs(a), np.abs(x0)) + 2 * U * (np.abs(c) + np.abs(total))
        return a, total, (error + missed) * INFLATE + TINY


def _sum(v: Array) -> Array:
    out: Array = v.reshape(len(v), -1).sum(1)
    return out
