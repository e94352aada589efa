"""Relaxations of layers: true on random points and under attack, alone and in networks; what cannot be bounded is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.sets import Box
from tests.test_lirpa import FLAT, IMAGE, Function, mlp, points, question, region_of, seeded, steepest, violation
from verification.lirpa import BoundEngine, BoundMethod, curves, planes

CURVES: dict[str, tuple[curves.Curve, Callable[[Tensor], Tensor]]] = {
    "softplus": (curves.softplus(1.0, 20.0), F.softplus),
    "softplus with a threshold": (curves.softplus(2.0, 1.5), lambda z: F.softplus(z, 2.0, 1.5)),
    "elu": (curves.elu(1.3, 1.0, 1.0), lambda z: F.elu(z, 1.3)),
    "celu": (curves.elu(0.6, 1.0, 1 / 0.6), lambda z: F.celu(z, 0.6)),
    "gelu": (curves.GELU, F.gelu),
    "tanh gelu": (curves.TANH_GELU, lambda z: F.gelu(z, approximate="tanh")),
    "silu": (curves.SILU, F.silu),
    "mish": (curves.MISH, F.mish),
    "hard swish": (curves.HARD_SWISH, F.hardswish),
    "hard sigmoid": (curves.HARD_SIGMOID, F.hardsigmoid),
    "relu6": (curves.clipped(0.0, 6.0), F.relu6),
    "square": (curves.SQUARE, torch.square),
    "root": (curves.ROOT, lambda z: z.clamp(min=0).sqrt()),
    "log sigmoid": (curves.LOG_SIGMOID, F.logsigmoid),
}
WIDTHS = (1e-12, 1e-8, 1e-3, 0.1, 1.0, 8.0, 60.0)


def intervals(seed: int, shape: tuple[int, ...], width: float) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    middle = 4 * torch.randn(shape, generator=draw, dtype=torch.float64)
    return (middle - width * torch.rand(shape, generator=draw, dtype=torch.float64),
            middle + width * torch.rand(shape, generator=draw, dtype=torch.float64))  # fmt: skip


@pytest.mark.parametrize("name", CURVES)
def test_lines_of_curves_are_bounds(name: str) -> None:
    """k_l z + b_l ≤ f(z) ≤ k_u z + b_u on a fine grid of 7 × 200 intervals, and the range holds; at the middle they are no farther apart than constants, up to 10 %."""
    curve, function = CURVES[name]
    for width in WIDTHS:
        l, u = intervals(0, (200,), width)
        k_l, b_l, k_u, b_u = curve.lines(l, u)
        least, most = curve.range(l, u)
        z = (l + (u - l) * torch.linspace(0, 1, 801, dtype=torch.float64)[:, None]).clamp(min=curve.floor)
        y, room = function(z), 2e-15 * (1 + 60 * width)
        assert (k_l * z + b_l <= y + room).all()
        assert (y <= k_u * z + b_u + room).all()
        assert (least <= y + room).all()
        assert (y <= most + room).all()
        middle = (z[0] + z[-1]) / 2
        spread = (k_u - k_l) * middle + b_u - b_l
        assert (spread <= (most - least) * 1.1 + 1e-9 + 4 * curve.jump).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from([1e-7, 0.1, 1.0, 5.0, 30.0]))
def test_planes_of_softmax_and_normalisation_are_bounds(seed: int, size: int, width: float) -> None:
    l, u = intervals(seed, (20, size), width)
    z = l + (u - l) * torch.rand(500, 20, size, dtype=torch.float64).bernoulli().where(
        torch.rand(500, 20, 1) < 0.5, torch.rand(500, 20, size)
    )
    room = 1e-13

    def check(y: Tensor, z: Tensor, planes: tuple[Tensor, ...], span: tuple[Tensor, Tensor], where: Tensor) -> None:
        L, l0, U, u0 = planes
        for low in (torch.einsum("kij,skj->ski", L, z) + l0, span[0]):
            assert (where | (low <= y + room)).all()
        for high in (torch.einsum("kij,skj->ski", U, z) + u0, span[1]):
            assert (where | (y <= high + room)).all()

    check(torch.softmax(z, -1), z, planes.softmax_planes(l, u), planes.softmax_range(l, u), torch.tensor(False))
    centre = (l + u).mean(-1, keepdim=True) / 2
    l, u, z = l - centre, u - centre, z - z.mean(-1, keepdim=True)
    outside = ((z < l) | (z > u)).any(-1, keepdim=True)
    y = z * ((z * z).mean(-1, keepdim=True) + 1e-5).rsqrt()
    check(y, z, planes.normal_planes(l, u, 1e-5), planes.normal_range(l, u, 1e-5), outside)


def test_lines_of_the_reciprocal_are_bounds() -> None:
    l, u = intervals(1, (400,), 3.0)
    k_l, b_l, k_u, b_u = curves.reciprocal_lines(l, u)
    across = (l <= 0) & (u >= 0)
    assert across.any()
    assert torch.isnan(b_l[across]).all()
    z = (l + (u - l) * torch.linspace(0, 1, 801, dtype=torch.float64)[:, None])[:, ~across]
    assert (k_l[~across] * z + b_l[~across] <= 1 / z).all()
    assert (1 / z <= k_u[~across] * z + b_u[~across]).all()


class Transformer(nn.Module):
    """Tokens of 3 numbers, one encoder layer, the mean or the first token read out."""

    def __init__(self, encoder: Callable[[], nn.Module], first: bool = False) -> None:
        super().__init__()
        self.embed, self.place, self.last = nn.Linear(3, 4), nn.Parameter(0.1 * torch.randn(1, 4, 4)), nn.Linear(4, 3)
        self.encoder, self.first = encoder(), first

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.embed(x.reshape(-1, 4, 3)) + self.place)
        return self.last(h[:, 0] if self.first else h.mean(1))


class ByHand(nn.Module):
    """Attention and normalisation with nothing but arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        e = torch.exp(self.q(h) @ self.k(h).transpose(1, 2) / 2)
        h = h + (e / e.sum(-1, keepdim=True)) @ self.v(h)
        c = h - h.mean(-1, keepdim=True)
        return c / torch.sqrt((c**2).mean(-1, keepdim=True) + 1e-3)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        return h + F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))


