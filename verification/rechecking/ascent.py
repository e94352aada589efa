r"""Good slopes and multipliers for flips.py: a heuristic in plain float64, of which nothing is believed. It needs numpy only.

A row over the network's values has, for every change δ of the cell, the affine bound

    A·v + γ m + Σ_s β_s (−side_s (z_s − cut_s))  ≥  a·δ + c,        any γ ≥ 0, β ≥ 0, and slopes of the lines below rectifiers between the two sides'

where m is the margin row and s are the cell's neuron splits. Its least value over the region, c − max −a·δ, is raised along (γ, slopes, β) and the share κ of
the lines over a box (facets.py), where these are used, by a few steps of Adam (Kingma & Ba 2015). The derivative follows from the maximiser, pushed forward
through the lines (envelope theorem); the best point met is the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verification.checking.document import Split
from verification.rechecking.activations import Rectifier
from verification.rechecking.affine import Add, Affine
from verification.rechecking.bounds import Bounds
from verification.rechecking.facets import Aim, Facets, Sight
from verification.rechecking.multipliers import peak
from verification.rechecking.pooling import MaxPool
from verification.rechecking.region import Region
from verification.rechecking.rounding import Array

FIRST, SECOND = 0.9, 0.99
SMALL = 1e-12
SHARE = 0.5  # κ to begin with, with e next to where the row is least with chords
BETA = 2.0  # a step of β in units of the mean coefficient of its layer, per step of a slope


@dataclass(frozen=True, eq=False)
class Point:
    """One row each: γ (R,), slopes by activation (R, neurons), β (R, splits), and the aim of lines over a box, κ < 0 where there is none yet."""

    gamma: Array
    low: dict[int, Array]
    beta: Array
    aim: Aim | None = None

    def tile(self, count: int) -> Point:
        """A single row's, `count` times, without its aim."""
        return Point(np.tile(self.gamma, count), {i: np.tile(v, (count, 1)) for i, v in self.low.items()}, np.tile(self.beta, (count, 1)))


@dataclass(frozen=True, eq=False)
class _Edge:
    """Lines of one activation: least and largest slope below, its intercept (0 for rectifiers), slope and intercept above."""

    least: Array
    most: Array
    low_at: Array
    up: Array
    up_at: Array


