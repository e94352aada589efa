"""Leaps and walks, the parts of the search for ‖Wδ‖_1 alone: their steps against the convex program, their answers against the network."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.norms import INF, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets import Box, ConvexSet
from tests.digits_net import correct_digits
from verification.attack import Budget, Effort, find_witness
from verification.attack.lanes import Lanes
from verification.attack.leaping import leap
from verification.attack.network import Network
from verification.attack.search import Search
from verification.attack.subproblem import subproblem
from verification.attack.walking import shrink, walk
from verification.attack.witness import SPARSE_EFFORT

PIXELS = Box(0, 1)
SMALL = replace(
    SPARSE_EFFORT,
    rivals=3,
    steps=2,
    growing_steps=5,
    leaps=6,
    leap_steps=6,
    walk=((2, 3), (1, 5)),
    polish=((2, 1),),
    probes=2,
    samples=0,
    folds=0,
)


def search(model: nn.Module, x: Tensor, C: ConvexSet | None, norm: Norm, budget: Budget | None = None) -> Search:
    net = Network(model, x, 64)
    net.decide(None)
    parts = relative_parts(C, net.d, x.flatten(1).numpy(), len(x))
    found = Search(
        net, subproblem(norm, parts, len(x), net.d, x.device), norm, budget or Budget(), Effort(), [0] * len(x), INF, lambda: None
    )
    found.margins, _ = net.margins(found.anchor, torch.arange(len(x)))
    return found


def rugged(seed: int, d: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 3)).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight *= 3
    return net


@pytest.mark.parametrize("C", [PIXELS, Box(-2, 3), None], ids=["pixels", "wide", "free"])
def test_a_step_of_the_walk_is_the_convex_programs_answer(C: ConvexSet | None) -> None:
    g = torch.Generator().manual_seed(0)
    n, d = 8, 12
    x, scale = torch.rand(n, d, generator=g, dtype=torch.float64), torch.rand(d, generator=g, dtype=torch.float64) + 0.5
    s = search(nn.Linear(d, 3).double(), x, C, Norm(1, scale.tolist()))
    who = torch.arange(n)
    here = s.steps.outward(who, 0.4 * torch.randn(n, d, generator=g, dtype=torch.float64), torch.ones(n).double())
    a = torch.randn(n, d, generator=g, dtype=torch.float64)
    a[:, ::5] = 0.0
    b = 0.05 * torch.randn(n, generator=g, dtype=torch.float64) - (a * here).sum(1)  # the boundary passes near by
    radius = torch.tensor([0.3, 0.5, 1.0, 3.0] * 2, dtype=torch.float64)
    answer = shrink(s, who, a, b, here, radius)
    lo, hi = (v.numpy() for v in s.steps.box(who))
    w = scale.numpy()
    for i in range(n):
        z = cp.Variable(d)
        rows = [a[i].numpy() @ z + float(b[i]) <= 0, cp.norm(cp.multiply(w, z - here[i].numpy())) <= float(radius[i])]
        inside = [k for k in range(d) if np.isfinite(lo[i, k])]
        best = cp.Problem(
            cp.Minimize(cp.norm1(cp.multiply(w, z))), rows + [c for k in inside for c in (z[k] >= lo[i, k], z[k] <= hi[i, k])]
        ).solve(solver="CLARABEL")
        found = answer[i].numpy()
        assert s.steps.violation(i, found) <= 1e-12
        assert np.linalg.norm(w * (found - here[i].numpy())) <= float(radius[i]) * (1 + 1e-9)
        if np.isfinite(best):
            assert a[i].numpy() @ found + float(b[i]) <= 1e-6
            assert np.abs(w * found).sum() == pytest.approx(best, rel=1e-3, abs=1e-4)


def test_a_step_towards_a_row_out_of_reach_falls_within_the_ball() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(5, 9, generator=g, dtype=torch.float64)
    s = search(nn.Linear(9, 3).double(), x, PIXELS, Norm(1))
    who, here = torch.arange(5), torch.zeros(5, 9).double()
    a = torch.randn(5, 9, generator=g, dtype=torch.float64)
    a[4] = 0.0  # a slope that says nothing
    answer = shrink(s, who, a, torch.full((5,), 100.0).double(), here, torch.full((5,), 0.2, dtype=torch.float64))
    assert torch.isfinite(answer).all()
    assert (torch.linalg.vector_norm(answer, dim=1) <= 0.2 + 1e-9).all()
    assert ((a * answer).sum(1)[:4] < -0.05).all()
    assert all(s.steps.violation(i, answer[i].numpy()) <= 1e-12 for i in range(5))


@pytest.mark.parametrize("C", [PIXELS, None], ids=["box", "free"])
def test_leaps_solve_linear_networks(C: ConvexSet | None) -> None:
    """One linear row: the nearest flip at p = 1 moves the entries of the greatest slopes to their ends, one after another."""
    g = torch.Generator().manual_seed(2)
    d, scale = 10, np.linspace(0.5, 2.0, 10)
    model = nn.Linear(d, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, d, generator=g))
        model.bias.copy_(torch.tensor([0.0, 0.3]))
    x = torch.rand(12, d, generator=g, dtype=torch.float64)
    norm = Norm(1, scale.tolist())
    s = search(model, x, C, norm)
    found = leap(s, torch.arange(12), d, d)
    y = model(x).detach()
    sign = torch.where(y[:, 0] > y[:, 1], 1.0, -1.0)
    row = (sign[:, None] * (model.weight[0] - model.weight[1])).detach().numpy()
    exact = np.array([min_norm(row[i], np.abs(y[i, 0] - y[i, 1]).numpy(), norm, C, x[i].numpy()).value for i in range(12)]).ravel()
    assert found.who.tolist() == np.flatnonzero(np.isfinite(exact)).tolist()
    reached = exact[found.who.numpy()]
    assert (found.length.numpy() >= reached * (1 - 1e-9)).all()
    assert (found.length.numpy() <= reached * 1.05).all()
    assert all(s.steps.violation(int(i), p.numpy()) <= 1e-12 for i, p in zip(found.who, found.delta, strict=True))


def test_walks_never_lengthen_what_they_began_with() -> None:
    model, x = rugged(0, 40), torch.rand(6, 40, generator=torch.Generator().manual_seed(0)).double()
    s = search(model, x, PIXELS, Norm(1))
    starts = leap(s, torch.arange(6), 20, 16)
    both = Lanes.join(starts, Lanes(starts.who, starts.row, 1.001 * starts.delta, 1.001 * starts.length))
    walked = walk(s, both, ((1, 30),))
    assert walked.who.tolist() == both.who.tolist()
    shortest = np.array([walked.length[walked.who == i].min() for i in starts.who])
    assert (shortest <= starts.length.numpy()).all()
    assert (shortest < 0.999 * starts.length.numpy()).any()
    for i, delta, length in zip(walked.who.tolist(), walked.delta, walked.length, strict=True):
        assert float(delta.abs().sum()) == pytest.approx(float(length), rel=1e-12)
        assert s.steps.violation(i, delta.clamp(-x[i], 1 - x[i]).numpy()) <= 1e-12
    kept = s.best[starts.who]
    assert (model(x[starts.who] + kept).argmax(1) != model(x[starts.who]).argmax(1)).all()


@pytest.mark.parametrize(("forward", "backward"), [(40, 3), (120, 9), (300, 25)])
def test_their_budgets_are_kept(forward: int, backward: int) -> None:
    model, x, _ = correct_digits(5)
    found = find_witness(model, x, 1, PIXELS, budget=Budget(forward, backward))
    assert (found.forward <= forward).all()
    assert (found.backward <= backward).all()


def test_rugged_networks_are_met_nearer() -> None:
    """Where slopes turn, single entries' differences and an averaged slope see further than the slope at a point."""
    net, x = rugged(0, 40), torch.rand(8, 40, generator=torch.Generator().manual_seed(0)).double()
    sparse = find_witness(net, x, 1, PIXELS, effort=replace(SPARSE_EFFORT, folds=0))
    plain = find_witness(net, x, 1, PIXELS, effort=replace(SPARSE_EFFORT, folds=0, leaps=0, walk=(), growing_steps=100))
    assert sparse.found.all()
    assert np.mean(sparse.upper) < np.mean(plain.upper)
    assert sparse.forward.max() <= 1324
    assert sparse.backward.max() <= 200


@pytest.mark.parametrize("C", [PIXELS, None], ids=["box", "free"])
def test_the_same_bits_whatever_the_batch(C: ConvexSet | None) -> None:
    model, x, _ = correct_digits(5)
    whole = find_witness(model, x, 1, C, effort=SMALL)
    order = np.array([4, 2, 0, 1, 3])
    shuffled = find_witness(model, x[torch.tensor(order)], 1, C, effort=SMALL)
    assert np.array_equal(shuffled.delta, whole.delta[order])
    assert np.array_equal(shuffled.passes, whole.passes[order])
    alone = [find_witness(model, x[i : i + 1], 1, C, effort=SMALL) for i in range(5)]
    assert np.array_equal(np.concatenate([a.delta for a in alone]), whole.delta)
