"""Levels B and C of the checker: laws of its arithmetic, honest certificates that pass, forged and impossible ones that never do."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from formulations.norms import GroupNorm, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets import Box, LpBall, Polytope, TotalVariation
from formulations.support import Region as SearchRegion
from lde_cvx.model_files import save_model
from tests.certificate_example import relu_pieces
from tests.digits_net import correct_digits
from verification.certificate import CellEvidence, Certificate, ModelRecord, RivalEvidence, WitnessEvidence, evaluate
from verification.certificate_format import Cell, parse, self_hash
from verification.checker import CheckReport, CheckStatus, check_file
from verification.decision import Decision
from verification.evidence import inner_slopes
from verification.lirpa import BoundEngine
from verification.radius import certified_radius
from verification.rechecking.bounds import Bounds, enclose
from verification.rechecking.layers import Affine, Dense, Rectifier, Sigmoid, Tanh, tanh_bounds
from verification.rechecking.network import Network, Node, read_model, same_words, to_json
from verification.rechecking.region import Region

VALID, INVALID, CANNOT_DECIDE = CheckStatus.VALID, CheckStatus.INVALID, CheckStatus.CANNOT_DECIDE
ROOT = Path(__file__).resolve().parents[1]


def statistics(net: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """Batch norms with statistics of their own."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, *shape))
    return net.eval()


def seeded(build: Callable[[], nn.Sequential], shape: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return statistics(build(), shape).double()


IMAGE = (2, 6, 6)
LINE = (2, 8)
COVERED: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8, bias=False), nn.ReLU(inplace=True), nn.Linear(8, 3)), (5,)),
    "leaky": (lambda: nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.1), nn.Linear(8, 8), nn.LeakyReLU(), nn.Linear(8, 3)), (5,)),
    "tanh": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), (5,)),
    "sigmoid": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 3)), (5,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Identity(), nn.Linear(8, 3)), (5,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(),
                                   nn.Flatten(), nn.Linear(16, 3)), IMAGE),
    "dilated": (lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 3, (2, 3), dilation=2, padding="valid"), nn.ReLU(),
                                      nn.Conv2d(3, 2, 3, padding="same"), nn.Flatten(), nn.Linear(42, 3)), IMAGE),
    "average": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                                      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), IMAGE),
    "padded": (lambda: nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(16, 3)), IMAGE),
    "max": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2, 1, 1), nn.Flatten(), nn.Linear(48, 3)), IMAGE),
    "pools": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), nn.LeakyReLU(0.2), nn.MaxPool2d(2),
                                    nn.Flatten(), nn.Linear(4, 3)), IMAGE),
    "line": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1),
                                   nn.Flatten(), nn.Linear(4, 3)), LINE),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def stored(net: nn.Module, folder: Path, name: str) -> Path:
    save_model(net, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def network_of(name: str, folder: Path) -> tuple[nn.Sequential, Network, tuple[int, ...]]:
    build, shape = COVERED[name]
    net = seeded(build, shape)
    return net, read_model(stored(net, folder, name)).network(shape), shape


# ------------------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("name", COVERED)
def test_the_network_read_is_the_network_written(name: str, folder: Path) -> None:
    net, network, shape = network_of(name, folder)
    x = np.random.default_rng(0).normal(size=(20, *shape))
    told = net(torch.as_tensor(x)).detach().numpy()
    for z, y in zip(x, told, strict=True):
        low, high = enclose(network, z, z)[-1]
        assert (low <= y + 1e-14 * (1 + abs(y))).all()
        assert (high >= y - 1e-14 * (1 + abs(y))).all()
        assert (high - low <= 1e-11 * (1 + abs(y))).all()
    half = np.random.default_rng(1).uniform(0, 0.3, shape)
    around = enclose(network, x[0] - half, x[0] + half)[-1]
    inside = net(torch.as_tensor(x[0] + half * np.random.default_rng(2).uniform(-1, 1, (300, *shape)))).detach().numpy()
    assert (around[0] <= inside.min(0)).all()
    assert (around[1] >= inside.max(0)).all()


@pytest.mark.parametrize("name", COVERED)
def test_affine_layers_and_their_adjoints(name: str, folder: Path) -> None:
    _, network, _ = network_of(name, folder)
    rng = np.random.default_rng(0)
    layers = [node.layer for node in network.nodes if isinstance(node.layer, Affine)]
    assert layers
    for layer in layers:
        x, A = rng.normal(size=(3, *layer.shape_in)), rng.normal(size=(4, *layer.shape))
        left = A.reshape(4, -1) @ layer.apply(x).reshape(3, -1).T
        right = layer.back(A).reshape(4, -1) @ x.reshape(3, -1).T
        assert np.allclose(left, right, rtol=1e-12, atol=1e-12)
        assert (layer.apply(np.abs(x), absolute=True) >= np.abs(layer.apply(x)) - 1e-12).all()


@pytest.mark.parametrize("name", COVERED)
def test_a_model_file_has_the_certificates_hash_and_words(name: str, folder: Path) -> None:
    net, _, _ = network_of(name, folder)
    for module in (net, net.float()):
        file, record = read_model(stored(module, folder, "again")), ModelRecord.of(module)
        assert file.hash(record.architecture) == record.sha256
        lines = file.lines()
        assert lines is not None
        assert same_words(record.architecture, lines)
        assert not same_words(record.architecture, lines[:-1])
        assert not same_words(record.architecture, [*lines[:-1], lines[-1].replace("Linear(", "Identity(")])


def test_a_residual_connection_is_read_from_its_file(folder: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    W, V, S, Q = rng.normal(size=(6, 5)), rng.normal(size=(6, 6)), rng.normal(size=(6, 6)), rng.normal(size=(3, 6))

    def linear(a: int, b: int) -> dict[str, Any]:
        return {"kind": "Linear", "in_features": a, "out_features": b, "bias": False}

    spec = {"kind": "Sequential", "layers": [
        linear(5, 6), {"kind": "Residual", "layers": [{"kind": "ReLU"}, linear(6, 6)], "shortcut": []}, {"kind": "ReLU"},
        {"kind": "Residual", "layers": [{"kind": "Tanh"}], "shortcut": [linear(6, 6)]}, linear(6, 3)]}  # fmt: skip
    tensors = {"0.weight": W, "1.layers.1.weight": V, "3.shortcut.0.weight": S, "4.weight": Q}
    save_file(tensors, folder / "residual.safetensors", {"architecture": to_json(spec)})
    network = read_model(folder / "residual.safetensors").network((5,))

    def f(x: np.ndarray) -> np.ndarray:
        h = x @ W.T
        h = np.maximum(np.maximum(h, 0) @ V.T + h, 0)
        return np.asarray((np.tanh(h) + h @ S.T) @ Q.T)

    x0 = rng.normal(size=5)
    low, high = enclose(network, x0, x0)[-1]
    assert (low <= f(x0)).all()
    assert (high >= f(x0)).all()
    bounds = bounds_of(network, x0, 2, 0.3)
    a, const, error = bounds.at_x0(*bounds.back(len(network.nodes) - 1, np.eye(3)))
    delta = in_ball(2, 5, 0.3, 3000)
    assert (delta @ a.T + const - error <= f(x0 + delta) + 1e-12).all()


NOT_COVERED: list[tuple[nn.Module, str]] = [
    (nn.GELU(), "'1' (GELU)"), (nn.SiLU(), "'1' (SiLU)"), (nn.ELU(), "'1' (ELU)"), (nn.Softplus(), "'1' (Softplus)"), (nn.LayerNorm(8), "'1' (LayerNorm)"),
    (nn.Softmax(-1), "'1' (Softmax)"), (nn.LeakyReLU(1.5), "negative_slope"), (nn.BatchNorm1d(8, track_running_stats=False), "statistics"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "words"), NOT_COVERED, ids=lambda v: type(v).__name__)
def test_what_is_not_covered_is_named(layer: nn.Module, words: str, folder: Path) -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 3)), (5,)).eval()
    if isinstance(layer, nn.BatchNorm1d):
        net.eval()
    path = stored(net, folder, "odd")
    cert = Certificate.build(
        model=net, x0=np.zeros(5), outputs=[1.0, 0.0, 0.0], decision=Decision.classification(0, 3), norm=2, parts=(), evidence=[RivalEvidence()] * 2,
        command="",
    )  # fmt: skip
    report = check_file(cert.save(folder / "odd.json"), level="B", model=path)
    assert report.status is CANNOT_DECIDE
    assert words in report.reasons[0]
    assert check_file(folder / "odd.json", level="A", model=path).ok  # only the hash


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.MaxPool2d(3, ceil_mode=True), nn.AvgPool2d(4, ceil_mode=True), nn.AdaptiveAvgPool2d(4)]
)  # fmt: skip
def test_options_that_are_not_covered_are_refused(layer: nn.Module, folder: Path) -> None:
    with pytest.raises(ValueError, match="not covered"):
        read_model(stored(nn.Sequential(layer), folder, "options")).network(IMAGE)


