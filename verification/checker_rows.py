r"""Levels B and C of the checker: the rows and the outputs, derived again from the weights. It needs numpy and python-flint only.

Level B proves, for every cell of a certificate, what level A takes as its premise: on the cell

    a·δ + b ≤ m(δ)  for a margin row,      a·δ + b ≤ 0  for the row of a neuron split.

It is a backward bound pass of its own (Zhang et al. 2018, CROWN), with every rounding error on the safe side:

1. Bounds of all values: the input's from the cell's hull, the others' from their sources (intervals); what enters an activation or a max pooling is bounded
   again by rows of its own, 2–4 below, over the region itself (checker_region.py). A neuron split cuts its value's bounds, as the cell demands.
2. A row A·v over a value v goes back layer by layer (checker_layers.py): affine layers give A W and A t; an activation gives the line below it where A ≥ 0
   and the line above it where A < 0; max pooling the input with the largest lower bound. What floats miss goes into the constant's error.
3. At the input: A'·(x0 + δ) + c ≤ A·v(δ) on the cell.
4. max over the region of (a − A')·δ, plus b − c − A'·x0, all rounded up: at most 0, and the row holds.

Any slopes of the lines give a valid row, so they may come from the certificate ("relaxation": of every activation, for the row itself) or from here; the
lines' intercepts are always computed here, on bounds that step 1 proved. A row that is not reached this way is "cannot decide", never "invalid": a better
relaxation may prove it. A row that the network contradicts at x0 or at the witness is "invalid".

Level C encloses the outputs at x0 and at the witness: the stored ones must lie there up to their tolerance, the decision must stand at x0 and fall at the
witness for certain. Where the enclosure in float64 holds 0, it is narrowed with python-flint at 200 bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from verification.certificate_format import Cell, Document, FormatError, Split
from verification.checker import Rational, distance, exact, excess, float_up
from verification.checker_layers import (
    INFLATE,
    TINY,
    Activation,
    Add,
    Affine,
    Array,
    Lines,
    MaxPool,
    Rectifier,
    Sigmoid,
    Tanh,
    U,
    gamma,
    lines,
    widen,
)  # fmt: skip
from verification.checker_network import LayerError, Network, Node, read_model, same_words
from verification.checker_region import Region

__all__ = ["Findings", "check_model", "check_outputs", "check_rows", "enclose"]

BLOCK = 1 << 25  # numbers in one matrix of rows
DUST = 2.0**-900  # far above what underflow can do to a row, per unit of the values


@dataclass
class Findings:
    """What a level found: refutations, and what it could not decide."""

    wrong: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    premises: tuple[str, ...] = ()


def check_model(doc: Document, told: Mapping[str, str], path: str | Path, level: str) -> Findings:
    """Levels B and C with a model file; at level A only that the file is the certificate's model. `told`: the certificate's sha256 and architecture."""
    try:
        file = read_model(path)
    except FormatError as error:
        return Findings(undecided=[f"level {level}: {error}"])
    words = file.lines()
    found = file.hash("\n".join(words)) if words is not None else file.hash(told["architecture"])
    if told["sha256"] not in (found, file.hash(told["architecture"])):
        return Findings(
            [f"model.sha256: the certificate is about model {told['sha256'][:12]}…, not about {found[:12]}…, which this file holds"]
        )
    if words is not None and not same_words(told["architecture"], words):
        return Findings(undecided=[f"level {level}: the model file has the certificate's weights, but describes their layers otherwise"])
    out = Findings()
    try:
        network = file.network(doc.shape)
    except LayerError as error:
        return out if level == "A" else Findings(undecided=[f"level {level}: {error}"])
    if network.shape(len(network.nodes) - 1) != (len(doc.outputs),):
        return Findings(
            undecided=[
                f"level {level}: the network gives {network.shape(len(network.nodes) - 1)}, the certificate {len(doc.outputs)} outputs"
            ]
        )
    for each, check in (("B", check_rows), ("C", check_outputs)):
        if level >= each:
            one = check(doc, network)
            out.wrong += one.wrong
            out.undecided += [f"level {each}: {why}" for why in one.undecided]
    if level == "A":
        return out
    premises = [] if level == "C" else ["outputs: as stored (level C)"]
    if words is None:
        premises.append("layers: wired as the model file says")
    out.premises = tuple(premises)
    return out


# ---------------------------------------------------------------------------------------------------------------- step 1: bounds


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

    def __init__(self, network: Network, doc: Document, region: Region, splits: dict[int, list[Split]], known: dict[int, Array]) -> None:
        """`known`: multipliers of similar regions by value, to start from; updated."""
        self.network, self.region, self.known = network, region, known
        shape = network.shape_in
        self.x0 = np.array(doc.x0)
        low, high = widen(self.x0 + region.lo, self.x0 + region.hi)
        self.source = (low.reshape(shape), high.reshape(shape))
        self.bounds: list[tuple[Array, Array]] = []
        self.lines: dict[int, Lines] = {}
        for i, node in enumerate(network.nodes):
            if not isinstance(node.layer, Affine | Add):
                self._refine(node.sources[0], node.layer, splits)
            if isinstance(node.layer, Activation):
                with np.errstate(all="ignore"):
                    self.lines[i] = lines(node.layer, *self.of(node.sources[0]))
            self.bounds.append(self._cut(i, splits, *_interval(node, [self.of(j) for j in node.sources])))

    def of(self, i: int) -> tuple[Array, Array]:
        return self.source if i < 0 else self.bounds[i]

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

    def _refine(self, i: int, layer: Activation | MaxPool, splits: dict[int, list[Split]]) -> None:
        """Bounds of value i by rows, where it matters: for a rectifier only neurons whose sign is open."""
        if i < 0:
            return
        shape, n = self.network.shape(i), math.prod(self.network.shape(i))
        low, high = (v.ravel().copy() for v in self.bounds[i])
        wanted = np.flatnonzero((low < 0) & (high > 0)) if isinstance(layer, Rectifier) else np.arange(n)
        wide = max((math.prod(self.network.shape(j)) for j in range(-1, i + 1)), default=n)
        width = max(1, BLOCK // (2 * wide))
        for start in range(0, len(wanted), width):
            index = wanted[start : start + width]
            A = np.zeros((2 * len(index), n))
            A[np.arange(len(index)), index], A[np.arange(len(index)) + len(index), index] = 1.0, -1.0
            a, c, error = self.back(i, A.reshape(-1, *shape))
            const, error = self._at_x0(a, c, error)
            below = const - error - self.region.above(-a, search=False)[0]
            below = below - 4 * U * (np.abs(const) + np.abs(below) + error)
            is_open = (below < 0).reshape(2, -1).all(0) if isinstance(layer, Rectifier) else np.ones(len(index), dtype=bool)
            rows = np.flatnonzero(np.tile(is_open, 2))
            places = np.concatenate([index[is_open], n + index[is_open]])
            if len(rows):
                store = self.known.setdefault(i, np.zeros((2 * n, self.region.K.shape[0])))
                most, store[places] = self.region.above(-a[rows], store[places])
                better = const[rows] - error[rows] - most
                better = better - 4 * U * (np.abs(const[rows]) + np.abs(better) + error[rows])
                below[rows] = np.fmax(below[rows], better)
            below = np.where(np.isnan(below), -np.inf, below)
            low[index] = np.maximum(low[index], below[: len(index)])
            high[index] = np.minimum(high[index], -below[len(index) :])
        low, high = np.minimum(low, high), np.maximum(low, high)
        self.bounds[i] = self._cut(i, splits, low.reshape(shape), high.reshape(shape))

    # ------------------------------------------------------------------------------------------------------ steps 2 and 3: rows

    def back(self, start: int, A: Array, slopes: Sequence[Array] | None = None) -> tuple[Array, Array, Array]:
        """(a (R, d), c (R,), error (R,)) with a·x + c − error ≤ A·v for all inputs x of the cell; A (R, *shape) over value `start`.

        `slopes`: one flat array for every activation, in the network's order, to be used instead of the lines chosen here.
        """
        R = len(A)
        waiting: dict[int, Array] = {start: A}
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
                moved, step, missed = self._activation(i, flat, proposed.get(i))
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

    def _activation(self, i: int, A: Array, slopes: Array | None) -> tuple[Array, Array, Array]:
        node = self.network.nodes[i]
        (low, high), shape = self.of(node.sources[0]), self.network.shape(i)
        if slopes is None:
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

    def _at_x0(self, a: Array, c: Array, error: Array) -> tuple[Array, Array]:
        """(a·x0 + c, its error)."""
        total = c + a @ self.x0
        return total, (
            error + gamma(len(self.x0) + 2) * (np.abs(a) @ np.abs(self.x0)) + 2 * U * (np.abs(c) + np.abs(total))
        ) * INFLATE + TINY

    # ------------------------------------------------------------------------------------------------------------------ step 4

    def shortfall(self, start: int, q: Array, shift: float, row: Array, b: float, slopes: Sequence[Array] | None) -> float:
        """By how much row·δ + b ≤ q·v(δ) + shift is missed on the cell; ≤ 0 proves it."""
        with np.errstate(all="ignore"):
            a, c, error = self.back(start, q.reshape(1, *self.network.shape(start)), slopes)
            const, error = self._at_x0(a, c, error)
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


# --------------------------------------------------------------------------------------------------------------------- level B


def check_rows(doc: Document, network: Network) -> Findings:
    """Level B: is every row of every cell a minorant there?"""
    out, known, points = Findings(), dict[int, Array](), _points(doc, network)
    cache: dict[tuple[float, tuple[Split, ...]], Bounds | str] = {}
    for k, cells in enumerate(doc.cells):
        for i, cell in enumerate(cells):
            where = f"rivals[{k}].cells[{i}]"
            key = (cell.radius, tuple(cell.path))
            if key not in cache:
                if len(cache) > 8:  # trees of splits have thousands of cells, each with bounds of its own
                    cache.clear()
                cache[key] = _bounds(doc, network, cell, known)
            bounds = cache[key]
            if isinstance(bounds, str):
                out.undecided.append(f"{where}: {bounds}")
                continue
            missed = _rows_missed(doc, network, bounds, cell, k)
            out.undecided += [f"{where}: {why}" for why in missed]
            if missed:
                out.wrong += [f"{where}: {why}" for why in _refuted(doc, network, cell, k, points)]
    return out


def _bounds(doc: Document, network: Network, cell: Cell, known: dict[int, Array]) -> Bounds | str:
    region = Region(doc, cell)
    if not region.bounded:
        return "the cell is not bounded, so that float64 cannot bound the network on it"
    splits: dict[int, list[Split]] = {}
    for s in cell.path:
        if s.at != "input":
            place = _value_at(network, s)
            if place is None:
                return f"the network has no value {s.index} before layer {s.at!r} to split on"
            splits.setdefault(place, []).append(s)
    return Bounds(network, doc, region, splits, known)


def _value_at(network: Network, split: Split) -> int | None:
    """The value that a neuron split asks about: what enters the activation of that name, or what the layer of that name gives."""
    for i in reversed(range(len(network.nodes))):
        node = network.nodes[i]
        if node.name == split.at:
            place = i if isinstance(node.layer, Affine | Add) else node.sources[0]
            return place if place >= 0 and split.index < math.prod(network.shape(place)) else None
    return None


def _rows_missed(doc: Document, network: Network, bounds: Bounds, cell: Cell, k: int) -> list[str]:
    last, missed = len(network.nodes) - 1, []
    margins = [j for j, of in enumerate(cell.row_of) if of < 0]
    for j, (row, b) in enumerate(zip(cell.a, cell.b, strict=True)):
        if cell.row_of[j] >= 0:
            split = cell.path[cell.row_of[j]]
            place = _value_at(network, split)
            assert place is not None
            q = np.zeros(math.prod(network.shape(place)))
            q[split.index] = -float(split.side)  # side·(z − cut) ≥ 0 on the cell, so that −side·(z − cut) ≤ 0
            start, shift, slopes = place, split.side * split.cut, None
        else:
            start, q, shift = last, np.array(doc.rows[k]), doc.shifts[k]
            slopes = _proposal(network, cell, margins.index(j))
        short = math.inf
        for choice in [slopes, None] if slopes is not None else [None]:
            short = min(short, bounds.shortfall(start, q, shift, np.array(row), b, choice))
            if short <= 0:
                break
        if short > 0:
            missed.append(f"row {j} is not derived from the weights (short by {short:.3g})")
    return missed


def _proposal(network: Network, cell: Cell, row: int) -> list[Array] | None:
    """The certificate's slopes for a margin row, where they fit the network."""
    if row >= len(cell.slopes):
        return None
    out = [np.array(v) for v in cell.slopes[row]]
    shapes = [math.prod(network.shape(i)) for i in network.activations()]
    return out if [len(v) for v in out] == shapes else None


