r"""Rate–distortion explanations: the smallest part of an input that keeps a network's output, the rest replaced at random.

    "lagrangian"    min D(s) + f(x)²·μ·mean(s)      s ∈ [0, 1]^d                 for every penalty μ; the map is their mean
    "constrained"   min D(s)                         s ∈ [0, 1]^d, Σ s ≤ k        RC-RDE, by Frank–Wolfe
    "multi-rate"    the mean of the "constrained" maps over several rates k       MR-RDE, all rates in lockstep
    "ordering"      min Σ_k D(S p_k)                 S doubly stochastic          Ord-RDE: p_k has its k ones last; the map is S·(0, …, 1)

D is the distortion of one output (see `distortion`, with its factor ½). Relevance is in [0, 1] and has no sign.
Sources: Macdonald, Wäldchen, Hauch, Kutyniok (2019); Macdonald, Besançon, Pokutta, "Interpretable neural networks with Frank–Wolfe" (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.frank_wolfe import Birkhoff, FrankWolfeResult, Gradient, SparseBox, Step, Variant, gradient_of, minimise
from formulations.given import array, whole
from formulations.norms import Array
from formulations.projected_gradient import minimise_over_box
from formulations.quasi_newton import minimise_by_models
from lde_cvx.attribution import check_inputs, targets_of
from lde_cvx.inputs import read_batch
from lde_cvx.rate_distortion.distortion import MODES, Background, Distortion, distortion_of
from verification.model import float64_copy

KINDS = ("lagrangian", "constrained", "multi-rate", "ordering")
MODELS = "second-order"
_CHUNK = 64  # candidates whose distortion is evaluated at once


@dataclass(frozen=True, eq=False)
class RateDistortionExplanation:
    """One input explained. Arrays in the input's shape; B candidates: one per penalty or rate.

    map         relevance in [0, 1]: the mean of `maps`, or S·(0, …, 1)
    maps        (B, *shape) solutions s; of "ordering" S p_k at `rates`
    rates       (B,) k, of "lagrangian" Σ s as it came out
    distortions (B,) D(s), with the factor ½
    dual_gaps   (B,) Frank–Wolfe gap ⟨∇D, s − v⟩: 0 at stationary points. D is not convex, so it bounds nothing
    order       (d,) features, most relevant first (equal relevance by position)
    matrix      S (d, d) of "ordering", else None
    gradients, evaluations, minimisations   calls of ∇D, of D and of the linear minimiser: for all candidates at once, of "ordering" one per rate
    """

    map: Array
    maps: Array
    rates: Array
    distortions: Array
    dual_gaps: Array
    order: Array
    matrix: Array | None
    kind: str
    target: int
    gradients: int
    evaluations: int
    minimisations: int
    iterations: int
    seconds: float


class RateDistortion:
    """Which part s of an input keeps output `target`, in one of four kinds (see the module).

    model       torch module (n, *shape) → (n, outputs); a float64 copy is explained. The output is the raw score, not a probability
    rate        k of "constrained" (default: an eighth of the features); rates: those of "multi-rate" (default: 8 from a sixteenth to a half) and those
                summed by "ordering" (default: all, 1 … d); penalties: μ of "lagrangian"
    distortion  "diagonal", "low-rank" (`rank`), "full", "sampling" (`samples`) or "exact" (one hidden layer)
    background  what replaces the rest (see `Background`); None: uniform between the input's least and largest value
    variant     "second-order" (see `formulations.quasi_newton`: the fewest gradients), or Frank–Wolfe's "plain", "away", "lazy", "lazy-away" with
                step "adaptive", "monotone" or "open"; "ordering" is plain with open steps
    batch       rates drawn per step of "ordering" (stochastic Frank–Wolfe; default a tenth of them, at least 8); 0: all, deterministic
    iterations  at most; default 100. tolerance: on the Frank–Wolfe gap
    Raises InputError on anything unknown, and on rates outside [0, d].
    """

    def __init__(
        self,
        model: nn.Module,
        kind: Literal["lagrangian", "constrained", "multi-rate", "ordering"] = "constrained",
        *,
        rate: float | None = None,
        rates: Sequence[float] | None = None,
        penalties: Sequence[float] = (0.1, 0.5, 1.0),
        distortion: Literal["diagonal", "low-rank", "full", "sampling", "exact"] = "diagonal",
        background: Background | None = None,
        rank: int = 30,
        samples: int = 64,
        variant: Variant | str = MODELS,
        step: Step | str = Step.ADAPTIVE,
        batch: int | None = None,
        iterations: int | None = None,
        tolerance: float = 1e-7,
        target: int | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"kind={kind!r} is not known; use one of {', '.join(KINDS)}.")
        if distortion not in MODES:
            raise InputError(f"distortion={distortion!r} is not known; use one of {', '.join(MODES)}.")
        for name, value, least in (("iterations", iterations, 1), ("rank", rank, 1), ("samples", samples, 2), ("batch", batch, 0)):
            if value is not None and whole(name, value) < least:
                raise InputError(f"{name}={value} must be at least {least}.")
        for name, values in (("rate", None if rate is None else [rate]), ("rates", rates), ("penalties", penalties)):
            if values is not None and (array(name, values).ndim != 1 or not len(values)):
                raise InputError(f"{name}={values!r} must be a list of numbers, at least one.")
        if min(penalties) < 0:
            raise InputError(f"penalties={list(penalties)} must be numbers ≥ 0.")
        self.variant = None if variant == MODELS else _member(Variant, "variant", variant, MODELS)
        self.step = _member(Step, "step", step)
        self.model, self.kind, self.rate, self.rates, self.penalties = float64_copy(model, device), kind, rate, rates, tuple(penalties)
        self.distortion, self.background, self.rank, self.samples = distortion, background, whole("rank", rank), whole("samples", samples)
        self.batch, self.tolerance, self.target, self.seed = batch, tolerance, target, seed
        self.iterations = 100 if iterations is None else whole("iterations", iterations)

    # ---- questions --------------------------------------------------------------------------------------------------------

    def explain(self, x0: Tensor | ArrayLike) -> Any:
        """One record for one input (*shape); a list of them for a batch (n, *shape).

        Raises InputError on NaN, a shape that the model does not take, a target that is not one of its outputs, a layer without a rule, and a model
        that gives no gradient.
        """
        batch = read_batch(self.model, x0, self._place)
        records = [self._explain(x, y, self.target) for x, y in zip(batch.x, batch.outputs, strict=True)]
        return records[0] if batch.single else records

    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        """The maps as a tensor like `inputs` (n, *shape). target: an int, one per input, or None for the explainer's own, else the predicted class."""
        batch = read_batch(self.model, check_inputs(inputs), self._place)
        chosen = targets_of(batch.outputs, target, self.target)
        maps = [self._explain(x, y, t).map for x, y, t in zip(batch.x, batch.outputs, chosen, strict=True)]
        out = torch.as_tensor(np.stack(maps).reshape(tuple(inputs.shape)), device=inputs.device)
        return out.to(inputs.dtype if inputs.is_floating_point() else torch.float64)

    def distortion_at(self, x0: Tensor | ArrayLike, target: int | None = None) -> Distortion:
        """D of one input, as the explainer minimises it: (B, d) → (B,)."""
        batch = read_batch(self.model, x0, self._place)
        if not batch.single:
            raise InputError(f"distortion_at: got a batch of {len(batch)} inputs; give one.")
        return self._distortion(batch.x[0], self._output(batch.outputs[0], self.target if target is None else target))

    # ---- one input --------------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _output(self, y: Tensor, target: int | None) -> int:
        return targets_of(y[None], target)[0]

    def _distortion(self, x: Tensor, output: int) -> Distortion:
        background = self.background
        if background is None:
            low, high = float(x.min()), float(x.max())
            if not low < high:
                raise InputError(f"input: every value is {low:g}, so there is no range to draw replacements from; pass background=.")
            background = Background.uniform(low, high, x.numel())
            if self.distortion == "exact":
                background = Background.gaussian(background.mean, background.variance)
        return distortion_of(
            self.distortion, self.model, x, output, background, rank=self.rank, samples=self.samples, seed=self.seed
        )  # fmt: skip

    def _explain(self, x: Tensor, y: Tensor, target: int | None) -> RateDistortionExplanation:
        output = self._output(y, target)
        D = _in_chunks(self._distortion(x, output))
        if self.kind == "ordering":
            return self._ordering(x, D, output)
        d = x.numel()
        if self.kind == "lagrangian":
            weights = torch.tensor(self.penalties, dtype=x.dtype, device=x.device) * float(y[output]) ** 2

            def penalised(s: Tensor) -> Tensor:
                return D(s) + weights * s.mean(1)

            start = torch.full((len(weights), d), 0.25, dtype=x.dtype, device=x.device)
            result = minimise_over_box(gradient_of(penalised), penalised, start, steps=self.iterations, tolerance=self.tolerance)
            with torch.no_grad():
                distortions = D(result.point)
            return self._record(x, output, result, result.point, result.point.sum(1), distortions, result.dual_gap)
        rates = self._rates(d, x)
        start = torch.zeros(len(rates), d, dtype=x.dtype, device=x.device)
        polytope, slopes, steps = SparseBox(rates), gradient_of(D), self.iterations
        if self.variant is None:
            result = minimise_by_models(slopes, polytope, start, function=D, steps=steps, tolerance=self.tolerance)
        else:
            result = minimise(
                slopes, polytope, start, function=D, variant=self.variant, step=self.step, steps=steps, tolerance=self.tolerance
            )
        return self._record(x, output, result, result.point, rates, result.value, result.dual_gap)

    def _rates(self, d: int, like: Tensor) -> Tensor:
        if self.kind == "constrained":
            chosen: Sequence[float] = [max(1, d // 8) if self.rate is None else self.rate]
        elif self.rates is None:
            chosen = range(1, d + 1) if self.kind == "ordering" else sorted({max(1, round(d * j / 16)) for j in range(1, 9)})
        else:
            chosen = self.rates
        out = torch.tensor([float(k) for k in chosen], dtype=like.dtype, device=like.device)
        if not len(out) or bool(((out < 0) | (out > d) | ~torch.isfinite(out)).any()):
            raise InputError(f"rate: {[float(k) for k in chosen][:8]} must lie between 0 and the input's {d} features.")
        return out

    def _record(
        self, x: Tensor, output: int, result: FrankWolfeResult, s: Tensor, rates: Tensor, distortions: Tensor, gaps: Tensor
    ) -> RateDistortionExplanation:
        relevance = s.mean(0)
        return RateDistortionExplanation(
            _array(relevance.reshape(x.shape)), _array(s.reshape(-1, *x.shape)), _array(rates), _array(distortions), _array(gaps), _order(relevance),
            None, self.kind, output, result.gradients, result.evaluations, result.minimisations, result.iterations, result.seconds,
        )  # fmt: skip

    def _ordering(self, x: Tensor, D: Distortion, output: int) -> RateDistortionExplanation:
        d = x.numel()
        rates = self._rates(d, x).long()
        if bool((rates < 1).any()):
            raise InputError("rates: an ordering has rates of at least 1.")
        count = {"gradients": 0}
        slopes = gradient_of(D)

        def gradients_at(S: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
            """Σ_k D(S p_k) over the chosen rates, and its derivative Σ_k ∇D(S p_k) p_kᵀ."""
            values, g = slopes(_last_columns(S.reshape(d, d), chosen))
            count["gradients"] += len(chosen)
            at = torch.zeros(d + 1, d, dtype=S.dtype, device=S.device).index_add(0, chosen, g)  # row k: the gradient at rate k
            return values.sum()[None], torch.flip(torch.flip(at, [0]).cumsum(0), [0])[1:].flip(0).T.reshape(
                1, -1
            )  # column j: rates k ≥ d − j

        def all_rates(S: Tensor) -> tuple[Tensor, Tensor]:
            return gradients_at(S, rates)

        size = max(8, len(rates) // 10 + 1) if self.batch is None else self.batch
        oracle: Gradient = all_rates
        if 0 < size < len(rates):
            generator = torch.Generator().manual_seed(self.seed)

            def drawn(S: Tensor) -> tuple[Tensor, Tensor]:
                pick = torch.randperm(len(rates), generator=generator)[:size].to(rates.device)
                value, slope = gradients_at(S, rates[pick])
                return value * (len(rates) / size), slope * (len(rates) / size)

            oracle = drawn
        start = torch.eye(d, dtype=x.dtype, device=x.device).reshape(1, -1)
        result = minimise(oracle, Birkhoff(d), start, step=Step.OPEN, steps=self.iterations, tolerance=self.tolerance, report=all_rates)
        S = result.point.reshape(d, d)
        relevance = S @ torch.linspace(0.0, 1.0, d, dtype=x.dtype, device=x.device)
        maps = _last_columns(S, rates)
        with torch.no_grad():
            distortions = D(maps)
        return RateDistortionExplanation(
            _array(relevance.reshape(x.shape)), _array(maps.reshape(-1, *x.shape)), _array(rates).astype(float), _array(distortions),
            np.full(len(rates), float(result.dual_gap[0])), _order(relevance), _array(S), self.kind, output, count["gradients"], result.evaluations,
            result.minimisations, result.iterations, result.seconds,
        )  # fmt: skip


def _last_columns(S: Tensor, rates: Tensor) -> Tensor:
    """S p_k (rates, d): the sum of the last k columns."""
    sums = torch.flip(torch.flip(S, [1]).cumsum(1), [1])
    return torch.clamp(sums[:, S.shape[1] - rates].T, 0.0, 1.0)  # a cumulative sum of a doubly stochastic matrix, up to rounding


class _InChunks:
    def __init__(self, inner: Distortion) -> None:
        self.inner, self.reference = inner, inner.reference

    def __call__(self, s: Tensor) -> Tensor:
        return self.inner(s) if len(s) <= _CHUNK else torch.cat([self.inner(part) for part in torch.split(s, _CHUNK)])


def _in_chunks(inner: Distortion) -> Distortion:
    return _InChunks(inner)


def _member(kind: Any, name: str, value: Any, *others: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name}={value!r} is not known; use one of {', '.join((*others, *(m.value for m in kind)))}.") from None


def _array(t: Tensor) -> Array:
    return np.asarray(t.detach().cpu().numpy())


def _order(relevance: Tensor) -> Array:
    return _array(torch.argsort(relevance, descending=True, stable=True))
