"""The min-norm program: KKT conditions, two solvers, two ways of writing it, infeasibility, prices, and bad input."""

import numpy as np
import pytest

from formulations.dual_bound import exact_dual_bound, weak_dual_bound
from formulations.errors import InputError
from formulations.norms import Norm
from formulations.pieces import BallPiece, BoxPiece, RowsPiece
from formulations.prices import Level, minorant_after_shift, one_sided_prices, shifted, slope
from formulations.programs import MinNormProgram, min_norm, relative_parts
from formulations.rationals import rational
from formulations.sets import Box, Frozen, LpBall, Polytope, TotalVariation
from formulations.status import Status
from tests.catalogue import DIM, NORMS, SETS, start_for

every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
every_set = pytest.mark.parametrize("C", SETS.values(), ids=SETS.keys())
PIECED = {k: C for k, C in SETS.items() if "own set" not in k}


def instances(C, n, seed=0, rows=1):
    """Feasible programs: rows that some member of C fulfils with room."""
    rng = np.random.default_rng(seed)
    x0 = start_for(C)
    R = C.relative_to(x0)
    inside = [R.project(v) for v in rng.normal(size=(n, DIM))]
    for z in inside:
        A = rng.normal(size=(rows, DIM))
        A *= -np.sign(A @ z)[:, None]  # A z < 0
        yield A, 0.7 * np.abs(A @ z), x0


def problems(C, norm, n, seed=0, rows=1, **how):
    parts = tuple(p.at(0) for p in relative_parts(C, DIM, start_for(C)))
    program = MinNormProgram(norm, parts, DIM, rows=rows, **how)
    for A, b, _ in instances(C, n, seed, rows):
        yield program, parts, A, b, program.solve(A, b, parts)


@every_set
@pytest.mark.parametrize(
    "norm", [NORMS["l1"], NORMS["l2 weighted"], NORMS["linf"], NORMS["groups weighted"]], ids=["l1", "l2w", "linf", "groups"]
)
def test_optimality_conditions(C, norm):
    """Feasible, complementary, and the verified bound meets the value (custom sets: stays below it)."""
    for _, parts, A, b, s in problems(C, norm, 2, rows=2):
        own = any(p.piece.kind == "custom" for p in parts)
        assert s.lower <= s.value + 1e-9
        assert s.residuals.primal <= 1e-6
        if not own:
            assert s.status is Status.OPTIMAL
            assert s.value - s.lower <= 1e-7 * max(1, s.value)
        assert (s.multipliers["margin"] >= 0).all()
        assert np.abs(s.multipliers["margin"] * (A @ s.delta + b)).max() <= 1e-5


