"""Laws of the witness search: what it returns is a witness, it is near the optimum where the optimum is known, and it never claims more than it found."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import INF, GroupNorm, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets import Box, ConvexSet, Ellipsoid, Frozen, LpBall, Polytope, TotalVariation
from tests import exact_example
from tests.catalogue import DIM, SETS
from tests.digits_net import correct_digits
from verification.attack import Budget, Effort, Stop, Witnesses, WitnessStatus, find_witness, growing
from verification.attack.feasible import PullBack, violation
from verification.attack.growing import grow
from verification.attack.lanes import Lanes
from verification.attack.network import Network
from verification.attack.sampling import mixed, spread
from verification.attack.search import Search
from verification.attack.subproblem import subproblem
from verification.decision import Decision
from verification.relu_chain import ReluChain

PS: tuple[Any, ...] = (1, 2, "inf")
PIXELS = Box(0, 1)
SMOOTH = PIXELS & TotalVariation(6.0, (8, 8)) & Polytope(None, None, equal=(np.ones((1, 64)), [0.0]), on="change")


def check(found: Witnesses, model: nn.Module, x0: Tensor, C: ConvexSet | None, norm: Any) -> None:
    """Every witness, judged one input at a time and without the search's own code."""
    for i, w in enumerate(found):
        if w.status is WitnessStatus.NOT_FOUND:
            assert w.upper == np.inf
            assert np.isnan(w.delta).all()
            assert w.rival == w.row == -1
            continue
        z = x0[i].double() + torch.tensor(w.delta).view(x0.shape[1:])
        before, after = model(x0[i : i + 1].double())[0], model(z[None])[0]
        assert after.argmax() == w.rival != before.argmax()
        assert C is None or C.relative_to(x0[i].flatten().numpy()).violation(w.delta) <= 1e-9
        assert Norm.of(norm).value(w.delta) <= w.upper <= Norm.of(norm).value(w.delta) * (1 + 1e-12)


def linear_model(seed: int, d: int = DIM, classes: int = 3) -> tuple[nn.Module, Tensor]:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, classes)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(classes, d, generator=g))
        model[0].bias.copy_(torch.randn(classes, generator=g))
    return model, 0.2 * torch.randn(6, d, generator=g, dtype=torch.float64)


def chain_module(chain: ReluChain) -> nn.Module:
    layers: list[nn.Module] = []
    for W, b in zip(chain.weights, chain.shifts, strict=True):
        linear = nn.Linear(W.shape[1], W.shape[0]).double()
        with torch.no_grad():
            linear.weight.copy_(W)
            linear.bias.copy_(b)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("p", PS)
def test_digits_over_the_pixel_box(p: Any) -> None:
    model, x, _ = correct_digits(25)
    found = find_witness(model, x, p, PIXELS)
    assert found.found.all()
    assert found.stop is Stop.COMPLETE
    assert found.forward.max() <= 1324
    assert found.backward.max() <= 200
    check(found, model, x, PIXELS, p)
    rival = projected_gradient(model, x, p)
    assert np.median(found.upper) <= np.median(rival)
    assert np.mean(found.upper <= 1.01 * rival) > 0.95


def projected_gradient(model: nn.Module, x: Tensor, p: Any, steps: int = 30, halvings: int = 8) -> np.ndarray:
    """A rival: steepest ascent of the loss inside ball ∩ box at a fixed radius, and bisection on the radius."""
    label, low, high = model(x).argmax(1), torch.zeros(len(x)).double(), torch.full((len(x),), 6.0).double()
    for _ in range(halvings):
        radius = (low + high) / 2
        z, broken = x.clone(), torch.zeros(len(x), dtype=torch.bool)
        for k in range(steps):
            z.requires_grad_(True)
            (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), label, reduction="sum"), z)
            z = z.detach()
            room = torch.where(g > 0, z < 1, z > 0)  # at the edge of the box there is nothing to gain
            size = radius[:, None] * (1 - k / steps)
            if p == "inf":
                move = g.sign() * size / 4
            elif p == 2:
                move = g * room * size / 4 / (g * room).norm(dim=1, keepdim=True).clamp(min=1e-12)
            else:
                move = torch.zeros_like(g).scatter(1, (g.abs() * room).argmax(1, keepdim=True), 1.0) * g.sign() * size / 4
            step = z + move - x
            length = torch.linalg.vector_norm(step, float(p), dim=1).clamp(min=1e-12)
            step = step.clamp(-radius[:, None], radius[:, None]) if p == "inf" else step * (radius / length).clamp(max=1)[:, None]
            z = (x + step).clamp(0, 1)
            broken |= model(z).argmax(1) != label
        low, high = torch.where(broken, low, radius), torch.where(broken, radius, high)
    return high.numpy()


