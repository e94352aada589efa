r"""LEG and LEG-TV: the linear function that explains a model's scores around an input, estimated from perturbed evaluations alone.

    γ = argmin_g E[(f(x0 + Z) − f(x0) − g·Z)²] = Σ⁻¹ E[(f(x0 + Z) − f(x0)) Z],     Z ~ N(0, Σ)

`LEG` replaces the expectation by a mean over `samples` draws; `LEGTV` takes the map of least total variation whose moments agree with the drawn ones
within L (see `formulations.leg.program`), with a dual certificate. Neither needs gradients: a model may be a torch module or any function of arrays.
Where the model must stay on its owner's side, the owner calls `moments(x0)` and hands over that record alone; `explain_moments` does the rest.

Source: Luo, Barut, Jin, "Statistically consistent saliency estimation". f takes values in [0, 1]: probabilities, or differences of two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.leg.grid import Perturbation, SchemeName
from formulations.leg.program import LegProgram, LegSolution, theorem_level
from formulations.norms import Array
from lde_cvx.attribution import check_inputs, output_number, values
from lde_cvx.inputs import read_batch
from lde_cvx.leg_records import LegExplanation, LegTVExplanation, Moments, enlarge
from verification.model import float64_copy

Model = nn.Module | Callable[[Array], ArrayLike]
_READINGS = ("probability", "raw")


class LEG:
    """γ̂ = Σ⁻¹ (1/n) Σ_i (f(x0 + z_i) − f(x0)) z_i: the empirical linearly estimated gradient.

    model       torch module (n, *shape) → (n, outputs), or any function of a float array (n, *shape) → (n, outputs) or (n,)
    samples     n, evaluations of the model (per channel with channels="separate")
    variance    σ² in squared units of the input; scheme "edge", "independent" or "padded" (see `formulations.leg.grid`)
    grid        (h, w): perturb and explain on this coarser grid; None: every pixel
    against     explain the score of the target minus the score of this class
    scores      "probability" (softmax of two or more outputs, sigmoid of one) or "raw"; None: probability for modules, raw for functions
    clip        (low, high): perturbed inputs are clipped to it; None: not at all. quantise=255 stores them in steps of 1/255 as the released code does
    channels    "joint": all channels are perturbed at once, independently; "separate": one after the other
    Inputs have shape (d,), (h, w) or (channels, h, w). The draws depend on `seed` alone. Raises InputError on arguments that cannot be used.
    """

    def __init__(
        self,
        model: Model | None,
        *,
        samples: int = 500,
        variance: float = 0.1,
        scheme: SchemeName = "edge",
        grid: tuple[int, int] | None = None,
        target: int | None = None,
        against: int | None = None,
        scores: Literal["probability", "raw"] | None = None,
        clip: tuple[float, float] | None = None,
        quantise: int | None = None,
        channels: Literal["joint", "separate"] = "joint",
        seed: int = 0,
        batch_size: int = 256,
        device: str | torch.device | None = None,
    ) -> None:
        if samples < 1 or batch_size < 1:
            raise InputError(f"samples={samples} and batch_size={batch_size} must be at least 1.")
        if scores is not None and scores not in _READINGS:
            raise InputError(f"scores={scores!r} is not known; use one of {', '.join(_READINGS)}.")
        if channels not in ("joint", "separate"):
            raise InputError(f"channels={channels!r} is not known; use 'joint' or 'separate'.")
        if clip is not None and not clip[0] < clip[1]:
            raise InputError(f"clip={clip}: the lower end must lie below the upper one.")
        if model is not None and not callable(model):
            raise InputError(f"model: expected a torch.nn.Module or a function of arrays, got {type(model).__name__}.")
        Perturbation(2, 2, variance, scheme)  # checks both
        self.module = float64_copy(model, device) if isinstance(model, nn.Module) else None
        self.function = None if isinstance(model, nn.Module) else model
        self.samples, self.variance, self.scheme, self.grid, self.clip, self.quantise = samples, variance, scheme, grid, clip, quantise
        self.target, self.against, self.channels, self.seed, self.batch_size = target, against, channels, seed, batch_size
        self.probabilities = (scores or ("probability" if self.module is not None else "raw")) == "probability"

    # ---- questions --------------------------------------------------------------------------------------------------------

    def explain(self, x0: Tensor | ArrayLike) -> Any:
        """One record for one input (*shape); for a module also a list of them for a batch (n, *shape).

        Raises InputError on NaN, on a shape that the model does not take, and on a target that is not one of its outputs.
        """
        batch, single = self._read(x0)
        records = [self.explain_moments(self._moments(x, self.target)) for x in batch]
        return records[0] if single else records

    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        """The signed maps as a tensor like `inputs` (n, *shape). target: an int, one per input, or None for the explainer's own, else the predicted class."""
        batch = check_inputs(inputs).detach().cpu().numpy().astype(float)
        if not np.isfinite(batch).all():
            raise InputError("attribute: the inputs hold a value that is not finite; replace it.")
        wanted = _targets(target, len(batch), self.target)
        maps = np.stack([self.explain_moments(self._moments(x, t)).map for x, t in zip(batch, wanted, strict=True)])
        return torch.as_tensor(maps, device=inputs.device).to(inputs.dtype if inputs.is_floating_point() else torch.float64)

    def moments(self, x0: Tensor | ArrayLike, target: int | None = None) -> Moments:
        """What the model's owner computes for one input, and all that must be handed over."""
        batch, single = self._read(x0)
        if not single:
            raise InputError(f"moments: got a batch of {len(batch)} inputs; give one.")
        return self._moments(batch[0], self.target if target is None else target)

    def explain_moments(self, moments: Moments) -> LegExplanation:
        """The explanation from moments alone: no model is asked."""
        begun = time.perf_counter()
        maps = np.stack([p.empirical for p in moments.programs()])
        return LegExplanation(moments.enlarge(maps), maps, moments, time.perf_counter() - begun)

    # ---- evaluations ------------------------------------------------------------------------------------------------------

    def _read(self, x0: Tensor | ArrayLike) -> tuple[Array, bool]:
        if self.module is not None:
            place = next((p.device for p in self.module.parameters()), torch.device("cpu"))
            found = read_batch(self.module, x0, place)
            return found.x.detach().cpu().numpy(), found.single
        if self.function is None:
            raise InputError("model: none was given; pass one, or use explain_moments with the moments from the model's owner.")
        x = np.asarray(x0.detach().cpu() if isinstance(x0, Tensor) else x0, dtype=float)
        if x.ndim == 0 or not np.isfinite(x).all():
            raise InputError(f"input: shape {x.shape} must be one input (*shape) of finite numbers.")
        return x[None], True

    def _scores(self, x: Array) -> Array:
        """(n, *shape) → (n, outputs)."""
        if self.module is not None:
            place = next((p.device for p in self.module.parameters()), torch.device("cpu"))
            try:
                y = values(self.module, torch.as_tensor(x, device=place)).cpu().numpy()
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise InputError(f"input: the model does not take shape {x.shape[1:]} ({str(error).splitlines()[0]}).") from error
        elif self.function is not None:
            y = np.asarray(self.function(x), dtype=float)
        else:
            raise InputError("model: none was given; pass one, or use explain_moments with the moments from the model's owner.")
        y = y[:, None] if y.ndim == 1 else y
        if y.ndim != 2 or len(y) != len(x):
            raise InputError(f"model: answers shape {y.shape} for {len(x)} inputs; it must answer (n, outputs).")
        if not np.isfinite(y).all():
            raise InputError("model: answers a score that is not finite.")
        if not self.probabilities:
            return np.asarray(y)
        if y.shape[1] == 1:
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * y)))
        e = np.exp(y - y.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True))

    def _moments(self, x: Array, target: int | None) -> Moments:
        image = _as_image(x)
        h, w = image.shape[1:] if self.grid is None else self.grid
        if h > image.shape[1] or w > image.shape[2] or min(h, w) < 1:
            raise InputError(f"grid={self.grid} must lie between 1 and the image's {image.shape[1:]}.")
        perturbation = Perturbation(h, w, self.variance, self.scheme)
        here = self._scores(x[None])[0]
        chosen = int(here.argmax()) if target is None else output_number("target", target, len(here))
        rival = None if self.against is None else output_number("against", self.against, len(here))
        if rival == chosen:
            raise InputError(f"against={rival} is the target itself; name another class.")

        def value(y: Array) -> Array:
            return np.asarray(y[:, chosen] - (0.0 if rival is None else y[:, rival]))

        f0 = float(value(here[None])[0])
        vectors = np.zeros((len(image), perturbation.grid.pixels))
        rng = np.random.default_rng(self.seed)
        groups = [range(len(image))] if self.channels == "joint" else [range(c, c + 1) for c in range(len(image))]
        for group in groups:
            for start in range(0, self.samples, self.batch_size):
                k = min(self.batch_size, self.samples - start)
                z = perturbation.sample(k * len(group), rng).reshape(k, len(group), -1)
                moved = np.repeat(image[None], k, 0)
                moved[:, list(group)] += enlarge(z.reshape(k * len(group), h, w), image.shape).reshape(k, len(group), *image.shape[1:])
                change = value(self._scores(self._stored(moved).reshape(k, *x.shape))) - f0
                vectors[list(group)] += np.einsum("k,kcp->cp", change, z)
        return Moments(vectors / self.samples, f0, self.samples, x.shape, perturbation, chosen, rival)

    def _stored(self, x: Array) -> Array:
        x = x if self.clip is None else np.clip(x, *self.clip)
        return x if self.quantise is None else np.trunc(x * self.quantise) / self.quantise


