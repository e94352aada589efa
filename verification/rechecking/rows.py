r"""Levels B and C of the checker: the rows and the outputs, derived again from the weights. It needs numpy and python-flint only.

Level B proves, for every cell of a certificate, what level A takes as its premise: on the cell

    a·δ + b ≤ m(δ)  for a margin row,      a·δ + b ≤ 0  for the row of a neuron split,      a·δ + b ≤ 0 where m(δ) ≤ 0  for a row of the flips.

The last follows where a·δ + b ≤ m(δ) does, and else from what the checker itself derives of the cell's flips (flips.py).

It derives rows of its own (bounds.py) and compares. The slopes of their lines come from the certificate ("relaxation") or are chosen here; bounds,
intercepts and all rounding are proved here. A row that is not reached is "cannot decide", never "invalid": a better relaxation may prove it. A row that the
network contradicts at x0 or at the witness is "invalid".

Level C encloses the outputs (outputs.py). Both need the network (network.py), in a file that the reader trusts to be the model; its
weights' hash and its layers in words must be the certificate's. A layer that is not covered is "cannot decide", by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from verification.checking.document import FLIP_ROW, MARGIN_ROW, Cell, Document, Inner, Split
from verification.checking.rationals import exact, float_up
from verification.checking.text import FormatError
from verification.rechecking.affine import Add, Affine
from verification.rechecking.bounds import Bounds
from verification.rechecking.facets import Aim
from verification.rechecking.flips import Flips
from verification.rechecking.graph import LayerError, Network
from verification.rechecking.network import read_model
from verification.rechecking.outputs import Findings, Point, check_outputs, points
from verification.rechecking.region import Region
from verification.rechecking.rounding import Array
from verification.rechecking.words import same_words

__all__ = ["Findings", "check_model", "check_outputs", "check_rows", "shortfalls"]

WORK = 1 << 25  # numbers in all multipliers and rows, times 4^effort, up to which better multipliers are sought: a minute or so
MOST = 9  # reasons of one kind that are told


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
    if level == "A":
        return Findings()
    try:
        network = file.network(doc.shape)
    except LayerError as error:
        return Findings(undecided=[f"level {level}: {error}"])
    if words is not None and not same_words(told["architecture"], words):
        return Findings(undecided=[f"level {level}: the model file has the certificate's weights, but describes their layers otherwise"])
    if network.shape(len(network.nodes) - 1) != (len(doc.outputs),):
        return Findings(
            undecided=[
                f"level {level}: the network gives {network.shape(len(network.nodes) - 1)}, the certificate {len(doc.outputs)} outputs"
            ]
        )
    out = Findings()
    for each, check in (("B", check_rows), ("C", check_outputs)):
        if level >= each:
            one = check(doc, network)
            out.wrong += _first(one.wrong)
            out.undecided += _first([f"level {each}: {why}" for why in one.undecided])
    premises = [] if level == "C" else ["outputs: as stored (level C)"]
    if words is None:
        premises.append("layers: wired as the model file says")
    out.premises = tuple(premises)
    return out


def _first(reasons: list[str]) -> list[str]:
    """A tree of splits may fail thousands of times."""
    return reasons if len(reasons) <= MOST else [*reasons[:MOST], f"… and {len(reasons) - MOST} more of the kind"]


def check_rows(doc: Document, network: Network) -> Findings:
    """Level B: is every row of every cell a minorant there?"""
    out, desk, stored = Findings(), _Desk(doc, network), points(doc, network)
    for k, cells in enumerate(doc.cells):
        for i, cell in enumerate(cells):
            where, missed = f"rivals[{k}].cells[{i}]", desk.missed(cell, k)
            out.undecided += [f"{where}: {why}" for why in ([missed] if isinstance(missed, str) else _words(cell, missed))]
            if missed:
                out.wrong += [f"{where}: {why}" for why in _refuted(doc, network, cell, k, stored)]
    return out


def shortfalls(doc: Document, network: Network) -> list[list[dict[int, float] | str]]:
    """Row by row of the decision and cell by cell: by how much which rows are not derived, or why nothing can be derived in the cell."""
    desk = _Desk(doc, network)
    return [[desk.missed(cell, k) for cell in cells] for k, cells in enumerate(doc.cells)]


def _words(cell: Cell, missed: Mapping[int, float]) -> list[str]:
    words = {FLIP_ROW: ", it speaks of flips alone"}
    return [f"row {j} is not derived from the weights (short by {v:.3g}){words.get(cell.row_of[j], '')}" for j, v in sorted(missed.items())]


class _Desk:
    """Rows asked one by one, with the bounds of the cells asked last."""

    def __init__(self, doc: Document, network: Network) -> None:
        self.doc, self.network = doc, network
        self.known: dict[int, Array] = {}
        self.cache: dict[tuple[float, tuple[Split, ...], int], Bounds | str] = {}
        self.patient = True
        self.inner = {(cell.radius, tuple(cell.path)): cell.inner for cells in doc.cells for cell in cells if cell.inner}

    def bounds(self, cell: Cell, effort: int = 0) -> Bounds | str:
        key = (cell.radius, tuple(cell.path), effort)
        if key not in self.cache:
            if len(self.cache) > 16:  # trees of splits have thousands of cells, each with bounds of its own
                self.cache.clear()
            self.cache[key] = _bounds(self.doc, self.network, cell, self.known, self.inner.get(key[:2], ()), effort)
        return self.cache[key]

    def missed(self, cell: Cell, k: int) -> dict[int, float] | str:
        """By how much which of the cell's rows are not derived: on the cell itself, with better multipliers of the set, or on cells that hold it."""
        bounds = self.bounds(cell)
        if isinstance(bounds, str):
            return bounds
        left = _shortfalls(self.doc, self.network, bounds, cell, k, dict.fromkeys(range(len(cell.b)), math.inf))
        for effort in (1, 2):  # where they do not help once, they are not tried again
            rows = sum(map(len, self.known.values()))
            most = rows * (bounds.region.dim + bounds.region.K.shape[0]) * 4**effort
            if not left or not self.patient or not bounds.region.blocks or most > WORK:
                break
            better = self.bounds(cell, effort)
            assert isinstance(better, Bounds)
            left = _shortfalls(self.doc, self.network, better, cell, k, left)
            self.patient = effort < 2 or not left
        for depth in reversed(range(len(cell.path))):  # a cell's row may be an ancestor's, which holds there too
            margins = {j: v for j, v in left.items() if cell.row_of[j] == MARGIN_ROW}
            if not margins or any(s.at != "input" for s in cell.path):
                break
            above = self.bounds(replace(cell, path=cell.path[:depth]))
            if isinstance(above, str):
                break
            still = _shortfalls(self.doc, self.network, above, cell, k, margins)
            left = {j: still.get(j, v) for j, v in left.items() if j in still or j not in margins}
        return left