class VisionTransformer(nn.Module):
    """Patches by a convolution, tokens, attention, normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place, self.last = nn.Conv2d(1, 4, 3, 3), nn.Parameter(0.1 * torch.randn(1, 4, 4)), nn.Linear(4, 3)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.patch(x).flatten(2).transpose(1, 2) + self.place).mean(1))


class Block(nn.Module):
    """Residual add after a convolution with batch norm; features joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.last = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(54, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.first(x)))
        h = torch.cat([F.elu(h + self.second(h)), h], 1)
        return self.last(F.max_pool2d(h, 2).flatten(1))


def conv(*middle: nn.Module, size: int, channels: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), *middle, nn.Flatten(), nn.Linear(size, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "softplus": (lambda: mlp(nn.Softplus()), FLAT),
    "elu": (lambda: mlp(nn.ELU(1.3)), FLAT),
    "selu": (lambda: mlp(nn.SELU()), FLAT),
    "celu": (lambda: mlp(nn.CELU(0.6)), FLAT),
    "gelu": (lambda: mlp(nn.GELU()), FLAT),
    "tanh gelu": (lambda: mlp(nn.GELU(approximate="tanh")), FLAT),
    "silu": (lambda: mlp(nn.SiLU()), FLAT),
    "mish": (lambda: mlp(nn.Mish()), FLAT),
    "hard": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.Linear(8, 8), nn.ReLU6(), nn.Hardtanh(-0.3, 0.4), nn.Linear(8, 3)), FLAT),
    "clamp": (lambda: Function(lambda v: v.clamp(min=-0.1) + v.clamp(-0.2, 0.3) + F.hardsigmoid(v)), FLAT),
    "square and root": (lambda: Function(lambda v: torch.sqrt(v**2 + 0.1) + v.square()), FLAT),
    "division": (lambda: Function(lambda v: v / (1 + v.abs())), FLAT),
    "softmax": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Softmax(1), nn.Linear(8, 3)), FLAT),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)), FLAT),
    "group norm": (lambda: conv(nn.GroupNorm(2, 4), nn.ReLU(), size=144), IMAGE),
    "gelu conv": (lambda: conv(nn.GELU(), nn.Conv2d(4, 4, 3, 2, groups=2), nn.Softplus(), size=16), IMAGE),
    "overlapping max pool": (lambda: conv(nn.MaxPool2d(3, 2, 1), nn.LeakyReLU(0.2), size=36), IMAGE),
    "padded average pool": (lambda: conv(nn.Tanh(), nn.AvgPool2d(3, 2, 1), size=36), IMAGE),
    "batch norm": (lambda: conv(nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), size=4), IMAGE),
    "block": (Block, IMAGE),
    "encoder": (lambda: Transformer(lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu")), (12,)),
    "encoder stack": (lambda: Transformer(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1, 4, batch_first=True), 2), True), (12,)),
    "attention by hand": (lambda: Transformer(ByHand), (12,)),
    "fused attention": (lambda: Transformer(Fused), (12,)),
    "vision transformer": (VisionTransformer, IMAGE),
}  # fmt: skip


