"""A baseline is a `Method` (how maps are computed) bound to a model by `Baseline`, which reads inputs and targets and keeps the records."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import DependencyError, InputError
from formulations.norms import Array
from lde_cvx.attribution import check_inputs, targets_of, values
from lde_cvx.inputs import Batch, read_batch
from verification.model import float64_copy

Function = Callable[[Array], ArrayLike]


class Method(Protocol):
    """How a map is computed; a frozen dataclass whose fields are the settings."""

    name: ClassVar[str]
    gradient: ClassVar[bool]  # whether the model is differentiated
    draws: ClassVar[bool]  # whether the answer depends on a seed

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        """(n, *shape) float64 maps of the scores `targets` (n,) of a float64 model."""


@dataclass(frozen=True, eq=False)
class BaselineExplanation:
    """map in the input's shape, of the raw score `target`; signed where the method signs."""

    map: Array
    method: str
    target: int
    score: float
    seconds: float

    @property
    def scores(self) -> Array:
        return self.map


class _Asked(nn.Module):
    """A function of arrays as a module, for methods that only ask for values."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = torch.as_tensor(np.asarray(self.function(x.detach().cpu().numpy()), dtype=float), device=x.device)
        return y[:, None] if y.ndim == 1 else y


class Baseline:
    """`method` on one model: attribute(inputs, target) and explain(x0), deterministic for a seed, and the same for an input alone or in a batch.

    model   torch module (n, *shape) → (n, outputs), of which a float64 copy is explained; methods without gradients also take any function of arrays
    target  output explained where a call names none; None: the predicted class. The score is the raw output
    Raises InputError on an unusable model, and when a gradient method's model gives none.
    """

    def __init__(
        self,
        model: nn.Module | Function,
        method: Method,
        *,
        target: int | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(model, nn.Module):
            self.model = float64_copy(model, device)
        elif not callable(model):
            raise InputError(f"model: expected a torch.nn.Module or a function of arrays, got {type(model).__name__}.")
        elif method.gradient:
            raise InputError(f"{method.name}: needs gradients, so the model must be a torch.nn.Module, not a function.")
        else:
            self.model = _Asked(model)
        for layer in self.model.modules():
            if getattr(layer, "inplace", False):
                layer.inplace = False  # type: ignore[assignment]  # hooks must see what a layer was given
        self.method, self.target, self.seed = method, target, seed

    @property
    def name(self) -> str:
        return self.method.name

    def explain(self, x0: Tensor | ArrayLike) -> Any:
        """One record for one input (*shape), a list of them for a batch (n, *shape)."""
        batch = read_batch(self.model, x0, self._place)
        targets = targets_of(batch.outputs, None, self.target)
        records = []
        for i, t in enumerate(targets):
            begun = time.perf_counter()
            found = self._maps(Batch(batch.x[i : i + 1], batch.outputs[i : i + 1], True), [t])
            records.append(
                BaselineExplanation(found[0].cpu().numpy(), self.name, t, float(batch.outputs[i, t]), time.perf_counter() - begun)
            )
        return records[0] if batch.single else records

    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        """The maps as a tensor like `inputs` (n, *shape)."""
        batch = read_batch(self.model, check_inputs(inputs), self._place)
        maps = self._maps(batch, targets_of(batch.outputs, target, self.target)).reshape(tuple(inputs.shape))
        return maps.to(inputs.device, inputs.dtype if inputs.is_floating_point() else torch.float64)

    @property
    def _place(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _maps(self, batch: Batch, targets: list[int]) -> Tensor:
        t = torch.tensor(targets, device=batch.x.device)
        if self.method.gradient:
            check_gradient(self.model, batch.x[:1], self.name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)  # captum speaks of the hooks and gradient flags that it sets
            return self._drawn(batch.x, t) if self.method.draws else self.method.maps(self.model, batch.x, t).detach()

    def _drawn(self, x: Tensor, t: Tensor) -> Tensor:
        out = []
        for i in range(len(t)):  # each input with the same draws, whatever it is asked together with
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.seed)
                out.append(self.method.maps(self.model, x[i : i + 1], t[i : i + 1]).detach())
        return torch.cat(out)


def check_gradient(model: nn.Module, x: Tensor, who: str) -> None:
    """Raises InputError when the outputs do not depend differentiably on x."""
    with torch.enable_grad():
        y = model(x.detach().clone().requires_grad_(True))
    if not y.requires_grad:
        raise InputError(
            f"{who}: the model gives no gradient at its input; it must not detach it. Use occlusion, rise, lime or hsic instead."
        )


def reference_like(x: Tensor, reference: float | Tensor | Array) -> Tensor:
    """The reference in place of what is removed, in the shape of x (n, *shape): a number, or one input. Raises InputError on another shape."""
    if isinstance(reference, str):
        raise InputError(f"reference={reference!r} is no number and no input.")
    r = torch.as_tensor(reference, dtype=x.dtype, device=x.device)
    if r.ndim and tuple(r.shape) != tuple(x.shape[1:]):
        raise InputError(f"reference: shape {tuple(r.shape)} is not the input's {tuple(x.shape[1:])}; give one input, or a number.")
    return r.expand_as(x) if not r.ndim else r[None].expand_as(x)


def score(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """f_target (n,), without gradients."""
    return values(model, x)[:, target].to(x.dtype)  # a module may answer in a type of its own


def captum_attr() -> Any:
    """captum's methods. Raises DependencyError with the command that installs it."""
    try:
        import captum.attr
    except ImportError as error:
        raise DependencyError("this baseline needs captum; install it with: pip install 'lde-cvx[baselines]'") from error
    return captum.attr


def cells_of(shape: tuple[int, ...], cell: int) -> Tensor:
    """(*shape) cell number of every entry: squares of `cell` pixels over an image (h, w) or (c, h, w), all channels together; of a vector, runs.

    Raises InputError on a cell larger than the image.
    """
    sides = shape[-2:] if len(shape) > 1 else shape
    if not 1 <= cell <= min(sides):
        raise InputError(f"cell={cell} must lie between 1 and the input's smallest side, {min(sides)}.")
    steps = [torch.arange(s) // cell for s in sides]
    plane = steps[0] if len(steps) == 1 else steps[0][:, None] * (int(steps[1][-1]) + 1) + steps[1]
    return plane.expand(shape).contiguous()


def at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise InputError(f"{name}={value} must be at least {low:g}.")
