"""lde ablate: every line is the explainer's own answer, runs go on where they stopped, and mistakes are named in one line."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import lde_cvx as lde
from lde_cvx.ablate import run
from lde_cvx.ablate.cases import build_case
from lde_cvx.ablate.grid import Grid, load_grid
from lde_cvx.ablate.run import COLUMNS, TABLE, read_table, run_grid
from lde_cvx.ablate.validity import validity_rates
from lde_cvx.cli import app

SMALL = """
data = "digits"
inputs = 3
norms = [2]
methods = ["ibp", "crown"]
chunk = 2
[constraints]
box = { kind = "own" }
"no set" = { kind = "all" }
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("ablate")
    (folder / "grid.toml").write_text(SMALL)
    return folder, run_grid(load_grid(folder / "grid.toml"), folder / "out")


def test_the_table_is_the_grid(finished):
    _, table = finished
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * 2 * 2 * 2  # inputs, methods, sets, orders
    assert not table.duplicated(["norm", "set", "method", "order", "input"]).any()
    for _, pair in table.groupby(["norm", "set", "method", "input"]):
        assert set(pair.order) == {1, 2}
        assert pair.lower.nunique() == 1  # the network's own bounds know no order
    assert (table.lower <= table.upper * (1 + 1e-9)).all()
    refuted, certified = table[table.validity == "refuted"], table[table.validity == "certified"]
    assert (refuted.upper < refuted.radius).all()
    assert (certified.lower >= certified.radius * (1 - 2e-6)).all()
    assert (table[table.order == 2].flat == True).all()  # noqa: E712


def test_a_line_is_the_explainers_answer(finished):
    folder, table = finished
    case = build_case(load_grid(folder / "grid.toml"), folder)
    e = lde.LagrangeDualExplainer(case.model, norm=2, constraints=lde.Box(0, 1)).explain(case.x[:1])
    row = table[(table.set == "box") & (table.method == "crown") & (table.input == 0) & (table.order == 1)].iloc[0]
    assert row.lower == pytest.approx(e.lower, rel=1e-3)
    assert row.upper == pytest.approx(e.upper, rel=1e-2)
    assert row.radius == pytest.approx(e.linear_radius, rel=1e-6)


def test_lines_without_a_radius_are_counted(finished, tmp_path):
    """The quadratic model may have no radius, and an input no witness: such lines are numbers too, and the medians leave them out."""
    lines = (finished[0] / "out" / TABLE).read_text(encoding="utf-8").splitlines()
    cells = dict(zip(COLUMNS, lines[1].split(","), strict=True)) | {"upper": "inf", "radius": "nan", "gap": "1.0", "set": "none"}
    (tmp_path / TABLE).write_text("\n".join([*lines, ",".join(cells[c] for c in COLUMNS)]) + "\n", encoding="utf-8")
    table = read_table(tmp_path / TABLE)
    assert len(table) == len(lines)
    assert table.radius.dtype == float
    assert np.isnan(table.radius.iloc[-1])
    assert table.set.iloc[-1] == "none"
    assert validity_rates(table).inputs.sum() == len(table)


def test_rates_count(finished):
    _, table = finished
    rates = validity_rates(table)
    assert len(rates) == 8
    assert np.allclose(rates.certified + rates.refuted + rates.unknown, 1)
    assert (rates.inputs == 3).all()


def test_a_killed_run_goes_on(finished, monkeypatch):
    """Half a line is cut off, finished cells are not computed again, missing ones are, and the table ends the same."""
    folder, table = finished
    path = folder / "out" / TABLE
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:20])
    asked: list[int] = []
    honest = run.LagrangeDualExplainer.explain

    def counted(self, x0, **options):
        asked.append(len(x0))
        return honest(self, x0, **options)

    monkeypatch.setattr(run.LagrangeDualExplainer, "explain", counted)
    again = run_grid(load_grid(folder / "grid.toml"), folder / "out")
    assert sum(asked) == 2  # the two inputs of the last three lines
    keys = ["norm", "set", "method", "order", "input"]
    both = table.merge(again, on=keys, suffixes=("", "_again"))
    assert len(both) == len(table) == len(again)
    assert np.allclose(both.lower, both.lower_again, rtol=1e-3)


def test_lines_of_a_search_cut_short_are_not_kept(finished, monkeypatch, tmp_path):
    """SIGINT that the first search answers with what it has: the run ends, without a line of it."""
    folder, _ = finished
    honest = run.LagrangeDualExplainer.explain

    def cut(self, x0, **options):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return honest(self, x0, **options)

    monkeypatch.setattr(run.LagrangeDualExplainer, "explain", cut)
    with pytest.raises(KeyboardInterrupt):
        run_grid(load_grid(folder / "grid.toml"), tmp_path / "out")
    assert not (tmp_path / "out" / TABLE).exists()


def test_more_inputs_are_the_same_grid_and_another_grid_is_refused(finished):
    folder, _ = finished
    grid = load_grid(folder / "grid.toml")
    assert grid.model_copy(update={"inputs": 9}).sha256 == grid.sha256
    other = Grid.model_validate(grid.model_dump() | {"norms": [1]})
    with pytest.raises(lde.InputError, match="another grid"):
        run_grid(other, folder / "out")


def test_the_command(finished, tmp_path):
    folder, _ = finished
    result = CliRunner().invoke(app, ["ablate", str(folder / "grid.toml"), "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    assert "certified" in result.output
    assert (folder / "out" / "ablation.png").stat().st_size > 5000
    assert len(pd.read_csv(folder / "out" / "validity.csv")) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('data = "digits"', 'data = "iris"'), "data"), (("norms = [2]", "norms = [3]"), "norms"), (("norms = [2]", "norms = []"), "at least one"),
        (("chunk = 2", "chnk = 2"), "chnk"), (('"ibp", "crown"', '"cown"'), "cown"), (("inputs = 3", "inputs = 0"), "inputs"),
        (('{ kind = "own" }', '{ kind = "tv" }'), "budget"), (('{ kind = "own" }', '{ kind = "ball", radius = 1.0 }'), "p"),
        (("chunk = 2", "chunk = "), "TOML"), (('methods = ["ibp", "crown"]', 'network = "tanh"\nmethods = ["crown", "dual-network"]'), "ReLUs alone"),
    ],
)  # fmt: skip
def test_mistakes_are_named_in_one_line(change, words, tmp_path):
    path = tmp_path / "grid.toml"
    assert change[0] in SMALL
    path.write_text(SMALL.replace(*change))
    result = CliRunner().invoke(app, ["ablate", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / TABLE).exists()


def test_a_missing_file_is_named(tmp_path):
    result = CliRunner().invoke(app, ["ablate", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "none.toml" in result.output


def test_the_grids_in_the_documentation_load():
    found = sorted((Path(__file__).resolve().parents[1] / "docs" / "ablation").glob("*.toml"))
    assert {load_grid(p).data for p in found} == {"digits", "german_credit", "mnist"}