LONG = {"encoder", "encoder stack", "vision transformer", "group norm", "selu", "celu", "hard", "block"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in NETWORKS])
def test_rows_through_layers_lie_below_the_network(name: str) -> None:
    """≥ 1,000 random and gradient points in every region, never below a row or a bound; a small region's bound is close to the margin."""
    build, shape = NETWORKS[name]
    net = seeded(build)
    engine = BoundEngine(net, shape)
    x, Q, s = question(net, shape, 2)
    margin = torch.einsum("nkm,nm->nk", Q, net(x)) + s
    for norm, radius in ((Norm("inf"), 0.01), (Norm(1), 0.5), (Norm(2), 0.3), (Norm("inf"), 0.2)):
        region = region_of(norm, Box(0, 1), x, radius)
        rows = engine.rows(x, Q, s, region)
        assert torch.isfinite(rows.b).all()
        assert violation(net, x, Q, s, rows, points(norm, region, 500)) <= 0
        assert violation(net, x, Q, s, rows, steepest(net, x, Q, s, norm, region)) <= 0
        if radius == 0.01:
            assert (margin - rows.lower).max() <= 0.5
        elif norm.p == 2:
            interval = engine.rows(x, Q, s, region, BoundMethod.IBP)
            assert violation(net, x, Q, s, interval, points(norm, region, 500)) <= 0


@pytest.mark.parametrize(
    "name", ["gelu", "layer norm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gelu conv", "block", "encoder"))]
)
def test_raised_slopes_stay_sound_through_layers(name: str) -> None:
    build, shape = NETWORKS[name]
    net = seeded(build)
    x, Q, s = question(net, shape, 2)
    region = region_of(Norm(2), Box(0, 1), x, 0.2)
    rows = BoundEngine(net, shape).rows(x, Q, s, region, BoundMethod.ALPHA_CROWN)
    assert violation(net, x, Q, s, rows, points(Norm(2), region, 500)) <= 0
    assert violation(net, x, Q, s, rows, steepest(net, x, Q, s, Norm(2), region)) <= 0


@pytest.mark.parametrize("layer", [nn.LogSigmoid(), nn.Softsign(), nn.Tanhshrink(), nn.Softmin(1)])
def test_layers_made_of_known_operators_are_bounded(layer: nn.Module) -> None:
    net = seeded(lambda: _between(layer))
    x, Q, s = question(net, FLAT)
    region = region_of(2, Box(0, 1), x, 0.3)
    assert violation(net, x, Q, s, BoundEngine(net, FLAT).rows(x, Q, s, region), points(Norm(2), region, 500)) <= 0


def _between(layer: nn.Module) -> nn.Module:
    width = layer(torch.zeros(1, 8)).shape[1]
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(width, 3))


@pytest.mark.parametrize("encoder", [lambda: nn.TransformerEncoderLayer(4, 2, 8), lambda: nn.LSTM(4, 4, batch_first=True)])
def test_what_mixes_or_recurs_is_refused(encoder: Callable[[], nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.last = encoder(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.encoder(x.reshape(-1, 4, 3).repeat(1, 1, 2)[..., :4])
            return self.last((h[0] if isinstance(h, tuple) else h).mean(1))

    with pytest.raises(InputError, match=r"cannot be bounded|in other company"):
        BoundEngine(seeded(Recurrent), (12,))


def test_translation_leaves_torchs_exporter_as_it_was() -> None:
    from torch.onnx._internal.torchscript_exporter.registration import registry

    def known() -> tuple[object, ...]:
        return torch.backends.mha.get_fastpath_enabled(), *(registry.get_function_group(f"aten::{n}").get(12) for n in ("gelu", "softmax"))  # type: ignore[union-attr]

    before = known()
    BoundEngine(seeded(NETWORKS["gelu"][0]), FLAT)
    assert known() == before
