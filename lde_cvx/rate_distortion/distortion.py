r"""Distortion of keeping part of an input: how far a network's output moves when the rest is replaced at random.

    D(s) = ½ E[(f(x) − f(s⊙x + (1 − s)⊙n))²],   s ∈ [0, 1]^d,   n ~ background

f is one output. Without the ½ it is the mean squared error 2D. Three ways to it, all for a batch s (B, d) and differentiable in s:

    MomentDistortion    ½[(μ − f(x))² + V], moments pushed through the network (an approximation, see `moments`)
    SampledDistortion   the mean over draws of n, the same draws for every s, with a confidence interval
    ExactDistortion     closed form, for a Gaussian background and one hidden layer of ReLUs

Sources: Macdonald, Wäldchen, Hauch, Kutyniok, "A rate-distortion framework for explaining neural network decisions" (2019); Rosenbaum (1961) for the
truncated bivariate moments, Owen (1956) for the bivariate distribution function.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtr, owens_t
from scipy.stats import norm
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.rate_distortion.moments import Gaussian, layers_of, propagate

MODES = ("diagonal", "low-rank", "full", "sampling", "exact")


@dataclass(frozen=True, eq=False)
class Background:
    """What replaces the parts of an input that are not kept: mean (d,), variance (d,), and R (r, d) with covariance RᵀR where it is known.

    box: (low, high) when n is uniform on [low, high]^d with these moments instead of Gaussian (moment propagation only sees the moments).
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor | None = None
    box: tuple[float, float] | None = None

    @staticmethod
    def uniform(low: float, high: float, d: int) -> Background:
        """Independent uniform values: mean (low + high)/2, variance (high − low)²/12."""
        if not low < high:
            raise InputError(f"Background.uniform: low={low} must lie below high={high}.")
        one = torch.ones(d, dtype=torch.float64)
        return Background((low + high) / 2 * one, (high - low) ** 2 / 12 * one, None, (float(low), float(high)))

    @staticmethod
    def gaussian(mean: ArrayLike | Tensor, covariance: ArrayLike | Tensor) -> Background:
        """N(mean, covariance), covariance (d,) for a diagonal or (d, d). Raises InputError on a covariance that is not positive semidefinite."""
        m = torch.as_tensor(np.asarray(mean, dtype=float)).ravel()
        c = torch.as_tensor(np.asarray(covariance, dtype=float))
        if c.ndim == 1 and len(c) == len(m) and bool((c >= 0).all()):
            return Background(m, c)
        if c.shape != (len(m), len(m)):
            raise InputError(f"Background.gaussian: covariance {tuple(c.shape)} must be ({len(m)},) and ≥ 0, or ({len(m)}, {len(m)}).")
        values, vectors = torch.linalg.eigh((c + c.T) / 2)
        if float(values[0]) < -1e-9 * max(float(values[-1]), 1e-300):
            raise InputError(
                f"Background.gaussian: the covariance has the negative eigenvalue {float(values[0]):.3g}; it must be positive semidefinite."
            )
        factor = torch.sqrt(torch.clamp(values, min=0.0))[:, None] * vectors.T
        return Background(m, torch.diagonal(c).clone(), factor.flip(0))

    @staticmethod
    def from_data(X: ArrayLike | Tensor) -> Background:
        """Sample mean and covariance of the rows of X (n, …): what the training data vary like. Raises InputError on fewer than two rows."""
        data = torch.as_tensor(np.asarray(X.detach().cpu() if isinstance(X, Tensor) else X, dtype=float)).flatten(1)
        if len(data) < 2 or not bool(torch.isfinite(data).all()):
            raise InputError(f"Background.from_data: {len(data)} rows; give at least two rows of finite numbers.")
        centred = data - data.mean(0)
        _, s, vectors = torch.linalg.svd(centred / (len(data) - 1) ** 0.5, full_matrices=False)
        return Background(data.mean(0), centred.square().sum(0) / (len(data) - 1), s[:, None] * vectors)

    def truncated(self, rank: int) -> Tensor:
        """(r, d): the rows of R with the largest norm, r ≤ rank. The root of a diagonal covariance where no factor is known."""
        rows = torch.diag(torch.sqrt(self.variance)) if self.factor is None else self.factor
        order = torch.argsort(rows.square().sum(1), descending=True, stable=True)
        return rows[order[:rank]]

    def sample(self, n: int, seed: int) -> Tensor:
        """(n, d) draws."""
        generator = torch.Generator().manual_seed(seed)
        if self.box is not None:
            return self.box[0] + (self.box[1] - self.box[0]) * torch.rand(n, len(self.mean), generator=generator, dtype=torch.float64)
        if self.factor is None:
            return self.mean + torch.sqrt(self.variance) * torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + torch.randn(n, len(self.factor), generator=generator, dtype=torch.float64) @ self.factor

    def to(self, device: torch.device | str | None) -> Background:
        return Background(
            self.mean.to(device), self.variance.to(device), None if self.factor is None else self.factor.to(device), self.box
        )  # fmt: skip


