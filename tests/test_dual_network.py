"""The dual network: every iterate is a bound, against exact radii and against real flips; on fixed rows it reaches the solver's dual value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from formulations.norms import Norm
from formulations.programs import min_norm, relative_parts
from formulations.support import Region
from lde_cvx.models import digits_model
from verification.branching import branch_radius
from verification.dual_network import DualNetwork, FixedRows, dual_radii, train
from verification.radius import certified_radius

SHAPE = (4, 4)
SETS = {
    "all": None,
    "box": lde.Box(0, 1),
    "tv": lde.Box(0, 1) & lde.TotalVariation(0.8, shape=SHAPE),
    "rows": lde.Box(0, 1) & lde.Polytope(np.ones((1, 16)), [9.0]),
    "ball": lde.Box(0, 1) & lde.LpBall(1, 0.9) & lde.LpBall(2, 0.6),
}


def small(seed=0, d=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def points(n, d, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("norm", "C"), [
    (2, None), (1, lde.Box(0, 1)), ("inf", lde.Box(0, 1)), (2, lde.Box(0, 1) & lde.TotalVariation(0.5, shape=(6,))),
])  # fmt: skip
def test_no_iterate_exceeds_the_exact_radius(norm, C):
    model, x = small(), points(2, 6)
    run = dual_radii(model, x, norm, C, steps=41)
    for i in range(2):
        exact = lde.exact_radius(model, x[i], norm=norm, constraints=C)
        assert (run.history[::10, i] <= exact.upper * (1 + 1e-9)).all()
        assert (run.history[:, i] <= exact.upper * (1 + 1e-9)).all()
    assert (run.lower >= run.history[0]).all()
    assert (run.lower == run.history.max(0)).all()
    assert (run.lower > 0).all()


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_any_parameters_at_all_give_a_bound(norm):
    """Slopes and multipliers at random, far from any optimum and outside their domains: the layers bring them back, and the output stays below real flips."""
    model, x, C = small(3, 16), points(2, 16), lde.Box(0, 1) & lde.TotalVariation(0.8, shape=SHAPE) & lde.Polytope(np.ones((1, 16)), [12.0])
    upper = lde.find_witness(model, x, norm, C).upper
    net = dual_radii(model, x, norm, C, steps=1).network
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0):
        for r in (0.3, 1.0, 3.0):
            with torch.no_grad():
                for p in net.parameters():
                    p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
                net.move(torch.full_like(net.get_buffer("radius"), r))
                assert (net().numpy() <= upper * (1 + 1e-9)).all()


def fixed(norm, C, n=6, d=16, seed=0):
    rng = np.random.default_rng(seed)
    A, x0 = rng.normal(size=(n, d)), rng.uniform(0.2, 0.5, size=(n, d))
    b = 0.15 * np.atleast_1d(Norm.of(norm).dual_value(A)) * (1.0 if norm == 2 else 0.4 if norm == "inf" else 2.0)
    parts = relative_parts(C, d, x0, n)
    region = Region.build(Norm.of(norm), parts, np.zeros(n), d, count=n)
    rows = FixedRows(torch.tensor(A)[:, None], torch.tensor(b)[:, None])
    return DualNetwork(rows, Norm.of(norm), parts, region), min_norm(A, b, norm, C, x0)


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("kind", list(SETS))
def test_fixed_rows_reach_the_solvers_dual_value(norm, kind):
    """Within 500 steps: ≥ 99.9 % of every program's verified optimum, and never above the primal."""
    net, solved = fixed(norm, SETS[kind])
    run = train(net, steps=1, settling=499)
    reached = np.isfinite(solved.value)
    assert reached.sum() >= 3
    assert (run.history[:, reached] <= solved.value[reached] * (1 + 1e-7)).all()
    share = run.lower[reached] / solved.lower[reached]
    assert share.min() >= 0.999


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("kind", ["tv", "rows", "ball"])
def test_warm_starts_begin_at_the_optimum(norm, kind):
    net, solved = fixed(norm, SETS[kind], seed=2)
    before = net().detach().numpy()
    net.warm_start([solved])
    after = net().detach().numpy()
    reached = np.isfinite(solved.value) & (solved.lower > 0)
    assert (after[reached] >= (1 - 1e-5) * solved.lower[reached]).all()
    assert (after[reached] >= before[reached] * (1 - 1e-9)).all()


