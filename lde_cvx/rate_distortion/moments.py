r"""Gaussian moments pushed through a network, layer by layer.

The input is taken as Gaussian, and after every layer as Gaussian again with the moments that the layer gives (assumed density filtering). Two forms:

    diagonal   mean μ and variance v of every neuron, neurons taken as independent
    factor     mean μ and R (r, neurons) with covariance RᵀR: low rank, or full when r is the number of inputs

    affine        μ ← Wμ + b;   v ← W²v (entries squared);   R ← RWᵀ
    relu          with σ = √(v + ε), d = μ/σ, ε = 1e-7:  μ ← max(μ⁺, μΦ(d) + σφ(d));   v ← [(μ² + v)Φ(d) + μσφ(d) − μ'²]⁺;   R ← R·Φ(d)
    max pool      pairwise maxima of two Gaussians by Clark's formulas
    other         E f and E f² by Gauss–Hermite quadrature;   R ← R·E[f(X)(X − μ)]/σ²  (Stein: the mean slope)

Propagating R through a bend is linear in R: the covariance of the best linear fit, not of the bent Gaussian. Both forms are approximations; what
they miss is what `distortion.SampledDistortion` measures. Sources: Macdonald, Wäldchen, Hauch, Kutyniok (2019); Clark (1961).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from formulations.errors import InputError

EPSILON = 1e-7
_NODES = 32
_DROPOUT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_RESHAPE = (nn.Flatten, nn.Unflatten)
_SMOOTH = (nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.LogSigmoid, nn.Softsign, nn.Mish)
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_BENDS = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean (B, *shape) with either variance (B, *shape) or factor (B, r, *shape), covariance Σ_r factor_r ⊗ factor_r."""

    mean: Tensor
    variance: Tensor | None = None
    factor: Tensor | None = None

    @property
    def spread(self) -> Tensor:
        """Variances (B, *shape)."""
        if self.variance is not None:
            return self.variance
        assert self.factor is not None
        return self.factor.square().sum(1)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The chain of layers of a (nested) nn.Sequential. Raises InputError that names the first layer without a rule."""
    if isinstance(model, nn.Sequential):
        return [layer for child in model for layer in layers_of(child)]
    if isinstance(model, _DROPOUT):
        return []
    if isinstance(model, (*_AFFINE, *_RESHAPE, *_BENDS, *_SMOOTH)):
        return [model]
    raise InputError(
        f"moments: {type(model).__name__} has no rule for Gaussian moments; the model must be an nn.Sequential of linear, convolution, batch norm, "
        "pooling, flatten and activation layers, or use distortion='sampling'."
    )


def propagate(layers: list[nn.Module], g: Gaussian) -> Gaussian:
    """Moments after the last layer. Differentiable in g."""
    for layer in layers:
        if isinstance(layer, _AFFINE):
            g = _affine(layer, g)
        elif isinstance(layer, _RESHAPE):
            g = Gaussian(layer(g.mean), None if g.variance is None else layer(g.variance), _each(layer, g.factor))
        elif isinstance(layer, nn.MaxPool2d):
            g = _max_pool(layer, g)
        elif isinstance(layer, nn.ReLU | nn.LeakyReLU):
            g = _leaky(0.0 if isinstance(layer, nn.ReLU) else layer.negative_slope, g)
        else:
            g = _quadrature(layer, g)
    return g


def _each(layer: Callable[[Tensor], Tensor], factor: Tensor | None) -> Tensor | None:
    """The layer applied to every row of R: (B, r, *shape) → (B, r, *shape')."""
    if factor is None:
        return None
    out = layer(factor.flatten(0, 1))
    return out.reshape(*factor.shape[:2], *out.shape[1:])


def _affine(layer: nn.Module, g: Gaussian) -> Gaussian:
    factor = None
    if g.factor is not None:
        shift = layer(torch.zeros_like(g.mean[:1]))
        factor = _each(lambda rows: layer(rows) - shift, g.factor)
    return Gaussian(layer(g.mean), None if g.variance is None else _squared(layer, g.variance), factor)


def _squared(layer: nn.Module, v: Tensor) -> Tensor:
    """Variances under the affine map with independent inputs: the weights squared, no shift."""
    if isinstance(layer, nn.Linear):
        return F.linear(v, layer.weight**2)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise InputError(f"moments: padding_mode={layer.padding_mode!r} has no rule; use zeros.")
        convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        return convolve(v, layer.weight**2, None, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        if layer.running_var is None:
            raise InputError("moments: a batch norm without running statistics has no rule; train it with track_running_stats=True.")
        scale = 1.0 / (layer.running_var + layer.eps) * (1.0 if layer.weight is None else layer.weight**2)
        return v * scale.reshape(1, -1, *[1] * (v.ndim - 2))
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        out = layer(v)
        if v.shape[-2] % out.shape[-2] or v.shape[-1] % out.shape[-1]:
            raise InputError(f"moments: adaptive pooling from {tuple(v.shape[-2:])} to {tuple(out.shape[-2:])} has no rule; use a divisor.")
        return torch.as_tensor(out / (v.shape[-2] // out.shape[-2] * (v.shape[-1] // out.shape[-1])))
    assert isinstance(layer, nn.AvgPool1d | nn.AvgPool2d)
    if layer.ceil_mode or (not layer.count_include_pad and layer.padding not in (0, (0,), (0, 0))):
        raise InputError("moments: average pooling with ceil_mode or uncounted padding has no rule; change the layer.")
    size = layer.kernel_size
    window = math.prod(size) if isinstance(size, tuple) else int(size) ** (1 if isinstance(layer, nn.AvgPool1d) else 2)
    return torch.as_tensor(layer(v) / (getattr(layer, "divisor_override", None) or window))


def _normal(d: Tensor) -> tuple[Tensor, Tensor]:
    """(Φ(d), φ(d))"""
    return torch.special.ndtr(d), torch.exp(-0.5 * d**2) / math.sqrt(2 * math.pi)


def _leaky(slope: float, g: Gaussian) -> Gaussian:
    """f(x) = max(x, 0) + slope·min(x, 0)"""
    mu, v = g.mean, g.spread
    sd = torch.sqrt(v + EPSILON)
    big, small = _normal(mu / sd)
    up = mu * big + sd * small  # E max(X, 0)
    mean = torch.maximum(F.leaky_relu(mu, slope), slope * mu + (1 - slope) * up)  # Jensen, where rounding would break it
    if g.factor is not None:
        return Gaussian(mean, None, g.factor * (slope + (1 - slope) * big)[:, None])
    second = (mu**2 + v) * big + mu * sd * small  # E max(X, 0)²
    rest = mu**2 + v - second
    return Gaussian(mean, torch.clamp(second + slope**2 * rest - mean**2, min=0.0))


def _quadrature(layer: nn.Module, g: Gaussian) -> Gaussian:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    xi = torch.as_tensor(nodes, dtype=g.mean.dtype, device=g.mean.device).reshape(-1, *[1] * g.mean.ndim)
    w = torch.as_tensor(weights / weights.sum(), dtype=g.mean.dtype, device=g.mean.device).reshape(xi.shape)
    sd = torch.sqrt(g.spread + EPSILON)
    value = layer(g.mean + sd * xi)
    mean = (w * value).sum(0)
    if g.factor is not None:
        return Gaussian(mean, None, g.factor * ((w * value * xi).sum(0) / sd)[:, None])
    return Gaussian(mean, torch.clamp((w * value**2).sum(0) - mean**2, min=0.0))


def _max_pool(layer: nn.MaxPool2d, g: Gaussian) -> Gaussian:
    if layer.ceil_mode or layer.padding not in (0, (0, 0)) or layer.dilation not in (1, (1, 1)):
        raise InputError("moments: max pooling with padding, dilation or ceil_mode has no rule; use distortion='sampling'.")
    size = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size, layer.kernel_size)
    stride = layer.stride if isinstance(layer.stride, tuple) else (layer.stride, layer.stride)

    def windows(x: Tensor) -> Tensor:
        """(…, h, w) → (k², …, h', w')"""
        return x.unfold(-2, size[0], stride[0]).unfold(-2, size[1], stride[1]).flatten(-2).movedim(-1, 0)

    means = list(windows(g.mean))
    spreads: list[Tensor | None] = [None] * len(means) if g.variance is None else list(windows(g.variance))
    factors: list[Tensor | None] = [None] * len(means) if g.factor is None else list(windows(g.factor))
    parts = [Gaussian(m, v, r) for m, v, r in zip(means, spreads, factors, strict=True)]
    while len(parts) > 1:  # a tournament: the rounds are balanced, so no window position is favoured
        odd = parts[len(parts) // 2 * 2 :]
        parts = [_larger(a, b) for a, b in zip(parts[0::2], parts[1::2], strict=False)] + odd
    return parts[0]


def _larger(a: Gaussian, b: Gaussian) -> Gaussian:
    """Moments of max(A, B): with θ² = Var(A − B), α = (μ_a − μ_b)/θ, the mean is μ_aΦ(α) + μ_bΦ(−α) + θφ(α)."""
    if a.factor is not None and b.factor is not None:
        theta = torch.sqrt((a.factor - b.factor).square().sum(1) + EPSILON)
    else:
        theta = torch.sqrt(a.spread + b.spread + EPSILON)
    big, small = _normal((a.mean - b.mean) / theta)
    mean = torch.maximum(torch.maximum(a.mean, b.mean), a.mean * big + b.mean * (1 - big) + theta * small)
    if a.factor is not None and b.factor is not None:
        return Gaussian(mean, None, a.factor * big[:, None] + b.factor * (1 - big)[:, None])
    second = (a.mean**2 + a.spread) * big + (b.mean**2 + b.spread) * (1 - big) + (a.mean + b.mean) * theta * small
    return Gaussian(mean, torch.clamp(second - mean**2, min=0.0))