class Distortion(Protocol):
    """D of one input and output."""

    reference: float  # f(x)

    def __call__(self, s: Tensor) -> Tensor:
        """(B, d) → (B,)"""


class MomentDistortion:
    """½[(μ − f(x))² + V]. mode "diagonal"; "low-rank" keeps the `rank` leading directions of the background; "full" keeps all."""

    def __init__(self, model: nn.Module, x: Tensor, output: int, background: Background, mode: str = "diagonal", rank: int = 30) -> None:
        self.layers, self.x, self.output, self.shape = layers_of(model), x.reshape(-1), output, tuple(x.shape)
        self.mean, self.variance = background.mean.to(x), background.variance.to(x)
        self.factor = None if mode == "diagonal" else background.truncated(len(self.x) if mode == "full" else rank).to(x)
        self.reference = float(model(x[None])[0, output])

    def moments(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(μ, V) (B,) of the output."""
        rest = 1 - s
        mean = (s * self.x + rest * self.mean).reshape(-1, *self.shape)
        if self.factor is None:
            g = propagate(self.layers, Gaussian(mean, (rest**2 * self.variance).reshape(-1, *self.shape)))
        else:
            g = propagate(self.layers, Gaussian(mean, None, (rest[:, None] * self.factor).reshape(len(s), -1, *self.shape)))
        return g.mean[:, self.output], g.spread[:, self.output]

    def __call__(self, s: Tensor) -> Tensor:
        mu, v = self.moments(s)
        return 0.5 * ((mu - self.reference) ** 2 + v)


class SampledDistortion:
    """½ (1/n) Σ_j (f(x) − f(s⊙x + (1 − s)⊙n_j))² over n = `samples` fixed draws."""

    def __init__(self, model: nn.Module, x: Tensor, output: int, background: Background, samples: int = 64, seed: int = 0) -> None:
        if samples < 2:
            raise InputError(f"samples={samples} must be at least 2.")
        self.model, self.x, self.output, self.shape = model, x.reshape(-1), output, tuple(x.shape)
        self.draws = background.sample(samples, seed).to(x)
        self.reference = float(model(x[None])[0, output])

    def _losses(self, s: Tensor) -> Tensor:
        """(B, n)"""
        inputs = s[:, None] * self.x + (1 - s[:, None]) * self.draws
        y = self.model(inputs.reshape(-1, *self.shape))[:, self.output]
        return torch.as_tensor(0.5 * (y.reshape(len(s), -1) - self.reference) ** 2)

    def __call__(self, s: Tensor) -> Tensor:
        return self._losses(s).mean(1)

    def interval(self, s: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """(low, high) (B,) around D(s), at the given confidence as n → ∞ (central limit theorem): s must not have been fitted to the same draws."""
        with torch.no_grad():
            losses = self._losses(s)
        half = float(norm.ppf(0.5 + confidence / 2)) * losses.std(1) / losses.shape[1] ** 0.5
        return torch.clamp(losses.mean(1) - half, min=0.0), losses.mean(1) + half


class ExactDistortion:
    """½ E[(f(x) − wᵀ max(Wz + c, 0) − b)²], z Gaussian: every pair of hidden neurons is bivariate Gaussian. O(B·hidden²) memory.

    Raises InputError on a model that is no affine–ReLU–affine chain, and on a background that is not Gaussian.
    """

    def __init__(self, model: nn.Module, x: Tensor, output: int, background: Background) -> None:
        from verification.relu_chain import ReluChain

        if background.box is not None:
            raise InputError("distortion='exact' needs a Gaussian background; use Background.gaussian or Background.from_data.")
        chain = ReluChain.from_model(model, tuple(x.shape))
        if len(chain.weights) != 2:
            raise InputError(f"distortion='exact' needs one hidden layer, the model has {len(chain.weights) - 1}; use 'sampling'.")
        self.x = x.reshape(-1)
        self.first, self.shift = (v.to(x) for v in (chain.weights[0], chain.shifts[0]))
        self.last, self.bias = chain.weights[1][output].to(x), chain.shifts[1][output].to(x)
        self.mean, self.factor = background.mean.to(x), background.truncated(len(self.x)).to(x)
        self.reference = float(model(x[None])[0, output])

    def __call__(self, s: Tensor) -> Tensor:
        rest = 1 - s
        mu = (s * self.x + rest * self.mean) @ self.first.T + self.shift  # (B, hidden)
        R = torch.einsum("bri,hi->brh", rest[:, None] * self.factor, self.first)
        covariance = torch.einsum("brh,brk->bhk", R, R)
        pairs: Tensor = _RampProducts.apply(mu, covariance)  # type: ignore[no-untyped-call]
        v = torch.diagonal(covariance, dim1=1, dim2=2)
        sd = torch.sqrt(v + _TINY)
        ramp = mu * torch.special.ndtr(mu / sd) + sd * torch.exp(-0.5 * (mu / sd) ** 2) / (2 * np.pi) ** 0.5
        offset = self.bias - self.reference
        second = torch.einsum("h,bhk,k->b", self.last, pairs, self.last)
        return 0.5 * torch.clamp(second + 2 * offset * (ramp @ self.last) + offset**2, min=0.0)


_TINY = 1e-18


def bivariate_normal(h: Array, k: Array, rho: Array) -> Array:
    """P(X ≤ h, Y ≤ k) for standard normals with correlation ρ, by Owen's T function."""
    r = np.sqrt(np.maximum((1 - rho) * (1 + rho), 1e-30))
    h = np.where(np.abs(h) < 1e-150, 1e-150, h)  # T(0, ∞) is its limit from either side
    k = np.where(np.abs(k) < 1e-150, 1e-150, k)
    with np.errstate(over="ignore"):
        total = 0.5 * (ndtr(h) + ndtr(k)) - owens_t(h, (k - rho * h) / (h * r)) - owens_t(k, (h - rho * k) / (k * r))
    return np.asarray(np.clip(total - 0.5 * (h * k < 0), 0.0, 1.0))


class _RampProducts(torch.autograd.Function):
    """E[max(X_i, 0) max(X_j, 0)] (B, h, h) for X ~ N(μ, C), μ (B, h), C (B, h, h), with its derivatives in closed form.

    ∂/∂μ_i = E[1(X_i > 0) max(X_j, 0)],  ∂/∂C_ij = P(X_i > 0, X_j > 0),  ∂/∂C_ii = ½ E[δ(X_i) max(X_j, 0)]  (Price's theorem)
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, covariance: Tensor) -> Tensor:
        mu, C = mean.detach().cpu().numpy(), covariance.detach().cpu().numpy()
        sd = np.sqrt(np.diagonal(C, axis1=1, axis2=2) + _TINY)
        h = mu / sd
        x, y, sx, sy = np.broadcast_arrays(mu[:, :, None], mu[:, None], sd[:, :, None], sd[:, None])
        a, b = np.broadcast_arrays(h[:, :, None], h[:, None])
        rho = np.clip(C / (sx * sy), -1 + 1e-15, 1 - 1e-15)
        r = np.sqrt((1 - rho) * (1 + rho))
        both = bivariate_normal(a, b, rho)
        ga, gb = norm.pdf(a) * ndtr((b - rho * a) / r), norm.pdf(b) * ndtr((a - rho * b) / r)
        joint = np.exp(-np.minimum((a**2 - 2 * rho * a * b + b**2) / (2 * r**2), 700.0)) / (2 * np.pi)
        value = (x * y + C) * both + x * sy * gb + y * sx * ga + sx * sy * r * joint
        slope_x = y * both + sy * (gb + rho * ga)  # E[1(X > 0) max(Y, 0)]
        at_zero, left = y - rho * sy * a, sy * r  # Y given X = 0
        slope_v = 0.5 * norm.pdf(a) / sx * (at_zero * ndtr(at_zero / left) + left * norm.pdf(at_zero / left))
        i = np.arange(mu.shape[1])
        single, p = ndtr(h), norm.pdf(h)
        value[:, i, i] = (mu**2 + sd**2) * single + mu * sd * p
        slope_x[:, i, i] = mu * single + sd * p  # half of d/dμ E max(X, 0)²: the pair (i, i) counts for both of its sides
        ctx.save_for_backward(*(torch.as_tensor(v).to(mean) for v in (both, slope_x, slope_v, single)))
        return torch.as_tensor(np.maximum(value, 0.0)).to(mean)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = grads
        both, slope_x, slope_v, single = ctx.saved_tensors
        g = g + g.transpose(1, 2)  # the value is symmetric: each side's derivative once for (i, j) and once for (j, i)
        to_mean = (g * slope_x).sum(2)
        diagonal = torch.diagonal(g, dim1=1, dim2=2) / 2
        off = g / 2 * both
        within = (g * slope_v).sum(2) - torch.diagonal(g * slope_v, dim1=1, dim2=2) + diagonal * single
        to_covariance = off - torch.diag_embed(torch.diagonal(off, dim1=1, dim2=2)) + torch.diag_embed(within)
        return to_mean, to_covariance


def distortion_of(
    mode: str, model: nn.Module, x: Tensor, output: int, background: Background, *, rank: int = 30, samples: int = 64, seed: int = 0
) -> Distortion:
    """The distortion of input x (*shape) by its name. Raises InputError on an unknown name and on a background of another size."""
    if mode not in MODES:
        raise InputError(f"distortion={mode!r} is not known; use one of {', '.join(MODES)}.")
    if len(background.mean) != prod(x.shape):
        raise InputError(f"background: {len(background.mean)} features, the input has {prod(x.shape)}.")
    if mode == "sampling":
        return SampledDistortion(model, x, output, background, samples, seed)
    if mode == "exact":
        return ExactDistortion(model, x, output, background)
    return MomentDistortion(model, x, output, background, mode, rank)
