"""Building, saving, loading and checking certificates, with and without the model."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from formulations.programs import min_norm
from formulations.sets import Box, ConvexSet, TotalVariation
from tests.catalogue import DIM, SETS, start_for
from tests.certificate_example import NOBODY, D, linear_certificate, linear_model, rehashed, relu_pieces
from verification.certificate import (
    CellEvidence,
    Certificate,
    ContradictionError,
    ModelRecord,
    RivalEvidence,
    Split,
    Verdict,
    WitnessEvidence,
)
from verification.checker import CheckStatus, check_file
from verification.checking.text import canonical
from verification.decision import Decision
from verification.model import float64_copy


@pytest.fixture(scope="module")
def linear():
    return linear_certificate(2)


def simple(**changes):
    """m(δ) = 1 − δ_1 − δ_2 over δ ∈ [−1, 1]², x0 = 0, ℓ∞: v* = ½, at the witness (½, ½)."""
    given = {
        "model": NOBODY, "x0": np.zeros(2), "outputs": [1.0], "decision": Decision.threshold(0, 0.0, 1), "norm": "inf", "parts": Box(-1, 1, on="change").parts(2),
        "evidence": [RivalEvidence([CellEvidence(math.inf, -np.ones((1, 2)), np.ones(1), np.array([0.5]), [np.zeros((2, 2))])])], "command": "",
        "witness": WitnessEvidence(np.array([0.5, 0.5]), np.array([0.0]), 0),
    }  # fmt: skip
    return Certificate.build(**{**given, **changes})


def cell(**changes) -> list[RivalEvidence]:
    given = {"radius": math.inf, "a": -np.ones((1, 2)), "b": np.ones(1), "lam": np.array([0.5]), "duals": [None]}
    return [RivalEvidence([CellEvidence(**{**given, **changes})])]


# ---------------------------------------------------------------------------------------------------------------- what is claimed


def test_the_published_numbers_are_the_checkers(linear) -> None:
    cert, model = linear
    report = cert.check()
    assert report.ok
    assert cert.lower == report.proved == min(report.row_proved) == min(cert.lowers.values())
    assert cert.upper == report.upper
    assert cert.verdict is report.verdict is Verdict.BRACKETED
    assert cert.upper * 0.99 < cert.lower <= cert.upper  # the witness was put a little beyond the exact optimum
    assert cert.check(model).ok


def test_an_exact_case_is_exact() -> None:
    cert = simple()
    assert (cert.lower, cert.upper, cert.verdict) == (0.5, 0.5, Verdict.BRACKETED)
    assert np.array_equal(cert.witness, [0.5, 0.5])
    assert cert.lowers == {0: 0.5}


@pytest.mark.parametrize(
    ("changes", "lower", "verdict"),
    [
        ({"witness": None}, 0.5, Verdict.LOWER_ONLY),
        ({"witness": None, "evidence": cell(lam=np.zeros(1))}, 0.0, Verdict.UNKNOWN),
        ({"witness": None, "evidence": [RivalEvidence()]}, 0.0, Verdict.UNKNOWN),
        ({"witness": None, "evidence": cell(b=np.array([3.0])), "outputs": [3.0]}, math.inf, Verdict.CERTIFIED_UNREACHABLE),
        ({"evidence": [RivalEvidence()]}, 0.0, Verdict.BRACKETED),
        ({"evidence": cell(a=np.full((1, 2), np.nan))}, 0.0, Verdict.BRACKETED),
        ({"evidence": cell(b=np.array([-np.inf]))}, 0.0, Verdict.BRACKETED),
        ({"evidence": cell(lam=np.array([np.nan]))}, 0.0, Verdict.BRACKETED),
        ({"evidence": cell(lam=np.array([-1.0]))}, 0.0, Verdict.BRACKETED),
        ({"evidence": cell(radius=0.25)}, 0.25, Verdict.BRACKETED),
        ({"evidence": cell(a=-np.ones(2), b=1.0, lam=7.0)}, 0.5, Verdict.BRACKETED),  # any scale of the multipliers, a row without its axis
        ({"evidence": cell(a=-np.ones((2, 2)), b=np.array([1.0, 0.5]), lam=np.array([1.0, 0.0]))}, 0.5, Verdict.BRACKETED),
    ],
)  # fmt: skip
def test_verdicts_and_poor_evidence(changes, lower, verdict) -> None:
    cert = simple(**changes)
    assert (cert.lower, cert.verdict) == (lower, verdict)
    assert cert.check().ok


@pytest.mark.parametrize("name", [k for k in SETS if "own set" not in k])
def test_every_set_and_norm_is_written_down_and_read_again(name, tmp_path) -> None:
    """Parts over the input stay over the input; the bound of the file is the program's optimum."""
    C, rng = SETS[name], np.random.default_rng(1)
    x0 = start_for(C)
    inside = C.relative_to(x0).project(rng.normal(size=DIM))
    a = rng.normal(size=DIM)
    a *= -np.sign(a @ inside)
    b = 0.7 * abs(a @ inside)
    for norm in (1, Norm(2, rng.uniform(0.5, 2, DIM)), "inf", GroupNorm([list(range(5)), list(range(5, DIM))], [1.0, 2.0])):
        s = min_norm(a, b, norm, C, x0)[0]
        cert = Certificate.build(
            model=NOBODY, x0=x0, outputs=[b], decision=Decision.threshold(0, 0.0, 1), norm=norm, parts=C.parts(DIM), command="",
            evidence=[RivalEvidence([CellEvidence(math.inf, a, b, s.multipliers["margin"], s.duals)])],
        )  # fmt: skip
        assert cert.lower == pytest.approx(s.value, rel=1e-6, abs=1e-7)
        assert cert.lower >= s.lower * (1 - 1e-12)
        cert.save(tmp_path / "c.json")
        assert check_file(tmp_path / "c.json").ok
        assert Certificate.load(tmp_path / "c.json") == cert


