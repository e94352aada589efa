r"""One question, answered by trees: does some margin row fall within radius R?  One tree of ReLU splits per margin row, all of them in one queue.

A cell is closed when its row cannot fall within R. Otherwise its neurons are bounded again over its cap, its row is raised, and where that no longer pays
the cell is split at a ReLU (verification/branching/choice.py): z_j ≥ 0 on one side, z_j ≤ 0 on the other. A cell without open ReLUs is one activation
region: a convex program, solved exactly (verification/branching/region.py), so the method is complete.

Everything known within a radius holds within a smaller one, so R may shrink at any time without a restart.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from formulations.norms import INF, Array
from formulations.support import Region
from verification.branching.answers import Leaf, Split
from verification.branching.ascent import ascend
from verification.branching.ball import Ball
from verification.branching.cells import Cells, Pool
from verification.branching.choice import choose, scores
from verification.branching.coupled import Memory, Pull
from verification.branching.effort import Effort
from verification.branching.narrowing import narrow, plain_bounds
from verification.branching.network import Network
from verification.branching.region import RegionProgram
from verification.exact.question import Question, Witness

BATCH = 1 << 21  # (neurons × inputs) of the cells of one batch: beyond, batching gains nothing and answers come late
RETREATING = 64  # cells raised in one go when the radius shrinks
CLOSE = 4e-7  # relative distance of a region's bound and a witness in it that will do
ENUMERATED, ENUMERATED_SMALL, SMALL = (
    2,
    5,
    16,
)  # open ReLUs of a cell whose regions are all solved, over coupled sets; and up to this many features
SAFE = 1 - 1e-9  # what rounding may take from a distance that was found in float64


@dataclass
class Bookkeeping:
    """What one margin row's tree has: closed leaves, and how many cells are open."""

    leaves: list[Leaf]
    open: int = 0


