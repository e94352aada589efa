"""The network simplex of LEG-TV: paths are those of single min-cut solves, the tree keeps its invariants, and nothing is believed that it says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.leg import program, simplex
from formulations.leg.grid import Perturbation
from formulations.leg.network import Circulation, faces_of
from formulations.leg.pivots import AFTER, CHILD, DEPTH, DOWN, EDGE, FLOW, HEAD, ON, PARENT, PIECE, TAIL, UP
from formulations.leg.program import LegProgram, circulation_value
from formulations.leg.simplex import NetworkSimplex

pytest.importorskip("numba")


def drawn(h: int, w: int, seed: int, kind: str = "normal") -> LegProgram:
    """Moments at random; "ties" and "block" make many edges alike, "one" moves one pixel."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(h, w))
    if kind == "ties":
        y = rng.integers(-1, 2, (h, w)).astype(float)
    elif kind == "block":
        y = np.zeros((h, w))
        y[: h // 2 + 1, : w // 2 + 1] = 1.0
    elif kind == "one":
        y = np.zeros((h, w))
        y[h // 2, w // 2] = 1.0
    return LegProgram(Perturbation(h, w), y)


def check_tree(tree: NetworkSimplex) -> None:
    """A spanning tree, its depths and rooms, z a circulation within its pieces, and room for a flow from every pixel to the root."""
    pixels, edges = tree.pixels, tree.edges
    p = len(pixels)
    D = Perturbation(*tree.shape).grid.D
    assert not (D.T @ edges[:, FLOW]).any()
    assert edges[:, ON].sum() == p - 1
    assert np.isin(edges[edges[:, ON] == 0, FLOW], (-1, 0, 1)).all()
    low, high = np.array([-(2**30), -1, 0, 1]), np.array([-1, 0, 1, 2**30])
    assert pixels[tree.root, DEPTH] == 0
    for x in set(range(p)) - {tree.root}:
        parent, e = pixels[x, PARENT], pixels[x, EDGE]
        z, piece = edges[e, FLOW], edges[e, PIECE]
        assert edges[e, ON] == 1
        assert {edges[e, TAIL], edges[e, HEAD]} == {x, parent}
        assert pixels[x, DEPTH] == pixels[parent, DEPTH] + 1
        assert low[piece] <= z <= high[piece]
        upwards = edges[e, TAIL] == x
        rise, fall = high[piece] - z, z - low[piece]
        up, down = (rise, fall) if upwards else (fall, rise)
        assert min(up, 2**19) == min(pixels[x, UP], 2**19) > 0
        assert min(down, 2**19) == min(pixels[x, DOWN], 2**19)
    seen, stack = 0, [tree.root]
    while stack:
        x = stack.pop()
        seen += 1
        child = pixels[x, CHILD]
        while child >= 0:
            assert pixels[child, PARENT] == x
            stack.append(int(child))
            child = pixels[child, AFTER]
    assert seen == p


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 10**6), st.sampled_from(["normal", "ties", "block", "one"]))
def test_a_path_is_that_of_single_cuts(h: int, w: int, seed: int, kind: str) -> None:
    p = drawn(h, w, seed, kind)
    rng = np.random.default_rng(seed)
    shares = np.append(rng.uniform(0, 1.05, 7), 0.0)  # any order
    path = p.solve_path(shares * p.maximal_level, solver="pivots")
    for share, found in zip(shares, path, strict=True):
        cut = p.solve(float(share) * p.maximal_level, solver="cuts")
        size = max(cut.objective, float(np.abs(p.edge_moments).max()) / 0.1)
        assert found.objective <= cut.objective + 1e-11 * size  # cuts may stop at a gap of 1e-9
        assert found.lower <= cut.objective + 1e-12 * size
        assert cut.lower <= found.objective + 1e-12 * size
        assert found.dual_gap <= 1e-11 * size
        assert found.violation <= 1e-12 * size
        assert found.solver == "pivots" or found.level == 0
        once = p.solve(float(share) * p.maximal_level, solver="pivots")
        assert abs(once.objective - found.objective) <= 1e-11 * size


@pytest.mark.parametrize("kind", ["normal", "ties", "block", "one"])
def test_the_optimum_falls_and_is_convex_along_the_path(kind: str) -> None:
    p = drawn(9, 7, 1, kind)
    levels = np.linspace(0.0, 1.0, 60) * p.maximal_level
    values = np.array([s.objective for s in p.solve_path(levels, solver="pivots")])
    assert (np.diff(values) <= 1e-11 * values[0]).all()
    assert (np.diff(values, 2) >= -1e-11 * values[0]).all()
    assert values[-1] == 0


@pytest.mark.parametrize("kind", ["normal", "ties", "block"])
@pytest.mark.parametrize("shape", [(2, 2), (2, 7), (6, 2), (7, 8)])
def test_the_tree_keeps_its_invariants(shape: tuple[int, int], kind: str) -> None:
    p, tree = drawn(*shape, 3, kind), NetworkSimplex(*shape)
    check_tree(tree)
    for share in (0.9, 0.4, 0.05, 0.6, 0.0):  # up again too: any level is a start for any other
        lo, hi = p.bounds(share * p.maximal_level)
        found = tree.solve(lo, hi)
        check_tree(tree)
        assert found is not None
        np.testing.assert_array_equal(found.flow, tree.edges[:, FLOW])  # the heights give back the circulation
        t, z, near = p.grid.D @ found.potentials, found.flow, np.clip(0.0, lo, hi)
        scale = 1e-11 * np.abs(hi).max()
        assert (t >= np.where(z > 1, hi, np.where(z > -1, near, lo)) - scale).all()  # t ∈ ∂φ*(z): complementary slackness
        assert (t <= np.where(z >= 1, hi, np.where(z >= -1, near, lo)) + scale).all()