@pytest.mark.parametrize("p", PS)
def test_digits_over_smooth_changes_that_keep_the_brightness(p: Any) -> None:
    model, x, _ = correct_digits(5)
    found = find_witness(model, x, p, SMOOTH)
    assert found.found.all()
    check(found, model, x, SMOOTH, p)
    assert (found.violation <= 1e-9).all()
    assert (found.forward <= 1324).all()
    assert (found.backward <= 200).all()
    assert (found.upper >= find_witness(model, x, p, PIXELS).upper * 0.99).all()  # a bigger set is never farther


@pytest.mark.parametrize("p", PS)
def test_tiny_networks_against_a_dense_grid(p: Any) -> None:
    """Two inputs: the optimum over the box is found by looking everywhere."""
    ticks = torch.linspace(-1, 1, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    close = 0
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 3)).double()
        with torch.no_grad():
            for v in model.parameters():
                v.copy_(torch.randn(v.shape, generator=g))
        x = torch.rand(5, 2, generator=g, dtype=torch.float64) - 0.5
        found = find_witness(model, x, p, Box(-1, 1))
        check(found, model, x, Box(-1, 1), p)
        for i in range(5):
            length = torch.linalg.vector_norm(grid - x[i], float(p), dim=1)
            flips = model(grid).argmax(1) != model(x[i : i + 1]).argmax(1)
            nearest = length[flips].min().item() if flips.any() else np.inf
            assert found.upper[i] <= 1.3 * nearest + 0.02  # never far off …
            close += found.upper[i] <= nearest + 0.02
    assert close >= 29  # … and nearly always the global optimum, up to the grid


LINEAR_SETS: dict[str, ConvexSet | None] = {
    "everything": None,
    "box": Box(-1, 1),
    "half infinite box": Box(-np.inf, 0.8),
    "small steps": Box(-0.6, 0.6, on="change"),
    "max ball": LpBall("inf", 0.6),
    "frozen": Frozen([0, 3], DIM) & Box(-2, 2),
    "ball": LpBall(2, 1.5),
    "tv": TotalVariation(2.0, (3, 4)) & Box(-2, 2),
    "polytope": Polytope(np.random.default_rng(0).normal(size=(5, DIM)), np.full(5, 1.5)) & Box(-2, 2),
    "sum": Polytope(None, None, equal=(np.ones((1, DIM)), [0.0]), on="change") & Box(-2, 2),
    "ellipsoid": Ellipsoid(np.zeros(DIM), np.diag(np.linspace(0.5, 1.5, DIM)), 2.5),
}


@pytest.mark.parametrize("kind", LINEAR_SETS)
@pytest.mark.parametrize(
    "norm",
    [Norm(1), Norm(2), Norm("inf"), Norm(2, np.linspace(0.5, 2, DIM)), GroupNorm([[0, 1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11]])],
    ids=repr,
)
def test_linear_networks_are_solved_exactly(kind: str, norm: Norm) -> None:
    C = LINEAR_SETS[kind]
    model, x = linear_model(3)
    found = find_witness(model, x[:3], norm, C)
    check(found, model, x[:3], C, norm)
    W, bias = model[0].weight.detach().numpy(), model[0].bias.detach().numpy()
    for i in range(3):
        z = x[i].numpy()
        y = W @ z + bias
        c = int(y.argmax())
        rows = [min_norm(W[c] - W[t], y[c] - y[t], norm, C, z)[0] for t in range(3) if t != c]
        lower, value = min(r.lower for r in rows), min(r.value for r in rows)
        assert found.upper[i] >= lower * (1 - 1e-9)
        if np.isfinite(value):
            assert found.upper[i] <= value * (1 + 1e-5) + 1e-7