def test_gradients_are_the_derivatives_of_the_bound():
    """By finite differences in the slopes and in the multipliers, away from kinks."""
    net = dual_radii(small(5, 16), points(2, 16), 2, SETS["rows"], steps=3).network
    value = net.values().amin(1).sum()
    grads = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    generator, checked = torch.Generator().manual_seed(0), 0
    for p, g in zip(net.parameters(), grads, strict=True):
        if g is None or not bool((g != 0).any()):
            continue
        for _ in range(12):
            flat = torch.nonzero(g.flatten() != 0).flatten()
            j = int(flat[torch.randint(len(flat), (1,), generator=generator)])
            if not 1e-4 < float(p.flatten()[j]) < 1 - 1e-4:
                continue
            sides = []
            for h in (1e-6, -1e-6):
                with torch.no_grad():
                    p.view(-1)[j] += h
                    sides.append(float(net.values().amin(1).sum()))
                    p.view(-1)[j] -= h
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(g.flatten()[j]), rel=1e-3, abs=1e-6)
            checked += 1
    assert checked >= 3


def test_it_beats_alpha_crown_on_digits():
    """ℓ2 over the box: slopes of all layers and the radius together, against slopes for a fixed radius with the library's own search."""
    trained, data = digits_model()
    x = torch.tensor(data.X[trained.test_rows])
    x = x[(trained.model(x).argmax(1).numpy() == data.y[trained.test_rows])][:6]
    crown = certified_radius(trained.model, x, 2, lde.Box(0, 1))
    alpha = certified_radius(trained.model, x, 2, lde.Box(0, 1), method="alpha-crown")
    run = dual_radii(trained.model, x, 2, lde.Box(0, 1), radius=crown.lower, steps=90)
    assert (run.lower > alpha.lower).mean() >= 0.7
    assert (run.history <= lde.find_witness(trained.model, x, 2, lde.Box(0, 1)).upper * (1 + 1e-9)).all()
    assert run.stopped or run.steps == 90


@pytest.mark.parametrize(("norm", "C"), [
    (2, None), (1, lde.Box(0, 1)), ("inf", lde.Box(0, 1) & lde.TotalVariation(0.5, shape=(6,))),
])  # fmt: skip
def test_the_radius_search_takes_it_as_an_engine(norm, C):
    """Never below CROWN, never above the exact radius; its rows are minorants on the radius that they state, attacked at random and at their own minimum."""
    model, x = small(), points(2, 6)
    crown, dual = (certified_radius(model, x, norm, C, method=m) for m in ("crown", "dual-network"))
    assert dual.method == "dual-network"
    assert (dual.lower >= crown.lower).all()
    assert {item.method for item in dual} & {"dual-network"}
    rng = np.random.default_rng(0)
    for i, item in enumerate(dual):
        exact = lde.exact_radius(model, x[i], norm=norm, constraints=C)
        assert item.lower <= exact.upper * (1 + 1e-9)
        first = int(model(x[i]).argmax())
        for row in item.rows:
            tries = rng.normal(size=(200, 6)) * rng.uniform(size=(200, 1))
            deltas = [row.solution.delta, *tries] if np.isfinite(row.solution.delta).all() else list(tries)
            for delta in deltas:
                if C is not None:
                    delta = C.relative_to(x[i].numpy()).project(delta)
                delta = delta * min(1.0, row.radius / max(float(Norm.of(norm).value(delta)), 1e-12))  # towards 0, which C holds
                y = model(x[i] + torch.tensor(delta)).detach().numpy()
                assert row.a @ delta + row.b <= y[first] - y[row.rival] + 1e-9
    rivals = certified_radius(model, x, norm, C, method="dual-network", per_rival=True)
    assert (rivals.lower <= [lde.exact_radius(model, v, norm=norm, constraints=C).upper * (1 + 1e-9) for v in x]).all()


