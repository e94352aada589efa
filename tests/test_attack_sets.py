"""Witnesses over sets that are no box: found wherever no certificate says otherwise, inside to 1e-9, and no farther over a larger set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.semantic import Schema
from formulations.sets import Box, ConvexSet, Ellipsoid, Polytope, TotalVariation
from lde_cvx.data import german_credit
from lde_cvx.models import german_credit_model
from tests.digits_net import correct_digits
from verification.attack import find_witness
from verification.branching import branch_radius

Question = tuple[nn.Module, Tensor, ConvexSet, ConvexSet]


def smooth(n: int) -> Question:
    """Changes of an 8×8 digit that keep the brightness and have few edges."""
    model, x, _ = correct_digits(n)
    kept = Box(0, 1) & Polytope(None, None, equal=(np.ones((1, 64)), [0.0]), on="change")
    return model, x, kept & TotalVariation(6.0, (8, 8)), kept & TotalVariation(8.0, (8, 8))


def credit(n: int) -> Question:
    """Applicants within a table's rules; age and foreign-worker status fixed, and then free."""
    schema, free = (Schema.from_frame(german_credit().X, immutable=fixed) for fixed in (["age", "foreign_worker"], []))
    trained, _, data = german_credit_model(schema=schema)
    x = torch.tensor(schema.encode(data.X.iloc[trained.test_rows]))[:n]
    return trained.model, x, schema.polytope(), free.polytope()


def ellipsoid(n: int) -> Question:
    """Digits that are plausible: within a Mahalanobis distance of the mean that most digits keep."""
    model, x, _ = correct_digits(n)
    data = x.numpy()
    root = np.linalg.inv(np.linalg.cholesky(np.cov(data.T) + 0.02 * np.eye(64)))
    radius = float(np.quantile(np.linalg.norm((data - data.mean(0)) @ root.T, axis=1), 0.95))
    return model, x, Ellipsoid(data.mean(0), root, radius), Ellipsoid(data.mean(0), root, 1.2 * radius)


SETS = {"smooth": smooth, "credit": credit, "ellipsoid": ellipsoid}


def measure(kind: str, p: Any, n: int) -> dict[str, float]:
    """found: share with a witness; answered: with one or a certificate that there is none; violation; farther: worst ratio of the larger set's witness."""
    model, x, C, larger = SETS[kind](n)
    small, large = find_witness(model, x, p, C), find_witness(model, x, p, larger)
    lost = np.flatnonzero(~small.found)
    proved = [branch_radius(model, x[i], None, p, C, node_limit=300).lower == np.inf for i in lost]
    both = small.found & (small.upper > 0)
    return {
        "inputs": len(x),
        "found": float(small.found.mean()),
        "answered": float((small.found.sum() + sum(proved)) / len(x)),
        "violation": float(np.nanmax(np.concatenate([small.violation, large.violation]))),
        "farther": float((large.upper[both] / small.upper[both]).max()),
        "often": float((large.upper[both] <= 1.01 * small.upper[both]).mean()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_two_hundred_inputs_are_answered(kind: str, p: Any) -> None:
    found = measure(kind, p, 200)
    print(kind, p, found)
    assert found["inputs"] == 200
    assert found["answered"] >= 0.95
    assert found["violation"] <= 1e-9
    assert found["farther"] <= 1.01


@pytest.mark.parametrize("kind", SETS)
def test_a_few_inputs_are_answered(kind: str) -> None:
    found = measure(kind, "inf", 3)
    assert found["answered"] == 1
    assert found["violation"] <= 1e-9
