"""The quadratic model: exact without C, bracketed over C; every bound attacked, every point checked, two ways to each number."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from formulations.pieces import CustomPiece
from formulations.programs import min_norm, relative_parts
from formulations.quadratic import QuadraticModel, min_norm_quadratic, s_lemma
from formulations.quadratic.barrier import _expand, _interior, follow
from formulations.quadratic.model import stationarity
from formulations.quadratic.restriction import Restriction
from formulations.quadratic.shor import DenseFactor, WoodburyFactor, climb, evaluate, factorise, start
from formulations.quadratic.terms import build
from formulations.sets import Box, LpBall, Polytope, TotalVariation
from formulations.status import Status
from tests.catalogue import DIM, NORMS, SETS, start_for

PIECED = {k: C for k, C in SETS.items() if "own set" not in k}


def symmetric(rng, d, size=1.0):
    A = rng.normal(size=(d, d))
    return size * (A + A.T) / np.sqrt(2 * d)


def free_model(rng, d, kind):
    H, g = symmetric(rng, d), rng.normal(size=d)
    if kind == "hard":  # no slope along the lowest eigenvector, and too little elsewhere
        g = 0.1 * np.linalg.eigh(H)[1][:, 1:] @ rng.normal(size=d - 1)
    if kind == "convex":
        H, g = H @ H, 5 * g
    if kind == "concave":
        H = -H @ H
    return QuadraticModel.dense(rng.uniform(0.2, 2.0), g, H)


def model_over(C, rng, size=0.25, share=0.7, dim=DIM):
    """A model that falls at some point of C."""
    x0 = start_for(C)
    R = C.relative_to(x0)
    H, g = symmetric(rng, dim, 4 * size), rng.normal(size=dim)
    z = R.project(rng.normal(size=dim))
    level = -(g @ z + 0.5 * z @ H @ z)
    return QuadraticModel.dense(share * abs(level), g * np.sign(level), H * np.sign(level)), x0


# ---- without C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["indefinite", "hard", "convex", "concave"])
@pytest.mark.parametrize("d", [2, 10, 30])
def test_s_lemma_is_the_semidefinite_program(d, kind):
    for seed in range(3 if d == 2 else 1):
        model = free_model(np.random.default_rng(seed), d, kind)
        exact, conic = s_lemma(model), min_norm_quadratic(model, 2, method="shor-sdp")
        if exact.status is Status.INFEASIBLE:
            assert kind == "convex"
            continue
        assert exact.status is Status.OPTIMAL
        assert exact.lower == pytest.approx(conic.lower, rel=1e-6)
        assert abs(model.value(exact.delta)) <= 1e-9 * (1 + abs(model.level))
        assert exact.residuals.dual <= 1e-9


def test_hard_case_leaves_along_the_lowest_eigenvector():
    model = QuadraticModel.dense(1.0, [0.0, 0.0], np.diag([-2.0, 1.0]))  # q = 1 − δ₁² + ½δ₂²
    s = s_lemma(model)
    assert s.value == pytest.approx(1.0)
    assert np.abs(s.delta) == pytest.approx([1.0, 0.0])
    assert s.multipliers["margin"][0] == pytest.approx(0.5)  # λ = Λ = ½ of the square, over ‖δ‖


@pytest.mark.parametrize("size", [1e-14, 1e-9, 1e-4])
def test_weak_curvature_is_the_linear_radius(size):
    rng = np.random.default_rng(0)
    g = rng.normal(size=8)
    for sign in (-1, 1):
        s = s_lemma(QuadraticModel.dense(0.5, g, sign * size * np.eye(8)))
        assert s.value == pytest.approx(0.5 / np.linalg.norm(g), rel=10 * size + 1e-14)


def test_a_bowl_that_stays_above_zero_never_falls():
    s = s_lemma(QuadraticModel.dense(1.0, np.ones(3), 4 * np.eye(3)))  # min q = 1 − 3/8
    assert (s.status, s.lower, s.value) == (Status.INFEASIBLE, np.inf, None)
    assert s_lemma(QuadraticModel.dense(1.0, 3 * np.ones(3), 4 * np.eye(3))).status is Status.OPTIMAL  # min q = 1 − 27/8


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["indefinite", "hard", "convex", "concave"]))
def test_nothing_falls_inside_the_exact_radius(seed, kind):
    """Attack: on the sphere of 0.999 of the radius, the lowest q over random points and a projected descent stays positive."""
    rng = np.random.default_rng(seed)
    model = free_model(rng, 5, kind)
    s = s_lemma(model)
    radius = 0.999 * min(s.lower, 50.0)
    X = rng.normal(size=(400, 5))
    for _ in range(30):
        X *= (radius * rng.uniform(0.9, 1, size=(len(X), 1))) / np.linalg.norm(X, axis=1, keepdims=True)
        assert (model.level + X @ model.gradient + 0.5 * np.einsum("ij,ij->i", X, model.curvature(X)) > 0).all()
        X -= 0.3 * (model.gradient + model.curvature(X))


def test_low_rank_and_dense_agree_and_weights_scale():
    rng = np.random.default_rng(1)
    U, e, g, w = rng.normal(size=(40, 3)), np.array([1.0, -0.3, 0.2]), rng.normal(size=40), rng.uniform(0.5, 2, 40)
    low, full = QuadraticModel.low_rank(1.0, g, U, e), QuadraticModel.dense(1.0, g, (U * e) @ U.T)
    for norm in (Norm(2), Norm(2, w)):
        a, b = s_lemma(low, norm), s_lemma(full, norm)
        assert a.value == pytest.approx(b.value, rel=1e-10)
        assert a.delta == pytest.approx(b.delta, abs=1e-9)
        assert norm.value(a.delta) == pytest.approx(a.value)


# ---- over C ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "C"),
    [*zip(itertools.cycle([NORMS["l2 weighted"], NORMS["linf"]]), PIECED.values()), *((NORMS["l2"], SETS[k]) for k in ("tv 2-d", "tv isotropic"))],
    ids=lambda v: repr(v)[:24],
)  # fmt: skip
def test_shor_without_a_solver_is_the_semidefinite_program(norm, C):
    """Same dual, two algorithms: 1e-6. And a bracket: no point of C that the model lets fall lies below."""
    model, x0 = model_over(C, np.random.default_rng(len(repr(C))))
    ours, conic = (min_norm_quadratic(model, norm, C, x0, method=m) for m in ("shor", "shor-sdp"))
    assert ours.lower == pytest.approx(conic.lower, rel=1e-6, abs=1e-9)
    assert ours.value is not None
    assert ours.lower <= ours.value * (1 + 1e-9)
    assert ours.residuals.primal <= 1e-7
    if ours.status is Status.OPTIMAL:
        assert ours.residuals.dual <= 1e-5  # multipliers of the dual, point of the restriction: one KKT system


@pytest.mark.parametrize(("d", "share"), [(10, 0.3), (10, 0.8), (10, 0.95), (30, 0.8)])
def test_curved_boxes_with_and_without_a_gap(d, share):
    """Strong curvature and far levels, where P is singular at the optimum: the central path still meets the SDP, and so does the climb where it ends."""
    for seed, size in enumerate([0.3, 3.0] if d == 10 else [1.0]):
        rng = np.random.default_rng(seed)
        H, g = symmetric(rng, d, size), 0.3 * rng.normal(size=d)
        lo, hi = -rng.uniform(0.3, 1, d), rng.uniform(0.3, 1, d)
        deepest = 0.0
        for _ in range(50):
            z = np.where(rng.random(d) < 0.5, lo, hi)
            for _ in range(20):
                z = np.where(g + H @ z - np.diag(H) * z > 0, lo, hi)
            deepest = max(deepest, -(g @ z + 0.5 * z @ H @ z))
        model, C = QuadraticModel.dense(share * deepest, g, H), Box(lo, hi, on="change")
        conic = min_norm_quadratic(model, 2, C, method="shor-sdp")
        t = build(model, Norm(2), C.parts(d))
        path = follow(t, start(t))
        assert path.lower(t) == pytest.approx(conic.lower, rel=1e-6)
        climbed, done = climb(t, start(t))
        assert climbed.lower(t) <= conic.lower * (1 + 1e-6)
        if done:
            assert climbed.lower(t) == pytest.approx(conic.lower, rel=1e-6)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
@pytest.mark.parametrize("C", [SETS["tv 2-d"], SETS["polytope with equalities"]], ids=repr)
def test_without_curvature_it_is_the_linear_program(norm, C):
    model, x0 = model_over(C, np.random.default_rng(2), size=0.0)
    linear = min_norm(model.gradient, model.level, norm, C, x0)[0]
    s = min_norm_quadratic(model, norm, C, x0)
    assert s.status is Status.OPTIMAL
    assert s.value == pytest.approx(linear.value, rel=1e-6)
    assert s.lower == pytest.approx(linear.lower, rel=1e-6)
    assert s.multipliers["margin"] == pytest.approx(linear.multipliers["margin"], rel=1e-3)


@pytest.mark.parametrize("name", list(PIECED)[::2])
def test_any_admissible_multipliers_are_a_bound(name):
    """Random y with P(y) ≻ 0 against the best point known; and the best dual is among the largest."""
    C, rng = PIECED[name], np.random.default_rng(4)
    for norm in (Norm(2), Norm("inf")):
        model, x0 = model_over(C, rng)
        s = min_norm_quadratic(model, norm, C, x0)
        t = build(model, norm, tuple(p.at(0) for p in relative_parts(C, DIM, x0)))
        base, tried = start(t).y, 0
        for _ in range(60):
            y = base * rng.exponential(size=t.count) * 10 ** rng.uniform(-1, 1.5)
            for part in t.sums:  # inside the cone ‖u_g‖ ≤ ω_g t
                u = rng.normal(size=len(part.e))
                size = np.sqrt(np.bincount(part.labels, u * u, minlength=len(part.omega))) / part.omega
                y[part.block] = u / size.max() * y[part.at] * rng.uniform()
            point = evaluate(t, y)
            if point is not None:
                tried += 1
                assert point.lower(t) <= s.value * (1 + 1e-9)
                assert point.lower(t) <= s.lower * (1 + 1e-5) + 1e-9
        assert tried >= 10


def test_woodbury_is_cholesky_and_refuses_what_it_refuses():
    rng = np.random.default_rng(5)
    d, seen = 30, set()
    model = QuadraticModel.low_rank(1.0, rng.normal(size=d), rng.normal(size=(d, 4)), [1.0, -1.0, 0.5, -2.0])
    dense = QuadraticModel.dense(1.0, model.gradient, model.full())
    parts = (Box(-1, 1, on="change") & LpBall(2, 1.5)).parts(d)
    a, b = build(model, Norm(2), parts), build(dense, Norm(2), parts)
    assert a.diagonal
    assert not b.diagonal
    for _ in range(60):
        y = rng.exponential(size=a.count) * 10 ** rng.uniform(-2, 1)
        fa, fb = factorise(a, y), factorise(b, y)
        assert (fa is None) == (fb is None)
        seen.add(fa is None)
        if fa is not None and fb is not None:
            assert isinstance(fa, WoodburyFactor)
            assert isinstance(fb, DenseFactor)
            v = rng.normal(size=d)
            assert fa.solve(v) == pytest.approx(fb.solve(v), rel=1e-6, abs=1e-9)
    assert seen == {True, False}


@pytest.mark.parametrize("name", ["two boxes", "tv isotropic", "ball l2 weighted", "polytope with equalities", "half-line box"])
@pytest.mark.parametrize("norm", [Norm(2), Norm("inf")], ids=["l2", "linf"])
def test_barrier_derivatives(name, norm):
    C, rng = SETS[name], np.random.default_rng(6)
    model, x0 = model_over(C, rng)
    t = build(model, norm, tuple(p.at(0) for p in relative_parts(C, DIM, x0)))
    y = _interior(t, start(t).y) * rng.uniform(0.8, 1.2, t.count)
    for part in t.sums:
        y[part.block] = 0.2 * y[part.at] * part.omega.min() * rng.normal(size=len(part.e)) / np.sqrt(len(part.e))
    _, gradient, curve = _expand(t, evaluate(t, y), 0.3)
    for j in rng.choice(t.count, size=min(12, t.count), replace=False):
        h = 1e-6 * max(abs(y[j]), 1e-2)
        moved = [_expand(t, evaluate(t, y + s * h * np.eye(t.count)[j]), 0.3) for s in (1, -1)]
        assert (moved[0][0] - moved[1][0]) / (2 * h) == pytest.approx(gradient[j], rel=1e-4, abs=1e-5 * np.abs(gradient).max())
        assert -(moved[0][1] - moved[1][1]) / (2 * h) == pytest.approx(curve[j], rel=1e-3, abs=1e-5 * np.abs(curve).max())


@pytest.mark.parametrize("name", ["box", "tv 2-d", "ball l2", "polytope", "box on input"])
def test_multipliers_are_slopes(name):
    """v(m₀ + t)² ≥ lower² + 2·lower·λ·t for every t: the dual of the square is a global minorant; and λ is v's derivative where both sides meet."""
    C, rng = SETS[name], np.random.default_rng(7)
    model, x0 = model_over(C, rng)
    s = min_norm_quadratic(model, 2, C, x0)
    lam = s.multipliers["margin"][0]
    assert s.status is Status.OPTIMAL

    def moved(t):
        return min_norm_quadratic(QuadraticModel.dense(model.level + t, model.gradient, model.full()), 2, C, x0)

    for t in (-0.3 * model.level, -0.05 * model.level, 0.05 * model.level):
        there = moved(t)
        assert there.value is None or there.value**2 >= s.lower**2 + 2 * s.lower * lam * t - 1e-7
    h = 1e-3 * model.level
    assert (moved(h).lower - moved(-h).lower) / (2 * h) == pytest.approx(lam, rel=1e-2)