class Saturated(nn.Module):
    """Softmax of steep logits: the outputs are 0 and 1 to the last bit almost everywhere, and so are the gradients."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.line, self.steepness = nn.Linear(4, 2), steepness

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(self.steepness * self.line(z), dim=1)


class Cliff(nn.Module):
    """Class 0 except beyond z_0 = 0.5: flat at the start, so every gradient there is 0."""

    def forward(self, z: Tensor) -> Tensor:
        rise = torch.relu(z[:, :1] - 0.5)
        return torch.cat([torch.full_like(rise, 0.1), rise], 1)


def test_saturated_outputs() -> None:
    for steepness in (20.0, 1e4):
        torch.manual_seed(0)
        model, x = Saturated(steepness).double(), torch.zeros(3, 4).double() + torch.tensor([[0.2], [0.5], [0.9]]).double()
        for p in PS:
            found = find_witness(model, x, p, Box(-1, 2))
            assert found.found.all()
            check(found, model, x, Box(-1, 2), p)
            a, b = (v.detach().numpy() for v in (model.line.weight[0] - model.line.weight[1], model.line.bias[0] - model.line.bias[1]))
            exact = [min_norm(s * a, s * (a @ z + b), p, Box(-1, 2), z)[0].value for z in x.numpy() for s in [np.sign(a @ z + b)]]
            assert (found.upper <= 1.05 * np.array(exact)).all()


def test_a_plateau_without_gradient_is_left_by_probes() -> None:
    x = torch.tensor([[0.1, 0.3], [0.4, 0.9]]).double()
    for p in PS:
        found = find_witness(Cliff(), x, p, PIXELS)
        assert found.found.all()
        check(found, Cliff(), x, PIXELS, p)
        assert np.allclose(found.upper, 0.6 - x[:, 0].numpy(), rtol=1e-3)


def test_a_dead_network_is_not_found() -> None:
    class Dead(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.ones(len(z), 2, dtype=z.dtype) * torch.tensor([1.0, 0.0])

    x = torch.rand(3, 5, dtype=torch.float64)
    for model in (Dead(), nn.Sequential(nn.Linear(5, 4), nn.Hardtanh(3, 4), nn.Linear(4, 2)).double()):
        for C in (None, PIXELS, LpBall(2, 1.0)):
            with torch.no_grad():
                for v in model.parameters():
                    v.zero_()
            if list(model.parameters()):
                with torch.no_grad():
                    model[2].bias[0] = 1.0  # type: ignore[index]
            found = find_witness(model, x, 2, C)
            assert found.status == [WitnessStatus.NOT_FOUND] * 3
            check(found, model, x, C, 2)


def test_an_unreachable_rival_is_not_found_and_the_others_are() -> None:
    model, x = linear_model(1, 4)
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, -100.0
    first = model(x).argmax(1).tolist()
    far = find_witness(model, x, 2, Box(-2, 2), decisions=[Decision.rival(c, 2, 3) for c in first])
    assert not far.found.any()
    near = find_witness(model, x, 2, Box(-2, 2))
    assert near.found.any()
    assert (near.rival[near.found] != 2).all()


@pytest.mark.parametrize("p", PS)
def test_sets_that_are_a_single_point(p: Any) -> None:
    model, x = linear_model(2, 4)
    for C in (
        Box(0, 0, on="change"),
        LpBall(2, 0.0),
        Frozen(range(4), 4),
        Polytope(None, None, equal=(np.eye(4), np.zeros(4)), on="change"),
    ):
        found = find_witness(model, x, p, C)
        assert not found.found.any()
        check(found, model, x, C, p)


@pytest.mark.parametrize("p", PS)
def test_inputs_on_the_boundary_of_the_set(p: Any) -> None:
    model, x, _ = correct_digits(6)
    x = (x > 0.5).double()  # every pixel at an end of its range
    for C in (PIXELS, SMOOTH):
        found = find_witness(model, x[:3], p, C)
        assert found.found.all()
        check(found, model, x[:3], C, p)


def test_an_input_outside_the_set_is_answered_by_the_nearest_allowed_flip() -> None:
    model, x = linear_model(4, 4)
    x = x + 1.0
    box = find_witness(model, x, 2, Box(-0.5, 0.5))
    ball = find_witness(model, x, 2, Box(-0.5, 0.5) & LpBall(2, 50.0))  # the same set, by the other way
    assert np.allclose(box.upper, ball.upper, rtol=1e-4)
    check(box, model, x, Box(-0.5, 0.5), 2)


def test_a_decision_that_does_not_stand_is_flipped_by_no_change() -> None:
    model, x = linear_model(5, 4)
    c = model(x).argmax(1)
    found = find_witness(model, x, 2, decisions=[Decision.rival((int(k) + 1) % 3, int(k), 3) for k in c])
    assert (found.upper == 0).all()
    assert (found.delta == 0).all()
    assert found.rival.tolist() == c.tolist()


def test_an_output_that_touches_its_threshold_falls() -> None:
    """relu(z) > 0 falls where the output is 0 exactly: it is never below."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    found = find_witness(model, torch.tensor([[0.7]]), 2, decisions=Decision.threshold(0, 0.0, 1))
    assert found.upper == pytest.approx([0.7], rel=1e-5)


