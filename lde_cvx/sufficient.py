r"""Which features a decision needs: a sufficient reason, with proofs for the features that it leaves out.

A set A of features is *invariant* when no allowed change of A alone flips the decision:  { δ ∈ C : δ_i = 0 for i ∉ A, some m_k(δ) ≤ 0 } = ∅,  certified.
The rest is then a sufficient reason: while those features stay, the others may move anywhere in their ranges. It is minimal where each of them has
a counterexample: an allowed change of A and that feature that flips. What has neither proof nor counterexample stays unknown, and in the reason.

A grows in the order of S_i times the range of feature i, S = λ|a| (what a feature could take from the margin, to first order), a batch of bound passes at a time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from formulations.errors import InputError
from formulations.norms import INF, Array, Norm
from formulations.pieces import BoxPiece, Part, bounding_box
from formulations.programs import relative_parts
from formulations.sets import ConvexSet, Frozen
from formulations.support import Region
from lde_cvx.confirm import confirmed
from lde_cvx.inputs import Batch, check_inside, read_batch
from lde_cvx.methods import SEARCHES
from lde_cvx.progress import silent
from lde_cvx.searching import SECONDS, check_searchable
from verification.attack import Budget, Witness, WitnessStatus, find_witness
from verification.branching import branch_radius
from verification.branching.inputs import split_inputs
from verification.checker import Verdict
from verification.decision import Decision
from verification.lirpa import BoundMethod

if TYPE_CHECKING:
    from lde_cvx.explainer import LagrangeDualExplainer
    from verification.certificate import Certificate

PASSES = 400, 60  # forward and backward: of the search for one counterexample
MANY = 64  # sets of features that are bounded in one pass
Mask = NDArray[np.bool_]


class Relevance(Enum):
    """What is known of a feature; the value is the sentence for reports."""

    INVARIANT = "May move anywhere in its range, together with the other invariant features: no flip, certified."
    COUNTERFACTUAL = "Has to stay: an allowed change of it and of invariant features flips the decision, and an input shows it."
    UNKNOWN = "Neither proved nor refuted: keep it, or ask method='branching' or for more time."


@dataclass(frozen=True, eq=False)
class SufficientReason:
    """A set of features that decides, whatever the others do in their ranges.

    relevance        per feature, in flat order
    counterexamples  {flat feature: allowed input that flips, where only that feature and invariant ones differ from x0}
    certificate      that no allowed change of the invariant features flips; None where there is none of them, or where only the bound pass says so
    """

    x0: Array
    relevance: tuple[Relevance, ...]
    counterexamples: dict[int, Array]
    certificate: Certificate | None
    seconds: float
    feature_names: Sequence[str] | None = field(default=None, repr=False)

    @property
    def free(self) -> Mask:
        """Which features are invariant, in the input's shape."""
        return np.array([r is Relevance.INVARIANT for r in self.relevance]).reshape(self.x0.shape)

    @property
    def reason(self) -> tuple[int, ...]:
        """The flat features that have to stay, as far as is known."""
        return tuple(int(i) for i in np.flatnonzero(~self.free))

    @property
    def is_minimal(self) -> bool:
        """Has every feature of the reason a counterexample? Then none of them alone can be left out."""
        return Relevance.UNKNOWN not in self.relevance

    def count(self, relevance: Relevance) -> int:
        return sum(r is relevance for r in self.relevance)

    def names(self) -> list[str]:
        """The reason in words."""
        shape = self.x0.shape
        return [
            str(self.feature_names[i]) if self.feature_names is not None else f"x[{', '.join(map(str, np.unravel_index(i, shape)))}]"
            for i in self.reason
        ]

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(r)} {r.name.lower()}" for r in Relevance)
        return f"SufficientReason({counts}; {'minimal' if self.is_minimal else 'perhaps not minimal'})"


