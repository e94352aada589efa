"""The conjugate dual against the Lagrange dual, proximal operators against their definition, and Moreau's identities."""

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.fenchel import fenchel_min_norm
from formulations.norms import GroupNorm, Norm
from formulations.programs import min_norm
from formulations.prox import project_ball, project_dual_ball, prox_norm
from formulations.sets import Box, TotalVariation
from tests.catalogue import DIM, NORMS, SETS, start_for

PIECED = {k: C for k, C in SETS.items() if "own set" not in k}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())


def program(C, seed=0):
    rng = np.random.default_rng(seed)
    x0 = start_for(C)
    z = C.relative_to(x0).project(rng.normal(size=DIM))
    a = rng.normal(size=DIM)
    a *= -np.sign(a @ z)
    return a, 0.7 * abs(a @ z), x0


@pytest.mark.parametrize(
    ("name", "norm"), [*((n, NORMS["l2"]) for n in PIECED), *((n, NORMS["groups weighted"]) for n in list(PIECED)[::3])], ids=str
)
def test_conjugate_dual_is_the_lagrange_dual(name, norm):
    """Values, verified bounds and conjugate objectives of both roads agree with min_norm to 1e-6."""
    C = PIECED[name]
    a, b, x0 = program(C)
    lagrange = min_norm(a, b, norm, C, x0)[0]
    for method in ("conic", "splitting") if norm.p == 2 else ("splitting",):
        s = fenchel_min_norm(a, b, norm, C, x0, method=method, tolerance=1e-7)
        assert s.value == pytest.approx(lagrange.value, abs=1e-6)
        assert s.lower == pytest.approx(lagrange.lower, abs=1e-6)
        assert s.dual == pytest.approx(lagrange.value, abs=1e-6)
        assert s.lower <= lagrange.value + 1e-9
        assert s.violation <= 1e-6
        assert s.multipliers.keys() == lagrange.multipliers.keys()


@every_norm
@pytest.mark.parametrize("C", [SETS["tv 2-d"], SETS["ball of groups"]], ids=["tv", "groups"])
def test_every_norm_over_tv_and_groups(C, norm):
    a, b, x0 = program(C, seed=1)
    lagrange = min_norm(a, b, norm, C, x0)[0]
    s = fenchel_min_norm(a, b, norm, C, x0, tolerance=5e-7)
    assert s.value == pytest.approx(lagrange.value, abs=1e-6)
    assert s.lower == pytest.approx(lagrange.value, abs=1e-6)


def test_an_image_sized_program():
    rng = np.random.default_rng(2)
    x0 = rng.uniform(size=64)
    C = Box(0, 1) & TotalVariation(4.0, (8, 8))
    a = rng.normal(size=64)
    lagrange = min_norm(a, 1.0, GroupNorm(np.arange(64).reshape(16, 4)), C, x0)[0]
    s = fenchel_min_norm(a, 1.0, GroupNorm(np.arange(64).reshape(16, 4)), C, x0, tolerance=1e-7)
    assert s.value == pytest.approx(lagrange.value, abs=1e-6)
    assert s.lower == pytest.approx(lagrange.lower, abs=1e-6)


def test_a_program_without_a_point_is_proved_so():
    s = fenchel_min_norm(np.ones(4), 10.0, 2, Box(-1, 1, on="change"), iterations=2000)
    assert s.lower == np.inf


def test_several_rows_fall_together():
    rng = np.random.default_rng(3)
    A, b = rng.normal(size=(3, DIM)), np.array([0.3, 0.2, 0.5])
    s = fenchel_min_norm(A, b, 2, Box(-2, 2, on="change"))
    assert s.value == pytest.approx(min_norm(A[None], b[None], 2, Box(-2, 2, on="change"))[0].value, abs=1e-6)
    assert (A @ s.delta + b <= 1e-6).all()


# ---- proximal operators -------------------------------------------------------------------------------------------------------


@every_norm
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.1, 1.0, 10.0]), radius=st.sampled_from([0.0, 0.3, 2.0]))
def test_projections_satisfy_their_inequality(norm, seed, size, radius):
    """x = Π(v) lies in the ball and (v − x)·(z − x) ≤ 0 for every z of the ball, for the ball and its dual."""
    rng = np.random.default_rng(seed)
    v = size * rng.normal(size=DIM)
    for project, length in ((project_ball, norm.value), (project_dual_ball, norm.dual_value)):
        x = project(norm, v, radius)
        assert length(x) <= radius * (1 + 1e-9) + 1e-12
        Z = rng.normal(size=(50, DIM))
        Z = np.concatenate([Z, (v - x)[None] + 1e-9])
        Z *= radius / length(Z)[:, None]
        assert ((Z - x) @ (v - x)).max() <= 1e-7 * (1 + size * size)


@every_norm
def test_prox_minimises(norm):
    rng = np.random.default_rng(4)
    for t in (0.1, 1.0):
        v = rng.normal(size=DIM)
        z = cp.Variable(DIM)
        least = cp.Problem(cp.Minimize(t * norm.expression(z) + 0.5 * cp.sum_squares(z - v))).solve(solver="CLARABEL")
        x = prox_norm(norm, v, t)
        assert t * norm.value(x) + 0.5 * (x - v) @ (x - v) <= least + 1e-9 + 1e-9 * abs(least)
        assert x == pytest.approx(z.value, abs=1e-3)


@every_norm
def test_moreau(norm):
    """v = prox(v) + Π_dual(v), and the two parts are dual: prox·Π = t‖prox‖."""
    v = np.random.default_rng(5).normal(size=DIM)
    p, w = prox_norm(norm, v, 0.4), project_dual_ball(norm, v, 0.4)
    assert p + w == pytest.approx(v)
    assert p @ w == pytest.approx(0.4 * norm.value(p), abs=1e-9)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"constraints": SETS["spectral (own set)"]}, "CVXPY constraints"),
        ({"method": "newton"}, "not one of"),
        ({"b": [1.0, 2.0]}, "one entry of b"),
        ({"a": [np.nan] * DIM}, "finite rows"),
        ({"constraints": Box(0, 1)}, "pass x0"),
        ({"norm": Norm(2, [1.0, 2.0])}, "2 weights for 12"),
    ],
)
def test_bad_input(how, words):
    arguments = {"a": np.ones(DIM), "b": 1.0} | how
    with pytest.raises(InputError, match=words):
        fenchel_min_norm(arguments.pop("a"), arguments.pop("b"), **arguments)
