"""What one case asks, drawn from (seed, number) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from formulations.norms import Array, Norm
from formulations.sets import Box, ConvexSet, LpBall, Polytope, TotalVariation
from lde_cvx.campaign.networks import Random, Shape, draw
from lde_cvx.searching import check_searchable

FAMILIES = ("mlp", "mlp", "mlp", "residual", "conv", "mlp", "residual", "conv", "cancelling", "forgetful")
METHODS = (*("crown",) * 8, *("ibp",) * 2, "crown-ibp", "alpha-crown", *("branching",) * 3, "exact")
SETS = ("none", "none", "box", "box", "box", "change", "change", "tv", "polytope", "ball", "equal")


@dataclass(frozen=True, eq=False)
class Case:
    """A network in evaluation mode (weights in `dtype`), an input x0 (*shape), a norm, a set (None: all changes) and a bound method."""

    number: int
    family: str
    dtype: str
    net: nn.Sequential
    x0: Array
    norm: Norm
    set_name: str
    constraints: ConvexSet | None
    method: str

    @property
    def words(self) -> dict[str, object]:
        layers = " ".join(type(m).__name__ for m in self.net)
        return {"case": self.number, "family": self.family, "layers": layers, "dtype": self.dtype, "inputs": self.x0.size, "norm": self.norm.label,
                "set": self.set_name, "method": self.method}  # fmt: skip


def case(seed: int, number: int) -> Case:
    rng = np.random.default_rng([seed, number])
    family = FAMILIES[number % len(FAMILIES)]
    net, shape = draw(family, rng)
    dtype = "float32" if rng.random() < 0.4 else "float64"
    x0 = rng.uniform(0.2, 0.8, shape)
    if family not in ("cancelling", "forgetful"):
        _narrow(net, x0, float(rng.uniform(0.3, 0.98)))
    net = net.float() if dtype == "float32" else net
    name = SETS[int(rng.integers(len(SETS)))]
    method = METHODS[int(rng.integers(len(METHODS)))]
    if family not in ("mlp", "conv") and method == "alpha-crown":
        method = "crown"
    if method == "exact" and check_searchable(net, x0.shape, None) is None:
        method = "branching"  # it splits inputs there
    return Case(number, family, dtype, net, x0, _norm(rng, x0.size), name, _set(name, rng, x0, shape), method)


def _narrow(net: nn.Sequential, x0: Array, share: float) -> None:
    """Lifts the rivals' outputs at x0 by a share of what they lack, so that the boundary comes near."""
    last = net[len(net) - 1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        y = net(torch.as_tensor(x0)[None])[0]
        last.bias.add_(share * (y.max() - y))


def _norm(rng: Random, d: int) -> Norm:
    p: float | str = (1, 2, "inf")[int(rng.integers(3))]
    return Norm.of(p) if rng.random() < 0.7 else Norm(p, rng.uniform(0.5, 2, d))


def _set(name: str, rng: Random, x0: Array, shape: Shape) -> ConvexSet | None:
    """A set that holds x0, inside the unit box of the input unless it says "change" or "none"."""
    d, x = x0.size, x0.ravel()
    if name == "none":
        return None
    if name == "box":
        return Box(0, 1)
    if name == "change":
        return Box(-rng.uniform(0.05, 1, d), rng.uniform(0.05, 1, d), on="change")
    if name == "tv":
        grid = shape if len(shape) == 1 else (shape[0] * shape[1], shape[2])
        return Box(0, 1) & TotalVariation(float(rng.uniform(0.2, 2)), grid)
    if name == "polytope":
        G = rng.normal(size=(3, d))
        return Box(0, 1) & Polytope(G, G @ x + rng.uniform(0.05, 0.5, 3) * np.sqrt(d))
    if name == "ball":
        return Box(0, 1) & LpBall(2, float(rng.uniform(0.1, 1)))
    return Box(0, 1) & Polytope(None, None, equal=(np.ones((1, d)), np.zeros(1)), on="change")


def evaluate32(net: nn.Module, points: Array) -> Array:
    """f in float32, whatever the weights' type."""
    import copy

    with torch.no_grad():
        out: Array = copy.deepcopy(net).float()(torch.as_tensor(points, dtype=torch.float32)).double().numpy()
    return out