def test_regression_band_and_shaped_inputs() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 1)).double()
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    y = model(x)[:, 0].detach()
    decisions = [Decision.band(float(v) - 0.05, float(v) + 0.02) for v in y]
    found = find_witness(model, x, 1, PIXELS, decisions=decisions)
    assert found.found.all()
    after = model(x + torch.tensor(found.delta).view(x.shape))[:, 0] - y
    assert ((after <= -0.05) == torch.tensor(found.rival == 0)).all()
    assert ((after >= 0.02) == torch.tensor(found.rival == 1)).all()


@pytest.mark.parametrize(("p", "C"), [(1, PIXELS), (2, PIXELS), ("inf", PIXELS), (2, SMOOTH)], ids=["1", "2", "inf", "2 smooth"])
def test_the_same_bits_whatever_the_batch(p: Any, C: ConvexSet) -> None:
    model, x, _ = correct_digits(5)
    small = Effort(rivals=3, steps=2, polish=((2, 1), (1, 2)))
    whole = find_witness(model, x, p, C, effort=small)
    again = find_witness(model, x, p, C, effort=small)
    assert np.array_equal(whole.delta, again.delta)
    order = np.array([4, 2, 0, 1, 3])
    shuffled = find_witness(model, x[torch.tensor(order)], p, C, effort=small)
    assert np.array_equal(shuffled.delta, whole.delta[order])
    assert np.array_equal(shuffled.passes, whole.passes[order])
    alone = [find_witness(model, x[i : i + 1], p, C, effort=small) for i in range(2)]
    assert np.array_equal(np.concatenate([a.delta for a in alone]), whole.delta[:2])


def test_more_work_is_never_farther() -> None:
    model, x, _ = correct_digits(20)
    last = np.full(20, np.inf)
    for times in (0, 2, 6, 12):
        found = find_witness(model, x, 1, PIXELS, effort=Effort(polish=((4, times),)), budget=Budget(10_000, 10_000))
        assert (found.upper <= last * (1 + 1e-6)).all()
        last = found.upper


@pytest.mark.parametrize(("forward", "backward"), [(1, 1), (2, 1), (20, 3), (100, 20), (400, 60)])
def test_budgets_of_passes_are_kept(forward: int, backward: int) -> None:
    model, x, _ = correct_digits(5)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    found = find_witness(model, x, 2, PIXELS, budget=Budget(forward, backward), progress=count)
    assert (found.forward <= max(forward, 2)).all()  # the decision and the start are looked at in any case
    assert (found.backward <= backward).all()
    check(found, model, x, PIXELS, 2)
    assert calls > 0


def test_interrupts_and_time_limits_keep_the_best_so_far() -> None:
    model, x, _ = correct_digits(10)

    def interrupt_at(step: int) -> Any:
        def progress(done: int, total: int) -> None:
            assert done <= total
            if done == step:
                raise KeyboardInterrupt

        return progress

    early, late = (find_witness(model, x, 2, PIXELS, progress=interrupt_at(k)) for k in (1, 12))
    assert early.stop is late.stop is Stop.INTERRUPTED
    assert late.found.all()
    assert (late.upper <= early.upper).all()
    for found in (early, late):
        check(found, model, x, PIXELS, 2)
    out_of_time = find_witness(model, x, 2, PIXELS, budget=Budget(seconds=1e-6))
    assert out_of_time.stop is Stop.TIME
    check(out_of_time, model, x, PIXELS, 2)


