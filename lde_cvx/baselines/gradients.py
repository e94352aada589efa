"""Baselines by gradients and propagated relevance, computed by captum; the settings' defaults are ours and stand in each class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.baselines.base import at_least, captum_attr, reference_like

Reference = float | Tensor | Array


class _ByGradient:
    """A method that differentiates the model; it draws nothing unless it says so."""

    gradient: ClassVar[bool] = True
    draws: ClassVar[bool] = False


class _OfCaptum(_ByGradient):
    """A method of captum's without settings, by the name of its class there."""

    captum: ClassVar[str]

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        return torch.as_tensor(getattr(captum_attr(), self.captum)(model).attribute(x, target=targets)).detach()


@dataclass(frozen=True)
class Saliency(_OfCaptum):
    """|∂f/∂x_i|. Source: Simonyan, Vedaldi, Zisserman (2014)."""

    name: ClassVar[str] = "saliency"
    captum: ClassVar[str] = "Saliency"


@dataclass(frozen=True)
class InputTimesGradient(_OfCaptum):
    """x_i ∂f/∂x_i."""

    name: ClassVar[str] = "gradient-x-input"
    captum: ClassVar[str] = "InputXGradient"


@dataclass(frozen=True, eq=False)
class IntegratedGradients(_ByGradient):
    """(x_i − r_i) ∫₀¹ ∂_i f(r + t(x − r)) dt;  Σ_i = f(x) − f(r) up to the quadrature. Source: Sundararajan, Taly, Yan (2017).

    steps: nodes (Gauss–Legendre up to 256, midpoints beyond); None: doubled from 64 until the sum is right to `tolerance`·max(1, |f(x) − f(r)|),
    at most 8192. A piecewise linear network has kinks along the path, so the error falls like 1/steps there.
    """

    steps: int | None = None
    reference: Reference = 0.0
    tolerance: float = 1e-4
    name: ClassVar[str] = "integrated-gradients"

    def __post_init__(self) -> None:
        at_least("steps", 1 if self.steps is None else self.steps, 1)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        r = reference_like(x, self.reference)
        if self.steps is not None:
            return self._at(model, x, r, targets, self.steps)
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            want = model(x)[rows, targets] - model(r)[rows, targets]
        out, open_, steps = torch.zeros_like(x), rows, 64
        while len(open_):
            out[open_] = self._at(model, x[open_], r[open_], targets[open_], steps)
            short = (out[open_].flatten(1).sum(1) - want[open_]).abs() > self.tolerance * want[open_].abs().clamp(min=1.0)
            open_, steps = open_[short], 2 * steps
            if steps > _MOST_STEPS:
                break
        return out

    @staticmethod
    def _at(model: nn.Module, x: Tensor, r: Tensor, targets: Tensor, steps: int) -> Tensor:
        rule = "gausslegendre" if steps <= 256 else "riemann_middle"
        found = captum_attr().IntegratedGradients(model).attribute(
            x, baselines=r, target=targets, n_steps=steps, method=rule, internal_batch_size=max(256, len(x))
        )  # fmt: skip
        return torch.as_tensor(found).detach()


_MOST_STEPS = 8192


@dataclass(frozen=True)
class SmoothGrad(_ByGradient):
    """Mean of |∂f/∂x| over `samples` draws of x + N(0, σ²). Source: Smilkov et al. (2017)."""

    samples: int = 32
    sigma: float = 0.1
    name: ClassVar[str] = "smoothgrad"
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        at_least("sigma", self.sigma, 0)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        attr = captum_attr()
        tunnel = attr.NoiseTunnel(attr.Saliency(model))
        return torch.as_tensor(
            tunnel.attribute(
                x, nt_type="smoothgrad", nt_samples=self.samples, nt_samples_batch_size=self.samples, stdevs=self.sigma, target=targets
            )
        )


@dataclass(frozen=True)
class GuidedBackprop(_OfCaptum):
    """The gradient with negative signals cut at every ReLU on the way back. Source: Springenberg et al. (2015)."""

    name: ClassVar[str] = "guided-backprop"
    captum: ClassVar[str] = "GuidedBackprop"


@dataclass(frozen=True, eq=False)
class DeepLift(_ByGradient):
    """Differences from a reference input sent back by the rescale rule; Σ_i = f(x) − f(r), through max pooling too.

    Alone, captum reads the gradient of a layer's output before the layer after it has put its multipliers there, where the two share a tensor: a ReLU
    with max pooling behind it loses up to a fiftieth of the sum. `_apart` keeps them from sharing one.
    Source: Shrikumar, Greenside, Kundaje (2017).
    """

    reference: Reference = 0.0
    name: ClassVar[str] = "deeplift"

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        with _apart(model):
            found = captum_attr().DeepLift(model).attribute(x, baselines=reference_like(x, self.reference), target=targets)
        return torch.as_tensor(found).detach()


