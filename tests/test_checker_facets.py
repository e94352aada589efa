"""Level B's lines over a box: exact arithmetic against the proved lines, flips against rows on them, and trees that rest on them, honest and forged."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lde_cvx.model_files import checker_network, save_model
from lde_cvx.models import mlp
from lde_cvx.normalize import Normalize
from tests.checker_example import CANNOT_DECIDE, INVALID, VALID, document, in_ball, seeded, stored
from tests.test_certificate_trees import Case, reaching
from tests.test_checker_flips import question, told, values
from verification.branching import branch
from verification.decision import Decision
from verification.rechecking.facets import Aim, Facets
from verification.rechecking.flips import Flips
from verification.rechecking.network import read_model
from verification.rechecking.rows import _bounds

NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), (5,)),
    "normalized": (lambda: nn.Sequential(nn.Flatten(), Normalize(0.25, 3.0), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)), (2, 3)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4)),
}  # fmt: skip


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))


def exact(v: Any) -> list[Fraction]:
    return [Fraction(float(x)) for x in np.ravel(v)]


@pytest.mark.parametrize("name", NETWORKS)
def test_lines_lie_above_every_rectifier_exactly(name: str, tmp_path: Path) -> None:
    """In rationals, at vertices, turned vertices and random points of the box: max(z, 0) ≤ s z − τ q + t, whatever share and turn are proposed."""
    build, shape = NETWORKS[name]
    network = read_model(stored(seeded(build, shape), tmp_path, name)).network(shape)
    dim, place, nearest = int(np.prod(shape)), network.boxed_rectifiers, np.inf
    assert place is not None
    for seed in range(4):
        rng = np.random.default_rng(seed)
        doc, cell = document(rng.normal(size=shape) * 0.2, "inf", None, float(rng.uniform(0.2, 1.5)))
        bounds = _bounds(doc, network, cell, {}, ())
        assert not isinstance(bounds, str)
        facets = Facets.of(bounds, place)
        W = facets.layer.apply(np.eye(facets.mid.size).reshape(-1, *facets.layer.shape_in)).reshape(facets.mid.size, -1).T
        beta = np.zeros(len(W)) if facets.layer.shift is None else facets.layer.shift.ravel()
        low, high = (exact(v) for v in bounds.of(facets.source))
        turns = rng.choice([-1.0, 0.0, 1.0], (4, facets.mid.size))
        for kappa, turn in zip((1.0, 0.4, 7.0, -2.0), turns, strict=True):
            s, tau, t = (v[0] for v in facets.lines(Aim(np.array([kappa]), turn[None])))
            assert kappa < 0 or tau.any() or not (turn != 0).all()
            for k in range(12):
                part = exact(np.where(rng.random(dim) < 0.5, 0.0, 1.0) if k % 3 == 0 else (turn + 1) / 2 if k % 3 == 1 else rng.random(dim))
                y = [a + p * (b - a) for p, a, b in zip(part, low, high, strict=True)]
                away = [e * (v - m) for e, v, m in zip(exact(turn), y, exact(facets.mid), strict=True)]
                for j in range(len(W)):
                    w = exact(W[j])
                    z = sum((a * b for a, b in zip(w, y, strict=True)), Fraction(float(beta[j])))
                    q = sum((abs(a) * b for a, b in zip(w, away, strict=True)), Fraction(0))
                    over = Fraction(float(s[j])) * z - Fraction(float(tau[j])) * q + Fraction(float(t[j])) - max(z, Fraction(0))
                    assert over >= 0, (seed, kappa, j)
                    nearest = min(nearest, float(over)) if tau[j] > 0 else nearest
    assert nearest < 0.05, "lines that are nowhere near the rectifier would pass as well"


@pytest.mark.parametrize("seed", range(6))
def test_every_flip_obeys_what_rows_on_lines_over_the_box_say(seed: int, tmp_path: Path) -> None:
    flips, net, x0, _, radius, q, shift = question(seed, "inf", "free", tmp_path)
    rng = np.random.default_rng(seed)
    doc, cell = document(x0, "inf", None, radius)
    bounds = _bounds(doc, flips.network, cell, {}, ())
    assert not isinstance(bounds, str)
    aim = Aim(rng.uniform(0, 1, 1), rng.choice([-1.0, 0.0, 1.0], (1, 4)))
    flips = Flips(bounds, q, shift, [], flips.slopes, np.zeros(0), aim)
    proved = flips.shortfall(np.zeros(4), 1.0)
    assert flips.best is None or flips.best.aim is not None, "the lines are not asked"
    delta = np.concatenate([in_ball("inf", 4, radius, 8000, seed), in_ball("inf", 4, radius, 3000, seed + 1) * 0.5])
    layers = values(net, x0 + delta)
    flipping = layers[-1] @ q + shift <= 0
    assert not (proved <= 0 and flipping.any())
    if proved > 0:
        assert flips.cap is not None
        assert (delta[flipping] @ flips.cap[0] <= flips.cap[1] + 1e-12).all()
        for (low, high), value in zip(flips.here.bounds, layers, strict=True):
            assert (value[flipping] >= low - 1e-9).all()
            assert (value[flipping] <= high + 1e-9).all()


@pytest.mark.parametrize("seed", range(4))
def test_rows_with_any_aim_lie_below_the_network(seed: int, tmp_path: Path) -> None:
    """A·v ≥ a·x + c − error over the region for any A, share and turn; with a share they are often better than with chords."""
    net = seeded(three_layers, (6,), seed).requires_grad_(False)
    network = read_model(stored(net, tmp_path, "rows")).network((6,))
    rng = np.random.default_rng(seed)
    x0, radius = rng.normal(size=6) * 0.3, float(rng.uniform(0.2, 1.0))
    doc, cell = document(x0, "inf", None, radius)
    bounds = _bounds(doc, network, cell, {}, ())
    assert not isinstance(bounds, str)
    x = x0 + np.concatenate([in_ball("inf", 6, radius, 4000, seed), np.sign(in_ball("inf", 6, radius, 500, seed + 1)) * radius])
    found, A = values(net, x), rng.normal(size=(20, 4))
    for kappa in (0.0, 0.7, 1.0):
        aim = Aim(np.full(20, kappa), rng.choice([-1.0, 0.0, 1.0], (20, 6)))
        for start in (4, 2):
            rows = A if start == 4 else rng.normal(size=(20, 7))
            a, c, error = bounds.back(start, rows, aim=aim)
            below = x @ a.T + c - error
            assert (below <= found[start] @ rows.T + 1e-12 * (1 + np.abs(below))).all()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A certificate in ℓ∞ whose search has lines over the box from the start."""
    model = mlp((24, 16, 12, 3), seed=3)
    with torch.no_grad():
        model[-1].bias += torch.tensor([0.0, 0.1, 0.04]) - model(torch.full((1, 24), 0.5, dtype=torch.float64))[0]
    case = Case(model, 24, "inf", lambda y: Decision.classification(1, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branch, "HARD", np.inf)
        case.certify(case.branched())
    network = checker_network(model, (24,))
    assert network is not None
    found, case.certificate = case.certificate.lower, case.certificate.settled(network)
    assert found * (1 - 1e-4) <= case.certificate.lower <= found
    folder = tmp_path_factory.mktemp("tree")
    save_model(case.model, folder / "model.safetensors")
    return case, folder


def relaxations(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell["relaxation"] for rival in record["rivals"] for cell in rival["cells"] if "relaxation" in cell]


def test_trees_on_lines_over_the_box_are_valid(tree: tuple[Case, Path]) -> None:
    case, folder = tree
    assert sum("facets" in r for r in relaxations(case.certificate.record)) >= 2
    assert told(copy.deepcopy(case.certificate.record), folder).status is VALID


def test_forged_lines_prove_nothing_false(tree: tuple[Case, Path]) -> None:
    """Shares and turns are proposals: any of them refutes nothing true, and a claim beyond the truth is proved by none."""
    case, folder = tree
    honest, rng = case.certificate.record, np.random.default_rng(0)
    for _ in range(3):
        record, forged = copy.deepcopy(honest), reaching(honest, float(rng.choice([1.003, 1.2])))
        for changed in (record, forged):
            for relaxation in relaxations(changed):
                for entry in relaxation.get("facets", []):
                    entry["share"] = float(rng.choice([0.0, 1.0, rng.uniform()])).hex()
                    entry["turn"] = "".join(rng.choice(list("+-0"), len(entry["turn"])))
        assert told(record, folder).status is not INVALID
        assert told(forged, folder).status is not VALID
    bold = copy.deepcopy(honest)
    for rival in bold["rivals"]:
        for cell in rival["cells"]:
            cell["b"] = [(float.fromhex(v) + 1e-3 * (1 + abs(float.fromhex(v)))).hex() for v in cell["b"]]
    assert told(bold, folder).status is CANNOT_DECIDE, "rows above what the lines prove"


@pytest.mark.parametrize(
    "change",
    [{"share": (1.5).hex()}, {"share": (-0.5).hex()}, {"share": "nan"}, {"turn": "+"}, {"turn": "x" * 24}, {"turn": 3}, {"more": 1}],
)
def test_lines_of_another_form_are_refused_with_a_reason(change: dict[str, Any], tree: tuple[Case, Path]) -> None:
    case, folder = tree
    record = copy.deepcopy(case.certificate.record)
    next(r for r in relaxations(record) if "facets" in r)["facets"][0].update(change)
    report = told(record, folder)
    assert report.status is INVALID
    assert "facets" in report.reasons[0]