def test_plateaus_are_flat_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    y = np.zeros((12, 12))
    y[3:8, 2:9] = 1.0
    p = LegProgram(Perturbation(12, 12), y + 0.05 * rng.normal(size=(12, 12)))
    for found in p.solve_path(np.array([0.7, 0.5, 0.3]) * p.maximal_level, solver="pivots"):
        assert found.solver == "pivots"
        values = np.unique(found.map)
        assert len(values) == 1 or np.diff(values).min() > 1e-9 * np.ptp(values)


@pytest.mark.parametrize("shape", [(1, 2), (1, 9), (6, 1)])
def test_a_grid_without_faces_has_no_tree(shape: tuple[int, int]) -> None:
    p = drawn(*shape, 0)
    for found in p.solve_path(np.array([0.8, 0.2, 0.0]) * p.maximal_level, solver="pivots"):
        assert found.relative_gap < 1e-9
        assert found.violation < 1e-12


def test_constant_moments_have_a_flat_path() -> None:
    p = LegProgram(Perturbation(5, 4), np.full(20, 3.0))
    for found in p.solve_path([0.5, 0.1, 1e-9], solver="pivots"):
        assert found.objective <= 1e-12
        assert found.lower <= found.objective


def test_what_the_pivots_say_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    p, rng = drawn(6, 7, 4), np.random.default_rng(0)
    levels = np.geomspace(0.9, 0.05, 8) * p.maximal_level
    honest = [p.solve(float(v), solver="cuts").objective for v in levels]

    def lie(tree: NetworkSimplex, lo: np.ndarray, hi: np.ndarray, time_limit: float | None = None) -> Circulation:
        heights, g = rng.integers(-9, 10, 30), rng.normal(size=42)
        t = p.grid.D @ g
        return Circulation(heights, faces_of(6, 7).flow_of(heights), g, t, float(np.abs(t).sum()), 0)

    monkeypatch.setattr(NetworkSimplex, "solve", lie)
    for want, found in zip(honest, p.solve_path(levels, solver="pivots"), strict=True):
        assert found.solver == "cuts"
        assert found.objective == pytest.approx(want, rel=2e-9)
        assert found.lower <= want * (1 + 1e-9)


def test_no_patience_and_no_time_leave_both_sides_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    p = drawn(7, 7, 5)
    level = 0.1 * p.maximal_level
    full = p.solve(level, solver="cuts")
    stopped = p.solve_path([level], solver="pivots", time_limit=0.0)[0]
    assert stopped.lower <= full.objective <= stopped.objective + 1e-12
    assert stopped.violation < 1e-12
    monkeypatch.setattr(simplex, "_CHUNK", 1)  # a look at the clock after each pivot changes nothing
    assert p.solve(level, solver="pivots").objective == pytest.approx(full.objective, rel=2e-9)
    monkeypatch.setattr(simplex, "_CHUNK", 10**9)
    monkeypatch.setattr(simplex, "improve", lambda *_: False)
    fallen = p.solve(level, solver="pivots")
    assert (fallen.solver, fallen.relative_gap < 1e-9) == ("cuts", True)


def test_without_numba_the_path_is_one_of_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    p = drawn(5, 6, 6)
    levels = np.array([0.5, 0.1]) * p.maximal_level
    fast = p.solve_path(levels)
    assert {s.solver for s in fast} == {"pivots"}
    monkeypatch.setattr(program, "available", lambda: False)
    for quick, slow in zip(fast, p.solve_path(levels), strict=True):
        assert slow.solver == "cuts"
        assert slow.objective == pytest.approx(quick.objective, rel=2e-9)
    with pytest.raises(InputError, match="needs numba"):
        p.solve(float(levels[0]), solver="pivots")


def test_pivots_need_the_edge_scheme() -> None:
    p = LegProgram(Perturbation(4, 4, scheme="independent"), np.arange(16.0))
    with pytest.raises(InputError, match="'pivots' needs the edge scheme"):
        p.solve(0.1, solver="pivots")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 14), st.integers(2, 14), st.integers(0, 10**6), st.integers(0, 8))
def test_the_value_of_a_circulation_is_rounded_down(h: int, w: int, seed: int, power: int) -> None:
    """Against −Σ φ*(z) in exact arithmetic, with terms of very different sizes."""
    rng = np.random.default_rng(seed)
    faces = faces_of(h, w)
    z = faces.flow_of(rng.integers(-5, 6, faces.count))
    middle = rng.normal(size=len(z)) * 10.0 ** rng.uniform(-power, power, len(z))
    width = np.abs(rng.normal(size=len(z))) * 10.0 ** rng.uniform(-3, 1)
    lo, hi = middle - width, middle + width
    exact = Fraction(0)
    for k, low, high in zip(z, lo, hi, strict=True):
        points = [Fraction(low), Fraction(high), min(max(Fraction(0), Fraction(low)), Fraction(high))]
        exact -= max(int(k) * x - abs(x) for x in points)
    assert Fraction(circulation_value(z, lo, hi)) <= max(exact, Fraction(0))
    if exact > 0:
        size = float(((np.abs(z) + 1) * np.maximum(np.abs(lo), np.abs(hi))).sum())
        assert circulation_value(z, lo, hi) >= float(exact) - 1e-12 * size
