r"""What becomes of a score while features are replaced in the order of their relevance.

    deletion    f(x with the k most relevant features replaced), k = 0 … d;   lower is better
    insertion   f(the replacement with the k most relevant features put back);   higher is better
    AURC        area under a removal curve over k/d, by trapezoids

Source: Petsiuk, Das, Saenko (2018) for both curves. Curves are of the softmax probability of the target, or of its raw score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.attribution import targets_of, values
from verification.model import float64_copy, outputs

Fill = Literal["zero", "mean", "blur", "noise"]
FILLS = ("zero", "mean", "blur", "noise")
Scores = Literal["probability", "raw"]


@dataclass(frozen=True, eq=False)
class Curve:
    """values (n, k) of each input at the shares (k,) of features replaced or put back, from 0 to 1."""

    shares: Array
    values: Array

    @property
    def area(self) -> Array:
        """(n,): ∫ value d(share), by trapezoids."""
        return np.asarray(np.trapezoid(self.values, self.shares, axis=1))

    @property
    def mean(self) -> Array:
        """(k,)"""
        return np.asarray(self.values.mean(0))


@dataclass(frozen=True, eq=False)
class Asked:
    """A model, inputs and maps made ready: x and maps (n, *shape) float64, one target each."""

    model: nn.Module
    x: Tensor
    maps: Tensor
    targets: list[int]

    @property
    def d(self) -> int:
        return self.x[0].numel()

    def score(self, points: Tensor, i: int, scores: Scores) -> Array:
        """(k,) of the points (k, *shape) for input i's target."""
        y = values(self.model, points)
        if scores == "probability":
            y = torch.sigmoid(y) if y.shape[1] == 1 else torch.softmax(y, 1)
        return np.asarray(y[:, self.targets[i]].cpu().numpy())


def ask(model: nn.Module, x: Tensor, maps: Tensor, target: object = None) -> Asked:
    """Checks what every metric is given. Raises InputError on maps of another shape, values that are not finite, and targets that are no outputs."""
    twin = float64_copy(model)
    points = torch.as_tensor(x).detach().double()
    relevance = torch.as_tensor(maps).detach().double()
    if points.ndim < 2 or not len(points):
        raise InputError(f"metrics: inputs of shape {tuple(points.shape)} must be a batch (n, *shape) of at least one input.")
    if relevance.shape != points.shape:
        raise InputError(f"metrics: maps of shape {tuple(relevance.shape)} do not fit inputs of shape {tuple(points.shape)}.")
    if not bool(torch.isfinite(relevance).all()):
        raise InputError("metrics: the maps hold a value that is not finite; the explainer failed on that input.")
    return Asked(twin, points, relevance, targets_of(outputs(twin, points), target))


def order_of(maps: Tensor, seed: int = 0, *, size: bool = False) -> Tensor:
    """(n, d) feature numbers, most relevant first; equal relevance in a random order. `size`: by |relevance|."""
    flat = maps.flatten(1).abs() if size else maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.stack([torch.randperm(flat.shape[1], generator=generator) for _ in range(len(flat))]).to(flat.device)
    ranked = torch.argsort(flat.gather(1, shuffle), dim=1, descending=True, stable=True)
    return shuffle.gather(1, ranked)


