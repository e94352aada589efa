"""Hessians of margins against an independent derivative, Lanczos against the full matrix, softened ReLUs within their bound, and what radii they give."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.programs import min_norm
from formulations.quadratic import min_norm_quadratic, s_lemma
from formulations.sets import Box
from verification.attack import find_witness
from verification.curvature import margin_curvature, quadratic_radii
from verification.softened import Softened


def net(d=10, activation=nn.Tanh, seed=0, width=16, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)).double()


class Functional(nn.Module):
    """ReLUs called as functions, in three spellings."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        z = torch.relu(self.a(x))
        return nn.functional.leaky_relu(self.b(nn.functional.relu(z) + z.relu()), 0.2)


NETS = {
    "tanh": (net(), (10,)),
    "gelu": (net(activation=nn.GELU), (10,)),
    "sigmoid conv": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        (2, 6, 6),
    ),
    "softplus": (net(activation=nn.Softplus), (10,)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_hessian_is_autograds(name):
    model, shape = NETS[name]
    model = model.double().eval()
    torch.manual_seed(1)
    x = torch.randn(3, *shape, dtype=torch.float64)
    q = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.0, 2.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    delta = 0.1 * torch.randn(3, math.prod(shape), dtype=torch.float64)
    c = margin_curvature(model, x, q.numpy(), [0.1, 0.2, 0.3], at=delta.numpy())
    for i in range(3):

        def margin(v, i=i):
            return model(v.reshape(1, *shape))[0] @ q[i] + 0.1 * (i + 1)

        z = x[i].flatten() + delta[i]
        assert c.level[i] == pytest.approx(float(margin(z).detach()))
        assert c.gradient[i] == pytest.approx(torch.autograd.functional.jacobian(margin, z).detach().numpy())
        assert c.matrix[i] == pytest.approx(torch.autograd.functional.hessian(margin, z).detach().numpy(), abs=1e-12)
    assert not c.flat.any()


def test_lanczos_with_every_step_is_the_full_hessian_and_fewer_keep_the_largest():
    model, x = net(d=30), torch.randn(4, 30)
    full = margin_curvature(model, x, [1.0, -1.0, 0.0], 0.0)
    every = margin_curvature(model, x, [1.0, -1.0, 0.0], 0.0, rank=30)
    few = margin_curvature(model, x, [1.0, -1.0, 0.0], 0.0, rank=5)
    for i in range(4):
        assert every[i].full() == pytest.approx(full[i].full(), abs=1e-10)
        e = np.linalg.eigvalsh(full[i].full())
        largest = e[np.argsort(-np.abs(e))][:5]
        assert np.sort(few.values[i]) == pytest.approx(np.sort(largest), rel=1e-3, abs=1e-6 * np.abs(e).max())
        V = few.vectors[i]
        assert np.abs(V.T @ V - np.eye(5)).max() <= 1e-10
    assert (few.neglected > 0).all()
    assert (every.neglected == 0).all()


def test_a_few_eigenpairs_have_most_of_the_correction():
    model, x = net(d=60, width=40, seed=2), torch.randn(5, 60, generator=torch.Generator().manual_seed(0))
    row = (torch.eye(3)[model(x.double()).argmax(1)] - torch.eye(3)[model(x.double()).argmin(1)]).numpy()
    full, few = margin_curvature(model, x, row, 0.0), margin_curvature(model, x, row, 0.0, rank=10)
    for i in range(5):
        linear = full.level[i] / np.linalg.norm(full.gradient[i])
        exact, small = s_lemma(full[i]).value, s_lemma(few[i]).value
        assert abs(small - exact) <= 0.3 * abs(linear - exact) + 1e-4 * exact


def test_relu_networks_are_flat_and_say_so():
    model, x = net(activation=nn.ReLU), torch.randn(6, 10)
    c = margin_curvature(model, x, [1.0, -1.0, 0.0], 0.0)
    assert c.flat.all()
    assert not c.matrix.any()
    assert margin_curvature(model, x, [1.0, -1.0, 0.0], 0.0, rank=3).flat.all()
    assert not margin_curvature(model, x, [1.0, -1.0, 0.0], 0.0, temperature=0.1).flat.any()
    assert all(r.flat for r in quadratic_radii(model, x))


@pytest.mark.parametrize(
    "make",
    [lambda: net(6, nn.ReLU), lambda: net(6, lambda: nn.LeakyReLU(0.1)), lambda: Functional().double()],
    ids=["relu", "leaky", "functions"],
)
def test_softening_stays_within_its_bound_and_vanishes(make):
    torch.manual_seed(3)
    model, x = make().eval(), torch.randn(50, 6, dtype=torch.float64)
    gaps = []
    for T in (0.5, 0.05, 0.005):
        soft = Softened(model, T)
        gaps.append(float((soft(x) - model(x)).detach().abs().max()))
        assert torch.isfinite(torch.func.jacrev(lambda z, soft=soft: soft(z).sum())(x)).all()
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] <= 0.02 * gaps[0] + 1e-12  # the softplus lies within T·log 2, and networks are Lipschitz
    one = Softened(nn.Sequential(nn.ReLU()), 0.3)
    z = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    excess = one(z) - z.clamp(min=0)
    assert float(excess.min()) >= 0
    assert float(excess.max()) == pytest.approx(0.3 * math.log(2))