def test_box_multipliers_are_derivatives_in_the_bounds():
    rng = np.random.default_rng(8)
    model = QuadraticModel.dense(1.5, rng.normal(size=6), symmetric(rng, 6, 0.5))
    reach = 0.8 * np.abs(s_lemma(model).delta).max()
    lo, hi = -reach * np.ones(6), reach * np.ones(6)
    s = min_norm_quadratic(model, 2, Box(lo, hi, on="change"))
    assert s.status is Status.OPTIMAL
    assert (s.multipliers["box"].max(0) > 1e-3).any()
    for side, bound in ((0, lo), (1, hi)):
        for i in range(6):
            h = 1e-4 * np.eye(6)[i]
            shifted = [(lo + k * h, hi) if bound is lo else (lo, hi + k * h) for k in (1, -1)]
            up, down = (min_norm_quadratic(model, 2, Box(*b, on="change")).lower for b in shifted)
            slope = (up - down) / 2e-4
            assert (slope if side == 0 else -slope) == pytest.approx(s.multipliers["box"][side, i], rel=2e-2, abs=2e-3)


def test_a_box_too_small_is_proved_empty():
    rng = np.random.default_rng(9)
    model = QuadraticModel.dense(5.0, rng.normal(size=8), symmetric(rng, 8))
    for norm in (2, "inf"):
        s = min_norm_quadratic(model, norm, Box(-0.1, 0.1, on="change"))
        assert (s.status, s.lower, s.value) == (Status.INFEASIBLE, np.inf, None)
    conflict = Box(1, 2, on="change") & Box(-2, 0, on="change")
    assert min_norm_quadratic(model, 2, conflict).lower == np.inf


