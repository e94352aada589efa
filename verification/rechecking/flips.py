r"""What the changes of a cell that flip one row obey, derived from the weights: the arithmetic of level B for rows of flips. It needs numpy and python-flint only.

A change of the cell that flips row k has m(δ) = q·f(x0+δ) + s ≤ 0. In turns, each step using what the earlier ones proved of such changes:

1. Row.      a·δ + c ≤ m(δ) − Σ_s β_s side_s (z_s − cut_s) ≤ 0, any β ≥ 0: on the cell's side of a split, side (z − cut) ≥ 0. The pass of bounds.py over
             the bounds at hand gives it; the best one so far is the *cap*, which every flip of the cell obeys.
2. Bounds.   ±z_j ≥ ±z_j + γ m − Σ_s β_s side_s (z_s − cut_s) ≥ a'·δ + c', any γ, β ≥ 0; so ±z_j is at least the least value of that over the region and
             the cap. Where bounds cross, nothing flips in the cell, and all is true of its flips.

Tighter bounds give a better row, a better row a smaller cap. A stored row a·δ + b ≤ 0 follows when max a·δ over the region and the cap is at most −b, or when
no change of the region obeys the cap. γ, β and the slopes below rectifiers are free: the certificate may propose slopes and β of the row, ascent.py looks for
better ones; every bound is proved by bounds.py and region.py for whatever they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from verification.checking.document import Split
from verification.rechecking.activations import Activation, Rectifier, lines
from verification.rechecking.ascent import Climb, Point, covered, total
from verification.rechecking.backward import DUST
from verification.rechecking.bounds import Bounds
from verification.rechecking.facets import Aim
from verification.rechecking.rounding import INFLATE, Array, U

ROUNDS, GAIN = 40, 0.002  # of rows and bounds, each earned by a relative gain of what the row lacks,
NARROWER = 0.98  # or by bounds of the rectifiers' inputs that are narrower by more than this factor, which the next row has the use of
ROW_STEPS, ROW_RATE, DECAY = 10, 0.15, 0.95
STEPS, RATE = 6, 0.25  # of the ascent for one bound

__all__ = ["Flips"]


class Flips:
    """The flips of one row in one cell; bounds and cap are narrowed on the way."""

    def __init__(
        self,
        base: Bounds,
        q: Array,
        shift: float,
        splits: Sequence[tuple[int, Split]],
        slopes: Mapping[int, Array] | None = None,
        beta: Array | None = None,
        aim: Aim | None = None,
    ) -> None:
        """`splits`: the cell's neuron splits with the place of their values, along its path; `slopes` by activation, `beta`, `aim`: proposed for the row.

        Without `aim`, which is over the change, lines over a box (facets.py) are left alone.
        """
        self.here, self.whole = copy.copy(base), base.region
        self.here.bounds, self.here.lines, self.here.known = list(base.bounds), dict(base.lines), {}
        self.network, self.q, self.shift, self.splits = base.network, q, shift, list(splits)
        self.last = len(self.network.nodes) - 1
        self.slopes, self.beta, self.aim = slopes, beta, aim if self.network.boxed_rectifiers is not None else None
        self.empty = False
        self.cap: tuple[Array, float] | None = None
        self.slack = -math.inf
        self.best: Point | None = None
        self.gammas: dict[int, Array] = {}
        self.aims: dict[int, Aim] = {}

    @staticmethod
    def knows(base: Bounds) -> bool:
        return covered(base)

    def shortfall(self, row: Array, b: float) -> float:
        """By how much `row·δ + b ≤ 0 at every flip of the cell` is missed; ≤ 0 proves it."""
        missed = math.inf
        with np.errstate(all="ignore"):
            width = last = self._width()
            for _ in range(ROUNDS):
                before = self.slack
                self._raise_row()
                if self.empty:
                    return -math.inf
                missed = min(missed, self._missed(row, b))
                if missed <= 0 or (math.isfinite(before) and not self.slack - before > GAIN * abs(before) and not width < NARROWER * last):
                    break
                self._narrow()
                if self.empty:
                    return -math.inf
                width, last = self._width(), width
        return missed

    def _width(self) -> float:
        """How far apart the bounds of what enters the rectifiers are, in all."""
        ends = [self.here.of(node.sources[0]) for node in self.network.nodes if isinstance(node.layer, Rectifier)]
        return float(sum((high - low).sum() for low, high in ends))

    # ---------------------------------------------------------------------------------------------------------------------- rows

    def _climb(self) -> Climb:
        place = self.network.boxed_rectifiers
        facets = None if self.aim is None or place is None else self.here.facets(place)
        return Climb(self.here, self.whole, self.q, self.shift, self.splits, facets)

    def _raise_row(self) -> None:
        climb = self._climb()
        plain = climb.plain()
        if climb.facets is not None:
            plain = replace(plain, aim=Aim(np.full(1, -1.0), np.zeros((1, climb.facets.mid.size))))
        starts = [plain if self.best is None else self.best]
        if self.best is not None and plain.aim is not None:
            starts.append(replace(self.best, aim=plain.aim))  # turned anew
        if self.slopes is not None:
            beta = plain.beta if self.beta is None else self.beta[None]
            low = {**plain.low, **{i: v[None] for i, v in self.slopes.items()}}
            starts.append(climb.inside(Point(plain.gamma, low, beta, self._proposed(climb))))
        for start in starts:
            for point in (start, climb.run(start, {}, ROW_STEPS, ROW_RATE, DECAY)):
                a, const, error = self._derive(climb, climb.inside(point), {})
                top = self.whole.above(-a)[0]
                lower = float((const - error)[0] - top[0])
                lower -= 4 * U * float(abs(const[0]) + abs(top[0]) + error[0])
                slack = (const[0] - error[0]) / top[0] - 1 if top[0] > 0 else math.inf
                if lower > 0:
                    self.empty = True
                    return
                if slack > self.slack:
                    h = float(np.nextafter(error[0] - const[0], np.inf))
                    if math.isfinite(h) and np.isfinite(a).all():
                        self.cap, self.slack, self.best = (a[0], h), float(slack), climb.inside(point)
        if self.cap is not None:
            self.here.region = self.whole.cut(*self.cap)

    def _proposed(self, climb: Climb) -> Aim | None:
        """The certificate's aim, over the box of the facets instead of the change."""
        f = climb.facets
        if f is None or self.aim is None:
            return None
        middle, half = (self.whole.lo + self.whole.hi) / 2, (self.whole.hi - self.whole.lo) / 2
        return Aim(self.aim.kappa, f.turn(climb.front(middle + self.aim.turn * half)))

    def _derive(self, climb: Climb, point: Point, own: Mapping[int, Array]) -> tuple[Array, Array, Array]:
        """(a (R, d), c (R,), error (R,)): a·δ + c − error below the row of `climb`, proved."""
        terms = climb.terms(point, own)
        rows = {i: A.reshape(-1, *self.network.shape(i)) for i, A in total(terms).items()}
        a, c, error = self.here.back(self.last, rows.pop(self.last), low=point.low, also=rows, aim=point.aim)
        constants = [point.gamma * self.shift, *(point.beta[:, s] * (split.side * split.cut) for s, (_, split) in enumerate(self.splits))]
        for step in constants:
            c = c + step
            error = error + 2 * U * (np.abs(step) + np.abs(c))
        for i, A in terms:  # products γ q, and sums of rows over one value, are rounded
            error = error + (len(terms) + 1) * U * (np.abs(A) @ self.here.size(i).ravel()) + DUST * (1 + self.here.size(i).sum())
        return self.here.at_x0(a, c, error * INFLATE)

    def _missed(self, row: Array, b: float) -> float:
        over = float(self.here.region.above(row[None])[0][0])
        short = over + b
        short += 4 * U * (abs(over) + abs(b))
        return short if math.isfinite(short) else math.inf

    # -------------------------------------------------------------------------------------------------------------------- bounds

    def _narrow(self) -> None:
        """Bounds of what enters the rectifiers, and of all values behind them."""
        for i, node in enumerate(self.network.nodes):
            if isinstance(node.layer, Rectifier) and node.sources[0] >= 0:
                self._narrow_value(node.sources[0])
            if isinstance(node.layer, Activation):
                low, high = self.here.of(node.sources[0])
                self.here.lines[i] = lines(node.layer, low, high, (low, high))
            low, high = self.here.interval(node)
            known = self.here.bounds[i]
            self.here.bounds[i] = self._met(np.maximum(low, known[0]), np.minimum(high, known[1]))

    def _narrow_value(self, i: int) -> None:
        low, high = (v.ravel().copy() for v in self.here.bounds[i])
        index = np.flatnonzero((low < 0) & (high > 0))
        if not len(index) or self.best is None:
            return
        n, shape = len(low), self.network.shape(i)
        E = np.zeros((2 * len(index), n))
        E[np.arange(len(index)), index], E[np.arange(len(index)) + len(index), index] = 1.0, -1.0
        climb = self._climb()
        places = np.concatenate([index, n + index])
        early = not any(j <= i for j in self.network.activations())  # affine in δ: the cap says all that a γ could
        start = climb.inside(self.best.tile(len(E)))
        unit = self._unit(climb, start, i)
        known = self.gammas.setdefault(i, np.zeros(2 * n))
        gamma = np.zeros(len(E)) if early else np.where(known[places] > 0, known[places], 0.3 * unit)
        start = Point(gamma, start.low, gamma[:, None] * start.beta)
        if climb.facets is not None and not early:
            width = climb.facets.mid.size
            aims = self.aims.setdefault(i, Aim(np.full(2 * n, -1.0), np.zeros((2 * n, width), dtype=np.int8)))
            start = replace(start, aim=Aim(aims.kappa[places], aims.turn[places].astype(np.float64)))
        if not early:
            start = climb.run(start, {i: E}, STEPS, RATE, unit=unit)
            known[places] = start.gamma
            if start.aim is not None:
                aims.kappa[places], aims.turn[places] = start.aim.kappa, start.aim.turn
        below = self._least(climb, start, {i: E})
        first, last = low.copy(), high.copy()
        first[index], last[index] = np.fmax(first[index], below[: len(index)]), np.fmin(last[index], -below[len(index) :])
        self.here.bounds[i] = self._met(first.reshape(shape), last.reshape(shape))

    def _met(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Bounds that hold for all flips; where they cross there is none."""
        self.empty = self.empty or bool((low > high).any())
        return np.minimum(low, high), np.maximum(low, high)

    def _least(self, climb: Climb, point: Point, own: Mapping[int, Array]) -> Array:
        """Lower bounds (R,) of the rows over flips."""
        a, const, error = self._derive(climb, point, own)
        top = self.here.region.above(-a)[0]
        below = const - error - top
        out: Array = below - 4 * U * (np.abs(const) + np.abs(top) + np.abs(below) + error)
        return np.where(np.isnan(out), -np.inf, out)

    def _unit(self, climb: Climb, start: Point, i: int) -> Array:
        """The size of γ at which the margin's coefficients over value i are of length one."""
        one = Point(np.ones(1), {k: v[:1] for k, v in start.low.items()}, start.beta[:1])
        size = climb.head(one, i)
        return np.full(len(start.gamma), 1.0 / max(size, 1e-30))
