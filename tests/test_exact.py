"""The radius itself, against the enumeration of every activation pattern, the mixed-integer program, and random attacks on every bound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.norms import INF, GroupNorm, Norm
from formulations.sets import Box, LpBall, Polytope
from formulations.support import Region
from tests.catalogue import Spectral
from tests.exact_example import DIM, LINEAR, NORMS, SETS, Case, case, network, scene, truth
from verification.decision import Decision
from verification.exact import MARGIN, Engine, Evidence, ExactStatus, exact_radius
from verification.exact.bounds import Propagation, everywhere
from verification.exact.question import Question
from verification.exact.relaxation import Relaxation
from verification.relu_chain import ReluChain

EXACT = 1e-6


def solve(c: Case, norm, constraints, **how):
    return exact_radius(c.chain, c.x0, c.decision, norm, constraints, **how)


def assert_witness(c: Case, norm, constraints, answer) -> None:
    """It flips the network, lies in the set, and is as long as it says."""
    outputs = c.chain(torch.tensor((c.x0 + answer.delta)[None])).numpy()
    assert c.decision.margins(outputs).min() <= 0
    assert not c.decision.stands(outputs)[0]
    if constraints is not None:
        assert constraints.relative_to(c.x0).violation(answer.delta) <= 1e-9
    assert Norm.of(norm).value(answer.delta) <= answer.upper <= Norm.of(norm).value(answer.delta) * (1 + 1e-12)
    assert answer.rival == c.decision.rivals[answer.row]


def assert_is_the_truth(c: Case, norm_name: str, set_name: str) -> None:
    norm, constraints = NORMS[norm_name], SETS[set_name]
    value, proved = truth(c, norm, constraints)
    answer = solve(c, norm, constraints)
    assert answer.evidence is Evidence.VERIFIED
    assert answer.lower <= answer.upper
    assert answer.lower <= value + 1e-9, "a bound above the radius (whose value is a solver's, to about 1e-10)"
    if value == INF:
        assert answer.status in (ExactStatus.UNREACHABLE, ExactStatus.BEYOND), answer
        assert answer.upper == INF
        assert np.isnan(answer.delta).all()
        return
    assert answer.status is ExactStatus.CLOSED, answer
    assert answer.upper >= proved
    assert abs(answer.lower - value) <= EXACT * max(1.0, value)
    assert abs(answer.upper - value) <= EXACT * max(1.0, value)
    assert_witness(c, norm, constraints, answer)


def assert_milp_agrees(c: Case, norm_name: str, set_name: str) -> None:
    norm, constraints = NORMS[norm_name], SETS[set_name]
    by_regions, by_solver = solve(c, norm, constraints), solve(c, norm, constraints, engine=Engine.MILP)
    assert by_solver.evidence in (Evidence.SOLVER, Evidence.VERIFIED)
    assert by_regions.closed == by_solver.closed
    if by_regions.upper == INF:
        assert by_solver.upper == INF
        assert by_solver.status is by_regions.status
        return
    size = max(1.0, by_regions.upper)
    assert abs(by_regions.upper - by_solver.upper) <= EXACT * size
    assert by_regions.lower <= by_solver.upper
    assert by_solver.lower <= by_regions.upper
    assert by_solver.upper - by_solver.lower <= (EXACT + MARGIN) * size
    assert_witness(c, norm, constraints, by_solver)


@pytest.mark.parametrize("seed", range(65))
def test_regions_find_the_truth(seed):
    assert_is_the_truth(*scene(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 320))
def test_regions_find_the_truth_at_length(seed):
    c = case(seed, [(DIM, 3, 2, 3), (DIM, 4, 4, 2), (DIM, 5, 3), (DIM, 2, 2, 2, 3)][seed % 4])
    _, norm_name, set_name = scene(seed)
    assert_is_the_truth(c, norm_name, set_name)


POLYHEDRAL = [(n, s) for s in sorted(LINEAR) for n in ("l1", "linf", "l1 weighted", "linf weighted")]


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_milp_agrees(seed):
    assert_milp_agrees(case(seed), *POLYHEDRAL[(seed // 2 + 13 * (seed // 20)) % len(POLYHEDRAL)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(400, 620))
def test_milp_agrees_at_length(seed):
    assert_milp_agrees(case(seed, [(DIM, 5, 4, 3), (DIM, 8, 3)][seed % 2]), *POLYHEDRAL[seed % len(POLYHEDRAL)])


@pytest.mark.parametrize("norm_name", ["l1", "l2", "linf", "groups"])
def test_nothing_flips_below_the_lower_bound(norm_name):
    """Random points of length `lower`, thousands of them, leave the decision standing."""
    c, norm = case(11, (DIM, 8, 6, 3)), NORMS[norm_name]
    answer = solve(c, norm, Box(-1.0, 1.0), time_limit=20)
    rng = np.random.default_rng(0)
    delta = rng.normal(size=(20_000, DIM)) * rng.choice([1.0, 1e-3], size=(20_000, DIM))
    delta *= (answer.lower * (1 - 1e-12) / norm.value(delta))[:, None]
    inside = np.abs(c.x0 + delta).max(1) <= 1.0
    assert inside.sum() > 1000
    assert c.decision.stands(c.chain(torch.tensor(c.x0 + delta[inside])).numpy()).all()


@pytest.mark.parametrize("set_name", ["box on input", "tv", "ellipsoid", "equalities"])
@pytest.mark.parametrize("norm_name", ["l1", "l2", "linf", "groups"])
def test_preactivation_bounds_hold(norm_name, set_name):
    """Attack: points of the region stay within the bounds, with held signs too."""
    c, norm, constraints = case(11, (DIM, 7, 6, 3)), NORMS[norm_name], SETS[set_name]
    q = Question.build(c.chain, c.x0, c.decision, norm, constraints)
    region = Region.build(norm, q.parts, 0.6, DIM)
    walk = Propagation(q.weights, q.shifts, q.first_shift_size, None)
    bounds = walk.bounds(region)
    rng = np.random.default_rng(1)
    points = rng.normal(size=(500, DIM)) * rng.choice([1.0, 1e-2], size=(500, DIM))
    if set_name == "equalities":
        points -= points.mean(1, keepdims=True)
    points *= (0.6 * rng.uniform(0, 1, 500) ** 0.2 / norm.value(points))[:, None]
    placed = constraints.relative_to(c.x0)
    points = points[[placed.contains(p, 1e-12) for p in points]]
    assert len(points) > 50
    signs: dict = {}
    for p in points:
        for layer, z in enumerate(q.preactivations(p)):
            assert (z >= bounds.lower[layer]).all()
            assert (z <= bounds.upper[layer]).all()
        signs.setdefault(bool(q.preactivations(p)[0][0] > 0), []).append(p)
    for active, some in signs.items():
        held = walk.bounds(region, bounds.held(0, 0, active), first=1)
        for p in some:
            for layer, z in enumerate(q.preactivations(p)):
                assert (z >= held.lower[layer]).all()
                assert (z <= held.upper[layer]).all()
        row, shift = q.margin_row(0)
        least = walk.least(region, held, row, shift)
        assert all(q.margins(p)[0][0] >= least for p in some)


@pytest.mark.parametrize("norm_name", list(NORMS))
def test_region_bounds_hold_for_spoiled_multipliers(norm_name, monkeypatch):
    """The bound of a region never exceeds its nearest flip, whatever the solver's multipliers are: they are multiplied by noise here."""
    c, norm, constraints = case(9, (DIM, 5, 4, 3)), NORMS[norm_name], SETS["rows"]
    c = Case(c.chain, c.x0, c.decision.only(0))
    nearest = solve(c, norm, constraints)
    q = Question.build(c.chain, c.x0, c.decision, norm, constraints)
    relaxation = Relaxation(q)
    region = Region.build(norm, q.parts, 1.1 * nearest.upper, DIM)
    bounds = Propagation(q.weights, q.shifts, q.first_shift_size, None).bounds(region)
    # the region of the nearest flip, its second layer left free
    splits = {(0, j): bool(z > 0) for j, z in enumerate(q.preactivations(nearest.delta)[0])}
    lo, hi = (v.numpy()[0] for v in region.hull())
    hull = np.maximum(np.abs(lo), np.abs(hi))
    honest = relaxation.bound(0, bounds, splits, hull).lower
    assert 0 < honest <= nearest.upper
    solved, rng = relaxation._solve, np.random.default_rng(2)
    monkeypatch.setattr(
        relaxation, "_solve", lambda *a: (lambda x, z: (x, z * rng.lognormal(0, 0.5, len(z)) + 0.05 * rng.normal(size=len(z))))(*solved(*a))
    )
    spoiled = [relaxation.bound(0, bounds, splits, hull).lower for _ in range(40)]
    assert max(spoiled) <= nearest.upper
    assert len({round(s, 9) for s in spoiled}) > 1, "the noise must reach the bound"


