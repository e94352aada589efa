"""tanh and sigmoid far out, where inputs that are not scaled lead: lines, rows and radii hold beyond the tables of the bound library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.norms import Norm
from formulations.support import Region
from verification.lirpa import BoundEngine
from verification.lirpa.curves import Curve
from verification.lirpa.sigmoids import SIGMOID, TANH
from verification.radius import certified_radius


@pytest.mark.parametrize(("curve", "function"), [(TANH, torch.tanh), (SIGMOID, torch.sigmoid)])
def test_lines_hold_on_intervals_of_every_size(curve: Curve, function: object) -> None:
    draw = torch.Generator().manual_seed(0)
    for width in (1e-3, 1.0, 60.0, 900.0, 1e5, 1e9):
        middle = width * torch.randn(100, generator=draw, dtype=torch.float64)
        l, u = (middle + s * width * torch.rand(100, generator=draw, dtype=torch.float64) for s in (-1, 1))
        k_l, b_l, k_u, b_u = curve.lines(l, u)
        near = torch.linspace(-30, 30, 601, dtype=torch.float64)[:, None].clamp(min=l, max=u)
        z = torch.cat([l + (u - l) * torch.linspace(0, 1, 401, dtype=torch.float64)[:, None], near])
        y = function(z)  # type: ignore[operator]
        assert (k_l * z + b_l <= y + 1e-12).all()
        assert (y <= k_u * z + b_u + 1e-12).all()


@pytest.mark.parametrize("method", ["crown", "crown-ibp", "alpha-crown"])
@pytest.mark.parametrize("layer", [nn.Tanh, nn.Sigmoid])
def test_rows_lie_below_networks_on_inputs_that_are_not_scaled(layer: type[nn.Module], method: str) -> None:
    """Pre-activations in the hundreds and thousands: the library's tables end at ±500."""
    for seed in range(2):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        net = nn.Sequential(nn.Linear(2, 5), layer(), nn.Linear(5, 4), layer(), nn.Linear(4, 2)).double()
        with torch.no_grad():
            net[0].weight.mul_(10 ** rng.uniform(2, 6))
        x = torch.as_tensor(rng.normal(size=(1, 2)))
        Q, engine = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64), BoundEngine(net, (2,))
        for r in (0.01, 1.0, 100.0):
            inside = rng.normal(size=(2000, 2))
            inside *= (r * np.sqrt(rng.random(2000)) / np.linalg.norm(inside, axis=1))[:, None]
            with torch.no_grad():
                y = net(x + torch.as_tensor(inside))
            row = engine.rows(x, Q, torch.zeros(1, 1, dtype=torch.float64), Region.build(Norm(2), (), np.array([r]), 2), method)
            below = torch.as_tensor(inside) @ row.a[0, 0] + row.b[0, 0]
            assert (below <= y[:, 0] - y[:, 1]).all()


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Sigmoid()])
def test_a_radius_that_crosses_far_activations_ends_before_the_flip(layer: nn.Module) -> None:
    """One input, one hidden unit: the flip is where w·z + b = 0."""
    net = nn.Sequential(nn.Linear(1, 1), layer, nn.Linear(1, 2)).double()
    with torch.no_grad():
        net[0].weight.fill_(1000.0)
        net[2].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[2].bias.copy_(torch.tensor([layer(torch.tensor(0.0)).item(), 0.0]))
    for at in (-2.0, 0.1):
        with torch.no_grad():
            net[0].bias.fill_(1000.0 * at)
        for method in ("crown", "alpha-crown"):
            assert certified_radius(net, np.zeros(1), 2, method=method).lower[0] <= abs(at)


class Through(nn.Module):
    """A function of four hidden values between two affine layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("function", [nn.LogSigmoid(), lambda z: torch.log(torch.sigmoid(z)), lambda z: torch.log(1e-14 + z.square())])
def test_rows_through_logarithms_of_small_numbers_lie_below_the_network(function: Callable[[Tensor], Tensor]) -> None:
    """The library cuts logarithms off at 1e-12, where log σ(z) is for z below −27."""
    for seed, size in enumerate((1.0, 10.0, 60.0)):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        net = Through(function).double()
        with torch.no_grad():
            net.first.weight.mul_(size)
        x, Q = torch.as_tensor(rng.normal(size=(1, 2))), torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
        engine = BoundEngine(net, (2,))
        for r in (0.01, 1.0, 5.0):
            inside = rng.normal(size=(2000, 2))
            inside *= (r * np.sqrt(rng.random(2000)) / np.linalg.norm(inside, axis=1))[:, None]
            with torch.no_grad():
                y = net(x + torch.as_tensor(inside))
            row = engine.rows(x, Q, torch.zeros(1, 1, dtype=torch.float64), Region.build(Norm(2), (), np.array([r]), 2))
            assert (torch.as_tensor(inside) @ row.a[0, 0] + row.b[0, 0] <= y[:, 0] - y[:, 1]).all()
