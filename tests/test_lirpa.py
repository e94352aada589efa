"""Minorant rows of networks over sets: true at every point that is tried, and the known faults of the library kept out."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.errors import DependencyError, InputError
from formulations.norms import GroupNorm, Norm
from formulations.programs import relative_parts
from formulations.sets import Box, ConvexSet, LpBall, Polytope, TotalVariation
from formulations.support import Region
from verification.decision import Decision
from verification.lirpa import BoundEngine, BoundMethod, compat
from verification.model import decide, margins, stack


class Residual(nn.Module):
    """Sums of vectors and of feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(108, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h = torch.relu(h + self.second(h))
        v = torch.relu(self.third(h.flatten(1)))
        return self.last(v + torch.relu(v - 0.1))


class Function(nn.Module):
    """Linear, a function, linear."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(6, 8), function, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 3))


IMAGE, FLAT = (1, 6, 6), (6,)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: mlp(nn.ReLU()), FLAT),
    "leaky": (lambda: mlp(nn.LeakyReLU(0.1)), FLAT),
    "tanh": (lambda: mlp(nn.Tanh()), FLAT),
    "sigmoid": (lambda: mlp(nn.Sigmoid()), FLAT),
    "silu": (lambda: mlp(nn.SiLU()), FLAT),
    "gelu": (lambda: mlp(nn.GELU(approximate="tanh")), FLAT),  # 0.3's own bias leaves the constant 1 + tanh out
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)), FLAT),
    "scaled input": (lambda: Function(lambda v: torch.relu((v - 0.5) / 0.25)), FLAT),
    "products": (lambda: Function(lambda v: v * torch.sigmoid(1.7 * v) - torch.relu(-v) * 0.5), FLAT),
    "exp and log": (lambda: Function(lambda v: torch.log(1 + torch.exp(v))), FLAT),
    "abs": (lambda: Function(lambda v: (v - 0.2).abs()), FLAT),
    "means": (lambda: Function(lambda v: torch.relu(v) - torch.relu(v).mean(1, keepdim=True)), FLAT),
    "sums": (lambda: Function(lambda v: torch.relu(v) - torch.relu(v).sum(1, keepdim=True) / 4), FLAT),
    "slices": (lambda: Function(lambda v: torch.cat([torch.relu(v[:, :4]), v[:, 2:], torch.relu(v).unsqueeze(2).squeeze(2)[:, :2]], 1), 12), FLAT),
    "conv": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), IMAGE),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)), IMAGE),
    "pools": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.AvgPool2d(2),
                                    nn.Flatten(), nn.Linear(4, 3)), IMAGE),
    "global pool": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), IMAGE),
    "residual": (Residual, IMAGE),
    "affine": (lambda: nn.Linear(6, 3), FLAT),
    "dead": (lambda: nn.Sequential(nn.Linear(6, 8), Constant(), nn.Linear(8, 3)), FLAT),
}  # fmt: skip
GROUPS = GroupNorm([[0, 1, 2], [3], [4, 5]])


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(-torch.relu(x) - 1)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build().double()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr, operator]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return net.eval().requires_grad_(False)


def question(net: nn.Module, shape: tuple[int, ...], count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.tensor(np.random.default_rng(2).uniform(0.2, 0.8, (count, *shape)))
    Q, s, _ = stack([Decision.classification(int(c), 3) for c in net(x).argmax(1)], x)
    return x, Q, s


def region_of(norm: Norm | str | int, constraints: ConvexSet | None, x: Tensor, radius: float) -> Region:
    flat = x.flatten(1).numpy()
    return Region.build(Norm.of(norm), relative_parts(constraints, flat.shape[1], flat, len(flat)), radius, flat.shape[1], count=len(flat))


def points(norm: Norm, region: Region, count: int) -> Tensor:
    """Random changes in ball ∩ box (n, count, d): inside, on the ball, at corners of the hull."""
    rng = np.random.default_rng(7)
    lo, hi = (v[:, None].numpy() for v in region.hull())
    shape = (region.count, count, region.dim)
    delta = lo + (hi - lo) * np.where(rng.random(shape) < 0.5, rng.random(shape), rng.integers(0, 2, shape))
    delta *= rng.random(shape) < rng.random((region.count, count, 1))  # some coordinates stay, which helps p = 1
    size = norm.value(delta)[..., None]
    r = region.radius.numpy()[:, None, None]
    return torch.tensor(delta * np.minimum(1, r / np.maximum(size, 1e-300)))


def steepest(net: nn.Module, x: Tensor, Q: Tensor, s: Tensor, norm: Norm, region: Region, steps: int = 8) -> Tensor:
    """Gradient points (n, K·steps, d): descend each margin, scaled back into ball ∩ box (which is star-shaped around 0)."""
    lo, hi = (v[:, None] for v in region.hull())
    found = []
    for k in range(Q.shape[1]):
        delta = torch.zeros(len(x), region.dim, dtype=x.dtype)
        for step in range(steps):
            delta = delta.detach().requires_grad_(True)
            m = margins(net, x + delta.view_as(x), Q, s)[:, k]
            (g,) = torch.autograd.grad(m.sum(), delta, allow_unused=True)
            g = torch.zeros_like(delta) if g is None else g
            move = g.sign() if norm.p == np.inf else g / g.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            raw = (delta - move * region.radius[:, None] / (1 + step / 2)).detach()[:, None]
            raw = torch.minimum(torch.maximum(raw, lo), hi)
            size = torch.tensor(norm.value(raw.numpy()))[..., None]
            delta = (raw * (region.radius[:, None, None] / size.clamp(min=1e-300)).clamp(max=1))[:, 0]
            found.append(delta)
    return torch.stack(found, 1)


def violation(net: nn.Module, x: Tensor, Q: Tensor, s: Tensor, rows: object, delta: Tensor) -> float:
    """How far a row rises above its margin, over all points; ≤ 0 is what the rows promise."""
    n, count = delta.shape[:2]
    y = net((x.flatten(1)[:, None] + delta).reshape(-1, *x.shape[1:])).reshape(n, count, -1)
    m = torch.einsum("nkm,nsm->nsk", Q, y) + s[:, None]
    rows_there = torch.einsum("nkd,nsd->nsk", rows.a, delta) + rows.b[:, None]  # type: ignore[attr-defined]
    return float(torch.maximum(rows_there - m, rows.lower[:, None] - m).max())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_lie_below_the_network(name: str) -> None:
    """a·δ + b ≤ m(δ) and lower ≤ m(δ) at random and at gradient points, for every norm, small and large radii."""
    build, shape = NETWORKS[name]
    net = seeded(build)
    engine = BoundEngine(net, shape)
    x, Q, s = question(net, shape)
    more = [Norm(2, np.linspace(0.5, 2, 6))] if name == "relu" else []
    for norm in [Norm(1), Norm(2), Norm("inf"), *more]:
        for radius in (0.02, 0.4):
            region = region_of(norm, Box(0, 1), x, radius)
            rows = engine.rows(x, Q, s, region)
            assert torch.isfinite(rows.b).all()
            assert violation(net, x, Q, s, rows, points(norm, region, 400)) <= 0
            assert violation(net, x, Q, s, rows, steepest(net, x, Q, s, norm, region)) <= 0


@pytest.mark.parametrize("method", BoundMethod)
@pytest.mark.parametrize("name", ["relu", "silu", "conv"])
def test_every_method_is_sound_and_alpha_is_no_looser(name: str, method: BoundMethod) -> None:
    build, shape = NETWORKS[name]
    net = seeded(build, 1)
    engine = BoundEngine(net, shape)
    x, Q, s = question(net, shape)
    for norm in (Norm(1), Norm("inf")) if name == "relu" else (Norm(2),):
        region = region_of(norm, Box(0, 1), x, 0.15)
        rows = engine.rows(x, Q, s, region, method)
        assert violation(net, x, Q, s, rows, points(norm, region, 400)) <= 0
        assert violation(net, x, Q, s, rows, steepest(net, x, Q, s, norm, region)) <= 0
        if method is not BoundMethod.CROWN:
            crown = engine.rows(x, Q, s, region).lower
            assert (rows.lower >= crown - 1e-6).all() if method is BoundMethod.ALPHA_CROWN else (rows.lower <= crown + 1e-6).all()


@pytest.mark.parametrize("name", ["batch norm", "gelu", "pools", "residual", "tanh"])
def test_rows_over_intervals_lie_below_the_network(name: str) -> None:
    """CROWN-IBP: a·δ + b ≤ m(δ), with a slope."""
    build, shape = NETWORKS[name]
    net = seeded(build, 2)
    engine = BoundEngine(net, shape)
    x, Q, s = question(net, shape)
    for norm, radius in ((Norm(2), 0.05), (Norm("inf"), 0.3)):
        region = region_of(norm, Box(0, 1), x, radius)
        rows = engine.rows(x, Q, s, region, BoundMethod.CROWN_IBP)
        assert torch.isfinite(rows.b).all()
        assert rows.a.abs().sum() > 0
        assert violation(net, x, Q, s, rows, points(norm, region, 400)) <= 0
        assert violation(net, x, Q, s, rows, steepest(net, x, Q, s, norm, region)) <= 0


COUPLED: dict[str, ConvexSet] = {
    "one-hot": Box(0, 1) & Polytope(None, None, equal=(np.kron(np.eye(2), np.ones(3)), np.zeros(2)), on="change"),
    "tv": Box(0, 1) & TotalVariation(0.15, (2, 3)),
    "l2 ball": Box(0, 1) & LpBall(2, 0.2),
}


def test_rows_hold_for_group_norms() -> None:
    net = seeded(NETWORKS["leaky"][0])
    x, Q, s = question(net, FLAT)
    region = region_of(GROUPS, Box(0, 1), x, 0.3)
    rows = BoundEngine(net, FLAT).rows(x, Q, s, region)
    assert violation(net, x, Q, s, rows, points(GROUPS, region, 400)) <= 0


@pytest.mark.parametrize("name", COUPLED)
def test_rows_over_coupled_sets_hold_and_are_tighter_than_over_the_box(name: str) -> None:
    """Attacked at members found by CVXPY: maximisers of the row's own downhill direction, and projections of random points."""
    net = seeded(NETWORKS["relu"][0], 3)
    engine = BoundEngine(net, FLAT)
    x, Q, s = question(net, FLAT, 2)
    rng = np.random.default_rng(0)
    for norm in (Norm(1),) if name == "l2 ball" else (Norm(2), Norm("inf")):
        region = region_of(norm, COUPLED[name], x, 0.3)
        rows = engine.rows(x, Q, s, region)
        plain = engine.rows(x, Q, s, region_of(norm, Box(0, 1), x, 0.3))
        assert (rows.lower >= plain.lower - 1e-9).all()
        assert (rows.lower > plain.lower + 1e-3).any()
        members = []
        for i in range(2):
            C = COUPLED[name].relative_to(x[i].numpy())
            found = np.stack([C.project(v) for v in 0.3 * rng.normal(size=(12, 6))])
            found *= np.minimum(1, 0.3 / np.maximum(norm.value(found), 1e-300))[:, None]
            members.append(found)
        assert violation(net, x, Q, s, rows, torch.tensor(np.stack(members))) <= 1e-8  # the projections' own accuracy


# ---- faults of the library that must not come back ---------------------------------------------------------------------


def test_the_box_counts_at_every_norm() -> None:
    """The library ignores x_L and x_U at norm 2. Here min x₁ over ‖δ‖₂ ≤ 1, x ∈ [0, 1] is 0, not x₁ − 1."""
    net = nn.Linear(2, 3, dtype=torch.float64).requires_grad_(False)
    net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    net.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    x = torch.tensor([[0.4, 0.5]], dtype=torch.float64)
    Q, s, _ = stack(decide(net(x), None), x)
    for norm in (1, 2, "inf"):
        lower = BoundEngine(net, (2,)).rows(x, Q, s, region_of(norm, Box(0, 1), x, 1.0)).lower
        assert torch.allclose(lower, torch.ones(1, 2, dtype=torch.float64), atol=1e-9)


def test_the_first_layer_asks_the_region() -> None:
    """0.3 answers it from the box hull. |w·δ| ≤ ‖w‖_* r there, so relu(w·δ + ‖w‖_* r) is linear and the margin's bound exact."""
    d = 16
    w = torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    for norm, dual in ((Norm(1), float(w.max())), (Norm(2), float(w.norm()))):
        net = nn.Sequential(nn.Linear(d, 1, dtype=torch.float64), nn.ReLU(), nn.Linear(1, 2, dtype=torch.float64)).requires_grad_(False)
        net[0].weight.copy_(w[None])
        net[0].bias.fill_(0.1 * dual)
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[2].bias.copy_(torch.tensor([1.0, 0.0]))
        x = torch.zeros(1, d, dtype=torch.float64)
        Q, s, _ = stack(decide(net(x), None), x)
        rows = BoundEngine(net, (d,)).rows(x, Q, s, region_of(norm, None, x, 0.1))
        assert torch.allclose(rows.a[0, 0], w, atol=1e-9)
        assert torch.allclose(rows.lower, torch.ones(1, 1, dtype=torch.float64), atol=1e-9)


def test_a_region_without_x0_certifies_nothing() -> None:
    """The library reads an infeasible constraint as (+inf, −inf)."""
    net = seeded(NETWORKS["relu"][0])
    x, Q, s = question(net, FLAT)
    empty = Box(0, 1) & Polytope(np.ones((1, 6)), [-100.0], on="change")
    with pytest.raises(InputError, match="does not hold x0"):
        BoundEngine(net, FLAT).rows(x, Q, s, region_of(2, empty, x, 0.5))


def test_operators_with_wrong_bounds_are_refused_or_replaced() -> None:
    """0.3's CROWN bound of the square root has a wrong slope (2.02 where 2.44 is reached), its average pool forgets overlaps, its padding what it pads with."""
    with pytest.raises(InputError, match="cannot be bounded"):
        BoundEngine(seeded(lambda: Function(torch.sin)), FLAT)
    with pytest.raises(InputError, match="layer '0'"):
        BoundEngine(seeded(lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 3))), IMAGE)
    pool = lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(27, 3))  # noqa: E731
    for build, shape in ((lambda: Function(lambda v: torch.sqrt(torch.relu(v) + 0.1)), FLAT), (pool, IMAGE)):
        net = seeded(build)
        x, Q, s = question(net, shape)
        region = region_of("inf", Box(0, 1), x, 0.2)
        assert violation(net, x, Q, s, BoundEngine(net, shape).rows(x, Q, s, region), points(Norm("inf"), region, 400)) <= 0


