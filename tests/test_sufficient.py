"""Sufficient reasons: exact on a linear network, true on a real one, and three answers that are not confused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from lde_cvx.models import mlp
from lde_cvx.sufficient import Relevance, SufficientReason
from tests.digits_net import correct_digits

DIM = 8
BOX = lde.Box(0, 1)


def linear(a: np.ndarray, margin: float) -> nn.Module:
    """m(δ) = margin + a·δ at x0 = ½."""
    net = nn.Sequential(nn.Linear(len(a), 2)).double()
    with torch.no_grad():
        net[0].weight[:] = torch.as_tensor(np.stack([a, np.zeros(len(a))]))
        net[0].bias[:] = torch.tensor([margin - 0.5 * a.sum(), 0.0])
    return net


def reasoned(net: nn.Module, x: Any, method: str = "crown", norm: Any = 2, C: Any = BOX, **options: Any) -> SufficientReason:
    return lde.LagrangeDualExplainer(net, norm=norm, constraints=C, method=method).sufficient_reason(x, **options)


def check(net: nn.Module, found: SufficientReason, points: int, seed: int = 0) -> None:
    """Nothing flips while the reason stays; every counterexample flips, moves its feature, and nothing else of the reason."""
    rng = np.random.default_rng(seed)
    x = found.x0.ravel()
    decided = int(net(torch.as_tensor(found.x0)[None]).argmax())
    z = np.tile(x, (points, 1))
    free = found.free.ravel()
    z[:, free] = np.where(
        rng.random((points, free.sum())) < 0.5, rng.integers(0, 2, (points, free.sum())), rng.random((points, free.sum()))
    )
    assert bool((net(torch.as_tensor(z).view(points, *found.x0.shape)).argmax(1) == decided).all())
    assert set(found.counterexamples) == {i for i, r in enumerate(found.relevance) if r is Relevance.COUNTERFACTUAL}
    for i, point in found.counterexamples.items():
        outputs = net(torch.as_tensor(point)[None])[0]
        rivals = torch.cat([outputs[:decided], outputs[decided + 1 :]])
        assert float(rivals.max()) >= float(outputs[decided]), "a tie is a flip"
        moved = point.ravel() != x
        assert moved[i]
        assert not moved[~free & (np.arange(len(x)) != i)].any()
        assert point.min() >= -1e-9
        assert point.max() <= 1 + 1e-9


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_a_linear_network_has_the_largest_set_that_greed_finds(norm: Any) -> None:
    """Each feature can take |a_i|/2 from the margin; the smallest ones go free while their sum stays below it."""
    a = np.array([4.0, -1.0, 0.5, 3.0, -0.25, 0.0, 2.0, -8.0])
    net = linear(a, margin=1.5)
    found = reasoned(net, torch.full((DIM,), 0.5, dtype=torch.float64), norm=norm)
    cost = np.sort(np.abs(a) / 2)
    assert found.free.sum() == np.searchsorted(np.cumsum(cost), 1.5)
    assert set(np.flatnonzero(found.free)) == {1, 2, 4, 5}
    assert found.is_minimal
    assert found.reason == (0, 3, 6, 7)
    assert found.names() == ["x[0]", "x[3]", "x[6]", "x[7]"]
    assert found.certificate is not None
    assert found.certificate.check(net).ok
    assert found.certificate.verdict is lde.Verdict.CERTIFIED_UNREACHABLE
    check(net, found, 200)


def test_a_decision_that_nothing_turns_needs_no_feature() -> None:
    found = reasoned(linear(np.ones(DIM), margin=100.0), torch.full((DIM,), 0.5, dtype=torch.float64))
    assert found.free.all()
    assert found.reason == ()
    assert found.is_minimal


def test_a_fixed_feature_is_free_whatever_its_weight() -> None:
    a = np.array([4.0, -1.0, 0.5, 3.0, -0.25, 0.0, 2.0, -8.0])
    fixed = BOX & lde.Frozen([0, 7], DIM)
    found = reasoned(linear(a, 1.5), torch.full((DIM,), 0.5, dtype=torch.float64), C=fixed)
    assert found.free[[0, 7]].all()


def test_the_rules_of_a_polytope_count() -> None:
    """Σδ = 0: one feature alone cannot move, so no single feature has a counterexample until another one is free."""
    a = np.array([1.0, -1.0, 0.2, 0.2])
    together = BOX & lde.Polytope(None, None, equal=(np.ones((1, 4)), [2.0]))
    net = linear(a, margin=0.15)
    found = reasoned(net, torch.full((4,), 0.5, dtype=torch.float64), C=together)
    assert set(np.flatnonzero(found.free)) >= {2, 3}, "0.2·δ_2 + 0.2·δ_3 = 0"
    for point in found.counterexamples.values():
        assert abs(point.sum() - 2.0) < 1e-6


def test_digits_nothing_flips_while_the_reason_stays() -> None:
    net, x, _ = correct_digits(1)
    for image in x:
        found = reasoned(net, image, norm="inf", C=lde.Box(-0.15, 0.15, on="change") & BOX, time_limit=4.0)
        assert 0 < found.free.sum() < 64
        decided = int(net(image[None]).argmax())
        rng = np.random.default_rng(1)
        z = np.tile(image.numpy(), (2000, 1))
        reach = rng.choice([-0.15, 0.15], size=z.shape) * np.where(rng.random(z.shape) < 0.3, rng.random(z.shape), 1.0)
        z = np.where(found.free.ravel(), np.clip(z + reach, 0, 1), z)
        assert bool((net(torch.as_tensor(z)).argmax(1) == decided).all())
        assert found.certificate is not None
        assert found.certificate.check(net).ok


def test_branching_leaves_nothing_unknown_on_a_small_network() -> None:
    net = mlp((5, 8, 8, 2), seed=5)
    x = torch.full((5,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        net[-1].bias += torch.tensor([0.0, 0.12]) - net(x[None])[0]
    rows, trees = reasoned(net, x), reasoned(net, x, method="exact")
    assert trees.is_minimal
    assert trees.free.sum() >= rows.free.sum()
    check(net, trees, 500)
    check(net, rows, 500)


def test_out_of_time_is_unknown_and_never_a_claim() -> None:
    net = mlp((5, 8, 8, 2), seed=5)
    found = reasoned(net, torch.full((5,), 0.5, dtype=torch.float64), time_limit=1e-9)
    assert set(found.relevance) <= {Relevance.UNKNOWN, Relevance.INVARIANT}
    assert not found.counterexamples


def test_bad_questions_are_refused() -> None:
    net = mlp((5, 8, 2), seed=0)
    x = torch.full((5,), 0.5, dtype=torch.float64)
    with pytest.raises(lde.InputError, match="no feature has a range"):
        reasoned(net, x, C=None)
    with pytest.raises(lde.InputError, match="feature 0 has no range"):
        reasoned(net, x, C=lde.Polytope(np.ones((1, 5)), [4.0]))
    with pytest.raises(lde.InputError, match="one at a time"):
        reasoned(net, torch.stack([x, x]))