# ---- the restriction ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_the_majorant_lies_above_the_model(seed):
    """q_a ≥ q everywhere and q_a(a) = q(a): so a point of the restriction is a point of the model."""
    rng = np.random.default_rng(seed)
    model = QuadraticModel.dense(1.0, rng.normal(size=5), symmetric(rng, 5, 2.0))
    r = Restriction(model, Norm(2), ())
    a, X = rng.normal(size=5), 3 * rng.normal(size=(50, 5))
    r._place(a)
    plus = r._plus @ r._plus.T
    for x in (*X, a):
        above = r._size * (r._level.value - 1e-9 + r._row.value @ x) + 0.5 * x @ plus @ x
        assert above >= model.value(x) - 1e-9 * (1 + abs(above))
    assert above == pytest.approx(model.value(a), abs=1e-9)


@pytest.mark.parametrize(
    ("norm", "C"),
    list(zip(itertools.cycle([NORMS["l1"], NORMS["l2"], NORMS["linf"], NORMS["groups"]]), SETS.values())),
    ids=lambda v: repr(v)[:24],
)  # fmt: skip
def test_restriction_gives_points_and_its_own_kkt(norm, C):
    model, x0 = model_over(C, np.random.default_rng(10))
    s = min_norm_quadratic(model, norm, C, x0, method="restriction")
    assert s.value is not None
    assert s.lower == 0.0
    assert model.value(s.delta) <= 1e-9
    assert C.relative_to(x0).contains(s.delta, 1e-6)
    own = any(isinstance(p.piece, CustomPiece) for p in C.parts(DIM))
    if not own:  # a fixed point of the moving tangent satisfies the model's own conditions
        assert s.residuals.dual <= 1e-3