def _bounds(doc: Document, network: Network, cell: Cell, known: dict[int, Array], inner: Sequence[Inner], effort: int = 0) -> Bounds | str:
    region = Region(doc, cell, effort)
    if not region.bounded:
        return "the cell is not bounded, so that float64 cannot bound the network on it"
    splits: dict[int, list[Split]] = {}
    for s in cell.path:
        if s.at != "input":
            place = _value_at(network, s)
            if place is None:
                return f"the network has no value {s.index} before layer {s.at!r} to split on"
            splits.setdefault(place, []).append(s)
    return Bounds(network, doc, region, splits, known, inner)


def _value_at(network: Network, split: Split) -> int | None:
    """The value that a neuron split asks about: what enters the activation of that name, or what the layer of that name gives."""
    for i in reversed(range(len(network.nodes))):
        node = network.nodes[i]
        if node.name == split.at:
            place = i if isinstance(node.layer, Affine | Add) else node.sources[0]
            return place if place >= 0 and split.index < math.prod(network.shape(place)) else None
    return None


def _shortfalls(doc: Document, network: Network, bounds: Bounds, cell: Cell, k: int, asked: Mapping[int, float]) -> dict[int, float]:
    """By how much those of the rows `asked` are missed that are not derived on these bounds; at most what is known of them."""
    last, missed = len(network.nodes) - 1, dict[int, float]()
    margins = [j for j, of in enumerate(cell.row_of) if of < 0]
    for j, short in asked.items():
        row, b = np.array(cell.a[j]), cell.b[j]
        if cell.row_of[j] >= 0:
            split = cell.path[cell.row_of[j]]
            place = _value_at(network, split)
            assert place is not None
            q = np.zeros(math.prod(network.shape(place)))
            q[split.index] = -float(split.side)  # side·(z − cut) ≥ 0 on the cell, so that −side·(z − cut) ≤ 0
            start, shift, slopes = place, split.side * split.cut, None
        else:
            start, q, shift = last, np.array(doc.rows[k]), doc.shifts[k]
            slopes = _proposal(network, cell, margins.index(j)) if cell.row_of[j] == MARGIN_ROW else None
        for choice in [slopes, None] if slopes is not None else [None]:
            short = min(short, bounds.shortfall(start, q, shift, row, b, choice))
            if short <= 0:
                break
        if cell.row_of[j] == FLIP_ROW and short > 0 and Flips.knows(bounds):
            short = min(short, _flips(network, bounds, cell, q, shift, j).shortfall(row, b))
        if short > 0:
            missed[j] = short
    return missed


