"""order=2: the quadratic radius beside the linear one, judged on the network; flat networks say so; when λ is a price."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from formulations.kkt import PriceFlag
from formulations.quadratic import QuadraticModel, min_norm_quadratic
from lde_cvx.second_order import judged
from verification.curvature import QuadraticRadius
from verification.model import float64_copy
from verification.validity import Validity

BOX = lde.Box(0, 1)


def smooth(seed: int = 0, d: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def kinked(seed: int = 0, d: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).double()


X = torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_the_quadratic_radius_is_the_models_and_its_verdict_the_networks(norm):
    """A value of the quadratic model of the rival's margin at a point of C, judged by the same lower and upper bounds as the linear one."""
    model = smooth()
    for i, e in enumerate(lde.LagrangeDualExplainer(model, norm=norm, constraints=BOX, order=2).explain(X, quiet=True)):
        q = e.quadratic
        assert e.quadratic_radius == q.radius
        assert not q.flat
        if math.isfinite(q.radius):
            c = int(model(X[i : i + 1]).argmax())

            def margin(z, c=c, t=q.rival):
                y = model(z[None])[0]
                return y[c] - y[t]

            H = torch.autograd.functional.hessian(margin, X[i]).numpy()
            g = torch.autograd.functional.jacobian(margin, X[i]).detach().numpy()
            delta = q.solution.delta
            assert float(margin(X[i]).detach()) + g @ delta + 0.5 * delta @ H @ delta <= 1e-6
            assert e.norm.value(delta) == pytest.approx(q.radius, rel=1e-6)
            assert ((X[i].numpy() + delta >= -1e-6) & (X[i].numpy() + delta <= 1 + 1e-6)).all()
        v = q.radius * (1 - 1e-6)
        expected = Validity.REFUTED if e.upper < v else Validity.CERTIFIED if e.lower >= v else Validity.UNKNOWN
        assert q.validity is expected
        if 0 < q.radius < math.inf:
            assert q.certified_fraction == pytest.approx(min(1.0, e.lower / v))
        row = e.to_dict()
        assert row["quadratic_validity"] == q.validity.name.lower()
        assert "quadratic" in repr(e)
        assert "quadratic" in e._repr_html_()


def test_first_order_says_nothing_of_the_second():
    e = lde.LagrangeDualExplainer(smooth(), constraints=BOX).explain(X[0])
    assert e.quadratic is None
    assert e.quadratic_radius is None
    assert e.to_dict()["quadratic_validity"] is None


def test_relu_networks_say_that_the_hessian_vanishes_and_soften_on_demand():
    model = kinked()
    plain = lde.LagrangeDualExplainer(model, constraints=BOX, order=2).explain(X[0])
    assert plain.quadratic.flat
    assert "vanishes" in plain.quadratic.note
    assert plain.quadratic_radius == pytest.approx(plain.linear_radius, rel=1e-5)
    T = lde.suggested_temperature(float64_copy(model), X)
    soft = lde.LagrangeDualExplainer(model, constraints=BOX, order=2, temperature=T).explain(X[0])
    assert not soft.quadratic.flat
    assert f"{T:g}" in soft.quadratic.note
    assert soft.linear_radius == plain.linear_radius  # the linear model is the network's own


def test_the_suggested_temperature_is_a_tenth_of_the_preactivations():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()).double()
    with torch.no_grad():
        net[0].weight.copy_(2 * torch.eye(2))
    x = torch.tensor([[1.0, -1.0], [3.0, 1.0]], dtype=torch.float64)
    assert lde.suggested_temperature(net, x) == pytest.approx(0.1 * math.sqrt((4 + 4 + 36 + 4) / 4))
    assert lde.suggested_temperature(nn.Sequential(nn.Linear(2, 2)).double(), x) == pytest.approx(0.1)


@pytest.mark.parametrize(("lower", "upper", "verdict", "fraction"), [
    (1.0, 2.0, Validity.CERTIFIED, 1.0), (0.5, 2.0, Validity.UNKNOWN, 0.5), (0.25, 0.9, Validity.REFUTED, 0.25), (0.0, math.inf, Validity.UNKNOWN, 0.0),
])  # fmt: skip
def test_verdicts(lower, upper, verdict, fraction):
    model = QuadraticModel.dense(1.0, [-1.0, 0.0], np.zeros((2, 2)))
    q = judged(QuadraticRadius(1.0, 1.0, 0, 1, min_norm_quadratic(model), True), lower, upper)
    assert q.validity is verdict
    assert q.certified_fraction == pytest.approx(fraction, rel=1e-5)
    assert q.exact


def test_a_model_that_cannot_fall_and_one_without_an_answer():
    q = QuadraticModel.dense(1.0, [0.0, 0.0], np.eye(2))
    never = judged(QuadraticRadius(None, math.inf, 0, 1, min_norm_quadratic(q), False), 0.3, 0.8)
    assert never.radius == math.inf
    assert never.validity is Validity.REFUTED  # it says that no change flips, and one does
    nothing = judged(QuadraticRadius(None, 0.2, 0, 1, min_norm_quadratic(q), False), 0.3, 0.8)
    assert math.isnan(nothing.radius)
    assert nothing.validity is Validity.UNKNOWN
    assert nothing.certified_fraction == 0


def test_lambda_is_a_price_when_the_diagnosis_says_so():
    """With no flag that matters, λ is the derivative of the binding program's value in the margin's level."""
    e = lde.LagrangeDualExplainer(smooth(3), constraints=BOX).explain(X[1])
    assert e.is_price
    assert e.diagnosis.stationarity <= 1e-5
    program, h = e.binding, 1e-4
    up, down = (lde.min_norm(program.a, program.b + s * h, 2, BOX, X[1].numpy())[0].value for s in (1, -1))
    assert e.margin_multiplier == pytest.approx((up - down) / (2 * h), rel=1e-3)


def test_what_cannot_be_reached_has_no_price():
    C = lde.Box(0, 1) & lde.Polytope(None, None, equal=(np.eye(6), X[1].numpy()))
    e = lde.LagrangeDualExplainer(smooth(3), norm=1, constraints=C, method="linear").explain(X[1])
    assert PriceFlag.NO_POINT in e.price_flags
    assert not e.is_price


@pytest.mark.parametrize(("options", "words"), [
    ({"order": 3}, "order=3"), ({"order": 1, "temperature": 0.1}, "order=2"), ({"order": 2, "temperature": -1.0}, "positive"),
])  # fmt: skip
def test_bad_orders_and_temperatures(options, words):
    with pytest.raises(lde.InputError, match=words):
        lde.LagrangeDualExplainer(smooth(), **options)
