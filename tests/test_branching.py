"""Branch and bound on small networks, against the enumeration of activation regions, with attacks on every leaf, and what is odd to ask."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.norms import INF, Norm
from formulations.sets import Box, Ellipsoid, LpBall, Polytope, TotalVariation
from tests.exact_example import Case, network
from verification.branching import BranchingStop, Effort, branch_radii, branch_radius
from verification.branching.branch import _Search
from verification.decision import Decision
from verification.exact import ExactResult, exact_radius
from verification.exact.question import Question
from verification.relu_chain import ReluChain

EXACT = 1e-6
NORMS = {"l1": Norm(1), "l2": Norm(2), "linf": Norm("inf")}
SETS = {
    "box": lambda d: Box(-1.0, 1.0),
    "box and tv": lambda d: TotalVariation(1.0, (d,)) & Box(-1.2, 1.2, on="change"),
    "box and rows": lambda d: Polytope(np.array([np.ones(d), np.arange(d) - 1.0]), [0.4, 0.5], on="change") & Box(-1, 1),
    "ball and equality": lambda d: LpBall(2, 1.5) & Polytope(None, None, equal=(np.ones((1, d)), [0.0]), on="change"),
    "ellipsoid": lambda d: Ellipsoid(np.zeros(d), np.diag(np.linspace(0.5, 2.0, d)), 1.2),
    "box and ball": lambda d: LpBall(1, 1.5) & Box(-0.7, 0.9, on="change"),
}
SHAPES = [(2, 5, 3), (3, 4, 2), (4, 3, 3, 3), (5, 6, 2), (3, 3, 4, 2), (5, 4, 3, 2), (2, 8, 4, 2), (4, 7, 3)]


@functools.cache
def scene(seed: int) -> tuple[Case, Norm, object]:
    """Every pair of norm and set within 18 seeds, on ever other networks."""
    widths = SHAPES[(seed + seed // 18) % len(SHAPES)]
    x0 = np.random.default_rng(seed + 3000).uniform(-0.4, 0.4, widths[0])
    chain = network(seed, widths, x0)
    decision = Decision.classification(int(chain(torch.tensor(x0[None])).argmax()), widths[-1])
    return Case(chain, x0, decision), list(NORMS.values())[seed % 3], list(SETS.values())[seed // 3 % 6](widths[0])


@functools.cache
def truth(seed: int) -> ExactResult:
    c, norm, constraints = scene(seed)
    return exact_radius(c.chain, c.x0, c.decision, norm, constraints, time_limit=60)


def assert_is_the_radius(seed: int) -> None:
    c, norm, constraints = scene(seed)
    exact, found = truth(seed), branch_radius(c.chain, c.x0, c.decision, norm, constraints, tolerance=EXACT / 2, time_limit=60)
    assert found.lower <= exact.upper + 1e-9, "a bound above the radius, whose witness may lie 1e-9 outside the set"
    assert exact.lower <= found.upper
    assert found.closed, found.stop
    if exact.closed:
        assert (found.lower == INF) == (exact.upper == INF)
        assert found.lower == exact.upper or abs(found.lower - exact.upper) <= EXACT * exact.upper
    if found.upper < INF:  # its witness flips, is allowed, and is as long as it says
        assert not c.decision.stands(c.chain(torch.tensor((c.x0 + found.delta)[None])).numpy())[0]
        assert constraints.relative_to(c.x0).violation(found.delta) <= 1e-9
        assert norm.value(found.delta) <= found.upper


@pytest.mark.parametrize("seed", [*range(18), 43])  # 43: rows so small that float32 overflowed
def test_branching_finds_the_radius(seed):
    assert_is_the_radius(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(18, 234))
def test_branching_finds_the_radius_at_length(seed):
    assert_is_the_radius(seed)


@pytest.mark.parametrize("limit", [1, 8, 10_000])
@pytest.mark.parametrize("seed", [1, 6, 11, 16])
def test_leaves_hold_for_every_flip(seed, limit):
    """Attack: flips that random search and the exact answer find obey the rows of the leaf they lie in, and none is nearer than the leaf says."""
    c, norm, constraints = scene(seed)
    attack(branch_radius(c.chain, c.x0, c.decision, norm, constraints, node_limit=limit).trees, seed)


def attack(trees, seed):
    c, norm, constraints = scene(seed)
    d = len(c.x0)
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(3000, d)) * rng.uniform(0.01, 1.5, (3000, 1))
    placed = constraints.relative_to(c.x0)
    points = [p for p in points if placed.contains(p, 1e-12)]
    points += [truth(seed).delta] if np.isfinite(truth(seed).delta).all() else []
    for p in points:
        zs = [z.numpy()[0] for z in c.chain.preactivations(torch.tensor((c.x0 + p)[None]))]
        length = float(norm.value(p))
        for tree in trees:
            if c.decision.margins(zs[-1][None])[0][tree.row] > 0:
                continue
            assert length >= tree.lower * (1 - 1e-9)
            home = [leaf for leaf in tree.leaves if all(s * zs[l][j] >= 0 for l, j, s in leaf.path)]
            assert home or not tree.leaves, "the leaves cover everything"
            for leaf in home:
                assert length >= leaf.lower * (1 - 1e-9)
                assert length > leaf.radius or (leaf.a @ p + leaf.b <= 1e-9).all()


def test_some_attack_is_a_flip():
    assert any(np.isfinite(truth(s).delta).all() for s in (1, 6, 11, 16))


def test_a_question_goes_on_at_a_smaller_radius():
    """Begun beyond the radius, then drawn back below it: what was open closes, and its leaves hold for every flip."""
    retreats = 0
    for seed in (0, 1, 2, 15, 16, 17):
        c, norm, constraints = scene(seed)
        exact = truth(seed)
        if not (exact.closed and 0 < exact.upper < INF):
            continue
        search = _Search(Question.build(c.chain, c.x0, c.decision, norm, constraints), 2 * exact.upper, None, EXACT, Effort(), None, None)
        tree = search._plant(1.3 * exact.upper)
        tree.step(lambda: False)
        retreats += tree.open > 0
        tree.retreat(0.98 * exact.upper)
        while tree.open:
            tree.step(lambda: False)
        search._credit(tree)
        assert search.lower >= 0.98 * exact.upper * (1 - 1e-9)
        attack(search.trees.values(), seed)
    assert retreats >= 2


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_larger_set_has_no_larger_radius(norm):
    """Closed searches, up to their tolerance."""
    for seed in (3, 12):
        c, _, _ = scene(seed)
        sets = [
            Box(-1, 1) & LpBall(2, 0.5) & TotalVariation(0.8, (len(c.x0),)), Box(-1, 1) & LpBall(2, 0.5), Box(-1, 1) & LpBall(2, 0.9), Box(-1, 1),
        ]  # fmt: skip
        found = [branch_radius(c.chain, c.x0, c.decision, NORMS[norm], s) for s in sets]
        assert all(f.closed for f in found)
        for small, large in itertools.pairwise(found):
            assert small.lower >= large.lower * (1 - EXACT) - 1e-9


def test_no_time_and_one_node_still_bracket():
    for seed in range(6):
        c, norm, constraints = scene(seed)
        for limits in ({"time_limit": 0}, {"node_limit": 0}, {"node_limit": 1}):
            found = branch_radius(c.chain, c.x0, c.decision, norm, constraints, **limits)
            assert 0 <= found.lower <= truth(seed).upper <= found.upper * (1 + EXACT)
            assert found.closed or found.stop in (BranchingStop.TIME, BranchingStop.NODES)


@pytest.mark.parametrize("norm", list(NORMS))
def test_an_input_outside_the_set_must_come_inside(norm):
    c, _, _ = scene(5)
    constraints = Box(c.x0 + 0.2, c.x0 + 2.0)
    exact = exact_radius(c.chain, c.x0, c.decision, NORMS[norm], constraints, time_limit=60)
    found = branch_radius(c.chain, c.x0, c.decision, NORMS[norm], constraints, tolerance=EXACT / 2)
    assert found.lower <= exact.upper + 1e-9
    assert found.lower >= float(NORMS[norm].value(np.full(len(c.x0), 0.2))) * (1 - 1e-6)
    assert found.lower == exact.upper or found.lower == pytest.approx(exact.upper, rel=EXACT)


def _constant(*values: float) -> ReluChain:
    m, zero = len(values), {"dtype": torch.float64}
    return ReluChain((torch.zeros(3, 4, **zero), torch.zeros(m, 3, **zero)), (torch.full((3,), -1.0, **zero), torch.tensor(values, **zero)))


def test_equal_outputs_are_already_flipped():
    found = branch_radius(_constant(1.0, 1.0), np.full(4, 0.5), Decision.classification(0, 2), 2, Box(0, 1))
    assert (found.lower, found.upper, found.closed) == (0.0, 0.0, True)
    assert not found.delta.any()


@pytest.mark.parametrize("constraints", [None, Box(0, 1), LpBall(2, 1.0)], ids=["everything", "box", "ball"])
def test_a_constant_network_never_flips(constraints):
    for norm in NORMS.values():
        found = branch_radius(_constant(1.0, 0.0), np.full(4, 0.5), None, norm, constraints)
        assert (found.lower, found.closed) == (INF, True)


def test_half_precision_weights_are_the_numbers_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).half().eval()
    x = torch.rand(3, 4)
    half = branch_radii(model, x, norm=2, constraints=Box(-2, 2))
    double = branch_radii(nn.Sequential(*model).double(), x.double(), norm=2, constraints=Box(-2, 2))
    for one, two in zip(half, double, strict=True):
        assert one.lower == pytest.approx(two.lower, rel=1e-9)


@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("big", [1e150, 1e160, 1e200])
def test_weights_whose_products_overflow_prove_nothing(norm, big):
    """A flip at .1 behind a row whose coefficients are infinite, or NaN: no bound beyond it, and not "nothing flips"."""

    def tensor(v):
        return torch.tensor(v, dtype=torch.float64)

    weights = tensor([[big, 0.0], [0.0, 1.0]]), tensor([[0.0, 0.0], [big, 0.1]])
    chain = ReluChain(weights, (tensor([-0.1 * big, -0.2]), tensor([1.0, 0.0])))
    assert chain(tensor([[0.1 + 1e-9, 0.0]])).argmax() == 1, "it does flip"
    with np.errstate(all="ignore"):
        found = branch_radius(chain, np.zeros(2), Decision.classification(0, 2), NORMS[norm], Box(-1, 1), node_limit=50)
    assert found.lower <= 0.1 + 1e-9


def test_a_linear_network():
    chain = network(9, (4, 3))
    x0 = np.full(4, 0.1)
    exact = exact_radius(chain, x0, None, 2, Box(-1, 1))
    assert branch_radius(chain, x0, None, 2, Box(-1, 1), tolerance=EXACT / 2).lower == pytest.approx(exact.upper, rel=EXACT)


def test_interrupts_keep_what_is_proved():
    c, norm, constraints = scene(0)
    calls = []

    def stop(lower: float, radius: float, cells: int) -> None:
        calls.append(lower)
        if len(calls) == 3:
            raise KeyboardInterrupt

    found = branch_radius(c.chain, c.x0, c.decision, norm, constraints, progress=stop)
    assert calls
    assert found.lower <= truth(0).upper
    assert len(calls) < 3 or found.stop is BranchingStop.INTERRUPTED


def test_what_cannot_be_asked():
    c, _, _ = scene(0)
    with pytest.raises(InputError, match="time_limit=-1"):
        branch_radius(c.chain, c.x0, c.decision, time_limit=-1)
    with pytest.raises(InputError, match="upper=nan"):
        branch_radius(c.chain, c.x0, c.decision, upper=float("nan"))
    with pytest.raises(InputError, match="2 upper values for 1 inputs"):
        branch_radii(c.chain, c.x0[None], uppers=[1.0, 2.0])
    with pytest.raises(InputError, match="Sigmoid"):
        branch_radius(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)), np.zeros(3))
