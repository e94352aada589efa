"""The soundness campaign: its attacks find false claims, its bounds of float32 hold, its laws notice, and it goes on where it was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.sets import Box, LpBall, Polytope, TotalVariation
from lde_cvx.campaign import laws, run
from lde_cvx.campaign.attacks import Ground, attack, refuted
from lde_cvx.campaign.cases import SETS, Case, case, evaluate32
from lde_cvx.campaign.networks import KINDS, draw, save
from lde_cvx.campaign.rounding import float32_error
from lde_cvx.cli import app
from lde_cvx.explainer import LagrangeDualExplainer
from verification.certificate import Certificate
from verification.certificate_format import parse
from verification.decision import Decision
from verification.rechecking.bounds import enclose
from verification.rechecking.network import read_model

DIM = 6


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_what_their_files_say_and_float32_stays_within_its_bound(kind: str, tmp_path: Path) -> None:
    useful = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        net, shape = draw(kind, rng)
        network = read_model(save(net, tmp_path / "net.safetensors")).network(shape)
        x = rng.uniform(-1, 2, (40, *shape))
        y = net(torch.as_tensor(x)).numpy()
        for z, v in zip(x[:5], y, strict=False):
            low, high = enclose(network, z, z)[-1]
            assert (low <= v + 1e-9 * (1 + np.abs(high - low) + np.abs(v))).all()
            assert (high >= v - 1e-9 * (1 + np.abs(high - low) + np.abs(v))).all()
        bound = float32_error(network, x)
        off = np.abs(evaluate32(net, x) - y)
        assert (off <= bound * 1.001 + 1e-9 * np.abs(y)).all()
        useful += bool((bound < 1e-2 * (1 + np.abs(y))).all())
    assert useful >= 4 or kind in ("cancelling", "forgetful")


def certified(norm: Any, C: Any) -> tuple[Case, Certificate, Decision]:
    """A claim about a small network, with a witness."""
    net, _ = draw("mlp", np.random.default_rng(5))
    while net[0].in_features != DIM:  # type: ignore[union-attr]
        net, _ = draw("mlp", np.random.default_rng([5, int(torch.randint(10**6, ()))]))
    x0 = np.full(DIM, 0.5) + 0.1 * np.sin(np.arange(DIM))
    with torch.no_grad():
        y = net(torch.as_tensor(x0)[None])[0]
        net[len(net) - 1].bias.add_(0.9 * (y.max() - y))  # type: ignore[operator, union-attr]
    found = LagrangeDualExplainer(net, norm=norm, constraints=C).explain(x0, quiet=True)
    return Case(0, "mlp", "float64", net, x0, Norm.of(norm), "box", C, "crown"), found.certificate, found.decision


GROUNDS = [
    (1, None), (2, Box(0, 1)), ("inf", Box(-0.5, 0.5, on="change")), (2, Box(0, 1) & Polytope(None, None, equal=(np.ones((1, DIM)), [0.0]), on="change")),
    (Norm(1, np.linspace(0.5, 2, DIM)), Box(0, 1) & TotalVariation(3.0, (DIM,))), ("inf", Box(0, 1) & LpBall(2, 2.0)),
]  # fmt: skip


@pytest.mark.parametrize(("norm", "C"), GROUNDS, ids=lambda v: str(v)[:30])
def test_attacks_stay_inside_find_false_claims_and_spare_true_ones(
    norm: Any, C: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lde_cvx.campaign.attacks._searched", lambda *_: [])  # by chance and gradient alone
    torch.manual_seed(0)
    c, certificate, decision = certified(norm, C)
    doc = parse(certificate.record)
    network = read_model(save(c.net, tmp_path / "net.safetensors")).network(c.x0.shape)
    assert 0 < certificate.lower <= certificate.upper < np.inf

    def attacked(lower: float) -> Any:
        ground = Ground(c.x0, c.norm, C, lower)
        found = attack(c.net, network, replace(doc, lower=lower), ground, C, decision, 100, np.random.default_rng(0))
        assert len(found.tried) > 150
        assert (c.norm.value(found.tried) <= lower).all()
        if C is not None:
            assert max(C.relative_to(c.x0).violation(d) for d in found.tried[::7]) <= 1e-10
        assert c.norm.value(found.tried).max() > 0.5 * min(lower, ground.reach)
        return found

    honest, forged = attacked(certificate.lower), attacked(certificate.upper * 1.5)
    assert honest.unsound == ()
    assert honest.least > 0
    assert forged.unsound
    assert all(refuted(replace(doc, lower=certificate.upper * 1.5), network, z) for z in forged.unsound)
    assert not any(refuted(replace(doc, lower=certificate.lower), network, z) for z in forged.unsound)


def test_laws_hold_of_true_radii_and_notice_false_ones() -> None:
    torch.manual_seed(0)
    c, certificate, decision = certified(2, Box(0, 1))
    assert {laws.in_turn(10 * k + f) for k in range(30) for f in range(10)} == {None, *laws.LAWS}
    for k, name in enumerate(laws.LAWS):
        true = laws.check(name, c, decision, certificate.lower, certificate.upper, np.random.default_rng(k))
        assert (true.name, true.broken) == (name, False)
        assert true.ratio > 0.9
        false = laws.check(name, c, decision, certificate.upper * 4, certificate.upper, np.random.default_rng(k))
        assert false.broken or name == "refined"  # a smaller box may leave no witness
        if name not in ("refined",):
            assert laws.check(name, c, decision, 0.0, certificate.lower * 0.5, np.random.default_rng(k)).broken


def test_cases_come_from_seed_and_number_alone() -> None:
    for k in range(20):
        one, two = case(3, k), case(3, k)
        assert one.words == two.words
        assert (one.x0 == two.x0).all()
        assert all((a == b).all() for a, b in zip(one.net.state_dict().values(), two.net.state_dict().values(), strict=True))
        assert one.set_name in SETS
        assert one.constraints is None or one.constraints.relative_to(one.x0.ravel()).contains(np.zeros(one.x0.size))


def fake(c: Case, seed: int, count: int, folder: Path) -> dict[str, Any]:
    return {**c.words, "refused": None, "lower": "0.5", "upper": "1.0", "points": count, "unsound": int(c.number == 7), "rounding": 0, "A": "VALID", "B": "VALID",
            "settled": "VALID", "reasons": [], "law": "scaled", "law_broken": False, "law_ratio": 1.0, "float32_flips": 0, "float32_excess": 0,
            "seconds": 0.1}  # fmt: skip


def test_a_killed_campaign_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run, "one", lambda c, *a: asked.append(c.number) or fake(c, *a))
    assert run.run(tmp_path, 0, 3, 20).points == 60
    path = tmp_path / run.RESULTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # killed while it wrote the last case
    summary = run.run(tmp_path, 0, 5, 20)
    assert asked == [0, 1, 2, 2, 3, 4]
    assert (summary.cases, summary.ok) == (5, True)
    assert [json.loads(line).get("case") for line in path.read_bytes().splitlines()] == [None, 0, 1, 2, 3, 4]
    assert not run.run(tmp_path, 0, 8, 20).ok
    for seed, points in ((1, 20), (0, 30)):
        with pytest.raises(InputError, match="another campaign"):
            run.run(tmp_path, seed, 5, points)
    for junk in (b"hello\n", b"[]\n", b"\xff\n", b'{"format":1}\n'):
        path.write_bytes(junk)
        with pytest.raises(InputError):
            run.run(tmp_path, 0, 5, 20)


def test_the_command_ends_with_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "one", fake)
    for cases, code in ((3, 0), (9, 1)):
        done = CliRunner().invoke(app, ["campaign", "--out", str(tmp_path), "--cases", str(cases), "-q"])
        assert done.exit_code == code, done.output
    assert CliRunner().invoke(app, ["campaign", "--out", str(tmp_path), "--cases", "0"]).exit_code == 2


def test_a_real_case_and_a_hostile_one(tmp_path: Path) -> None:
    for number in (2, 9):
        found = run.one(case(0, number), 0, 40, tmp_path)
        assert found["unsound"] == 0
        assert found["A"] in ("VALID", "")
        assert found["B"] != "INVALID"
        assert not found["law_broken"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_campaign(tmp_path: Path) -> None:
    summary = run.run(tmp_path, 1, 60, 150)
    assert summary.ok, summary
    assert summary.points > 10_000