def test_intervals_over_an_unbounded_box_hold():
    q = Question.build(network(5, (3, 6, 5, 2)), np.zeros(3), None, 2, None)
    lo, hi = np.array([-INF, -0.5, 0.0]), np.array([1.0, INF, 0.0])
    bounds, lowest, highest = everywhere(q.weights, q.shifts, lo, hi)
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e3, 1e8):
        for p in np.clip(rng.normal(size=(200, 3)) * scale, lo, hi):
            for l, u, z in zip(bounds.lower, bounds.upper, q.preactivations(p), strict=True):
                assert (l <= z).all()
                assert (z <= u).all()
            outputs = q.outputs(p)
            assert (lowest <= outputs).all()
            assert (outputs <= highest).all()


def test_a_larger_set_has_no_larger_radius():
    c = case(21)
    for norm in (Norm(1), Norm(2), Norm("inf")):
        answers = [solve(c, norm, Box(-r, r, on="change") & LpBall(2, 2 * r)) for r in (0.4, 0.8, 1.6)]
        assert all(a.lower <= b.upper for a, b in zip(answers[1:], answers, strict=False))


@pytest.mark.parametrize("factor", [0.3, 1.0, 5.0])
def test_homogeneous_in_the_norm(factor):
    c = case(2)
    one, scaled = solve(c, Norm(2), SETS["box on input"]), solve(c, Norm(2, np.full(DIM, factor)), SETS["box on input"])
    assert scaled.upper == pytest.approx(factor * one.upper, rel=1e-6)


