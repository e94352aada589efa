"""Laws that every convex set obeys, in one table of sets × laws."""

from functools import lru_cache

import cvxpy as cp
import numpy as np
import pytest

from formulations.errors import InputError
from formulations.pieces import BoxPiece, CustomPiece
from formulations.sets import Box, Ellipsoid, Frozen, LpBall, Polytope, Simplex, Subspace, TotalVariation
from tests.catalogue import DIM, SETS, start_for

DIRECTIONS = 4
every_set = pytest.mark.parametrize("C", SETS.values(), ids=SETS.keys())


def by_cvxpy(C, objective):
    z = cp.Variable(DIM)
    problem = cp.Problem(objective(z), C.constraints(z))
    problem.solve(solver="CLARABEL")
    return problem.value, z.value


@lru_cache
def members(C):
    """Four points of C: projections of random points, by CVXPY alone."""
    rng, n = np.random.default_rng(1), 4
    return [by_cvxpy(C, lambda z, v=v: cp.Minimize(cp.sum_squares(z - v)))[1] for v in 2 * rng.normal(size=(n, DIM))]


@every_set
def test_support_is_the_maximum(C):
    for a in np.random.default_rng(2).normal(size=(DIRECTIONS, DIM)):
        expected, _ = by_cvxpy(C, lambda z, a=a: cp.Maximize(a @ z))
        assert C.support(a) == pytest.approx(expected, abs=1e-6, rel=1e-6)


@every_set
def test_support_is_sublinear(C):
    rng = np.random.default_rng(3)
    for a, b in rng.normal(size=(2, 2, DIM)):
        sa, sb, sab = C.support(a), C.support(b), C.support(a + b)
        assert sab <= sa + sb + 1e-6 or np.isinf(sa + sb)
        assert C.support(2.5 * a) == pytest.approx(2.5 * sa, rel=1e-6, abs=1e-6)
    assert C.support(np.zeros(DIM)) == pytest.approx(0.0, abs=1e-8)


@every_set
def test_projection_is_nearest(C):
    inside = members(C)
    for v in 2 * np.random.default_rng(4).normal(size=(DIRECTIONS, DIM)):
        p = C.project(v)
        assert C.contains(p, 1e-6)
        assert max((v - p) @ (z - p) for z in inside) <= 1e-5  # the variational inequality
        _, q = by_cvxpy(C, lambda z, v=v: cp.Minimize(0.5 * cp.sum_squares(z - v)))
        assert np.linalg.norm(v - p) == pytest.approx(np.linalg.norm(v - q), abs=1e-6)
        assert np.linalg.norm(C.project(p) - p) <= 1e-5


@every_set
def test_contains_what_its_constraints_allow(C):
    for z in members(C):
        assert C.contains(z, 1e-6)
    far = 40.0 * np.random.default_rng(5).normal(size=DIM)
    z = cp.Variable(DIM)
    distance = cp.Problem(cp.Minimize(cp.norm(z - far, "inf")), C.constraints(z)).solve(solver="CLARABEL")
    assert C.contains(far) == (distance < 1e-6)


@every_set
def test_bounding_box_holds_the_set(C):
    lo, hi = C.bounding_box(DIM)
    for z in members(C):
        assert (z >= lo - 1e-6).all()
        assert (z <= hi + 1e-6).all()


@every_set
def test_relative_to_commutes(C):
    x0 = start_for(C)
    R = C.relative_to(x0)
    assert R.on == "change"
    shift = x0 if C.on == "input" else np.zeros(DIM)
    if C.on != "mixed":
        for a in np.random.default_rng(6).normal(size=(2, DIM)):
            expected = C.support(a) - shift @ a
            assert R.support(a) == pytest.approx(expected, abs=1e-5, rel=1e-6)
            assert np.allclose(R.project(a), C.project(a + shift) - shift, atol=1e-5)
    assert R.contains(np.zeros(DIM), 1e-6) or C.on == "change"


