"""Support functions of ball ∩ C in batches: never below the true maximum, equal to it for ball ∩ box, close to it elsewhere."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

from formulations.ascent import Problem
from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from formulations.pieces import Part
from formulations.sets import Box, ConvexSet, LpBall, Polytope, TotalVariation
from formulations.support import Region

D = 16
GRID = (4, 4)
NORMS = {
    "1": Norm(1), "2": Norm(2), "inf": Norm("inf"),
    "w1": Norm(1, np.linspace(0.5, 2, D)), "w2": Norm(2, np.linspace(0.5, 2, D)), "winf": Norm("inf", np.linspace(0.5, 2, D)),
    "group": GroupNorm([range(0, 4), range(4, 9), range(9, 16)], [1.0, 2.0, 0.5]),
}  # fmt: skip


def one_hot(groups: int = 4) -> Polytope:
    """Changes of one-hot groups keep their sums: Σ δ_g = 0."""
    E = np.kron(np.eye(groups), np.ones(D // groups))
    return Polytope(None, None, equal=(E, np.zeros(groups)), on="change")


def relations() -> Polytope:
    G = np.zeros((2, D))
    G[0, :2], G[1, 5:7] = (1, -1), (-1, 2)
    return Polytope(G, [0.3, 0.1], on="change")


SETS: dict[str, ConvexSet | None] = {
    "nothing": None,
    "box": Box(0, 1),
    "half-open box": Box(-np.inf, 1),
    "frozen": Box(np.r_[np.zeros(D - 2), 0.3, 0.3], np.r_[np.ones(D - 2), 0.3, 0.3]),
    "one-hot": Box(0, 1) & one_hot(),
    "relations": Box(0, 1) & one_hot() & relations(),
    "tv": Box(0, 1) & TotalVariation(1.0, GRID),
    "iso tv": Box(0, 1) & TotalVariation(1.0, GRID, isotropic=True),
    "l2 ball": Box(0, 1) & LpBall(2, 0.4),
    "l1 ball": Box(0, 1) & LpBall(1, 0.6),
    "linf ball": LpBall("inf", 0.1),
    "off-centre ball": LpBall(2, 0.5, center=np.full(D, 0.05)),
}
EXACT = ("nothing", "box", "half-open box", "frozen", "linf ball")


def inputs(count: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).uniform(0.2, 0.8, (count, D))
    x[:, -2:] = 0.3
    return x


def relative(constraints: ConvexSet | None, x0: np.ndarray) -> tuple[Part, ...]:
    return () if constraints is None else tuple(p.relative_to(x0) for p in constraints.parts(x0.shape[-1]))


def true_support(norm: Norm, parts: tuple[Part, ...], radius: float, rows: np.ndarray) -> np.ndarray:
    """The same maximum by CVXPY, one program per row."""
    delta, a = cp.Variable(rows.shape[1]), cp.Parameter(rows.shape[1])
    constraints = [norm.expression(delta) <= radius]
    for part in parts:
        constraints += part.piece.model(delta, part.piece.offsets()).constraints
    problem = cp.Problem(cp.Maximize(a @ delta), constraints)
    out = []
    for row in rows:
        a.value = row
        out.append(problem.solve(solver="CLARABEL"))
    return np.array(out)


def gaps(norm: Norm, constraints: ConvexSet | None, radii: np.ndarray, rows: int, **how: int) -> tuple[np.ndarray, np.ndarray]:
    """(bound − truth, truth) over a batch with its own radius each."""
    x0 = inputs(len(radii))
    A = np.random.default_rng(1).normal(size=(len(radii), rows, D))
    region = Region.build(norm, relative(constraints, x0), radii, D, count=len(radii), **how)
    bound = region.support(torch.tensor(A)).numpy()
    truth = np.stack([true_support(norm, tuple(p.at(i) for p in relative(constraints, x0)), r, A[i]) for i, r in enumerate(radii)])
    return bound - truth, truth


@pytest.mark.parametrize(
    ("norm", "name"), [(p, s) for p in NORMS for s in SETS if p in ("1", "2", "inf") or s in (*EXACT, "one-hot") or (p, s) == ("w2", "tv")]
)
def test_never_below_the_true_maximum_and_close_to_it(norm: str, name: str) -> None:
    gap, truth = gaps(NORMS[norm], SETS[name], np.array([0.05, 0.6]), rows=2)
    assert gap.min() >= -1e-7 * max(1, truth.max()), "a bound below the maximum (1e-7: the solver's own accuracy)"
    if name in EXACT and norm != "group":
        assert gap.max() <= 1e-6 * truth.max()
    else:
        assert (gap / truth).max() <= (0.25 if norm == "group" else 0.08)  # the group norm is itself a piece of the dual


@pytest.mark.parametrize("norm", ["1", "2", "inf", "w1"])
def test_one_hot_equalities_converge_in_the_default_steps(norm: str) -> None:
    for name in ("one-hot", "relations"):
        gap, truth = gaps(NORMS[norm], SETS[name], np.array([0.1, 1.0]), rows=3)
        assert (gap / truth).max() <= 1e-3


def test_no_steps_give_the_bound_over_ball_and_box() -> None:
    x0, A = inputs(3), torch.randn(3, 5, D, dtype=torch.float64)
    for norm in (Norm(1), Norm(2), Norm("inf")):
        plain = Region.build(norm, relative(Box(0, 1), x0), 0.7, D).support(A)
        for steps in (0, 3, 10, 60):
            bound = Region.build(norm, relative(Box(0, 1) & TotalVariation(0.5, GRID), x0), 0.7, D, steps=steps).support(A)
            assert (bound <= plain + 1e-12).all()


def test_random_multipliers_are_valid_too() -> None:
    """The theorem behind every iterate: any u bounds a·δ at every member δ."""
    rng = np.random.default_rng(3)
    x0 = inputs(2)
    constraints = Box(0, 1) & one_hot() & relations() & TotalVariation(2.0, GRID) & LpBall(2, 0.5)
    for norm in (Norm(1), Norm(2), Norm("inf"), NORMS["group"]):
        region = Region.build(norm, relative(constraints, x0), 0.5, D)
        assert region.coupling is not None
        members = np.stack([constraints.relative_to(x).project(0.2 * rng.normal(size=D)) for x in x0])
        members *= np.minimum(1, 0.5 / np.maximum(norm.value(members), 1e-12))[:, None]
        A = torch.tensor(rng.normal(size=(2, 50, D)))
        u = torch.tensor(rng.normal(size=(2, 50, region.coupling.K.shape[0])) * rng.lognormal(size=(2, 50, 1)))
        u = torch.cat([block.feasible(u[..., s]) for s, block in region.coupling.blocks], -1)
        owner = torch.arange(2).repeat_interleave(50)
        problem = Problem(
            (A / region.scale).reshape(100, 1, D), region.lo[owner][:, None], region.hi[owner][:, None],
            region.radius[owner][:, None], region.p, region.coupling.take(owner),
        )  # fmt: skip
        c, mu = (v.reshape(2, 50) for v in problem.bound(u.reshape(100, 1, -1)))
        size = torch.tensor(norm.value(members))[:, None]
        at_member = c + mu * (size**2 / 2 if norm.p == 2 else size)  # the bound at the member's own norm, not only at r
        assert (at_member - torch.einsum("nsd,nd->ns", A, torch.tensor(members)) >= -1e-7).all()


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_boxes_that_do_not_hold_zero(p: int | str) -> None:
    lo, hi = np.full(D, -0.5), np.full(D, 0.8)
    lo[0], hi[1], lo[2], hi[2], lo[3] = 0.1, -0.05, 0.2, 0.2, -np.inf
    parts = tuple(Box(lo, hi, on="change").parts(D))
    A = np.random.default_rng(0).normal(size=(1, 6, D))
    for radius in (0.4, 0.7, 5.0):
        bound = Region.build(Norm(p), parts, radius, D).support(torch.tensor(A)).numpy()[0]
        truth = true_support(Norm(p), parts, radius, A[0])
        assert np.allclose(bound, truth, atol=1e-6)
        assert (bound >= truth - 1e-7).all()
    with pytest.raises(InputError, match="inside the set"):
        Region.build(Norm(p), parts, 0.15, D)


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_degenerate_rows_radii_and_boxes(p: int | str) -> None:
    x0 = inputs(2)
    A = torch.tensor(np.stack([np.zeros((2, D)), np.ones((2, D))]))
    for constraints in (None, Box(0, 1), Box(0, 1) & one_hot()):
        region = Region.build(Norm(p), relative(constraints, x0), np.array([0.0, 0.0]), D, count=2)
        assert torch.equal(region.support(A), torch.zeros(2, 2, dtype=torch.float64)) or region.support(A).abs().max() < 1e-12
        assert region.with_radius(torch.tensor([1.0, 1.0])).support(A)[0].abs().max() < 1e-12
    fixed = Region.build(Norm(p), relative(Box(0.4, 0.4), np.full((1, D), 0.4)), 1.0, D)
    assert fixed.support(torch.randn(1, 3, D, dtype=torch.float64)).abs().max() == 0


def test_errors_name_the_value() -> None:
    x0 = inputs(1)
    with pytest.raises(InputError, match="coordinate 0 of input 0"):
        Region.build(Norm(2), relative(Box(0, 1), x0) + relative(Box(2, 3), x0), 1.0, D)
    with pytest.raises(InputError, match="relative to x0"):
        Region.build(Norm(2), tuple(Box(0, 1).parts(D)), 1.0, D)
    for bad in (-1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="radius"):
            Region.build(Norm(2), relative(Box(0, 1), x0), bad, D)


@pytest.mark.parametrize(
    ("norm", "name"), [(p, s) for p in ("1", "w2", "inf", "group") for s in ("nothing", "box", "one-hot")] + [("2", "tv")]
)
def test_distance_is_a_lower_bound_of_the_program(norm: str, name: str) -> None:
    """min ‖Wδ‖ s.t. a·δ + b ≤ 0, δ ∈ C: never above CVXPY's value, equal for a box, +inf only where infeasible."""
    rng = np.random.default_rng(5)
    x0 = inputs(2)
    parts = relative(SETS[name], x0)
    region = Region.build(NORMS[norm], parts, np.array([0.3, 0.9]), D, count=2)
    a = rng.normal(size=(2, 2, D))
    reach = region.with_radius(torch.full((2,), 1e3)).support(torch.tensor(-a)).numpy() if name != "nothing" else np.full((2, 2), 10.0)
    b = reach * np.array([[0.05, 0.5], [0.2, 1.5]])
    got = region.distance(torch.tensor(a), torch.tensor(b)).numpy()
    for i in range(2):
        for k in range(2):
            delta = cp.Variable(D)
            constraints = [a[i, k] @ delta + b[i, k] <= 0]
            for part in parts:
                constraints += part.at(i).piece.model(delta, part.at(i).piece.offsets()).constraints
            true = cp.Problem(cp.Minimize(NORMS[norm].expression(delta)), constraints).solve(solver="CLARABEL")
            assert got[i, k] <= true * (1 + 1e-6) + 1e-7
            if name in EXACT and norm != "group":
                assert np.isclose(got[i, k], true, rtol=1e-5)
            elif np.isfinite(true):
                assert got[i, k] >= 0.75 * true
    assert (region.distance(torch.tensor(a), torch.zeros(2, 2, dtype=torch.float64)) == 0).all()