def test_a_users_own_set_bounds_from_outside_and_leaves_its_witness_open() -> None:
    class Half(ConvexSet):
        on, name, dim = "change", "mine", 2

        def constraints(self, z):
            return [z[0] >= 0]

    parts = (Box(-1, 1, on="change") & Half()).parts(2)
    both = cell(duals=[None, np.zeros(3)])
    assert simple(parts=parts, evidence=both, witness=None).check().ok
    report = simple(parts=parts, evidence=both).check()
    assert report.status is CheckStatus.CANNOT_DECIDE
    assert "part 'mine'" in report.reasons[0]


def test_contradictions_are_alarms() -> None:
    """A row that lies above the margin away from x0 proves more than the witness allows."""
    with pytest.raises(ContradictionError, match="a row exceeds the margin that is stored for the witness"):
        simple(evidence=cell(a=np.array([[-1.0, -0.5]])))
    with pytest.raises(ContradictionError, match="a row exceeds the margin that is stored for x0"):
        simple(outputs=[0.5])
    with pytest.raises(ContradictionError, match=r"lower=0.6\d* but a witness lies at 0.5|witness"):
        simple(evidence=cell(a=np.array([[-0.2, -0.2]])))


def test_a_witness_may_use_the_tolerance() -> None:
    """Half a tolerance outside C and so a little nearer than the exact optimum: lower gives way."""
    tight = Box([-1, -1], [0.25, 1], on="change").parts(2)
    w = WitnessEvidence(np.array([0.25 + 5e-10, 0.75 - 5e-10]), np.array([0.0]), 0)
    cert = simple(parts=tight, evidence=cell(duals=[np.array([[0, 0], [1, 0]])], lam=np.ones(1)), witness=w)
    assert cert.lower == cert.upper < 0.75 == cert.check().proved