def sufficient_reason(explainer: LagrangeDualExplainer, x0: Any, *, time_limit: float | None = None) -> SufficientReason:
    """`LagrangeDualExplainer.sufficient_reason`."""
    if time_limit is not None and (isinstance(time_limit, bool) or not time_limit > 0):
        raise InputError(f"time_limit={time_limit!r:.60} must be positive; leave it out for no limit.")
    begun = time.monotonic()
    batch = read_batch(explainer.model, x0, explainer.place)
    if not batch.single:
        raise InputError(f"sufficient_reason: got {len(batch)} inputs; ask about one at a time.")
    flat = batch.flat[0]
    C = explainer.set_of(flat)
    check_inside(C, flat, 0)
    if C is None:
        raise InputError("sufficient_reason: without constraints no feature has a range to move in; give constraints, such as a Box.")
    (decision,) = explainer.decisions_of(batch)
    search = _Search(explainer, batch, C, decision, INF if time_limit is None else begun + time_limit)
    search.grow()
    search.refute()
    relevance = tuple(
        Relevance.INVARIANT if f else Relevance.COUNTERFACTUAL if i in search.flips else Relevance.UNKNOWN
        for i, f in enumerate(search.free)
    )
    flips = {i: v for i, v in search.flips.items() if not search.free[i]}
    return SufficientReason(
        batch.x[0].cpu().numpy(), relevance, flips, search.certificate(), time.monotonic() - begun, explainer.feature_names
    )


