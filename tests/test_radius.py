"""Certified radii: no flip inside, tight against witnesses, errors by name; the linearised claim's validity."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from formulations.sets import Box, ConvexSet, LpBall, Polytope, TotalVariation
from tests.digits_net import correct_digits
from verification.attack import find_witness
from verification.certificate import Certificate
from verification.decision import Decision
from verification.lirpa import BoundEngine
from verification.radii import CertifiedRadii, SearchStop
from verification.radius import certified_radius
from verification.validity import Validity, linear_validity

NORMS = (1, 2, "inf")
BOX = Box(0, 1)


def small(seed: int, outputs: int = 3, dim: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(dim, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, outputs)).double()
    net.requires_grad_(False)
    for weight in net.parameters():
        weight *= 2  # so that decisions flip within the unit box
    return net


class Own(ConvexSet):
    """‖δ‖₂ ≤ ½, known by its constraints alone."""

    on, name = "change", "own"

    def constraints(self, z: cp.Variable) -> list[cp.Constraint]:
        return [cp.norm(z, 2) <= 0.5]


def some(count: int, dim: int = 5) -> Tensor:
    return torch.tensor(np.random.default_rng(4).uniform(0.1, 0.9, (count, dim)))


def inside(radii: np.ndarray, x: Tensor, norm: Norm, count: int, seed: int) -> Tensor:
    """Random changes (n, count, d) with ‖δ‖ ≤ radius and x + δ ∈ [0, 1]: dense, sparse and at the box's corners, most of them on the sphere."""
    rng = np.random.default_rng(seed)
    r, flat = np.where(np.isfinite(radii), radii, 10.0), x.numpy()[:, None]
    delta = rng.normal(size=(len(x), count, x.shape[1]))
    delta = np.where(rng.random((len(x), count, 1)) < 0.5, np.sign(delta), delta) * (
        rng.random(delta.shape) < rng.random((len(x), count, 1))
    )
    delta *= r[:, None, None] / np.maximum(norm.value(delta)[..., None], 1e-12)
    delta = np.clip(flat + delta * rng.lognormal(0.3, 0.5, (len(x), count, 1)), 0, 1) - flat
    return torch.tensor(delta * np.minimum(1, r[:, None, None] / np.maximum(norm.value(delta)[..., None], 1e-12)))


def descend(net: nn.Module, x: Tensor, radii: np.ndarray, norm: Norm, classes: Tensor, steps: int) -> Tensor:
    """The points (n, steps, d) of a descent of the smallest margin, kept in ball ∩ box by clipping and scaling."""
    r, delta, path = torch.tensor(np.where(np.isfinite(radii), radii, 10.0))[:, None], torch.zeros_like(x), []
    for k in range(steps):
        delta = delta.detach().requires_grad_(True)
        y = net(x + delta)
        own = y.gather(1, classes[:, None])
        rival = y.scatter(1, classes[:, None], -torch.inf).amax(1, keepdim=True)
        (g,) = torch.autograd.grad((own - rival).sum(), delta)
        if norm.p == 1:
            g = torch.where(g.abs() >= g.abs().topk(3, dim=1).values[:, -1:], g, 0.0)
        g = g.sign() if norm.p == np.inf else g / g.norm(dim=1, keepdim=True).clamp(min=1e-12)
        delta = (x + delta.detach() - g * r * (2 / (2 + k))).clamp(0, 1) - x
        delta = delta * (r / torch.tensor(norm.value(delta.numpy()))[:, None].clamp(min=1e-12)).clamp(max=1)
        path.append(delta)
    return torch.stack(path, 1)


def flips(net: nn.Module, x: Tensor, classes: Tensor, delta: Tensor) -> int:
    y = net((x[:, None] + delta).reshape(-1, x.shape[1])).reshape(*delta.shape[:2], -1)
    return int((y.argmax(-1) != classes[:, None]).sum())


def attack(count: int, random: int, steps: int, seed: int) -> None:
    net, X, _ = correct_digits(count)
    classes = net(X).argmax(1)
    engine = BoundEngine(net, (64,))
    for p in NORMS:
        found = certified_radius(engine, X, p, BOX)
        points = torch.cat([inside(found.lower, X, Norm(p), random, seed), descend(net, X, found.lower, Norm(p), classes, steps)], 1)
        assert points.shape[0] * points.shape[1] >= 10_000
        assert flips(net, X, classes, points) == 0


