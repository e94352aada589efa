"""`lde compare`: every cell once, an interrupted run goes on, the best group is the paired test's, configurations are checked."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from formulations.errors import InputError
from formulations.sets import Box
from lde_cvx.baselines import baseline
from lde_cvx.cli import app
from lde_cvx.compare import cells as module
from lde_cvx.compare.cases import Case, build
from lde_cvx.compare.cells import CellStore, run
from lde_cvx.compare.config import CompareConfig, MethodTable, embedded, load_config
from lde_cvx.compare.gallery import gallery
from lde_cvx.compare.summary import entries, frame, markdown
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.metrics import paired_test
from lde_cvx.models import save_model

CONFIG = """
title = "Two methods"
[case]
model = "{folder}/net.safetensors"
inputs = "{folder}/x.npy"
box = [0.0, 1.0]
count = 4
[metrics]
names = ["deletion", "insertion", "key_size", "ordering", "stability", "seconds", "cpu_seconds", "memory"]
steps = 6
repeats = 1
[[methods]]
name = "Shapley"
kind = "baseline"
method = "shapley"
[[methods]]
name = "LEG"
kind = "leg"
settings = {{ samples = 20 }}
[[methods]]
name = "random"
kind = "baseline"
method = "random"
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(size=(5, 6)))
    path = tmp_path / "compare.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def test_one_cell_per_method_input_and_metric(written: Path, tmp_path: Path) -> None:
    config = load_config(written)
    case, store = run(config, tmp_path / "out")
    lines = (tmp_path / "out" / "cells.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 4 * 8 == 1 + len(set(lines[1:]))
    found, n = entries(config, store)
    assert n == len(case.x) == 4
    table = frame(found)
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    values = {(e.method, e.metric): e.values for e in found}
    for e in found:
        if e.metric == "deletion":
            best = min(("Shapley", "LEG", "random"), key=lambda m: values[(m, "deletion")].mean())
            assert e.best == (e.method == best or paired_test(e.values, values[(best, "deletion")]).p_value >= 0.05)
    assert markdown(found).count("\n") == 2 + 3


def test_an_interrupted_run_goes_on(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = load_config(written), tmp_path / "out"

    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        run(config, folder, stop)
    path = folder / "cells.csv"
    before = path.read_text()
    path.write_text(before + "random,abc,3,dele")  # the line that a power cut left
    calls = []
    real = module._fill

    def counted(*args: object) -> None:
        calls.append((args[3].name, args[5]))  # type: ignore[attr-defined]
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_fill", counted)
    _, store = run(config, folder)
    after = path.read_text()
    assert after.startswith(before)
    assert len(calls) == 3 * 4 - 5  # the five that were there are not computed again
    assert len(after.splitlines()) == 1 + 3 * 4 * 8
    again = CellStore(folder, config)
    assert again.cells == store.cells
    run(config, folder)
    assert path.read_text() == after


class Interrupted:
    """An explainer whose search answers an interrupt at the nth map with what it has, here nothing."""

    def __init__(self, explainer: Any, at: int) -> None:
        self.explainer, self.left = explainer, at

    def attribute(self, inputs: torch.Tensor, target: Any = None) -> torch.Tensor:
        self.left -= 1
        try:
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return torch.zeros_like(inputs)
        return self.explainer.attribute(inputs, target)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [4, 5])  # after the warm-up, two a method and input: the map of the second input, and its stability
def test_no_map_of_a_search_cut_short_is_kept(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    folder = tmp_path / "out"
    command = ["compare", str(written), "--out", str(folder), "--limit", "2", "-q"]
    real = module.build

    def build_one(method: MethodTable, case: Case, seed: int) -> Any:
        return Interrupted(real(method, case, seed), at) if method.name == "LEG" else real(method, case, seed)

    monkeypatch.setattr(module, "build", build_one)
    cut = CliRunner().invoke(app, command)
    assert cut.exit_code == 130
    assert "finished cells are kept, and the same command goes on from there" in " ".join(cut.output.split())
    assert not (folder / "table.md").exists()
    monkeypatch.setattr(module, "build", real)
    config = load_config(written)
    kept = CellStore(folder, config).cells
    assert {k[1] for k in kept if not k[0].endswith("LEG")} == {0, 1}
    assert CliRunner().invoke(app, command).exit_code == 0
    small = config.model_copy(update={"case": config.case.model_copy(update={"count": 2})})
    whole, (_, fresh) = CellStore(folder, config).cells, run(small, tmp_path / "fresh")
    assert kept.items() <= whole.items()
    assert {k: c.value for k, c in whole.items() if k[2] not in module.COSTS} == {
        k: c.value for k, c in fresh.cells.items() if k[2] not in module.COSTS
    }


def test_values_do_not_depend_on_the_interruption(written: Path, tmp_path: Path) -> None:
    config = load_config(written)
    small = config.model_copy(update={"case": config.case.model_copy(update={"count": 2})})
    run(small, tmp_path / "a")
    _, a = run(config, tmp_path / "a")
    _, b = run(config, tmp_path / "b")
    assert a.cells.keys() == b.cells.keys()
    assert all(a.cells[k].value == b.cells[k].value for k in a.cells if k[2] not in module.COSTS)


def test_another_case_needs_another_folder(written: Path, tmp_path: Path) -> None:
    config = load_config(written)
    CellStore(tmp_path / "out", config)
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="another comparison; name another folder"):
        CellStore(tmp_path / "out", other)


def test_a_changed_method_is_computed_again(written: Path, tmp_path: Path) -> None:
    config = load_config(written)
    CellStore(tmp_path / "out", config).add(config.methods[1], 0, "deletion", 0.5)
    store = CellStore(tmp_path / "out", config)
    assert store.has(config.methods[1], 0, "deletion")
    assert not store.has(config.methods[1].model_copy(update={"settings": {"samples": 30}}), 0, "deletion")


def test_the_command_writes_table_and_gallery(written: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(written), "--out", str(tmp_path / "out"), "--limit", "2"])
    assert done.exit_code == 0, done.output
    assert "Shapley" in done.output
    assert (tmp_path / "out" / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert "over 2 inputs" in (tmp_path / "out" / "table.md").read_text()
    assert "Shapley" in (tmp_path / "out" / "table.csv").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind = \"leg\"", "kind = \"legs\""), "methods.1.kind"),
        (("method = \"shapley\"", ""), "method names a baseline"),
        (("name = \"LEG\"", "name = \"random\""), "the name 'random' is used twice"),
        (("samples = 20", "sample = 20"), "methods.LEG: there is no setting 'sample'; its settings are: samples, "),
        (("samples = 20", "seed = 20"), "methods.LEG: seed is not a method's own"),
        (("samples = 20", "samples = \"many\""), "methods.LEG: a setting has a value of the wrong type"),
        (("method = \"shapley\"", "method = \"shaply\""), "methods.Shapley: baseline 'shaply' is not known"),
        (("method = \"shapley\"", "method = \"occlusion\"\nsettings = { window = 9 }"), "methods.Shapley: occlusion: window=9 must lie between 1 and"),
        (("method = \"shapley\"", "method = \"shapley\"\nsettings = { reference = \"Case\" }"), "reference='Case' is no number and no input"),
        (("kind = \"leg\"\nsettings = { samples = 20 }", "kind = \"rate-distortion\"\nsettings = { rate = 7 }"), "methods.LEG: rate: [7.0] must lie between 0 and"),
        (("\"deletion\"", "\"deletoin\""), "metrics.names.0: input should be 'deletion', "),
        (("count = 4", "count = 0"), "case.count: input should be greater than or equal to 1, got 0"),
        (("box = [0.0, 1.0]", "box = [1.0, 0.0]"), "box must be"),
        (("steps = 6", "step = 6"), "metrics.step: is not known; there are names, fill, steps, noise, repeats, got 6"),
        (("x.npy", "y.npy"), "does not exist"),
        (("title = ", "title "), "is not TOML"),
        (("steps = 6", "fill = \"reference\""), "this case has no reference"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(written: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = written.read_text()
    assert change[0] in text
    written.write_text(text.replace(*change))
    done = CliRunner().invoke(app, ["compare", str(written), "--out", str(tmp_path / "out"), "-q"])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists(), "what is wrong with the first input is met before anything is written"


def test_the_table_of_no_comparison(written: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(written), "--out", str(tmp_path / "out"), "--table"])
    assert done.exit_code == 2
    assert "holds no comparison; leave --table out" in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [(), tuple(f"feature {i}" for i in range(6))])
