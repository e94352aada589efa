r"""The radius by splits of the input, for networks of any layers that can be bounded:  v* = min ‖Wδ‖  s.t.  m_k(δ) ≤ 0 for some k,  δ ∈ C.

A question at radius R, "does some row fall within R?", starts from one cell, the hull of C ∩ {‖Wδ‖ ≤ R}. On a cell {lo ≤ z ≤ hi} every row k has a minorant
a_k·δ + b_k of its own (verification/lirpa) and its parents', which hold there too, and each of them proves

    no flip of row k in the cell nearer than   max( d(cell), min { ‖Wδ‖ : a_k·δ + b_k ≤ 0, δ ∈ C ∩ cell } )

The cell with the nearest bound is cut in two next; the question closes when no bound is below R. Radii rise from what is proved towards the witness, since
the trees of small radii are small. What an unfinished question proves is its least bound. Relaxations get exact as cells shrink, so that the search ends,
but their number grows with a power of the features that matter: this is for tens of features, not for images.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Array, Norm
from formulations.pieces import BoxPiece, Part
from formulations.programs import relative_parts
from formulations.sets.base import ConvexSet
from formulations.support import Region
from verification.branching.answers import BranchingStop
from verification.decision import Decision
from verification.lirpa import BoundEngine
from verification.model import batch_of, decide, outputs, stack

BATCH = 32  # cells of one bound pass
TRIES = 3  # coordinates whose cuts are tried on a cell
TOLERANCE = 1e-3  # relative width of a bracket that counts as closed
ASCENT, ROUNDS = 20, 4  # of the dual ascent on a cell: cells are many, and their bounds are used once
STEP = 0.5  # of the way from what is proved to the witness: the next radius
ROUNDING = 1e-12  # relative: a cell is this much wider than the cuts that name it
FARTHEST = 2.0**40  # times the first radius: where a search without witness and without bounded set gives up

Progress = Callable[[float, float, int], None]


class InputSplit(NamedTuple):
    """The side of one cut: z_feature ≤ cut for side −1, ≥ cut for +1; z is the input."""

    feature: int
    cut: float
    side: int


@dataclass(frozen=True, eq=False)
class InputLeaf:
    """A cell of one row's tree: a·δ + b ≤ m_k(δ) for the δ ∈ C with ‖Wδ‖ ≤ radius on its side of the cuts, a (d,). slopes: as `Minorant` tells them.

    No change of the cell with ‖Wδ‖ < lower flips row k; lower ≤ radius, which is +inf where the cell holds all of C on its side.
    """

    path: tuple[InputSplit, ...]
    a: Array
    b: float
    radius: float
    lower: float
    slopes: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class InputSplitResult:
    """lower ≤ v*, +inf: no allowed change flips. `trees`: per margin row the leaves that prove it, none where nothing was proved; `nodes`: cells bounded."""

    lower: float
    upper: float
    stop: BranchingStop
    nodes: int
    seconds: float
    trees: tuple[tuple[InputLeaf, ...], ...]

    @property
    def closed(self) -> bool:
        return self.stop is BranchingStop.CLOSED


@dataclass(eq=False)
class _Cell:
    """lo, hi (d,) over the input; a (K, d), b (K,) the better of its own rows and its parents', with the slopes they came from; bound (K,) capped at R."""

    lo: Array
    hi: Array
    path: tuple[InputSplit, ...]
    a: Array
    b: Array
    bound: Array
    slopes: tuple[Array, ...] = ()
    children: tuple[_Cell, _Cell] | None = None

    @property
    def least(self) -> float:
        return float(self.bound.min())


@dataclass(eq=False)
class _Question:
    """The tree of one radius; `open` are its leaves with a bound below R."""

    radius: float
    root: _Cell
    open: list[_Cell] = field(default_factory=list)

    @property
    def proved(self) -> float:
        return min((cell.least for cell in self.open), default=self.radius)