@dataclass(frozen=True, eq=False)
class Point:
    """A stored input: its name, z, δ and N(δ) exactly, is it in C for certain?, bounds of the network's values there, of its outputs exactly, and the stored outputs."""

    name: str
    input: list[float]
    delta: list[Rational]
    length: Rational
    inside: bool
    values: list[tuple[Array, Array]]
    ends: list[tuple[Rational, Rational]]
    told: list[float]

    def margin(self, q: Sequence[float], shift: float) -> tuple[Rational, Rational]:
        """Bounds of q·f + shift."""
        terms = [sorted((exact(g) * low, exact(g) * high)) for g, (low, high) in zip(q, self.ends, strict=True) if g]
        return sum((t[0] for t in terms), exact(shift)), sum((t[1] for t in terms), exact(shift))


def _points(doc: Document, network: Network) -> list[Point]:
    """x0 and the witness; a point where float64 overflows has no `ends`."""
    stored = [("x0", doc.x0, doc.outputs)] + ([] if doc.witness is None else [("the witness", doc.witness, doc.witness_outputs)])
    out = []
    for name, z, told in stored:
        x = np.array(z).reshape(network.shape_in)
        delta = [exact(a) - exact(b) for a, b in zip(z, doc.x0, strict=True)]
        inputs = [exact(v) for v in z]
        inside = all(part.kind != "custom" and excess(part, inputs if part.on == "input" else delta) <= 0 for part in doc.parts)
        values = enclose(network, x, x)
        low, high = (v.ravel().tolist() for v in values[-1])
        ends = [(exact(a), exact(b)) for a, b in zip(low, high, strict=True)] if all(map(math.isfinite, low + high)) else []
        out.append(Point(name, z, delta, distance(doc, z), inside, values, ends, told))
    return out


