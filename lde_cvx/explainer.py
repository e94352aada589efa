r"""The Lagrange dual explainer: one question, asked of one input or of a batch.

    v* = min ‖Wδ‖_p   s.t.   some m_k(δ) ≤ 0,   δ ∈ C

Per batch: the linearised programs (a local model), certified radii from minorant rows with their exact multipliers, witnesses, the validity of the
linearised claim, and one certificate per input, whose exact evaluation is the published lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array, Norm
from formulations.sets import ConvexSet, Everything
from lde_cvx.attribution import check_inputs, references_of, targets_of
from lde_cvx.confirm import confirmed
from lde_cvx.explanation import Explanation
from lde_cvx.inputs import Batch, check_inside, check_names, check_options, read_batch
from lde_cvx.linearised import Linearised, nearest_linearised
from lde_cvx.methods import DUAL, SEARCHES, known
from lde_cvx.model_files import checker_network
from lde_cvx.price_reading import BindingProgram, BoundaryAtWitness
from lde_cvx.progress import Progress, progress_bar, silent
from lde_cvx.reading import Reading
from lde_cvx.searching import SECONDS, binding_row, check_searchable, search_radii
from lde_cvx.second_order import check_order, with_second_order
from lde_cvx.sufficient import SufficientReason, sufficient_reason
from verification.attack import Budget, Witness, find_witness
from verification.certificate import Certificate, ModelRecord
from verification.checker import Verdict
from verification.decision import Decision
from verification.evidence import WitnessEvidence
from verification.lirpa import BoundEngine
from verification.model import decide, float64_copy
from verification.radii import CertifiedRadius
from verification.radius import certified_radius, dual_chain
from verification.validity import linear_validity

SOLVER = 1e-6  # relative accuracy of the linearised program's value: its validity is asked of the value less this much

Constraints = ConvexSet | Callable[[Array], ConvexSet] | None
Decide = Decision | Callable[[Array], Decision] | None


class LagrangeDualExplainer:
    """``lower ≤ min { ‖Wδ‖ : some m_k(δ) ≤ 0, δ ∈ C } ≤ upper``, with multipliers, scores S_i = λ|a_i|, a witness and a certificate.

    model        torch module (n, *shape) → (n, outputs); a float64 copy of it is explained
    norm         1, 2, "inf" or a `Norm`; constraints: a convex set, a function x0 → set, or None for all changes
    method       "crown", "crown-ibp", "ibp" or "alpha-crown" bound the network, and "dual-network" where it is a chain of affine layers and ReLUs; "branching" goes on
                 from CROWN by branch and bound for `time_limit` (10) seconds an input, splitting ReLUs in such chains, and inputs elsewhere; "exact" does so until
                 the bracket closes, on such chains alone; "linear" certifies nothing and is quick
    target       explain the flip towards this class alone; None: whichever rival is nearest
    order        2 adds the quadratic model's radius and its validity (`Explanation.quadratic`); temperature: of the softened ReLUs whose Hessian it takes
    decision     a `Decision`, or a function outputs (m,) → `Decision`, instead of "the predicted class stays ahead"
    time_limit   seconds for the witness search of a batch, per convex program, and per input for branching
    jobs         processes that branching uses, an input each
    rederive     publish only what level B of the checker derives again from the weights (`Certificate.settled`): a bound of the real-valued network, rounding and
                 all, and a file that level B calls valid where it covers the layers. It costs about what the check costs, up to a minute for large trees

    A larger set never has a larger v*. `lower` has that law by itself where "branching" or "exact" closed its bracket, up to their tolerance; other bounds have
    it along chains of sets through `nested_radii`.
    Raises InputError on an unknown method, norm or order, and on a model with weights that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Norm | float | str = 2,
        constraints: Constraints = None,
        method: str = "crown",
        order: int = 1,
        target: int | None = None,
        decision: Decide = None,
        time_limit: float | None = None,
        device: str | torch.device | None = None,
        seed: int = 0,
        feature_names: Sequence[str] | None = None,
        temperature: float | None = None,
        jobs: int = 1,
        rederive: bool = False,
    ) -> None:
        known(method)
        check_order(order, temperature)
        if target is not None and decision is not None:
            raise InputError(f"target={target} and a decision were both given; a decision names its own rivals, leave one of the two out.")
        check_options(target=target, decision=decision, constraints=constraints, time_limit=time_limit, jobs=jobs, seed=seed)
        self.model = float64_copy(model, device)
        self.norm, self.constraints, self.method, self.order, self.temperature = Norm.of(norm), constraints, method, order, temperature
        self.target, self.decision, self.time_limit, self.device, self.seed = target, decision, time_limit, device, seed
        self.jobs, self.rederive = jobs, rederive
        self.feature_names = None if feature_names is None else tuple(feature_names)
        self._identity = ModelRecord.of(model)
        self._engines: dict[tuple[int, ...], BoundEngine] = {}

    # ---- the question -----------------------------------------------------------------------------------------------------

    def explain(self, x0: Tensor | ArrayLike, *, quiet: bool = False, progress: Progress | None = None) -> Any:
        """One `Explanation` for one input (*shape) or (1, *shape); a list of them for a batch (n, *shape), with a progress bar unless `quiet`.

        `progress`, when given, is called with (stage, done, in all) in place of the bar.
        Raises InputError on a shape the model does not take, NaN, an input outside C, an empty C, a decision that does not stand, and a layer
        that cannot be bounded.
        """
        batch = read_batch(self.model, x0, self.place)
        check_names(self.feature_names, batch)
        decisions = self.decisions_of(batch)
        if progress is not None:
            explanations = self.explain_batch(batch, decisions, progress)
        else:
            with progress_bar(quiet or batch.single) as tell:
                explanations = self.explain_batch(batch, decisions, tell)
        return explanations[0] if batch.single else explanations

    def attribute(self, inputs: Tensor, target: Any = None, *, baselines: float | Tensor | None = None) -> Tensor:
        """S = λ|a| as a tensor like `inputs` (n, *shape): captum's call. With `baselines`, contributions λ a_i (x_i − baseline_i), signed.

        target: None or the predicted class explains the decision against its nearest rival, another class the flip towards it; an int, or one
        per input. baselines: a number, or a tensor that broadcasts to the inputs; what `Explanation.contributions` says of them holds here.
        Where no allowed change flips the decision, the answer is 0. Raises InputError on a target or baselines that do not fit.
        """
        batch = read_batch(self.model, check_inputs(inputs), self.place)
        references = None if baselines is None else references_of(baselines, batch.x)
        towards = [None] * len(batch) if target is None else targets_of(batch.outputs, target)
        found = self.explain_batch(batch, self.decisions_of(batch, towards), silent)
        maps = [e.scores if references is None else e.contributions(references[i]) for i, e in enumerate(found)]
        answer = torch.as_tensor(np.stack(maps).reshape(tuple(inputs.shape)), device=inputs.device)
        return answer.to(inputs.dtype if inputs.is_floating_point() else torch.float64)

    def sufficient_reason(self, x0: Tensor | ArrayLike, *, time_limit: float | None = None) -> SufficientReason:
        """A ⊂ features with { δ ∈ C : δ_i = 0 outside A, some m_k(δ) ≤ 0 } = ∅, certified, grown in the multipliers' order; the rest decides.

        One input (*shape). Every other feature has a counterexample, or stays unknown; with method "branching" or "exact" it is searched until one of
        the two is found, within the explainer's `time_limit` a feature. `time_limit`: seconds in all; what it cuts off stays unknown.
        The set grows by the bounds of "ibp", "crown-ibp" or "alpha-crown" where that is the method, else by CROWN's: "dual-network" then adds none to it, and
        only certifies the whole.
        Raises InputError as `explain` does, and on a feature that the constraints leave unbounded.
        """
        return sufficient_reason(self, x0, time_limit=time_limit)

    @property
    def place(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device(self.device or "cpu"))

    def decisions_of(self, batch: Batch, towards: Sequence[int | None] | None = None) -> list[Decision]:
        """One standing decision per input; `towards` overrides the explainer's target, and there the predicted class means its nearest rival."""
        outputs = batch.outputs.cpu().numpy()
        if self.decision is not None:
            given = self.decision
            return decide(batch.outputs, given if isinstance(given, Decision) else [given(y) for y in outputs])
        chosen = decide(batch.outputs, None)
        targets = [self.target] * len(batch) if towards is None else towards
        for i, t in enumerate(targets):
            winner = int(outputs[i].argmax())
            if t is not None and not (towards is not None and t == winner):
                chosen[i] = Decision.rival(winner, t, outputs.shape[1])
        return chosen

    # ---- the answer -------------------------------------------------------------------------------------------------------

    def explain_batch(self, batch: Batch, decisions: Sequence[Decision], tell: Progress) -> list[Explanation]:
        """All inputs at once; inputs whose function of constraints returns another set are grouped by set."""
        sets = [self.set_of(x) for x in batch.flat]
        for i, (C, x) in enumerate(zip(sets, batch.flat, strict=True)):
            check_inside(C, x, i)
        out: list[Explanation | None] = [None] * len(batch)
        for C, index in _groups(sets):
            part = Batch(batch.x[index], batch.outputs[index], batch.single)
            for i, e in zip(index, self._explain_group(part, [decisions[i] for i in index], C, tell), strict=True):
                out[i] = e
        return [e for e in out if e is not None]

    def set_of(self, x: Array) -> ConvexSet | None:
        if self.constraints is None or isinstance(self.constraints, ConvexSet):
            return self.constraints
        C = self.constraints(x)
        if not isinstance(C, ConvexSet):
            raise InputError(f"constraints: the function returned {type(C).__name__} instead of a convex set.")
        return C

    def _explain_group(self, batch: Batch, decisions: list[Decision], C: ConvexSet | None, tell: Progress) -> list[Explanation]:
        begun, n = time.monotonic(), len(batch)
        layers = check_searchable(self.model, batch.shape, C, self.method) if self.method in SEARCHES else []
        if self.method == DUAL:
            dual_chain(self.engine(batch.shape), self.norm, C)  # refused before the work, not after it
        linear = nearest_linearised(self.model, batch, decisions, self.norm, C, self.time_limit, tell)
        witnesses = find_witness(
            self.model, batch.x, self.norm, C, decisions=decisions, seed=self.seed, device=self.device,
            budget=Budget(seconds=self.time_limit), progress=lambda done, total: tell("witnesses", done, total),
        )  # fmt: skip
        nearest: Sequence[Witness] = [confirmed(self.model, batch.x[i], decisions[i], self.norm, C, witnesses[i]) for i in range(n)]
        radii: Sequence[CertifiedRadius | None] = [None] * n
        if self.method != "linear":
            rows = certified_radius(
                self.engine(batch.shape), batch.x, self.norm, C, decisions=decisions, method="crown" if self.method in SEARCHES else self.method,
                upper=witnesses.upper, seconds=self.time_limit, progress=lambda done, total: tell("certified radii", done, total),
            )  # fmt: skip
            radii = rows.items
            if self.method in SEARCHES:
                limit = self.time_limit or (SECONDS if self.method == "branching" else None)
                radii, nearest = search_radii(
                    self.model, batch.x, decisions, self.norm, C, rows.items, nearest, layers, engine=self.engine(batch.shape), seconds=limit,
                    device=self.device, jobs=self.jobs,
                    tell=lambda done, total: tell("branching", done, total),
                )  # fmt: skip
        found = []
        for i in range(n):
            found.append(self._explanation(batch, i, decisions[i], C, linear[i], nearest[i], radii[i], (time.monotonic() - begun) / n))
            tell("certificates", i + 1, n)
        return with_second_order(self.model, batch.x, found, C, self.temperature) if self.order == 2 else found

    def _explanation(
        self, batch: Batch, i: int, decision: Decision, C: ConvexSet | None, linear: Linearised, witness: Witness, radius: CertifiedRadius | None,
        seconds: float,
    ) -> Explanation:  # fmt: skip
        x0, outputs = batch.x[i].cpu().numpy(), batch.outputs[i].cpu().numpy()
        point = None if np.isinf(witness.upper) else x0 + witness.delta.reshape(x0.shape)
        certificate, lower, upper = None, 0.0, float(witness.upper)
        if radius is not None:
            certificate = Certificate.build(
                model=self._identity, x0=x0, outputs=outputs, decision=decision, norm=self.norm, parts=(C or Everything()).parts(x0.size),
                evidence=radius.evidence(), witness=self._evidence(point, x0, witness), method=self.method, seed=self.seed,
            )  # fmt: skip
            network = checker_network(self.model, tuple(x0.shape)) if self.rederive else None
            certificate = certificate if network is None else certificate.settled(network)
            lower, upper = certificate.lower, certificate.upper
            row = binding_row(radius, witness) if self.method in SEARCHES else radius.nearest
            binding, a, b, target = row.solution, row.a, row.b, row.rival
        else:
            binding, a, b, target = linear.solution, linear.a, linear.b, linear.rival
        validity, fraction = linear_validity(linear.radius * (1 - SOLVER), lower, upper)
        program = None if binding is None else BindingProgram.of(self.norm, a, b, C, x0, binding)
        reading = Reading.of(binding, lower, certifies=radius is not None)
        scores = program.margin_multiplier * np.abs(a) if program is not None and reading.has_lambda else np.zeros(x0.size)
        return Explanation(
            x0=x0, norm=self.norm, decision=decision, method=self.method, outputs=outputs, lower=lower, upper=upper, target=target,
            scores=scores.reshape(x0.shape), multipliers={} if binding is None else dict(binding.multipliers),
            prices=dict(binding.prices) if binding is not None and reading.has_lambda else {}, witness=point, verdict=Verdict.of(lower, upper), certificate=certificate,
            linear_radius=linear.radius, linear_validity=validity[0], linear_certified_fraction=float(fraction[0]), seconds=seconds,
            feature_names=self.feature_names, binding=program,
            boundary=None if point is None else BoundaryAtWitness(self.model, batch.x[i], witness.delta, self.norm, C, decision, self.seed),
        )  # fmt: skip

    def _evidence(self, point: Array | None, x0: Array, witness: Witness) -> WitnessEvidence | None:
        if point is None:
            return None
        with torch.no_grad():
            outputs = self.model(torch.as_tensor(point, device=self.place)[None])[0]
        return WitnessEvidence(point.ravel() - x0.ravel(), outputs.cpu().numpy(), int(witness.rival))

    def engine(self, shape: tuple[int, ...]) -> BoundEngine:
        """The network prepared for bounds, once per input shape."""
        if shape not in self._engines:
            self._engines[shape] = BoundEngine(self.model, shape, self.device)
        return self._engines[shape]


def _groups(sets: Sequence[ConvexSet | None]) -> Iterator[tuple[ConvexSet | None, list[int]]]:
    """Positions by set, in order of first appearance."""
    places: dict[int, list[int]] = {}
    for i, C in enumerate(sets):
        places.setdefault(id(C), []).append(i)
    for index in places.values():
        yield sets[index[0]], index
