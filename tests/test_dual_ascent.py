"""Dual ascent on networks: exact where the network is linear, KKT points elsewhere, and refusals with their reasons."""

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.programs import min_norm
from formulations.sets import Box, LpBall
from lde_cvx.dual_ascent import LOCAL, dual_ascent
from verification.decision import Decision


def linear(d=6, seed=0, outputs=3):
    torch.manual_seed(seed)
    return nn.Linear(d, outputs).double()


def smooth(d=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)).double()


def inputs(d, n=12, seed=1):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def runner_up(model, x):
    y = model(x).detach()
    c, t = y.topk(2, dim=1).indices.T
    rows = torch.eye(y.shape[1], dtype=torch.float64)
    return rows[c] - rows[t], (y.gather(1, c[:, None]) - y.gather(1, t[:, None]))[:, 0]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 10.0])
def test_linear_networks_have_the_closed_form(penalty):
    """λ* = h/‖∇h‖², δ* = −λ*∇h."""
    model, x = linear(), inputs(6)
    r = dual_ascent(model, x, penalty=penalty)
    q, h = runner_up(model, x)
    slope = (q @ model.weight).detach().numpy()
    lam = h.numpy() / (slope**2).sum(1)
    assert r.multiplier == pytest.approx(lam, rel=1e-6)
    assert r.delta == pytest.approx(-lam[:, None] * slope, rel=1e-6, abs=1e-9)
    assert r.converged.all()
    assert r.label is LOCAL


@pytest.mark.parametrize("p", [1, 2])
def test_linear_networks_in_a_box_solve_the_convex_program(p):
    model, x = linear(seed=2), inputs(6, seed=3)
    q, h = runner_up(model, x)
    slope = (q @ model.weight).detach().numpy()
    C = Box(-0.2, 1.2)
    r = dual_ascent(model, x, p, C)
    best = min_norm(slope, h.numpy(), p, C, x.numpy())
    reached = np.isfinite(best.value)
    assert reached.sum() >= 6
    assert r.distance[reached] == pytest.approx(best.value[reached], rel=1e-4)
    held = (np.abs(r.delta + x.numpy() + 0.2) < 1e-9) | (np.abs(r.delta + x.numpy() - 1.2) < 1e-9)
    free = reached[:, None] & ~held
    if p == 2:
        assert r.change_scores[free] == pytest.approx(r.boundary_scores[free], abs=1e-4)
    assert (x.numpy() + r.delta >= -0.2 - 1e-12).all()
    assert (x.numpy() + r.delta <= 1.2 + 1e-12).all()


@pytest.mark.parametrize("p", [1, 2])
def test_smooth_networks_reach_kkt_points(p):
    """On ≥ 95 % of inputs h ≈ 0; where the residual is small, δ + λ∇h = 0 at p = 2, and |λ∂h| = 1 on the moved, free coordinates at p = 1."""
    model, x = smooth(), inputs(8, 40)
    C = Box(-1, 2)
    r = dual_ascent(model, x, p, None if p == 2 else C)
    assert (np.abs(r.margin) <= 1e-3).mean() >= 0.95
    at = r.residual <= 1e-5
    assert at.mean() >= 0.8
    if p == 2:
        assert np.abs(r.change_scores - r.boundary_scores)[at].max() <= 1e-4
    else:
        z = x.numpy() + r.delta
        moved = (np.abs(r.delta) > 1e-6) & (z > -1 + 1e-9) & (z < 2 - 1e-9) & at[:, None]
        assert r.boundary_scores[moved] == pytest.approx(np.ones(moved.sum()), abs=1e-3)
        assert r.boundary_scores[(r.delta == 0) & at[:, None]].max() <= 1 + 1e-3


