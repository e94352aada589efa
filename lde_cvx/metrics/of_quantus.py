"""The metrics of the library quantus, for any explainer (`pip install 'lde-cvx[quantus]'`): its names, its settings, one number per input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import DependencyError, InputError
from formulations.norms import Array
from lde_cvx.attribution import Explainer
from lde_cvx.metrics.removal import ask


class _Widened(nn.Module):
    """The float64 network for a library that speaks float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.model(x.double()).float())


def quantus_metric(
    name: str, explainer: Explainer, model: nn.Module, x: Tensor, *, maps: Tensor | None = None, masks: ArrayLike | Tensor | None = None,
    target: Any = None, **settings: Any,
) -> Array:  # fmt: skip
    """(n,) values of `quantus.<name>(**settings)` on inputs x (n, channels, h, w) or (n, d): "Sparseness", "Infidelity", "MaxSensitivity", …

    maps: those of `explainer`, which is asked where None, and again on whatever inputs and networks the metric makes. masks: for localisation.
    Which of its metrics take which inputs, and what their values mean, is quantus's to say; what it raises is reported in one line.
    Raises DependencyError without quantus, InputError on an unknown metric and on what the metric refuses.
    """
    try:
        import quantus
    except ImportError as error:
        raise DependencyError("this metric needs quantus; install it with: pip install 'lde-cvx[quantus]'") from error
    kind = getattr(quantus, name, None)
    if not (isinstance(kind, type) and issubclass(kind, quantus.Metric) and kind is not quantus.Metric):
        raise InputError(f"quantus has no metric {name!r}; its metrics are classes such as Sparseness, Infidelity or MaxSensitivity.")
    given = explainer.attribute(x, target) if maps is None else maps
    asked = ask(model, x, given, target)

    def explain(inputs: ArrayLike, targets: ArrayLike) -> Array:
        points = torch.as_tensor(np.asarray(inputs, dtype=float)).reshape(-1, *asked.x.shape[1:])
        return np.asarray(explainer.attribute(points, [int(k) for k in np.ravel(targets)]).cpu().numpy(), dtype=np.float32)

    quiet = {"display_progressbar": False, "disable_warnings": True}
    try:
        found = kind(**(quiet | settings))(
            model=_Widened(asked.model).eval(), x_batch=asked.x.cpu().numpy().astype(np.float32), y_batch=np.array(asked.targets),
            a_batch=asked.maps.cpu().numpy().astype(np.float32), s_batch=None if masks is None else np.asarray(masks).astype(bool),
            explain_func=lambda model, inputs, targets, **_: explain(inputs, targets), channel_first=True,
        )  # fmt: skip
    except (TypeError, ValueError, AssertionError, RuntimeError, IndexError) as error:
        raise InputError(f"quantus.{name}: {' '.join(str(error).split())[:200]}") from error
    if isinstance(found, dict) or np.size(found) != len(asked.x):
        raise InputError(
            f"quantus.{name}: does not answer one number per input; pass return_aggregate=False where it has that, or ask quantus itself."
        )
    return np.asarray(found, dtype=float).ravel()


__all__ = ["quantus_metric"]