def _refuted(doc: Document, network: Network, cell: Cell, k: int, points: Sequence[Point]) -> list[str]:
    """Margin rows that exceed the network's margin at a stored point which certainly lies in the cell."""
    wrong = []
    for point in points:
        if (
            not point.inside
            or (cell.radius != math.inf and point.length > exact(cell.radius))
            or not all(_on_side(s, network, point) for s in cell.path)
        ):
            continue
        high = point.margin(doc.rows[k], doc.shifts[k])[1] if point.ends else None
        for j, (row, b) in enumerate(zip(cell.a, cell.b, strict=True)):
            value = sum((exact(a) * v for a, v in zip(row, point.delta, strict=True) if a), exact(b))
            if cell.row_of[j] < 0 and high is not None and value > high:
                wrong.append(f"row {j} exceeds the network's margin at {point.name} by {float_up(value - high):.3g}")
    return wrong


def _on_side(split: Split, network: Network, point: Point) -> bool:
    if split.at == "input":
        low = high = point.input[split.index]
    else:
        place = _value_at(network, split)
        assert place is not None
        low, high = (float(v.ravel()[split.index]) for v in point.values[place])
    return low >= split.cut if split.side > 0 else high <= split.cut


# --------------------------------------------------------------------------------------------------------------------- level C


