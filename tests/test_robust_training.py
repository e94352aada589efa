"""Robust training: the loss bounds every loss within the radius, and its gradient reaches the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from formulations.errors import InputError
from lde_cvx.data import digits
from lde_cvx.models import mlp, split_rows
from lde_cvx.robust_training import certified_accuracy, train_robust
from verification.dual_network.regulariser import margin_bounds, robust_loss


def test_the_bounds_hold_and_the_loss_is_the_worst_one():
    """Against random and corner changes of the ball within the box; at radius 0 both are exact."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        model = mlp((5, 12, 12, 4), seed)
        x, y = torch.rand(6, 5, generator=generator, dtype=torch.float64), torch.randint(4, (6,), generator=generator)
        for r in (0.0, 0.02, 0.2):
            bounds, loss = margin_bounds(model, x, y, r), float(robust_loss(model, x, y, r))
            for k in range(40):
                change = r * (torch.rand(6, 5, generator=generator, dtype=torch.float64) * 2 - 1)
                z = (x + (change.sign() * r if k % 2 else change)).clamp(0, 1)
                scores = model(z)
                margins = scores.gather(1, y[:, None]) - scores
                assert bool((bounds <= margins + 1e-9).all())
                assert float(nn.functional.cross_entropy(scores, y)) <= loss + 1e-9
            if r == 0:
                assert float(nn.functional.cross_entropy(model(x), y)) == pytest.approx(loss)


def test_the_gradient_reaches_the_weights():
    model = mlp((5, 8, 8, 3), 0)
    x, y = torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    robust_loss(model, x, y, 0.1).backward()
    weight = model[2].weight
    i, j = (int(v) for v in torch.nonzero(weight.grad.abs() == weight.grad.abs().max())[0])
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            weight[i, j] += h
            values.append(float(robust_loss(model, x, y, 0.1)))
            weight[i, j] -= h
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(weight.grad[i, j]), rel=1e-4)


@pytest.mark.slow
def test_it_certifies_twenty_points_more_than_ordinary_training():
    """Digits 64-64-64-64-64-10 at ℓ∞ .05, the same recipe with and without the regulariser: ≥ 20 points of certified accuracy for ≤ 3 of clean."""
    data = digits()
    train, test = split_rows(data.y, 0.25, 0)
    x, y = torch.tensor(data.X[test]), data.y[test]
    clean, sound = certified_accuracy(train_robust(data.X[train], data.y[train], hidden=(64,) * 4, kappa=0), x, y, 0.05)
    ours, certified = certified_accuracy(train_robust(data.X[train], data.y[train], hidden=(64,) * 4), x, y, 0.05)
    assert certified >= sound + 0.2
    assert ours >= clean - 0.03


def test_bad_input():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="Tanh"):
        margin_bounds(model, torch.rand(2, 5), torch.tensor([0, 1]), 0.1)
    with pytest.raises(InputError, match="radius"):
        train_robust([[0.0, 1.0]], [0], radius=-1.0)
    with pytest.raises(InputError, match="expected"):
        train_robust([[0.0, 1.0]], [0, 1])
