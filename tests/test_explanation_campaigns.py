"""Long campaigns of the explainers beside ours: Frank–Wolfe against its plain form, LEG-TV under randomised weights."""

from __future__ import annotations

import pytest
import torch

from lde_cvx.leg import LEGTV
from lde_cvx.metrics import cascading_randomisation
from lde_cvx.rate_distortion import RateDistortion
from tests.digits_net import correct_digits


def frank_wolfe_against_plain(count: int, iterations: int) -> tuple[float, float]:
    """(largest D(ours)/D(plain), largest share of gradients) over `count` digits: second-order models beside the plain monotone form."""
    net, X, _ = correct_digits(count)
    ratios, shares = [], []
    for x in X:
        ours = RateDistortion(net, rate=8).explain(x)
        plain = RateDistortion(net, rate=8, variant="plain", step="monotone", iterations=iterations, tolerance=0.0).explain(x)
        ratios.append(float(ours.distortions[0] / plain.distortions[0]))
        shares.append(ours.gradients / plain.gradients)
    return max(ratios), max(shares)


@pytest.mark.slow
def test_ten_percent_of_the_gradients_are_enough() -> None:
    ratio, share = frank_wolfe_against_plain(8, 2000)
    print(f"\nD(ours)/D(plain, 2000 iterations) at most {ratio:.4f}, with at most {share:.1%} of its gradients")
    assert share <= 0.1
    assert ratio <= 1.01


@pytest.mark.slow
def test_leg_tv_vanishes_when_the_last_layers_are_random() -> None:
    """The authors' law: weights uniform on ±0.05. Vanished: less than a tenth of the true map's spread after two layers."""
    net, X, _ = correct_digits(30)
    x = X.reshape(-1, 8, 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), net)
    found = cascading_randomisation(lambda m: LEGTV(m, samples=500), model, x, scale=0.05)
    gone = (found.spread[1:3].min(0) < 0.1).mean()
    print(f"\nvanished after 1 or 2 layers: {gone:.0%}")
    assert gone >= 0.9