@every_set
def test_intersection_lies_in_both(C):
    other = LpBall(2, 1.0)
    both = C.relative_to(start_for(C)) & other
    for v in np.random.default_rng(7).normal(size=(2, DIM)):
        p = both.project(v)
        assert other.contains(p, 1e-6)
        assert C.relative_to(start_for(C)).contains(p, 1e-6)


@every_set
def test_any_multipliers_bound_every_member(C):
    """y·z ≤ σ on the set, for random multipliers of every piece."""
    rng = np.random.default_rng(8)
    inside = members(C)
    for part in C.parts(DIM):
        if isinstance(part.piece, BoxPiece | CustomPiece):
            continue
        for _ in range(10):
            y, sigma = part.piece.dual(rng.normal(size=part.piece.multiplier_shape))
            assert max(y @ z for z in inside) <= sigma + 1e-5


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Box([0, 1.0], [1, 0.0]), "lower[1]=1.0 exceeds upper[1]=0.0"),
        (lambda: Box([0, np.nan], 1), "lower[1]=nan"),
        (lambda: Box([0, 0], [1, 1, 1]), "2 entries and upper has 3"),
        (lambda: Box(0, 1, on="output"), "on='output'"),
        (lambda: LpBall(2, -1.0), "radius=-1.0"),
        (lambda: LpBall(3, 1.0), "p=3"),
        (lambda: LpBall(2, np.inf), "radius=inf"),
        (lambda: TotalVariation(-2.0, (3, 4)), "budget=-2.0"),
        (lambda: TotalVariation(1.0, (2, 3, 4, 5)), "shape=(2, 3, 4, 5)"),
        (lambda: Polytope(np.ones((2, 3)), [1.0]), "2 rows"),
        (lambda: Polytope(np.ones((2, 3)), [1.0, np.inf]), "[1]=inf"),
        (lambda: Polytope(np.ones((2, 3)), [1.0, 1.0], equal=(np.ones((1, 4)), [0.0])), "3 columns and E has 4"),
        (lambda: Polytope(None, None), "no rows"),
        (lambda: Ellipsoid(np.zeros(3), np.eye(4), 1.0), "4 columns"),
        (lambda: Ellipsoid.from_data(np.ones((5, 2)), 1.0), "column 0 is constant"),
        (lambda: Subspace(np.zeros((2, 3))), "every direction is zero"),
        (lambda: Frozen([5], 3), "feature 5"),
        (lambda: Simplex(3, -1.0), "total=-1.0"),
        (lambda: Box(0, 1).bounding_box(), "call bounding_box(dim)"),
        (lambda: LpBall(2, 1.0, center=[0, 0]) & Box([0, 0, 0], 1), "[2, 3]"),
        (lambda: (Box(0, 1) & LpBall(2, 1.0)).project(np.zeros(3)), "relative_to(x0)"),
        (lambda: TotalVariation(1.0, (3,)).support(np.zeros(4)), "3 dimensions, the data has 4"),
        (lambda: (Box(0, 1, on="change") & Box(2, 3, on="change")).project(np.zeros(3)), "empty"),
    ],
)  # fmt: skip
def test_bad_sets_are_named(build, words):
    with pytest.raises(InputError) as caught:
        build()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_numbered():
    C = Box(0, 1) & Box(-1, 1, on="change") & LpBall(2, 1.0) & Box(0, 2, name="mine")
    assert C.names == ["box", "box2", "ball", "mine"]


def test_ellipsoid_from_data_measures_mahalanobis():
    X = np.random.default_rng(9).normal(size=(20_000, 3)) @ np.array([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.2]])
    E = Ellipsoid.from_data(X, 2.0)
    assert np.mean([E.distance(x) ** 2 for x in X]) == pytest.approx(3.0, rel=0.05)
    assert E.contains(X.mean(0))
    assert not E.contains(X.mean(0) + 50)