@every_norm
@pytest.mark.parametrize("C", PIECED.values(), ids=PIECED.keys())
def test_cone_form_is_the_model(C, norm):
    """The hand-written cone form and the CVXPY model have the same value, and each other's multipliers verify the same bound."""
    direct = list(problems(C, norm, 1, seed=1))
    modelled = list(problems(C, norm, 1, seed=1, modelled=True))
    for (*_, s), (*_, t) in zip(direct, modelled, strict=True):
        assert s.value == pytest.approx(t.value, rel=1e-6, abs=1e-7)
        assert s.lower == pytest.approx(t.lower, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("norm", [NORMS["l2"], NORMS["l1"], NORMS["linf"]], ids=["l2", "l1", "linf"])
@pytest.mark.parametrize("C", [SETS["box"], SETS["tv 2-d"], SETS["polytope"], SETS["ball l2"]], ids=["box", "tv", "polytope", "ball"])
def test_clarabel_and_scs_have_the_same_multipliers(C, norm):
    for (_, parts, A, b, s), (*_, t) in zip(problems(C, norm, 3, seed=2), problems(C, norm, 3, seed=2, solver="SCS"), strict=True):
        assert s.value == pytest.approx(t.value, rel=1e-6, abs=1e-6)
        price = one_sided_prices(MinNormProgram(norm, parts, DIM), A, b, parts, s, Level(-1))
        if not price.degenerate:
            assert s.multipliers["margin"] == pytest.approx(t.multipliers["margin"], rel=1e-4, abs=1e-4)


def test_weak_duality_never_fails():
    """10,000 random (program, multipliers) pairs over all norms and sets: no bound exceeds the value; and bad multipliers are worth nothing, not too much."""
    rng, pairs, useful = np.random.default_rng(3), 0, 0
    combinations = [(C, norm) for C in PIECED.values() for norm in NORMS.values()]
    each = -(-10_000 // len(combinations))
    for k, (C, norm) in enumerate(combinations):
        for _, parts, A, b, s in problems(C, norm, 1, seed=k, rows=1 + k % 3):
            for trial in range(each):
                noise = 10.0 ** rng.uniform(-9, 1)
                fresh = trial % 2
                lam = np.abs(rng.normal(size=len(b))) if fresh else s.multipliers["margin"] * (1 + noise * rng.normal(size=len(b)))
                duals = [
                    rng.normal(size=np.shape(u)) * noise if fresh else u + noise * rng.normal(size=np.shape(u)) * (rng.random(np.shape(u)) < 0.5)
                    for u in s.duals
                ]  # fmt: skip
                bound = weak_dual_bound(norm, A, b, lam, parts, duals)
                assert bound.value <= s.value + 1e-7, (C, norm)
                pairs, useful = pairs + 1, useful + (bound.value > 0.5 * s.value)
    assert pairs >= 10_000
    assert useful >= 1_000  # the law is not vacuous


def check_verified_bounds(each: int, seed: int) -> int:
    """The float bound never exceeds the same bound in rationals, which is below the optimum by weak duality; and it loses at most 1e-7. How many were checked."""
    checked = 0
    for k, C in enumerate(PIECED.values()):
        for norm in NORMS.values():
            for _, parts, A, b, s in problems(C, norm, each, seed=seed + k, rows=1 + (k + seed) % 3):
                bound = weak_dual_bound(norm, A, b, s.multipliers["margin"], parts, s.duals)
                L, square = exact_dual_bound(norm, A, b, s.multipliers["margin"], parts, s.duals, bound.absorbed)
                value = rational(bound.value)
                assert value * value * max(1, square) <= L * L or bound.value == 0
                assert s.value - bound.value <= 1e-7 * max(1.0, s.value)
                checked += 1
    return checked


def test_verified_bound_is_below_its_exact_value():
    assert check_verified_bounds(1, 100) >= 200


@pytest.mark.slow
def test_verified_bound_loses_little_on_a_thousand_mixed_programs():
    assert check_verified_bounds(5, 1000) >= 1000


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize(
    "C", [Box(0, 1), Box(0, 1) & TotalVariation(3.0, (3, 4)), Box(0, 1) & Polytope(np.ones((1, DIM)), [1.0], on="change")], ids=["box", "tv", "polytope"]
)  # fmt: skip
@pytest.mark.parametrize("excess", [1e-9, 1e-6, 1e-3, 1.0])
def test_infeasible_is_proved_or_unknown(norm, C, excess):
    rng = np.random.default_rng(4)
    for _ in range(4):
        x0, a = rng.uniform(size=DIM), rng.normal(size=DIM)
        least = -C.relative_to(x0).support(-a)
        s = min_norm(a, -least + excess * max(1.0, abs(least)), norm, C, x0)[0]
        assert s.status in (Status.INFEASIBLE, Status.UNKNOWN)
        assert s.status is not Status.INFEASIBLE or (s.lower == np.inf and np.isnan(s.delta).all())
        if excess >= 1e-6:
            assert s.status is Status.INFEASIBLE


@pytest.mark.parametrize(
    "C",
    [Box(1, 2, on="change") & Box(-2, 0, on="change"), LpBall(2, 1.0) & LpBall(2, 1.0, center=[9.0] + [0.0] * (DIM - 1), name="far"), LpBall("inf", 0.01)],
    ids=["boxes", "balls", "out of reach"],
)  # fmt: skip
def test_empty_sets_are_proved_empty(C):
    s = min_norm(-np.ones(DIM), 1.0, 2, C)[0]
    assert s.status is Status.INFEASIBLE
    assert s.lower == np.inf


def test_prices_are_derivatives_where_they_exist():
    """Multipliers against central differences, over norms × sets; degenerate levels are flagged and left out of the comparison."""
    compared, flagged = 0, 0
    for k, (label, C) in enumerate(PIECED.items()):
        for norm in NORMS.values():
            for program, parts, A, b, s in problems(C, norm, 1, seed=200 + k):
                levels = [Level(-1)]
                for j, p in enumerate(parts):
                    if isinstance(p.piece, BallPiece):
                        levels.append(Level(j))
                    elif isinstance(p.piece, RowsPiece):
                        levels.append(Level(j, int(np.argmax(np.abs(s.duals[j])))))
                    elif isinstance(p.piece, BoxPiece) and np.isfinite(p.piece.hi).all() and (p.piece.lo < p.piece.hi).all():
                        levels.append(Level(j, int(np.argmax(s.duals[j][1]))))
                for level in levels:
                    price = one_sided_prices(program, A, b, parts, s, level)
                    central = (price.left + price.right) / 2
                    if price.degenerate:
                        flagged += 1
                    elif abs(central) > 1e-3:
                        assert price.slope == pytest.approx(central, rel=1e-2), (label, norm, level)
                        compared += 1
    assert compared >= 200


@every_norm
@pytest.mark.parametrize("C", [SETS["tv 2-d"], SETS["polytope"], SETS["ball l2"], SETS["box"]], ids=["tv", "polytope", "ball", "box"])
def test_multipliers_are_slopes_of_a_global_minorant(C, norm):
    rng = np.random.default_rng(5)
    for program, parts, A, b, s in problems(C, norm, 1, seed=6):
        for level in (Level(-1), *(Level(j, rng.integers(0, 2)) for j in range(len(parts)))):
            for t in (-0.3, -0.05, 0.05, 0.5, 3.0):
                moved_b, moved = shifted(b, parts, level, t)
                promise = minorant_after_shift(s, parts, level, t)
                assert program.solve(A, moved_b, moved).value >= promise - 1e-7
        assert slope(s, parts, Level(-1)) >= 0


def test_monotone_in_the_set_and_homogeneous_in_the_row():
    rng = np.random.default_rng(7)
    for norm in NORMS.values():
        a = rng.normal(size=DIM)
        wide, narrow = (min_norm(a, 1.0, norm, Box(-r, r, on="change"))[0] for r in (1.0, 0.3))
        assert narrow.value >= wide.value - 1e-8
        scaled = min_norm(50 * a, 50.0, norm, Box(-1, 1, on="change"))[0]
        assert scaled.value == pytest.approx(wide.value, rel=1e-7)
        assert 50 * scaled.multipliers["margin"][0] == pytest.approx(wide.multipliers["margin"][0], rel=1e-4)


def test_rows_already_down_cost_nothing():
    s = min_norm(np.ones(DIM), -1.0, 2, Box(-1, 1, on="change"))[0]
    assert s.status is Status.OPTIMAL
    assert s.lower == 0
    assert s.value == pytest.approx(0, abs=1e-6)


def test_a_batch_is_its_programs_one_by_one():
    rng = np.random.default_rng(8)
    a, x0 = rng.normal(size=(5, DIM)), rng.uniform(size=(5, DIM))
    C = Box(0, 1) & TotalVariation(4.0, (3, 4))
    batch = min_norm(a, np.full(5, 0.3), 2, C, x0)
    assert batch.delta.shape == (5, DIM)
    assert batch.multipliers["tv"].shape == (5, 17)
    for i, s in enumerate(batch):
        alone = min_norm(a[i], 0.3, 2, C, x0[i])[0]
        assert s.value == pytest.approx(alone.value, rel=1e-8)
    assert set(batch[0].multipliers) == {"margin", "box", "tv"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: min_norm(np.ones(3), np.ones(2)), "one entry per row"),
        (lambda: min_norm([1.0, np.nan], 1.0), "entry nan at flat position 1"),
        (lambda: min_norm(np.ones(3), 1.0, 2, Box(0, 1)), "pass x0"),
        (lambda: min_norm(np.ones(3), 1.0, 2, Box(0, 1), [0.0, np.inf, 0.0]), "x0 has the entry inf"),
        (lambda: min_norm(np.ones(3), 1.0, 2, LpBall(2, 1.0, center=[0, 0])), "2 dimensions, the data has 3"),
        (lambda: min_norm(np.ones(3), 1.0, solver="GUESS"), "'GUESS' is not installed"),
        (lambda: min_norm(np.ones(3), 1.0, Norm(2, [1, 1])), "2 weights for 3"),
        (lambda: min_norm(np.ones(3), 1.0, 2, Box(0, 1), np.zeros(4)), "x0 has shape (4,); give 3 features"),
        (lambda: min_norm(np.ones((0, 3)), np.ones(0)), "shape (0, 3)"),
        (lambda: min_norm(1.0, 1.0), "shape ()"),
        (lambda: min_norm("abc", 1.0), "a='abc' is no array"),
        (lambda: min_norm(np.ones(3), 1.0, 2, "box"), "constraints is a str"),
        (lambda: min_norm(np.ones(3), 1.0, time_limit=-1), "time_limit=-1"),
    ],
)
def test_bad_programs_are_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)


