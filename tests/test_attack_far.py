"""Witnesses far out on sets without end: the search has no scale of its own, stays in the set and in its budget, and costs bounded sets nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.sets import Box, Polytope
from formulations.sets.base import ConvexSet
from verification.attack import Budget, Effort, find_witness

DIM = 4
SETS: dict[str, ConvexSet | None] = {
    "all": None,
    "half-open box": Box([0, -np.inf, -np.inf, 0], np.inf),
    "wedge": Polytope(np.ones((1, DIM)), [3.0 * DIM]),
}


def far_off(scale: float, seed: int) -> nn.Sequential:
    """Class 0 within about `scale` of the origin: every unit is dead there, so no slope at x0 leads anywhere."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        net[0].bias.copy_(-scale * (0.5 + torch.rand(8)))
        net[2].weight[1] = net[2].weight[1].abs()
        net[2].weight[0] = 0
        net[2].bias.copy_(torch.tensor([0.1 * scale, 0.0]))
    return net


CASES = [(p, kind, scale) for p in (1, 2, "inf") for kind in ("all", "half-open box") for scale in (1e2, 1e4, 1e6)]


@pytest.mark.parametrize(("p", "kind", "scale"), [*CASES, (2, "wedge", 1e4), (2, "wedge", 1e6)])
def test_flips_are_found_at_any_distance(p: Any, kind: str, scale: float) -> None:
    x, C = torch.full((1, DIM), 0.5).double(), SETS[kind]
    net = far_off(scale, seed=3)
    found = find_witness(net, x, p, C)
    assert found.found.all()
    z = x + torch.tensor(found.delta)
    assert net(z).argmax(1) == 1
    assert C is None or C.relative_to(x[0].numpy()).contains(found.delta[0])
    assert found.forward[0] <= Budget().forward
    assert scale * 0.1 < found.upper[0] < 1e3 * scale  # near the kinks, not at the last power of ten
    assert found.upper[0] == pytest.approx(np.linalg.norm(found.delta[0], float(p)), rel=1e-9)


def test_a_set_with_an_end_costs_no_pass_more_and_small_budgets_are_kept() -> None:
    x, net = torch.full((3, DIM), 0.5).double(), far_off(1e5, seed=0)
    with_rays, without = (find_witness(net, x, 2, Box(-9, 9), effort=Effort(rays=k)) for k in (32, 0))
    assert not with_rays.found.any()
    assert (with_rays.forward == without.forward).all()
    for forward in (5, 60, 300):
        assert (find_witness(net, x, 2, budget=Budget(forward, 20)).forward <= forward).all()
    alone = find_witness(net, x[:1], 2)
    assert alone.upper[0] == find_witness(net, x, 2).upper[0]
