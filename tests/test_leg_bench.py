"""`lde bench leg`: all methods solve the same program, and every gap in the table is ours to claim."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from formulations.leg import program
from lde_cvx.bench import leg as bench


@pytest.mark.parametrize("numba", [True, False])
def test_every_method_solves_the_same_program(numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if numba:
        pytest.importorskip("numba")
    for module in (bench, program):
        monkeypatch.setattr(module, "available", lambda: numba)
    frame = bench.measure(8, time_limit=30.0, path=True)
    ours = ["min cuts", "network simplex"] if numba else ["min cuts"]
    assert list(frame["method"]) == [*ours, "sparse HiGHS", "Clarabel", *ours, f"path of 50, {ours[-1]}"]
    assert (frame["relative gap"] <= 1e-5).all()
    assert (frame["lower"] <= frame["objective"] + 1e-12).all()
    for _, solved in frame[:-1].groupby("L / L_max"):
        assert solved["objective"].max() == pytest.approx(solved["objective"].min(), rel=1e-6)
    assert list(frame["L / L_max"].unique()) == ["0.1", "0.02", "1 … 0.02"]
    assert frame["over one solve"][: len(ours)].min() == 1.0


def test_rivals_are_left_out_where_they_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_LIMIT", {"highs": 5, "clarabel": 6})
    monkeypatch.setattr(bench, "available", lambda: False)
    assert list(bench.measure(6, time_limit=30.0, path=False)["method"]) == ["min cuts", "Clarabel"]


def test_the_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pd.DataFrame({"side": [5], "method": ["min cuts"], "CPU s": [0.1]})
    monkeypatch.setattr(bench, "measure", lambda side, **_: rows.assign(side=side))
    frame = bench.bench(tmp_path, quick=True)
    assert list(frame["side"]) == [10, 14]
    assert list(pd.read_csv(tmp_path / "leg.csv")["side"]) == [10, 14]
