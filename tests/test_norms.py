"""Laws of norms: homogeneity, the triangle, duality attained, CVXPY's number."""

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from tests.catalogue import DIM, NORMS

every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())


@every_norm
@given(seed=st.integers(0, 10**6), factor=st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_norm_axioms_and_duality(norm, seed, factor):
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, DIM))
    assert norm.value(factor * u) == pytest.approx(abs(factor) * norm.value(u), rel=1e-12)
    assert norm.value(u + v) <= norm.value(u) + norm.value(v) + 1e-12
    assert u @ v <= norm.value(u) * norm.dual_value(v) * (1 + 1e-12)
    assert np.allclose(norm.value(np.stack([u, v])), [norm.value(u), norm.value(v)])


@every_norm
def test_expression_and_dual_agree_with_cvxpy(norm):
    w = np.random.default_rng(1).normal(size=DIM)
    delta = cp.Variable(DIM)
    problem = cp.Problem(cp.Maximize(w @ delta), [norm.expression(delta) <= 1])
    problem.solve(solver="CLARABEL")
    assert norm.dual_value(w) == pytest.approx(problem.value, rel=1e-6)
    assert norm.value(delta.value) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Norm(3), "p=3"),
        (lambda: Norm("two"), "'two'"),
        (lambda: Norm(2, [1.0, -1.0]), "weights[1]=-1.0"),
        (lambda: Norm(2, [1.0, np.nan]), "weights[1]=nan"),
        (lambda: Norm(2, [1.0, 1.0]).scale(3), "2 weights for 3"),
        (lambda: GroupNorm([[0, 1], [1, 2]]), "exactly once"),
        (lambda: GroupNorm([[0, 1], [3]]), "exactly once"),
        (lambda: GroupNorm([[0], [1]], [1.0]), "1 weights for 2 groups"),
        (lambda: GroupNorm([[0], [1]]).value(np.zeros(3)), "cover 2 features"),
    ],
)
def test_bad_norms_are_named(build, words):
    with pytest.raises(InputError) as caught:
        build()
    assert words in str(caught.value)
