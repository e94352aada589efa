r"""The radius by branch and bound:  v* = min ‖Wδ‖  s.t.  m_k(δ) ≤ 0 for some row k,  δ ∈ C,  for chains of affine maps and ReLUs.

Questions at fixed radii, "does some row fall within R?" (verification/branching/tree.py), chosen by verification/branching/schedule.py. One that closes raises the
lower bound; rows that closed at a larger radius are not asked again; flips met on the way lower the goal. A question at a larger radius is begun afresh.
One that is given up goes on at a smaller radius, in the smaller region's bounds, where few of its cells are open or little is left of the budgets; else
a new one is begun there, whose tree is smaller than what the larger radius leaves behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Norm
from formulations.sets.base import FEASIBILITY, ConvexSet
from formulations.support import Region
from verification.attack.feasible import violation
from verification.branching.answers import BranchingResult, BranchingStop, Leaf, RowTree
from verification.branching.coupled import Memory
from verification.branching.effort import Effort
from verification.branching.extent import nearest, reach_of_balls, standing_everywhere
from verification.branching.network import Network
from verification.branching.schedule import BACK, BOLDEST, CAUTIOUS, EASY, Schedule
from verification.branching.tree import Tree
from verification.decision import Decision
from verification.exact.descent import Descent
from verification.exact.question import Question, Witness
from verification.exact.relaxation import Relaxation
from verification.radii import CertifiedRow
from verification.relu_chain import ReluChain

SHARE = 0.6  # of the budgets that are left: what one question may take before its radius shrinks,
LEAST = 0.02  # and at least this part of the whole
LAST = 0.4  # part of the whole that no question is begun in after one that did not close
SPEND = 0.7  # of the budgets that are left: what the next question should cost
RETREAT = 0.5  # open cells, in those that a question begun afresh should have, up to which one goes on at a smaller radius
TOLERANCE = 1e-6
HARD = -0.5  # worst slack of the root cells below which lines over the box (verification/branching/facets.py) are worth their price
FARTHEST = 2.0**40  # times the first radius: where a search without witness and without bounded set gives up

Progress = Callable[[float, float, int], None]


def branch_radius(
    model: torch.nn.Module | ReluChain,
    x0: ArrayLike,
    decision: Decision | None = None,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    upper: float = INF,
    start: float | None = None,
    known: Sequence[CertifiedRow] = (),
    time_limit: float | None = None,
    node_limit: int | None = None,
    tolerance: float = TOLERANCE,
    effort: Effort | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> BranchingResult:
    """``lower ≤ v* = min ‖Wδ‖  s.t.  m_k(δ) ≤ 0 for some row k,  δ ∈ C`` for one input; closed when lower ≥ upper·(1 − tolerance),
    or upper − lower ≤ tolerance at an activation region that was solved.

    x0          the model's input without batch axis ((d,) for a chain); `decision` None is classification by the predicted class
    upper       distance of a witness that the caller has; only nearer flips are looked for. inf: none, the search then meets its own
    start       a radius to begin with where there is no witness and C is unbounded
    known       the decision's rows as any bound engine has them (`certified_radius`, whatever its method, for this input, norm and C): they are the first leaf
                of their trees, and nothing within what they prove is asked again
    time_limit  seconds; `node_limit` cells. Whatever stops the search, an interrupt too, the bracket returned is valid
    progress    called with (lower, radius asked about, cells so far)

    Every `lower` is valid; how near it comes to v* depends on the search. v* never grows with C, and so do bounds of searches that close, up to `tolerance`
    (relative): `lower` is then within it of v*. Bounds of searches that were stopped do not have this law.
    The statement is about the weights in real arithmetic; bounds are float64 with a margin of 1e-11 relative for rounding, and regions are settled by verified duality.
    Raises InputError on a model that is no ReLU chain, sets known only by CVXPY constraints, shapes that do not fit, a negative or NaN limit, an empty set.
    """
    begun = time.perf_counter()
    for name, value in (("upper", upper), ("start", start), ("time_limit", time_limit), ("node_limit", node_limit)):
        if value is not None and not value >= 0:
            raise InputError(f"branch_radius: {name}={value} must be ≥ 0.")
    question = Question.build(model, x0, decision, norm, constraints)
    search = _Search(question, float(upper), start, tolerance, effort or Effort(), device, progress)
    search.credit(known)
    end = INF if time_limit is None else begun + time_limit
    return replace(search.run(end, INF if node_limit is None else node_limit), seconds=time.perf_counter() - begun)


def branch_radii(
    model: torch.nn.Module | ReluChain,
    x0: ArrayLike,
    *,
    uppers: Sequence[float] | None = None,
    jobs: int = 1,
    tell: Callable[[int, int], None] | None = None,
    **settings: object,
) -> list[BranchingResult]:
    """`branch_radius` for a batch x0 (n, *shape), each input with its own budget; `jobs` processes. `settings` are those of `branch_radius`.

    tell: called with (inputs done, inputs in all).
    """
    inputs = np.asarray(x0.detach().cpu() if isinstance(x0, torch.Tensor) else x0, dtype=float)
    tops = [INF] * len(inputs) if uppers is None else list(uppers)
    if len(tops) != len(inputs):
        raise InputError(f"branch_radii: {len(tops)} upper values for {len(inputs)} inputs; give one each.")
    work = (delayed(branch_radius)(model, x, upper=u, **settings) for x, u in zip(inputs, tops, strict=True))
    found: list[BranchingResult] = []
    for result in Parallel(n_jobs=jobs, return_as="generator")(work):
        found.append(result)
        if tell is not None:
            tell(len(found), len(inputs))
    return found


class _Search:
    """The state between questions: per row the radius within which nothing flips, with the leaves that prove it."""

    def __init__(
        self, question: Question, upper: float, start: float | None, tolerance: float, effort: Effort,
        device: torch.device | str | None, progress: Progress | None,
    ) -> None:  # fmt: skip
        self.question, self.tolerance, self.effort, self.progress = question, tolerance, effort, progress
        self.nearest = nearest(question)
        self.region = Region.build(question.norm, question.parts, self.nearest * (1 + 1e-6) + 1e-9, question.dim, count=1, device=device)
        self.network = Network.of(question, self.region.scale)
        self.extent = min(float(self.region.reach()[0]), reach_of_balls(question))  # no allowed change is longer
        boxless = self.extent < INF and not bool(torch.isfinite(self.region.reach()).all())
        self.hull = (self.extent / self.region.scale).cpu().numpy() * (1 + 1e-9) if boxless else None
        self.reach = self.extent * (1 + 1e-9)
        self.upper, self.start = upper, start
        self.witness: Witness | None = None
        self.trees = {k: RowTree(k, question.decision.rivals[k], self.nearest * (1 - 1e-9), ()) for k in range(question.rows)}
        self.nodes, self.begun = 0, time.perf_counter()
        self.memory = Memory()
        self.tight = False
        self.asked, self.asked_at = self.begun, 0  # when the last question was begun, and the cells before it

    @property
    def lower(self) -> float:
        return min(t.lower for t in self.trees.values())

    def credit(self, rows: Sequence[CertifiedRow]) -> None:
        """Take over what rows of another engine prove. Raises InputError where they are those of another decision."""
        rivals = tuple(int(r) for r in self.question.decision.rivals)
        if rows and tuple(row.rival for row in rows) != rivals:
            raise InputError(f"branch_radius: known rows against {[row.rival for row in rows]}; this decision has rivals {list(rivals)}.")
        for k, row in enumerate(rows):
            if row.lower > self.trees[k].lower:
                leaf = Leaf((), row.a[None], np.array([row.b]), row.radius, row.lower, slopes=row.slopes)
                self.trees[k] = RowTree(k, row.rival, row.lower, (leaf,))

    def run(self, end: float, most: float) -> BranchingResult:
        q = self.question
        zero = np.zeros(q.dim)
        if q.margins(zero)[0].min() <= 0 and violation(zero, q.parts) <= FEASIBILITY:
            return self._result(BranchingStop.CLOSED, at_start=True)
        if self.extent == INF:
            self.trees |= {t.row: t for t in standing_everywhere(q)}
        if self.lower == INF:
            return self._result(BranchingStop.CLOSED)
        schedule, tree = Schedule(), None
        first = radius = 1.0
        try:
            if self.upper == INF:
                self._descend(end)
            first = radius = self._first_radius()
            tree = self._plant(radius)
            while tree.worst < EASY and radius > max(1e-6 * first, self.nearest) and time.perf_counter() < end:
                radius *= BACK
                tree = self._plant(radius)
            while True:
                before = self.lower
                closed = self._ask(tree, schedule.quota, end, most)
                if closed:
                    self._credit(tree)
                    schedule.close(tree.radius, tree.nodes)
                else:
                    schedule.given_up.append((tree.radius, tree.nodes))
                goal = self._goal()
                if self.lower == INF or self.lower >= goal:
                    return self._result(BranchingStop.CLOSED)
                if time.perf_counter() >= end or self.nodes >= most:
                    self._credit(tree)
                    return self._result(BranchingStop.TIME if time.perf_counter() >= end else BranchingStop.NODES)
                if closed and (self._settled() or self.lower <= before):
                    met = min(self.upper, INF if self.witness is None else self.witness.upper) - self.lower <= self.tolerance
                    return self._result(BranchingStop.CLOSED if met else BranchingStop.UNRESOLVED)
                if not closed:
                    radius = min(schedule.after_giving_up(self.lower, tree.radius), goal)
                    if goal < self.reach and (tree.open <= RETREAT * schedule.expected(radius) or self._is_late(end, most)):
                        tree.retreat(radius)
                        continue
                elif goal < INF:
                    near = goal < self.reach  # a flip is known: far from any, radii grow in long steps, and each question is cheap
                    affordable = self._affordable(end, most) if near else INF
                    radius = schedule.after_closing(self.lower, goal, CAUTIOUS if near else BOLDEST, affordable)
                elif (radius := 2 * self.lower) > FARTHEST * first:
                    return self._result(BranchingStop.BEYOND)
                tree = self._plant(min(max(radius, self.lower * (1 + 1e-7)), max(goal, self.lower * (1 + 1e-7))))
        except KeyboardInterrupt:
            if tree is not None:
                self._credit(tree)
            return self._result(BranchingStop.INTERRUPTED)

    def _is_late(self, end: float, most: float) -> bool:
        """Is too little left of the budgets for another question to be begun?"""
        return end - time.perf_counter() <= LAST * (end - self.begun) or most - self.nodes <= LAST * most

    def _affordable(self, end: float, most: float) -> float:
        """The cells that the next question may have, for as much time each as the last question took."""
        left = end - time.perf_counter()
        pace = (time.perf_counter() - self.asked) / max(self.nodes - self.asked_at, 1)
        return SPEND * min(left / max(pace, 1e-9) if left < INF else INF, most - self.nodes)

    def _descend(self, end: float) -> None:
        """A first witness by repeated linearisation: most of the work of a search without one is to find its scale."""
        descent = Descent(self.question, Relaxation(self.question))
        for k in np.argsort(self.question.margins(np.zeros(self.question.dim))[0]):
            if time.perf_counter() >= end:
                return
            found = descent.start(int(k), INF if self.witness is None else self.witness.upper)
            if found is not None and (self.witness is None or found.upper < self.witness.upper):
                self.witness = found

    def _plant(self, radius: float) -> Tree:
        """The question at this radius, for the rows that are not known to stand within it."""
        radius = max(radius, self.nearest * (1 + 1e-6) + 1e-9)  # below, there is no allowed change
        rows = [k for k, t in self.trees.items() if t.lower < radius]
        self.asked, self.asked_at = time.perf_counter(), self.nodes
        tree = Tree(self.question, self.network, self.region, radius, rows, self.effort, self.memory, self.hull, self.tight)
        tree.plant()
        if not self.tight and tree.worst < HARD and self.region.p == INF and self.network.depth:
            self.tight = True
            return self._plant(radius)
        return tree

    def _goal(self) -> float:
        """The radius at which the question is the last one: just below the witness, or all of C. inf: there is neither."""
        known = min(self.upper, INF if self.witness is None else self.witness.upper)
        return min(known * (1 - self.tolerance), self.reach)

    def _settled(self) -> bool:
        """Is the lower bound that of an activation region solved exactly? Then asking again finds the same."""
        return any(
            leaf.lam is not None and leaf.lower < leaf.radius and leaf.lower <= self.lower
            for tree in self.trees.values()
            for leaf in tree.leaves
        )

    def _first_radius(self) -> float:
        goal = self._goal()
        if goal < INF:
            return goal
        if self.start:
            return self.start
        a, b = np.stack([self.question.linearised(np.zeros(self.question.dim), k)[0] for k in range(self.question.rows)]), None
        b = self.question.margins(np.zeros(self.question.dim))[0]
        slopes = np.asarray(self.question.norm.dual_value(a))
        linear = float(np.min(np.where(slopes > 0, b / np.maximum(slopes, 1e-300), INF)))
        return 2 * linear if np.isfinite(linear) else 1.0

    def _ask(self, tree: Tree, quota: int, end: float, most: float) -> bool:
        """Work on one question until it closes (True), outgrows its quota, or takes more than its share of what is left of the budgets."""
        now, before = time.perf_counter(), self.nodes
        late_at, last = (
            now + max(SHARE * (end - now), min(end - now, LEAST * (end - self.begun))),
            before + max(SHARE * (most - before), min(most - before, LEAST * most)),
        )
        quota = tree.nodes + quota if not self._is_late(end, most) else 1 << 60

        def late() -> bool:
            self.nodes = self.asked_at + tree.nodes
            if tree.witness is not None and (self.witness is None or tree.witness.upper < self.witness.upper):
                self.witness = tree.witness
            if self.progress is not None:
                self.progress(self.lower, tree.radius, self.nodes)
            return time.perf_counter() >= late_at or self.nodes >= last or tree.nodes > quota

        late()
        tree.pinch(late)
        while tree.open and not late():
            tree.step(late)
        late()
        return not tree.open

    def _credit(self, tree: Tree) -> None:
        """Take over what a question proved of each of its rows; open cells count by their rows."""
        tree.cut_short()
        if tree.witness is not None and (self.witness is None or tree.witness.upper < self.witness.upper):
            self.witness = tree.witness
        for k, book in tree.books.items():
            if book.open:
                continue  # interrupted before its cells came back to the queue
            leaves = tuple(replace(leaf, lower=INF) if self._covers_all(leaf) else leaf for leaf in book.leaves)
            lower = min(leaf.lower for leaf in leaves)
            if lower > self.trees[k].lower:
                self.trees[k] = RowTree(k, self.trees[k].rival, lower, leaves)

    def _covers_all(self, leaf: Leaf) -> bool:
        """Does the leaf say that no allowed change flips?"""
        return leaf.lower >= self.extent

    def _result(self, stop: BranchingStop, at_start: bool = False) -> BranchingResult:
        found, upper = self.witness, self.upper
        delta = np.full(self.question.dim, np.nan)
        if at_start:
            delta, upper = np.zeros(self.question.dim), 0.0
        elif found is not None and found.upper < upper:
            delta, upper = found.delta, found.upper
        lower = 0.0 if at_start else min(self.lower, upper)
        return BranchingResult(lower, upper, delta, stop, self.nodes, 0.0, tuple(self.trees.values()))