# ------------------------------------------------------------------------------------------------------------- activations


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([Rectifier((1,)), Rectifier((1,), 0.1), Tanh((1,)), Sigmoid((1,))]),
    st.floats(-30, 30), st.floats(0, 30), st.floats(-0.5, 1.5),
)  # fmt: skip
def test_lines_at_any_slope_stay_on_their_side_and_touch(layer: Any, l: float, width: float, s: float) -> None:
    lo, hi, slope = np.array([l]), np.array([l + width]), np.array([s])
    z = np.concatenate([np.linspace(l, l + width, 400), [0.0] if l <= 0 <= l + width else []])
    value = {
        Rectifier: lambda: np.where(z >= 0, z, getattr(layer, "negative", 0) * z),
        Tanh: lambda: np.tanh(z),
        Sigmoid: lambda: 1 / (1 + np.exp(-z)),
    }[type(layer)]()
    gap, size = value - s * z, 1e-15 * (4 + 4 * np.abs(s * z).max() + np.abs(value).max())
    least, most = layer.least(slope, lo, hi)[0], layer.most(slope, lo, hi)[0]
    assert least <= gap.min() + size
    assert most >= gap.max() - size
    assert gap.min() - least <= 2e-3 * (1 + width) ** 2 + 10 * size  # the grid, and rounding
    assert most - gap.max() <= 2e-3 * (1 + width) ** 2 + 10 * size
    low, high = layer.interval(lo, hi)
    assert low[0] <= value.min() + 1e-15
    assert high[0] >= value.max() - 1e-15
    for own, at, sign in zip(layer.slopes(lo, hi), (layer.least, layer.most), (1, -1), strict=True):
        assert (sign * (value - own * z - at(own, lo, hi)) >= -size).all()


def test_tanh_is_enclosed_by_two_floats_or_three() -> None:
    from flint import arb, ctx

    z = np.r_[np.random.default_rng(0).normal(size=300) * 5, 0.0, 1e-300, -1e-9, 39.9, 50.0, -np.inf, np.inf]
    low, high = tanh_bounds(z)
    before, ctx.prec = ctx.prec, 300
    try:
        for v, a, b in zip(z.tolist(), low.tolist(), high.tolist(), strict=True):
            exact = arb(v).tanh() if abs(v) < 1e9 else arb(1 if v > 0 else -1)
            assert arb(a) <= exact <= arb(b)
    finally:
        ctx.prec = before
    assert (high - low <= 6e-16).all()


# --------------------------------------------------------------------------------------------------------------- the region