def test_no_stage_goes_on_after_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock passes the limit within a stage's loop: the stage ends at its next step, and what it has found is kept."""
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(DIM, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    x = torch.randn(3, DIM, dtype=torch.float64)
    late, steps, honest = [0.0], [0], growing._towards
    monkeypatch.setattr(time, "monotonic", lambda: late[0])

    def step(*arguments: Any) -> Tensor:
        steps[0], late[0] = steps[0] + 1, 1e9
        return honest(*arguments)

    monkeypatch.setattr(growing, "_towards", step)
    found = find_witness(model, x, 2, budget=Budget(seconds=60.0))
    assert found.stop is Stop.TIME
    assert steps[0] == 1
    check(found, model, x, None, 2)


def test_pulling_back_repairs_what_a_solver_leaves() -> None:
    rng = np.random.default_rng(0)
    for name, C in SETS.items():
        x0 = np.zeros((1, DIM))
        parts = [p.at(0) for p in relative_parts(C, DIM, x0)]
        if violation(np.zeros(DIM), parts) > 0 or any(p.piece.kind == "custom" for p in parts):
            continue
        pull = PullBack(parts)
        for _ in range(2):
            inside = C.relative_to(x0[0]).project(rng.normal(size=DIM) * 3)
            moved, outside = pull(inside + 1e-8 * rng.normal(size=DIM), parts, np.zeros(DIM))
            assert outside <= 1e-9, name
            assert violation(moved, parts) == outside
            assert np.abs(moved - inside).max() <= 1e-6, name


class Cone(ConvexSet):
    """A user's own set, known by its CVXPY constraints alone: 4 Σ exp(z_i) ≤ 4 d + 1."""

    on, name, dim = "change", "cone", 4

    def constraints(self, z: Any) -> list[Any]:
        return [cp.sum(cp.exp(z)) <= 4.25]


@pytest.mark.parametrize("p", PS)
def test_samples_stay_in_the_set_and_in_reach(p: Any) -> None:
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 6, generator=g, dtype=torch.float64)
    assert (torch.linalg.vector_norm(spread(noise, float(p)), float(p), dim=1) <= 1 + 1e-12).all()
    who = torch.tensor([0, 0, 1, 1, 1])
    corners = torch.randn(5, 6, generator=g, dtype=torch.float64)
    anchor = torch.randn(3, 6, generator=g, dtype=torch.float64)
    lanes = Lanes(who, who, corners, torch.ones(5).double())
    which = torch.arange(3).repeat_interleave(66)
    point = mixed(which, noise[: len(which)], lanes, anchor)
    for k in range(3):  # in the hull of the anchor and the input's own lanes: no direction reaches beyond
        hull = torch.cat([anchor[k : k + 1], corners[who == k]])
        direction = torch.randn(50, 6, generator=g, dtype=torch.float64)
        reached = (point[which == k] @ direction.T).amax(0)
        assert (reached <= (hull @ direction.T).amax(0) + 1e-12).all()
        assert point[which == k].unique(dim=0).shape[0] == (66 if k < 2 else 1)