def test_a_convex_model_needs_no_bracket():
    rng = np.random.default_rng(11)
    A = rng.normal(size=(6, 6))
    model = QuadraticModel.dense(1.0, 4 * rng.normal(size=6), A @ A.T / 6)
    for norm in (1, 2, "inf"):
        a = min_norm_quadratic(model, norm, Box(-2, 2, on="change"))
        b = min_norm_quadratic(model, norm, Box(-2, 2, on="change"), method="restriction")
        assert a.status is Status.OPTIMAL
        assert b.value == pytest.approx(a.lower, rel=1e-6)


def test_moving_the_tangent_finds_what_the_plain_restriction_cannot():
    model = QuadraticModel.dense(1.0, np.zeros(2), np.diag([-2.0, -1.0]))  # flat at 0: without its curvature the model never falls
    r = Restriction(model, Norm(2), Box(-3, 3, on="change").parts(2))
    assert r.nearest(np.zeros(2)) is None
    assert min_norm_quadratic(model, 2, Box(-3, 3, on="change")).value == pytest.approx(1.0, rel=1e-6)


# ---- sizes and bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [Box(0, 1), Box(0, 1) & TotalVariation(30.0, (28, 28)), Box(0, 1) & LpBall(2, 5.0)], ids=repr)
def test_images_with_a_few_eigenpairs(C):
    rng = np.random.default_rng(12)
    d = 784
    x0 = np.clip(rng.normal(0.2, 0.3, d), 0, 1)
    U = np.linalg.qr(rng.normal(size=(d, 10)))[0]
    model = QuadraticModel.low_rank(2.0, 0.3 * rng.normal(size=d), U, 3 * rng.normal(size=10))
    s = min_norm_quadratic(model, 2, C, x0)
    assert s.status is Status.OPTIMAL
    assert C.relative_to(x0).contains(s.delta, 1e-7)
    assert s.residuals.dual <= 1e-5


