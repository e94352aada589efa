"""Convolutions kept as patches give the rows that matrices give, need their memory no more, and take stored constants on the way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.norms import INF, Norm
from formulations.sets import Box, TotalVariation
from formulations.support import Region
from tests.test_bound_layers import points, question, region_of, seeded, violation
from verification.lirpa import BoundEngine, perturbation
from verification.lirpa.translate import convert

SHAPE = (2, 6, 6)


class Arithmetic(nn.Module):
    """Stored numbers before and between convolutions, in the ways a normalisation is written; some are no numbers per channel."""

    def __init__(self, before: Callable[[Tensor], Tensor], between: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.before, self.between = before, between
        self.first, self.second, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.between(self.first(self.before(x))))
        return self.last(torch.max_pool2d(torch.relu(self.second(h)), 2).flatten(1))


class CastConstant(nn.Module):
    """A stored value that the exporter casts to float64, as `.to(x.dtype)` is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((2, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean.to(x.dtype)


def channels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


WAYS: dict[str, Callable[[], nn.Module]] = {
    "numbers": lambda: Arithmetic(lambda x: (x - 0.13) / 0.31),
    "channels": lambda: Arithmetic(lambda x: (x - channels(0.1, 0.4)) / channels(0.3, -0.7)),
    "three axes": lambda: Arithmetic(lambda x: x * channels(2.0, -0.5)[0] + channels(0.3, 0.2)[0]),
    "reversed": lambda: Arithmetic(lambda x: 1 - x, lambda h: 0.2 - 1.5 * h),
    "an image": lambda: Arithmetic(lambda x: x - torch.linspace(-1, 1, 72, dtype=torch.float64).reshape(1, 2, 6, 6)),
    "between": lambda: Arithmetic(lambda x: x, lambda h: (h + channels(0.1, -0.2, 0.3, 0.0)) * channels(1.0, -2.0, 0.5, 3.0)),
    "cast": lambda: nn.Sequential(CastConstant(), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
    "pools": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
                                   nn.Linear(36, 3)),
    "strides": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 2, 1, (1, 0)), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_patches_give_the_rows_of_matrices(way: str) -> None:
    """Equal rows for every norm to rounding, and ≥ 300 points of each region never below them."""
    net = seeded(WAYS[way])
    x, Q, s = question(net, SHAPE, 2)
    patches, matrices = BoundEngine(net, SHAPE), BoundEngine(net, SHAPE)
    matrices._bounded = convert(matrices.model, x[:1], ("matrix",))
    assert patches._bounded.conv_mode == "patches"
    assert matrices._bounded.conv_mode == "matrix"
    for norm, radius in ((Norm(INF), 0.05), (Norm(1), 0.7), (Norm(2), 0.3)):
        region = region_of(norm, Box(0, 1), x, radius)
        one, other = patches.rows(x, Q, s, region), matrices.rows(x, Q, s, region)
        torch.testing.assert_close(one.lower, other.lower, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.a, other.a, rtol=1e-9, atol=1e-9)
        assert violation(net, x, Q, s, one, points(norm, region, 300)) <= 0


def test_wide_layers_leave_coupled_pieces_out_and_stay_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the bounds under the rows use ball and box only: no tighter than below it, and below the network on the set."""
    net = seeded(WAYS["channels"])
    x, Q, s = question(net, SHAPE, 2)
    region = region_of(Norm(2), Box(0, 1) & TotalVariation(9.0, (12, 6)), x, 0.4)
    assert region.coupling is not None
    full = BoundEngine(net, SHAPE).rows(x, Q, s, region)
    monkeypatch.setattr(perturbation, "WIDE", 0)
    narrow = BoundEngine(net, SHAPE).rows(x, Q, s, region)
    assert (narrow.lower <= full.lower + 1e-3).all()
    assert violation(net, x, Q, s, narrow, points(Norm(2), region, 300)) <= 0


@pytest.mark.parametrize("p", [1, 2, INF])
def test_window_support_is_the_support_of_the_whole(p: Any) -> None:
    """Rows written over windows, some of them hanging over the edge, have the support of the same rows over all coordinates."""
    torch.manual_seed(3)
    x = torch.rand(2, 8, dtype=torch.float64)
    parts = tuple(part.relative_to(x.numpy()) for part in Box(0, 1).parts(8))
    region = Region.build(Norm(p, weights=torch.linspace(0.5, 2, 8).double().numpy()), parts, torch.tensor([0.4, 0.9]), 8)
    places = torch.tensor([[-1, 0, 1], [2, 3, 4], [6, 7, 8], [0, 4, 7]])  # −1 and 8 lie outside
    inside = (places >= 0) & (places < 8)

    def pick(v: Tensor) -> Tensor:
        return torch.where(inside, v[:, places.clamp(0, 7)], 0.0)

    A = torch.randn(2, 4, 3, dtype=torch.float64)
    whole = torch.zeros(2, 4, 8, dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            if inside[i, j]:
                whole[:, i, places[i, j]] = A[:, i, j]
    torch.testing.assert_close(region.window_support(A, pick), region.support(whole), rtol=1e-9, atol=1e-9)


PROGRAM = """
    import resource, torch
    from torch import nn
    from formulations.norms import Norm
    from formulations.sets import Box
    from verification.radius import certified_radius

    class Normalised(nn.Module):
        def forward(self, x):
            return (x - 0.13) / 0.31

    torch.manual_seed(0)
    net = nn.Sequential(Normalised(), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)).double()
    certified_radius(net, torch.rand(8, 1, 28, 28, dtype=torch.float64), 2, Box(0, 1), max_passes=1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_a_convolutional_network_of_mnists_size_stays_small() -> None:
    """8 images under ℓ2 and the box through 25,088 and 12,544 neurons: at most 4 GiB; one dense matrix between them would be 2.3 GiB an image."""
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 4


@pytest.mark.parametrize(("channels", "groups", "kernel", "first"), [(2, 2, 1, True), (4, 4, 3, True), (4, 4, 3, False), (4, 2, 2, False)])
def test_rows_through_grouped_convolutions_lie_below_the_network(channels: int, groups: int, kernel: int, first: bool) -> None:
    """A filter of group g sees the channels of group g: read as the first ones, rows are false in every norm but ℓ∞."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, kernel, padding=kernel // 2, groups=groups), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)]
    net = nn.Sequential(*([] if first else [nn.Conv2d(channels, channels, 3), nn.ReLU()]), *layers).double()
    shape = (channels, 5, 5)
    net(torch.zeros(1, *shape, dtype=torch.float64))
    d, x, Q = 25 * channels, torch.rand(1, *shape, dtype=torch.float64), torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    engine = BoundEngine(net, shape)
    for p in (1, 2, "inf"):
        row = engine.rows(x, Q, torch.zeros(1, 1, dtype=torch.float64), Region.build(Norm(p), (), np.array([0.5]), d))
        along = torch.cat([torch.eye(d, dtype=torch.float64), -torch.eye(d, dtype=torch.float64), torch.randn(500, d, dtype=torch.float64)])
        along = 0.5 * along / torch.linalg.vector_norm(along, Norm(p).p, dim=1, keepdim=True)
        with torch.no_grad():
            y = net(x + along.reshape(-1, *shape))
        assert (along @ row.a[0, 0] + row.b[0, 0] <= y[:, 0] - y[:, 1]).all()