# ------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x0": np.array([0.0, 2.0]), "parts": Box(-1, 1).parts(2)}, "x0 violates part 'box' by 1"),
        ({"x0": np.array([0.0, np.nan])}, "input.x0 is not a list of finite"),
        ({"x0": np.zeros(3), "witness": None}, r"set\[0\].lo is not 3 numbers long but 2"),
        ({"outputs": [-1.0]}, "the decision does not stand at x0"),
        ({"outputs": [1.0, 2.0]}, "decision.rows"),
        ({"evidence": []}, "evidence for 0 rows, the decision has 1"),
        ({"evidence": cell(duals=[])}, "multipliers for 0 parts, the set has 1"),
        ({"evidence": cell(lam=np.ones(2))}, "differ in length|numbers long"),
        ({"evidence": cell(radius=-1.0)}, "radius=-1.0 is negative"),
        ({"evidence": cell(a=np.ones((1, 3)))}, "numbers long|mismatch"),
        ({"witness": WitnessEvidence(np.array([0.5, 1.1]), np.array([0.0]), 0)}, "the witness violates part 'box'"),
        ({"witness": WitnessEvidence(np.array([0.5, 0.5]), np.array([0.1]), 0)}, "do not flip"),
        ({"witness": WitnessEvidence(np.full(2, np.nan), np.array([0.0]), 0)}, "witness.input is not"),
        ({"witness": WitnessEvidence(np.zeros(3), np.array([0.0]), 0)}, "witness has 3 entries, the input 2"),
        ({"witness": WitnessEvidence(np.array([0.5, 0.5]), np.array([0.0]), 4)}, "witness.rival"),
        ({"evidence": cell(path=[Split("3", 0, 0.0, 1)])}, "splits do not cover"),
        ({"evidence": cell(path=[Split("input", 2, 0.0, 1)])}, "index=2 does not exist"),
        ({"evidence": cell(row_of=[0])}, "row_of"),
        ({"norm": Norm(2, [1.0, 2.0, 3.0])}, "3 weights for 2 features"),
        ({"model": "resnet"}, "model is a str"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(changes, message) -> None:
    with pytest.raises(InputError, match=message) as caught:
        simple(**changes)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------- files


def test_round_trip(linear, tmp_path) -> None:
    cert, _ = linear
    path = cert.save(tmp_path / "c.json")
    again = Certificate.load(path)
    assert again == cert
    assert hash(again) == hash(cert)
    assert again.record == json.loads(path.read_bytes())
    assert again.save(tmp_path / "d.json").read_bytes() == path.read_bytes() == canonical(cert.record) + b"\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "d.json"]
    assert np.array_equal(again.x0, cert.x0)
    assert again.record["notes"] == {"seconds": 0.5, "who": ["a", None]}
    assert again.check().ok


def test_input_shape_is_kept() -> None:
    x0 = np.full((1, 2, 3), 0.25)
    cert = Certificate.build(
        model=NOBODY, x0=x0, outputs=[1.0], decision=Decision.threshold(0, 0.0, 1), norm=2, parts=Box(0, 1).parts(6), command="",
        evidence=[RivalEvidence()], witness=WitnessEvidence(np.full((1, 2, 3), 0.5), np.array([-1.0]), 0),
    )  # fmt: skip
    assert cert.x0.shape == cert.witness.shape == (1, 2, 3)
    assert np.array_equal(cert.witness, x0 + 0.5)
    assert cert.upper == math.nextafter(math.sqrt(1.5), 2)


def test_free_fields_take_anything() -> None:
    loop: dict = {}
    deep: list = []
    for _ in range(100):
        deep = [deep]
    loop.update(a=np.float32(0.5), b=np.arange(3), c=float("nan"), d={1: (2, None)}, e=Path("x"), f=10**30, g=True, h=deep)
    cert = simple(notes=loop, provenance={"data": "made up"}, seed=4)
    assert cert.record["notes"]["a"] == 0.5
    assert cert.record["notes"]["b"] == [0, 1, 2]
    assert cert.record["notes"]["c"] == "nan"
    assert cert.check().ok
    assert Certificate(json.loads(canonical(cert.record))) == cert


def test_a_failed_save_leaves_what_was_there(linear, tmp_path, monkeypatch) -> None:
    cert, _ = linear
    path = tmp_path / "c.json"
    simple().save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        cert.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    with pytest.raises(InputError, match="No such file"):
        cert.save(tmp_path / "missing" / "c.json")


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_certificate_does_not_load(linear, tmp_path, cut) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(canonical(linear[0].record)[:cut])
    with pytest.raises(InputError, match=r"c\.json: .*not a certificate") as caught:
        Certificate.load(path)
    assert "\n" not in str(caught.value)
    assert not check_file(path).ok


def test_a_changed_digit_loads_and_fails_its_check(linear, tmp_path) -> None:
    path = tmp_path / "c.json"
    cert, _ = linear
    digit = cert.record["lower"][8]
    forged = {**cert.record, "lower": cert.record["lower"][:8] + ("1" if digit != "1" else "2") + cert.record["lower"][9:]}
    path.write_bytes(canonical(forged))
    (reason,) = Certificate.load(path).check().reasons
    assert reason.startswith("sha256: the file's own hash does not match its content")


# ----------------------------------------------------------------------------------------------------------------------- models


def test_the_hash_is_of_the_function() -> None:
    model = linear_model()
    record = ModelRecord.of(model)
    assert ModelRecord.of(copy.deepcopy(model).double()) == record
    assert ModelRecord.of(record) is record
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight[0, 0] = torch.nextafter(other[1].weight[0, 0], torch.tensor(2.0))
    assert ModelRecord.of(other).sha256 != record.sha256
    layers = [torch.nn.Linear(2, 2), torch.nn.ReLU()]
    tanh = torch.nn.Sequential(layers[0], torch.nn.Tanh())
    assert ModelRecord.of(torch.nn.Sequential(*layers)).sha256 != ModelRecord.of(tanh).sha256  # the same weights


def test_the_verified_copy_has_the_same_hash() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2))
    assert ModelRecord.of(float64_copy(model)) == ModelRecord.of(model.train())