def test_already_down_costs_nothing():
    s = min_norm_quadratic(QuadraticModel.dense(-0.1, np.ones(3), np.eye(3)), 2, Box(-1, 1, on="change"))
    assert (s.value, s.lower, s.status) == (0.0, 0.0, Status.OPTIMAL)


def test_stationarity_tells_a_subgradient():
    rng = np.random.default_rng(13)
    for norm in NORMS.values():
        a = rng.normal(size=DIM)
        s = min_norm(a, 1.0, norm)[0]
        assert stationarity(norm, s.multipliers["margin"][0] * a, s.delta) <= 1e-6
        assert stationarity(norm, 0.5 * s.multipliers["margin"][0] * a, s.delta) >= 0.4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: min_norm_quadratic(m, 1, method="shor"), "shor-sdp"),
        (lambda m: min_norm_quadratic(m, 2, Box(0, 1, on="change"), method="s-lemma"), "without constraints"),
        (lambda m: min_norm_quadratic(m, 2, method="newton"), "not one of"),
        (lambda m: min_norm_quadratic(m, 2, Box(0, 1)), "pass x0"),
        (lambda m: s_lemma(m, "inf"), "p=2 alone"),
        (lambda m: min_norm_quadratic(QuadraticModel.dense(1.0, np.ones(70), np.eye(70)), 1, method="shor-sdp"), "up to 64"),
        (lambda m: min_norm_quadratic(m, GroupNorm([[0, 1], [2, 3]])), "4 features"),
        (lambda m: QuadraticModel.dense(1.0, np.ones(3), np.eye(4)), "expected (3, 3)"),
        (lambda m: QuadraticModel.low_rank(1.0, np.ones(3), np.ones((3, 2)), [1.0]), "one value per column"),
        (lambda m: QuadraticModel.dense(np.nan, np.ones(3), np.eye(3)), "not finite"),
        (lambda m: QuadraticModel.dense(1.0, [1.0, np.inf], np.eye(2)), "must be finite"),
    ],
)
def test_bad_input_says_the_way_out(call, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        call(QuadraticModel.dense(1.0, np.ones(3), np.eye(3)))


def test_rows_and_their_multipliers_come_back_by_name():
    model = QuadraticModel.dense(1.0, [-1.0, -1.0], -0.1 * np.eye(2))
    C = Polytope([[1.0, 0.0]], [0.2], on="change", name="cap") & Box(-1, 2, on="change")
    s = min_norm_quadratic(model, 2, C)
    assert s.status is Status.OPTIMAL
    assert s.delta[0] == pytest.approx(0.2, abs=1e-5)
    assert s.multipliers["cap"].shape == (1,)
    assert s.multipliers["cap"][0] > 0.1
    assert s.multipliers["box"].shape == (2, 2)
