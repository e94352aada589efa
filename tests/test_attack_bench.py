"""The comparison of witness searches: rivals are judged, counted and reported as they did; what is missing is named."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from formulations.errors import DependencyError, InputError
from formulations.norms import INF
from lde_cvx.bench import rivals as rivals_module
from lde_cvx.bench import witness as bench
from lde_cvx.bench.kept import Kept
from lde_cvx.bench.networks import Case
from lde_cvx.bench.rivals import Counted, Rival, rivals
from tests.digits_net import correct_digits


def test_a_missing_rival_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("foolbox", "torchattacks"):
        with monkeypatch.context() as m:
            for present in {"foolbox", "torchattacks"} - {missing}:
                m.setitem(sys.modules, present, pytest)  # any module
            m.setitem(sys.modules, missing, None)
            with pytest.raises(DependencyError, match=f"{missing} cannot be imported.*pip install"):
                next(rivals(2.0))


def test_passes_are_counted_in_inputs() -> None:
    model = Counted(nn.Linear(3, 2))
    x = torch.rand(5, 3, requires_grad=True)
    y = model(x)
    model(x[:2]).sum()
    for k in range(2):
        torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)
    with torch.no_grad():
        model(x[:1])
    assert (model.forward_passes, model.backward_passes) == (8, 10)


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_answers_are_judged_in_the_box_and_in_float64(p: float) -> None:
    line = nn.Linear(2, 2).double()
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
        line.bias.copy_(torch.tensor([1.0, 0.0]))  # class 1 beyond z_0 = 0.5
    x = torch.tensor([[0.2, 0.5]]).double().repeat(4, 1)
    changed = torch.tensor([[0.7, 0.5], [0.4, 0.9], [0.49999, 0.5], [3.0, 0.5]]).double()
    found = bench.judged(line, x, changed, torch.zeros(4, dtype=torch.long), p)
    assert found[0] == pytest.approx(0.5)
    assert found[1] == INF  # does not flip
    assert 0.3 < found[2] < 0.3 * 1.001  # just short of the boundary: moved on
    assert found[3] == pytest.approx(0.8)  # beyond the box: moved into it


def to_the_mean(model: Counted, x: Tensor, labels: Tensor, p: float, settings: rivals_module.Settings) -> Tensor:
    if settings["fail"]:
        raise RuntimeError("no start")
    out = x.clone()
    for t in np.linspace(0, 1, settings["steps"] + 1)[1:]:
        other = torch.where((labels == labels[0])[:, None], x[labels != labels[0]].mean(0), x[labels == labels[0]].mean(0))
        z = x + float(t) * (other - x)
        flips = (model(z).argmax(1) != labels) & (out == x).all(1)
        out[flips] = z[flips]
    return out


def test_the_best_setting_is_reported_and_failures_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model, x, _ = correct_digits(6)
    settings = [{"steps": 2, "fail": False}, {"steps": 20, "fail": False}, {"steps": 5, "fail": True}]
    rival = Rival("line", "none", dict.fromkeys(bench.NORMS, settings), to_the_mean)
    monkeypatch.setattr(bench, "rivals", lambda p, quick=False: iter([rival]))
    monkeypatch.setattr(bench, "networks", lambda cache, *, quick, tell: iter([Case("digits", model, x, bench.Box(0, 1), (0, 1))]))
    said = io.StringIO()
    frame = bench.bench(tmp_path, console=Console(file=said, width=300))
    assert [*frame["method"]] == [bench.OURS, "line"] * 3
    ours, line = frame[frame["method"] == bench.OURS], frame[frame["method"] == "line"]
    assert (line["settings"] == "steps=20, fail=False").all()
    assert (line["forward"] == 20).all()
    assert (line["backward"] == 0).all()
    assert (ours["median"].to_numpy() < line["median"].to_numpy()).all()
    assert (ours["forward"] <= 1324).all()
    assert (ours["backward"] <= 200).all()
    assert said.getvalue().count("RuntimeError: no start") == 3
    each = pd.read_csv(tmp_path / "witness_distances.csv")
    assert len(each) == 2 * 3 * 6
    assert len(pd.read_csv(tmp_path / "witness.csv")) == 6
    assert (tmp_path / "witness.png").stat().st_size > 10_000


def test_an_interrupted_comparison_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model, x, _ = correct_digits(3)
    ran: list[tuple[float, int]] = []

    def stops(net: Counted, z: Tensor, labels: Tensor, p: float, settings: rivals_module.Settings) -> Tensor:
        ran.append((p, settings["steps"]))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return to_the_mean(net, z, labels, p, {"fail": False, **settings})

    rival = Rival("line", "none", {p: [{"steps": 2}, {"steps": 3}] for p in bench.NORMS}, stops)
    monkeypatch.setattr(bench, "rivals", lambda p, quick=False: iter([rival]))
    monkeypatch.setattr(bench, "networks", lambda cache, *, quick, tell: iter([Case("digits", model, x, bench.Box(0, 1), (0, 1))]))
    monkeypatch.setattr(bench, "search", lambda case, net, z, p, device: bench.Attempt(bench.OURS, "", [1.0] * 3, 1, 1, 0.0))
    quiet = Console(file=io.StringIO())
    assert len(bench.bench(tmp_path, console=quiet)) == 2  # ours and the rival at the first norm
    assert len(bench.bench(tmp_path, console=quiet)) == 6
    assert ran == [(1.0, 2), (1.0, 3), (2.0, 2), (2.0, 2), (2.0, 3), (INF, 2), (INF, 3)]
    monkeypatch.setattr(bench, "networks", lambda cache, *, quick, tell: iter([Case("digits", model, x[:2], bench.Box(0, 1), (0, 1))]))
    bench.bench(tmp_path, console=quiet)
    assert len(ran) == 13  # other inputs: nothing of the old run is taken
    done = tmp_path / "witness_done.jsonl"
    whole = done.read_text()
    done.write_text(whole + whole[:40])  # killed while it wrote
    bench.bench(tmp_path, console=quiet)
    assert len(ran) == 13
    assert done.read_text() == whole
    for damaged in ("{\n", "[]\n", '{"key": "k"}\n'):
        done.write_text(damaged)
        with pytest.raises(InputError, match=r"witness_done\.jsonl: .*delete it"):
            bench.bench(tmp_path, console=quiet)
        assert done.read_text() == damaged


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_a_quick_comparison_compiles_nothing_and_takes_few_steps(monkeypatch: pytest.MonkeyPatch, p: float) -> None:
    for name in ("foolbox", "torchattacks"):
        monkeypatch.setitem(sys.modules, name, pytest)  # any module
    brief = list(rivals(p, quick=True))
    assert {r.name for r in brief} == {r.name for r in rivals_module.RIVALS if p in r.grid and not r.compiled}
    for rival in brief:
        (settings,) = rival.grid[p]
        assert settings["steps"] * settings.get("restarts", 1) * settings.get("binary_search_steps", 1) <= 300, rival.name


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_the_installed_rivals_run_and_are_not_nearer(p: float, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("foolbox")
    pytest.importorskip("torchattacks")
    first = [replace(rival, grid={p: rival.grid[p][:1]}) for rival in rivals(p)]
    monkeypatch.setattr(bench, "rivals", lambda p, quick: iter(first))
    model, x, _ = correct_digits(8)
    case = Case("digits", model, x, bench.Box(0, 1), (0, 1))
    attempts = bench.measure(case, p, "cpu", Kept(tmp_path / "done.jsonl"), quick=True, tell=print)
    assert {a.method for a in attempts} >= {bench.OURS, "FMN", "FAB"}
    ours = attempts[0]
    for rival in attempts[1:]:
        assert rival.forward > 0
        assert rival.backward > 0
        assert np.median(ours.distance) <= np.median(rival.distance), rival.method


def test_adversarial_training_moves_the_boundary_away() -> None:
    case = bench.hardened_digits(10, epochs=3, steps=2)
    plain, x, _ = correct_digits(10)
    found = bench.find_witness(case.model, case.x, "inf", case.constraints)
    assert np.median(found.upper) > np.median(bench.find_witness(plain, x, "inf", case.constraints).upper)
