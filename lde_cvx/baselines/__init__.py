"""Explanation methods to stand beside: `baseline(name, model, …)` gives any of them the interface of this package's own explainers.

captum computes the known ones (`pip install 'lde-cvx[baselines]'`); written here are those that no kept library has: C- and L-Shapley, exact Shapley
values, HSIC, RISE, the sensitivities, and a random control. "TopNet" is left out: the texts that name it give no algorithm.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from formulations.errors import InputError
from lde_cvx.baselines.base import Baseline, BaselineExplanation, Function, Method
from lde_cvx.baselines.gradients import (
    DeepLift,
    DeepTaylor,
    GradCam,
    GuidedBackprop,
    InputTimesGradient,
    IntegratedGradients,
    Lrp,
    Saliency,
    Sensitivity,
    SmoothGrad,
    sensitivities,
)
from lde_cvx.baselines.perturbations import Hsic, KernelShap, Lime, Occlusion, Random, Rise
from lde_cvx.baselines.shapley import CShapley, LShapley, Shapley

METHODS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        Saliency, InputTimesGradient, IntegratedGradients, SmoothGrad, GuidedBackprop, DeepLift, GradCam, Lrp, DeepTaylor, Sensitivity,
        Occlusion, Lime, KernelShap, Rise, Hsic, Shapley, LShapley, CShapley, Random,
    )
}  # fmt: skip


def baseline(
    name: str,
    model: nn.Module | Function,
    *,
    target: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    **settings: Any,
) -> Baseline:
    """The explainer of that name (see `METHODS`) on a model, with `attribute` and `explain`.

    `settings` are the fields of the method's class, such as steps=64 of "integrated-gradients" or cell=4 of "lime".
    Raises InputError on an unknown name or setting and on a model that cannot be used, DependencyError (when called) where captum is missing.
    """
    if name not in METHODS:
        raise InputError(f"baseline {name!r} is not known; use one of {', '.join(METHODS)}.")
    kind = METHODS[name]
    known = [f.name for f in fields(kind)]
    wrong = [k for k in settings if k not in known]
    if wrong:
        raise InputError(f"baseline {name!r} has no setting {wrong[0]!r}; its settings are: {', '.join(known) or 'none'}.")
    return Baseline(model, kind(**settings), target=target, seed=seed, device=device)


__all__ = ["METHODS", "Baseline", "BaselineExplanation", "Method", "baseline", "sensitivities"]
