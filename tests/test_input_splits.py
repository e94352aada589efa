"""Branch and bound over the input: never above the truth, near it where it ends, and trees that cover, hold and can be checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.errors import InputError
from formulations.norms import INF, GroupNorm, Norm
from formulations.sets import Box, LpBall, Polytope
from formulations.sets.base import ConvexSet
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.models import save_model
from verification.branching import BranchingStop, branch_radius
from verification.branching.inputs import InputSplitResult, _Search, split_inputs
from verification.checker import CheckStatus, check_file
from verification.evidence.inputs import cell_box
from verification.lirpa import BoundEngine

DIM = 3
SETS: dict[str, ConvexSet | None] = {
    "box": Box(0, 1),
    "rows": Box(0, 1) & Polytope(np.array([[1.0, 1, -1]]), [0.5], on="change"),
    "plane": Box(-1, 2) & Polytope(None, None, equal=(np.ones((1, DIM)), [0.0]), on="change"),
    "ball": LpBall(2, 0.9),
}
NORMS = {"l1": Norm(1), "l2": Norm(2, [1.0, 2.0, 0.5]), "linf": Norm(INF), "groups": GroupNorm([[0, 1], [2]])}


def network(seed: int, act: Callable[[], nn.Module], gain: float = 2.0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(DIM, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight *= gain
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    return torch.tensor([0.4, 0.7, 0.3], dtype=torch.float64)


PAIRS = [
    pytest.param(within, norm, marks=[pytest.mark.slow] if norm == "groups" or (within != "box" and norm != "linf") else [])
    for within in SETS
    for norm in NORMS
]


@pytest.mark.parametrize(("within", "norm"), PAIRS)
def test_it_ends_at_the_exact_radius(norm: str, within: str, start: torch.Tensor) -> None:
    """On ReLU networks the splits of neurons tell the truth: within 1e-3 of it where the search closes, never above it anywhere."""
    net, C, N = network(len(norm) + len(within), nn.ReLU), SETS[within], NORMS[norm]
    exact = branch_radius(net, start, None, N, C)
    assert exact.closed
    found = split_inputs(net, start, None, N, C, upper=exact.upper, node_limit=400)
    assert found.lower <= exact.upper * (1 + 1e-9)
    if found.closed:
        assert found.lower >= exact.lower * (1 - 1.1e-3) or exact.lower == INF
    if within == "box" and norm != "groups":
        assert found.closed


def _points(found: InputSplitResult, x0: np.ndarray, count: int) -> np.ndarray:
    radius = max(leaf.radius if leaf.radius < INF else 1.0 for tree in found.trees for leaf in tree)
    return np.random.default_rng(0).uniform(-radius, radius, size=(count, len(x0)))


@pytest.mark.parametrize("act", [nn.Tanh, nn.SiLU, nn.GELU])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_leaves_cover_and_hold(act: Callable[[], nn.Module], norm: str, start: torch.Tensor) -> None:
    """20,000 points of the ball and the box: each lies in exactly the leaves of its side, no row above its margin, no flip nearer than the bound."""
    net, C, N, x0 = network(7, act, 5.0), Box(0, 1), NORMS[norm], start.numpy()
    far = np.random.default_rng(1).uniform(-x0, 1 - x0, size=(20_000, DIM))
    flipped = net(torch.tensor(x0 + far)).argmax(1).numpy() != int(net(start[None]).argmax())
    upper = float(np.linalg.norm(far[flipped] * N.scale(DIM), N.p, axis=1).min())
    found = split_inputs(net, start, None, N, C, upper=upper, node_limit=400)
    assert found.lower <= upper
    assert any(len(tree) > 1 for tree in found.trees)
    delta = _points(found, x0, 20_000)
    radius = found.trees[0][0].radius
    size = np.linalg.norm(delta * N.scale(DIM), N.p, axis=1)
    delta = delta[(size <= radius) & ((x0 + delta >= 0) & (x0 + delta <= 1)).all(1)]
    size = np.linalg.norm(delta * N.scale(DIM), N.p, axis=1)
    y = net(torch.tensor(x0 + delta)).numpy()
    winner = int(net(start[None]).argmax())
    rivals = [k for k in range(3) if k != winner]
    flips = y.argmax(1) != winner
    assert size[flips].min(initial=INF) >= found.lower
    for k, tree in enumerate(found.trees):
        margin, seen = y[:, winner] - y[:, rivals[k]], np.zeros(len(delta), dtype=int)
        for leaf in tree:
            lo, hi = cell_box(leaf.path, DIM)
            here = ((x0 + delta >= lo) & (x0 + delta <= hi)).all(1)
            seen += here
            assert (delta[here] @ leaf.a + leaf.b <= margin[here]).all()
            assert leaf.lower >= found.lower
        assert (seen >= 1).all()


@pytest.mark.parametrize("limit", [{"node_limit": 1}, {"node_limit": 40}, {"time_limit": 0.0}])
def test_limits_leave_a_valid_bound(limit: dict[str, float], start: torch.Tensor) -> None:
    net = network(3, nn.Tanh)
    full = split_inputs(net, start, None, 2, Box(0, 1), upper=2.0, node_limit=600)
    some = split_inputs(net, start, None, 2, Box(0, 1), upper=2.0, **limit)  # type: ignore[arg-type]
    assert some.lower <= full.upper
    assert some.stop in (BranchingStop.NODES, BranchingStop.TIME, BranchingStop.CLOSED)


def test_an_interrupt_keeps_what_is_proved(start: torch.Tensor) -> None:
    calls = 0

    def stop(*_: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    found = split_inputs(network(7, nn.Tanh), start, None, INF, Box(0, 1), upper=0.5, progress=stop)
    assert found.stop is BranchingStop.INTERRUPTED
    assert 0 < found.lower < 0.5


def test_a_set_that_holds_no_flip_is_unreachable(start: torch.Tensor) -> None:
    """Plain bounds on the whole set are too loose for it; the tree proves it, and the checker agrees."""
    net = network(7, nn.Tanh)
    nearest = split_inputs(net, start, None, INF, Box(0, 1), upper=1.0, node_limit=400).lower
    C = Box(0, 1) & Box(-nearest * 0.97, nearest * 0.97, on="change")
    assert split_inputs(net, start, None, 2, C).lower == INF
    e = LagrangeDualExplainer(net, 2, C, method="branching").explain(start)
    assert e.lower == INF
    assert e.certificate.check(net).ok


@pytest.mark.parametrize(("within", "norm"), [("box", "l1"), ("box", "l2"), ("box", "linf"), ("rows", "l1"), ("box", "groups")])
def test_explanations_branch_on_smooth_networks(norm: str, within: str, start: torch.Tensor, tmp_path: Path) -> None:
    """More than CROWN proves; the tree is a certificate that holds in exact arithmetic, and its rows are derived again from the weights."""
    net, C, N = network(7, nn.Tanh), SETS[within], NORMS[norm]
    plain = LagrangeDualExplainer(net, N, C).explain(start)
    better = LagrangeDualExplainer(net, N, C, method="branching", time_limit=3.0).explain(start)
    assert better.certificate.check(net).ok
    save_model(net, tmp_path / "net.safetensors")
    report = check_file(better.certificate.save(tmp_path / "c.json"), level="B", model=tmp_path / "net.safetensors")
    assert report.ok if within == "box" and norm != "groups" else report.status is not CheckStatus.INVALID, report.reasons
    assert plain.lower <= better.lower <= better.upper
    if within == "box" and norm != "groups":
        assert better.lower > plain.lower
        assert any(cell["path"] for rival in better.certificate.record["rivals"] for cell in rival["cells"])


def test_the_first_cell_holds_every_change_within_its_radius(start: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Radii that float32 cannot hold are no smaller on the way."""
    asked: list[tuple[float, np.ndarray, np.ndarray]] = []
    bound = _Search._bound

    def watched(self: _Search, cells: list[Any], radius: float) -> None:
        asked.extend((radius, cell.lo.copy(), cell.hi.copy()) for cell in cells if not cell.path)
        bound(self, cells, radius)

    monkeypatch.setattr(_Search, "_bound", watched)
    for upper in (0.1, 0.3, 1 / 3, 0.7):
        split_inputs(network(7, nn.Tanh), start, None, INF, upper=upper, node_limit=100)
    assert len(asked) > 4
    for radius, lo, hi in asked:
        assert (lo <= start.numpy() - radius + 1e-15).all()
        assert (hi >= start.numpy() + radius - 1e-15).all()


def test_exact_is_for_chains(start: torch.Tensor) -> None:
    with pytest.raises(InputError, match="Tanh"):
        LagrangeDualExplainer(network(7, nn.Tanh), 2, Box(0, 1), method="exact").explain(start)
    with pytest.raises(InputError, match="upper=-1"):
        split_inputs(BoundEngine(network(7, nn.Tanh), (DIM,)), start, upper=-1)