def test_branching_begins_from_its_rows():
    """What they prove is kept with no cell at all, the search closes at the exact radius, and rows of another decision are refused."""
    model, x, C = small(2), points(3, 6, 1), lde.Box(0, 1)
    rows = certified_radius(model, x, 2, C, method="dual-network")
    for i in range(3):
        exact = lde.exact_radius(model, x[i], norm=2, constraints=C)
        asked = branch_radius(model, x[i], None, 2, C, known=rows[i].rows, node_limit=0)
        assert rows[i].lower <= asked.lower <= exact.upper * (1 + 1e-9)
        done = branch_radius(model, x[i], None, 2, C, known=rows[i].rows)
        assert done.closed
        assert done.lower == pytest.approx(exact.upper, rel=1e-5)
        assert done.lower <= exact.upper * (1 + 1e-9)
    with pytest.raises(lde.InputError, match="known rows against"):
        branch_radius(model, x[0], None, 2, C, known=rows[0].rows[:1])


def test_a_trained_network_is_as_it_was_at_its_best():
    """Parameters and radii of each input's best step: one more pass gives the reported bound."""
    run = dual_radii(small(1), points(4, 6), 2, lde.Box(0, 1), steps=30)
    assert run.network().detach().numpy() == pytest.approx(run.lower, rel=1e-12)


def test_no_tensor_is_made_on_the_default_device():
    """Under another default device every tensor that was made without one is left behind, and meeting it raises: what runs here runs on any device."""
    model, x = small(), points(2, 6)
    with torch.device("meta"):
        tv, groups = lde.TotalVariation(0.5, shape=(6,)), lde.TotalVariation(0.5, shape=(2, 3), isotropic=True)
        for C in (lde.Box(0, 1), lde.Box(0, 1) & tv & lde.LpBall(1, 0.9), lde.Box(0, 1) & groups, lde.Box(0, 1) & lde.LpBall(2, 0.9)):
            run = dual_radii(model, x, 1, C, steps=4, device="cpu")
            assert (run.lower > 0).all()


@pytest.mark.slow
def test_no_iterate_of_a_thousand_inputs_is_invalid():
    """Every 10th step: 400 inputs of small networks against exact radii, 600 digits against witnesses."""
    for seed in range(20):
        model, x, norm = small(seed), points(20, 6, seed), (1, 2, "inf")[seed % 3]
        run = dual_radii(model, x, norm, lde.Box(0, 1), steps=61)
        exact = np.array([lde.exact_radius(model, v, norm=norm, constraints=lde.Box(0, 1)).upper for v in x])
        assert (run.history[::10] <= exact * (1 + 1e-9)).all()
    trained, data = digits_model()
    for k, norm in enumerate((2, 1, "inf")):
        x = torch.tensor(data.X[200 * k : 200 * (k + 1)])
        run = dual_radii(trained.model, x, norm, lde.Box(0, 1), steps=61)
        assert (run.history[::10] <= lde.find_witness(trained.model, x, norm, lde.Box(0, 1)).upper * (1 + 1e-9)).all()


def test_what_cannot_flip_is_unreachable():
    model = small()
    with torch.no_grad():
        model[-1].bias += torch.tensor([50.0, 0.0, 0.0])
    run = dual_radii(model, points(2, 6), 2, lde.Box(0, 1), steps=30)
    assert np.isinf(run.lower).all()


def test_the_bench_measures_verified_values():
    """A small run: shares never above Clarabel's dual value, and they grow with the steps."""
    from lde_cvx.bench.dual import measure

    table = measure(float("inf"), 4, steps=(50, 300), side=4)
    ours = table[table.method.str.startswith("dual")]
    assert (ours["least share"] <= 1 + 1e-6).all()
    assert ours["median share"].is_monotonic_increasing
    assert (table.ms > 0).all()


@pytest.mark.parametrize("norm", [1.0, 2.0, float("inf")])
def test_where_the_budget_binds_every_program_is_reached(norm):
    """Rows that must fall by up to 60 % of what box and total variation allow: plateaus, faces and the budget all at once."""
    from lde_cvx.bench.dual import measure

    ours = measure(norm, 8, steps=(500,), side=10).iloc[-1]
    assert 0.999 <= ours["least share"] <= 1 + 1e-6


def test_bad_input():
    x = points(2, 6)
    with pytest.raises(lde.InputError, match="GroupNorm"):
        dual_radii(small(), x, lde.GroupNorm([[0, 1, 2], [3, 4, 5]]), lde.Box(0, 1))
    with pytest.raises(lde.InputError, match="Tanh"):
        dual_radii(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double(), x)
    with pytest.raises(lde.InputError, match="FixedRows"):
        FixedRows(torch.zeros(2, 3), torch.zeros(2))
