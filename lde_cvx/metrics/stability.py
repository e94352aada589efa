"""How much a map moves when the input hardly does, and how far the maps of several explainers agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from formulations.sets import ConvexSet
from lde_cvx.attribution import Explainer, targets_of
from lde_cvx.metrics.certificates import importance_error
from verification.model import float64_copy, outputs


@dataclass(frozen=True, eq=False)
class Stability:
    """Between the map of x and of x moved, each (n,): Spearman's rank correlation, cosine, ‖m − m'‖₂/‖m‖₂, and the mean absolute error of the maps as

    shares of their totals (`importance_error`). Of noise the means; of an attack all four at the change with the lowest rank correlation found.
    A constant map has no direction: two constant maps agree (1, 1, and their own distance), one constant map against another agrees in nothing (0, 0).
    """

    rank: Array
    cosine: Array
    distance: Array
    shares: Array


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's ρ; equal values share their mean rank."""
    x, y = rankdata(a.ravel()), rankdata(b.ravel())
    return _alignment(x - x.mean(), y - y.mean())


def cosine(a: Array, b: Array) -> float:
    return _alignment(a.ravel(), b.ravel())


def relative_distance(a: Array, b: Array) -> float:
    """‖a − b‖₂/‖a‖₂; of a = 0: 0 where b = 0 too, else 1."""
    size = float(np.linalg.norm(a))
    moved = float(np.linalg.norm(a - b))
    return moved / size if size > 0 else float(moved > 0)


def _alignment(x: Array, y: Array) -> float:
    p, q = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if p == 0 or q == 0:
        return float(p == q)
    return float(np.clip(x @ y / (p * q), -1.0, 1.0))


def compare_maps(a: Array, b: Array) -> tuple[float, float, float, float]:
    """(rank correlation, cosine, relative distance, error of the shares) of two maps."""
    if a.shape != b.shape:
        raise InputError(f"maps of shapes {a.shape} and {b.shape} cannot be compared.")
    return rank_correlation(a, b), cosine(a, b), relative_distance(a, b), float(importance_error(a[None], b[None])[0])


def stability_under_noise(
    explainer: Explainer, model: nn.Module, x: Tensor, *, sigma: float = 0.05, repeats: int = 5, target: object = None,
    box: tuple[float, float] | None = None, allowed: ConvexSet | None = None, maps: Tensor | None = None, seed: int = 0,
) -> Stability:  # fmt: skip
    """Means over `repeats` draws of x + N(0, σ²), clipped to `box` and projected onto the set `allowed`; the target stays that of x.

    maps: those of x, where they are known. A draw that changes the predicted class is halved until it does not.
    """
    if repeats < 1 or not sigma >= 0:
        raise InputError(f"repeats={repeats} must be at least 1 and sigma={sigma} at least 0.")
    net, generator = float64_copy(model), torch.Generator().manual_seed(seed)
    y = outputs(net, x.double())
    targets = targets_of(y, target)
    here = (explainer.attribute(x, torch.tensor(targets)) if maps is None else maps).double().cpu().numpy()
    rows = []
    for _ in range(repeats):
        change = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) * sigma
        moved = _kept(net, x, change if allowed is None else _within(allowed, x, change), y.argmax(1), box)
        there = explainer.attribute(moved.to(x.dtype), torch.tensor(targets)).double().cpu().numpy()
        rows.append([compare_maps(a, b) for a, b in zip(here, there, strict=True)])
    return Stability(*np.array(rows).mean(0).T)


def stability_under_attack(
    explainer: Explainer, model: nn.Module, x: Tensor, *, radius: float = 0.05, steps: int = 20, target: object = None,
    box: tuple[float, float] | None = None, seed: int = 0,
) -> Stability:  # fmt: skip
    """The worst found in {‖δ‖_∞ ≤ radius, the predicted class kept} by random search on the rank correlation: an upper bound of the least stability.

    Each step flips the signs of a random eighth of the best change so far, and keeps what lowers the correlation.
    """
    if steps < 1 or not radius >= 0:
        raise InputError(f"steps={steps} must be at least 1 and radius={radius} at least 0.")
    net, generator = float64_copy(model), torch.Generator().manual_seed(seed)
    y = outputs(net, x.double())
    targets = torch.tensor(targets_of(y, target))
    here = explainer.attribute(x, targets).double().cpu().numpy()
    best = torch.sign(torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5).to(x.device)
    worst = np.full((len(x), 4), np.nan)
    for step in range(steps):
        flips = torch.rand(x.shape, generator=generator) < 0.125
        tried = best if step == 0 else torch.where(flips.to(x.device), -best, best)
        moved = _kept(net, x, radius * tried, y.argmax(1), box)
        there = explainer.attribute(moved.to(x.dtype), targets).double().cpu().numpy()
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            found = compare_maps(a, b)
            if not found[0] >= worst[i, 0]:
                worst[i] = found
                best[i] = tried[i]
    return Stability(*worst.T)


def _within(allowed: ConvexSet, x: Tensor, change: Tensor) -> Tensor:
    """The nearest changes that keep x + change in the set; a part of such a change keeps it too, as x itself is in the convex set."""
    near = [
        allowed.relative_to(p).project(c) for p, c in zip(x.flatten(1).double().cpu().numpy(), change.flatten(1).cpu().numpy(), strict=True)
    ]
    return torch.as_tensor(np.stack(near)).reshape(x.shape).to(change)


def _kept(net: nn.Module, x: Tensor, change: Tensor, classes: Tensor, box: tuple[float, float] | None) -> Tensor:
    """x + change in the box, each change halved until the class is kept (at most 20 times, then dropped)."""
    change = change.clone()
    for attempt in range(21):
        moved = x.double() + change
        moved = moved if box is None else moved.clamp(*box)
        with torch.no_grad():
            lost = net(moved).argmax(1) != classes
        if not bool(lost.any()):
            break
        change[lost] = change[lost] / 2 if attempt < 19 else 0.0
    return moved


def agreement(explainers: Mapping[str, Explainer], x: Tensor, target: object = None) -> tuple[tuple[str, ...], Array]:
    """(names, (k, k) mean rank correlations between their maps): of one method under several settings, its sensitivity to them (τ, p, steps, seed)."""
    if not explainers:
        raise InputError("agreement: no explainers were given.")
    maps = [e.attribute(x, target).double().cpu().numpy() for e in explainers.values()]
    table = np.array([[np.mean([rank_correlation(p, q) for p, q in zip(a, b, strict=True)]) for b in maps] for a in maps])
    return tuple(explainers), table
