"""Certificates of split trees: what branching found is what the checker proves, and forged trees are refused."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formulations.norms import Norm
from formulations.programs import min_norm
from formulations.sets import Box
from lde_cvx.models import mlp, save_model
from tests.certificate_example import rehashed
from verification.attack import find_witness
from verification.branching import BranchingResult, Leaf, RowTree, branch_radius
from verification.certificate import Certificate, WitnessEvidence
from verification.certificate_format import parse
from verification.checker import CheckStatus, Verdict, check_file, check_record
from verification.checking.document import FLIP_ROW, MARGIN_ROW
from verification.checking.rationals import bound_down
from verification.checking.theorem import row_bounds
from verification.decision import Decision
from verification.evidence.trees import relu_names, tree_rows
from verification.radius import certified_radius

BOX = Box(0.0, 1.0)


class Case:
    """A network's decision at the middle of the box, a branching result, and the certificate of that."""

    def __init__(self, model: torch.nn.Module, dim: int, norm: Any, decision: Any) -> None:
        self.norm, self.model, self.dim = Norm.of(norm), model, dim
        self.x0 = torch.full((1, dim), 0.5, dtype=torch.float64)
        with torch.no_grad():
            self.outputs = model(self.x0)[0].numpy()
        self.decision: Decision = decision(self.outputs)
        self.witness = find_witness(model, self.x0, norm, BOX, decisions=self.decision)[0]
        self.radius = certified_radius(model, self.x0, norm, BOX, decisions=self.decision)[0]

    def branched(self, node_limit: int | None = None) -> BranchingResult:
        return branch_radius(self.model, self.x0[0], self.decision, self.norm, BOX, upper=self.witness.upper, node_limit=node_limit)

    def certify(self, result: BranchingResult) -> Case:
        self.result = result
        flat = self.x0.numpy().ravel()
        rows = tree_rows(result, self.radius.rows, flat, self.norm, BOX, relu_names(self.model))
        with torch.no_grad():
            there = self.model(self.x0 + torch.as_tensor(self.witness.delta))[0].numpy()
        self.certificate = Certificate.build(
            model=self.model, x0=flat, outputs=self.outputs, decision=self.decision, norm=self.norm, parts=BOX.parts(self.dim),
            evidence=[row.evidence("crown") for row in rows], witness=WitnessEvidence(self.witness.delta, there, self.witness.rival),
            method="branching", command="test",
        )  # fmt: skip
        return self

    def deep(self) -> tuple[int, int]:
        """(row, cell) of a leaf below a split."""
        return next((k, i) for k, r in enumerate(self.certificate.record["rivals"]) for i, c in enumerate(r["cells"]) if c["path"])


def two_layers(norm: Any) -> Case:
    """Answers class 1, narrowly."""
    model = mlp((6, 12, 12, 3), seed=3)
    with torch.no_grad():
        model[-1].bias += torch.tensor([0.0, 0.06, 0.02]) - model(torch.full((1, 6), 0.5, dtype=torch.float64))[0]
    return Case(model, 6, norm, lambda y: Decision.classification(1, 3))