def test_no_flip_inside_certified_radii() -> None:
    attack(20, 480, 25, 0)


@pytest.mark.slow
def test_no_flip_inside_certified_radii_of_many_digits() -> None:
    attack(100, 2000, 200, 1)


def test_radii_reach_the_witnesses_of_the_digits_network() -> None:
    """Mean lower/witness over 50 correct inputs, plain CROWN, in few passes. Far below means that some layer is bounded over the box hull."""
    net, X, _ = correct_digits(50)
    engine = BoundEngine(net, (64,))
    for p, least in (("inf", 0.85), (2, 0.84), (1, 0.82)):
        found, witnesses = certified_radius(engine, X, p, BOX), find_witness(net, X, p, BOX)
        assert (found.lower <= witnesses.upper).all()
        assert np.mean(found.lower / witnesses.upper) >= least
        assert found.passes <= 12
        assert found.stop is SearchStop.COMPLETE


SETS: dict[str, ConvexSet] = {
    "tv": BOX & TotalVariation(1.5, (8, 8)),
    "zero sum": BOX & Polytope(None, None, equal=(np.ones((1, 64)), [0.0]), on="change"),
    "l2 ball": BOX & LpBall(2, 0.3),
    "frozen half": BOX & Box(np.r_[np.zeros(32), -np.ones(32)], np.r_[np.zeros(32), np.ones(32)], on="change"),
}


@pytest.mark.parametrize("name", SETS)
def test_no_witness_of_a_set_lies_inside(name: str) -> None:
    """Witnesses of the set are found by convex programs over it; none may be nearer, and fewer allowed changes bring no smaller radius."""
    net, X, _ = correct_digits(2)
    engine = BoundEngine(net, (64,))
    norm = {"tv": 2, "zero sum": 1, "l2 ball": "inf", "frozen half": 2}[name]
    found, plain = certified_radius(engine, X, norm, SETS[name], max_passes=4), certified_radius(engine, X, norm, BOX)
    witnesses = find_witness(net, X, norm, SETS[name])
    assert (found.lower <= witnesses.upper).all()
    assert (found.lower >= 0.95 * plain.lower).all()
    assert found.lower.mean() > plain.lower.mean()
    for item in found:
        assert item.lower == min(row.lower for row in item.rows)


def test_unreachable_decisions_are_certified() -> None:
    """Nothing may move, hardly anything may move, or the output does not depend on the input: +∞, with rows that hold on all of C."""
    net = small(0)
    x = some(4)
    dead = nn.Linear(5, 3, dtype=torch.float64).requires_grad_(False)
    dead.weight.zero_()
    for model, C in ((net, Box(0, 0, on="change")), (net, Box(-1e-4, 1e-4, on="change") & BOX), (dead, BOX), (net, LpBall(2, 1e-4))):
        for p in NORMS:
            found = certified_radius(model, x, p, C)
            assert np.isinf(found.lower).all()
            assert all(row.radius == np.inf for item in found for row in item.rows)
            assert all(item.unreachable for item in found)
    assert np.isinf(certified_radius(dead, x, 2, BOX, method="dual-network").lower).all()
    far = certified_radius(dead, x, 2)  # without a bounded set: certified as far as the search cares to go
    assert (far.lower > 1e9).all()


def test_affine_networks_are_exact_and_linear() -> None:
    net = nn.Linear(5, 3, dtype=torch.float64).requires_grad_(False)
    x = some(6)
    for p in NORMS:
        for C in (None, BOX):
            found = certified_radius(net, x, p, C, tolerance=1e-9)
            assert np.allclose(found.lower, found.linear, rtol=1e-7)


def test_better_slopes_never_cost_radius() -> None:
    """alpha-crown is never below crown, though its own rows are now and then worse; and it says what both searches took."""
    used = set()
    net, x = small(1), some(3)
    for p in NORMS:
        crown, alpha = certified_radius(net, x, p, BOX), certified_radius(net, x, p, BOX, method="alpha-crown")
        assert (alpha.lower >= crown.lower).all()
        assert alpha.method == "alpha-crown"
        assert alpha.passes > crown.passes
        assert (alpha.lower <= find_witness(net, x, p, BOX).upper).all()
        used |= {item.method for item in alpha}
    assert used == {"crown", "alpha-crown"}
    short = certified_radius(net, x, 2, BOX, method="alpha-crown", max_passes=2)
    assert short.passes <= 2
    assert short.stop is SearchStop.LIMIT
    rivals = [certified_radius(net, x, 1, BOX, method=m, per_rival=True) for m in ("crown", "alpha-crown")]
    assert (rivals[1].lower >= rivals[0].lower).all()