def check_outputs(doc: Document, network: Network) -> Findings:
    """Level C: are the stored outputs the network's; does the decision stand at x0 and fall at the witness?"""
    out = Findings()
    for point in _points(doc, network):
        found = _outputs_at(doc, point)
        if found.undecided:
            found = _outputs_at(doc, _narrowed(network, point))
        out.wrong += found.wrong
        out.undecided += found.undecided
    return out


def _outputs_at(doc: Document, point: Point) -> Findings:
    if not point.ends:
        return Findings(undecided=[f"outputs: the network overflows at {point.name}"])
    slack = exact(doc.reproducibility) * (1 + max(abs(exact(v)) for v in point.told))
    off = max(max(exact(t) - high, low - exact(t)) for t, (low, high) in zip(point.told, point.ends, strict=True))
    if off > slack:
        return Findings([f"outputs: the network's outputs at {point.name} differ from the stored ones by {float_up(off):.3g}"])
    margins = [point.margin(q, s) for q, s in zip(doc.rows, doc.shifts, strict=True)]
    if point.name == "x0":
        if any(high <= 0 for _, high in margins):
            return Findings(["outputs: the network's decision at x0 is another one"])
        return Findings(undecided=["outputs: x0 is within rounding of the boundary"] if any(low <= 0 for low, _ in margins) else [])
    if any(high <= 0 for _, high in margins):
        return Findings()
    least = min(low for low, _ in margins)
    where = f"the smallest margin at the witness is at least {float_up(least):.3g}"
    if least > slack:
        return Findings([f"outputs: the witness does not flip the network, {where}"])
    return Findings(undecided=[f"outputs: the witness is within rounding of the boundary, {where}, and not certainly ≤ 0"])


