"""The network simplex of LEG-TV: paths are those of single min-cut solves, the tree keeps its invariants, and nothing is believed that it says."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.leg import program, simplex
from formulations.leg.grid import Perturbation
from formulations.leg.network import circulation_value, faces_of
from formulations.leg.pivots import CENTRE, FLOW, PIECE, compare
from formulations.leg.program import LegProgram
from formulations.leg.sides import both_sides, conserved
from formulations.leg.simplex import NetworkSimplex, in_lines
from formulations.leg.tree import AFTER, ANY, BEFORE, DEPTH, DOWN, EDGE, LAST, NONE, PARENT, SHIFT, UP

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
    """A spanning tree in preorder with its depths and rooms, z a circulation within its pieces, and room for a flow from every pixel to the root."""
    (h, w), edges, centre = tree.shape, tree.edges, tree.limits[CENTRE]
    pixels, order = tree.pixels.astype(int), tree.order.astype(int)
    p, D = h * w, Perturbation(h, w).grid.D
    assert not (D.T @ tree.flow).any()
    inside = np.ones((2, h, w), dtype=bool)
    inside[0, -1], inside[1, :, -1] = False, False
    off = inside.ravel() & (edges[PIECE] < 0)
    assert off.sum() == D.shape[0] - (p - 1)
    assert np.isin(edges[FLOW, off], (-1, 0, 1)).all()
    ring = [tree.root]
    for _ in range(p - 1):
        ring.append(int(order[AFTER, ring[-1]]))
        assert order[BEFORE, ring[-1]] == ring[-2]
    assert sorted(ring) == list(range(p))
    assert order[AFTER, ring[-1]] == tree.root
    assert order[BEFORE, tree.root] == ring[-1]
    place, size = {x: k for k, x in enumerate(ring)}, np.ones(p, dtype=int)
    for x in ring[:0:-1]:
        assert place[pixels[x, PARENT]] < place[x]
        size[pixels[x, PARENT]] += size[x]
    assert order[DEPTH, tree.root] == 0
    assert pixels[tree.root, PARENT] == pixels[tree.root, EDGE] == NONE
    for x in ring:
        assert pixels[x, LAST] == ring[place[x] + size[x] - 1]
        if x == tree.root:
            continue
        parent, e = pixels[x, PARENT], pixels[x, EDGE]
        z, piece, lo, hi = edges[FLOW, e], edges[PIECE, e], centre[e] - tree.radius, centre[e] + tree.radius
        assert {e % p, e % p + (w if e < p else 1)} == {x, parent}
        assert order[DEPTH, x] == order[DEPTH, parent] + 1
        ends = [-ANY, -1 if lo <= 0 else -ANY, 1 if hi >= 0 else ANY, ANY]  # where a bound has the sign of its neighbour, there is no kink
        assert ends[piece] <= z <= ends[piece + 1]
        rise, fall = ends[piece + 1] - z, z - ends[piece]
        up, down = (rise, fall) if x < parent else (fall, rise)
        assert min(up, ANY // 2) == min(pixels[x, UP], ANY // 2) > 0
        assert min(down, ANY // 2) == min(pixels[x, DOWN], ANY // 2)


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
        y = found.multipliers  # weak duality: what they prove is the lower bound
        assert abs(p.edge_moments @ y - found.level * np.abs(y).sum() - found.lower) <= 1e-10 * size * len(y)
        assert np.abs(p.adjoint(y)).max() <= 4 * (1 + 1e-9)  # Aᵀy = Dᵀu with |u| ≤ 1 on at most four edges a pixel
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


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(2, 8), st.integers(2, 8)),
    st.sampled_from(["normal", "ties", "block", "one"]),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_the_tree_keeps_its_invariants(shape: tuple[int, int], kind: str, shares: list[float]) -> None:
    p = drawn(*shape, 3, kind)
    lo, hi = p.bounds(0.0)
    tree = NetworkSimplex(*shape, lo)
    check_tree(tree)
    for share in (*shares, 0.6, 0.0):  # up and down: any level is a start for any other
        level = share * p.maximal_level
        values, maps, _ = tree.follow(np.array([level / 0.1]), 0.0)
        check_tree(tree)
        assert np.isfinite(values).all()
        lo, hi = p.bounds(level)
        t, z, near = p.grid.D @ maps[0], tree.flow, np.clip(0.0, lo, hi)
        scale = 1e-11 * np.abs(hi).max()
        assert (t >= np.where(z > 1, hi, np.where(z > -1, near, lo)) - scale).all()  # t ∈ ∂φ*(z): complementary slackness
        assert (t <= np.where(z >= 1, hi, np.where(z >= -1, near, lo)) + scale).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 10**6), st.sampled_from(["normal", "ties", "block", "one"]))
def test_a_path_in_one_go_is_the_path_in_steps(h: int, w: int, seed: int, kind: str) -> None:
    """However few pivots a call may make, after which it compares all edges anew, the same levels are followed."""
    p = drawn(h, w, seed, kind)
    radii = np.geomspace(0.9, 0.01, 6) * p.maximal_level / 0.1
    whole = NetworkSimplex(h, w, p.bounds(0.0)[0]).follow(radii, 0.5)
    size = float(np.abs(p.bounds(0.0)[0]).sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simplex, "_CHUNK", 3)
        stepping = NetworkSimplex(h, w, p.bounds(0.0)[0])
        values, maps, _ = stepping.follow(radii, 0.5)
    np.testing.assert_allclose(values, whole[0], rtol=0, atol=1e-11 * size)
    np.testing.assert_allclose(maps.mean(axis=1), 0.5, atol=1e-12 * (1 + size))
    check_tree(stepping)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10**6), st.floats(0, 1))
def test_edges_of_what_moved_are_compared(h: int, w: int, seed: int, share: float) -> None:
    """Every edge outside its limits with an end that moved is found, each edge once, and no other; the last of a row has none on its right."""
    rng, p = np.random.default_rng(seed), h * w
    g, low = rng.normal(size=p), in_lines(h, w, rng.normal(size=2 * p - h - w) - 2)
    outside_the_grid = in_lines(h, w, np.ones(2 * p - h - w)) == 0
    low[outside_the_grid] = -np.inf
    x = np.flatnonzero(rng.random(p) < share)
    moved, queue = np.zeros((p - 1 >> SHIFT) + 1, dtype=np.uint8), np.zeros(2 * p, dtype=np.uint32)
    moved[x >> SHIFT] = 1
    size = compare(w, g, low, np.full(2 * p, np.inf), moved, np.empty_like(moved), np.empty(1024, dtype=np.uint8), queue)
    found = queue[:size].tolist()
    t = in_lines(h, w, Perturbation(h, w).grid.D @ g)
    wrong = np.flatnonzero(t < low)
    assert len(set(found)) == len(found)
    assert set(found) <= set(wrong.tolist())
    assert {e for e in wrong.tolist() if e % p in x or e % p + (w if e < p else 1) in x} <= set(found)
    assert not moved.any()


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


def test_an_early_end_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = drawn(6, 7, 4)
    levels = np.geomspace(0.9, 0.05, 8) * p.maximal_level
    honest = [p.solve(float(v), solver="cuts").objective for v in levels]
    monkeypatch.setattr(simplex, "_TOLERANCE", 1e9)  # no edge ever enters
    for want, found in zip(honest, p.solve_path(levels, solver="pivots"), strict=True):
        assert found.solver == "cuts"
        assert found.objective == pytest.approx(want, rel=2e-9)
        assert found.lower <= want * (1 + 1e-9)


def tampered(monkeypatch: pytest.MonkeyPatch, change: Callable[[NetworkSimplex], None]) -> None:
    """Every tree from now on is changed before its first pivot."""
    honest = NetworkSimplex.__init__

    def __init__(self: NetworkSimplex, h: int, w: int, centre: np.ndarray) -> None:
        honest(self, h, w, centre)
        change(self)

    monkeypatch.setattr(NetworkSimplex, "__init__", __init__)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_flow_that_is_no_circulation_is_not_believed(stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow whose value is as large as one likes: only the conservation at the pixels refutes it. Pivots keep what is amiss."""
    p = drawn(5, 6, 4)
    level = 0.2 * p.maximal_level
    honest = p.solve(level, solver="cuts")
    lo, hi = p.bounds(level)
    lie = np.where(lo > 0, -50, np.where(hi < 0, 50, 0))
    assert circulation_value(lie, lo, hi) > honest.objective

    def change(tree: NetworkSimplex) -> None:
        tree.edges[FLOW] = in_lines(5, 6, lie)

    tampered(monkeypatch, change)
    if stopped:
        monkeypatch.setattr(simplex, "_TOLERANCE", 1e9)
    found = p.solve_path([level], solver="pivots")[0]
    assert found.solver == "cuts"
    assert found.lower <= honest.objective * (1 + 1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_no_number_is_not_believed(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    p = drawn(5, 6, 4)

    def change(tree: NetworkSimplex) -> None:
        tree.limits[CENTRE, 7] = value

    tampered(monkeypatch, change)
    monkeypatch.setattr(simplex, "_TOLERANCE", 1e9)
    found = p.solve_path([0.2 * p.maximal_level], solver="pivots")[0]
    assert found.solver == "cuts"
    assert np.isfinite(found.map).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))