def _flips(network: Network, bounds: Bounds, cell: Cell, q: Array, shift: float, row: int) -> Flips:
    """What flips of row q·f + shift obey in the cell, with the certificate's slopes and multipliers for its row `row` where it has them."""
    splits = [(place, s) for s in cell.path if s.at != "input" and (place := _value_at(network, s)) is not None]
    told = [r for r, of in enumerate(cell.row_of) if of < 0].index(row)
    slopes = _proposal(network, cell, told)
    beta = [v for v, s in zip(cell.splits[told], cell.path, strict=True) if s.at != "input"] if told < len(cell.splits) else []
    return Flips(
        bounds,
        q,
        shift,
        splits,
        None if slopes is None else dict(zip(network.activations(), slopes, strict=True)),
        np.array(beta) if len(beta) == len(splits) else None,
        _aim(cell, told),
    )


def _aim(cell: Cell, row: int) -> Aim | None:
    """The certificate's lines over the box of changes for a row."""
    if row >= len(cell.facets):
        return None
    share, turn = cell.facets[row]
    return Aim(np.array([share]), np.array([turn], dtype=np.float64))


def _proposal(network: Network, cell: Cell, row: int) -> list[Array] | None:
    """The certificate's slopes for a margin row, where they fit the network."""
    if row >= len(cell.slopes):
        return None
    out = [np.array(v) for v in cell.slopes[row]]
    shapes = [math.prod(network.shape(i)) for i in network.activations()]
    return out if [len(v) for v in out] == shapes else None


def _refuted(doc: Document, network: Network, cell: Cell, k: int, stored: Sequence[Point]) -> list[str]:
    """Margin rows that exceed the network's margin at a stored point which certainly lies in the cell."""
    wrong = []
    for point in stored:
        if (
            not point.inside
            or (cell.radius != math.inf and point.length > exact(cell.radius))
            or not all(_on_side(s, network, point) for s in cell.path)
        ):
            continue
        high = point.margin(doc.rows[k], doc.shifts[k])[1] if point.ends else None
        for j, (row, b) in enumerate(zip(cell.a, cell.b, strict=True)):
            value = sum((exact(a) * v for a, v in zip(row, point.delta, strict=True) if a), exact(b))
            if high is None or cell.row_of[j] >= 0 or (cell.row_of[j] == FLIP_ROW and high > 0):
                continue
            most = high if cell.row_of[j] == MARGIN_ROW else exact(0.0)
            if value > most:
                wrong.append(f"row {j} exceeds the network's margin at {point.name} by {float_up(value - most):.3g}")
    return wrong


def _on_side(split: Split, network: Network, point: Point) -> bool:
    if split.at == "input":
        low = high = point.input[split.index]
    else:
        place = _value_at(network, split)
        assert place is not None
        low, high = (float(v.ravel()[split.index]) for v in point.values[place])
    return low >= split.cut if split.side > 0 else high <= split.cut
