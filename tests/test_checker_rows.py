"""Level B of the checker: rows that it derives lie below the network, and honest certificates pass."""

from __future__ import annotations

import copy
import json
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

from formulations.sets import Box, LpBall, Polytope, TotalVariation
from tests.certificate_example import relu_pieces
from tests.checker_example import (
    COVERED,
    INVALID,
    ROOT,
    VALID,
    attacked,
    bounds_of,
    cancelling,
    certificate,
    exact_outputs,
    network_of,
    raised,
    rehashed,
    seeded,
    stored,
    verdict,
)
from tests.digits_net import correct_digits
from verification.certificate import Certificate, evaluate
from verification.certificate_format import parse
from verification.decision import Decision
from verification.radius import certified_radius
from verification.rechecking.activations import Rectifier
from verification.rechecking.affine import Dense
from verification.rechecking.bounds import enclose
from verification.rechecking.graph import Network, Node


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


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


@pytest.mark.parametrize("name", ["mlp", "leaky", "tanh", "sigmoid", "nested", "conv", "pools", "normalized"])
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
        ("alpha-crown", 2, Box(0, 1)), ("alpha-crown", "inf", Box(0, 1)), ("dual-network", 2, Box(0, 1)), ("dual-network", "inf", Box(0, 1)),
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