def filled(x: Tensor, fill: Fill | Tensor, seed: int = 0) -> Tensor:
    """What replaces the features of x (n, *shape): zeros, each input's mean, the input blurred (Gaussian, a quarter of its side), uniform noise between each

    input's extremes, or a tensor (one input, or one per input).
    """
    if isinstance(fill, Tensor):
        if tuple(fill.shape) not in (tuple(x.shape), tuple(x.shape[1:])):
            raise InputError(f"fill: shape {tuple(fill.shape)} must be that of one input, {tuple(x.shape[1:])}, or of all.")
        return fill.to(x).expand_as(x)
    if fill == "zero":
        return torch.zeros_like(x)
    per_input = x.flatten(1)
    if fill == "mean":
        return per_input.mean(1).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
    if fill == "noise":
        generator = torch.Generator().manual_seed(seed)
        low, high = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in (per_input.min(1).values, per_input.max(1).values))
        return low + (high - low) * torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    if fill == "blur":
        from scipy.ndimage import gaussian_filter

        if x.ndim < 3:
            raise InputError(f"fill='blur' needs images (…, h, w), got inputs of shape {tuple(x.shape[1:])}.")
        widths = [0.0] * (x.ndim - 2) + [x.shape[-2] / 4, x.shape[-1] / 4]
        return torch.as_tensor(gaussian_filter(x.cpu().numpy(), widths)).to(x)
    raise InputError(f"fill={fill!r} is not known; use one of {', '.join(FILLS)}, or a tensor.")


def marks(d: int, steps: int | None) -> Array:
    """Numbers of replaced features at which a curve is evaluated: 0 … d in `steps` equal steps (rounded), every one where None."""
    if steps is not None and steps < 1:
        raise InputError(f"steps={steps} must be at least 1.")
    return np.unique(np.round(np.linspace(0, d, (d if steps is None else min(steps, d)) + 1)).astype(int))


def blend(x: Tensor, other: Tensor, order: Tensor, counts: Array) -> Tensor:
    """(k, *shape): x (*shape) with the first counts[k] features of `order` (d,) taken from `other`."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    taken = rank[None] < torch.as_tensor(counts, device=order.device)[:, None]
    return torch.where(taken.reshape(-1, *x.shape), other, x)


def _curve(asked: Asked, start: Tensor, end: Tensor, order: Tensor, steps: int | None, scores: Scores) -> Curve:
    if scores not in ("probability", "raw"):
        raise InputError(f"scores={scores!r} is not known; use 'probability' or 'raw'.")
    counts = marks(asked.d, steps)
    values = [asked.score(blend(start[i], end[i], order[i], counts), i, scores) for i in range(len(start))]
    return Curve(counts / asked.d, np.stack(values))


def deletion(
    model: nn.Module, x: Tensor, maps: Tensor, *, target: object = None, fill: Fill | Tensor = "zero", steps: int | None = None,
    scores: Scores = "probability", size: bool = False, seed: int = 0,
) -> Curve:  # fmt: skip
    """The target's score while the most relevant features are replaced first. `size`: ordered by |relevance|."""
    asked = ask(model, x, maps, target)
    return _curve(asked, asked.x, filled(asked.x, fill, seed), order_of(asked.maps, seed, size=size), steps, scores)


def insertion(
    model: nn.Module, x: Tensor, maps: Tensor, *, target: object = None, fill: Fill | Tensor = "zero", steps: int | None = None,
    scores: Scores = "probability", size: bool = False, seed: int = 0,
) -> Curve:  # fmt: skip
    """The target's score while the most relevant features are put into the replacement first."""
    asked = ask(model, x, maps, target)
    return _curve(asked, filled(asked.x, fill, seed), asked.x, order_of(asked.maps, seed, size=size), steps, scores)


def removal_curve(
    model: nn.Module, x: Tensor, maps: Tensor, *, first: Literal["most", "least"] = "most", target: object = None,
    fill: Fill | Tensor = "zero", steps: int | None = None, scores: Scores = "probability", size: bool = False, seed: int = 0,
) -> Curve:  # fmt: skip
    """Deletion ("most" relevant first), or its mirror ("least" relevant first: higher is better); `.area` is the AURC."""
    if first not in ("most", "least"):
        raise InputError(f"first={first!r} is not known; use 'most' or 'least'.")
    asked = ask(model, x, maps, target)
    order = order_of(asked.maps, seed, size=size)
    return _curve(asked, asked.x, filled(asked.x, fill, seed), order if first == "most" else order.flip(1), steps, scores)


def aurc(curve: Curve) -> Array:
    """(n,): the area under a removal curve."""
    return curve.area