class Tree:
    """The trees of some margin rows at one radius. `hull` (d,): half-widths of a box around 0 that holds C, where C has no bounded box of its own."""

    def __init__(
        self,
        question: Question,
        network: Network,
        region: Region,
        radius: float,
        rows: list[int],
        effort: Effort,
        memory: Memory | None = None,
        hull: Array | None = None,
        tight: bool = False,
    ) -> None:
        self.question, self.network, self.region, self.effort, self.hull = question, network, region, effort, hull
        self.ball = Ball.of(region, radius, memory, tight)
        self.books = {k: Bookkeeping([], 1) for k in rows}
        self.nodes = 0
        self.witness: Witness | None = None
        self._parents: list[tuple[int, Split | None]] = []
        self._heap: list[tuple[float, int, int]] = []
        self._pool, self._order = Pool(), 0
        self._batch = max(4, min(effort.batch, BATCH // max(1, sum(network.widths) * network.dim)))
        self._program: RegionProgram | None = None

    @property
    def radius(self) -> float:
        """Nothing closed so far flips within it."""
        return self.ball.radius

    @property
    def open(self) -> int:
        return len(self._heap)

    @property
    def worst(self) -> float:
        """The smallest slack among open cells; 0 when none is open."""
        return self._heap[0][0] if self._heap else 0.0

    def shrink(self, radius: float) -> None:
        self.ball = Ball.of(self.region, min(radius, self.radius), self.ball.memory, self.ball.tight)

    def retreat(self, radius: float) -> None:
        """Go on at a smaller radius: the open cells take over the bounds of the smaller region, and their rows are raised on it."""
        self.shrink(radius)
        cells = self._pop(len(self._heap))
        if cells is None:
            return
        lower, upper = plain_bounds(self.network, self.ball)
        lower = tuple(torch.maximum(mine, new) for mine, new in zip(cells.lower, lower, strict=True))
        upper = tuple(torch.maximum(torch.minimum(mine, new), l) for mine, new, l in zip(cells.upper, upper, lower, strict=True))
        cells = replace(cells, lower=lower, upper=upper)
        pieces = torch.split(torch.arange(len(cells), device=cells.b.device), RETREATING)
        self._push(Cells.cat([self._close(ascend(self.network, self.ball, cells.take(i), self.effort.steps).cells) for i in pieces]))

    # ------------------------------------------------------------------------------------------------------------------- root

    def plant(self) -> None:
        """The root cells: plain bounds, shared by all rows, then a row each."""
        network, rows = self.network, list(self.books)
        self.plain = lower, upper = plain_bounds(network, self.ball)
        many = torch.zeros(len(rows), dtype=torch.long, device=network.rows.device)
        like = network.rows.new_zeros(len(rows))
        empty = tuple(torch.zeros_like(v)[many] for v in lower)
        start = Cells(
            tuple(v[many] for v in lower), tuple(v[many] for v in upper), empty, tuple((u > -l).to(u)[many] for l, u in zip(lower, upper, strict=True)),
            empty, tuple(torch.cat([v, v], 1) for v in empty), like.new_zeros(len(rows), network.dim), like, torch.full_like(like, -INF),
            torch.tensor(rows, device=like.device), torch.arange(len(rows), device=like.device),
            *self._pulls(rows), torch.full_like(like, -1.0), like.new_zeros(len(rows), network.dim if self.ball.tight else 0),
        )  # fmt: skip
        self._parents = [(-1, None)] * len(rows)
        self.nodes = len(rows)
        raised = ascend(network, self.ball, start, self.effort.root_steps).cells
        if self.region.coupling is not None:
            self.ball.memory.keep(("row", 0), self.question.rows, raised.row, Pull(raised.u, raised.z))
        self._push(self._close(raised))

    def _pulls(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Multipliers that the rows begin with: those of the last question."""
        link, like = self.region.coupling, self.network.rows.new_zeros(len(rows), 0, dtype=torch.float32)
        if link is None:
            return like, like
        known = self.ball.memory.recall(("row", 0), torch.tensor(rows, device=like.device))
        return (like.new_zeros(len(rows), link.size), like.new_zeros(len(rows), self.network.dim)) if known is None else (known.u, known.z)

    def pinch(self, late: Callable[[], bool]) -> None:
        """Narrow all open cells and raise their rows, in turns, while some slack still moves."""
        cells = self._pop(len(self._heap))
        for _ in range(self.effort.rounds):
            cells = None if cells is None else self._enumerate(cells, late)
            if cells is None or not len(cells) or late():
                break
            before = cells.slack
            cells = ascend(self.network, self.ball, narrow(self.network, self.ball, cells), self.effort.steps).cells
            gain = float(((cells.slack - before) / before.abs().clamp(min=1e-12)).max())
            cells = self._close(cells)
            if gain < self.effort.gain:
                break
        if cells is not None:
            self._push(cells)

    # ------------------------------------------------------------------------------------------------------------------- search

    def step(self, late: Callable[[], bool]) -> None:
        """Narrow, raise and split the cells with the smallest slacks."""
        cells = self._pop(self._batch)
        cells = None if cells is None else self._enumerate(cells, late)
        if cells is None or not len(cells):
            return
        cells = self._settle(cells)
        if not len(cells):
            return
        if not self.network.depth:
            return self._solve_all(cells, late)
        score = scores(self.network, cells)
        splittable = score.amax(1) > 0
        self._solve_all(cells.take(torch.nonzero(~splittable).flatten()), late)
        cells, score = cells.take(torch.nonzero(splittable).flatten()), score[splittable]
        if len(cells):
            children = self._split(cells, choose(self.network, self.ball, cells, score, self.effort))
            self.nodes += len(children)
            self._push(self._close(ascend(self.network, self.ball, children, self.effort.steps).cells))

    def _settle(self, cells: Cells) -> Cells:
        """Those that stay open after rounds of narrowing and raising; a cell has another round while the last one took a good part of what it lacks."""
        done: list[Cells] = []
        for _ in range(self.effort.cell_rounds):
            before = cells.slack
            raised = ascend(self.network, self.ball, narrow(self.network, self.ball, cells), self.effort.steps)
            self._try(raised.cells, raised.point)
            gain = (raised.cells.slack - before) >= self.effort.cell_gain * before.abs()
            self._close(raised.cells)
            is_open = raised.cells.slack <= 0
            done.append(raised.cells.take(torch.nonzero(is_open & ~gain).flatten()))
            cells = raised.cells.take(torch.nonzero(is_open & gain).flatten())
            if not len(cells):
                break
        return Cells.cat([*done, cells])

    def _enumerate(self, cells: Cells, late: Callable[[], bool]) -> Cells:
        """The cells without those that have so few open ReLUs that all their regions cost less than bounds over a coupled set do: these are solved."""
        if self.region.coupling is None or not self.network.depth:
            return cells
        most = ENUMERATED_SMALL if self.network.dim <= SMALL else ENUMERATED
        few = torch.cat(cells.open_neurons(), 1).sum(1) <= most
        if not bool(few.any()) or late():
            return cells
        rest, part = cells.take(torch.nonzero(~few).flatten()), cells.take(torch.nonzero(few).flatten())
        while len(part):
            is_open = torch.cat(part.open_neurons(), 1)
            some = is_open.any(1)
            self._solve_all(part.take(torch.nonzero(~some).flatten()), late)
            part = part.take(torch.nonzero(some).flatten())
            if len(part):
                part = self._split(part, is_open[some].to(torch.uint8).argmax(1))
                self.nodes += len(part)
        return rest

    def _split(self, cells: Cells, at: Tensor) -> Cells:
        """Both sides of neuron `at` of every cell, written down."""
        places, first = self.network.places(at), len(self._parents)
        parents = cells.node.tolist()
        for sign in (1, -1):
            self._parents += [(parent, (l, j, sign)) for parent, (l, j) in zip(parents, places, strict=True)]
        for k in cells.row.tolist():
            self.books[k].open += 1
        return replace(cells.sides(places), node=torch.arange(first, len(self._parents), device=at.device))

    def _solve_all(self, cells: Cells, late: Callable[[], bool]) -> None:
        for i in range(len(cells)):
            cell = cells.take(torch.tensor([i], device=cells.b.device))
            if i and late():
                self._push(cell)
            else:
                self._solve(cell)

    def _solve(self, cell: Cells) -> None:
        """One activation region: the exact program. A flip nearer than R shrinks the question to it."""
        if self._program is None:
            self._program = RegionProgram.of(self.question, self.plain, self.hull)
        k, path = int(cell.row[0]), self.path(int(cell.node[0]))
        signs = [torch.where(l[0] >= 0, 1, -1).cpu().numpy() for l in cell.lower]
        found = self._program.settle(k, signs, path, self.radius, lambda: (float(self._distance(cell)[0]), *self._row(cell, 0)))
        slopes = tuple((sign > 0).astype(float) for sign in signs)
        leaf = Leaf(path, found.a, found.b, self.radius, found.lower, found.lam, found.duals, slopes, found.splits, self._aim(cell, 0))
        self.books[k].leaves.append(leaf)
        self.books[k].open -= 1
        if found.flip is not None:
            for further in (1.0, 1 + CLOSE / 8, 1 + CLOSE / 2):
                self._offer(found.flip * further)
            for depth in (1e-9, 1e-8):
                if self.witness is None or self.witness.upper > found.lower * (1 + CLOSE):
                    self._offer(self._program.beyond(k, signs, depth))
            self.shrink(max(found.lower, 1e-300))

    def _try(self, cells: Cells, point: Tensor) -> None:
        """Where a cell's row falls deepest the network itself may flip: walk back from there towards x0, and solve the activation region of the crossing."""
        v = self.network.margins(point).gather(1, cells.row[:, None])[:, 0]
        if not bool((v <= 0).any()):
            return
        start, end = torch.zeros_like(v), torch.ones_like(v)
        for _ in range(30):
            middle = (start + end) / 2
            flips = self.network.margins(point * middle[:, None]).gather(1, cells.row[:, None])[:, 0] <= 0
            start, end = torch.where(flips, start, middle), torch.where(flips, middle, end)
        delta = (point * end[:, None] / self.region.scale).cpu().numpy()
        length = np.where((v <= 0).cpu().numpy(), self.question.norm.value(delta), INF)
        i = int(length.argmin())
        if length[i] < self.radius * (1 - 1e-3):
            self._offer(delta[i])
            if self.witness is not None and self.witness.upper < self.radius:
                self.shrink(self.witness.upper)

    def _offer(self, delta: Array) -> None:
        found = self.question.witness(delta)
        if found is not None and (self.witness is None or found.upper < self.witness.upper):
            self.witness = found

    # ------------------------------------------------------------------------------------------------------------------- the queue

    def _push(self, cells: Cells) -> None:
        if len(cells):
            for slack, place in zip(cells.slack.tolist(), self._pool.put(cells), strict=True):
                heapq.heappush(self._heap, (slack, self._order, place))
                self._order += 1

    def _pop(self, count: int) -> Cells | None:
        places = [heapq.heappop(self._heap)[2] for _ in range(min(count, len(self._heap)))]
        return self._pool.get(places) if places else None

    def _close(self, cells: Cells) -> Cells:
        """Writes down the closed cells and gives back the open ones."""
        for i in torch.nonzero(cells.slack > 0).flatten().tolist():
            book = self.books[int(cells.row[i])]
            book.leaves.append(self._leaf(cells, i, self.radius))
            book.open -= 1
        return cells.take(torch.nonzero(cells.slack <= 0).flatten())

    def _leaf(self, cells: Cells, i: int, lower: float) -> Leaf:
        """A leaf that its row alone speaks for."""
        path = self.path(int(cells.node[i]))
        slopes = tuple(v[i].cpu().numpy().copy() for v in cells.slope)
        splits = np.array([float(cells.beta[layer][i, neuron]) for layer, neuron, _ in path])
        return Leaf(path, *self._row(cells, i), self.radius, lower, slopes=slopes, splits=splits, aim=self._aim(cells, i))

    def _aim(self, cells: Cells, i: int) -> tuple[float, Array] | None:
        return (max(float(cells.kappa[i]), 0.0), cells.turn[i].cpu().numpy().copy()) if self.ball.tight else None

    def _row(self, cells: Cells, i: int) -> tuple[Array, Array]:
        """(a (1, d), b (1,)) over δ."""
        return (cells.a[i] * self.region.scale).cpu().numpy()[None], cells.b[i : i + 1].cpu().numpy()

    def _distance(self, cells: Cells) -> Tensor:
        """Lower bounds (n,) of the norm of any flip in the cells, by their rows; at most R."""
        far = self.region.with_radius(torch.tensor([self.radius], dtype=self.region.lo.dtype)).distance(
            (cells.a * self.region.scale)[None], cells.b[None]
        )[0]
        return (far * SAFE).clamp(max=self.radius)

    def path(self, node: int) -> tuple[Split, ...]:
        out = []
        while node >= 0:
            node, split = self._parents[node]
            if split is not None:
                out.append(split)
        return tuple(reversed(out))

    def cut_short(self) -> None:
        """Make leaves of all open cells, with what their rows prove; afterwards nothing is open."""
        cells = self._pop(len(self._heap))
        if cells is None:
            return
        far = self._distance(cells)
        for i in range(len(cells)):
            book = self.books[int(cells.row[i])]
            book.leaves.append(self._leaf(cells, i, float(far[i])))
            book.open -= 1