def test_threshold_pair_and_band():
    c = case(4)
    outputs = c.chain(torch.tensor(c.x0[None])).numpy()[0]
    decisions = [
        Decision.threshold(0, float(outputs[0]) - 0.3, 3),
        Decision.threshold(1, float(outputs[1]) + 0.3, 3, above=False),
        Decision.pair(int(outputs.argmax()), c.decision.rivals[0], 3, epsilon=0.05),
        Decision.band(float(outputs[2]) - 0.2, float(outputs[2]) + 0.4, output=2, outputs=3),
    ]
    for decision in decisions:
        these = Case(c.chain, c.x0, decision)
        value, _ = truth(these, Norm(2), SETS["box on input"])
        answer = solve(these, Norm(2), SETS["box on input"])
        assert answer.lower <= value + 1e-9
        assert answer.lower == pytest.approx(value, abs=EXACT)


def test_a_given_upper_value():
    """Only shorter witnesses are looked for; a value below the radius is itself what is proved."""
    c = case(8)
    free = solve(c, 2, SETS["box on input"])
    above = solve(c, 2, SETS["box on input"], upper=free.upper * 1.5)
    assert above.status is ExactStatus.CLOSED
    assert above.upper == pytest.approx(free.upper, rel=1e-7)
    below = solve(c, 2, SETS["box on input"], upper=free.lower * 0.7)
    assert below.status is ExactStatus.NONE_BELOW
    assert below.closed
    assert np.isnan(below.delta).all()
    assert below.rival == -1
    assert free.lower * 0.7 * (1 - 1e-6) <= below.lower <= below.upper == free.lower * 0.7
    same = solve(c, 2, SETS["box on input"], upper=free.upper)
    assert same.closed
    assert same.lower <= free.upper
    assert same.lower == pytest.approx(free.upper, rel=1e-6)


