"""Lines of the first layer over the box: attacked at random points, vertices and turned vertices, and what they are worth in a search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from formulations.norms import Norm
from formulations.sets import Box
from tests import test_branching
from tests.exact_example import network
from verification.branching import Effort, branch
from verification.branching.ascent import ascend
from verification.branching.branch import _Search
from verification.branching.coupled import Memory
from verification.branching.facets import Aim, Facets
from verification.branching.narrowing import narrow
from verification.decision import Decision
from verification.exact.question import Question


def planted(seed: int, widths: tuple[int, ...], radius: float, tight: bool = True):
    """A tree with its root cells, on a random network; the set cuts the ball on one side."""
    x0 = np.random.default_rng(seed).uniform(-0.4, 0.4, widths[0])
    chain = network(seed, widths, x0)
    decision = Decision.classification(int(chain(torch.tensor(x0[None])).argmax()), widths[-1])
    question = Question.build(chain, x0, decision, Norm("inf"), Box(x0 - 0.7 * radius, x0 + 2.0))
    search = _Search(question, np.inf, None, 1e-6, Effort(), None, None)
    search.tight = tight
    return search, search._plant(radius)


def points(tree, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Random ones, vertices, and mixtures, in the box of the question."""
    face, d = tree.ball.face, tree.network.dim
    inside = rng.uniform(-1, 1, (count, d))
    inside[: count // 3] = np.sign(inside[: count // 3])
    inside[count // 3 : count // 2] *= rng.random((count // 2 - count // 3, d)) < 0.5
    return face.mid + torch.tensor(inside) * face.half


@pytest.mark.parametrize("seed", range(12))
def test_facets_lie_above_every_rectifier(seed: int) -> None:
    """relu(z) ≤ line for any turn in [−1, 1]^d and any κ in [0, 1], where l ≤ z ≤ u, also for bounds l, u that are tighter than the box's."""
    rng = np.random.default_rng(seed)
    _, tree = planted(seed, (6, 9, 3), 0.8)
    cells = tree._pop(1)
    low, high = cells.lower[0], cells.upper[0]
    shrink = torch.tensor(rng.uniform(0, 0.6, (2, *low.shape))) * (seed % 2)
    cells = replace(cells, lower=(low + shrink[0] * (high - low) / 2,), upper=(high - shrink[1] * (high - low) / 2,))
    facets = Facets.of(tree.network, tree.ball.face, cells)
    v = points(tree, 4000, rng)
    z = v @ tree.network.weights[0].T + tree.network.shifts[0]
    inside = (z >= cells.lower[0]) & (z <= cells.upper[0]) & facets.open
    nearest = torch.full_like(z[0], np.inf)
    for k in range(12):
        turn = torch.tensor(rng.uniform(-1, 1, (1, 6)) if k % 2 else rng.choice([-1.0, 0.0, 1.0], (1, 6)))
        sight = facets.sight(Aim(torch.tensor([1.0 if k < 6 else rng.random()]), turn))
        line = facets.up * (z - facets.low) + facets.lift(z, v, sight)
        over = torch.where(inside, line - z.relu(), torch.inf)
        assert float(over.min()) >= -1e-9
        nearest = torch.minimum(nearest, over.amin(0))
        share = facets.share(-torch.ones_like(facets.low), sight)
        total = (share.head * z).sum(1) + (share.row * v).sum(1) + share.const
        assert torch.allclose(sight.kappa * total, -facets.lift(z, v, sight).sum(1), atol=1e-8)
    assert bool((nearest[facets.open[0]] < 0.5).any()), "lines that are nowhere near the rectifier would pass as well"


@pytest.mark.parametrize("widths", [(6, 9, 3), (5, 8, 7, 3), (4, 7, 6, 5, 3)])
def test_bounds_and_rows_hold_for_every_flip(widths: tuple[int, ...]) -> None:
    """Attack: what narrowing and raising say of flips holds at every flip that random search finds in the box."""
    flips = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        _, tree = planted(seed, widths, 1.0)
        v = points(tree, 6000, rng)
        cells = tree._pop(len(tree._heap))
        if cells is None:
            continue
        for _ in range(3):
            cells = ascend(tree.network, tree.ball, narrow(tree.network, tree.ball, cells), 8).cells
        margins = tree.network.margins(v)
        for i in range(len(cells)):
            y = v[margins[:, int(cells.row[i])] <= 0]
            flips += len(y)
            assert not len(y) or float(cells.slack[i]) <= 0
            assert bool((y @ cells.a[i] + cells.b[i] <= 1e-9).all())
            for l, (W, shift) in enumerate(zip(tree.network.weights, tree.network.shifts, strict=True)):
                z = y @ W.T + shift
                assert bool((z >= cells.lower[l][i] - 1e-9).all())
                assert bool((z <= cells.upper[l][i] + 1e-9).all())
                y = z.relu()
    assert flips > 1000


def test_they_raise_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just below the nearest flip that is known, the worst row of most networks that do not close at once is worth more with them than with chords."""
    monkeypatch.setattr(branch, "HARD", -np.inf)  # chords stay chords
    gains = []
    for seed in range(8):
        search, _ = planted(seed, (60, 40, 20, 3), 0.1)
        search._descend(np.inf)
        radius, worst = 0.9 * search.witness.upper, []
        for tight in (False, True):
            search.memory, search.tight = Memory(), tight
            tree = search._plant(radius)
            tree.pinch(lambda: False)
            worst.append(tree.worst)
        if min(worst) < 0:
            gains.append(worst[1] - worst[0])
    assert len(gains) >= 4, "rows that close at once say nothing"
    assert np.median(gains) > 0.1


@pytest.mark.parametrize("seed", [2, 8, 17])
def test_searches_on_nothing_else_find_the_radius(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used for every question in ℓ∞, over every set: the radius is the exact one, and the leaves hold for every flip that is found."""
    monkeypatch.setattr(branch, "HARD", np.inf)
    test_branching.assert_is_the_radius(seed)
    c, norm, constraints = test_branching.scene(seed)
    assert norm.p == np.inf
    for limit in (4, 10_000):
        found = branch.branch_radius(c.chain, c.x0, c.decision, norm, constraints, node_limit=limit)
        test_branching.attack(found.trees, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 11, 14, *range(20, 234, 3)])
def test_searches_on_nothing_else_find_the_radius_at_length(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "HARD", np.inf)
    test_branching.assert_is_the_radius(seed)
