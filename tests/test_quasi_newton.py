"""Conditional gradients with second-order models: projections against a solver, optima within their gaps, and functions that are not convex."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from formulations.frank_wolfe import SparseBox, Variant, gradient_of, minimise
from formulations.quasi_newton import minimise_by_models


def inside(point: Tensor, rates: Tensor) -> bool:
    return bool((point >= 0).all() & (point <= 1).all() & (point.sum(1) <= rates + 1e-9).all())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.floats(0, 1), st.integers(0, 10**6), st.booleans())
def test_the_projection_is_the_nearest_point(d: int, share: float, seed: int, ties: bool) -> None:
    """⟨y − Py, v − Py⟩ ≤ 0 for every v in P: tried on all kinds of points of P, vertices that attack it among them."""
    rng = np.random.default_rng(seed)
    rates = torch.tensor([share * d], dtype=torch.float64)
    P, y = SparseBox(rates), torch.tensor(rng.integers(-2, 3, (1, d)) / 2.0 if ties else rng.normal(size=(1, d)) * 2)
    near = P.project(y)
    assert inside(near, rates)
    assert float(((y - near) * (P.minimise(near - y) - near)).sum()) <= 1e-9  # the worst v of all


def ill_conditioned(seed: int, lanes: int, d: int) -> tuple[Callable[[Tensor], Tensor], np.ndarray, np.ndarray]:
    """½xᵀQx + cx with eigenvalues of Q from 10⁻² to 10²."""
    rng = np.random.default_rng(seed)
    V = np.stack([np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(lanes)])
    Q, c = V * np.geomspace(1e-2, 1e2, d)[None, None] @ V.transpose(0, 2, 1), rng.normal(size=(lanes, d))
    T, C = torch.tensor((Q + Q.transpose(0, 2, 1)) / 2), torch.tensor(c)
    return lambda x: 0.5 * torch.einsum("bi,bij,bj->b", x, T[: len(x)], x) + (C[: len(x)] * x).sum(1), T.numpy(), c


RATES = torch.tensor([1.0, 3.5, 12.0], dtype=torch.float64)


def test_optima_lie_within_their_gaps_and_cost_few_gradients() -> None:
    f, Q, c = ill_conditioned(0, 3, 12)
    start = torch.zeros(3, 12, dtype=torch.float64)
    r = minimise_by_models(gradient_of(f), SparseBox(RATES), start, function=f, steps=100, tolerance=1e-6)
    for lane in range(3):
        s = cp.Variable(12)
        rows = [s >= 0, s <= 1, cp.sum(s) <= float(RATES[lane])]
        best = cp.Problem(cp.Minimize(0.5 * cp.quad_form(s, cp.psd_wrap(Q[lane])) + c[lane] @ s), rows).solve()
        assert best - 1e-7 <= float(r.value[lane]) <= best + float(r.dual_gap[lane]) + 1e-7  # f is convex: the gap is a bound
    assert float(r.dual_gap.max()) <= 1e-6
    assert inside(r.point, RATES)
    assert bool((r.values.diff(dim=0) <= 0).all())
    away = minimise(gradient_of(f), SparseBox(RATES), start, function=f, variant=Variant.AWAY, steps=r.gradients)
    assert bool((r.value <= away.value + 1e-9).all())


@pytest.mark.parametrize("seed", range(4))
def test_values_fall_where_the_function_is_not_convex(seed: int) -> None:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3, 12, 12))
    Q, c = torch.tensor(A + A.transpose(0, 2, 1)), torch.tensor(rng.normal(size=(3, 12)))

    def f(x: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,bij,bj->b", x, Q, x) + (c * x).sum(1) + torch.cos(3 * x).sum(1)

    r = minimise_by_models(gradient_of(f), SparseBox(RATES), torch.zeros(3, 12, dtype=torch.float64), function=f, steps=100, tolerance=1e-6)
    assert inside(r.point, RATES)
    assert bool((r.values.diff(dim=0) <= 0).all())
    assert float(r.dual_gap.max()) <= 1e-4 * (1 + float(r.value.abs().max()))
    torch.testing.assert_close(r.value, f(r.point))


def test_lanes_do_not_touch_each_other() -> None:
    f, *_ = ill_conditioned(2, 3, 12)
    start = torch.zeros(3, 12, dtype=torch.float64)
    together = minimise_by_models(gradient_of(f), SparseBox(RATES), start, function=f, steps=15)
    alone = minimise_by_models(gradient_of(f), SparseBox(RATES[:1]), start[:1], function=f, steps=15)
    torch.testing.assert_close(together.values[: len(alone.values), 0], alone.values[:, 0])


def test_work_is_counted_call_by_call() -> None:
    f, *_ = ill_conditioned(1, 3, 12)
    calls = {"f": 0, "g": 0}

    def counted(x: Tensor) -> Tensor:
        calls["f"] += 1
        return f(x)

    def oracle(x: Tensor) -> tuple[Tensor, Tensor]:
        calls["g"] += 1
        return gradient_of(f)(x)

    r = minimise_by_models(oracle, SparseBox(RATES), torch.zeros(3, 12, dtype=torch.float64), function=counted, steps=20)
    assert (r.evaluations, r.gradients) == (calls["f"], calls["g"])


def test_nothing_to_do_and_nowhere_to_go() -> None:
    f, *_ = ill_conditioned(1, 3, 12)
    start, nothing = torch.zeros(3, 12, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    r = minimise_by_models(gradient_of(f), SparseBox(nothing), start, function=f)
    assert bool((r.point == 0).all())
    assert (float(r.dual_gap.max()), r.gradients) == (0.0, 1)