def in_ball(p: Any, dim: int, radius: float, count: int, seed: int = 0) -> np.ndarray:
    """Points of ‖δ‖_p ≤ radius, many on the sphere and at corners."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(count, dim)) * (rng.uniform(size=(count, dim)) < rng.uniform(0.1, 1, (count, 1)))
    if p == "inf":
        v = np.sign(v) * np.where(rng.uniform(size=v.shape) < 0.5, 1.0, rng.uniform(size=v.shape))
    length = np.maximum(np.linalg.norm(v, {1: 1, 2: 2, "inf": np.inf}[p], axis=1, keepdims=True), 1e-12)
    return v / length * radius * np.where(rng.uniform(size=(count, 1)) < 0.7, 1 - 1e-12, rng.uniform(size=(count, 1)))


def document(x0: np.ndarray, norm: Any, C: Any = None, radius: float = np.inf) -> tuple[Any, Cell]:
    parts = () if C is None else C.parts(x0.size)
    decision = Decision(np.ones((1, 1)), np.zeros(1), (0,), "", "test")
    evidence = CellEvidence(radius, np.zeros(x0.size), np.array([-1.0]), np.array([1.0]), [None] * len(parts))
    cert = Certificate.build(
        model=ModelRecord("0" * 64, ""), x0=x0, outputs=[1.0], decision=decision, norm=norm, parts=parts, evidence=[RivalEvidence([evidence])], command=""
    )  # fmt: skip
    doc = parse(cert.record)
    return doc, doc.cells[0][0]


def bounds_of(network: Network, x0: np.ndarray, norm: Any, radius: float, C: Any = None) -> Bounds:
    doc, cell = document(x0.ravel(), norm, C, radius)
    return Bounds(network, doc, Region(doc, cell), {}, {})


SETS: dict[str, Any] = {
    "box": Box(0, 1),
    "change": Box(-0.2, 0.3, on="change"),
    "tv": Box(0, 1) & TotalVariation(0.8, (3, 4)),
    "polytope": Box(-1, 2) & Polytope(np.random.default_rng(5).normal(size=(4, 12)), np.full(4, 2.5), equal=(np.ones((1, 12)), np.array([6.0]))),
    "balls": Box(0, 1) & LpBall(Norm(2, np.linspace(0.5, 2, 12)), 0.5, center=np.full(12, 0.45), on="input") & LpBall(1, 0.9),
}  # fmt: skip
GROUPS = GroupNorm([[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]])


@pytest.mark.parametrize("norm", [1, 2, "inf", Norm(2, np.linspace(0.5, 2, 12)), Norm(1, np.linspace(0.5, 2, 12)), GROUPS], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_the_support_function_is_an_upper_bound_and_nearly_tight(name: str, norm: Any) -> None:
    import cvxpy as cp

    x0, radius, n = np.full(12, 0.5), 0.7, Norm.of(norm)
    doc, cell = document(x0, norm, SETS[name], radius)
    A = np.random.default_rng(1).normal(size=(6, 12))
    above, start = Region(doc, cell).above(A)
    again = Region(doc, cell).above(A, start)[0]
    delta = cp.Variable(12)
    length = sum(w * cp.norm(delta[g]) for w, g in zip(GROUPS.omega, GROUPS.groups, strict=True)) if norm is GROUPS else cp.norm(
        cp.multiply(n.scale(12), delta), {1.0: 1, 2.0: 2}.get(n.p, "inf"))  # fmt: skip
    region = [length <= radius, *SETS[name].relative_to(x0).constraints(delta)]
    for row, bound, second in zip(A, above, again, strict=True):
        best = cp.Problem(cp.Maximize(row @ delta), region).solve(solver="CLARABEL")
        assert bound >= best - 1e-7
        assert second >= best - 1e-7
        assert min(bound, second) <= best * 1.05 + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, "inf"]), st.floats(-8, 8))
def test_the_support_function_beats_every_point_exactly(seed: int, p: Any, size: float) -> None:
    """Against rational arithmetic, at points that lie in the region for certain; scales from 10^-8 to 10^8."""
    rng = np.random.default_rng(seed)
    scale = 10.0**size
    x0, A = rng.normal(size=6) * scale, rng.normal(size=(5, 6)) * 10.0 ** rng.uniform(-6, 6, (5, 1))
    radius = scale * rng.uniform(0.1, 2)
    doc, cell = document(x0, p, Box(-2 * scale, 2 * scale, on="change"), radius)
    above = Region(doc, cell).above(A)[0]
    delta = in_ball(p, 6, radius, 30, seed)
    for d in delta:
        exactly = [Fraction(v) for v in d.tolist()]
        length = {1: sum(map(abs, exactly)), 2: sum(v * v for v in exactly), "inf": max(map(abs, exactly))}[p]
        if length > Fraction(radius) ** (2 if p == 2 else 1) or max(map(abs, exactly)) > Fraction(2 * scale):
            continue
        for row, bound in zip(A.tolist(), above.tolist(), strict=True):
            assert sum(Fraction(a) * v for a, v in zip(row, exactly, strict=True)) <= Fraction(bound)


# -------------------------------------------------------------------------------------------------------------------- rows


def attacked(net: nn.Sequential, x0: np.ndarray, a: np.ndarray, norm: Any, radius: float, C: Any = None) -> np.ndarray:
    """Changes of the region that make q·f(x0+δ) − a·δ small: random ones, corners, and projected gradient steps from the worst."""
    delta = np.concatenate([in_ball(norm, x0.size, radius, 1500), np.zeros((1, x0.size))])
    if C is not None:
        keep = np.array([C.relative_to(x0.ravel()).contains(d, 0.0) for d in delta[:400]])
        return delta[:400][keep]
    x = torch.as_tensor(x0[None])
    for _ in range(8):
        d = torch.as_tensor(delta).requires_grad_(True)
        value = net(x + d.reshape(-1, *x0.shape))[:, 0] - d @ torch.as_tensor(a)
        worst = value.argsort()[:40]
        g = torch.autograd.grad(value.sum(), d)[0][worst].numpy()
        step = -np.sign(g) * radius if norm == "inf" else -g / (np.linalg.norm(g, axis=1, keepdims=True) + 1e-12) * radius
        if norm == 1:
            step = np.zeros_like(g)
            step[np.arange(len(g)), np.abs(g).argmax(1)] = -np.sign(g[np.arange(len(g)), np.abs(g).argmax(1)]) * radius
        near = delta[worst.numpy()]
        delta = np.concatenate([delta, *(near + t * (step * (1 - 1e-12) - near) for t in (0.2, 0.6, 1.0))])
    return delta


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("name", COVERED)
def test_derived_rows_lie_below_the_network(name: str, norm: Any, folder: Path) -> None:
    net, network, shape = network_of(name, folder)
    x0 = np.random.default_rng(3).normal(size=shape) * 0.5
    radius = {1: 1.0, 2: 0.5, "inf": 0.1}[norm]
    bounds = bounds_of(network, x0, norm, radius)
    rng = np.random.default_rng(0)
    activations = [int(np.prod(network.shape(i))) for i in network.activations()]
    for slopes in (None, [rng.uniform(-0.2, 1.2, n) for n in activations]):  # any slopes give a valid row
        a, const, error = bounds.at_x0(*bounds.back(len(network.nodes) - 1, np.array([[1.0, 0.0, 0.0]]), slopes))
        delta = attacked(net, x0, a[0], norm, radius)
        true = net(torch.as_tensor(x0 + delta.reshape(-1, *shape))).detach().numpy()[:, 0]
        slack = true - (delta @ a[0] + const[0] - error[0])
        assert slack.min() >= -1e-12
        assert np.isfinite(slack).all()
        assert error[0] <= 1e-9
    for i, (low, high) in enumerate(bounds.bounds):
        assert (low <= high).all(), i


def exact_outputs(weights: list[tuple[np.ndarray, np.ndarray]], x: list[Fraction]) -> list[Fraction]:
    """A ReLU network in rational arithmetic."""
    for k, (W, b) in enumerate(weights):
        x = [
            sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(t)) for row, t in zip(W.tolist(), b.tolist(), strict=True)
        ]
        x = [max(v, Fraction(0)) for v in x] if k < len(weights) - 1 else x
    return x


def cancelling(seed: int, size: float) -> nn.Sequential:
    """Large weights whose sums cancel: in float64 a sum forgets its small terms (Jia & Rinard 2021)."""
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            W = rng.normal(size=layer.weight.shape)
            big = 10.0**size * rng.normal(size=(1, W.shape[1]))
            W[0] += big[0]
            if len(W) > 1:
                W[1] += big[0] * (1 + rng.choice([0.0, 1e-12]))
            layer.weight.copy_(torch.as_tensor(W))
            layer.bias.copy_(torch.as_tensor(rng.normal(size=len(W)) * 10.0 ** rng.choice([0, size])))
        net[2].weight[:, 1] = -net[2].weight[:, 0]
        net[4].weight[:, 1] = -net[4].weight[:, 0]
    return net


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 16))
def test_rounding_is_on_the_safe_side_of_rational_arithmetic(seed: int, size: float) -> None:
    net = cancelling(seed, size)
    pairs = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, nn.Linear)]

    nodes: list[Node] = []
    for k, (W, b) in enumerate(pairs):
        nodes.append(Node(str(2 * k), Dense.of(W, b, (W.shape[1],)), (len(nodes) - 1,)))
        if k < 2:
            nodes.append(Node(str(2 * k + 1), Rectifier((len(W),)), (len(nodes) - 1,)))
    network = Network((3,), tuple(nodes))
    x0 = np.random.default_rng(seed).normal(size=3)
    bounds = bounds_of(network, x0, "inf", 0.25)
    a, const, error = bounds.at_x0(*bounds.back(4, np.array([[1.0, -1.0], [-1.0, 1.0]])))
    for d in np.random.default_rng(seed + 1).choice([-0.25, -0.125, 0.0, 0.125, 0.25], size=(12, 3)):
        exactly = [Fraction(v) for v in d.tolist()]
        x = [Fraction(v) + w for v, w in zip(x0.tolist(), exactly, strict=True)]
        y = exact_outputs(pairs, x)
        for sign, row, c, e in zip((1, -1), a.tolist(), const.tolist(), error.tolist(), strict=True):
            assert sum(Fraction(r) * v for r, v in zip(row, exactly, strict=True)) + Fraction(c) - Fraction(e) <= sign * (y[0] - y[1])
        point = x0 + d
        low, high = enclose(network, point, point)[-1]
        for lo, hi, v in zip(low.tolist(), high.tolist(), exact_outputs(pairs, [Fraction(v) for v in point.tolist()]), strict=True):
            assert Fraction(lo) <= v <= Fraction(hi)
        for i, place in enumerate((0, 2)):  # hidden values as well
            v = exact_outputs(pairs[: i + 1], x)
            lo_, hi_ = bounds.bounds[place]
            assert all(Fraction(p) <= q <= Fraction(r) for p, q, r in zip(lo_.tolist(), v, hi_.tolist(), strict=True))


# ----------------------------------------------------------------------------------------------------------- certificates


def certificate(
    net: nn.Module, x0: np.ndarray, norm: Any, radius: float, C: Any = None, method: str = "crown", flip: np.ndarray | None = None
) -> Certificate:  # fmt: skip
    """Rows of the bound engine at one radius, with their exact multipliers."""
    outputs = evaluate(net, x0[None])[0]
    decision, d = Decision.classification(int(outputs.argmax()), len(outputs)), x0.size
    region = SearchRegion.build(Norm.of(norm), relative_parts(C, d, x0.reshape(1, -1), 1), np.array([radius]), d, count=1)
    rows = BoundEngine(net, x0.shape).rows(torch.as_tensor(x0[None]), torch.as_tensor(decision.rows[None]), torch.as_tensor(decision.shifts[None]),
                                           region, method)  # fmt: skip
    evidence = []
    for k in range(len(decision.shifts)):
        a, b = rows.a[0, k].numpy(), rows.b[0, k : k + 1].numpy()
        solution = min_norm(a, b[0], norm, C, x0.ravel())[0]
        slopes = [[v[0, k].numpy() for v in rows.slopes]] if rows.slopes else []
        inner = [inner_slopes(t, s, v[0].numpy()) for (t, s), v in rows.inner.items()] if k == 0 else []
        cell = CellEvidence(radius, a, b, solution.multipliers["margin"], solution.duals, slopes=slopes, inner=inner)
        evidence.append(RivalEvidence([cell], method))
    witness = None
    if flip is not None:
        y = evaluate(net, (x0 + flip)[None])[0]
        witness = WitnessEvidence(flip.ravel(), y, decision.rivals[int(decision.margins(y[None])[0].argmin())])
    return Certificate.build(
        model=net, x0=x0, outputs=outputs, decision=decision, norm=norm, parts=() if C is None else C.parts(d), evidence=evidence, witness=witness,
        command="test", method=method,
    )  # fmt: skip


def rehashed(record: dict[str, Any]) -> dict[str, Any]:
    record["sha256"] = self_hash(record)
    return record


def verdict(record: dict[str, Any], folder: Path, model: Path, level: str = "B") -> CheckReport:
    (folder / "case.json").write_text(json.dumps(record))
    return check_file(folder / "case.json", level=level, model=model)


@pytest.mark.parametrize("name", ["mlp", "leaky", "tanh", "sigmoid", "nested", "conv", "pools"])
def test_rows_of_the_bound_library_are_derived_again(name: str, folder: Path) -> None:
    net, _, shape = network_of(name, folder)
    x0 = np.random.default_rng(3).normal(size=shape) * 0.5
    for norm, radius in ((1, 0.3), (2, 0.2), ("inf", 0.03)):
        report = verdict(certificate(net, x0, norm, radius, Box(-3, 3)).record, folder, folder / f"{name}.safetensors", "C")
        assert report.ok, (norm, report.reasons)
        assert report.premises == ()


@pytest.fixture(scope="module")
def digits(folder: Path) -> tuple[nn.Module, np.ndarray, Path]:
    net, X, _ = correct_digits(2)
    return net, X.numpy(), stored(net, folder, "digits")


@pytest.mark.parametrize(
    ("method", "norm", "C"),
    [
        ("crown", 1, Box(0, 1)), ("crown", 2, Box(0, 1)), ("crown", "inf", Box(0, 1)), ("ibp", 2, Box(0, 1)),
        ("crown-ibp", 2, Box(0, 1)), ("crown-ibp", "inf", Box(0, 1)),
        ("alpha-crown", 2, Box(0, 1)), ("alpha-crown", "inf", Box(0, 1)),
        ("crown", 2, Box(0, 1) & TotalVariation(1.6, (8, 8))), ("crown", 1, Box(0, 1) & TotalVariation(1.6, (8, 8))),
        ("crown", "inf", Box(0, 1) & TotalVariation(2.0, (8, 8))),
    ],
    ids=lambda v: type(v).__name__ if hasattr(v, "parts") else str(v),
)  # fmt: skip
def test_certified_radii_are_valid_at_level_b(method: str, norm: Any, C: Any, digits: Any, folder: Path) -> None:
    net, X, path = digits
    radii = certified_radius(net, X[:1], norm, C, method=method, max_passes=5)
    outputs = evaluate(net, X[:1])[0]
    cert = Certificate.build(
        model=net, x0=X[0], outputs=outputs, decision=Decision.classification(int(outputs.argmax()), 10), norm=norm, parts=C.parts(64),
        evidence=radii[0].evidence(), command="",
    )  # fmt: skip
    assert cert.lower > 0
    report = verdict(cert.record, folder, path)
    assert report.ok, report.reasons
    import jsonschema

    jsonschema.validate(cert.record, json.loads((ROOT / "verification" / "certificate_schema.json").read_text()))


def test_certificates_of_a_semantic_polytope(folder: Path) -> None:
    """One-hot groups, monotone and immutable features: equalities and rows in 12 dimensions."""
    rng = np.random.default_rng(0)
    net = seeded(lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), (12,))
    E = np.zeros((2, 12))
    E[0, :4] = E[1, 4:8] = 1
    x0 = np.r_[1.0, 0, 0, 0, 0, 0, 1.0, 0, rng.uniform(-1, 1, 4)]
    C = Box(np.r_[np.zeros(8), x0[8], -np.inf, x0[10], -3], np.r_[np.ones(8), x0[8], np.inf, np.inf, 3]) & Polytope(
        np.r_[np.zeros(8), 0, 1.0, -1.0, 0][None], [x0[9] - x0[10] + 0.5], equal=(E, np.ones(2)))  # fmt: skip
    for norm, radius in ((1, 1.0), (2, 0.7), ("inf", 0.4)):
        report = verdict(certificate(net, x0, norm, radius, C).record, folder, stored(net, folder, "credit"), "C")
        assert report.ok, (norm, report.reasons)


def test_cells_of_neuron_splits_are_derived_and_their_rows_are_not_taken_on_trust(folder: Path) -> None:
    cert, net, _ = relu_pieces()
    path, record = stored(net, folder, "pieces"), copy.deepcopy(cert.record)
    for cell in record["rivals"][0]["cells"]:
        cell["b"] = [(float.fromhex(b) - 1e-12).hex() for b in cell["b"]]  # exact rows leave nothing for rounding
    record["lower"] = record["rivals"][0]["lower"] = (0.99 * cert.lower).hex()
    assert verdict(rehashed(record), folder, path).ok
    for row in range(4):  # the margin's row, and the three that state splits
        forged = copy.deepcopy(record)
        b = forged["rivals"][0]["cells"][5]["b"]
        b[row] = (float.fromhex(b[row]) + 1e-6).hex()
        report = verdict(rehashed(forged), folder, path)
        assert report.status is not VALID
        assert any(f"row {row}" in reason or "a row exceeds" in reason for reason in report.reasons)
    forged = copy.deepcopy(record)
    forged["rivals"][0]["cells"][0]["path"][1]["at"] = "7"
    assert verdict(rehashed(forged), folder, path).status is not VALID


@pytest.fixture(scope="module")
def honest(folder: Path) -> tuple[dict[str, Any], nn.Module, Path, np.ndarray]:
    net, _, shape = network_of("mlp", folder)
    x0 = np.random.default_rng(3).normal(size=shape) * 0.5
    cert = certificate(net, x0, 2, 0.4, Box(-3, 3))
    assert verdict(cert.record, folder, folder / "mlp.safetensors").ok
    return cert.record, net, folder / "mlp.safetensors", x0


def forge(record: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A forger's copy: the changed evidence, and the bounds that it proves."""
    out = copy.deepcopy(record)
    change(out)
    from verification.certificate import _published

    return _published(out)


