"""Linear functions over a cap: never below what a point of it reaches, close to the true maximum; and rows that hold at every flip."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from formulations.caps import Cap
from formulations.norms import Norm
from formulations.programs import relative_parts
from formulations.support import Region
from verification.capped import CappedRows, mixed
from verification.lirpa import BoundEngine, BoundMethod
from verification.model import decide, margins, outputs, stack

D = 5
SETS = {"all": None, "box": lde.Box(0, 1), "tv": lde.Box(0, 1) & lde.TotalVariation(0.6, shape=(D,))}


def region(norm, C, n, radius, seed=0):
    x0 = np.random.default_rng(seed).uniform(0.2, 0.8, size=(n, D))
    norm = Norm.of(norm)
    return Region.build(norm, relative_parts(C, D, x0, n), np.full(n, radius), D, count=n), x0


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("kind", list(SETS))
def test_never_below_the_maximum_over_the_cap_and_close_to_it(norm, kind):
    """Against CVXPY, from fat caps to thin ones (the row falls on a share of its range only); never worse than over the whole region."""
    rng, n, C = np.random.default_rng(1), 2, SETS[kind]
    R, x0 = region(norm, C, n, 0.5)
    a = rng.normal(size=(n, D))
    deepest = R.support(-torch.tensor(a)[:, None])[:, 0].numpy()
    A = torch.tensor(rng.normal(size=(n, 3, D)))
    for share in (-0.3, 0.5, 0.99):
        b = share * deepest
        bound = Cap.of(R, torch.tensor(a), torch.tensor(b)).support(A).numpy()
        assert (bound <= R.support(A).numpy() + 1e-9).all()
        for i in range(n):
            d = cp.Variable(D)
            rows = [a[i] @ d + b[i] <= 0, cp.norm(d, Norm.of(norm).p) <= 0.5, *(C.constraints(x0[i] + d) if kind == "box" else [])]
            if kind == "tv":
                rows += [x0[i] + d >= 0, x0[i] + d <= 1, cp.norm1(cp.diff(d)) <= 0.6]
            for j in range(3):
                true = cp.Problem(cp.Maximize(A[i, j].numpy() @ d), rows).solve(solver="CLARABEL")
                if not np.isfinite(true):  # only where the region's own support function is no more than a bound
                    assert kind == "tv"
                    continue
                assert bound[i, j] >= true - 1e-7
                assert kind == "tv" or bound[i, j] <= true + 2e-3 * (1 + abs(true))


def test_a_box_without_a_row_is_a_box_again():
    R, _ = region("inf", SETS["box"], 2, 0.3)
    cap = Cap.of(R, torch.ones(2, D, dtype=torch.float64), torch.full((2,), -100.0, dtype=torch.float64))
    A = torch.tensor(np.random.default_rng(0).normal(size=(2, 4, D)))
    assert not cap.is_box
    assert torch.allclose(cap.support(A), R.support(A), atol=1e-8)
    assert cap.holds_zero().all()
    assert torch.equal(cap.take([1]).support(A[1:]), cap.support(A)[1:])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("norm", "kind"), [(2, "box"), (1, "all"), ("inf", "box"), (2, "tv")])
def test_carried_rows_fall_at_every_flip(activation, norm, kind):
    """Beyond the radius, where flips are: at each sampled one its row, narrowed again and again, is at most 0; and none is nearer than what is proved."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(D, 10), activation(), nn.Linear(10, 10), activation(), nn.Linear(10, 3)).double()
    n, C, norm = 2, SETS[kind], Norm.of(norm)
    R, x0 = region(norm, C, n, 0.0, seed=4)
    x = torch.tensor(x0)
    with torch.no_grad():  # so that decisions differ, and flips are near
        model[-1].bias -= model(x).mean(0)
    engine = BoundEngine(model, (D,))
    Q, s, real = stack(decide(outputs(engine.model, x), None), x)
    search = CappedRows(engine, x, Q, s, real, R, BoundMethod.CROWN, torch.zeros_like(s))
    found = lde.find_witness(model, x, norm, C)
    upper = found.upper
    rng, seen = np.random.default_rng(0), 0
    for part in (1.3, 1.03):
        r = torch.tensor(part * upper)
        search.look(torch.where(torch.isfinite(r), r, torch.nan))
        assert (search.lower.numpy() <= upper * (1 + 1e-9)).all()
        for i in np.flatnonzero(np.isfinite(upper)):
            change = rng.uniform(1, part, size=(2000, 1)) * found.delta[i] + rng.normal(size=(2000, D)) * 0.1 * (part - 1) * upper[i]
            change = change[norm.value(change) <= float(r[i])]
            if C is not None:
                change = np.clip(x0[i] + change, 0, 1) - x0[i]
            if kind == "tv":
                change = change[np.abs(np.diff(change)).sum(1) <= 0.6]
            z = torch.tensor(change)
            m = margins(model, x[i] + z, Q[i].expand(len(z), -1, -1), s[i].expand(len(z), -1))
            held = (search.holds[i] >= r[i]) & torch.isfinite(search.b[i])
            value = z @ search.a[i].T + search.b[i]
            flips = (m <= 0) & held
            seen += int(flips.sum())
            assert bool((value[flips] <= 1e-9).all())
    assert seen > 100


def test_mixtures_reach_the_program_with_both_rows():
    """The farthest mixture is the dual of falling together: within 1 % of the program, never above; an unknown row changes nothing."""
    rng, n = np.random.default_rng(2), 6
    R, x0 = region(2, SETS["box"], n, 1.0)
    a, other = (torch.tensor(rng.normal(size=(n, D))) for _ in range(2))
    b, level = (torch.tensor(rng.uniform(0.1, 0.4, size=n)) for _ in range(2))
    A, B, w = mixed(R, a, b, other, level)
    assert torch.allclose(R.distance(A[:, None], B[:, None])[:, 0], w)
    for i in range(n):
        d = cp.Variable(D)
        rows = [a[i].numpy() @ d + b[i] <= 0, other[i].numpy() @ d + level[i] <= 0, x0[i] + d >= 0, x0[i] + d <= 1]
        true = cp.Problem(cp.Minimize(cp.norm(d)), rows).solve(solver="CLARABEL")
        assert w[i] <= true * (1 + 1e-6) + 1e-9
        assert w[i] >= 0.98 * true or not np.isfinite(true)
    alone = mixed(R, a, b, other, torch.full_like(b, -torch.inf))
    assert torch.equal(alone[0], a)
    assert torch.equal(alone[1], b)
