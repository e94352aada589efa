"""Certificates of split trees: what branching found is what the checker proves, and forged trees are refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formulations.norms import Norm
from formulations.sets import Box
from lde_cvx.models import mlp, save_model
from tests.certificate_example import rehashed
from verification.attack import find_witness
from verification.branching import BranchingResult, Effort, branch_radius
from verification.certificate import Certificate, WitnessEvidence
from verification.certificate_format import FLIP_ROW, MARGIN_ROW
from verification.checker import CheckStatus, check_file, check_record
from verification.decision import Decision
from verification.radius import certified_radius
from verification.tree_evidence import TreeRow, relu_names, tree_rows

DIM, BOX = 6, Box(0.0, 1.0)
LAZY = Effort(root_steps=1, steps=1, trial_steps=1, candidates=1, rounds=0)  # weak rows, so that trees grow


class Case:
    """A random network that answers class 1 at the middle of the box, its branching result, and the certificate of that."""

    def __init__(self, norm: Any, effort: Effort, node_limit: int | None = None) -> None:
        self.norm, self.model = Norm.of(norm), mlp((DIM, 12, 12, 3), seed=3)
        self.x0 = torch.full((1, DIM), 0.5, dtype=torch.float64)
        with torch.no_grad():
            self.model[-1].bias += torch.tensor([0.0, 0.06, 0.02]) - self.model(self.x0)[0]
            self.outputs = self.model(self.x0)[0].numpy()
        self.decision = Decision.classification(1, 3)
        self.witness = find_witness(self.model, self.x0, norm, BOX)[0]
        self.result = branch_radius(
            self.model, self.x0[0], self.decision, norm, BOX, upper=self.witness.upper, effort=effort, node_limit=node_limit
        )
        self.radius = certified_radius(self.model, self.x0, norm, BOX)[0]
        self.certificate = self.build(self.result)

    def build(self, result: BranchingResult) -> Certificate:
        flat = self.x0.numpy().ravel()
        rows = tree_rows(result, self.radius.rows, flat, self.norm, BOX, relu_names(self.model))
        assert any(isinstance(row, TreeRow) for row in rows)
        with torch.no_grad():
            there = self.model(self.x0 + torch.as_tensor(self.witness.delta))[0].numpy()
        return Certificate.build(
            model=self.model, x0=flat, outputs=self.outputs, decision=self.decision, norm=self.norm, parts=BOX.parts(DIM),
            evidence=[row.evidence("crown") for row in rows], witness=WitnessEvidence(self.witness.delta, there, self.witness.rival),
            method="branching", command="test",
        )  # fmt: skip

    def deep(self) -> tuple[int, int]:
        """(rival, cell) of a leaf below a split."""
        return next((k, i) for k, r in enumerate(self.certificate.record["rivals"]) for i, c in enumerate(r["cells"]) if c["path"])


@pytest.fixture(scope="module", params=[1, 2, "inf"])
def grown(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, LAZY)


@pytest.fixture(scope="module")
def split() -> Case:
    return Case(2, LAZY)


def test_the_checker_proves_what_branching_found(grown: Case) -> None:
    assert sum(map(len, grown.result.leaves)) > len(grown.result.trees), "a tree without a split tests nothing"
    assert grown.certificate.check(grown.model).ok
    assert grown.radius.lower < grown.certificate.lower
    assert grown.certificate.lower == pytest.approx(grown.result.lower, rel=1e-6)


def test_no_flip_nearer_than_the_certificate_says(grown: Case) -> None:
    rng = np.random.default_rng(0)
    towards = grown.witness.delta + rng.normal(size=(4000, DIM)) * 0.1
    points = np.clip(np.vstack([towards, rng.uniform(-0.5, 0.5, (4000, DIM))]), -0.5, 0.5)
    size = grown.norm.value(points)
    points *= np.minimum(1, 0.999999 * grown.certificate.lower / size)[:, None]
    with torch.no_grad():
        assert bool((grown.model(grown.x0 + torch.as_tensor(points)).argmax(1) == 1).all())


def test_an_interrupted_search_certifies_what_it_has() -> None:
    """Open cells are leaves too, with what their own rows say."""
    case = Case(2, LAZY, node_limit=8)
    assert not case.result.closed
    assert case.certificate.check(case.model).ok
    assert case.radius.lower <= case.certificate.lower <= case.witness.upper


def test_rows_of_flips_say_nothing_elsewhere(split: Case) -> None:
    """A narrowed row may lie above the margin where nothing flips, at x0 too; as a row of the margin it would be refuted there."""
    case = Case(2, Effort())
    claimed = case.certificate.record
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
    step["index"] = (step["index"] + 1) % 12


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


def test_level_b_decides_what_it_can_derive_and_refutes_nothing_true(split: Case, tmp_path: Path) -> None:
    save_model(split.model, tmp_path / "model.safetensors")
    path = split.certificate.save(tmp_path / "c.json")
    report = check_file(path, level="B", model=tmp_path / "model.safetensors")
    assert report.status is not CheckStatus.INVALID
    if not report.ok:
        assert all("row 0 is not derived" in why or "more of the kind" in why for why in report.reasons)
    forged = copy.deepcopy(split.certificate.record)
    k, i = split.deep()
    cell = forged["rivals"][k]["cells"][i]
    cell["b"] = [(float.fromhex(v) + 100).hex() for v in cell["b"]]
    again = Certificate(rehashed(forged)).save(tmp_path / "raised.json")
    raised = check_file(again, level="B", model=tmp_path / "model.safetensors")
    assert not raised.ok, "level A takes a raised row for what it says; level B does not"