def test_hash_with_buffers_and_closures() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.f = torch.nn.BatchNorm1d(2), lambda x: x
            self.register_buffer("mask", torch.tensor([True, False]))

        def extra_repr(self) -> str:
            return f"f={self.f}"  # holds a memory address

    assert ModelRecord.of(Odd().bfloat16()) == ModelRecord.of(Odd().bfloat16())


def test_check_with_the_model_sees_what_a_file_cannot_show(linear) -> None:
    cert, model = linear
    assert cert.check(model).ok
    assert "outputs" in cert.check(model).premises[1]
    assert cert.check(copy.deepcopy(model).double()).ok
    assert "model.sha256" in cert.check(linear_model(seed=9)).reasons[0]
    record = copy.deepcopy(cert.record)
    record["model"]["sha256"] = ModelRecord.of(linear_model(seed=9)).sha256  # a forger who names another model
    forged = Certificate(rehashed(record))
    assert forged.check().ok
    reasons = forged.check(linear_model(seed=9)).reasons
    assert any("outputs at x0 differ" in r for r in reasons)
    record = copy.deepcopy(cert.record)
    record["witness"]["outputs"] = [(float.fromhex(v) + 1.0).hex() for v in record["witness"]["outputs"]]  # the same margins
    forged = Certificate(rehashed(record))
    assert forged.check().ok
    assert "outputs at the witness differ" in forged.check(model).reasons[0]


def test_check_leaves_the_model_alone_and_names_misfits(linear) -> None:
    cert, model = linear
    training = copy.deepcopy(model).train()
    before = copy.deepcopy(training.state_dict())
    assert cert.check(training).ok
    assert training.training
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in training.state_dict().items())
    record = copy.deepcopy(cert.record)
    record["model"]["sha256"] = ModelRecord.of(linear_model(dim=7)).sha256
    assert "cannot be evaluated at x0" in Certificate(rehashed(record)).check(linear_model(dim=7)).reasons[0]
    narrow = torch.nn.Linear(D, 2)
    record["model"]["sha256"] = ModelRecord.of(narrow).sha256
    assert "2 outputs, the certificate 3" in Certificate(rehashed(record)).check(narrow).reasons[0]


def test_a_witness_on_the_boundary_of_another_machine_is_left_open() -> None:
    """The stored outputs flip; this machine's, off by rounding, do not."""
    model = torch.nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.fill_(-1.0)
        model.bias.fill_(1.0)
    delta = np.array([0.5, 0.5 - 1e-12])
    cert = simple(model=model, witness=WitnessEvidence(delta, np.array([0.0]), 0), norm=2)
    report = cert.check(model)
    assert report.status is CheckStatus.CANNOT_DECIDE
    assert "within rounding of the boundary" in report.reasons[0]


def test_branching_certificates_round_trip(tmp_path) -> None:
    cert, model, _ = relu_pieces(2)
    path = cert.save(tmp_path / "tree.json")
    assert Certificate.load(path).check(model).ok
    assert len(cert.record["rivals"][0]["cells"]) == 8


def test_large_inputs_stay_small_enough() -> None:
    """d = 784 and 9 rivals over box ∩ TV: the file is below 2 MB."""
    rng, d = np.random.default_rng(0), 784
    x0, decision = rng.uniform(0.2, 0.8, d), Decision.classification(0, 10)
    C = Box(0, 1) & TotalVariation(3.0, shape=(28, 28))
    W = rng.normal(size=(10, d)) / 28
    outputs = np.r_[1.0, np.zeros(9)]
    duals = [np.zeros((2, d)), rng.normal(size=1512)]
    evidence = [RivalEvidence([CellEvidence(2.0, (W[0] - W[t]), 1.0, 1.0, duals)]) for t in range(1, 10)]
    cert = Certificate.build(
        model=NOBODY, x0=x0, outputs=outputs, decision=decision, norm=2, parts=C.parts(d), evidence=evidence, command=""
    )
    assert len(canonical(cert.record)) < 2_000_000
    assert cert.check().ok
