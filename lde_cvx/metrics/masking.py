r"""LEG's and RDE's own tests of a map.

    log odds    log p/(1 − p) of the target with the α largest |relevance| replaced, minus the same at α = 0
    key size    the smallest share α of features, largest |relevance| first, whose replacement changes the predicted class; 1 where none does
    ordering    least relevant replaced first by noise, in groups: mean squared change of the target's probability, and how often the class stays

Sources: Luo, Barut, Jin, "Statistically consistent saliency estimation"; Macdonald, Wäldchen, Hauch, Kutyniok (2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.attribution import values
from lde_cvx.metrics.removal import Curve, Fill, ask, blend, filled, marks, order_of


def log_odds_curve(
    model: nn.Module, x: Tensor, maps: Tensor, *, target: object = None, fill: Fill | Tensor = "zero", most: float = 0.5,
    steps: int | None = None, seed: int = 0,
) -> Curve:  # fmt: skip
    """Change of the target's log odds at shares 0 … `most`; lower is better. Probabilities are kept 1e-12 away from 0 and 1."""
    if not 0 < most <= 1:
        raise InputError(f"most={most} must lie in (0, 1].")
    asked = ask(model, x, maps, target)
    counts = marks(asked.d, steps)
    counts = counts[counts <= most * asked.d]
    order, other = order_of(asked.maps, seed, size=True), filled(asked.x, fill, seed)
    rows = []
    for i in range(len(asked.x)):
        p = np.clip(asked.score(blend(asked.x[i], other[i], order[i], counts), i, "probability"), 1e-12, 1 - 1e-12)
        odds = np.log(p) - np.log1p(-p)
        rows.append(odds - odds[0])
    return Curve(counts / asked.d, np.stack(rows))


def key_size(
    model: nn.Module, x: Tensor, maps: Tensor, *, fill: Fill | Tensor = "zero", steps: int | None = None, size: bool = True, seed: int = 0
) -> Array:
    """(n,) the smallest share whose replacement changes the predicted class (of one output: its sign); smaller is better."""
    asked = ask(model, x, maps)
    counts, order, other = marks(asked.d, steps), order_of(asked.maps, seed, size=size), filled(asked.x, fill, seed)
    out = np.ones(len(asked.x))
    for i in range(len(asked.x)):
        y = values(asked.model, blend(asked.x[i], other[i], order[i], counts))
        side = (y[:, 0] > 0) if y.shape[1] == 1 else y.argmax(1)
        changed = np.flatnonzero((side != side[0]).cpu().numpy())
        if len(changed):
            out[i] = counts[changed[0]] / asked.d
    return out


@dataclass(frozen=True, eq=False)
class OrderingTest:
    """shares (k,) of features kept, falling from 1 to 0; distortion (n, k) = E[(p(x) − p(y))²] of the target's probability; accuracy (n, k): how often

    the predicted class of x is kept. `area` (n,): the distortion's, over the shares: lower is better.
    """

    shares: Array
    distortion: Array
    accuracy: Array

    @property
    def area(self) -> Array:
        return np.asarray(np.trapezoid(self.distortion[:, ::-1], self.shares[::-1], axis=1))


def ordering_test(
    model: nn.Module, x: Tensor, maps: Tensor, *, target: object = None, group: int = 5, samples: int = 64, seed: int = 0
) -> OrderingTest:
    """Features replaced by uniform noise between the input's extremes, least relevant first, `group` at a time, over `samples` draws of the noise."""
    if group < 1 or samples < 1:
        raise InputError(f"group={group} and samples={samples} must be at least 1.")
    asked = ask(model, x, maps, target)
    d = asked.d
    counts = np.unique(np.append(np.arange(0, d, group), d))
    order = order_of(asked.maps, seed).flip(1)
    generator = torch.Generator().manual_seed(seed)
    moved, kept = [], []
    for i, point in enumerate(asked.x):
        low, high = float(point.min()), float(point.max())
        noise = low + (high - low) * torch.rand(samples, *point.shape, generator=generator, dtype=point.dtype).to(point.device)
        rank = torch.empty_like(order[i])
        rank[order[i]] = torch.arange(d, device=rank.device)
        here = asked.score(point[None], i, "probability")[0]
        with torch.no_grad():
            chosen = int(asked.model(point[None])[0].argmax())
        change, same = [], []
        for k in counts:
            taken = (rank < int(k)).reshape(point.shape)
            with torch.no_grad():
                y = asked.model(torch.where(taken, noise, point))
            p = (torch.sigmoid(y) if y.shape[1] == 1 else torch.softmax(y, 1))[:, asked.targets[i]]
            change.append(float((p - here).square().mean()))
            same.append(float((y.argmax(1) == chosen).double().mean()))
        moved.append(change)
        kept.append(same)
    return OrderingTest(1.0 - counts / d, np.array(moved), np.array(kept))