def test_methods_and_rivals() -> None:
    net, x = small(3), some(2)
    crown = certified_radius(net, x, 2, BOX)
    assert (certified_radius(net, x, 2, BOX, method="ibp").lower <= crown.lower * (1 + 1e-3)).all()
    assert (certified_radius(net, x, 2, BOX, method="alpha-crown", max_passes=10).lower >= crown.lower * (1 - 1e-2)).all()
    each = certified_radius(net, x, 2, BOX, per_rival=True)
    assert np.allclose(each.lower, crown.lower, rtol=2e-3)
    for one, other in zip(each, crown, strict=True):
        assert len(one.rows) == len(other.rows) == 2
        assert all(a.lower >= b.lower * (1 - 2e-3) for a, b in zip(one.rows, other.rows, strict=True))
        assert [r.rival for r in one.rows] == [r.rival for r in other.rows]
    assert (find_witness(net, x, 2, BOX).upper >= each.lower).all()
    guided = certified_radius(net, x, 2, BOX, upper=crown.lower / 0.9)
    assert np.allclose(guided.lower, crown.lower, rtol=2e-3)


def test_decisions_of_every_kind() -> None:
    """Thresholds, bands and single rivals, mixed in one batch: each equals its own search."""
    net, x = small(5, outputs=2), some(3)
    y = net(x)
    decisions = [
        Decision.band(float(y[0, 0]) - 0.05, float(y[0, 0]) + 0.1, outputs=2),
        Decision.threshold(1, float(y[1, 1]) - 0.04, 2),
        Decision.classification(int(y[2].argmax()), 2),
    ]
    together = certified_radius(net, x, 2, BOX, decisions=decisions)
    assert [len(item.rows) for item in together] == [2, 1, 1]
    for i, decision in enumerate(decisions):
        alone = certified_radius(net, x[i : i + 1], 2, BOX, decisions=decision)
        assert np.isclose(alone.lower[0], together.lower[i], rtol=2e-3)
        points = inside(together.lower[i : i + 1], x[i : i + 1], Norm(2), 2000, i)
        assert decision.stands(net(x[i] + points[0]).numpy()).all()
    one = certified_radius(small(1, outputs=1), x, 2, BOX, decisions=Decision.band(-5, 5))
    assert (one.lower > 0).all()


def test_answers_are_programs_with_multipliers_and_certificates() -> None:
    net, x = small(7), some(3)
    y = net(x)
    found = certified_radius(net, x, 1, BOX)
    assert np.isfinite(found.lower).all()
    for i, item in enumerate(found):
        row = item.nearest
        assert row.solution is not None
        assert item.lower == min(row.radius, row.solution.lower)
        assert np.isclose(row.a @ row.solution.delta + row.b, 0, atol=1e-7)  # the row is what stops the program
        assert row.solution.multipliers["margin"] > 0
        certificate = Certificate.build(
            model=net, x0=x[i].numpy(), outputs=y[i].numpy(), decision=Decision.classification(int(y[i].argmax()), 3),
            norm=1, parts=BOX.parts(5), evidence=item.evidence(),
        )  # fmt: skip
        assert certificate.check(net).ok
        assert np.isclose(certificate.lower, item.lower, rtol=1e-9)
    assert found.rival.tolist() == [item.nearest.rival for item in found]


# ---- limits and errors -------------------------------------------------------------------------------------------------


def test_limits_and_interrupts_return_valid_bounds() -> None:
    net, x = small(9), some(8)
    full = certified_radius(net, x, 2, BOX)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    def check(found: CertifiedRadii, why: SearchStop) -> None:
        assert found.stop is why
        assert (found.lower <= find_witness(net, x, 2, BOX).upper).all()

    cut = certified_radius(net, x, 2, BOX, progress=stop)
    check(cut, SearchStop.INTERRUPTED)
    assert (cut.lower > 0.5 * full.lower).all()
    assert all(t == 8 for _, t in seen)
    check(certified_radius(net, x, 2, BOX, max_passes=1), SearchStop.LIMIT)
    nothing = certified_radius(net, x, 2, BOX, max_passes=0)
    check(nothing, SearchStop.LIMIT)
    assert (nothing.lower == 0).all()
    assert nothing[0].nearest.solution is None
    assert not nothing[0].rows[0].evidence("crown").cells
    check(certified_radius(net, x, 2, BOX, seconds=0), SearchStop.LIMIT)


