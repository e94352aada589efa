"""LEG and LEG-TV: identities of the perturbation schemes, both sides of the program, black boxes, and the statistics of the estimate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from formulations.errors import InputError
from formulations.leg.grid import SCHEMES, Grid, Perturbation
from formulations.leg.linear import solve_linear
from formulations.leg.network import circulation_value, faces_of, solve_circulation
from formulations.leg.program import LegProgram, theorem_level
from lde_cvx.leg import LEG, LEGTV

SHAPES = [(1, 6), (5, 1), (2, 2), (2, 5), (4, 3), (6, 7)]


def program(shape: tuple[int, int], seed: int, scheme: str = "edge", variance: float = 0.1) -> LegProgram:
    """Moments of a function with a bright block, drawn as an explainer draws them."""
    rng = np.random.default_rng(seed)
    P = Perturbation(*shape, variance, scheme)  # type: ignore[arg-type]
    truth = np.zeros(shape)
    truth[: shape[0] // 2 + 1, : shape[1] // 2 + 1] = rng.normal()
    z = P.sample(60, rng)
    y = np.tanh(z @ truth.ravel()) + 0.05 * rng.normal(size=60)
    return LegProgram(P, (y[:, None] * z).mean(0))


def dense_optimum(p: LegProgram, level: float) -> float:
    """min ‖Dg‖₁ s.t. |D⁺ᵀ(ȳ − Σg)| ≤ L, from the definition: pseudo-inverse and covariance dense, HiGHS."""
    D = p.grid.D.toarray()
    m, n = D.shape
    A, b = np.linalg.pinv(D).T @ p.perturbation.covariance(), np.linalg.pinv(D).T @ p.moments
    I, none = np.eye(m), np.zeros((m, m))
    G = np.block([[D, -I], [-D, -I], [A, none], [-A, none]])
    h = np.concatenate([np.zeros(2 * m), b + level, level - b])
    return float(linprog(np.r_[np.zeros(n), np.ones(m)], A_ub=G, b_ub=h, bounds=(None, None), method="highs").fun)


def alternative_optimum(p: LegProgram, level: float) -> float:
    """The form in α = Dg: min ‖α‖₁ s.t. |b − D⁺ᵀΣD⁺α| ≤ L, U₂ᵀα = 0, as a standard-form program in (α₊, α₋, slacks) ≥ 0."""
    D = p.grid.D.toarray()
    U, s, _ = np.linalg.svd(D)
    U2 = U[:, int((s > 1e-9).sum()) :]
    M = np.linalg.pinv(D).T @ p.perturbation.covariance() @ np.linalg.pinv(D)
    b, m = np.linalg.pinv(D).T @ p.moments, D.shape[0]
    I, none, k = np.eye(m), np.zeros((m, m)), U2.shape[1]
    A = np.block([[U2.T, -U2.T, np.zeros((k, 2 * m))], [M, -M, I, none], [-M, M, none, I]])
    rhs = np.concatenate([np.zeros(k), b + level, level - b])
    return float(linprog(np.r_[np.ones(2 * m), np.zeros(2 * m)], A_eq=A, b_eq=rhs, method="highs").fun)


# ---- perturbations -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, (12, 9)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_satisfy_their_identities(scheme: str, shape: tuple[int, int]) -> None:
    P = Perturbation(*shape, 0.3, scheme)  # type: ignore[arg-type]
    D, S, rng = P.grid.D.toarray(), P.covariance(), np.random.default_rng(1)
    pinv_t, p = np.linalg.pinv(D).T, P.grid.pixels
    assert D.shape == (P.grid.edges, p)
    want = {"edge": 0.3 * D, "independent": 0.3 * pinv_t, "padded": 0.3 * (D + pinv_t @ np.ones((p, 1)) / p)}[scheme]
    np.testing.assert_allclose(pinv_t @ S, want, atol=1e-10)  # D⁺ᵀΣ
    g, y, e = rng.normal(size=p), rng.normal(size=p), rng.normal(size=P.grid.edges)
    np.testing.assert_allclose(P.grid.potential_differences(y), pinv_t @ y, atol=1e-10)
    np.testing.assert_allclose(S @ P.solve(y), y, atol=1e-10)
    q = LegProgram(P, y)
    np.testing.assert_allclose(q.apply(g), want @ g, atol=1e-10)
    np.testing.assert_allclose(q.adjoint(e), want.T @ e, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_draws_have_the_covariance(scheme: str) -> None:
    P, n = Perturbation(3, 4, 0.2, scheme), 40_000  # type: ignore[arg-type]
    z = P.sample(n, np.random.default_rng(0))
    S = P.covariance()
    spread = np.sqrt((np.outer(np.diag(S), np.diag(S)) + S**2) / n)  # standard error of a sample covariance of a Gaussian
    assert (np.abs(z.T @ z / n - S) / spread).max() < 5
    again = np.random.default_rng(0)
    np.testing.assert_array_equal(z[:100], np.concatenate([P.sample(1, again), P.sample(99, again)]))


@pytest.mark.parametrize("shape", [*SHAPES, (3, 8), (9, 9), (10, 3), (8, 8)])
def test_the_widest_row_is_the_norm_of_the_pseudo_inverse(shape: tuple[int, int]) -> None:
    grid = Grid(*shape)
    assert grid.widest_row() == pytest.approx(np.abs(np.linalg.pinv(grid.D.toarray())).sum(0).max(), rel=1e-9)


# ---- the program --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_the_objective_is_that_of_the_dense_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(2, 8)), int(rng.integers(2, 8)))
    p = program(shape, seed)
    level = float(rng.uniform(0.01, 0.9)) * p.maximal_level
    found, want = p.solve(level), dense_optimum(p, level)
    assert found.objective == pytest.approx(want, rel=1e-6, abs=1e-12)
    assert found.lower <= want + 1e-12 * (1 + want)  # the dual value is a lower bound
    assert found.relative_gap < 1e-9
    g, D = found.map.ravel(), p.grid.D
    assert np.abs(D @ g).sum() == pytest.approx(found.objective, rel=1e-9, abs=1e-13)
    assert np.abs(p.apply(g) - p.edge_moments).max() <= level + 1e-12
    assert g.mean() == pytest.approx(p.empirical.mean(), abs=1e-12)


@pytest.mark.parametrize("solver", ["highs", "clarabel"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_and_solver_closes_the_gap(scheme: str, solver: str) -> None:
    for seed, shape in enumerate([(1, 5), (4, 3), (5, 6)]):
        p = program(shape, seed, scheme)
        for share in (0.5, 0.1):
            found = p.solve(share * p.maximal_level, solver=solver)
            want = dense_optimum(p, share * p.maximal_level)
            assert found.objective == pytest.approx(want, rel=1e-6, abs=1e-9)
            assert found.lower <= want + 1e-9
            assert found.relative_gap < 1e-6 or found.dual_gap < 1e-9
            assert found.violation < 1e-12


@pytest.mark.parametrize("scheme", ["edge", "independent"])
def test_the_form_in_differences_has_the_same_optimum(scheme: str) -> None:
    for seed in range(5):
        p = program((4, 5), seed, scheme)
        level = 0.2 * p.maximal_level
        assert alternative_optimum(p, level) == pytest.approx(p.solve(level).objective, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6))
def test_any_circulation_bounds_any_map(h: int, w: int, seed: int) -> None:
    """Weak duality attacked: heights drawn at random against feasible maps drawn at random."""
    rng = np.random.default_rng(seed)
    D, faces = Grid(h, w).D, faces_of(h, w)
    middle = D @ rng.normal(size=h * w)
    widths = rng.uniform(0.01, 2)
    lo, hi = middle - widths, middle + widths
    z = faces.flow_of(rng.integers(-4, 5, faces.count))
    assert not (D.T @ z).any()  # exactly a circulation
    optimum = solve_circulation((h, w), lo, hi).objective
    assert circulation_value(z, lo, hi) <= optimum + 1e-9


def test_a_flow_that_is_no_circulation_proves_nothing() -> None:
    p = program((4, 4), 0)
    lo, hi = p.bounds(0.1 * p.maximal_level)
    z = np.where(lo > 0, -30, np.where(hi < 0, 30, 0))
    assert (p.grid.D.T @ z).any()
    assert circulation_value(z, lo, hi) > p.solve(0.1 * p.maximal_level).objective  # the test above would catch it


def test_levels_from_nothing_to_the_maximum() -> None:
    p = program((5, 6), 3)
    exact = p.solve(0.0)
    np.testing.assert_allclose(exact.map, p.empirical, atol=1e-12)  # Lemma 3; the mean is the empirical one already
    for level in (p.maximal_level, 2 * p.maximal_level):
        flat = p.solve(level)
        assert np.ptp(flat.map) == 0
        assert flat.objective == flat.lower == 0
    assert p.solve(0.999 * p.maximal_level).objective > 0
    for tiny in (1e-9, 1e-13, 1e-17, 5e-324):
        near = p.solve(tiny * p.maximal_level)
        assert near.objective == pytest.approx(exact.objective, rel=1e-6)
        assert near.relative_gap < 1e-6


def test_multipliers_bound_every_other_level() -> None:
    p = program((6, 6), 5)
    for share in (0.6, 0.2, 0.05):
        found = p.solve(share * p.maximal_level)
        for other in (0.9, 0.5, 0.1, 0.01):
            moved = other * p.maximal_level
            assert p.solve(moved).objective >= found.lower - np.abs(found.multipliers).sum() * (moved - found.level) - 1e-9


def test_the_path_is_that_of_cold_solves() -> None:
    p = program((7, 6), 2)
    shares = np.array([0.5, 1.0, 0.02, 0.1, 0.3, 0.0, 0.98])  # any order
    path = p.solve_path(shares * p.maximal_level)
    for share, found in zip(shares, path, strict=True):
        cold = p.solve(float(share) * p.maximal_level)
        assert found.level == cold.level
        assert found.objective == pytest.approx(cold.objective, rel=1e-9, abs=1e-15)
        assert found.relative_gap < 1e-9


def test_a_time_limit_leaves_both_sides_valid() -> None:
    p = program((7, 6), 2)
    level = 0.1 * p.maximal_level
    stopped, full = p.solve(level, time_limit=1e-9), p.solve(level)
    assert stopped.lower <= full.objective <= stopped.objective + 1e-12
    assert stopped.relative_gap > 1e-3
    assert stopped.violation < 1e-12


def test_a_solver_without_an_answer_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program((4, 5), 1)
    honest = p.solve(0.1 * p.maximal_level).objective
    rng = np.random.default_rng(0)

    def wild(q: LegProgram, *_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(rng.normal(size=k) for k in (q.grid.pixels, q.grid.edges, q.grid.edges))  # type: ignore[return-value]

    monkeypatch.setattr("formulations.leg.linear.solve_linear", wild)
    for _ in range(20):
        claimed = p.solve(0.1 * p.maximal_level, solver="highs")
        assert claimed.violation < 1e-9
        assert claimed.lower <= honest + 1e-9 <= claimed.objective + 2e-9
    assert solve_linear is not wild


def test_plateaus_are_flat_to_the_bit() -> None:
    p = program((8, 8), 4)
    assert len(np.unique(p.solve(0.3 * p.maximal_level).map)) < 40 < len(np.unique(p.empirical))


# ---- the estimate -------------------------------------------------------------------------------------------------------------


def linear(w: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.reshape(len(x), -1) @ w.ravel()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_linear_function_gives_its_gradient_at_the_root_n_rate(scheme: str) -> None:
    w = np.random.default_rng(0).normal(size=(4, 5)) / 5
    errors = []
    for n in (400, 6400):
        maps = [LEG(linear(w), samples=n, scheme=scheme, seed=s).explain(np.zeros((4, 5))).map for s in range(6)]  # type: ignore[arg-type]
        errors.append(math.sqrt(np.mean([((m - w) ** 2).sum() for m in maps])))
        # E‖γ̂ − w‖² = (‖Σ^½w‖² tr Σ⁻¹ + ‖w‖²)/n for Gaussian draws
        P = Perturbation(4, 5, 0.1, scheme)  # type: ignore[arg-type]
        S = P.covariance()
        expected = math.sqrt((w.ravel() @ S @ w.ravel() * np.trace(np.linalg.inv(S)) + (w**2).sum()) / n)
        assert 0.6 < errors[-1] / expected < 1.6
    assert 2.5 < errors[0] / errors[1] < 6.5  # √16 = 4


def test_total_variation_needs_fewer_draws_where_the_truth_is_flat() -> None:
    w = np.zeros((8, 8))
    w[2:5, 3:6] = 0.1
    wins = 0
    for s in range(10):
        record = LEGTV(linear(w), samples=150, seed=s).explain(np.zeros((8, 8)))
        rough = record.moments.programs()[0].empirical
        wins += int(((record.map - w) ** 2).sum() < ((rough - w) ** 2).sum())
        assert record.dual_gap <= 1e-9 * record.objective
        assert record.seconds > 0
        assert record.lower <= record.objective
    assert wins >= 9


def test_the_theorem_covers_the_truth() -> None:
    """Lemma 2: the true map is feasible at the level of the theorem, far more often than 1 − ε."""
    w = np.random.default_rng(3).uniform(-1, 1, (5, 5)) / 60
    level = theorem_level((5, 5), 200, 0.05)
    missed = 0
    for s in range(60):
        m = LEG(lambda x: 0.5 + np.clip(linear(w)(x), -0.5, 0.5), samples=200, seed=s).moments(np.zeros((5, 5)))
        p = m.programs()[0]
        missed += int(np.abs(p.edge_moments - p.apply(w)).max() > level)
    assert missed == 0


def net(shape: tuple[int, ...], classes: int = 3, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 8), torch.nn.ReLU(), torch.nn.Linear(8, classes))


@pytest.mark.parametrize("explainer", [LEG, LEGTV])
@pytest.mark.parametrize("shape", [(6,), (4, 5), (2, 4, 4)])
def test_attribute_and_explain_agree(explainer: type[LEG], shape: tuple[int, ...]) -> None:
    model = net(shape)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    e = explainer(model, samples=40, seed=5)
    maps = e.attribute(x, target=1)
    assert maps.shape == x.shape
    assert maps.dtype == x.dtype
    records = explainer(model, samples=40, seed=5, target=1).explain(x)
    np.testing.assert_allclose(maps.numpy(), np.stack([r.map for r in records]), rtol=1e-6, atol=1e-9)
    assert records[0].saliency.shape == (shape[1:] if len(shape) == 3 else shape)
    one = e.explain(x[0])
    assert one.map.shape == shape
    assert one.moments.target == int(model(x[:1]).argmax())
    np.testing.assert_array_equal(one.map, e.explain(x[0]).map)  # the same seed, the same map
    each = e.attribute(x, target=torch.tensor([0, 1, 2]))
    np.testing.assert_array_equal(each[1].numpy(), maps[1].numpy())


def test_comparative_targets_are_differences() -> None:
    model, x = net((4, 4)), np.zeros((4, 4))
    maps = [LEG(model, samples=50, target=t, scores="raw").explain(x).map for t in (2, 0)]
    both = LEG(model, samples=50, target=2, against=0, scores="raw").explain(x)
    np.testing.assert_allclose(both.map, maps[0] - maps[1], atol=1e-12)
    assert both.moments.against == 0


def test_a_coarse_grid_explains_its_cells() -> None:
    w = np.random.default_rng(0).normal(size=(8, 12)) / 10
    record = LEG(linear(w), samples=60_000, grid=(2, 3), variance=1.0, seed=1).explain(np.zeros((8, 12)))
    cells = w.reshape(2, 4, 3, 4).sum((1, 3))  # one coarse unit moves every pixel of its cell
    assert record.grid_map.shape == (1, 2, 3)
    assert np.abs(record.grid_map[0] - cells).max() < 0.1
    np.testing.assert_array_equal(record.map, np.kron(record.grid_map[0], np.ones((4, 4))))


def test_the_owner_hands_over_moments_alone() -> None:
    model, x = net((2, 4, 4)), np.full((2, 4, 4), 0.3)
    owner, client = LEGTV(model, samples=30), LEGTV(None)
    handed = owner.moments(x)
    there, here = client.explain_moments(handed), owner.explain(x)
    np.testing.assert_array_equal(there.map, here.map)
    assert there.objective == here.objective
    assert not any(isinstance(v, torch.nn.Module) for v in vars(handed).values())
    with pytest.raises(InputError, match="explain_moments"):
        client.explain(x)


def test_functions_and_modules_agree() -> None:
    model, x = net((4, 4)).double(), np.linspace(0, 1, 16).reshape(4, 4)

    def box(inputs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return torch.softmax(model(torch.as_tensor(inputs)), 1).numpy()

    np.testing.assert_allclose(LEGTV(box, samples=30).explain(x).map, LEGTV(model, samples=30).explain(x).map, atol=1e-12)


def test_batches_do_not_change_the_draws() -> None:
    w, x = np.random.default_rng(2).normal(size=(3, 4, 4)) / 9, np.zeros((3, 4, 4))
    for channels in ("joint", "separate"):
        maps = [LEG(linear(w), samples=50, batch_size=b, channels=channels).explain(x).map for b in (50, 7)]  # type: ignore[arg-type]
        np.testing.assert_allclose(maps[0], maps[1], atol=1e-12)


def test_the_released_estimator() -> None:
    e = LEGTV.published(lambda x: x.mean((1, 2)), samples=200)
    assert (e.scheme, e.variance, e.channels) == ("padded", 4e-4, "separate")
    record = e.explain(np.full((5, 5), 0.5))
    assert record.relative_gap < 1e-6
    seen: list[np.ndarray] = []
    LEGTV.published(lambda x: seen.append(x) or x.mean((1, 2)), samples=5, clip=(0, 1)).explain(np.full((3, 3), 0.5))  # type: ignore[func-returns-value]
    np.testing.assert_allclose(seen[1] * 255, np.round(seen[1] * 255), atol=1e-9)


def test_a_path_of_explanations() -> None:
    e = LEGTV(net((6, 6)), samples=60)
    x = np.full((6, 6), 0.4)
    path = e.path(x, [1.0, 0.5, 0.1])
    assert np.ptp(path[0].map) == 0
    np.testing.assert_allclose(path[2].objective, e.explain(x).objective, rtol=1e-9)
    assert [round(float(r.levels[0] / r.solutions[0].maximal_level), 9) for r in path] == [1.0, 0.5, 0.1]


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: LEG(net((4, 4)), target=7).explain(np.zeros((4, 4))), "target=7 is not one of the model's outputs 0 … 2"),
    (lambda: LEG(net((4, 4)), target=1, against=1).explain(np.zeros((4, 4))), "against=1 is the target itself"),
    (lambda: LEG(net((4, 4))).attribute(torch.zeros(1, 4, 4), target=1.5), "target=1.5 is no output number"),
    (lambda: LEG(net((4, 4)), against="a").explain(np.zeros((4, 4))), "against='a' is no output number"),  # type: ignore[arg-type]
    (lambda: LEG(net((4, 4)), against=-1).explain(np.zeros((4, 4))), "against=-1"),
    (lambda: LEG(net((4, 4))).explain(np.zeros((5, 5))), "does not fit the model"),
    (lambda: LEG(net((4, 4))).explain(np.full((4, 4), np.nan)), "finite"),
    (lambda: LEG(net((4, 4)), grid=(5, 2)).explain(np.zeros((4, 4))), r"grid=\(5, 2\)"),
    (lambda: LEG(net((4, 4)), samples=0), "samples=0"),
    (lambda: LEG(net((4, 4)), variance=0.0), "variance=0.0"),
    (lambda: LEG(net((4, 4)), scheme="other"), "scheme='other'"),  # type: ignore[arg-type]
    (lambda: LEG(net((4, 4)), scores="logits"), "scores='logits'"),  # type: ignore[arg-type]
    (lambda: LEG(3), "expected a torch.nn.Module or a function"),  # type: ignore[arg-type]
    (lambda: LEG(lambda x: np.zeros((2, 2))).explain(np.zeros((4, 4))), "must answer"),
    (lambda: LEG(lambda x: np.full(len(x), np.inf)).explain(np.zeros((4, 4))), "not finite"),
    (lambda: LEG(net((4, 4))).attribute(torch.zeros(2, 4, 4), target=[0, 1, 2]), "3 targets for 2 inputs"),
    (lambda: LEG(net((4, 4))).attribute(np.zeros((2, 4, 4))), "give a tensor"),  # type: ignore[arg-type]
    (lambda: LEG(net((2, 2, 2, 2))).explain(np.zeros((2, 2, 2, 2))), "must be"),
    (lambda: LEGTV(net((4, 4)), share=1.5), "share=1.5"),
    (lambda: LEGTV(net((4, 4)), level=-1.0), "level=-1.0"),
    (lambda: LEGTV(net((4, 4)), scheme="independent", solver="flow").explain(np.zeros((4, 4))), "needs the edge scheme"),
    (lambda: LEG(lambda x: x.sum(1)).explain(np.zeros(1)), "has no edges"),
    (lambda: theorem_level((4, 4), 0), "n=0"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_mistakes_are_named(number: int) -> None:
    call, message = BAD[number]
    with pytest.raises(InputError, match=message):
        call()


# ---- long campaigns -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [28, 56, 112, 224])
def test_large_grids_close_the_gap(size: int) -> None:
    rng = np.random.default_rng(size)
    P = Perturbation(size, size)
    truth = np.zeros((size, size))
    truth[size // 4 : size // 2, size // 3 : 2 * size // 3] = 8.0 / size
    y = np.zeros(size * size)
    for _ in range(100):
        z = P.sample(1, rng)[0]
        y += np.tanh(z @ truth.ravel()) * z / 100
    p = LegProgram(P, y)
    found = p.solve(0.1 * p.maximal_level)
    assert found.relative_gap < 1e-5
    assert found.violation < 1e-9
    print(f"\n{size}²: {found.seconds:.2f} s, relative gap {found.relative_gap:.1e}")
    if size <= 28:
        for solver in ("highs", "clarabel"):
            other = p.solve(0.1 * p.maximal_level, solver=solver)
            print(f"{size}² {solver}: {other.seconds:.2f} s, relative gap {other.relative_gap:.1e}")
            assert other.objective == pytest.approx(found.objective, rel=1e-6)


@pytest.mark.slow
def test_a_50_point_path_closes_every_gap() -> None:
    p = program((28, 28), 0)
    path = p.solve_path(np.geomspace(0.98, 0.05, 50) * p.maximal_level)
    one = p.solve(0.1 * p.maximal_level)
    print(f"\n50 points: {sum(s.seconds for s in path):.2f} s; one cold solve {one.seconds:.3f} s")
    assert max(s.relative_gap for s in path) < 1e-9