def test_conservation_is_that_of_the_incidence_matrix(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = in_lines(h, w, faces_of(h, w).flow_of(rng.integers(-5, 6, (h - 1) * (w - 1)))).astype(np.int32)
    assert conserved(w, z)
    z[rng.integers(len(z))] += rng.choice([-1, 1])  # of an edge, or of one that would leave the grid
    assert not conserved(w, z)


def test_no_patience_and_no_time_leave_both_sides_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    p = drawn(7, 7, 5)
    level = 0.1 * p.maximal_level
    full = p.solve(level, solver="cuts")
    monkeypatch.setattr(simplex, "_CHUNK", 1)  # a look at the clock after each pivot
    stopped = p.solve_path([level], solver="pivots", time_limit=0.0)[0]
    assert stopped.solver == "cuts"
    assert stopped.lower <= full.objective <= stopped.objective + 1e-12
    assert stopped.violation < 1e-12
    assert p.solve(level, solver="pivots").objective == pytest.approx(full.objective, rel=2e-9)
    monkeypatch.setattr(simplex, "_CHUNK", 10**9)
    monkeypatch.setattr(simplex, "follow", lambda *arguments: arguments[11])  # never past the first level
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
    """Both evaluations against −Σ φ*(z) in exact arithmetic, with terms of very different sizes."""
    rng = np.random.default_rng(seed)
    faces = faces_of(h, w)
    z = faces.flow_of(rng.integers(-5, 6, faces.count))
    middle = rng.normal(size=len(z)) * 10.0 ** rng.uniform(-power, power, len(z))
    radius = float(np.abs(rng.normal()) * 10.0 ** rng.uniform(-3, power + 1))
    lo, hi = middle - radius, middle + radius
    exact = Fraction(0)
    for k, low, high in zip(z, lo, hi, strict=True):
        points = [Fraction(low), Fraction(high), min(max(Fraction(0), Fraction(low)), Fraction(high))]
        exact -= max(int(k) * x - abs(x) for x in points)
    size = float(((np.abs(z) + 1) * np.maximum(np.abs(lo), np.abs(hi))).sum())
    image, p = rng.normal(size=h * w) * 10.0**power, drawn(h, w, seed)
    objective, lower, violation = both_sides(w, image, 0.3, in_lines(h, w, z).astype(np.int32), in_lines(h, w, middle), radius)
    for value in (circulation_value(z, lo, hi), lower):
        assert Fraction(value) <= max(exact, Fraction(0))
        if exact > 0:
            assert value >= float(exact) - 1e-12 * size
    t = Perturbation(h, w).grid.D @ image
    assert objective == pytest.approx(np.abs(t).sum(), rel=1e-12)
    assert violation == pytest.approx(np.maximum(np.maximum(lo - t, t - hi), 0.0).max(), abs=1e-15 * float(np.abs([t, lo, hi]).max()))
    assert image.mean() == pytest.approx(0.3, abs=1e-12 * 10.0**power)
    # weak duality at the multipliers, at any other level: −φ*(z) = (b·y − L‖y‖₁) of the best split
    b, level, y = 0.1 * middle, 0.1 * radius, p.split(z, lo, hi)
    assert abs(b @ y - level * np.abs(y).sum() - float(exact)) <= 1e-9 * size