def test_errors_name_what_is_wrong() -> None:
    net, x = small(11), some(2)
    nan = x.clone()
    nan[1, 3] = torch.nan
    outside = x.clone()
    outside[1, 0] = 1.5
    tied = nn.Linear(5, 3, dtype=torch.float64).requires_grad_(False)
    tied.weight.zero_()
    tied.bias.zero_()
    for model, inputs, how, words in (
        (net, nan, {}, "input 1 has nan at coordinate 3"),
        (net, x[:, :4], {}, "does not take inputs"),
        (net, x[:0], {}, "empty"),
        (net, outside, {}, "input 1 lies outside the constraint 'box' by 0.5"),
        (net, x, {"constraints": BOX & Polytope(np.ones((1, 5)), [0.0], name="budget")}, "outside the constraint 'budget'"),
        (net, x, {"constraints": BOX & Box(2, 3)}, "outside the constraint"),
        (net, x, {"method": "magic"}, "not known; use one of ibp, crown-ibp, crown, alpha-crown, dual-network"),
        (net, x, {"method": "dual-network", "norm": GroupNorm([[0, 1], [2, 3, 4]])}, "GroupNorm; use method='crown'"),
        (net, x, {"method": "dual-network", "constraints": BOX & Own()}, "'own' is known only by its CVXPY constraints"),
        (
            nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)),
            x,
            {"method": "dual-network"},
            "(Tanh) is neither affine nor a ReLU; use method='crown'",
        ),
        (net, x, {"norm": 3}, "p=3"),
        (net, x, {"decisions": [Decision.classification(0, 3)]}, "1 decisions for 2 inputs"),
        (net, x, {"decisions": Decision.classification(0, 4)}, "the model has 3"),
        (net, x[:1], {"decisions": Decision.classification(int(net(x[:1]).argmin()), 3)}, "does not stand"),
        (tied, x, {}, "does not stand"),
        (small(1, outputs=1), x, {}, "one output"),
        (lambda v: v, x, {}, "torch.nn.Module"),
        (nn.Sequential(nn.Linear(5, 8), nn.Softshrink(), nn.Linear(8, 3)), x, {}, "Softshrink"),
    ):
        options = {"norm": 2, "constraints": BOX, **how}
        with pytest.raises(InputError) as caught:
            certified_radius(model, inputs, **options)  # type: ignore[arg-type]
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


# ---- validity ----------------------------------------------------------------------------------------------------------


def test_validity_of_linearised_radii() -> None:
    inf = np.inf
    table = [
        (1.0, 1.2, 2.0, Validity.CERTIFIED, 1.0),
        (1.0, 1.0, 1.0, Validity.CERTIFIED, 1.0),
        (1.0, 0.5, 0.9, Validity.REFUTED, 0.5),
        (1.0, 0.8, 1.5, Validity.UNKNOWN, 0.8),
        (1.0, 0.8, inf, Validity.UNKNOWN, 0.8),
        (inf, inf, inf, Validity.CERTIFIED, 1.0),
        (inf, 0.7, 0.9, Validity.REFUTED, 0.0),
        (inf, 0.7, inf, Validity.UNKNOWN, 0.0),
        (0.0, 0.0, 1.0, Validity.CERTIFIED, 1.0),
    ]
    v, low, up, verdicts, parts = zip(*table, strict=True)
    got, fraction = linear_validity(v, low, up)
    assert got == list(verdicts)
    assert np.allclose(fraction, parts)


def test_validity_on_the_digits_network() -> None:
    """A linearised radius below the certified one is certified, one above the witness is refuted: both happen, and never for the same input."""
    net, X, _ = correct_digits(30)
    found, witnesses = certified_radius(net, X, "inf", BOX), find_witness(net, X, "inf", BOX)
    verdicts, fraction = linear_validity(found.linear, found.lower, witnesses.upper)
    assert {Validity.CERTIFIED, Validity.REFUTED} & set(verdicts)
    assert ((fraction > 0.5) & (fraction <= 1)).all()
