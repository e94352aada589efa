"""Where explanations lie, on inputs whose deciding features are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from formulations.errors import InputError
from lde_cvx.baselines import baseline
from lde_cvx.localisation import mosaics, watermarks
from lde_cvx.metrics import iou, paired_test, pointing_game, relevance_mass
from lde_cvx.models import train_mlp


def test_the_truth_is_exact() -> None:
    found = mosaics(40, seed=1)
    assert found.X.shape == found.masks.shape == (40, 1, 16, 16)
    assert (found.masks.sum((1, 2, 3)) == 64).all()
    assert set(found.y.tolist()) == {0, 1}
    np.testing.assert_array_equal(mosaics(40, seed=1).X, found.X)
    # what lies outside the box says nothing: the same tiles occur under both labels
    outside = found.X[~found.masks].reshape(40, -1).mean(1)
    assert abs(outside[found.y == 0].mean() - outside[found.y == 1].mean()) < 0.05
    planted = watermarks(50, corner=(5, 3), size=3)
    assert (planted.masks.sum(1) == 9).all()
    np.testing.assert_array_equal(planted.X[planted.masks].reshape(50, 9), np.repeat(planted.y[:, None], 9, 1).astype(float))
    for call in (lambda: watermarks(5, corner=(7, 0)), lambda: mosaics(0), lambda: watermarks(0)):
        with pytest.raises(InputError):
            call()


def mosaic_net() -> tuple[nn.Module, float]:
    """A small convolutional network, trained in seconds on 1200 mosaics, and its accuracy on held-out digits."""
    train, test = mosaics(1200, seed=0), mosaics(200, seed=1, held_out=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(12, 24, 3), nn.ReLU(), nn.MaxPool2d(6), nn.Flatten(), nn.Linear(24, 2),
        )  # fmt: skip
        X, y = torch.tensor(train.X, dtype=torch.float32), torch.tensor(train.y)
        optimiser = torch.optim.Adam(net.parameters(), 4e-3)
        for _ in range(10):
            for batch in torch.randperm(len(X)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(X[batch]), y[batch]).backward()
                optimiser.step()
    net = net.double().eval().requires_grad_(False)
    right = net(torch.tensor(test.X)).argmax(1).numpy() == test.y
    return net, float(right.mean())


@pytest.mark.slow
def test_digit_mosaics_by_the_pointing_game() -> None:
    pytest.importorskip("captum")
    net, accuracy = mosaic_net()
    assert accuracy > 0.9
    test = mosaics(60, seed=2, held_out=True)
    x = torch.tensor(test.X)
    right = net(x).argmax(1).numpy() == test.y
    # half the pixels are 0: of a reference that equals them integrated gradients say nothing, and their rank would be that of the pixel's number
    grey = float(mosaics(1200, seed=0).X.mean())
    linearised = lde.LagrangeDualExplainer(net, norm=2, method="linear", constraints=lde.Box(0, 1), time_limit=0.2)
    maps = {
        "occlusion": baseline("occlusion", net, window=4).attribute(x),
        "integrated gradients": baseline("integrated-gradients", net, steps=32, reference=grey).attribute(x),
        "LDE (linearised)": linearised.attribute(x),
        "random": baseline("random", net).attribute(x),
    }
    hits = {k: pointing_game(m, test.masks)[right].mean() for k, m in maps.items()}
    mass = {k: relevance_mass(m, test.masks)[right].mean() for k, m in maps.items()}
    overlap = {k: iou(m, test.masks)[right] for k, m in maps.items()}
    assert abs(mass["random"] - 0.25) < 0.03  # chance: one tile of four
    for name in set(maps) - {"random"}:
        assert hits[name] > hits["random"] + 0.3
        assert mass[name] > 0.4
        assert paired_test(overlap[name], overlap["random"]).p_value < 1e-3
        assert overlap[name].mean() > overlap["random"].mean() + 0.1


def shortcuts_found(count: int) -> tuple[int, int]:
    """(networks whose largest LDE score lies on the watermark, networks whose largest scores are exactly its pixels), one input each."""
    first = whole = 0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(1, 4))
        corner = (int(rng.integers(0, 9 - size)), int(rng.integers(0, 9 - size)))
        data = watermarks(400, seed, corner=corner, size=size)
        net = train_mlp(data.X, data.y, hidden=(16,), seed=seed, epochs=8, learning_rate=1e-2).model
        e = lde.LagrangeDualExplainer(net, norm=2, constraints=lde.Box(0, 1), time_limit=0.5)
        scores = e.attribute(torch.tensor(data.X[:1]))
        first += int(pointing_game(scores, data.masks[:1])[0] == 1)
        whole += int(iou(scores, data.masks[:1])[0] == 1)
    return first, whole


def test_a_planted_shortcut_is_ranked_first() -> None:
    assert shortcuts_found(3)[0] == 3


@pytest.mark.slow
def test_planted_shortcuts_of_100_networks_are_ranked_first() -> None:
    first, whole = shortcuts_found(100)
    print(f"\nfirst: {first} of 100; all its pixels before all others: {whole} of 100")
    assert first >= 95
