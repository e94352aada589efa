"""Several counterfactuals: allowed, flipping, unlike one another, sparse, and whole where the schema says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.semantic import Schema
from formulations.sets import Box
from lde_cvx.data import german_credit
from lde_cvx.models import german_credit_model
from verification.attack import Counterfactual, find_counterfactuals, find_witness


@pytest.fixture(scope="module")
def credit() -> tuple[nn.Module, Schema, torch.Tensor]:
    schema = Schema.from_frame(german_credit().X, immutable=["age", "foreign_worker"])
    trained, _, data = german_credit_model(schema=schema)
    X = torch.tensor(schema.encode(data.X.iloc[trained.test_rows]))
    return trained.model, schema, X[trained.model(X).argmax(1) == 0][:3]


def check(found: list[Counterfactual], model: nn.Module, x: torch.Tensor, norm: Norm) -> None:
    before = model(x[None]).argmax()
    for k, one in enumerate(found):
        assert model(x[None] + torch.tensor(one.delta)).argmax() == one.rival != before
        assert norm.value(one.delta) <= one.upper <= norm.value(one.delta) * (1 + 1e-12)
        assert one.violation <= 1e-9
        for earlier in found[:k]:
            assert earlier.moved[0] in one.held
            assert earlier.moved[0] not in one.moved
            assert set(earlier.moved) != set(one.moved)


@pytest.mark.parametrize("p", [1, 2])
def test_recourse_for_declined_applicants(credit: tuple[nn.Module, Schema, torch.Tensor], p: int) -> None:
    model, schema, X = credit
    for x in X[: 2 if p == 1 else 1]:
        found = find_counterfactuals(model, x, p, schema=schema, count=3)
        assert len(found) == 3
        check(found, model, x, Norm(p))
        for one in found:
            z = x.numpy() + one.delta
            assert not schema.violations(z)
            assert not {"age", "foreign_worker"} & set(one.names)
            assert len(one.moved) <= one.dense
            assert one.relaxed <= 1.2 * one.nearest * (1 + 1e-6)
            assert one.whole
            assert not schema.fractional(z).to_numpy().any()
            assert one.price_of_rounding == pytest.approx(one.upper - one.relaxed)
        nearest = find_witness(model, x[None], p, schema.polytope())
        assert found[0].nearest == pytest.approx(nearest.upper[0])
        assert all(one.upper >= 0.99 * nearest.upper[0] for one in found)  # rounding is a restriction


def test_sparse_where_fewer_columns_will_do() -> None:
    """f = z_0 + 0.9 z_1 + 0.1 Σ z_i − 1: at p = 2 every feature moves; within the stretch two of them do."""
    model = nn.Linear(6, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 6, [1.0, 0.9, 0.1, 0.1, 0.1, 0.1]]))
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.zeros(6).double()
    dense, sparse = (find_counterfactuals(model, x, 2, Box(-3, 3), count=1, stretch=s)[0] for s in (1.0, 1.2))
    assert dense.dense == sparse.dense == len(dense.moved) == 6
    assert set(sparse.moved) == {0, 1}
    assert sparse.upper == pytest.approx(1 / np.hypot(1, 0.9), rel=1e-3)
    two = find_counterfactuals(model, x, 2, Box(-2, 2), count=3, stretch=3.0)
    assert [one.moved for one in two[:2]] == [(0,), (1,)]
    assert len(two) == 2  # without 0 and 1 the others reach 0.8 at most
    check(two, model, x, Norm(2))


def test_nothing_found_is_an_empty_list() -> None:
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    assert find_counterfactuals(model, torch.zeros(3).double(), 2, Box(-1, 1)) == []


def test_errors(credit: tuple[nn.Module, Schema, torch.Tensor]) -> None:
    model, schema, X = credit
    for arguments in ({"count": 0}, {"stretch": 0.5}):
        with pytest.raises(InputError, match="at least 1"):
            find_counterfactuals(model, X[0], 1, **arguments)
    with pytest.raises(InputError, match="61 features"):
        find_counterfactuals(nn.Linear(3, 2), torch.zeros(3), 1, schema=schema)
