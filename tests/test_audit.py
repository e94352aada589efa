"""The audit end to end on the German credit data (two applicants here; all of them in the slow run), and its folder under interruption."""

from __future__ import annotations

import csv
import json
import math
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formulations.errors import InputError
from formulations.sets.base import FEASIBILITY
from lde_cvx import audit
from lde_cvx.audit import AuditResult, Case, prepare, run_audit
from lde_cvx.auditing.config import AuditConfig, embedded, load_config
from lde_cvx.auditing.record import AuditRow, Move, Price, from_json, to_json
from lde_cvx.auditing.summary import results_csv
from verification.certificate import Certificate
from verification.checker import check_file


@pytest.fixture(scope="module")
def case() -> Case:
    return prepare("german_credit", limit=2)


@pytest.fixture(scope="module")
def done(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return run_audit(case, tmp_path_factory.mktemp("audit") / "out")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- what the audit is about --------------------------------------------------------------------------------------------------


def test_the_embedded_configuration_asks_for_enough(case: Case) -> None:
    config, _ = load_config("german_credit")
    assert "german_credit" in embedded()
    assert config.question.applicants >= 25
    assert config.question.norms == [1, 2]
    assert {"age", "foreign_worker"} <= set(config.changes.immutable)
    everyone = prepare("german_credit")
    assert len(everyone.applicants) >= 25
    assert everyone.key == case.key, "the same audit, whatever the limit"
    assert set(everyone.applicants) <= set(everyone.trained.test_rows.tolist())
    with torch.no_grad():
        answers = everyone.trained.model(torch.as_tensor(everyone.features[list(everyone.applicants)])).argmax(1)
    assert bool((answers == everyone.declined).all())
    assert everyone.data.classes[everyone.declined] == "bad"


def test_the_key_knows_configuration_data_and_network(tmp_path: Path, case: Case) -> None:
    _, text = load_config("german_credit")
    same, other = tmp_path / "same.toml", tmp_path / "other.toml"
    same.write_text("# a comment\n" + text.replace("seed = 1", "seed   =   1"))
    other.write_text(text.replace("seed = 1", "seed = 2"))
    assert prepare(same, 1).key == case.key
    assert prepare(other, 1).key != case.key


# ---- its answers are true of the network -------------------------------------------------------------------------------------------


def test_every_row_holds_on_the_network(case: Case, done: AuditResult) -> None:
    assert len(done.rows) == len(case.applicants) * len(case.norms)
    assert done.failed == 0
    C = case.schema.polytope()
    frozen = np.concatenate([np.arange(case.schema.dim)[case.schema.places[c]] for c in ("age", "foreign_worker")])
    for row in done.rows:
        assert row.lower <= row.upper
        assert row.check == "valid"
        certificate = Certificate.load(done.folder / row.certificate)
        assert (certificate.lower, certificate.upper, certificate.verdict.name) == (row.lower, row.upper, row.verdict)
        assert certificate.check(case.trained.model).ok
        x0 = case.features[row.data_row]
        np.testing.assert_array_equal(certificate.x0, x0)
        assert 0 < row.score < 1
        if row.verdict != "BRACKETED":
            continue
        z = certificate.witness
        assert z is not None
        assert C.relative_to(x0).violation(z - x0) <= FEASIBILITY
        assert np.abs((z - x0)[frozen]).max() <= FEASIBILITY
        with torch.no_grad():
            assert int(case.trained.model(torch.as_tensor(z)[None]).argmax()) != case.declined
        assert row.witness
        assert row.witness[0].before != row.witness[0].after
        assert len(row.top_features) == 5
        assert row.multiplier > 0
        assert {p.constraint.split(" ")[0] for p in row.prices} & {"age", *case.schema.feature_names}


def test_no_allowed_change_inside_the_radius_flips(case: Case, done: AuditResult) -> None:
    rng = np.random.default_rng(0)
    C = case.schema.polytope()
    for row in done.rows:
        x0, norm = case.features[row.data_row], next(n for n in case.norms if audit.norm_name(n) == row.norm)
        others = case.features[rng.choice(len(case.features), 200)].copy()
        others[:, case.schema.fixed] = x0[case.schema.fixed]  # other people's values where they may change: allowed points
        delta = rng.dirichlet(np.full(200, 0.02), size=1000) @ (others - x0)
        delta = np.vstack([delta, Certificate.load(done.folder / row.certificate).witness - x0])
        assert C.relative_to(x0).violation(delta[0]) <= FEASIBILITY
        delta *= np.minimum(1, 0.999999 * row.lower / norm.value(delta))[:, None]
        with torch.no_grad():
            assert bool((case.trained.model(torch.as_tensor(x0 + delta)).argmax(1) == case.declined).all())


# ---- what it writes -----------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_report_the_data_and_the_certificates(case: Case, done: AuditResult) -> None:
    names = set(files(done.folder))
    assert names == {
        "report.html",
        "summary.json",
        "results.csv",
        "model.safetensors",
        "manifest.json",
        *(r.certificate for r in done.rows),
    }
    assert all(check_file(done.folder / r.certificate, level="C", model=done.folder / "model.safetensors").ok for r in done.rows)
    summary = json.loads((done.folder / "summary.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    told = [AuditRow.from_dict(r) for a in summary["applicants"] for r in a["rows"]]
    assert told == list(done.rows)
    with (done.folder / "results.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [float(line["lower"]) for line in table] == [r.lower for r in done.rows]
    assert None not in table[0]
    html = (done.folder / "report.html").read_text()
    for row in done.rows:
        assert f'data-row="{row.id}-{row.norm}"' in html
    from verification.certificate import ModelRecord

    for needed in (ModelRecord.of(case.trained.model).sha256, case.data.sha256, case.config.sha256[:16], "lde audit german_credit --out"):
        assert needed in html


def test_a_second_run_uses_the_certificates_again(case: Case, done: AuditResult) -> None:
    before = {k: v for k, v in files(done.folder).items() if k.startswith("certificates")}
    again = run_audit(case, done.folder)
    assert all(r.reused for r in again.rows)
    assert again.summary["totals"]["reused"] == len(again.rows)
    assert "re-used" in again.summary["duration_words"]
    assert {k: v for k, v in files(done.folder).items() if k.startswith("certificates")} == before
    assert results_csv(again.rows) == results_csv(done.rows)


# ---- interruption, other audits -------------------------------------------------------------------------------------------------------

SMALL = """
[data]
path = "{csv}"
declined = "no"
[model]
hidden = [6]
epochs = 30
[changes]
immutable = ["c"]
[question]
applicants = 3
norms = [{norms}]
"""


@pytest.fixture
def small(tmp_path: Path) -> Case:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 80)).round(2)
    lines = [f"{u},{v},{'xy'[k % 2]},{'yes' if u + v + 0.1 * (k % 2) > 0 else 'no'}" for k, (u, v) in enumerate(zip(a, b, strict=True))]
    (tmp_path / "in.csv").write_text("a,b,c,class\n" + "\n".join(lines) + "\n")
    (tmp_path / "audit.toml").write_text(SMALL.format(csv=tmp_path / "in.csv", norms="2, 'inf'"))
    return prepare(tmp_path / "audit.toml")


def test_an_interrupted_audit_leaves_whole_files_and_goes_on(small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CHUNK", 2)

    def interrupt(stage: str, count: int, total: int) -> None:
        if "ℓ∞" in stage and count >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(small, tmp_path / "out", interrupt)
    left = files(tmp_path / "out")
    assert left
    assert all(name.startswith("certificates/applicant-") for name in left), "no report of half an audit, no partial file"
    assert all(check_file(tmp_path / "out" / name).ok for name in left)
    result = run_audit(small, tmp_path / "out")
    assert sum(r.reused for r in result.rows) == len(left)
    assert result.failed == 0
    assert len(result.rows) == 6


def test_certificates_of_a_search_cut_short_are_not_kept(small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT that the second chunk's search answers with weaker bounds: the audit ends there, with the first chunk's files alone."""
    monkeypatch.setattr(audit, "CHUNK", 2)
    honest, asked = audit.LagrangeDualExplainer.explain, []

    def cut(self: Any, x0: Any, **options: Any) -> Any:
        asked.append(len(x0))
        found = honest(self, x0, **options)
        if len(asked) == 2:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(audit.LagrangeDualExplainer, "explain", cut)
    with pytest.raises(KeyboardInterrupt):
        run_audit(small, tmp_path / "out")
    assert len(files(tmp_path / "out")) == asked[0]


@pytest.mark.slow
def test_an_audit_may_branch(small: Case, tmp_path: Path) -> None:
    question = small.config.question.model_copy(update={"method": "branching", "seconds": 20.0})
    branched = replace(small, config=small.config.model_copy(update={"question": question}), key="b" * 64)
    rows, trees = run_audit(small, tmp_path / "rows"), run_audit(branched, tmp_path / "trees")
    assert trees.failed == 0
    assert "branch and bound" in (tmp_path / "trees" / "report.html").read_text(encoding="utf-8")
    for row, tree in zip(rows.rows, trees.rows, strict=True):
        assert row.lower <= tree.lower * (1 + 1e-9)
        assert tree.upper * (1 - 1e-4) <= tree.lower or tree.lower == float("inf")


def test_two_runs_write_the_same_bytes(small: Case, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_audit(small, tmp_path / name)
    one, two = (files(tmp_path / name) for name in ("one", "two"))
    timed = {"report.html", "summary.json"}  # they say when, and how long it took
    assert set(one) == set(two)
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def test_damaged_certificates_are_made_again(small: Case, tmp_path: Path) -> None:
    first = run_audit(small, tmp_path / "out")
    whole = files(tmp_path / "out")
    for row in first.rows[:2]:
        path = tmp_path / "out" / row.certificate
        path.write_bytes(path.read_bytes()[:500])
    again = run_audit(small, tmp_path / "out")
    assert [r.reused for r in again.rows] == [False, False] + [True] * (len(again.rows) - 2)
    assert again.failed == 0
    assert set(files(tmp_path / "out")) == set(whole)
    np.testing.assert_allclose([r.lower for r in again.rows], [r.lower for r in first.rows], rtol=5e-3)  # the search's tolerance


def test_the_dual_network_certifies_an_audit(small: Case, tmp_path: Path) -> None:
    """Never below CROWN, here and there above; the files pass the check from the weights, and the report says what bounded them."""
    (tmp_path / "dual.toml").write_text((tmp_path / "audit.toml").read_text() + 'method = "dual-network"\n')
    rows, dual = run_audit(small, tmp_path / "crown").rows, run_audit(prepare(tmp_path / "dual.toml"), tmp_path / "dual")
    assert dual.failed == 0
    assert all(d.lower >= r.lower * (1 - 1e-9) and d.lower <= r.upper for d, r in zip(dual.rows, rows, strict=True))
    assert all(check_file(dual.folder / r.certificate, level="B", model=dual.folder / "model.safetensors").ok for r in dual.rows)
    assert "dual network (slopes" in (dual.folder / "report.html").read_text()


def test_another_audit_in_the_same_folder_leaves_nothing_of_the_first(small: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_audit(small, out)
    (out / "notes.txt").write_text("mine")
    (out / "certificates" / "applicant-mine.json").write_text("{}")
    (tmp_path / "audit.toml").write_text(SMALL.format(csv=tmp_path / "in.csv", norms="1"))
    second = run_audit(prepare(tmp_path / "audit.toml"), out)
    assert not any(r.reused for r in second.rows)
    expected = {
        "report.html",
        "summary.json",
        "results.csv",
        "model.safetensors",
        "manifest.json",
        "notes.txt",
        "certificates/applicant-mine.json",
        *(r.certificate for r in second.rows),
    }
    assert set(files(out)) == expected, "only its own certificates and reports go"


def test_a_failing_check_is_told(small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from verification.checker import CheckStatus

    honest = Certificate.check

    def fails(self: Certificate, model: Any = None, device: Any = None) -> Any:
        return honest(self) if model is None else replace(honest(self), status=CheckStatus.INVALID, reasons=("a reason",))

    monkeypatch.setattr(Certificate, "check", fails)
    result = run_audit(small, tmp_path / "out")
    assert result.failed == len(result.rows)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "FAILED the independent check" in html
    assert "a reason" in html


def test_images_and_double_sources_are_refused(tmp_path: Path) -> None:
    for table, words in (("name = 'digits'", "images"), ("name = 'german_credit'\npath = 'x.csv'", "either"), ("", "either")):
        (tmp_path / "a.toml").write_text(f"[data]\n{table}\n")
        with pytest.raises(InputError, match=words):
            prepare(tmp_path / "a.toml")


# ---- records -----------------------------------------------------------------------------------------------------------------------------


def test_rows_survive_json() -> None:
    row = AuditRow(
        "a", 1, "l2", "ℓ2", 0.7, math.inf, "unknown", 0.0, math.inf, math.inf, 0.0, 0.0, "bound", "in words", (Price("c", 1e-300, "year"),),
        {"f": 0.1}, (Move("f", "1", "2"),), "CERTIFIED_UNREACHABLE", "words", "certificates/a-l2.json", "valid",
    )  # fmt: skip
    text = json.dumps(to_json(row.to_dict()), allow_nan=False)
    assert AuditRow.from_dict(json.loads(text)) == row
    assert from_json(json.loads(json.dumps(to_json({"x": [-math.inf, "inf?"]})))) == {"x": [-math.inf, "inf?"]}


def test_a_configuration_means_the_same_in_any_order() -> None:
    a = AuditConfig.model_validate({"data": {"name": "german_credit"}, "seed": 3})
    b = AuditConfig.model_validate({"seed": 3, "data": {"label": "class", "name": "german_credit"}})
    assert a.sha256 == b.sha256 != AuditConfig.model_validate({"data": {"name": "german_credit"}}).sha256


@pytest.mark.slow
def test_the_whole_audit(tmp_path: Path) -> None:
    case = prepare("german_credit")
    result = run_audit(case, tmp_path)
    test_every_row_holds_on_the_network(case, result)
    test_no_allowed_change_inside_the_radius_flips(case, result)
    for norm in result.summary["norms"]:
        assert norm["mean_ratio"] >= 0.8, "far below: some layer is bounded over the box hull"


def test_rows_are_derived_again_from_the_model_file(small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says which level each file passed; what level B refutes has failed, and is drawn as certifying nothing."""
    from dataclasses import replace

    from lde_cvx.manifest import file_hash
    from lde_cvx.plots import interval_plot
    from verification.checker import CheckStatus

    done = run_audit(small, tmp_path / "a")
    assert [r.level for r in done.rows] == ["B"] * len(done.rows)
    html = (done.folder / "report.html").read_text()
    assert f"{len(done.rows)} of them at level B" in html
    assert file_hash(done.folder / "model.safetensors") in html

    def judged(status: CheckStatus) -> Any:
        honest = check_file
        monkeypatch.setattr(audit, "check_file", lambda *a, **k: replace(honest(*a, **k), status=status, reasons=("a reason",)))
        return run_audit(small, tmp_path / status.name).rows

    assert {(r.check, r.level) for r in judged(CheckStatus.CANNOT_DECIDE)} == {("valid", "A")}
    refuted = judged(CheckStatus.INVALID)
    assert {(r.check, r.level) for r in refuted} == {("invalid: a reason", "")}
    drawn = interval_plot([r.to_dict() for r in refuted]).axes[0].lines[0]
    assert list(drawn.get_xdata()) == [0, 0]