def test_frozen_features_do_not_move():
    s = min_norm(np.ones(DIM), 1.0, 1, Frozen([0, 3], DIM) & Box(-1, 1, on="change"))[0]
    assert np.abs(s.delta[[0, 3]]).max() <= 1e-9


@pytest.mark.parametrize("norm", [v for k, v in NORMS.items() if "groups" not in k], ids=[k for k in NORMS if "groups" not in k])
def test_closed_form_batch_is_clarabel(norm):
    """Value, δ, λ and box multipliers of the batched closed form equal Clarabel's, and verify the same bound."""
    rng = np.random.default_rng(9)
    n = 40
    a, x0 = rng.normal(size=(n, DIM)), rng.uniform(size=(n, DIM))
    C = Box(0, 1) & Box(-0.6, 0.6, on="change")
    b = 0.6 * np.array([C.relative_to(x).support(-v) for v, x in zip(a, x0, strict=True)])
    closed, solved = min_norm(a, b, norm, C, x0), min_norm(a, b, norm, C, x0, solver="CLARABEL", jobs=2)
    assert closed[0].solver == "closed form"
    assert np.allclose(closed.value, solved.value, rtol=1e-7)
    assert (closed.lower <= solved.value + 1e-9).all()
    assert np.allclose(closed.lower, solved.lower, rtol=1e-7)
    parts = relative_parts(C, DIM, x0, n)
    for i, (s, t) in enumerate(zip(closed, solved, strict=True)):
        mine = weak_dual_bound(norm, a[i], b[i], s.multipliers["margin"], tuple(p.at(i) for p in parts), s.duals)
        assert mine.value == pytest.approx(s.value, rel=1e-9)
        assert s.multipliers["margin"] == pytest.approx(t.multipliers["margin"], rel=1e-5)
    assert closed.multipliers["box"].shape == (n, 2, DIM)