@pytest.mark.parametrize("layer", [nn.Softshrink(), nn.Hardshrink(), nn.LogSoftmax(1)])
def test_unsupported_layers_are_named(layer: nn.Module) -> None:
    with pytest.raises(InputError, match=rf"layer 'act' \({type(layer).__name__}"):
        BoundEngine(_named(layer), FLAT)


def _named(layer: nn.Module) -> nn.Module:
    net = nn.Sequential()
    net.add_module("first", nn.Linear(6, 8))
    net.add_module("act", layer)
    net.add_module("last", nn.Linear(8, 3))
    return net


def test_an_unknown_operator_outside_any_layer_is_named() -> None:
    with pytest.raises(InputError, match="Erf"):
        BoundEngine(seeded(lambda: Function(torch.erf)), FLAT)


# ---- manners -----------------------------------------------------------------------------------------------------------


def test_the_callers_model_and_torch_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)).half().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    engine = BoundEngine(net, FLAT)
    x = torch.rand(2, 6, dtype=torch.float64)
    Q, s, _ = stack(decide(engine.model(x), None), x)
    for method in BoundMethod:
        engine.rows(x, Q, s, region_of(2, Box(0, 1), x, 0.1), method)
    assert torch.get_default_dtype() == torch.float32
    assert net.training
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float16 for k, v in net.state_dict().items())