class LEGTV(LEG):
    """min ‖Dg‖₁ s.t. ‖D⁺ᵀ(ȳ − Σg)‖_∞ ≤ L per channel: the piecewise constant map that the drawn moments allow.

    level    L itself, or "theorem" for the level of Theorem 1 at confidence 1 − epsilon (conservative); None: share · L_max of each channel
    share    K_L in [0, 1]; at 1 the map is constant
    solver   None, "flow", "cuts", "pivots", "highs" or "clarabel" (see `LegProgram.solve`); further arguments as in `LEG`
    """

    def __init__(
        self,
        model: Model | None,
        *,
        level: float | Literal["theorem"] | None = None,
        share: float = 0.1,
        epsilon: float = 0.05,
        solver: Literal["flow", "cuts", "pivots", "highs", "clarabel"] | None = None,
        time_limit: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, **settings)
        if not 0 <= share <= 1:
            raise InputError(f"share={share} must lie between 0 and 1.")
        if isinstance(level, str) and level != "theorem":
            raise InputError(f"level={level!r} is not known; give a number, 'theorem', or None with a share of the maximal level.")
        if level is not None and not isinstance(level, str) and not level >= 0:
            raise InputError(f"level={level} must be a number ≥ 0.")
        self.level, self.share, self.epsilon, self.solver, self.time_limit = level, share, epsilon, solver, time_limit

    @classmethod
    def published(cls, model: Model | None, **settings: Any) -> LEGTV:
        """The released code's estimator: padded D, σ² = 4e-4 for pixels in [0, 1], channels one at a time, 2000 draws each, inputs stored in 1/255ths."""
        chosen: dict[str, Any] = {"scheme": "padded", "variance": 4e-4, "samples": 2000, "channels": "separate", "quantise": 255}
        return cls(model, **(chosen | settings))

    def explain_moments(self, moments: Moments) -> LegTVExplanation:
        """The explanation from moments alone: no model is asked."""
        begun = time.perf_counter()
        found = [p.solve(self._level_of(p, moments), solver=self.solver, time_limit=self.time_limit) for p in moments.programs()]
        return _record(moments, found, time.perf_counter() - begun)

    def path(self, x0: Tensor | ArrayLike | Moments, shares: Sequence[float] | Array | None = None) -> tuple[LegTVExplanation, ...]:
        """The explanations at L = share · L_max for every share (default 50 from 1 down to .02), from one set of draws; each starts from its neighbour."""
        moments = x0 if isinstance(x0, Moments) else self.moments(x0)
        wanted = np.geomspace(1.0, 0.02, 50) if shares is None else np.asarray(shares, dtype=float)
        begun = time.perf_counter()
        columns = [p.solve_path(wanted * p.maximal_level, solver=self.solver, time_limit=self.time_limit) for p in moments.programs()]
        seconds = (time.perf_counter() - begun) / max(1, len(wanted))
        return tuple(_record(moments, list(row), seconds) for row in zip(*columns, strict=True))

    def _level_of(self, program: LegProgram, moments: Moments) -> float:
        if self.level is None:
            return self.share * program.maximal_level
        if isinstance(self.level, str):
            return theorem_level(program.grid.shape, moments.samples, self.epsilon)
        return float(self.level)


def _record(moments: Moments, found: list[LegSolution], seconds: float) -> LegTVExplanation:
    maps = np.stack([s.map for s in found])
    return LegTVExplanation(moments.enlarge(maps), maps, moments, seconds, tuple(found))


def _as_image(x: Array) -> Array:
    """(channels, h, w)"""
    if not 1 <= x.ndim <= 3:
        raise InputError(f"input: shape {x.shape} must be (d,), (h, w) or (channels, h, w).")
    return x.reshape((1,) * (3 - x.ndim) + x.shape)


def _targets(target: Any, n: int, default: int | None) -> list[Any]:
    if target is None:
        return [default] * n
    values = np.atleast_1d(np.asarray(target.detach().cpu() if isinstance(target, Tensor) else target, dtype=object))
    if values.size not in (1, n):
        raise InputError(f"target: {values.size} targets for {n} inputs; give one, or one each.")
    return list(np.broadcast_to(values.ravel(), (n,)))