@pytest.mark.parametrize("engine", Engine)
def test_unreachable(engine):
    answer = solve(case(1), "inf", Box(-0.01, 0.01, on="change"), engine=engine)
    assert answer.status is ExactStatus.UNREACHABLE
    assert answer.closed
    assert answer.lower == answer.upper == INF
    assert answer.gap == 0


@pytest.mark.parametrize("engine", Engine)
def test_no_time(engine):
    answer = solve(case(8), "inf", Box(-1, 1), engine=engine, time_limit=0)
    assert answer.status is ExactStatus.TIME
    assert (answer.lower, answer.upper, answer.nodes) == (0.0, INF, 0)
    assert not answer.closed


def test_few_nodes_still_bracket():
    c = case(11, (DIM, 8, 6, 3))
    full = solve(c, 2, Box(-1, 1))
    assert full.nodes > 4
    last = 0.0
    for limit in sorted({1, 3, full.nodes // 2, full.nodes - 1}):
        answer = solve(c, 2, Box(-1, 1), node_limit=limit)
        assert answer.status is ExactStatus.NODES
        assert answer.nodes <= limit
        assert answer.lower <= full.upper <= answer.upper * (1 + 1e-7)
        last = max(last, answer.lower)
    assert last > 0, "an interrupted search keeps what it has proved"


def test_the_leaves_carry_the_bound():
    answer = solve(case(11, (DIM, 8, 6, 3)), 2, Box(-1, 1))
    assert min(leaf.lower for leaf in answer.leaves) >= answer.lower
    assert len({leaf.splits for leaf in answer.leaves if leaf.row == answer.row}) == len(
        [1 for leaf in answer.leaves if leaf.row == answer.row]
    )


def _constant(value: float) -> ReluChain:
    zero = torch.zeros(2, DIM, dtype=torch.float64)
    return ReluChain(
        (zero, torch.zeros(2, 2, dtype=torch.float64)),
        (torch.zeros(2, dtype=torch.float64), torch.tensor([value, 0.0], dtype=torch.float64)),
    )


@pytest.mark.parametrize("constraints", [None, Box(0, 1), LpBall(2, 1.0)], ids=["everything", "box", "ball"])
def test_a_constant_network_never_flips(constraints):
    answer = exact_radius(_constant(1.0), np.full(DIM, 0.5), None, 2, constraints)
    assert (answer.status, answer.lower) == (ExactStatus.UNREACHABLE, INF)


def test_dead_neurons_are_no_obstacle():
    chain = case(1).chain
    dead = ReluChain(chain.weights, (torch.full_like(chain.shifts[0], -100.0), *chain.shifts[1:]))
    answer = exact_radius(dead, np.zeros(DIM), None, "inf", Box(-1, 1))
    assert answer.status is ExactStatus.UNREACHABLE


@pytest.mark.parametrize("engine", Engine)
def test_equal_outputs_are_already_flipped(engine):
    answer = exact_radius(_constant(0.0), np.full(DIM, 0.5), Decision.classification(0, 2), "inf", Box(0, 1), engine=engine)
    assert answer.status is ExactStatus.CLOSED
    assert (answer.lower, answer.upper, answer.margin, answer.rival) == (0.0, 0.0, 0.0, 1)
    assert not answer.delta.any()


def test_a_linear_network():
    chain = network(9, (DIM, 3))
    c = Case(chain, np.full(DIM, 0.1), Decision.classification(int(chain(torch.full((1, DIM), 0.1, dtype=torch.float64)).argmax()), 3))
    for norm_name in NORMS:
        value, _ = truth(c, NORMS[norm_name], SETS["tv"])
        assert solve(c, NORMS[norm_name], SETS["tv"]).lower == pytest.approx(value, abs=EXACT)


def test_an_input_outside_the_set_must_come_inside():
    """v* counts allowed changes only: none is shorter than the way into the set."""
    c = case(8)
    constraints = Box(c.x0 + 0.2, c.x0 + 2.0)
    value, _ = truth(c, Norm("inf"), constraints)
    for engine in Engine:
        answer = solve(c, "inf", constraints, engine=engine)
        assert answer.upper == pytest.approx(value, abs=EXACT)
        assert answer.lower == pytest.approx(value, abs=3e-6)
        assert answer.lower <= answer.upper
    assert solve(c, "inf", constraints, upper=0.1).status is ExactStatus.NONE_BELOW


def test_an_empty_polytope_is_unreachable():
    empty = Polytope(np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]), [-1.0, -1.0], on="change") & Box(-2, 2, on="change")
    assert solve(case(1), 2, empty).status is ExactStatus.UNREACHABLE


