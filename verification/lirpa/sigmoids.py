r"""tanh and sigmoid for auto_LiRPA: its own lines within ±500, lines of curves.py beyond.

The library looks tangents up in tables that end at ±500 and clips intervals there, "as the function is constant beyond". The function is; its lines are not: one
that rises at slope k and is tight at −500 lies k·200 below the function at −700. Inputs that are not scaled, or a wide radius, get there.
Importing this file imports the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from verification.lirpa.compat import library
from verification.lirpa.curves import Curve

lib = library()


def _tanh_slope(z: Tensor) -> Tensor:
    return 1 - torch.tanh(z).square()


def _sigmoid_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate * (1 - gate)


TANH = Curve(torch.tanh, _tanh_slope, (0.0,), (1, -1))
SIGMOID = Curve(torch.sigmoid, _sigmoid_slope, (0.0,), (1, -1))


class Beyond:
    curve: Curve

    def bound_relax(self, x: Any) -> None:
        super().bound_relax(x)  # type: ignore[misc]
        beyond = (x.lower < -self.x_limit) | (x.upper > self.x_limit)  # type: ignore[attr-defined]
        if bool(beyond.any()):
            lines = self.curve.lines(x.lower, x.upper)
            for name, line in zip(("lw", "lb", "uw", "ub"), lines, strict=True):
                setattr(self, name, torch.where(beyond, line, getattr(self, name)))


class BoundTanh(Beyond, lib.BoundTanh):  # type: ignore[misc, name-defined]
    curve = TANH


class BoundSigmoid(Beyond, lib.BoundSigmoid):  # type: ignore[misc, name-defined]
    curve = SIGMOID


OPERATORS: dict[str, Any] = {"onnx::Tanh": BoundTanh, "onnx::Sigmoid": BoundSigmoid}
