"""Reading what callers hand over: one input or a batch, as a tensor or an array, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.given import seed_of, whole
from formulations.norms import Array
from formulations.sets.base import FEASIBILITY, ConvexSet
from verification.decision import Decision
from verification.model import check_alone, numbers


@dataclass(frozen=True, eq=False)
class Batch:
    """x (n, *shape) in float64, outputs (n, m) of the float64 network; `single` when the caller gave one input."""

    x: Tensor
    outputs: Tensor
    single: bool

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def flat(self) -> Array:
        """(n, d)"""
        return self.x.detach().cpu().numpy().reshape(len(self.x), -1)


def read_batch(model: nn.Module, x0: Any, device: str | torch.device | None = None) -> Batch:
    """Whether x0 is one input or a batch is what the network says: x0[None] is tried first, so (1, *shape) is one input where both readings work.

    Raises InputError on NaN, on a shape the network does not take, and on outputs that are not finite.
    """
    x = numbers("input", x0, device)
    bad = torch.nonzero(~torch.isfinite(x))
    if len(bad):
        place = ", ".join(str(int(k)) for k in bad[0])
        raise InputError(f"input: entry [{place}] is {float(x[tuple(bad[0])])}; replace it with a finite number.")
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"input: has shape {tuple(x.shape)}; give one input or a batch of them.")
    refusals = []
    for single, batch in ((True, x[None]), (False, x)):
        outputs = _outputs(model, batch)
        if isinstance(outputs, str):
            refusals.append(outputs)
            continue
        if batch.ndim > 2 and batch.shape[:2] == (1, 1) and not isinstance(_outputs(model, batch[0]), str):
            batch = batch[0]  # the network flattens a leading 1 away: it was the batch axis
        wrong = torch.nonzero(~torch.isfinite(outputs))
        if len(wrong):
            i, k = (int(v) for v in wrong[0])
            raise InputError(f"model: output {k} of input {i} is {float(outputs[i, k])}; it must be finite.")
        check_alone(model, batch)
        return Batch(batch, outputs, single or len(batch) == 1)
    answered = next((why for why in refusals if why.startswith("the model")), None)
    if answered is not None:
        raise InputError(f"model: {answered.removeprefix('the model ')}; it must answer (n, outputs) in the type of its input.")
    takes = expected_size(model)
    raise InputError(
        f"input: shape {tuple(x.shape)} does not fit the model{f', which takes {takes}' if takes else ''} ({refusals[0]}); reshape it."
    )


def check_options(*, target: Any, decision: Any, constraints: Any, time_limit: Any, jobs: Any, seed: Any) -> None:
    """Raises InputError, naming the option, on what no explanation can be asked with."""
    if target is not None:
        whole("target", target)
    if decision is not None and not isinstance(decision, Decision) and not callable(decision):
        raise InputError(f"decision={decision!r:.60} is no decision; give a Decision, or a function outputs -> Decision.")
    if constraints is not None and not isinstance(constraints, ConvexSet) and not callable(constraints):
        raise InputError(f"constraints: got {type(constraints).__name__}; give a convex set, a function x0 -> set, or None.")
    if time_limit is not None and (isinstance(time_limit, bool) or not (isinstance(time_limit, int | float) and time_limit > 0)):
        raise InputError(f"time_limit={time_limit!r:.60} must be positive; leave it out for no limit.")
    if whole("jobs", jobs) < 1:
        raise InputError(f"jobs={jobs} must be at least 1.")
    seed_of(seed)


def check_names(names: tuple[str, ...] | None, batch: Batch) -> None:
    """Raises InputError unless there is one name per feature."""
    if names is not None and len(names) != batch.flat.shape[1]:
        raise InputError(f"feature_names: {len(names)} names for {batch.flat.shape[1]} features; give one each.")


def check_inside(constraints: ConvexSet | None, flat: Array, index: int) -> None:
    """Raises InputError when x0 = flat (d,) does not lie in C, and says so when nothing does."""
    if constraints is None:
        return
    outside: dict[str, float] = {}
    for part in constraints.parts(len(flat)):
        v = part.relative_to(flat).piece.violation(np.zeros_like(flat))
        if v > FEASIBILITY:
            outside[part.name] = max(v, outside.get(part.name, v))
    if outside:
        constraints.relative_to(flat).project(np.zeros_like(flat))  # raises when the set is empty
        worst = max(outside, key=lambda name: outside[name])
        raise InputError(
            f"input {index}: lies outside the set: {worst!r} is violated by {outside[worst]:.3g}; move the input inside or widen the set."
        )


def _outputs(model: nn.Module, batch: Tensor) -> Tensor | str:
    """(n, m) outputs, or why there are none: what torch said of the shape, or (beginning with "the model") an answer that no shape would mend."""
    try:
        with torch.no_grad():
            y = model(batch)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:  # what torch raises on shapes that do not fit
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    if not isinstance(y, Tensor):
        return f"the model answers a {type(y).__name__}"
    if y.dtype != batch.dtype:
        return f"the model answers {str(y.dtype)[6:]} for {str(batch.dtype)[6:]} inputs"
    if y.ndim == 2 and len(y) == len(batch):
        return y
    return f"{'the model ' if y.ndim < 2 else ''}answers {tuple(y.shape)} for inputs {tuple(batch.shape)}"


def expected_size(model: nn.Module) -> str | None:
    """What the first layer with a size says that it takes, in words."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            return f"{layer.in_features} features"
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            padding = (0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
            sides = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(layer.kernel_size, layer.dilation, padding, strict=True)]
            least = " × ".join(str(max(1, v)) for v in sides)
            return f"inputs with {layer.in_channels} channel{'s' if layer.in_channels > 1 else ''} of at least {least}"
    return None
