"""Settled certificates claim what level B derives again, and no more: raised rows come down, honest ones stay, nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.sets import Box
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.model_files import checker_network, save_model
from tests.certificate_example import rehashed
from tests.checker_example import COVERED, VALID, seeded
from verification.certificate import Certificate
from verification.checker import check_record


def explained(name: str, method: str = "crown", norm: Any = 2, **more: Any) -> tuple[nn.Module, torch.Tensor, Certificate]:
    build, shape = COVERED[name]
    net = seeded(build, shape).requires_grad_(False)
    x = torch.tensor(np.random.default_rng(0).normal(size=shape) * 0.3)
    explainer = LagrangeDualExplainer(net, norm=norm, constraints=Box(-0.6, 0.6, on="change"), method=method, **more)
    return net, x, explainer.explain(x).certificate


@pytest.mark.parametrize("name", ["mlp", "leaky", "tanh", "conv", "normalized"])
def test_rows_that_say_too_much_come_down_to_what_is_derived(name: str, tmp_path: Path) -> None:
    net, x, honest = explained(name)
    save_model(net, tmp_path / "m.safetensors")
    network = checker_network(net, tuple(x.shape))
    assert network is not None
    bold = copy.deepcopy(honest.record)
    for rival in bold["rivals"]:
        for cell in rival["cells"]:  # a level A that knows no network lets a little pass
            cell["b"] = [(float.fromhex(v) * (1 + 1e-9) + 1e-9).hex() for v in cell["b"]]
    raised = Certificate(rehashed(bold))
    assert not check_record(raised.record, level="B", model=tmp_path / "m.safetensors").ok
    settled = raised.settled(network)
    assert check_record(settled.record, level="B", model=tmp_path / "m.safetensors").status is VALID
    assert settled.lower <= honest.lower * (1 + 1e-6)
    assert settled.lower >= honest.lower * (1 - 1e-6)
    same = {k: v for k, v in settled.record.items() if k not in ("rivals", "lower", "sha256")}
    assert same == {k: v for k, v in raised.record.items() if k not in ("rivals", "lower", "sha256")}
    assert settled.settled(network) is settled


def test_honest_certificates_stay_as_they_are() -> None:
    net, x, honest = explained("mlp")
    network = checker_network(net, tuple(x.shape))
    assert network is not None
    assert honest.settled(network) is honest
    assert explained("mlp", rederive=True)[2].record["rivals"] == honest.record["rivals"]


def test_networks_that_cancel_beyond_float64_publish_what_holds_of_real_numbers(tmp_path: Path) -> None:
    """Two halves that cancel but for a rest that float64 rounds away in part: rows of the bound pass are off, settled ones are derived outward-rounded."""
    beyond = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double().requires_grad_(False)
        half = rng.normal(size=(3, 3)) * 1e7
        net[0].weight[:] = torch.tensor(np.concatenate([half, half]))
        net[0].bias[:] = torch.tensor(np.concatenate([np.zeros(3), rng.normal(size=3)]))
        net[2].weight[:] = torch.tensor([[1.0, 1, 1, -1, -1, -1], [0.0] * 6])
        net[2].bias[:] = torch.tensor([4.0, 0.0])
        save_model(net, tmp_path / "m.safetensors")
        network, x = checker_network(net, (3,)), torch.tensor(rng.normal(size=3))
        assert network is not None
        try:
            loose = LagrangeDualExplainer(net, norm="inf", constraints=Box(-1, 1, on="change"), target=1).explain(x).certificate
        except RuntimeError:  # an honest refusal: the row was above the network at x0
            continue
        settled = loose.settled(network)
        assert check_record(settled.record, level="B", model=tmp_path / "m.safetensors").status is VALID, seed
        assert settled.lower <= loose.lower
        beyond += settled is not loose
    assert beyond


def test_models_without_a_file_form_are_left_alone() -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(
                x, torch.tensor([[1.0, 1, 1], [-1, -1, 0]], dtype=x.dtype), torch.tensor([0.0, 1.0], dtype=x.dtype)
            )

    assert checker_network(Own(), (3,)) is None
    assert LagrangeDualExplainer(Own(), rederive=True).explain(torch.zeros(3, dtype=torch.float64)).lower > 0


def test_a_second_order_explanation_has_the_first_orders_certificate(tmp_path: Path) -> None:
    net, _, plain = explained("tanh")
    save_model(net, tmp_path / "m.safetensors")
    quadratic = explained("tanh", order=2)[2]
    assert quadratic.record["rivals"] == plain.record["rivals"]
    assert check_record(quadratic.record, level="B", model=tmp_path / "m.safetensors").status is VALID