def test_subsets_and_hulls() -> None:
    x0 = inputs(4)
    region = Region.build(Norm(1), relative(Box(0, 1) & one_hot(), x0), np.array([0.1, 0.2, 0.3, 5.0]), D)
    A = torch.randn(4, 3, D, dtype=torch.float64)
    assert torch.allclose(region.take([2, 0]).support(A[[2, 0]]), region.support(A)[[2, 0]], rtol=1e-3)
    lo, hi = region.hull()
    assert torch.allclose(lo, torch.maximum(torch.tensor(-x0), -region.radius[:, None]))
    assert not region.is_box
    assert Region.build(Norm("inf"), relative(Box(0, 1), x0), 1.0, D).is_box
    assert torch.allclose(region.reach(), torch.tensor(np.maximum(x0, 1 - x0).sum(1)))
    assert (hi >= lo).all()


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_gradients_in_the_rows_are_maximisers(p: int | str) -> None:
    """Slopes α are raised through the support function: its gradient at A is a δ of the region (ball ∩ box)."""
    region = Region.build(Norm(p), relative(Box(0, 1), inputs(2)), 0.8, D)
    A = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    value = region.support(A)
    (delta,) = torch.autograd.grad(value.sum(), A)
    assert torch.allclose((delta * A).sum(-1), value, atol=1e-9)
    lo, hi = region.hull()
    assert (delta <= hi[:, None] + 1e-9).all()
    assert (delta >= lo[:, None] - 1e-9).all()