class Climb:
    """The rough bound over one cell's bounds, lines and region."""

    def __init__(
        self, bounds: Bounds, region: Region, q: Array, shift: float, splits: list[tuple[int, Split]], facets: Facets | None = None
    ) -> None:
        self.region, self.bounds, self.network, self.q, self.shift, self.splits = region, bounds, bounds.network, q, shift, splits
        self.last, self.facets = len(self.network.nodes) - 1, facets
        self.edges = {i: self._edge(i) for i in self.network.activations()}

    def _edge(self, i: int) -> _Edge:
        node, lines = self.network.nodes[i], self.bounds.lines[i]
        low, high = (v.ravel() for v in self.bounds.of(node.sources[0]))
        if not isinstance(node.layer, Rectifier):
            return _Edge(*(v.ravel() for v in (lines.low, lines.low, lines.low_at, lines.up, lines.up_at)))
        least = np.where(low >= 0, 1.0, node.layer.negative)
        most = np.where(high <= 0, node.layer.negative, 1.0)
        return _Edge(least, np.maximum(least, most), np.zeros_like(least), lines.up.ravel(), lines.up_at.ravel())

    def inside(self, point: Point) -> Point:
        """The point with its slopes between the two sides'."""
        return replace(point, low={i: np.clip(point.low[i], e.least, e.most) for i, e in self.edges.items()})

    def plain(self, count: int = 1) -> Point:
        """γ = 1, the lines' own slopes, β = 0."""
        low = {i: np.tile(self.bounds.lines[i].low.ravel(), (count, 1)) for i in self.edges}
        return Point(np.ones(count), low, np.zeros((count, len(self.splits))))

    def run(self, start: Point, own: Mapping[int, Array], steps: int, rate: float, decay: float = 1.0, unit: Array | None = None) -> Point:
        """The best of `steps` points, row by row. `own`: rows A over earlier values; `unit` (R,): a step of γ, None where γ stays as it is."""
        point, region = self.inside(start), self.region
        R, push, extra = len(point.gamma), None, np.zeros(len(point.gamma))
        best, kept = np.full(R, -np.inf), point
        sight = self._sight(point)
        first = {"g": np.zeros(R), "k": np.zeros(R), "b": np.zeros_like(point.beta)}
        first |= {str(i): np.zeros_like(v) for i, v in point.low.items()}
        second = {k: np.zeros_like(v) for k, v in first.items()}
        for step in range(max(steps, 1)):
            a, c, heads, chosen = self._back(point, own, sight)
            if push is None:  # multipliers of the set's other parts: good for the first point, then held
                u = region.rough(-a)
                push = region.K.back(u)
                for b in region.blocks:
                    extra = extra + b.sigma(u[:, b.at])
            top, v = peak(region, -a - push)
            value = c - top - extra
            better = value > best
            best = np.where(better, value, best)
            kept = _where(better, point, kept)
            if step + 1 >= steps:
                break
            z, lift = self._forward(v, chosen, heads, point, sight)
            rise = {str(i): np.maximum(heads[i], 0) * z[self.network.nodes[i].sources[0]] for i in point.low}
            rise["g"], rise["k"] = z[self.last] @ self.q + self.shift, lift
            rise["b"] = np.stack([-s.side * (z[i][:, s.index] - s.cut) for i, s in self.splits], 1) if self.splits else np.zeros((R, 0))
            move = {}
            for k, slope in rise.items():
                first[k] = FIRST * first[k] + (1 - FIRST) * slope
                second[k] = SECOND * second[k] + (1 - SECOND) * slope * slope
                move[k] = first[k] / (1 - FIRST ** (step + 1)) / (np.sqrt(second[k] / (1 - SECOND ** (step + 1))) + SMALL)
            here = rate * decay**step
            g = point.gamma if unit is None else np.maximum(point.gamma + here * np.maximum(unit, point.gamma) * move["g"], 0)
            sizes = [np.abs(heads[i]).mean(1) for i in point.low]
            size = BETA * np.mean(sizes, 0)[:, None] if sizes else np.zeros((R, 1))
            aim = point.aim
            if aim is not None and self.facets is not None:
                cold = (aim.kappa < 0) & (step == 0)
                turn = np.where(cold[:, None], self.facets.turn(z[self.facets.source]), aim.turn) if cold.any() else aim.turn
                aim = Aim(np.where(cold, SHARE, np.clip(aim.kappa + here * move["k"], 0, 1)), turn)
                sight = self.facets.sight(turn) if cold.any() else sight
            low = {i: w + here * move[str(i)] for i, w in point.low.items()}
            point = self.inside(Point(g, low, np.maximum(point.beta + here * size * move["b"], 0), aim))
        return kept

    def _sight(self, point: Point) -> Sight | None:
        return None if point.aim is None or self.facets is None else self.facets.sight(point.aim.turn)

    def front(self, v: Array) -> Array:
        """The value whose box the facets are over, at x0 + v (R, d)."""
        assert self.facets is not None
        nodes, chain, x = self.network.nodes, [self.facets.source], self.bounds.x0 + v
        while chain[-1] >= 0:
            chain.append(nodes[chain[-1]].sources[0])
        for j in reversed(chain[:-1]):
            layer = nodes[j].layer
            assert isinstance(layer, Affine)
            x = layer.apply(x.reshape(-1, *layer.shape_in)).reshape(len(x), -1)
            x = x if layer.shift is None else x + layer.shift.ravel()
        return x

    def head(self, point: Point, i: int) -> float:
        """The length of a single row's coefficients over value i, where it passes."""
        for place in self.edges:
            if self.network.nodes[place].sources[0] == i:
                _, _, heads, chosen = self._back(point, {}, None)
                return float(np.linalg.norm(heads[place] * chosen[place][0]))
        return 1.0

    def terms(self, point: Point, own: Mapping[int, Array]) -> list[tuple[int, Array]]:
        """(value, rows over it, flat): what the bound is of, apart from constants."""
        out = [*own.items(), (self.last, point.gamma[:, None] * self.q)]
        for s, (i, split) in enumerate(self.splits):
            row = np.zeros((len(point.gamma), math.prod(self.network.shape(i))))
            row[:, split.index] = -split.side * point.beta[:, s]
            out.append((i, row))
        return out

    def _back(
        self, point: Point, own: Mapping[int, Array], sight: Sight | None
    ) -> tuple[Array, Array, dict[int, Array], dict[int, tuple[Array, Array]]]:
        """(a (R, d), c (R,), rows over the activations' values, the lines taken there)."""
        waiting = total(self.terms(point, own))
        c = point.gamma * self.shift
        for s, (_, split) in enumerate(self.splits):
            c = c + point.beta[:, s] * (split.side * split.cut)
        heads: dict[int, Array] = {}
        chosen: dict[int, tuple[Array, Array]] = {}
        for i in range(self.last, -1, -1):
            if i not in waiting:
                continue
            A, node = waiting.pop(i), self.network.nodes[i]
            moved = A
            if isinstance(node.layer, Affine):
                c = c if node.layer.shift is None else c + A @ node.layer.shift.ravel()
                moved = node.layer.back(A.reshape(-1, *node.layer.shape)).reshape(len(A), -1)
            elif not isinstance(node.layer, Add):
                e = self.edges[i]
                heads[i], chosen[i] = A, (np.where(A >= 0, point.low[i], e.up), np.where(A >= 0, e.low_at, e.up_at))
                moved, c = A * chosen[i][0], c + (A * chosen[i][1]).sum(1)
                f = self.facets
                if f is not None and sight is not None and point.aim is not None and i == f.place:
                    T = np.minimum(A, 0) * sight.most * np.maximum(point.aim.kappa, 0)[:, None]
                    row, const, _ = f.across(T, point.aim.turn)
                    moved, c = moved + T * sight.tilt, c + const + (T * (sight.gain - sight.tilt * f.low)).sum(1)
                    waiting[f.source] = waiting[f.source] + row if f.source in waiting else row
            for j in node.sources:
                waiting[j] = waiting[j] + moved if j in waiting else moved
        a = waiting.get(-1, np.zeros((len(point.gamma), self.region.dim)))
        for i in self.edges:  # those above the rows' own values are not met
            heads.setdefault(i, np.zeros_like(point.low[i]))
            chosen.setdefault(i, (point.low[i], self.edges[i].low_at + np.zeros_like(point.low[i])))
        return a, c + a @ self.bounds.x0, heads, chosen

    def _forward(
        self, v: Array, chosen: dict[int, tuple[Array, Array]], heads: dict[int, Array], point: Point, sight: Sight | None
    ) -> tuple[dict[int, Array], Array]:
        """All values at x0 + v (R, d), through the lines; and what κ = 1 adds to the bound there (R,)."""
        z: dict[int, Array] = {-1: self.bounds.x0 + v}
        added, f = np.zeros(len(v)), self.facets
        for i, node in enumerate(self.network.nodes):
            x = z[node.sources[0]]
            if isinstance(node.layer, Affine):
                y = node.layer.apply(x.reshape(-1, *node.layer.shape_in)).reshape(len(x), -1)
                z[i] = y if node.layer.shift is None else y + node.layer.shift.ravel()
            elif isinstance(node.layer, Add):
                z[i] = x + z[node.sources[1]]
            else:
                z[i] = chosen[i][0] * x + chosen[i][1]
                if f is not None and sight is not None and point.aim is not None and i == f.place:
                    lift = np.where(heads[i] < 0, f.lift(x, z[f.source], point.aim.turn, sight), 0.0)
                    added = (heads[i] * lift).sum(1)
                    z[i] = z[i] + np.maximum(point.aim.kappa, 0)[:, None] * lift
        return z, added


def total(terms: list[tuple[int, Array]]) -> dict[int, Array]:
    """The sum, value by value."""
    out: dict[int, Array] = {}
    for i, row in terms:
        out[i] = out[i] + row if i in out else row
    return out


def covered(bounds: Bounds) -> bool:
    """Is the network one that this search knows? Max pooling is not among its layers."""
    return not any(isinstance(node.layer, MaxPool) for node in bounds.network.nodes)


def _where(better: NDArray[np.bool_], new: Point, old: Point) -> Point:
    pick = better[:, None]
    low = {i: np.where(pick, v, old.low[i]) for i, v in new.low.items()}
    aim = new.aim
    if aim is not None and old.aim is not None:
        turn = aim.turn if aim.turn is old.aim.turn else np.where(pick, aim.turn, old.aim.turn)
        aim = Aim(np.where(better, aim.kappa, old.aim.kappa), turn)
    return Point(np.where(better, new.gamma, old.gamma), low, np.where(pick, new.beta, old.beta), aim)
