"""Rows of flips at level B: what the checker derives of a cell's flips is attacked with flips; proposals are help only; wider leaves never pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.sets import Box, Polytope
from lde_cvx.model_files import save_model
from tests.certificate_example import rehashed
from tests.checker_example import INVALID, VALID, document, in_ball, stored
from tests.test_certificate_trees import Case, reaching, two_layers
from verification.certificate import Certificate
from verification.checker import check_file
from verification.checking.document import Split
from verification.rechecking.flips import Flips
from verification.rechecking.network import read_model
from verification.rechecking.rows import _bounds, _value_at

SETS: dict[str, Any] = {
    "free": None,
    "box": Box(-0.4, 0.5, on="change"),
    "polytope": Box(-2, 2) & Polytope(np.ones((1, 4)), [0.6], on="change"),
}


def relu_net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)).double().requires_grad_(False)


def values(net: nn.Sequential, x: np.ndarray) -> list[np.ndarray]:
    """All layers' values at inputs x."""
    out, v = [], torch.as_tensor(x)
    for layer in net:
        v = layer(v)
        out.append(v.numpy())
    return out


def question(seed: int, norm: Any, name: str, folder: Path) -> tuple[Flips, nn.Sequential, np.ndarray, Any, float, np.ndarray, float]:
    """Flips of a random row in a random cell, with slopes and multipliers that are nonsense on every other seed."""
    rng, net = np.random.default_rng(seed), relu_net(seed)
    x0, radius = rng.normal(size=4) * 0.3, float(rng.uniform(0.2, 1.0))
    doc, cell = document(x0, norm, SETS[name], radius)
    path = [
        Split("1" if j % 2 else "3", int(rng.integers(6)), float(rng.choice([0.0, 0.1])), int(rng.choice([-1, 1])))
        for j in range(rng.integers(4))
    ]
    network = read_model(stored(net, folder, "flips")).network((4,))
    cell = replace(cell, path=path)
    bounds = _bounds(doc, network, cell, {}, ())
    assert not isinstance(bounds, str)
    q = np.array([1.0, -1.0])
    near = values(net, x0 + in_ball(norm, 4, radius, 300, seed))[-1] @ q
    shift = float(-np.quantile(near, rng.choice([0.0, 0.02, 0.3])))  # few flips, or many
    wild = rng.uniform(-3, 3, 13) if seed % 2 else np.full(13, 0.5)
    beta = 10.0 ** rng.uniform(-3, 4, len(path))
    places = [place for s in path if (place := _value_at(network, s)) is not None]
    splits = list(zip(places, path, strict=True))
    return Flips(bounds, q, shift, splits, {1: wild[:7], 3: wild[7:]}, beta), net, x0, cell, radius, q, shift


@pytest.mark.parametrize("name", ["free", "box", pytest.param("polytope", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_every_flip_of_the_cell_obeys_cap_and_bounds(norm: Any, name: str, tmp_path: Path) -> None:
    met = 0
    for seed in range(2 if name == "polytope" else 8):  # parts that couple coordinates cost a search for multipliers each time
        flips, net, x0, cell, radius, q, shift = question(seed, norm, name, tmp_path)
        told = flips.shortfall(np.zeros(4), 1.0)  # "nothing flips", so that all rounds are run
        delta = np.concatenate([in_ball(norm, 4, radius, 6000, seed), in_ball(norm, 4, radius, 3000, seed + 1) * 0.5])
        if name == "box":
            delta = delta[((delta >= -0.4) & (delta <= 0.5)).all(1)]
        elif name == "polytope":
            delta = delta[delta.sum(1) <= 0.6]
        layers = values(net, x0 + delta)
        flipping = layers[-1] @ q + shift <= 0
        for s in cell.path:
            z = layers[0 if s.at == "1" else 2][:, s.index]
            flipping &= (z - s.cut) * s.side >= 0
        met += int(flipping.sum())
        if told <= 0:
            assert not flipping.any(), seed
            continue
        assert flips.cap is not None
        a, h = flips.cap
        assert (delta[flipping] @ a <= h + 1e-12).all(), seed
        for (low, high), value in zip(flips.here.bounds, layers, strict=True):
            assert (value[flipping] >= low - 1e-9).all(), seed
            assert (value[flipping] <= high + 1e-9).all(), seed
    assert met > 20


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case = two_layers(2)
    case.certify(case.branched())
    folder = tmp_path_factory.mktemp("tree")
    save_model(case.model, folder / "model.safetensors")
    return case, folder


def told(record: dict[str, Any], folder: Path) -> Any:
    return check_file(Certificate(rehashed(record)).save(folder / "c.json"), level="B", model=folder / "model.safetensors")


def numbers(record: dict[str, Any]) -> list[tuple[list[Any], int]]:
    """(list, place) of every number of the new evidence."""
    out: list[tuple[list[Any], int]] = []
    for rival in record["rivals"]:
        for cell in rival["cells"]:
            relaxation = cell.get("relaxation", {"slopes": []})
            rows = [layer for row in relaxation["slopes"] for layer in row] + relaxation.get("splits", [])
            out += [(row, i) for row in rows for i in range(len(row))]
    return out


def test_changed_slopes_and_multipliers_refute_nothing_and_prove_nothing_false(tree: tuple[Case, Path]) -> None:
    case, folder = tree
    honest = case.certificate.record
    assert told(copy.deepcopy(honest), folder).status is VALID
    assert len(numbers(honest)) >= 24
    rng = np.random.default_rng(0)
    for _ in range(3):
        record, forged = copy.deepcopy(honest), reaching(honest, float(rng.choice([1.003, 1.2])))
        for changed in (record, forged):
            for row, i in numbers(changed):
                row[i] = float(rng.choice([0.0, 1.0, -1.0, 1e9, rng.uniform()])).hex()
            for rival in changed["rivals"]:
                for cell in rival["cells"]:
                    cell["relaxation"]["splits"] = [
                        [abs(float.fromhex(v)).hex() for v in row] for row in cell["relaxation"].get("splits", [])
                    ]
        assert told(record, folder).status is not INVALID, "a true claim is refuted by no slope"
        assert told(forged, folder).status is not VALID, "a false claim is proved by none"


def test_a_tree_without_proposals_is_read_and_often_derived(tree: tuple[Case, Path]) -> None:
    """Files of earlier versions have none."""
    case, folder = tree
    record = copy.deepcopy(case.certificate.record)
    for rival in record["rivals"]:
        for cell in rival["cells"]:
            cell.pop("relaxation", None)
    assert told(record, folder).status is not INVALID