def split_inputs(
    model: torch.nn.Module | BoundEngine,
    x0: ArrayLike,
    decision: Decision | None = None,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    upper: float = INF,
    start: float | None = None,
    time_limit: float | None = None,
    node_limit: int | None = None,
    tolerance: float = TOLERANCE,
    method: str = "crown",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> InputSplitResult:
    """``lower ≤ v* = min ‖Wδ‖  s.t.  m_k(δ) ≤ 0 for some row k,  δ ∈ C`` for one input x0 (*shape); closed when lower ≥ upper·(1 − tolerance).

    upper       distance of a witness that the caller has; inf: none
    start       a radius that is nearly certified, to begin with
    time_limit  seconds, looked at between bound passes; `node_limit` cells. Whatever stops the search, an interrupt too, `lower` is valid
    progress    called with (lower, radius asked about, cells so far)

    Raises InputError on shapes that do not fit, negative limits, an input outside C, and a layer that cannot be bounded.
    """
    begun = time.perf_counter()
    for name, value in (("upper", upper), ("start", start), ("time_limit", time_limit), ("node_limit", node_limit)):
        if value is not None and not value >= 0:
            raise InputError(f"split_inputs: {name}={value} must be ≥ 0.")
    engine = model
    if not isinstance(engine, BoundEngine):
        point = np.asarray(x0.detach().cpu() if isinstance(x0, torch.Tensor) else x0, dtype=float)
        engine = BoundEngine(engine, tuple(point.shape), device)
    search = _Search(engine, x0, decision, Norm.of(norm), constraints, method, progress)
    end = (INF if time_limit is None else begun + time_limit, INF if node_limit is None else float(node_limit))
    return replace(search.run(float(upper), start, tolerance, *end), seconds=time.perf_counter() - begun)


class _Search:
    def __init__(
        self, engine: BoundEngine, x0: ArrayLike, decision: Decision | None, norm: Norm, constraints: ConvexSet | None, method: str,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.engine, self.norm, self.method, self.progress = engine, norm, method, progress
        self.x = batch_of(torch.as_tensor(x0).reshape(1, *engine.input_shape), engine.input_shape, engine.device)
        self.z0 = self.x.flatten().cpu().numpy()
        values = outputs(engine.model, self.x)
        self.Q, self.s, _ = stack(decide(values, None if decision is None else [decision]), values)
        self.parts = relative_parts(constraints, engine.dim, self.z0)
        self.whole = Region.build(norm, self.parts, 0.0, engine.dim, count=1, device=self.x.device)
        self.reach = float(self.whole.reach()[0]) * (1 + 1e-9)
        self.nodes = 0
        self.best: _Question | None = None
        self.lower = 0.0

    def run(self, upper: float, start: float | None, tolerance: float, end: float, node_limit: float) -> InputSplitResult:
        goal = min(upper * (1 - tolerance), self.reach)
        stop = BranchingStop.CLOSED
        first = min(start or (goal / 2 if goal < INF else 1.0), goal)
        radius = max(first, 1e-9)
        try:
            while self.lower < goal:
                if radius > FARTHEST * max(first, 1e-9):
                    stop = BranchingStop.BEYOND
                    break
                over = self._ask(min(radius, goal), end, node_limit)
                if over is not None:
                    stop = over
                    break
                radius = 2 * self.lower if goal == INF else self.lower + STEP * (goal - self.lower)
                if radius > goal * (1 - 2 * tolerance):
                    radius = goal
        except KeyboardInterrupt:
            stop = BranchingStop.INTERRUPTED
        covers = self.best is not None and self.best.radius >= self.reach and not self.best.open
        lower = INF if covers and upper == INF else self.lower
        return InputSplitResult(lower, upper, stop, self.nodes, 0.0, self._trees(covers))

    def _ask(self, radius: float, end: float, node_limit: float) -> BranchingStop | None:
        """None when the question closed; what it proves is kept where it is more than what was known."""
        lo, hi = (v[0].cpu().numpy() + self.z0 for v in self.whole.with_radius(torch.tensor([radius], dtype=self.x.dtype)).hull())
        rows = len(self.s[0])
        root = _Cell(lo, hi, (), np.zeros((rows, len(lo))), np.full(rows, -INF), np.zeros(rows))
        self._bound([root], radius)
        question = _Question(radius, root, [root] if root.least < radius else [])
        try:
            while question.open:
                if time.perf_counter() >= end:
                    return BranchingStop.TIME
                if self.nodes >= node_limit:
                    return BranchingStop.NODES
                question.open.sort(key=lambda cell: -cell.least)
                taken = question.open[-BATCH // (2 * TRIES) :]
                halves = self._halves(taken, radius)
                if halves is None:
                    return BranchingStop.UNRESOLVED
                del question.open[-len(taken) :]
                question.open += [cell for cell in halves if cell.least < radius]
                if self.progress is not None:
                    self.progress(max(self.lower, question.proved), radius, self.nodes)
            return None
        finally:
            if question.proved > self.lower:
                self.lower, self.best = question.proved, question

    def _halves(self, cells: list[_Cell], radius: float) -> list[_Cell] | None:
        """The cells cut where of a few coordinates the nearer half gains most. None when a cell is too small to be cut."""
        pairs: list[list[tuple[_Cell, _Cell]]] = []
        for cell in cells:
            k = int(cell.bound.argmin())
            width = cell.hi - cell.lo
            order = np.argsort(-(np.abs(cell.a[k]) + 1e-6 * np.abs(cell.a[k]).max(initial=1.0)) * width)
            cuts = [(int(j), float(cell.lo[j] + width[j] / 2)) for j in order[:TRIES] if width[j] > 1e-9 * (1 + abs(cell.lo[j]))]
            if not cuts:
                return None
            pairs.append([(self._half(cell, j, cut, -1), self._half(cell, j, cut, 1)) for j, cut in cuts])
        self._bound([half for tried in pairs for pair in tried for half in pair], radius)
        out: list[_Cell] = []
        for cell, tried in zip(cells, pairs, strict=True):
            cell.children = max(tried, key=lambda pair: (min(h.least for h in pair), sum(h.least for h in pair)))
            out += cell.children
        return out

    @staticmethod
    def _half(cell: _Cell, j: int, cut: float, side: int) -> _Cell:
        lo, hi = cell.lo.copy(), cell.hi.copy()
        (hi if side < 0 else lo)[j] = cut
        return _Cell(lo, hi, (*cell.path, InputSplit(j, cut, side)), cell.a, cell.b, cell.bound, cell.slopes)

    def _bound(self, cells: list[_Cell], radius: float) -> None:
        """Rows and bounds of the cells, no worse than those that they came with."""
        self.nodes += len(cells)
        room = ROUNDING * (1 + np.abs(self.z0))
        lo = np.stack([c.lo - self.z0 - room - ROUNDING * np.abs(c.lo) for c in cells])
        hi = np.stack([c.hi - self.z0 + room + ROUNDING * np.abs(c.hi) for c in cells])
        near = np.linalg.norm((np.maximum(lo, 0) + np.minimum(hi, 0)) * self.whole.scale.cpu().numpy(), self.whole.p, axis=-1)
        for cell, distance in zip(cells, near, strict=True):
            cell.bound = np.maximum(cell.bound, min(float(distance) * (1 - 1e-12), radius))
        kept = [i for i, cell in enumerate(cells) if near[i] < radius * (1 - 1e-9) and cell.least < radius]
        if not kept:
            return
        n, like = len(kept), {"dtype": self.x.dtype, "device": self.x.device}
        region = Region.build(self.norm, (*self.parts, Part("cell", BoxPiece(lo[kept], hi[kept]), "change")), radius, len(self.z0), count=n,
                              steps=ASCENT, device=self.x.device)  # fmt: skip
        x = self.x.expand(n, *self.x.shape[1:])
        own = self.engine.rows(x, self.Q.expand(n, -1, -1), self.s.expand(n, -1), region, self.method, part=True)
        a = torch.stack([own.a, torch.as_tensor(np.stack([cells[i].a for i in kept]), **like)], 1)  # type: ignore[arg-type]
        b = torch.stack([own.b, torch.as_tensor(np.stack([cells[i].b for i in kept]), **like)], 1)  # type: ignore[arg-type]
        known = torch.isfinite(b)
        b = torch.where(known, b, 0.0)
        flat = a.flatten(1, 2)
        far = region.distance(flat, b.flatten(1), ROUNDS).unflatten(1, b.shape[1:])  # type: ignore[no-untyped-call]
        worth = torch.where(known, far.clamp(max=radius), 0.0).cpu().numpy()
        which, rows, offsets = worth.argmax(1), a.cpu().numpy(), own.b.cpu().numpy()
        for place, i in enumerate(kept):
            cell, mine = cells[i], which[place] == 0
            cell.bound = np.maximum(cell.bound, worth[place].max(0))
            cell.slopes = tuple(np.where(mine[:, None], v[place].cpu().numpy(), old) for v, old in self._slope_pairs(own.slopes, cell))
            cell.a, cell.b = np.where(mine[:, None], rows[place, 0], cell.a), np.where(mine, offsets[place], cell.b)

    @staticmethod
    def _slope_pairs(slopes: tuple[torch.Tensor, ...], cell: _Cell) -> Iterator[tuple[torch.Tensor, Array]]:
        return zip(slopes, cell.slopes or itertools.repeat(np.zeros(1)), strict=False)

    def _trees(self, covers: bool) -> tuple[tuple[InputLeaf, ...], ...]:
        """Per row: the cells nearest to the root that prove what the search does."""
        if self.best is None:
            return tuple(() for _ in range(self.s.shape[1]))
        radius, root = self.best.radius, self.best.root
        trees = []
        for k in range(self.s.shape[1]):
            leaves, todo = [], [root]
            while todo:
                cell = todo.pop()
                if cell.children is not None and cell.bound[k] < self.lower:
                    todo += cell.children
                    continue
                leaves.append(InputLeaf(cell.path, cell.a[k], float(cell.b[k]), INF if covers else radius, float(cell.bound[k]),
                                        tuple(v[k] for v in cell.slopes)))  # fmt: skip
            trees.append(tuple(leaves))
        return tuple(trees)
