"""The tightness bench: one upper bound for all methods, every ratio a ratio, the plot a picture."""

from __future__ import annotations

import math
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.sets import Box
from lde_cvx.bench import tightness
from lde_cvx.bench.networks import Case
from lde_cvx.bench.tightness import ALONE, MARKERS, bench, measure, plot
from lde_cvx.models import mlp


def small(model: nn.Module, d: int = 4) -> Case:
    x = torch.tensor([[0.5, 0.4, 0.6, 0.5], [0.3, 0.5, 0.5, 0.6]], dtype=torch.float64)[:, :d]
    return Case("small", model, x, Box(0, 1), (0, 1), seconds=5.0)


def test_methods_stand_side_by_side(tmp_path: Path) -> None:
    frame = pd.DataFrame(measure(small(mlp((4, 6, 6, 2), seed=1)), 2, "cpu"))
    assert set(frame["method"]) == {"witness", *MARKERS}
    assert frame["upper"].nunique() == 1
    assert frame["ratio"].between(0, 1).all()
    ratio = frame.set_index("method")["ratio"]
    assert ratio[ALONE] <= ratio["crown"] + 1e-3, "the same library with the true set"
    assert ratio["crown"] < ratio["branching"] - 1e-3
    assert min(ratio["branching"], ratio["exact"]) > 1 - 1e-4
    plot(frame, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_branching_is_left_out_where_it_cannot_be_used() -> None:
    """A network that nothing flips, too: its ratio is no number, and nothing fails."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double().requires_grad_(False)
    net[-1].bias += torch.tensor([9.0, 0.0])
    rows = measure(small(net), "inf", "cpu")
    assert all(math.isnan(row["ratio"]) for row in rows)
    methods = {row["method"] for row in rows}
    assert "crown" in methods
    assert not methods & {"branching", "exact"}


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in its second norm, then started again: the first is not measured twice, the table is that of an uncut run but for the seconds."""
    case = replace(small(mlp((3, 4, 2), seed=1), 3), norms=("inf", 2))
    monkeypatch.setattr(tightness, "cases", lambda *_, **__: iter([case]))
    asked: list[object] = []

    def cut(case: Case, norm: float | str, device: str, **kwargs: object) -> list[dict[str, object]]:
        asked.append(norm)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(case, norm, device)

    monkeypatch.setattr(tightness, "measure", cut)
    console = Console(quiet=True)
    assert set(bench(tmp_path, quick=True, console=console)["norm"]) == {Norm.of("inf").label}
    with (tmp_path / "tightness.csv").open("a", encoding="utf-8") as file:
        file.write("small,ℓ2,ib")  # what a killed run was writing
    whole = bench(tmp_path, quick=True, console=console)
    assert asked == ["inf", 2, 2]
    assert set(whole["norm"]) == {Norm.of("inf").label, Norm.of(2).label}
    assert not whole.duplicated(["network", "norm", "method"]).any()
    fresh = bench(tmp_path / "fresh", quick=True, console=console)
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), fresh.drop(columns="seconds"), rtol=1e-6)
    with pytest.raises(InputError, match="another bench"):
        bench(tmp_path, quick=False, console=console)


def test_a_search_that_answers_an_interrupt_leaves_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGINT during the second norm's witnesses, which the search answers with what it has: the run ends there, and the next one measures that norm."""
    case = replace(small(mlp((3, 4, 2), seed=1), 3), norms=("inf", 2))
    monkeypatch.setattr(tightness, "cases", lambda *_, **__: iter([case]))
    real, asked = tightness.find_witness, []

    def cut(model: nn.Module, x: torch.Tensor, norm: float | str, *rest: object, **kwargs: object) -> object:
        asked.append(norm)
        if len(asked) == 2:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return real(model, x, norm, *rest, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(tightness, "find_witness", cut)
    console = Console(width=200)
    assert set(bench(tmp_path, quick=True, console=console)["norm"]) == {Norm.of("inf").label}
    assert "interrupted: the table holds what was measured; the same command goes on from there" in capsys.readouterr().out
    whole = bench(tmp_path, quick=True, console=console)
    assert asked == ["inf", 2, 2]
    fresh = bench(tmp_path / "fresh", quick=True, console=console)
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), fresh.drop(columns="seconds"), rtol=1e-6)
