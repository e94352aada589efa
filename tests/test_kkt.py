"""KKT diagnosis: residuals vanish at solutions and not elsewhere, λ's uniqueness against one-sided derivatives, Slater, and the flags' meaning."""

import numpy as np
import pytest

from formulations.errors import InputError
from formulations.kkt import PriceFlag, diagnose
from formulations.norms import GroupNorm, Norm
from formulations.prices import Level, one_sided_prices
from formulations.programs import MinNormProgram, min_norm, relative_parts
from formulations.quadratic import QuadraticModel, min_norm_quadratic, s_lemma
from formulations.sets import Box, Frozen, LpBall, Polytope, TotalVariation
from formulations.slater import slater_room
from formulations.solution import Solution
from tests.catalogue import DIM, NORMS, SETS, start_for

PIECED = {k: C for k, C in SETS.items() if "own set" not in k}


def solved(C, norm, seed=0, rows=1):
    rng = np.random.default_rng(seed)
    x0 = start_for(C)
    z = C.relative_to(x0).project(rng.normal(size=DIM))
    A = rng.normal(size=(rows, DIM))
    A *= -np.sign(A @ z)[:, None]
    b = 0.7 * np.abs(A @ z)
    parts = tuple(p.at(0) for p in relative_parts(C, DIM, x0))
    program = MinNormProgram(norm, parts, DIM, rows=rows)
    return program, parts, A, b, program.solve(A, b, parts)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
@pytest.mark.parametrize("name", list(PIECED)[::2])
def test_solutions_pass_and_uniqueness_is_what_the_derivatives_say(name, norm):
    """At a solution residuals vanish; λ is called a price exactly where left and right derivative agree (where neither is near the tolerance)."""
    program, parts, A, b, s = solved(PIECED[name], norm)
    d = diagnose(s, norm, A, b, parts)
    assert PriceFlag.NOT_STATIONARY not in d.flags
    assert d.stationarity <= 1e-4
    assert d.complementarity <= 1e-4
    assert list(d.active["margin"]) == [0]
    price = one_sided_prices(program, A, b, parts, s, Level(-1), step=1e-5)
    if d.independence[0] > 1e-2:
        assert not price.degenerate
    if price.degenerate:
        assert not d.is_price


@pytest.mark.parametrize("norm", [NORMS["l2"], NORMS["l1"], NORMS["linf"], NORMS["groups"]], ids=["l2", "l1", "linf", "groups"])
def test_other_points_and_multipliers_fail(norm):
    _, parts, A, b, s = solved(SETS["tv 2-d"], norm)
    moved = Solution(s.status, s.value, s.lower, 1.1 * s.delta, s.multipliers, s.prices, s.duals, s.residuals, s.solver, 0.0)
    assert diagnose(moved, norm, A, b, parts, slater=False).complementarity > 1e-3
    halved = {"margin": 0.5 * s.multipliers["margin"]}
    wrong = Solution(s.status, s.value, s.lower, s.delta, halved, s.prices, s.duals, s.residuals, s.solver, 0.0)
    assert PriceFlag.NOT_STATIONARY in diagnose(wrong, norm, A, b, parts, slater=False).flags


def test_a_degenerate_corner_is_found():
    """ℓ1, box, and a level at which a coordinate is filled exactly: λ jumps from 1/2 to 1, and the flag says so."""
    C, a = Box(-1, 1, on="change"), np.array([-2.0, -1.0, -0.5])
    parts = C.parts(3)
    for level, unique in ((1.9, True), (2.0, False), (2.5, True)):
        s = MinNormProgram(1, parts, 3).solve(a[None], np.array([level]), parts)
        d = diagnose(s, 1, a, level, parts)
        assert d.is_price is unique, level
        assert (PriceFlag.NOT_UNIQUE in d.flags) is not unique
    assert d.active["box"].tolist() == [3]  # the upper bound of coordinate 0
    assert not len(d.weakly_active["box"])


def test_a_duplicate_row_has_no_single_price():
    a = np.array([[1.0, 2.0, 0.5]] * 2)
    s = min_norm(a[None], np.ones((1, 2)), 2)[0]
    d = diagnose(s, 2, a, np.ones(2), ())
    assert d.degenerate
    assert d.independence == pytest.approx([0, 0], abs=1e-6)
    two = np.array([[1.0, 2.0, 0.5], [-1.0, 2.0, 1.0]])
    assert diagnose(min_norm(two[None], np.ones((1, 2)), 2)[0], 2, two, np.ones(2), ()).is_price


def test_a_bound_that_touches_at_no_price_is_a_note():
    a = np.array([-3.0, -4.0])
    delta = 5.0 * np.array([0.6, 0.8]) / 5  # the unconstrained solution of −3δ₁ − 4δ₂ + 5 ≤ 0
    C = Box([-1.0, -1.0], [2.0, delta[1]], on="change")
    s = min_norm(a, 5.0, 2, C, solver="CLARABEL")[0]
    d = diagnose(s, 2, a, 5.0, C.parts(2), tolerance=1e-4)
    assert d.weakly_active["box"].tolist() == [3]
    assert d.flags == (PriceFlag.WEAKLY_ACTIVE,)
    assert d.is_price
    assert d.degenerate


