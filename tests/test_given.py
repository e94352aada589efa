"""What callers hand over wrongly: one line that names the value, before anything is computed; and nothing is rounded or read as something else in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lde_cvx as lde
from verification.attack import Budget

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
X = torch.full((4,), 0.3)


class Wrapped(nn.Module):
    """NET with something done before and after."""

    def __init__(self, after: Callable[[Tensor], Any], before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.net, self.after, self.before = NET, after, before

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


def refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(lde.InputError, match=words) as found:
        call()
    assert "\n" not in str(found.value)


SETS: list[tuple[Callable[[], Any], str]] = [
    (lambda: lde.Box("a", 1), "no array of real numbers"),
    (lambda: lde.Box(1j, 2), "no array of real numbers"),
    (lambda: lde.Box(torch.zeros(4, requires_grad=True), 1), "detached"),
    (lambda: lde.LpBall(2, None), "radius=None"),
    (lambda: lde.TotalVariation("a", (4,)), "budget='a'"),
    (lambda: lde.TotalVariation(1, 4), "shape=4"),
    (lambda: lde.TotalVariation(1, (2.5, 2)), r"shape\[0\]=2.5 is not a whole number"),
    (lambda: lde.Polytope([[1, 2], [3]], [1, 2]), "no array of real numbers"),
    (lambda: lde.Polytope(np.ones((1, 2, 2)), [1]), r"shape \(1, 2, 2\)"),
    (lambda: lde.Polytope(None, None, equal=3), "equal=3 is no pair"),
    (lambda: lde.Ellipsoid.from_data(np.full((5, 2), np.nan), 1), "not finite"),
    (lambda: lde.Ellipsoid.from_data(np.ones(5), 1), r"shape \(5,\)"),
    (lambda: lde.Subspace("a"), "no array of real numbers"),
    (lambda: lde.Frozen([1.5], 4), r"features\[0\]=1.5 is not a whole number"),
    (lambda: lde.Frozen([True, False, True, False], 4), "np.flatnonzero turns a mask into positions"),
    (lambda: lde.Frozen("a", 4), "'a' is not a whole number"),
    (lambda: lde.Simplex(0), "dim=0"),
    (lambda: lde.Simplex(2.5), "dim=2.5 is not a whole number"),
    (lambda: lde.Simplex(-2), "dim=-2"),
    (lambda: lde.GroupNorm([[0.5], [1]]), r"0.5 is not a whole number"),
    (lambda: lde.GroupNorm("ab"), "is text"),
    (lambda: lde.min_norm(torch.ones(2, 4, requires_grad=True), 1.0), "detached"),
    (lambda: lde.Decision.classification(0.5, 3), "winner=0.5 is not a whole number"),
    (lambda: lde.Decision.threshold(0, np.nan, 3), "tau=nan is not finite"),
    (lambda: lde.Decision.pair(0, 1, 3, epsilon=np.nan), "epsilon=nan is not finite"),
]


@pytest.mark.parametrize(("call", "words"), SETS)
def test_sets_norms_and_decisions_read_numbers_only(call: Callable[[], Any], words: str) -> None:
    refused(call, words)


@pytest.mark.parametrize("x", ["hello", None, [[1, 2], [3]], {"a": 1}, ["1", "2", "3", "4"], np.zeros(4, dtype=complex), torch.zeros(4, dtype=torch.complex64),
                               torch.zeros(4, device="meta")])  # fmt: skip
def test_inputs_that_hold_no_real_numbers_are_refused(x: Any) -> None:
    for ask in (
        lde.LagrangeDualExplainer(NET, method="linear").explain,
        lambda v: lde.certified_radius(NET, v),
        lambda v: lde.find_witness(NET, v),
    ):
        refused(lambda ask=ask: ask(x), "not a number")  # type: ignore[misc]


@pytest.mark.parametrize(
    "x", [X.bfloat16(), X.half(), X.to_sparse(), X.clone().requires_grad_(), X.numpy().astype(object), X.repeat(2)[::2]]
)
def test_inputs_of_every_kind_of_real_numbers_are_read(x: Any) -> None:
    assert np.isfinite(lde.certified_radius(NET, x).lower).all()
    assert np.isfinite(lde.find_witness(NET, x).upper).all()


MODELS: list[tuple[nn.Module, str]] = [
    (Wrapped(lambda y: y, lambda x: x - x.mean(0, keepdim=True)), "in other company"),
    (Wrapped(lambda y: y + torch.rand_like(y)), "in other company"),
    (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)), "company|value per channel"),
    (Wrapped(lambda y: (y, y)), "tuple"),
    (Wrapped(lambda y: {"logits": y}), "dict"),
    (Wrapped(lambda y: y[:, 0]), r"\(n, outputs\)"),
    (Wrapped(lambda y: y.float()), "float32"),
    (Wrapped(lambda y: y * torch.nan), "finite|wrongly"),
    (torch.jit.script(NET), "plain module"),
    (nn.Linear(4, 2, device="meta"), "no storage"),
]


@pytest.mark.parametrize(("model", "words"), MODELS)
def test_models_that_are_no_function_of_one_input_are_refused(model: nn.Module, words: str) -> None:
    """A bound is about f(x); what looks at the batch, draws, casts or answers something else has none."""
    for ask in (lde.certified_radius, lde.find_witness, lambda m, x: lde.LagrangeDualExplainer(m, method="linear").explain(x)):
        refused(lambda ask=ask: ask(model, X), words)  # type: ignore[misc]


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"target": 1.5}, "target=1.5"), ({"target": [0]}, r"target=\[0\]"), ({"target": True}, "target=True"), ({"time_limit": "3"}, "time_limit='3'"),
    ({"device": "gpu7"}, "device='gpu7'"), ({"jobs": 1.5}, "jobs=1.5"), ({"seed": "a"}, "seed='a'"), ({"decision": "x"}, "decision='x'"),
    ({"feature_names": ["a"]}, "1 names for 4 features"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_of_the_explainer_are_checked(options: dict[str, Any], words: str) -> None:
    refused(lambda: lde.LagrangeDualExplainer(NET, method="linear", **options).explain(X), words)


CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: lde.certified_radius(NET, X, max_passes=-1), "max_passes=-1"),
    (lambda: lde.certified_radius(NET, X, tolerance=np.nan), "tolerance=nan"),
    (lambda: lde.certified_radius(NET, X, seconds=-1), "seconds=-1"),
    (lambda: lde.certified_radius(NET, X, upper=[1.0, 2.0]), r"shape \(2,\) for 1 inputs"),
    (lambda: lde.certified_radius(NET, X, 2, "box"), "constraints: got str"),  # type: ignore[arg-type]
    (lambda: lde.find_witness(NET, X, 2, "box"), "constraints: got str"),  # type: ignore[arg-type]
    (lambda: lde.find_witness(NET, X, budget=3), "budget=3"),  # type: ignore[arg-type]
    (lambda: lde.find_witness(NET, X, seed=0.5, budget=Budget(10, 10)), "seed=0.5"),  # type: ignore[arg-type]
    (lambda: lde.LagrangeDualExplainer(NET, method="linear").attribute(X[None], target=torch.tensor([1.7])), "1.7"),
    (lambda: lde.LagrangeDualExplainer(NET, method="linear").attribute(X[None], baselines=float("nan")), "not finite"),
    (lambda: lde.LagrangeDualExplainer(NET, method="linear").explain(X).contributions(np.nan), "not finite"),
]


@pytest.mark.parametrize(("call", "words"), CALLS)
def test_arguments_of_searches_are_checked(call: Callable[[], Any], words: str) -> None:
    refused(call, words)
