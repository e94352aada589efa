"""The arithmetic of level B: lines of activations stay on their side, support functions are upper bounds."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.norms import GroupNorm, Norm
from formulations.sets import Box, LpBall, Polytope, TotalVariation
from tests.checker_example import document, in_ball
from verification.checking.document import Split
from verification.rechecking.activations import Rectifier, Sigmoid, Tanh, tanh_bounds
from verification.rechecking.region import Region


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([Rectifier((1,)), Rectifier((1,), 0.1), Tanh((1,)), Sigmoid((1,))]),
    st.floats(-30, 30), st.floats(0, 30), st.floats(-0.5, 1.5),
)  # fmt: skip
def test_lines_at_any_slope_stay_on_their_side_and_touch(layer: Any, l: float, width: float, s: float) -> None:
    lo, hi, slope = np.array([l]), np.array([l + width]), np.array([s])
    z = np.concatenate([np.linspace(l, l + width, 400), [0.0] if l <= 0 <= l + width else []])
    value = {
        Rectifier: lambda: np.where(z >= 0, z, getattr(layer, "negative", 0) * z),
        Tanh: lambda: np.tanh(z),
        Sigmoid: lambda: 1 / (1 + np.exp(-z)),
    }[type(layer)]()
    gap, size = value - s * z, 1e-15 * (4 + 4 * np.abs(s * z).max() + np.abs(value).max())
    least, most = layer.least(slope, lo, hi)[0], layer.most(slope, lo, hi)[0]
    assert least <= gap.min() + size
    assert most >= gap.max() - size
    assert gap.min() - least <= 2e-3 * (1 + width) ** 2 + 10 * size  # the grid, and rounding
    assert most - gap.max() <= 2e-3 * (1 + width) ** 2 + 10 * size
    low, high = layer.interval(lo, hi)
    assert low[0] <= value.min() + 1e-15
    assert high[0] >= value.max() - 1e-15
    for own, at, sign in zip(layer.slopes(lo, hi), (layer.least, layer.most), (1, -1), strict=True):
        assert (sign * (value - own * z - at(own, lo, hi)) >= -size).all()


def test_tanh_is_enclosed_by_two_floats_or_three() -> None:
    from flint import arb, ctx

    z = np.r_[np.random.default_rng(0).normal(size=300) * 5, 0.0, 1e-300, -1e-9, 39.9, 50.0, -np.inf, np.inf]
    low, high = tanh_bounds(z)
    before, ctx.prec = ctx.prec, 300
    try:
        for v, a, b in zip(z.tolist(), low.tolist(), high.tolist(), strict=True):
            exact = arb(v).tanh() if abs(v) < 1e9 else arb(1 if v > 0 else -1)
            assert arb(a) <= exact <= arb(b)
    finally:
        ctx.prec = before
    assert (high - low <= 6e-16).all()


SETS: dict[str, Any] = {
    "box": Box(0, 1),
    "change": Box(-0.2, 0.3, on="change"),
    "tv": Box(0, 1) & TotalVariation(0.8, (3, 4)),
    "polytope": Box(-1, 2) & Polytope(np.random.default_rng(5).normal(size=(4, 12)), np.full(4, 2.5), equal=(np.ones((1, 12)), np.array([6.0]))),
    "balls": Box(0, 1) & LpBall(Norm(2, np.linspace(0.5, 2, 12)), 0.5, center=np.full(12, 0.45), on="input") & LpBall(1, 0.9),
}  # fmt: skip


GROUPS = GroupNorm([[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]])


@pytest.mark.parametrize("norm", [1, 2, "inf", Norm(2, np.linspace(0.5, 2, 12)), Norm(1, np.linspace(0.5, 2, 12)), GROUPS], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_the_support_function_is_an_upper_bound_and_nearly_tight(name: str, norm: Any) -> None:
    import cvxpy as cp

    x0, radius, n = np.full(12, 0.5), 0.7, Norm.of(norm)
    doc, cell = document(x0, norm, SETS[name], radius)
    A = np.random.default_rng(1).normal(size=(6, 12))
    above, start = Region(doc, cell).above(A)
    again = Region(doc, cell).above(A, start)[0]
    delta = cp.Variable(12)
    length = sum(w * cp.norm(delta[g]) for w, g in zip(GROUPS.omega, GROUPS.groups, strict=True)) if norm is GROUPS else cp.norm(
        cp.multiply(n.scale(12), delta), {1.0: 1, 2.0: 2}.get(n.p, "inf"))  # fmt: skip
    region = [length <= radius, *SETS[name].relative_to(x0).constraints(delta)]
    for row, bound, second in zip(A, above, again, strict=True):
        best = cp.Problem(cp.Maximize(row @ delta), region).solve(solver="CLARABEL")
        assert bound >= best - 1e-7
        assert second >= best - 1e-7
        assert min(bound, second) <= best * 1.05 + 1e-6


@pytest.mark.parametrize("norm", [1, 2, "inf", Norm(2, np.linspace(0.5, 2, 12)), Norm(1, np.linspace(0.5, 2, 12))], ids=str)
def test_cells_that_do_not_hold_x0_are_bounded_tightly(norm: Any) -> None:
    """A cell of cut inputs takes its nearest change off the ball's radius."""
    import cvxpy as cp

    n = Norm.of(norm)
    doc, cell = document(np.full(12, 0.5), norm, Box(0, 1), 0.7)
    cuts = [Split("input", 0, 0.7, 1), Split("input", 3, 0.4, -1), Split("input", 4, 0.6, -1)]
    A = np.random.default_rng(3).normal(size=(40, 12))
    above = Region(doc, replace(cell, path=cuts)).above(A)[0]
    delta = cp.Variable(12)
    length = cp.norm(cp.multiply(n.scale(12), delta), {1.0: 1, 2.0: 2}.get(n.p, "inf"))
    region = [length <= 0.7, delta >= -0.5, delta <= 0.5, delta[0] >= 0.2, delta[3] <= -0.1, delta[4] <= 0.1]
    for row, bound in zip(A, above, strict=True):
        best = cp.Problem(cp.Maximize(row @ delta), region).solve(solver="CLARABEL")
        assert best - 1e-7 <= bound <= best + 1e-6 * (1 + abs(best))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, "inf"]), st.floats(-8, 8))
def test_the_support_function_beats_every_point_exactly(seed: int, p: Any, size: float) -> None:
    """Against rational arithmetic, at points that lie in the region for certain; scales from 10^-8 to 10^8."""
    rng = np.random.default_rng(seed)
    scale = 10.0**size
    x0, A = rng.normal(size=6) * scale, rng.normal(size=(5, 6)) * 10.0 ** rng.uniform(-6, 6, (5, 1))
    radius = scale * rng.uniform(0.1, 2)
    doc, cell = document(x0, p, Box(-2 * scale, 2 * scale, on="change"), radius)
    above = Region(doc, cell).above(A)[0]
    delta = in_ball(p, 6, radius, 30, seed)
    for d in delta:
        exactly = [Fraction(v) for v in d.tolist()]
        length = {1: sum(map(abs, exactly)), 2: sum(v * v for v in exactly), "inf": max(map(abs, exactly))}[p]
        if length > Fraction(radius) ** (2 if p == 2 else 1) or max(map(abs, exactly)) > Fraction(2 * scale):
            continue
        for row, bound in zip(A.tolist(), above.tolist(), strict=True):
            assert sum(Fraction(a) * v for a, v in zip(row, exactly, strict=True)) <= Fraction(bound)