def gap_of(record: dict[str, Any], net: nn.Sequential, x0: np.ndarray, k: int) -> float:
    """An upper estimate of min (m_k(δ) − a·δ − b) over the cell of row k: raised by more, the row is false."""
    doc = parse(record)
    cell, head = doc.cells[k][0], nn.Sequential(net, nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        head[1].weight.copy_(torch.as_tensor(np.array(doc.rows[k]))[None])
    a = np.array(cell.a[0])
    delta = attacked(head, x0, a, 2, cell.radius)
    return float((head(torch.as_tensor(x0 + delta)).detach().numpy()[:, 0] - delta @ a).min()) + doc.shifts[k] - cell.b[0]


def raised(record: dict[str, Any], k: int, by: float) -> dict[str, Any]:
    def change(r: dict[str, Any]) -> None:
        cell = r["rivals"][k]["cells"][0]
        cell["b"] = [(float.fromhex(cell["b"][0]) + by).hex()]

    return forge(record, change)


def test_a_false_row_or_a_wider_radius_is_caught(honest: Any, folder: Path) -> None:
    record, net, path, x0 = honest
    for k in range(2):
        gap = gap_of(record, net, x0, k)
        assert gap > 0
        for by in (gap + 1e-9, gap + 1e-6, 2 * gap):
            try:
                report = verdict(raised(record, k, by), folder, path)
            except RuntimeError:  # ContradictionError: false at x0 already
                continue
            assert report.status is not VALID
            assert f"rivals[{k}]" in report.reasons[0]
        assert verdict(raised(record, k, -1e-3), folder, path).ok  # a weaker row holds all the more
    for factor in (1.5, 4.0, np.inf):

        def wider(r: dict[str, Any], factor: float = factor) -> None:
            for rival in r["rivals"]:
                rival["cells"][0]["radius"] = (float.fromhex(rival["cells"][0]["radius"]) * factor).hex()

        assert verdict(forge(record, wider), folder, path).status is not VALID


def test_a_row_above_the_network_at_x0_is_invalid(honest: Any, folder: Path) -> None:
    record, _, path, _ = honest
    forged = copy.deepcopy(record)
    cell = forged["rivals"][0]["cells"][0]
    told = [float.fromhex(v) for v in forged["outputs"]]
    q = [float.fromhex(v) for v in forged["decision"]["rows"][0]]
    cell["b"] = [
        (sum(a * b for a, b in zip(q, told, strict=True)) + 3e-9).hex()
    ]  # too little for level A, which allows for rounding of the outputs
    report = verdict(forge(forged, lambda r: None), folder, path)
    assert report.status is INVALID
    assert "exceeds the network's margin at x0" in report.reasons[0]


def test_random_forgeries_that_pass_are_true(honest: Any, folder: Path) -> None:
    """Single numbers of the evidence changed at random: what is still valid must hold on thousands of attacked points."""
    record, net, path, x0 = honest
    rng, passed = np.random.default_rng(0), 0
    for _ in range(60):
        forged = copy.deepcopy(record)
        cell = forged["rivals"][int(rng.integers(2))]["cells"][0]
        field, by = rng.choice(["a", "b", "radius"]), float(10.0 ** rng.uniform(-13, -1) * rng.choice([-1, 1]))
        if field == "radius":
            cell["radius"] = (float.fromhex(cell["radius"]) * (1 + by)).hex()
        else:
            values = cell["a"][0] if field == "a" else cell["b"]
            i = int(rng.integers(len(values)))
            values[i] = (float.fromhex(values[i]) + by).hex()
        try:
            forged = forge(forged, lambda r: None)
        except RuntimeError:  # ContradictionError: too bold
            continue
        if verdict(forged, folder, path).ok:
            passed += 1
            assert min(gap_of(forged, net, x0, k) for k in range(2)) >= -1e-13
    assert passed > 5


def test_other_weights_and_other_layers_are_refused(honest: Any, folder: Path) -> None:
    record, net, path, _ = honest
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-9
    report = verdict(record, folder, stored(other, folder, "other"))
    assert report.status is INVALID
    assert "about model" in report.reasons[0]
    file = read_model(path)
    spec = json.loads(to_json(file.layers))["model"]
    from safetensors.numpy import save_file

    for change in ({"kind": "Identity"}, {"kind": "Tanh"}, {"kind": "LeakyReLU", "negative_slope": 0.5}):
        spec["layers"][1] = change
        save_file({k: np.array(v) for k, v in file.tensors.items()}, folder / "rewired.safetensors", {"architecture": to_json(spec)})
        report = verdict(record, folder, folder / "rewired.safetensors")
        assert report.status is CANNOT_DECIDE
        assert "describes their layers otherwise" in report.reasons[0]


def test_proposed_slopes_are_help_only(honest: Any, folder: Path) -> None:
    """Slopes of any kind never spoil a row that holds without them, and never prove one that does not hold."""
    record, _, path, _ = honest
    rng, gap = np.random.default_rng(0), gap_of(honest[0], honest[1], honest[3], 0)
    for case in range(12):
        r = copy.deepcopy(record)
        sizes = [8, 8] if case % 3 else [8, 3]
        slopes = [[[float(v).hex() for v in rng.uniform(-1, 2, n)] for n in sizes]]
        inner = [{"of": 1, "by": 0, "neurons": [0, 3], "inputs": [1, 2, 7] if case % 2 else [7, 99, 1],
                  "low": [[float(v).hex() for v in rng.uniform(-1, 2, 3)] for _ in range(2)], "up": [["0x0.0p+0"] * 3] * 2}]  # fmt: skip
        for rival in r["rivals"]:
            rival["cells"][0]["relaxation"] = {"slopes": slopes, "inner": inner}
        assert verdict(rehashed(r), folder, path).ok
        assert verdict(raised(r, 0, gap + 1e-9), folder, path).status is not VALID


@pytest.mark.parametrize(
    "relaxation",
    [{}, {"slopes": 3}, {"slopes": [[["x"]]]}, {"slopes": [[["inf"]]]}, {"slopes": [[], []]}, {"slopes": [], "inner": [{}]}, {"slopes": [], "more": 1},
     {"slopes": [], "inner": [{"of": 1, "by": 1, "neurons": [], "inputs": [], "low": [], "up": []}]},
     {"slopes": [], "inner": [{"of": 1, "by": 0, "neurons": [-1], "inputs": [], "low": [[]], "up": [[]]}]},
     {"slopes": [], "inner": [{"of": 1, "by": 0, "neurons": [1], "inputs": [1], "low": [], "up": [["0x0.0p+0"]]}]}],
)  # fmt: skip
def test_broken_relaxations_are_refused(relaxation: Any, honest: Any, folder: Path) -> None:
    record = copy.deepcopy(honest[0])
    record["rivals"][0]["cells"][0]["relaxation"] = relaxation
    report = verdict(rehashed(record), folder, honest[2])
    assert report.status is INVALID
    assert "relaxation" in report.reasons[0]


def test_networks_that_fool_float64_are_never_certified(folder: Path) -> None:
    """f = (big + x) − big + 1 − … in float64 forgets x: every bound there says that nothing flips, while the real function does."""
    big = 2.0**60
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[0].bias.copy_(torch.tensor([big, big]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        net[2].bias.copy_(torch.tensor([1.0, 0.0]))
    x0 = np.zeros(1)
    assert evaluate(net, np.array([[-5.0]]))[0][0] == 1.0  # float64 does not see the flip at x = −1
    path = stored(net, folder, "fooled")
    for a, b in ((0.0, 1.0), (0.0, 0.5), (1.0, 1.0)):
        cert = Certificate.build(
            model=net, x0=x0, outputs=evaluate(net, x0[None])[0], decision=Decision.classification(0, 2), norm="inf",
            parts=Box(-10, 10).parts(1), evidence=[RivalEvidence([CellEvidence(np.inf, np.array([a]), np.array([b]), np.array([1.0]), [None])])], command="",
        )  # fmt: skip
        for level in ("B", "C"):
            report = verdict(cert.record, folder, path, level)
            assert report.status is not VALID, (a, b)
    assert cert.lower > 0


@pytest.mark.parametrize("seed", range(12))
def test_float64_bounds_of_cancelling_networks_are_not_believed(seed: int, folder: Path) -> None:
    """Whatever level B accepts of them holds in rational arithmetic."""
    net, x0 = cancelling(seed, [2.0, 6.0, 9.0, 13.0][seed % 4]), np.random.default_rng(seed).normal(size=3)
    pairs = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net if isinstance(m, nn.Linear)]
    try:
        cert = certificate(net, x0, "inf", 0.25, Box(-9, 9))
    except (RuntimeError, ValueError):  # the bound pass itself notices
        return
    if not verdict(cert.record, folder, stored(net, folder, "cancelling")).ok:
        return
    doc = parse(cert.record)
    for d in np.random.default_rng(seed).choice([-0.25, 0.0, 0.25], size=(27, 3)):
        y = exact_outputs(pairs, [Fraction(v) + Fraction(w) for v, w in zip(x0.tolist(), d.tolist(), strict=True)])
        for k, cells in enumerate(doc.cells):
            row = sum(Fraction(a) * Fraction(w) for a, w in zip(cells[0].a[0], d.tolist(), strict=True)) + Fraction(cells[0].b[0])
            assert row <= sum(Fraction(q) * v for q, v in zip(doc.rows[k], y, strict=True)) + Fraction(doc.shifts[k])


# -------------------------------------------------------------------------------------------------------------------- level C


def witnessed(margin: float, folder: Path) -> tuple[dict[str, Any], Path]:
    """f = (x₁, 0) from x₁ = 1, with a witness at which the margin is `margin`."""
    net = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        net[0].bias.zero_()
    x0, delta = np.array([1.0, 0.0]), np.array([-1.0, margin])
    outputs = evaluate(net, (x0 + delta)[None])[0]
    outputs[0] = min(outputs[0], 0.0)
    cert = Certificate.build(
        model=net, x0=x0, outputs=evaluate(net, x0[None])[0], decision=Decision.classification(0, 2), norm=2, parts=(), evidence=[RivalEvidence()],
        witness=WitnessEvidence(delta, outputs, 1), command="",
    )  # fmt: skip
    return cert.record, stored(net, folder, "line2")


@pytest.mark.parametrize(
    ("margin", "status"),
    [(0.0, VALID), (-1e-3, VALID), (-(2.0**-60), VALID), (2.0**-60, CANNOT_DECIDE), (1e-12, CANNOT_DECIDE), (1e-6, INVALID)],
)
def test_the_witness_flips_for_certain(margin: float, status: CheckStatus, folder: Path) -> None:
    record, path = witnessed(margin, folder)
    report = verdict(record, folder, path, "C")
    assert report.status is status, report.reasons
    if status is not VALID:
        assert "outputs" in report.reasons[0]


def test_stored_outputs_are_the_networks(honest: Any, folder: Path) -> None:
    record, _, path, _ = honest
    assert verdict(record, folder, path, "C").ok
    forged = copy.deepcopy(record)
    forged["outputs"][0] = (float.fromhex(forged["outputs"][0]) + 1e-6).hex()
    report = verdict(forge(forged, lambda r: None), folder, path, "C")
    assert report.status is INVALID
    assert "outputs at x0" in report.reasons[0]


# ---------------------------------------------------------------------------------------------------------------------- files


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_model_files_never_crash_and_never_pass(data: st.DataObject, honest: Any, folder: Path) -> None:
    record, _, path, _ = honest
    raw = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "size", "insert"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    elif kind == "size":
        raw[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    elif kind == "insert":
        at = data.draw(st.integers(0, len(raw)))
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "damaged.safetensors").write_bytes(raw)
    report = verdict(record, folder, folder / "damaged.safetensors", "B")
    if report.ok:  # a byte of the metadata that no layer reads
        assert read_model(folder / "damaged.safetensors").hash(record["model"]["architecture"]) == record["model"]["sha256"]


@pytest.mark.parametrize(
    "spec",
    [[], {}, {"kind": "Linear"}, {"kind": "Sequential", "layers": 3}, {"kind": "Sequential", "layers": [None]}, {"kind": "Conv2d", "groups": 0},
     {"kind": "Linear", "in_features": -1, "out_features": 10**18, "bias": True}, {"kind": "Flatten", "start_dim": 0, "end_dim": -1},
     {"kind": "AvgPool2d", "kernel_size": 0, "stride": None, "padding": 0, "ceil_mode": False}, {"kind": "Sequential", "layers": []},
     {"kind": "Residual", "layers": [], "shortcut": [{"kind": "Linear", "in_features": 5, "out_features": 8, "bias": True}]}],
)  # fmt: skip
def test_hostile_layers_are_answered_in_one_line(spec: Any, honest: Any, folder: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {k: np.array(v) for k, v in read_model(honest[2]).tensors.items()}
    save_file(tensors, folder / "hostile.safetensors", {"architecture": json.dumps({"format": "lde-layers-1", "model": spec})})
    report = verdict(honest[0], folder, folder / "hostile.safetensors")
    assert report.status is not VALID
    assert all("\n" not in reason for reason in report.reasons)


def test_a_level_without_a_model_says_so(honest: Any, folder: Path) -> None:
    (folder / "case.json").write_text(json.dumps(honest[0]))
    for model in (None, folder / "nowhere.safetensors", folder):
        assert check_file(folder / "case.json", level="B", model=model).status is CANNOT_DECIDE


BLOCKER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'cvxpy', 'clarabel', 'scs', 'auto_LiRPA', 'scipy', 'safetensors', 'formulations', 'lde_cvx'}:
            raise ImportError('refused: ' + name)
sys.meta_path.insert(0, Refuse())
from verification.checker import main
sys.exit(main(sys.argv[1:]))
"""


def test_level_c_runs_without_torch_solver_and_bound_library(honest: Any, folder: Path) -> None:
    (folder / "case.json").write_text(json.dumps(honest[0]))
    command = [sys.executable, "-c", BLOCKER, "--level", "C", "--model", str(honest[2]), str(folder / "case.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": valid" in done.stdout


# ------------------------------------------------------------------------------------------------------------------ campaign

CAMPAIGN: list[tuple[str, Any]] = [
    ("none", None), ("box", Box(-0.6, 0.6)), ("change", Box(-0.2, 0.3, on="change")), ("polytope", Box(-1, 1) & Polytope(np.ones((1, 5)), [0.4])),
    ("ball", LpBall(2, 0.3) & Box(-1, 1)), ("equal", Box(-1, 1) & Polytope(np.eye(5)[:1], [0.5], on="change", equal=(np.ones((1, 5)), [0.0]))),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(120))
def test_campaign_random_networks(seed: int, folder: Path) -> None:
    """Honest rows are derived again; rows that were raised above the network never are."""
    rng = np.random.default_rng(seed)
    act = [nn.ReLU, nn.ReLU, nn.Tanh, nn.Sigmoid, lambda: nn.LeakyReLU(0.1)][seed % 5]
    widths = [5, *rng.integers(3, 20, rng.integers(1, 4)).tolist(), 3]
    layers = [m for a, b in pairwise(widths[:-1]) for m in (nn.Linear(a, b), act())]
    net = seeded(lambda: nn.Sequential(*layers, nn.Linear(widths[-2], 3)), (5,), seed)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(float(10 ** rng.uniform(-0.3, 0.5)))
    x0 = rng.uniform(-0.3, 0.3, 5)
    name, C = CAMPAIGN[int(rng.integers(len(CAMPAIGN)))]
    if name == "polytope":
        x0 -= 0.1
    norm, method = [1, 2, "inf"][int(rng.integers(3))], ["crown", "crown", "alpha-crown"][int(rng.integers(3))]
    radius, path = float(10 ** rng.uniform(-2, 0.3)), stored(net, folder, "campaign")
    cert = certificate(net, x0, norm, radius, C, method)
    report = verdict(cert.record, folder, path, "C")
    print("campaign", name, norm, method, report)
    assert report.status is not INVALID
    for k in range(2):
        doc = parse(cert.record)
        head = nn.Sequential(net, nn.Linear(3, 1, bias=False)).double()
        with torch.no_grad():
            head[1].weight.copy_(torch.as_tensor(np.array(doc.rows[k]))[None])
        a, b = np.array(doc.cells[k][0].a[0]), doc.cells[k][0].b[0]
        delta = attacked(head, x0, a, norm, radius, C)
        gap = float((head(torch.as_tensor(x0 + delta)).detach().numpy()[:, 0] - delta @ a).min()) + doc.shifts[k] - b
        assert gap >= -1e-12
        try:
            assert verdict(raised(cert.record, k, gap + 1e-9), folder, path).status is not VALID
        except RuntimeError:
            continue