def test_looking_about_finds_what_slopes_miss() -> None:
    """A pit beside the gentle slope to a far flip: no slope at x0 leads into it."""

    class Pit(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            pit = torch.relu(0.15 - (z - torch.tensor([-0.5, 0.3]).double()).abs().amax(1)) * 20
            return torch.stack([torch.full_like(pit, 1.0), torch.maximum(pit, z[:, 0])], 1)

    x = torch.zeros(1, 2).double()
    blind, seeing = (find_witness(Pit(), x, 2, Box(-2, 2), effort=Effort(probes=0, lost_probes=0, samples=k)) for k in (0, 200))
    assert blind.upper[0] == pytest.approx(1.0, rel=1e-3)
    assert seeing.upper[0] < 0.6
    general = find_witness(Pit(), x, 2, Box(-2, 2) & LpBall(2, 2.5), effort=Effort(probes=8, samples=60, polish=((3, 2), (3, 2))))
    assert general.upper[0] < 1.001


@pytest.mark.parametrize("C", [PIXELS, PIXELS & LpBall(2, 4.0)], ids=["box", "general"])
@pytest.mark.parametrize("p", PS)
def test_growing_balls_end_at_flips_within_the_set(p: Any, C: ConvexSet) -> None:
    model, x, _ = correct_digits(2)
    net = Network(model, x, 64)
    net.decide(None)
    parts = relative_parts(C, 64, x.numpy(), 2)
    norm = Norm.of(p)
    search = Search(net, subproblem(norm, parts, 2, 64, x.device), norm, Budget(), Effort(), [0, 1], INF, lambda: None)
    who = torch.tensor([0, 1, 1])
    starts = Lanes(who, torch.tensor([2, 0, 5]), torch.full((3, 64), 0.5).double(), torch.full((3,), INF).double())
    found = grow(search, starts, 20)
    assert len(found)
    assert (net.forward_passes <= 1 + 2 * 20).all()
    for k in range(len(found)):
        i = int(found.who[k])
        assert search.steps.violation(i, found.delta[k].numpy()) <= 1e-9
        assert found.length[k] == pytest.approx(float(norm.value(found.delta[k].numpy())), rel=1e-12)
        assert float(search.length[i]) <= float(found.length[k])
        assert model((x[i] + found.delta[k])[None]).argmax() != model(x[i : i + 1]).argmax()


def test_growing_balls_meet_nearer_flips() -> None:
    """Where slopes turn on the way to the boundary, the flip that the first slopes foresee is not the nearest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 3)).double()
    x = torch.rand(12, 30).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight *= 2.5
    plain = Effort(growing=0, samples=0, folds=0)
    without, with_ = (find_witness(net, x, "inf", Box(0, 1), effort=e) for e in (plain, replace(plain, growing=3)))
    assert with_.found.all()
    assert np.mean(with_.upper) < np.mean(without.upper)


@pytest.mark.parametrize(("p", "kind"), [(1, "box on input"), (2, "tv"), ("inf", "box on input"), ("inf", "rows")])
def test_small_networks_are_attacked_to_the_optimum(p: Any, kind: str) -> None:
    """Against the truth by trying every activation pattern: never below it, and where regions are solved nearly always within a hundredth of it."""
    near, blind = [], []
    for seed in range(6):
        c, C = exact_example.case(seed), exact_example.SETS[kind]
        best, _ = exact_example.truth(c, p, C)
        model, x = chain_module(c.chain), torch.tensor(c.x0[None])
        found = find_witness(model, x, p, C)
        without = find_witness(model, x, p, C, effort=Effort(regions=0, growing=0, samples=0, probes=0, lost_probes=2, polish=((1, 2),)))
        check(found, model, x, C, p)
        assert without.regions.tolist() == [0]
        assert found.found[0] == np.isfinite(best)
        if np.isfinite(best):
            assert found.upper[0] >= best * (1 - 1e-6)
            assert 1 <= found.regions[0] <= Effort().regions
            near.append(found.upper[0] <= 1.01 * best)
            blind.append(without.upper[0] <= 1.01 * best)
    assert sum(near) >= len(near) - 1
    assert sum(near) >= sum(blind)


def test_regions_are_left_alone_where_they_cost_much() -> None:
    model, x, _ = correct_digits(2)
    assert not find_witness(model, x, 2, PIXELS).regions.any()  # 128 neurons
    assert find_witness(model, x[:1], 2, PIXELS, effort=Effort(neurons=128, regions=2)).regions.tolist() == [2]
    smooth = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    assert not find_witness(smooth, torch.zeros(1, 4), 2, Box(-3, 3)).regions.any()


def test_a_set_known_only_by_its_constraints() -> None:
    model, x = linear_model(6, 4)
    found = find_witness(model, x[:3], 2, Cone(), effort=Effort(steps=3, probes=0, lost_probes=2, polish=((2, 3),)))
    assert found.found.any()
    check(found, model, x[:3], Cone(), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x0": torch.full((1, 4), torch.nan)}, "nan"),
        ({"x0": torch.zeros(2, 5)}, "5"),
        ({"decisions": [Decision.classification(0, 3)]}, "one each"),
        ({"decisions": Decision.classification(0, 7)}, "7 outputs"),
        ({"norm": 3}, "p=3"),
        ({"constraints": Box(np.zeros(9), np.ones(9))}, "9"),
    ],
)
def test_errors_name_the_value(arguments: dict[str, Any], words: str) -> None:
    model, x = linear_model(0, 4)
    with pytest.raises(InputError, match=words):
        find_witness(model, **{"x0": x[:2], **arguments})


def test_budgets_must_be_positive() -> None:
    for arguments in ({"forward": 0}, {"backward": 0}, {"seconds": 0.0}):
        with pytest.raises(InputError, match="positive"):
            Budget(**arguments)


@pytest.mark.slow
def test_a_batch_is_five_times_faster_than_a_loop() -> None:
    model, x, _ = correct_digits(256)
    begun = time.perf_counter()
    find_witness(model, x, 2, PIXELS)
    batch = (time.perf_counter() - begun) / 256
    begun = time.perf_counter()
    for i in range(5):
        find_witness(model, x[i : i + 1], 2, PIXELS)
    assert (time.perf_counter() - begun) / 5 >= 5 * batch