@contextlib.contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Every layer without parts is handed a copy of its input, so that no tensor is one layer's output and the next one's input at once."""
    hooks = [
        m.register_forward_pre_hook(lambda _, given: tuple(v.clone() for v in given)) for m in model.modules() if not any(m.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class GradCam(_ByGradient):
    """max(Σ_c w_c A_c, 0), w_c the mean gradient of channel A_c of a convolution (the last one where `layer` is None), enlarged to the input.

    layer: its name in `model.named_modules()`. Source: Selvaraju et al. (2017).
    """

    layer: str | None = None
    name: ClassVar[str] = "gradcam"

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        if x.ndim != 4:
            raise InputError(f"gradcam: needs images (n, channels, h, w), got inputs of shape {tuple(x.shape[1:])}.")
        attr, layer = captum_attr(), self._layer(model)
        with torch.enable_grad():  # the copy's weights are frozen, so the graph must begin at the input
            small = attr.LayerGradCam(model, layer).attribute(
                x.detach().clone().requires_grad_(True), target=targets, relu_attributions=True
            )
        large = attr.LayerAttribution.interpolate(small.detach(), tuple(x.shape[-2:]), interpolate_mode="bilinear")
        return torch.as_tensor(large).expand_as(x).contiguous()

    def _layer(self, model: nn.Module) -> nn.Module:
        named: dict[str, nn.Module] = dict(model.named_modules())
        if self.layer is not None:
            if self.layer not in named:
                raise InputError(f"gradcam: layer={self.layer!r} is not in the model; its layers are {', '.join(k for k in named if k)}.")
            return named[self.layer]
        found = [m for m in named.values() if isinstance(m, nn.Conv2d)]
        if not found:
            raise InputError("gradcam: the model has no two-dimensional convolution; name another layer of maps by layer=.")
        return found[-1]


@dataclass(frozen=True)
class Lrp(_ByGradient):
    """Relevance sent back layer by layer in proportion to the contributions z_ij = x_i w_ij:  rule "epsilon" R_i = Σ_j z_ij R_j /(Σ_i z_ij + b_j ± ε),

    rule "alpha-beta" (α = 1, β = 0) the same with positive weights only: the z⁺ rule, which is deep Taylor decomposition where the layer's inputs are ≥ 0.
    Sources: Bach et al. (2015); Montavon et al. (2017).
    """

    rule: str = "epsilon"
    epsilon: float = 1e-6
    name: ClassVar[str] = "lrp"

    def __post_init__(self) -> None:
        if self.rule not in ("epsilon", "alpha-beta"):
            raise InputError(f"lrp: rule={self.rule!r} is not known; use 'epsilon' or 'alpha-beta'.")
        at_least("epsilon", self.epsilon, 0)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        attr = captum_attr()
        self._attach(model)
        try:
            found = attr.LRP(model).attribute(x.detach().clone(), target=targets)
        except (TypeError, RuntimeError, AssertionError) as error:
            for layer in model.modules():
                layer.__dict__.pop("rule", None)
            raise InputError(f"lrp: captum cannot propagate through this model ({' '.join(str(error).split())[:160]}).") from error
        return torch.as_tensor(found).detach()

    def _attach(self, model: nn.Module) -> None:
        """captum forgets the rules after every call. Shapes, and norms that only shift and scale, take the ε rule."""
        from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and self.rule == "alpha-beta":
                layer.rule = Alpha1_Beta0_Rule()  # type: ignore[assignment]
            elif isinstance(
                layer,
                nn.Linear | nn.Conv1d | nn.Conv2d | nn.Flatten | nn.Unflatten | nn.Identity | nn.BatchNorm1d | nn.BatchNorm2d
                | nn.MaxPool1d | nn.MaxPool2d | nn.AvgPool1d | nn.AvgPool2d | nn.AdaptiveAvgPool2d,
            ):  # fmt: skip
                layer.rule = EpsilonRule(self.epsilon)  # type: ignore[assignment]


@dataclass(frozen=True)
class DeepTaylor(_ByGradient):
    """Deep Taylor decomposition by the z⁺ rule in every layer, for inputs ≥ 0 (Montavon et al., 2017). Raises InputError on a negative input."""

    name: ClassVar[str] = "deep-taylor"

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        low = float(x.min())
        if low < 0:
            raise InputError(f"deep-taylor: the input holds {low:g}; its z⁺ rule is for inputs ≥ 0, use lrp instead.")
        return Lrp("alpha-beta").maps(model, x, targets)


@dataclass(frozen=True)
class Sensitivity(_ByGradient):
    """A statistic of ∂f/∂x over `samples` draws of x + N(0, σ²): "mean", "deviation" (standard deviation) or "square" (root mean square).

    Source of the three: Pizarroso, Portela, Muñoz (2022); there over a data set, which `sensitivities` does.
    """

    statistic: str = "square"
    samples: int = 64
    sigma: float = 0.1
    name: ClassVar[str] = "sensitivity"
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_statistic(self.statistic)
        at_least("samples", self.samples, 2)
        at_least("sigma", self.sigma, 0)

    def maps(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        points = x + self.sigma * torch.randn(self.samples, *x.shape[1:], dtype=x.dtype).to(x.device)
        return summarise(slopes(model, points, int(targets[0])), self.statistic)[None]


_STATISTICS = ("mean", "deviation", "square")


def check_statistic(statistic: str) -> None:
    if statistic not in _STATISTICS:
        raise InputError(f"statistic={statistic!r} is not known; use one of {', '.join(_STATISTICS)}.")


def slopes(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """∂f_target/∂x (n, *shape) at every row."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_(True)
        (g,) = torch.autograd.grad(model(point)[:, target].sum(), point)
    return g


def summarise(g: Tensor, statistic: str) -> Tensor:
    """(n, *shape) → (*shape)"""
    if statistic == "mean":
        return g.mean(0)
    return g.std(0, correction=0) if statistic == "deviation" else g.square().mean(0).sqrt()


def sensitivities(model: Any, inputs: Tensor, target: int, statistic: str = "square") -> Tensor:
    """The statistic of ∂f_target/∂x over the rows of a data set (n, *shape): (*shape)."""
    check_statistic(statistic)
    return summarise(slopes(model, inputs, target), statistic)