def all_pieces(norm: Any) -> Case:
    """One hidden layer of three neurons, split into its eight linear pieces: half of them as a region's rows with multipliers, half as one row without."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).double().requires_grad_(False)
    box = torch.as_tensor(np.random.default_rng(0).uniform(0, 1, (500, 4)))
    least = float(model(box).min())
    case = Case(model, 4, norm, lambda y: Decision.threshold(0, float(y[0]) - 0.6 * (float(y[0]) - least), 1))
    U, beta, v, c = (p.numpy() for p in model.parameters())
    pre, tau = U @ np.full(4, 0.5) + beta, -case.decision.shifts[0]
    leaves = []
    for n, sides in enumerate(itertools.product((-1, 1), repeat=3)):
        on = np.array(sides) > 0
        rows = np.vstack([v[0, on] @ U[on], -np.array(sides)[:, None] * U])  # the margin on the piece, and −side·z ≤ 0
        b = np.r_[v[0, on] @ pre[on] + c[0] - tau, -np.array(sides) * pre]
        s = min_norm(rows[None], b[None], norm, BOX, np.full(4, 0.5))[0]
        lam, path = s.multipliers["margin"], tuple((0, j, side) for j, side in enumerate(sides))
        reach = 0.999 * case.witness.upper
        lower = min(reach, s.lower)
        if n % 2:
            leaves.append(Leaf(path, rows, b, reach, lower, lam, s.duals))
        else:
            leaves.append(Leaf(path, (lam @ rows)[None], np.array([lam @ b]), reach, lower))
    result = case.branched(node_limit=1)
    return case.certify(replace(result, lower=min(leaf.lower for leaf in leaves), trees=(RowTree(0, 0, 0.0, tuple(leaves)),)))


@pytest.fixture(scope="module", params=[1, 2, "inf"])
def grown(request: pytest.FixtureRequest) -> Case:
    return all_pieces(request.param)


@pytest.fixture(scope="module")
def split() -> Case:
    return all_pieces(2)


def attack(case: Case, points: int = 4000) -> None:
    rng = np.random.default_rng(0)
    towards = case.witness.delta + rng.normal(size=(points, case.dim)) * 0.1
    changes = np.clip(np.vstack([towards, rng.uniform(-0.5, 0.5, (points, case.dim))]), -0.5, 0.5)
    changes *= np.minimum(1, 0.999999 * case.certificate.lower / case.norm.value(changes))[:, None]
    with torch.no_grad():
        assert case.decision.stands(case.model(case.x0 + torch.as_tensor(changes)).numpy()).all()


def test_the_checker_proves_what_the_leaves_prove(grown: Case) -> None:
    assert [len(t.leaves) for t in grown.result.trees] == [8]
    assert grown.certificate.check(grown.model).ok
    assert grown.radius.lower < grown.certificate.lower
    assert grown.certificate.lower == pytest.approx(grown.result.lower, rel=1e-6)
    attack(grown)


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_the_checker_proves_what_branching_found(norm: Any) -> None:
    case = two_layers(norm)
    case.certify(case.branched())
    assert case.certificate.check(case.model).ok
    assert case.radius.lower < case.certificate.lower
    assert case.certificate.lower == pytest.approx(case.result.lower, rel=1e-6)
    attack(case)


def test_an_interrupted_search_certifies_what_it_has() -> None:
    """Open cells are leaves too, with what their own rows say."""
    case = two_layers(2)
    for nodes in (0, 1, 8):
        case.certify(case.branched(node_limit=nodes))
        assert case.certificate.check(case.model).ok
        assert case.radius.lower * (1 - 1e-6) <= case.certificate.lower <= case.witness.upper


def test_rows_of_flips_say_nothing_elsewhere() -> None:
    """A narrowed row may lie above the margin where nothing flips, at x0 too; as a row of the margin it would be refuted there."""
    case = two_layers(2)
    claimed = case.certify(case.branched()).certificate.record
    cells = [c for r in claimed["rivals"] for c in r["cells"] if FLIP_ROW in c["row_of"]]
    assert cells
    forged = copy.deepcopy(claimed)
    for rival, margin in zip(forged["rivals"], case.decision.margins(case.outputs[None])[0], strict=True):
        for cell in rival["cells"]:
            cell["row_of"] = [MARGIN_ROW] * len(cell["row_of"])
            cell["b"] = [(margin + 1).hex() for _ in cell["b"]]
    assert check_record(rehashed(forged)).status is CheckStatus.INVALID
    for rival in forged["rivals"]:
        for cell in rival["cells"]:
            cell["row_of"] = [FLIP_ROW] * len(cell["row_of"])
    assert check_record(rehashed(forged)).ok, "the same rows of flips are no contradiction: level A takes them as premises"


def test_splits_are_named_as_the_model_names_its_layers(split: Case) -> None:
    k, _ = split.deep()
    places = {s["at"] for c in split.certificate.record["rivals"][k]["cells"] for s in c["path"]}
    assert places <= {name for name, layer in split.model.named_modules() if isinstance(layer, torch.nn.ReLU)}


# ---- forgeries ---------------------------------------------------------------------------------------------------------------


def without_a_leaf(record: dict[str, Any], k: int, i: int) -> None:
    del record["rivals"][k]["cells"][i]


def with_a_flipped_sign(record: dict[str, Any], k: int, i: int) -> None:
    step = record["rivals"][k]["cells"][i]["path"][-1]
    step["side"] = -step["side"]


def with_another_neuron(record: dict[str, Any], k: int, i: int) -> None:
    step = record["rivals"][k]["cells"][i]["path"][0]
    step["index"] = (step["index"] + 1) % 3


def with_a_moved_cut(record: dict[str, Any], k: int, i: int) -> None:
    record["rivals"][k]["cells"][i]["path"][0]["cut"] = (1.0).hex()


def with_a_raised_b_beyond_the_witness(record: dict[str, Any], k: int, i: int) -> None:
    """The witness flips some row; cells of it that reach beyond the witness cannot all exclude it."""
    for rival in record["rivals"]:
        for cell in rival["cells"]:
            cell["radius"], cell["b"] = math.inf.hex(), [(float.fromhex(v) + 100).hex() for v in cell["b"]]


def with_a_lower_of_its_own(record: dict[str, Any], k: int, i: int) -> None:
    record["lower"] = record["rivals"][k]["lower"] = record["upper"]


def with_no_multipliers(record: dict[str, Any], k: int, i: int) -> None:
    cell = record["rivals"][k]["cells"][i]
    cell["lam"] = [(0.0).hex()] * len(cell["lam"])


FORGERIES = {
    without_a_leaf: "cover",
    with_a_flipped_sign: "cover",
    with_another_neuron: "cover",
    with_a_moved_cut: "cover",
    with_a_raised_b_beyond_the_witness: "exceeds the margin",
    with_a_lower_of_its_own: "exceeds what the evidence proves",
    with_no_multipliers: "exceeds what the evidence proves",
}


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda f: f.__name__)
def test_forged_trees_are_refused(split: Case, forge: Any) -> None:
    record = copy.deepcopy(split.certificate.record)
    forge(record, *split.deep())
    assert "hash" in str(check_record(record)), "a changed file does not match its own hash"
    report = check_record(rehashed(record))
    assert report.status is CheckStatus.INVALID
    assert FORGERIES[forge] in str(report)


def reaching(record: dict[str, Any], factor: float) -> dict[str, Any]:
    """The certificate with its witness taken out, every leaf said to hold no flip within `factor` times its radius, and the lower bound that follows."""
    forged = copy.deepcopy(record)
    forged["witness"], forged["upper"] = None, math.inf.hex()
    for rival in forged["rivals"]:
        for cell in rival["cells"]:
            cell["radius"] = (factor * float.fromhex(cell["radius"])).hex()
            cell["b"] = [(abs(float.fromhex(v)) * 1e3 + 1e3).hex() for v in cell["b"]]
    bounds = [bound_down(b) for b in row_bounds(parse(forged))]
    for rival, bound in zip(forged["rivals"], bounds, strict=True):
        rival["lower"] = bound.hex()
    forged["lower"], forged["verdict"] = min(bounds).hex(), Verdict.of(min(bounds), math.inf).name
    return rehashed(forged)


@pytest.mark.parametrize("build", [two_layers, all_pieces])
@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_level_b_derives_every_leaf_and_accepts_no_wider_one(build: Callable[[Any], Case], norm: Any, tmp_path: Path) -> None:
    """A row of flips is free where nothing flips, so what a forger gains is radius, and beyond the witness any is false."""
    case = build(norm)
    if not hasattr(case, "certificate"):
        case.certify(case.branched())
    save_model(case.model, tmp_path / "model.safetensors")
    path = case.certificate.save(tmp_path / "c.json")
    assert check_file(path, level="B", model=tmp_path / "model.safetensors").ok
    for factor in (1.003, 1.1, 2.0):
        forged = Certificate(reaching(case.certificate.record, factor))
        assert check_record(forged.record).ok, "level A takes the rows for what they say"
        assert forged.lower > case.witness.upper
        report = check_file(forged.save(tmp_path / "forged.json"), level="B", model=tmp_path / "model.safetensors")
        assert not report.ok, (factor, report)
