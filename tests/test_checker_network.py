"""The checker's own reader of networks: what it reads is what was written, what it does not cover is named, damaged files are answered in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.checker_example import (
    CANNOT_DECIDE,
    COVERED,
    IMAGE,
    VALID,
    Honest,
    bounds_of,
    honest_case,
    in_ball,
    network_of,
    seeded,
    stored,
    verdict,
)
from verification.certificate import Certificate, ModelRecord, RivalEvidence
from verification.checker import check_file
from verification.decision import Decision
from verification.rechecking.affine import Affine
from verification.rechecking.bounds import enclose
from verification.rechecking.network import read_model, to_json
from verification.rechecking.words import same_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def honest(folder: Path) -> Honest:
    return honest_case(folder)


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


def test_words_pin_a_module_that_is_used_again(folder: Path) -> None:
    """The same ReLU twice stands there twice, so that a file with one more of them, or one less, is another network."""
    relu = nn.ReLU()
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 3)), (5,))
    told = ModelRecord.of(net).architecture
    lines = read_model(stored(net, folder, "reused")).lines()
    assert lines is not None
    assert same_words(told, lines)
    for changed in (nn.Sequential(*net, nn.ReLU()), nn.Sequential(*net[:3], nn.Identity(), net[4])):
        other = read_model(stored(changed, folder, "changed")).lines()
        assert other is not None
        assert not same_words(told, other)


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
