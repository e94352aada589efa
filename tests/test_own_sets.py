"""A user's own set, known only by its CVXPY constraints, goes through the whole: bounds, witness, certificate."""

import numpy as np
import pytest
import torch

import lde_cvx as lde
from tests.catalogue import DIM, SETS
from verification.radius import certified_radius


@pytest.mark.parametrize(("name", "norm"), [("spectral (own set)", 1), ("log-sum-exp (own set)", 2)])
def test_own_set_end_to_end(name, norm):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(DIM, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).double()
    x = 0.05 * torch.randn(1, DIM, dtype=torch.float64)
    C = SETS[name] & lde.LpBall(2, 3.0)
    radii = certified_radius(net, x, norm, C)
    e = lde.LagrangeDualExplainer(net, norm=norm, constraints=C).explain(x, quiet=True)
    assert e.lower == pytest.approx(radii.lower[0], rel=1e-6)
    assert e.lower <= e.upper
    assert C.contains(e.witness.ravel() - x[0].numpy(), 1e-8)
    assert {"margin", SETS[name].name, "ball"} <= set(e.multipliers)
    report = e.certificate.check()
    assert not report.ok  # the witness's place in the set is for its owner to check …
    assert any("own code" in reason for reason in report.reasons)
    assert report.proved >= e.lower  # … the bound is not
    inside = np.stack([C.project(v) for v in np.random.default_rng(0).normal(size=(3, DIM))])
    near = inside * (0.999 * e.lower / np.maximum(e.lower, lde.Norm.of(norm).value(inside)))[:, None]
    kept = near[[C.contains(v) for v in near]]
    assert (net(x + torch.tensor(kept)).argmax(1) == net(x).argmax()).all()
