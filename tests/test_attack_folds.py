"""Folds: bends are read from the network as they are, and the program over the pieces that meet is never farther and closes what slopes alone leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.norms import Norm
from formulations.sets import Box, ConvexSet, TotalVariation
from verification.attack import Budget, Effort, find_witness
from verification.attack.kinks import Kinks
from verification.attack.network import Network

PLAIN = Effort(rivals=3, steps=3, growing=0, probes=2, samples=0, polish=((2, 4),), regions=0, folds=0)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3), nn.Linear(3 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)).abs()
        y = y + nn.functional.leaky_relu(y - 0.1, 0.2)
        return self.last(nn.functional.max_pool2d(y, 3, 1, 1)[:, :, ::2, ::2].flatten(1))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.AvgPool2d(2, 1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    mlp = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    return {"conv": (conv, (1, 8, 8)), "mlp": (mlp, (20,)), "functional": (Functional(), (1, 6, 6))}


@pytest.mark.parametrize("name", networks())
def test_every_unit_is_the_maximum_of_its_pieces(name: str) -> None:
    model, shape = networks()[name]
    model = model.double().eval()
    x = torch.randn(3, *shape, dtype=torch.float64)
    with Kinks() as kinks:
        y = model(x)
    assert torch.equal(y, model(x))
    assert len(kinks.pieces) == {"conv": 3, "mlp": 2, "functional": 4}[name]
    for pieces, output in zip(kinks.pieces, kinks.outputs, strict=True):
        assert torch.equal(pieces.amax(2), output.flatten(1))


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_rows_are_the_gaps_between_pieces(name: str) -> None:
    """v_above − v_below about a point, against the network's own values a little further on; and passes are charged."""
    model, shape = networks()[name]
    x = torch.rand(2, *shape, dtype=torch.float64)
    net = Network(model.double().eval(), x, 8)
    net.decide(None)
    who = torch.tensor([0, 0, 1])
    delta = torch.zeros(3, net.d, dtype=torch.float64)
    _, _, slope, bends, weight = net.bent(delta, who)
    assert torch.equal(slope, net.linearise(delta, who)[2])
    units = torch.tensor([1, weight.shape[1] - 1, 2])
    value, gap = net.rows(delta, who, units, torch.ones(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    step = 1e-7 * torch.randn(3, net.d, dtype=torch.float64)
    _, _, moved = net.bends(step, who)
    for k in range(3):
        u = int(units[k])
        assert float(value[k]) == pytest.approx(bends.value(k, u, 1) - bends.value(k, u, 0))
        assert moved.value(k, u, 1) - moved.value(k, u, 0) == pytest.approx(float(value[k] + gap[k] @ step[k]), abs=1e-12)
    assert net.backward_passes.tolist() == [6, 3]
    assert net.forward_passes.tolist() == [9, 5]


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_folds_are_never_farther_and_often_nearer(p: Any, name: str) -> None:
    model, shape = networks()[name]
    model, x, C = model.double().eval(), torch.rand(6, *shape, dtype=torch.float64), Box(0, 1)
    before, after = (find_witness(model, x, p, C, effort=e) for e in (PLAIN, replace(PLAIN, folds=8)))
    assert (after.upper <= before.upper * (1 + 1e-9)).all()
    assert (after.forward <= Budget().forward).all()
    assert (after.backward <= Budget().backward).all()
    for i in np.flatnonzero(after.found):
        z = x[i] + torch.tensor(after.delta[i]).view(shape)
        assert z.min() >= 0
        assert z.max() <= 1
        assert model(z[None]).argmax() != model(x[i : i + 1]).argmax()
        assert after.upper[i] == pytest.approx(float(Norm.of(p).value(after.delta[i])))


def test_a_corner_of_two_pieces_is_met_exactly() -> None:
    """max(1 − x, 1 − y) > 0 falls at (1, 1) alone for equal lengths: the one slope of each piece leads past it."""

    class Corner(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            rise = torch.relu(z[:, :1] - z[:, 1:]) + 1 - z[:, :1]
            return torch.cat([rise, torch.zeros_like(rise)], 1)

    x = torch.tensor([[0.3, 0.1], [0.0, 0.0], [0.2, 0.9]]).double()
    for C in (Box(-3, 3), Box(-3, 3) & TotalVariation(9.0, (1, 2))):
        sets: ConvexSet = C
        found = find_witness(Corner(), x, 2, sets, effort=replace(PLAIN, folds=8))
        exact = (1 - x).clamp(min=0).norm(dim=1).numpy()
        assert np.allclose(found.upper, exact, rtol=1e-6)


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_folds_give_the_same_bits_whatever_the_batch(p: Any) -> None:
    model, shape = networks()["mlp"]
    model, x = model.double(), torch.rand(4, *shape, dtype=torch.float64)
    effort = replace(PLAIN, folds=4)
    whole = find_witness(model, x, p, Box(0, 1), effort=effort)
    shuffled = find_witness(model, x[[2, 0, 3, 1]], p, Box(0, 1), effort=effort)
    alone = find_witness(model, x[1:2], p, Box(0, 1), effort=effort)
    assert np.array_equal(shuffled.delta, whole.delta[[2, 0, 3, 1]])
    assert np.array_equal(alone.delta[0], whole.delta[1])
    assert np.array_equal(shuffled.passes, whole.passes[[2, 0, 3, 1]])


def test_smooth_networks_have_no_folds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.rand(3, 5, dtype=torch.float64)
    before, after = (find_witness(model, x, 2, effort=e) for e in (PLAIN, replace(PLAIN, folds=5)))
    assert np.array_equal(before.upper, after.upper)
    assert (after.backward <= before.backward + 1).all()
