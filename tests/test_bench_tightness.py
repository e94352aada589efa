"""The tightness bench: one upper bound for all methods, every ratio a ratio, the plot a picture."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from formulations.sets import Box
from lde_cvx.bench.networks import Case
from lde_cvx.bench.tightness import ALONE, MARKERS, measure, plot
from lde_cvx.models import mlp


def small(model: nn.Module) -> Case:
    x = torch.tensor([[0.5, 0.4, 0.6, 0.5], [0.3, 0.5, 0.5, 0.6]], dtype=torch.float64)
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