def test_quadratic_radii_halve_the_linear_error():
    """Smooth network, ℓ2, with and without a box: the median error against a strong attack is at most half of the linear model's."""
    rng = np.random.default_rng(4)
    X = torch.tensor(rng.uniform(size=(600, 8)))
    y = ((X - 0.5).square().sum(1) > 0.65).long()
    torch.manual_seed(0)
    model = net(8, nn.Tanh, outputs=2)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(X), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x0 = X[:30]
    for C in (None, Box(0, 1)):
        truth = np.minimum(*(find_witness(model, x0, 2, C, seed=s).upper for s in (0, 1)))
        radii = quadratic_radii(model, x0, 2, C)
        winner = model(x0).argmax(1).numpy()
        q = margin_curvature(model, x0, np.eye(2)[winner] - np.eye(2)[1 - winner], 0.0)
        linear = min_norm(q.gradient, q.level, 2, C, x0.numpy()).value
        error = np.array([np.inf if r.value is None else abs(r.value - t) / t for r, t in zip(radii, truth, strict=True)])
        first = np.abs(linear - truth) / truth
        assert np.median(error) <= 0.5 * np.median(first)
        assert all(r.value is None or r.lower <= r.value * (1 + 1e-6) for r in radii)


def test_rows_that_are_left_out_are_no_nearer():
    """The radius over all rows is the smallest of the rows solved one by one, though far rows are never solved over the set."""
    model, C = net(8, outputs=6, seed=5), Box(-0.5, 1.5)
    x = torch.rand(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for i, r in enumerate(quadratic_radii(model, x, 2, C, rivals=None)):
        c = int(model(x[i : i + 1]).argmax())
        rows = [np.eye(6)[c] - np.eye(6)[t] for t in range(6) if t != c]
        alone = [min_norm_quadratic(margin_curvature(model, x[i : i + 1], q, 0.0)[0], 2, C, x[i].numpy()) for q in rows]
        assert r.value == pytest.approx(min(s.value for s in alone if s.value is not None), rel=1e-5)
        assert r.lower == pytest.approx(min(s.lower for s in alone), rel=1e-5)


def test_bad_input():
    model, x = net(), torch.zeros(2, 10)
    with pytest.raises(InputError, match="temperature"):
        margin_curvature(model, x, [1.0, 0.0, 0.0], 0.0, temperature=0.0)
    with pytest.raises(InputError, match="rank"):
        margin_curvature(model, x, [1.0, 0.0, 0.0], 0.0, rank=0)
    with pytest.raises(InputError, match="replace"):
        margin_curvature(model, x * float("nan"), [1.0, 0.0, 0.0], 0.0)