def test_models_of_any_shape_and_precision():
    """A module answers as its chain; float16 weights are taken as the float64 numbers that they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x0 = torch.rand(1, 4, 4)
    allowed = Box(-3, 3)
    one = exact_radius(model, x0, None, "inf", allowed)
    chain = ReluChain.from_model(model, (1, 4, 4))
    two = exact_radius(chain, x0.flatten().double(), None, "inf", allowed)
    assert one.status is two.status is ExactStatus.CLOSED
    assert one.upper == pytest.approx(two.upper, rel=1e-7)
    half = exact_radius(model.half(), x0, None, "inf", allowed)
    again = exact_radius(ReluChain.from_model(model, (1, 4, 4)), x0.flatten().double(), None, "inf", allowed)
    assert half.upper == pytest.approx(again.upper, rel=1e-7)
    assert next(model.parameters()).dtype == torch.float16


BAD = {
    "round norm for the solver": ({"norm": 2, "engine": Engine.MILP}, "Engine.MILP"),
    "round set for the solver": ({"norm": 1, "constraints": LpBall(2, 1.0), "engine": Engine.MILP}, "Engine.MILP"),
    "groups for the solver": ({"norm": GroupNorm([[0, 1], [2, 3]]), "engine": Engine.MILP}, "Engine.MILP"),
    "negative upper": ({"upper": -1.0}, "upper=-1.0"),
    "upper that is no number": ({"upper": float("nan")}, "upper=nan"),
    "negative time": ({"time_limit": -1.0}, "time_limit=-1.0"),
    "negative nodes": ({"node_limit": -1}, "node_limit=-1"),
    "decision of another network": ({"decision": Decision.classification(0, 5)}, "5 outputs"),
    "empty box": ({"constraints": Box(0.5, 0.6, on="change") & Box(-0.6, -0.5, on="change")}, "empty"),
}


@pytest.mark.parametrize(("how", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_asked(how, words):
    c = case(1)
    with pytest.raises(InputError, match=words):
        exact_radius(c.chain, c.x0, **({"decision": c.decision} | how))


def test_inputs_and_models_that_do_not_fit():
    c = case(1)
    with pytest.raises(InputError, match="features"):
        exact_radius(c.chain, np.zeros(DIM + 1))
    with pytest.raises(InputError, match="nan"):
        exact_radius(c.chain, np.full(DIM, np.nan))
    with pytest.raises(InputError, match="Sigmoid"):
        exact_radius(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)), np.zeros(3))
    with pytest.raises(InputError, match="spectral"):
        exact_radius(network(0, (12, 3, 2)), np.zeros(12), None, 2, Spectral())


@pytest.mark.slow
@pytest.mark.skipif("LDE_DATA" not in os.environ, reason="LDE_DATA names the folder with models/verix_mnist_10x2.onnx and mnist/")
def test_verix_radii_are_closed():
    """lower = upper within 1e-4 on at least 95 of 100 test images, the others within 5 %; ℓ∞ over [0, 1]."""
    from lde_cvx.data import mnist
    from lde_cvx.models import load_onnx

    model = load_onnx(Path(os.environ["LDE_DATA"]) / "models" / "verix_mnist_10x2.onnx")
    images = np.asarray(mnist("test", limit=100).X, dtype=float).reshape(100, 28, 28, 1)
    assert images.max() == 1.0
    answers = [exact_radius(model, image, None, "inf", Box(0, 1), time_limit=60) for image in images]
    closed = np.array([a.upper - a.lower <= 1e-4 for a in answers])
    assert closed.sum() >= 95
    assert all(a.gap <= 0.05 for a in answers)