def test_chunks_give_the_same_rows() -> None:
    for name in ("relu", "conv"):
        build, shape = NETWORKS[name]
        net = seeded(build)
        x, Q, s = question(net, shape, 5)
        whole, pieces = BoundEngine(net, shape), BoundEngine(net, shape, memory=1)
        region = region_of(2, Box(0, 1), x, 0.2)
        for field in ("a", "b", "lower"):
            assert torch.allclose(getattr(whole.rows(x, Q, s, region), field), getattr(pieces.rows(x, Q, s, region), field), atol=1e-12)


def test_overflow_is_no_bound() -> None:
    net = seeded(lambda: Function(torch.exp))
    x, Q, s = question(net, FLAT)
    rows = BoundEngine(net, FLAT).rows(x, Q, s, region_of(2, None, x, 1e6))
    assert (rows.lower == -torch.inf).any()
    assert not torch.isnan(rows.lower).any()
    assert torch.isfinite(rows.a).all()


def test_shapes_and_methods_are_checked() -> None:
    net = seeded(NETWORKS["relu"][0])
    engine = BoundEngine(net, FLAT)
    x, Q, s = question(net, FLAT)
    with pytest.raises(InputError, match="do not fit"):
        engine.rows(x[:2], Q[:2], s[:2], region_of(2, None, x, 0.1))
    with pytest.raises(InputError, match="not known"):
        engine.rows(x, Q, s, region_of(2, None, x, 0.1), "milp")


def test_the_library_found_is_named_and_a_missing_one_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    version = compat.library().version
    print(f"auto_LiRPA {version}")
    assert version.split(".")[0] == "0"
    compat.library.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "auto_LiRPA"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(DependencyError, match=r"pip install --no-deps auto_LiRPA==0\.3"):
        compat.library()
    monkeypatch.undo()
    compat.library.cache_clear()