def test_bars_of_flat_inputs_say_which_features(written: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    config = load_config(written)
    case, store = run(config, tmp_path / "out")
    figure = gallery(config, replace(case, features=names), store)
    last = figure.axes[-1]
    assert len(figure.axes) == len(config.methods)
    assert [ax.get_ylabel() for ax in figure.axes] == [m.name for m in config.methods]
    assert [t.get_text() for t in last.get_xticklabels()] == list(names) or not names
    assert "mean of 4 inputs" in figure.get_supxlabel()
    assert all(sum(bar.get_height() for bar in ax.patches) == pytest.approx(1.0) for ax in figure.axes)


@pytest.mark.parametrize("name", ["digits", "german_credit", "mnist"])
def test_embedded_comparisons_are_valid(name: str) -> None:
    assert name in embedded()
    assert isinstance(load_config(name), CompareConfig)


def test_the_reference_of_a_case_reaches_the_methods() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, reference = torch.rand(2, 6, dtype=torch.float64), torch.full((6,), 0.4, dtype=torch.float64)
    case = Case(net, x, Box(0, 1), (0.0, 1.0), reference, "a network")

    def table(kind: str, method: str | None = None, **settings: object) -> MethodTable:
        return MethodTable(name="m", kind=kind, method=method, settings=settings)  # type: ignore[arg-type]

    found = build(MethodTable(name="m", kind="lde", settings={"method": "linear", "reading": "contributions"}), case, 0).attribute(x)
    want = LagrangeDualExplainer(net, constraints=Box(0, 1), method="linear").attribute(x, baselines=reference)
    torch.testing.assert_close(found, want)
    found = build(table("baseline", "occlusion", reference="case", window=1), case, 0).attribute(x)
    torch.testing.assert_close(found, baseline("occlusion", net, reference=reference, window=1).attribute(x))
    with pytest.raises(InputError, match="reading='sums' is not known"):
        build(table("lde", reading="sums"), case, 0)
