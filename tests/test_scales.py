"""Rows at many scales: each one against its definition, the certified ones against real flips, and the gain over a single scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from formulations.sets.intersection import Intersection
from lde_cvx.models import digits_model
from verification.scales import RowKind, multiscale

X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), activation(), nn.Linear(12, 12), activation(), nn.Linear(12, 3)).double().eval()


@pytest.mark.parametrize(("norm", "C"), [
    (1, None), (2, None), ("inf", lde.Box(0, 1)), (2, lde.Box(0, 1)), (2, lde.Box(0, 1) & lde.TotalVariation(0.5, shape=(5,))),
])  # fmt: skip
def test_certified_rows_hold_and_the_answer_is_the_largest(norm, C):
    """No certified value exceeds a real flip's distance; the answer is their maximum, at least the single scale's."""
    model, x = net(), X[:2] if isinstance(C, Intersection) else X
    upper = lde.find_witness(model, x, norm, C).upper
    for i, r in enumerate(multiscale(model, x, norm, C, samples=8, scales=(0.5, 0.8, 1.3), refine=2)):
        sound = [row.value for row in r.rows if row.certified]
        assert r.lower == max(sound)
        assert r.lower <= upper[i] * (1 + 1e-9)
        assert r.lower >= r.single
        assert any(row is r.chosen for row in r.rows)
        assert all(row.value <= row.scale for row in r.rows if row.certified and np.isfinite(row.value))


def test_a_linear_network_looks_the_same_at_every_scale():
    """Every row, smoothed, secant or sound, is the gradient; the proof at scale r is r itself up to the true radius, and that beyond."""
    torch.manual_seed(1)
    model = nn.Linear(5, 2).double()
    W = (model.weight[0] - model.weight[1]).detach().numpy()
    h = np.abs((model(X)[:, 0] - model(X)[:, 1]).detach().numpy())
    true = h / np.linalg.norm(W)
    witness = lde.find_witness(model, X, 2)
    for i, r in enumerate(multiscale(model, X, 2, witnesses=witness.delta, samples=4)):
        assert r.linear == pytest.approx(true[i], rel=1e-9)
        assert r.lower == pytest.approx(true[i], rel=1e-6)
        for row in r.rows:
            assert row.value == pytest.approx(true[i] if not row.certified else min(row.scale, true[i]), rel=1e-5)


def test_smoothed_gradients_are_averages():
    """One layer of |z|-like kinks in one dimension: E m'(x + Z) = ½(erf-like) has a closed form, Φ(x/σ)·slopes."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
        model[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[0.3]], dtype=torch.float64)
    (r,) = multiscale(model, x, 2, scales=(0.5, 1.0), samples=200_000, refine=0)
    for row in (row for row in r.rows if row.kind is RowKind.SMOOTHED):
        sigma = row.scale / np.sqrt(2 / np.pi)  # E|Z| = σ√(2/π)
        share = float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.3 / sigma)))
        assert row.value == pytest.approx(0.8 / share, rel=5e-3)


def test_the_secant_row_falls_at_the_witness():
    """It is the gradient changed least so that it meets 0 at δ_w; so its own radius never exceeds the witness's distance."""
    model = net(nn.Tanh, 3)
    found = lde.find_witness(model, X, 2)
    seen = 0
    for i, r in enumerate(multiscale(model, X, 2, witnesses=found.delta, samples=0)):
        rows = [row for row in r.rows if row.kind is RowKind.SECANT]
        assert len(rows) == int(np.isfinite(found.upper[i]))
        for row in rows:
            seen += 1
            assert row.scale == pytest.approx(found.upper[i])
            assert row.value <= row.scale * (1 + 1e-9)
    assert seen >= 4


@pytest.mark.parametrize(
    ("C", "count"), [(None, 50), *(pytest.param(C, 100, marks=pytest.mark.slow) for C in (None, lde.Box(0, 1)))], ids=["few", "free", "box"]
)
def test_many_scales_certify_a_fifth_more_than_one(C, count):
    """Digits, ℓ2: the median certified radius, and never below, input by input; no proof beyond a real flip."""
    trained, data = digits_model()
    x = torch.tensor(data.X[trained.test_rows])
    x = x[(trained.model(x).argmax(1).numpy() == data.y[trained.test_rows])][:count]
    found = multiscale(trained.model, x, 2, C, samples=0)
    lower, single = np.array([r.lower for r in found]), np.array([r.single for r in found])
    assert (lower >= single).all()
    assert (lower <= lde.find_witness(trained.model, x, 2, C).upper * (1 + 1e-9)).all()
    assert np.median(lower) >= 1.2 * np.median(single)


def test_the_table_and_the_plot(tmp_path):
    from lde_cvx.scale_plot import scale_plot

    (r,) = multiscale(net(nn.Tanh), X[:1], 2, samples=8, witnesses=lde.find_witness(net(nn.Tanh), X[:1], 2).delta)
    frame = r.to_frame()
    assert frame.chosen.sum() == 1
    assert set(frame.kind) == {"smoothed", "secant", "minorant", "capped"}
    assert frame[frame.chosen].value.item() == r.lower
    scale_plot(r, upper=1.0).savefig(tmp_path / "scales.png")
    assert (tmp_path / "scales.png").stat().st_size > 5000


@pytest.mark.parametrize("scales", [(0.0,), (-1.0, 1.0), (float("nan"),)])
def test_bad_scales(scales):
    with pytest.raises(lde.InputError, match="scales"):
        multiscale(net(), X, 2, scales=scales)
