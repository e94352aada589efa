"""Certified regions are attacked: random and gradient points inside, over networks × norms × sets, and no decision flips. The law of nested sets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from formulations.norms import Norm
from formulations.sets import Box, ConvexSet, LpBall, Polytope, TotalVariation
from tests.digits_net import correct_digits
from tests.test_lirpa import IMAGE, Residual, mlp, seeded
from verification.lirpa import BoundEngine
from verification.nested import nested_radii
from verification.radius import certified_radius

BOX = Box(0, 1)
Case = tuple[nn.Module, Tensor]


def digits(count: int) -> Case:
    net, X, _ = correct_digits(count)
    return net, X


def made(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[int], Case]:
    return lambda count: (seeded(build, 5), torch.tensor(np.random.default_rng(5).uniform(0.1, 0.9, (count, *shape))))


NETWORKS: dict[str, Callable[[int], Case]] = {
    "digits": digits,
    "2×256": made(lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)), (784,)),
    "conv": made(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), IMAGE),
    "tanh": made(lambda: mlp(nn.Tanh()), (6,)),
    "residual": made(Residual, IMAGE),
    "gelu": made(lambda: mlp(nn.GELU()), (6,)),
}  # fmt: skip


def sets(dim: int) -> dict[str, ConvexSet]:
    shape = {64: (8, 8), 784: (28, 28), 36: (6, 6), 6: (2, 3)}[dim]
    half = np.r_[np.zeros(dim // 2), np.ones(dim - dim // 2)]
    return {
        "box": BOX,
        "tv": BOX & TotalVariation(0.3 * np.sqrt(dim), shape),
        "zero sum": BOX & Polytope(None, None, equal=(np.ones((1, dim)), [0.0]), on="change"),
        "l2 ball": BOX & LpBall(2, 0.3),
        "frozen half": BOX & Box(-half, half, on="change"),
    }


def pulled_in(delta: np.ndarray, C: ConvexSet, name: str, radius: float, norm: Norm, x0: np.ndarray) -> np.ndarray:
    """Changes (s, d) moved into C ∩ ball: clipped to the box, into the subspace of equalities, then shrunk towards 0, which C holds."""
    delta = np.clip(x0 + delta, 0, 1) - x0
    if name == "zero sum":
        delta = delta - delta.mean(1, keepdims=True)
    delta = delta * np.minimum(1, radius / np.maximum(norm.value(delta), 1e-300))[:, None]
    pieces = [part.relative_to(x0).piece.at(0) for part in C.parts(len(x0))]
    share = np.ones(len(delta))
    for _ in range(12):  # 0 is what is left of those that are still outside
        out = np.array([any(p.violation(t * v) > 1e-10 for p in pieces) for t, v in zip(share, delta, strict=True)])
        if not out.any():
            break
        share[out] *= 0.7
    return delta * np.where(out, 0.0, share)[:, None]


def attack(name: str, count: int, random: int, steps: int, of: set[str], norms: tuple[float | str, ...] = (1, 2, "inf")) -> int:
    """Number of points tried inside certified regions; asserts that none flips."""
    net, x = NETWORKS[name](count)
    shape, dim, tried = tuple(x.shape[1:]), int(np.prod(x.shape[1:])), 0
    engine, classes, rng = BoundEngine(net, shape), net(x).argmax(1), np.random.default_rng(3)
    for set_name, C in sets(dim).items():
        if set_name not in of:
            continue
        for p in norms:
            norm = Norm.of(p)
            found = certified_radius(engine, x, norm, C, max_passes=25 if set_name == "box" else 3)
            for i in range(count):
                r = min(float(found.lower[i]), 50.0)
                x0, c = x[i].flatten().numpy(), int(classes[i])
                raw = rng.normal(size=(random, dim)) * (rng.random((random, dim)) < rng.random((random, 1)))
                raw = np.where(rng.random((random, 1)) < 0.5, np.sign(raw), raw)
                raw *= r * rng.lognormal(0.2, 0.4, (random, 1)) / np.maximum(norm.value(raw)[:, None], 1e-12)
                points = [pulled_in(raw, C, set_name, r, norm, x0)]
                delta = points[0][:8]
                for k in range(steps):  # eight descents at once
                    z = torch.tensor(x0 + delta).reshape(-1, *shape).requires_grad_(True)
                    y = net(z)
                    rival = y.clone()
                    rival[:, c] = -torch.inf
                    (g,) = torch.autograd.grad((y[:, c] - rival.amax(1)).sum(), z)
                    g = g.flatten(1).numpy()
                    g = np.sign(g) if norm.p == np.inf else g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12)
                    delta = pulled_in(delta - g * r / (1 + k), C, set_name, r, norm, x0)
                    points.append(delta)
                inside = np.concatenate(points)
                assert (norm.value(inside) <= r * (1 + 1e-9)).all()
                assert (net(torch.tensor(x0 + inside).reshape(-1, *shape)).argmax(1) == c).all()
                tried += len(inside)
    return tried


@pytest.mark.parametrize("name", ["digits", "conv", "tanh", "gelu"])
def test_no_flip_inside_certified_regions(name: str) -> None:
    assert attack(name, 2, 150, 5, {"box", "frozen half"} if name == "digits" else {"box"}) >= 500


@pytest.mark.slow
def test_no_flip_inside_certified_regions_of_any_network_norm_and_set() -> None:
    """More than 50,000 points over all networks, norms and sets."""
    tried = {name: attack(name, 3, 300, 20, set(sets(64)) if name != "2×256" else {"box", "tv"}) for name in NETWORKS}
    print(tried)
    assert sum(tried.values()) >= 50_000


# ---- nested sets ---------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, "inf"]), st.sampled_from(["ibp", "crown"]))
@example(0, 2, "crown")  # a solver's bound over the smaller set is worse by its tolerance
def test_a_further_constraint_never_lowers_the_published_bound(seed: int, p: float | str, method: str) -> None:
    """1e-9 of the bound, along chains of random sets; and every bound of the chain stays below nothing that flips."""
    rng = np.random.default_rng(seed)
    net = seeded(lambda: mlp(nn.ReLU()), seed)
    x = torch.tensor(rng.uniform(0.2, 0.8, (2, 6)))
    more: list[ConvexSet] = [
        LpBall(2, float(rng.uniform(0.2, 1))),
        Box(-float(rng.uniform(0.1, 1)), float(rng.uniform(0.1, 1)), on="change"),
        Polytope(rng.normal(size=(2, 6)), rng.uniform(0.05, 0.5, 2), on="change"),
        TotalVariation(float(rng.uniform(0.2, 2)), (2, 3)),
    ]
    chain = [BOX, *(more[k] for k in rng.permutation(4)[:2])]
    answers = nested_radii(net, x, p, chain, method=method, max_passes=6)
    for wide, narrow in pairwise(answers):
        assert (narrow.lower >= wide.lower * (1 - 1e-9) - 1e-12).all()
        for item in narrow:
            assert item.lower == min(row.lower for row in item.rows)


# ---- edges ---------------------------------------------------------------------------------------------------------------


def test_half_precision_weights_are_widened_exactly() -> None:
    """The radius of a float16 model is that of the same weights in float64, and an attack on those finds no flip inside."""
    half = seeded(lambda: mlp(nn.ReLU()), 2).half()
    wide = seeded(lambda: mlp(nn.ReLU()), 2).half().double()
    x = torch.tensor(np.random.default_rng(0).uniform(0.2, 0.8, (3, 6)))
    a, b = certified_radius(half, x, 2, BOX), certified_radius(wide, x, 2, BOX)
    assert np.array_equal(a.lower, b.lower)
    assert (a.lower > 0).all()
    assert next(half.parameters()).dtype == torch.float16


def test_two_nearly_equal_outputs_give_a_tiny_radius_not_an_error() -> None:
    net = nn.Linear(6, 3, dtype=torch.float64).requires_grad_(False)
    net.weight.copy_(torch.eye(3, 6))
    net.bias.zero_()
    x = torch.full((1, 6), 0.5, dtype=torch.float64)
    x[0, 0] += 1e-12
    found = certified_radius(net, x, "inf", BOX)
    assert 0 <= found.lower[0] <= 1e-11
