"""The bridge to quantus: what a metric of it is handed, ours beside theirs where both have one, and one line for whatever goes wrong."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import DependencyError, InputError
from lde_cvx import metrics
from lde_cvx.attribution import values

X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
MASKS = torch.zeros(4, 1, 6, 6, dtype=torch.bool)
MASKS[:, :, 1:4, 1:4] = True


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))


class Slopes:
    """|∂f/∂x|, written out so that captum is not needed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def attribute(self, inputs: torch.Tensor, target: Any = None) -> torch.Tensor:
        x = inputs.float().detach().requires_grad_(True)
        y = self.model(x)
        chosen = y.argmax(1) if target is None else torch.as_tensor(target)
        (g,) = torch.autograd.grad(y.gather(1, chosen[:, None]).sum(), x)
        return g.abs()

    def explain(self, x0: Any) -> Any:
        raise NotImplementedError


class Metric:
    """What the bridge needs of quantus's base class."""

    def __init__(self, **settings: Any) -> None:
        if "wrong" in settings:
            raise TypeError("no such\nsetting")
        self.settings = settings


class Handed(Metric):
    """Answers 1 where all that it was handed fits together."""

    def __call__(
        self, *, model: nn.Module, x_batch: Any, y_batch: Any, a_batch: Any, s_batch: Any, explain_func: Any, **_: Any
    ) -> list[float]:
        decided = values(model, torch.as_tensor(x_batch)).argmax(1).numpy()
        again = explain_func(model=model, inputs=x_batch, targets=y_batch, device=None)
        same = np.isclose(again, a_batch, atol=1e-6).reshape(len(x_batch), -1).all(1)
        return list(((decided == y_batch) & same & s_batch.reshape(len(x_batch), -1).any(1)).astype(float))


class Total(Metric):
    def __call__(self, **_: Any) -> float:
        return 1.0


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quantus", SimpleNamespace(Metric=Metric, Handed=Handed, Total=Total, number=3))  # type: ignore[arg-type]


def test_a_metric_is_handed_the_same_network_maps_and_targets(standing_in: None) -> None:
    model = net()
    assert (metrics.quantus_metric("Handed", Slopes(model), model, X, masks=MASKS) == 1).all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Metric", {}, "no metric 'Metric'"),
        ("number", {}, "no metric 'number'"),
        ("Other", {}, "no metric 'Other'"),
        ("Total", {}, "one number per input"),
        ("Handed", {"wrong": 1}, "quantus.Handed: no such setting"),
        ("Handed", {"target": 7}, "target=7"),
    ],
)
def test_what_goes_wrong_is_one_line(standing_in: None, name: str, settings: dict[str, Any], message: str) -> None:
    model = net()
    with pytest.raises((InputError, RuntimeError), match=message) as caught:
        metrics.quantus_metric(name, Slopes(model), model, X, maps=Slopes(model).attribute(X), masks=MASKS, **settings)
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "quantus", None)
    with pytest.raises(DependencyError, match=r"pip install 'lde-cvx\[quantus\]'"):
        metrics.quantus_metric("Sparseness", Slopes(net()), net(), X)


def test_ours_and_theirs_agree_where_both_have_the_metric() -> None:
    pytest.importorskip("quantus")
    model = net()
    maps = Slopes(model).attribute(X)
    theirs = {k: metrics.quantus_metric(k, Slopes(model), model, X, masks=MASKS) for k in ("PointingGame", "RelevanceMassAccuracy")}
    np.testing.assert_array_equal(theirs["PointingGame"], metrics.pointing_game(maps, MASKS))
    np.testing.assert_allclose(theirs["RelevanceMassAccuracy"], metrics.relevance_mass(maps, MASKS), rtol=1e-5)
    assert (metrics.quantus_metric("MaxSensitivity", Slopes(model), model, X, nr_samples=3) >= 0).all()