class _Search:
    """Grows `free` by proofs, then looks for flips with one feature more."""

    def __init__(self, explainer: LagrangeDualExplainer, batch: Batch, C: ConvexSet, decision: Decision, end: float) -> None:
        self.explainer, self.batch, self.C, self.decision, self.end = explainer, batch, C, decision, end
        flat = batch.flat[0]
        self.dim = len(flat)
        self.parts = tuple(p.at(0) for p in relative_parts(C, self.dim, flat[None]))
        self.lo, self.hi = bounding_box(self.parts, self.dim)
        endless = np.flatnonzero(~np.isfinite(self.hi - self.lo))
        if len(endless):
            raise InputError(
                f"sufficient_reason: feature {endless[0]} has no range to move in; bound it by the constraints, such as a Box."
            )
        self.reach = float(np.maximum(np.abs(self.lo), np.abs(self.hi)).max(initial=0.0)) * (1 + 1e-9) + 1e-9
        # many sets to a pass: CROWN stands for "dual-network" too, whose certificate is never below it, and would have to be trained for each set
        self.method = BoundMethod.of(explainer.method if explainer.method in ("ibp", "crown-ibp", "alpha-crown") else "crown")
        self.engine = explainer.engine(batch.shape)
        self.free: Mask = (self.lo == 0) & (self.hi == 0)
        (self.whole,) = self._asking(C, explainer.method if explainer.method not in SEARCHES else "crown").explain_batch(
            batch, [decision], silent
        )
        self.flips: dict[int, Array] = {}

    def proves(self, masks: Sequence[Mask]) -> list[bool]:
        """For each set of features: do the bounds exclude a flip by its allowed changes?"""
        out: list[bool] = []
        for start in range(0, len(masks), MANY):
            some = np.stack(masks[start : start + MANY])
            n = len(some)
            moving = BoxPiece(np.where(some, self.lo, 0.0), np.where(some, self.hi, 0.0))
            region = Region.build(
                Norm("inf"), (*self.parts, Part("free", moving, "change")), self.reach, self.dim, count=n, device=self.batch.x.device
            )
            Q = torch.as_tensor(self.decision.rows, dtype=torch.float64, device=region.lo.device).expand(n, -1, -1)
            s = torch.as_tensor(self.decision.shifts, dtype=torch.float64, device=region.lo.device).expand(n, -1)
            lower = self.engine.rows(self.batch.x.expand(n, *self.batch.shape), Q, s, region, self.method).lower
            out += (lower > 0).all(1).tolist()
        return out

    def grow(self) -> None:
        if self.whole.verdict is Verdict.CERTIFIED_UNREACHABLE:
            self.free[:] = True
            return
        gain = self.whole.scores.ravel() * np.maximum(np.abs(self.lo), np.abs(self.hi))
        rest = [int(i) for i in np.argsort(gain, kind="stable") if not self.free[i]]
        while rest and time.monotonic() < self.end:
            taken = self._longest(rest)
            self.free[rest[:taken]] = True
            rest = rest[taken:]
            rest = [i for i, good in zip(rest, self.proves([self._with([i]) for i in rest]), strict=True) if good] if rest else []

    def _longest(self, rest: list[int]) -> int:
        """How many of the first features of `rest` can be added at once: a section search, since fewer features flip less."""
        known, most = 0, len(rest)
        while known < most:
            lengths = sorted({int(v) for v in np.linspace(known + 1, most, min(MANY, most - known))})
            good = self.proves([self._with(rest[:k]) for k in lengths])
            bad = next((k for k, g in zip(lengths, good, strict=True) if not g), most + 1)
            known, most = max([known, *(k for k in lengths if k < bad)]), bad - 1
        return known

    def _with(self, features: Sequence[int]) -> Mask:
        mask = self.free.copy()
        mask[list(features)] = True
        return mask

    def refute(self) -> None:
        """A flip for every feature that is left, or with a complete method a proof that there is none."""
        complete = self.explainer.method in SEARCHES
        chain = complete and check_searchable(self.explainer.model, self.batch.shape, self.C, self.explainer.method) is not None
        gain = self.whole.scores.ravel() * np.maximum(np.abs(self.lo), np.abs(self.hi))
        for i in [int(i) for i in np.argsort(-gain, kind="stable") if not self.free[i]]:  # the likeliest first
            left = self.end - time.monotonic()
            if left <= 0:
                return
            allowed = self.C & Frozen(np.flatnonzero(~self._with([i])), self.dim, name="frozen")
            e = self.explainer
            budget = Budget(*PASSES, seconds=None if left == INF else left)
            found = find_witness(
                e.model, self.batch.x, e.norm, allowed, decisions=[self.decision], seed=e.seed, device=e.device, budget=budget
            )
            if np.isfinite(found.upper[0]):
                self._keep(i, found[0], allowed)
            if complete and i not in self.flips:
                seconds = e.time_limit or (SECONDS if e.method == "branching" else INF)
                limit = min(seconds, self.end - time.monotonic())
                left_over = None if limit == INF else max(limit, 0.0)
                if not chain:
                    engine, x = e.engine(self.batch.shape), self.batch.x[0]
                    self.free[i] = split_inputs(engine, x, self.decision, e.norm, allowed, time_limit=left_over).lower == INF
                    continue
                result = branch_radius(e.model, self.batch.x[0], self.decision, e.norm, allowed, time_limit=left_over, device=e.device)
                if result.lower == INF:
                    self.free[i] = True
                elif np.isfinite(result.delta).all():
                    self._keep(i, replace(found[0], status=WitnessStatus.FOUND, delta=result.delta, upper=result.upper), allowed)

    def _asking(self, constraints: ConvexSet, method: str) -> LagrangeDualExplainer:
        """The explainer with another set and method."""
        asked = copy.copy(self.explainer)
        asked.constraints, asked.method, asked.order = constraints, method, 1
        return asked

    def _keep(self, i: int, witness: Witness, allowed: ConvexSet) -> None:
        """A counterexample, if the network flips at the very input."""
        e, x = self.explainer, self.batch.x[0]
        sure = confirmed(e.model, x, self.decision, e.norm, allowed, witness)
        if sure.upper < INF:
            self.flips[i] = x.cpu().numpy() + sure.delta.reshape(self.batch.shape)

    def certificate(self) -> Certificate | None:
        """That the invariant features may move: the same explainer over C with all others frozen."""
        if not self.free.any():
            return None
        if self.free.all() and self.whole.verdict is Verdict.CERTIFIED_UNREACHABLE:
            return self.whole.certificate
        allowed = self.C & Frozen(np.flatnonzero(~self.free), self.dim, name="frozen")
        asked = self._asking(allowed, "crown" if self.explainer.method == "linear" else self.explainer.method)
        (found,) = asked.explain_batch(self.batch, [self.decision], silent)
        return found.certificate if found.verdict is Verdict.CERTIFIED_UNREACHABLE else None


__all__ = ["Relevance", "SufficientReason", "sufficient_reason"]
