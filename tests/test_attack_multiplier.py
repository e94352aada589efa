"""The local multiplier at a witness: exact where the network is linear, stationary where the search has settled, honest where it has not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.programs import min_norm
from formulations.sets import Box, Polytope
from tests.digits_net import correct_digits
from verification.attack import WitnessStanding, find_witness, witness_multiplier, witness_multipliers

PS: tuple[Any, ...] = (1, 2, "inf")
BALANCED = Box(-1, 1) & Polytope(None, None, equal=(np.ones((1, 5)), [0.0]), on="change")


def line(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(5, 2).double(), 0.3 * torch.randn(1, 5, dtype=torch.float64)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("C", [None, Box(-1, 1), BALANCED], ids=["everything", "box", "balanced"])
def test_on_a_linear_network_it_is_the_programs_own(p: Any, C: Any) -> None:
    model, x = line()
    found = find_witness(model, x, p, C)
    m = witness_multiplier(model, x[0], found.delta[0], p, C)
    W, y = model.weight.detach().numpy(), model(x)[0].detach().numpy()
    c = int(y.argmax())
    exact = min_norm(W[c] - W[1 - c], y[c] - y[1 - c], p, C, x[0].numpy())[0]
    assert m.standing is WitnessStanding.LOCAL_MINIMUM
    assert m.pieces == 1
    assert m.lam == pytest.approx(float(exact.multipliers["margin"][0]), rel=1e-4)
    assert np.allclose(m.slope, W[c] - W[1 - c])
    assert np.allclose(m.scores, m.lam * np.abs(W[c] - W[1 - c]))
    assert m.residual <= 1e-4
    assert m.margin <= 0


def test_lambda_is_the_slope_of_the_distance() -> None:
    """Where the boundary comes nearer by ε, the distance falls by λ·ε."""
    model, x, _ = correct_digits(4)
    base = find_witness(model, x, 2, Box(0, 1))
    for i in range(4):
        m = witness_multiplier(model, x[i], base.delta[i], 2, Box(0, 1))
        assert m.standing is WitnessStanding.LOCAL_MINIMUM
        easier = nn.Sequential(*model[:-1], nn.Linear(64, 10).double())
        with torch.no_grad():
            easier[-1].weight.copy_(model[-1].weight)
            easier[-1].bias.copy_(model[-1].bias)
            easier[-1].bias[m.rival] += 1e-3
        moved = find_witness(easier, x[i : i + 1], 2, Box(0, 1))
        assert (base.upper[i] - moved.upper[0]) / 1e-3 == pytest.approx(m.lam, rel=0.05)


@pytest.mark.parametrize("p", PS)
def test_a_far_witness_is_told_from_a_settled_one(p: Any) -> None:
    model, x, _ = correct_digits(3)
    found = find_witness(model, x, p, Box(0, 1))
    near = witness_multipliers(model, x, found.delta, p, Box(0, 1))
    assert all(m is not None and m.standing is WitnessStanding.LOCAL_MINIMUM and m.residual <= 1e-2 for m in near)
    for i in range(3):
        x1 = x[i].numpy() + found.delta[i]
        far = np.clip(x1 + 0.3 * np.random.default_rng(i).normal(size=64) * (np.arange(64) % 2), 0, 1) - x[i].numpy()
        if model(x[i : i + 1] + torch.tensor(far)).argmax() == model(x[i : i + 1]).argmax():
            continue
        m = witness_multiplier(model, x[i], far, p, Box(0, 1))
        assert m.standing is WitnessStanding.NOT_SETTLED
        assert m.shortfall > 0.05


def test_active_constraints_are_named() -> None:
    model, x = line(3)
    found = find_witness(model, x, 2, BALANCED)
    m = witness_multiplier(model, x[0], found.delta[0], 2, BALANCED)
    assert set(m.active) == set(m.multipliers) == {"box", "polytope"}
    assert m.active["polytope"].tolist() == [0]


def test_a_bend_takes_every_piece() -> None:
    """f = max(|z_0|, |z_1|)-like: the nearest flip on the diagonal lies at a corner of the flipped set, where no single slope is stationary."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(-torch.eye(2))
        model[0].bias.fill_(1.0)  # relu(1 − z_i): the margin Σ relu(1 − z_i) falls to 0 only where both z_i ≥ 1
        model[2].weight.fill_(1.0)
        model[2].bias.zero_()
    from verification.decision import Decision

    m = witness_multiplier(model, torch.zeros(2), [1.0, 1.0], 2, decision=Decision.threshold(0, 0.0, 1))
    assert m.pieces >= 2
    assert m.standing is WitnessStanding.LOCAL_MINIMUM
    assert m.lam * np.abs(m.slope) == pytest.approx(np.full(2, 0.5**0.5), rel=1e-2)  # −λa is the norm's gradient at (1, 1)


def test_errors_and_flat_places() -> None:
    model, x = line()
    with pytest.raises(InputError, match="stands at delta"):
        witness_multiplier(model, x[0], np.zeros(5))
    with pytest.raises(InputError, match="5 features"):
        witness_multiplier(model, x[0], np.zeros(4))
    found = find_witness(model, x, 2)
    with pytest.raises(InputError, match="violates"):
        witness_multiplier(model, x[0], found.delta[0], 2, Box(-1e-3, 1e-3, on="change"))
    assert witness_multipliers(model, x, np.full((1, 5), np.nan)) == [None]

    class Step(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.full_like(z[:, 0], 0.5), (z[:, 0] > 1).double()], 1) + 0 * z[:, :1]

    flat = witness_multiplier(Step(), torch.zeros(2), [1.5, 0.0], Norm(2))
    assert flat.standing is WitnessStanding.NO_SLOPE
    assert flat.residual == np.inf
    assert flat.active == {}