@pytest.mark.parametrize(
    ("C", "room", "qualified"),
    [
        (Box(-1, 1, on="change"), 1.0, True),
        (Box(-1, 1, on="change") & Frozen([0], 3), 1.0, True),
        (LpBall(2, 1.0) & LpBall(2, 1.0, center=[2.0, 0, 0], name="far"), 0.0, False),  # touching
        (LpBall(1, 1.0) & LpBall(1, 1.0, center=[2.0, 0, 0], name="far"), 0.0, True),  # touching, but polyhedral
        (LpBall(2, 1.0) & LpBall(2, 1.0, center=[1.0, 0, 0], name="near"), 0.5, True),
        (LpBall(2, 0.0), 0.0, False),
        (Box(0, 1, on="change") & Polytope([[1.0, 0, 0]], [0.0], on="change") & LpBall(2, 2.0), 0.0, True),
        (LpBall(GroupNorm([[0, 1], [2]]), 0.0), 0.0, False),
        (TotalVariation(0.0, (3,)), 0.0, True),
        (Box(1, 2, on="change") & Polytope([[1.0, 0, 0]], [-1.0], on="change"), -np.inf, False),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_slater(C, room, qualified):
    found = slater_room(C.parts(3), 3)
    assert found[1] is qualified
    if np.isfinite(room):
        assert found[0] == pytest.approx(room, abs=1e-6)
    else:
        assert found[0] < 0


def test_without_slater_the_price_is_withheld():
    C = LpBall(2, 1.0) & LpBall(2, 1.0, center=[2.0, 0, 0], name="far")
    s = min_norm(np.array([-1.0, 0.0, 0.0]), 0.5, 2, C)[0]
    d = diagnose(s, 2, np.array([-1.0, 0.0, 0.0]), 0.5, C.parts(3), tolerance=1e-3)
    assert PriceFlag.NO_SLATER in d.flags
    assert not d.is_price


def test_custom_sets_are_the_solvers_word():
    C = SETS["log-sum-exp (own set)"]
    _, parts, A, b, s = solved(C, Norm(2))
    assert PriceFlag.CUSTOM_SET in diagnose(s, 2, A, b, parts).flags


def test_infeasible_has_nothing_to_price():
    C = Box(-0.1, 0.1, on="change")
    s = min_norm(np.ones(3), 5.0, 2, C)[0]
    assert diagnose(s, 2, np.ones(3), 5.0, C.parts(3)).flags == (PriceFlag.NO_POINT,)


# ---- curved rows -------------------------------------------------------------------------------------------------------------


def test_quadratic_rows_bring_their_curvature():
    rng = np.random.default_rng(1)
    H = rng.normal(size=(6, 6))
    for sign in (1, -1):
        model = QuadraticModel.dense(0.5, 2 * rng.normal(size=6), sign * H @ H.T / 6)
        s = s_lemma(model)
        d = diagnose(s, 2, model, None, ())
        assert d.is_price
        assert d.stationarity <= 1e-8
        assert np.sign(d.bend) == sign  # positive curvature resists the fall
        assert d.bend == pytest.approx(0.5 * s.delta @ model.full() @ s.delta / 0.5)
        assert d.tangent_curvature > 0  # a global minimum
        h = 1e-5
        slope = (s_lemma(QuadraticModel.dense(0.5 + h, model.gradient, model.full())).value - s.value) / h
        assert slope == pytest.approx(s.multipliers["margin"][0], rel=1e-3)


def test_over_a_box_too():
    rng = np.random.default_rng(2)
    model = QuadraticModel.dense(1.0, rng.normal(size=6), 0.1 * np.diag(rng.normal(size=6)))
    reach = 0.9 * np.abs(s_lemma(model).delta).max()
    C = Box(-reach, reach, on="change")
    s = min_norm_quadratic(model, 2, C)
    d = diagnose(s, 2, model, None, C.parts(6), tolerance=1e-4)
    assert d.is_price
    assert len(d.active["box"]) >= 1
    assert d.tangent_curvature > 0


def test_a_point_that_slides_away_is_a_saddle():
    """q = 1 − δ₁ − 4δ₂²: (1, 0) is stationary with λ = 1, but along ±δ₂ the boundary comes nearer."""
    model = QuadraticModel.dense(1.0, [-1.0, 0.0], np.diag([0.0, -8.0]))
    stationary = Solution(None, 1.0, 0.0, np.array([1.0, 0.0]), {"margin": np.array([1.0])}, {}, (), None, "", 0.0)
    d = diagnose(stationary, 2, model, None, ())
    assert d.stationarity <= 1e-12
    assert d.tangent_curvature == pytest.approx(-7.0)  # 1 − 8
    assert d.flags == (PriceFlag.SADDLE,)
    assert not d.is_price
    assert s_lemma(model).value < 1.0


def test_bad_input():
    s = min_norm(np.ones(3), 1.0, 2)[0]
    with pytest.raises(InputError, match="2 margin rows and 1 multipliers"):
        diagnose(s, 2, np.ones((2, 3)), np.ones(2), ())
    with pytest.raises(InputError, match="b is missing"):
        diagnose(s, 2, np.ones(3), None, ())