def _narrowed(network: Network, point: Point) -> Point:
    """The same point, its outputs enclosed at 200 bits."""
    before, ctx.prec = ctx.prec, 200
    try:
        values: list[Any] = []
        x = np.array([arb(v) for v in point.input], dtype=object).reshape(network.shape_in)
        for node in network.nodes:
            values.append(_balls(node, [x if i < 0 else values[i] for i in node.sources]))
        return replace(point, ends=[(_dyadic(v.lower()), _dyadic(v.upper())) for v in values[-1].ravel().tolist()])
    finally:
        ctx.prec = before


def _balls(node: Node, sources: list[Any]) -> Any:
    """A layer in ball arithmetic, on arrays of arb."""
    layer, x = node.layer, sources[0]
    if isinstance(layer, Add):
        return x + sources[1]
    if isinstance(layer, Affine):
        y = layer.apply(x[None])[0] * (
            arb(1, 1.01 * layer.theta) if layer.theta else 1
        )  # of one sign or one term: θ of each product is θ of the sum
        if layer.shift is None:
            return y
        tau = np.zeros(layer.shift.shape) if layer.tau is None else layer.tau
        return y + np.array(
            [arb(m, r) for m, r in zip(layer.shift.ravel().tolist(), tau.ravel().tolist(), strict=True)], dtype=object
        ).reshape(layer.shape)
    if isinstance(layer, MaxPool):
        flat = x.ravel()
        return np.array([functools.reduce(arb.max, [flat[j] for j in window if j >= 0]) for window in layer.index], dtype=object).reshape(
            layer.shape
        )
    one = {
        Tanh: arb.tanh,
        Sigmoid: lambda v: 1 / (1 + (-v).exp()),
        Rectifier: lambda v: v.max(arb(0)) + arb(layer.negative) * v.min(arb(0)),
    }[type(layer)]  # type: ignore[union-attr]
    return np.array([one(v) for v in x.ravel().tolist()], dtype=object).reshape(layer.shape)


def _dyadic(v: Any) -> Rational:
    """An arb without radius as a rational."""
    mantissa, exponent = v.man_exp()
    return fmpq(mantissa) * fmpq(2) ** int(exponent)