def test_gradients_and_margins_are_those_of_the_network():
    model, x = smooth(), inputs(8, 5)
    r = dual_ascent(model, x)
    q, _ = runner_up(model, x)
    z = (x + torch.tensor(r.delta)).requires_grad_(True)
    h = (model(z) * q).sum(1)
    assert r.margin == pytest.approx(h.detach().numpy(), abs=1e-12)
    assert r.boundary_gradient == pytest.approx(torch.autograd.grad(h.sum(), z)[0].numpy(), abs=1e-12)
    z = z.detach().requires_grad_(True)
    top = model(z).gather(1, torch.tensor(r.targets)[:, None])
    assert r.output_scores == pytest.approx(np.abs(r.multiplier[:, None] * torch.autograd.grad(top.sum(), z)[0].numpy()), abs=1e-12)


def test_threshold_and_pair_are_different_questions():
    model, x = linear(), inputs(6, 4)
    y = model(x).detach()
    c = y.argmax(1)
    tau = (y.max(1).values - 0.5).tolist()
    decisions = [Decision.threshold(int(k), t, 3) for k, t in zip(c, tau, strict=True)]
    r = dual_ascent(model, x, decisions=decisions)
    slope = model.weight[c].detach().numpy()
    assert r.multiplier == pytest.approx(0.5 / (slope**2).sum(1), rel=1e-6)  # P1
    assert r.boundary_scores == pytest.approx(r.output_scores)  # h = f_c − τ
    margin = Decision.pair(int(c[0]), int(y[0].argsort()[-2]), 3, epsilon=0.01)
    shifted = dual_ascent(model, x[:1], decisions=margin)
    assert shifted.margin[0] == pytest.approx(0.0, abs=1e-6)  # P2: stops ε early
    assert shifted.distance[0] < dual_ascent(model, x[:1]).distance[0]


def test_history_and_batching():
    """The history starts at δ = 0 and ends at the answer, and one input alone gets the answer it gets in the batch."""
    model, x = smooth(seed=4), inputs(8, 6)
    r = dual_ascent(model, x)
    one = dual_ascent(model, x[2:3])
    h = r.history
    assert h.margin.shape == h.multiplier.shape == h.objective.shape == h.residual.shape
    assert (h.objective[0] == 0).all()
    assert h.margin[-1] == pytest.approx(r.margin)
    assert h.multiplier[-1] == pytest.approx(r.multiplier)
    assert h.objective[-1] == pytest.approx(0.5 * r.distance**2)
    assert np.abs(h.margin[-1]).max() < 1e-3 * np.abs(h.margin[0]).max()
    assert one.delta[0] == pytest.approx(r.delta[2], abs=1e-6)


def test_relu_networks_come_to_the_boundary():
    """Kinks leave a residual (one gradient is not the subdifferential), never a margin; plain ascent circles, the penalty does not."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    x = inputs(10, 20)
    r, plain = dual_ascent(model, x), dual_ascent(model, x, penalty=0.0)
    assert (np.abs(r.margin) <= 1e-3).mean() >= 0.95
    assert np.abs(r.margin).max() <= np.abs(plain.margin).max() + 1e-6
    at = r.residual <= 1e-5
    assert np.abs(r.change_scores - r.boundary_scores)[at].max(initial=0) <= 1e-4


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"p": 1}, "unbounded below"),
        ({"p": 1, "constraints": Box(0, np.inf)}, "unbounded below"),
        ({"p": 3}, "not one of 1, 2"),
        ({"constraints": LpBall(2, 1.0)}, "is no box"),
        ({"constraints": Box(0.9, 1.0)}, "outside the box"),
        ({"decisions": Decision.classification(0, 3)}, "rows"),
    ],
)
def test_refusals_give_the_reason(how, words):
    model = linear()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(InputError, match=words):
        dual_ascent(model, 0.5 * torch.ones(2, 6), **how)


def test_one_output_needs_a_threshold():
    with pytest.raises(InputError, match="one output"):
        dual_ascent(linear(outputs=1), torch.zeros(1, 6))
