"""Level B of the checker against forgers: raised rows, wider radii, other weights, false slopes, networks that make float64 wrong."""

from __future__ import annotations

import copy
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.sets import Box
from tests.checker_example import (
    CANNOT_DECIDE,
    INVALID,
    VALID,
    Honest,
    attacked,
    cancelling,
    certificate,
    exact_outputs,
    forge,
    honest_case,
    raised,
    rehashed,
    stored,
    verdict,
)
from verification.certificate import CellEvidence, Certificate, RivalEvidence, evaluate
from verification.certificate_format import parse
from verification.decision import Decision
from verification.rechecking.network import read_model, to_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def honest(folder: Path) -> Honest:
    return honest_case(folder)


def gap_of(record: dict[str, Any], net: nn.Sequential, x0: np.ndarray, k: int) -> float:
    """An upper estimate of min (m_k(δ) − a·δ − b) over the cell of row k: raised by more, the row is false."""
    doc = parse(record)
    cell, head = doc.cells[k][0], nn.Sequential(net, nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        head[1].weight.copy_(torch.as_tensor(np.array(doc.rows[k]))[None])
    a = np.array(cell.a[0])
    delta = attacked(head, x0, a, 2, cell.radius)
    return float((head(torch.as_tensor(x0 + delta)).detach().numpy()[:, 0] - delta @ a).min()) + doc.shifts[k] - cell.b[0]


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
     {"slopes": [], "splits": [[]]}, {"slopes": [[]], "splits": [["0x1.0000000000000p+0"]]}, {"slopes": [[]], "splits": 3},
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
