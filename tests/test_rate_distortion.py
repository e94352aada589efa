"""Rate–distortion explanations: moments against an independent reference, distortions against draws, Frank–Wolfe against linear programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import multivariate_normal
from scipy.stats import norm as normal
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.frank_wolfe import Birkhoff, SparseBox, Step, Variant, gradient_of, minimise
from formulations.projected_gradient import minimise_over_box
from lde_cvx.rate_distortion import RateDistortion
from lde_cvx.rate_distortion.distortion import (
    Background,
    ExactDistortion,
    MomentDistortion,
    SampledDistortion,
    bivariate_normal,
    distortion_of,
)
from lde_cvx.rate_distortion.moments import EPSILON, Gaussian, layers_of, propagate


def seeded(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(*layers).double().eval()
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.6 if p.ndim > 1 else 0.3)
    return net.requires_grad_(False)


def dense_net(seed: int = 0) -> nn.Sequential:
    return seeded(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3), seed=seed)


# ---- moments ------------------------------------------------------------------------------------------------------------------


def numpy_moments(net: nn.Sequential, mean: np.ndarray, covariance: np.ndarray, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """The published rules written with covariance matrices (full) or variances, in numpy alone."""
    mu, C = mean, covariance if full else np.diag(covariance).copy()
    for layer in net:
        if isinstance(layer, nn.Linear):
            W, b = layer.weight.numpy(), layer.bias.numpy()
            mu, C = W @ mu + b, W @ C @ W.T if full else W**2 @ C
        else:
            v = np.diag(C) if full else C
            sd = np.sqrt(v + EPSILON)
            big, small = normal.cdf(mu / sd), normal.pdf(mu / sd)
            new = np.maximum(mu, np.maximum(0, mu * big + sd * small))
            C = np.diag(big) @ C @ np.diag(big) if full else np.maximum(0, (mu**2 + v) * big + mu * sd * small - new**2)
            mu = new
    return mu, np.diag(C) if full else C


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("full", [False, True])
def test_moments_are_those_of_the_reference(full: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    net, mean, root = dense_net(seed), rng.normal(size=6), rng.normal(size=(6, 6))
    covariance = root @ root.T if full else np.diag(rng.uniform(0, 2, 6))
    g = Gaussian(
        torch.tensor(mean)[None], None if full else torch.tensor(np.diag(covariance))[None], torch.tensor(root.T)[None] if full else None
    )
    out = propagate(layers_of(net), g)
    want_mean, want_variance = numpy_moments(net, mean, covariance, full)
    np.testing.assert_allclose(out.mean[0].numpy(), want_mean, atol=1e-6)
    np.testing.assert_allclose(out.spread[0].numpy(), want_variance, atol=1e-6)


AFFINE = {
    "convolution": ((2, 6, 6), [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(27, 2)]),
    "batch norm": ((2, 4, 4), [nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2)]),
    "average pool": ((2, 6, 6), [nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 2)]),
    "adaptive pool": ((2, 6, 6), [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 2)]),
    "one dimension": (
        (8,),
        [nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 3), nn.AvgPool1d(2), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 2)],
    ),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_layers_are_exact_with_all_directions(name: str) -> None:
    """The network is one matrix; its moments are W μ + b and W C Wᵀ. Independence is lost between layers, so the diagonal form is checked one layer deep."""
    shape, layers = AFFINE[name]
    net, d = seeded(*layers, seed=3), math.prod(shape)
    zero = net(torch.zeros(1, *shape, dtype=torch.float64))
    W = (net(torch.eye(d, dtype=torch.float64).reshape(d, *shape)) - zero).T
    rng = torch.Generator().manual_seed(0)
    mean, root = torch.randn(d, generator=rng, dtype=torch.float64), torch.randn(d, d, generator=rng, dtype=torch.float64)
    out = propagate(layers_of(net), Gaussian(mean.reshape(1, *shape), None, root.reshape(1, d, *shape)))
    torch.testing.assert_close(out.mean[0], W @ mean + zero[0])
    torch.testing.assert_close(out.spread[0], torch.diagonal(W @ root.T @ root @ W.T))
    first = next(i for i, layer in enumerate(net) if not isinstance(layer, nn.Unflatten | nn.Flatten)) + 1
    part = net[:first]
    v = torch.rand(d, generator=rng, dtype=torch.float64)
    shift = part(torch.zeros(1, *shape, dtype=torch.float64))
    M = (part(torch.eye(d, dtype=torch.float64).reshape(d, *shape)) - shift).reshape(d, -1).T
    got = propagate(layers_of(part), Gaussian(mean.reshape(1, *shape), v.reshape(1, *shape)))
    torch.testing.assert_close(got.spread.reshape(-1), M**2 @ v)


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU()], ids=str
)
def test_bends_have_the_moments_of_draws(layer: nn.Module) -> None:
    mean, v = torch.tensor([-1.5, -0.2, 0.0, 0.7, 3.0], dtype=torch.float64), torch.tensor([1.0, 0.3, 2.0, 1.0, 0.5], dtype=torch.float64)
    x = mean + torch.sqrt(v) * torch.randn(400_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = layer(x)
    got = propagate([layer], Gaussian(mean[None], v[None]))
    torch.testing.assert_close(got.mean[0], y.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(got.spread[0], y.var(0), atol=0.02, rtol=0)
    slope = ((y - y.mean(0)) * (x - mean)).mean(0) / v  # regression on the input
    factor = propagate([layer], Gaussian(mean[None], None, torch.diag(torch.sqrt(v))[None])).factor
    assert factor is not None
    torch.testing.assert_close(torch.diagonal(factor[0]) / torch.sqrt(v), slope, atol=0.01, rtol=0)


def test_max_pool_has_the_moments_of_draws() -> None:
    g = torch.Generator().manual_seed(1)
    mean, v = torch.randn(1, 2, 4, 4, generator=g, dtype=torch.float64), torch.rand(1, 2, 4, 4, generator=g, dtype=torch.float64)
    x = mean + torch.sqrt(v) * torch.randn(200_000, 2, 4, 4, generator=g, dtype=torch.float64)
    y, got = nn.MaxPool2d(2)(x), propagate([nn.MaxPool2d(2)], Gaussian(mean, v))
    torch.testing.assert_close(got.mean[0], y.mean(0), atol=0.03, rtol=0)  # exact for two, Clark's approximation for four
    torch.testing.assert_close(got.spread[0], y.var(0), atol=0.05, rtol=0)


def test_a_layer_without_a_rule_is_named() -> None:
    with pytest.raises(InputError, match="Softmax has no rule"):
        layers_of(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)))


# ---- distortions --------------------------------------------------------------------------------------------------------------


def one_hidden(seed: int = 0) -> tuple[nn.Sequential, Tensor, Background]:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(5, 5))
    return (
        seeded(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2), seed=seed),
        torch.tensor(rng.normal(size=5)),
        Background.gaussian(rng.normal(size=5), root @ root.T),
    )


def test_the_bivariate_distribution_function() -> None:
    rng = np.random.default_rng(0)
    h, k, r = rng.normal(size=40) * 2, rng.normal(size=40) * 2, rng.uniform(-0.999, 0.999, 40)
    h[:3], k[2:5] = 0.0, 0.0
    want = [multivariate_normal([0, 0], [[1, c], [c, 1]]).cdf([a, b]) for a, b, c in zip(h, k, r, strict=True)]
    np.testing.assert_allclose(bivariate_normal(h, k, r), want, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_distortion_lies_in_the_interval_of_draws(seed: int) -> None:
    net, x, background = one_hidden(seed)
    exact, sampled = ExactDistortion(net, x, 1, background), SampledDistortion(net, x, 1, background, 60_000, seed)
    s = torch.tensor(np.random.default_rng(seed).uniform(size=(4, 5)))
    low, high = sampled.interval(s, 0.9999)
    value = exact(s)
    assert bool(((low <= value) & (value <= high)).all())
    assert bool((high - low < 0.2 * value).all())
    point = s[:2].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(exact, (point,))


def test_intervals_cover_as_often_as_they_say() -> None:
    net, x, background = one_hidden(1)
    s = torch.full((1, 5), 0.3, dtype=torch.float64)
    truth = float(ExactDistortion(net, x, 0, background)(s))
    hits = 0
    for seed in range(200):
        low, high = SampledDistortion(net, x, 0, background, 400, seed).interval(s, 0.9)
        hits += int(float(low) <= truth <= float(high))
    assert 160 <= hits <= 196  # 180 ± 4 standard deviations


def test_a_kept_input_has_no_distortion() -> None:
    net, x, background = one_hidden()
    for mode in ("diagonal", "low-rank", "full", "sampling", "exact"):
        D = distortion_of(mode, net, x, 1, background, rank=3)
        assert float(D(torch.ones(1, 5, dtype=torch.float64))[0]) == pytest.approx(0.0, abs=1e-5)
        assert float(D(torch.zeros(1, 5, dtype=torch.float64))[0]) > 1e-3


def test_on_a_linear_network_all_ways_agree() -> None:
    net, x, background = seeded(nn.Linear(5, 2), seed=4), *one_hidden()[1:]
    s = torch.tensor(np.random.default_rng(0).uniform(size=(3, 5)))
    w, b = net[0].weight[1], net[0].bias[1]
    assert background.factor is not None
    shift = ((1 - s) * (background.mean - x)) @ w
    want = 0.5 * (shift**2 + (((1 - s)[:, None] * background.factor) @ w).square().sum(1))
    torch.testing.assert_close(MomentDistortion(net, x, 1, background, "full")(s), want)
    low, high = SampledDistortion(net, x, 1, background, 40_000).interval(s, 0.9999)
    assert bool(((low <= want) & (want <= high)).all())
    assert b.ndim == 0


def test_backgrounds() -> None:
    X = np.random.default_rng(0).normal(size=(50, 4)) @ np.diag([1, 2, 3, 4])
    g = Background.from_data(X)
    assert g.factor is not None
    np.testing.assert_allclose((g.factor.T @ g.factor).numpy(), np.cov(X.T), atol=1e-10)
    np.testing.assert_allclose(g.variance.numpy(), X.var(0, ddof=1))
    assert g.truncated(2).shape == (2, 4)
    u = Background.uniform(-1, 3, 2)
    draws = u.sample(20_000, 0)
    assert float(draws.min()) >= -1
    assert float(draws.max()) <= 3
    torch.testing.assert_close(draws.mean(0), u.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.var(0), u.variance, atol=0.05, rtol=0)
    for call, message in [
        (lambda: Background.uniform(1, 1, 2), "must lie below"),
        (lambda: Background.gaussian([0, 0], [[1, 2], [2, 1]]), "negative eigenvalue"),
        (lambda: Background.gaussian([0, 0], [1.0]), "covariance"),
        (lambda: Background.from_data(np.zeros((1, 3))), "at least two rows"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


# ---- Frank–Wolfe --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_sparse_minimiser_is_the_linear_program(count: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(count // 4):
        d, lanes = int(rng.integers(1, 9)), 4
        rates = torch.tensor(rng.choice([0.0, 1.0, 2.0, d / 2, rng.uniform(0, d), d], lanes))
        g = torch.tensor(rng.normal(size=(lanes, d)) + rng.choice([-1, 0, 1]))
        v = SparseBox(rates).minimise(g)
        for lane in range(lanes):
            lp = linprog(g[lane].numpy(), A_ub=np.ones((1, d)), b_ub=[float(rates[lane])], bounds=(0, 1))
            assert float(v[lane] @ g[lane]) == pytest.approx(lp.fun, abs=1e-9)
            assert float(v[lane].sum()) <= float(rates[lane]) + 1e-12


def test_the_assignment_minimiser_is_the_best_permutation() -> None:
    g = torch.tensor(np.random.default_rng(0).normal(size=(6, 16)))
    v = Birkhoff(4).minimise(g)
    for lane in range(6):
        cost = g[lane].reshape(4, 4).numpy()
        assert float(v[lane] @ g[lane]) == pytest.approx(min(sum(cost[i, p[i]] for i in range(4)) for p in permutations(range(4))))


def quadratic(seed: int, lanes: int, d: int) -> tuple[Callable[[Tensor], Tensor], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(lanes, d, d)) / d
    Q, c = torch.tensor(np.einsum("bij,bik->bjk", A, A) + 0.1 * np.eye(d)), torch.tensor(rng.normal(size=(lanes, d)))
    return lambda x: 0.5 * torch.einsum("bi,bij,bj->b", x, Q, x) + (c * x).sum(1), Q.numpy(), c.numpy()


@pytest.mark.parametrize("step", [Step.ADAPTIVE, Step.MONOTONE])
@pytest.mark.parametrize("variant", list(Variant))
def test_every_variant_reaches_the_optimum_within_its_gap(variant: Variant, step: Step) -> None:
    import cvxpy as cp

    f, Q, c = quadratic(0, 3, 12)
    rates = torch.tensor([1.0, 3.5, 12.0], dtype=torch.float64)
    r = minimise(
        gradient_of(f), SparseBox(rates), torch.zeros(3, 12, dtype=torch.float64), function=f, variant=variant, step=step, steps=400
    )
    for lane in range(3):
        s = cp.Variable(12)
        best = cp.Problem(
            cp.Minimize(0.5 * cp.quad_form(s, cp.psd_wrap(Q[lane])) + c[lane] @ s), [s >= 0, s <= 1, cp.sum(s) <= float(rates[lane])]
        ).solve()
        assert best - 1e-7 <= float(r.value[lane]) <= best + float(r.dual_gap[lane]) + 1e-7  # f is convex: the gap is a bound
        assert float(r.value[lane]) - best < 5e-3 * abs(best)
    assert bool((r.point >= -1e-12).all() & (r.point <= 1 + 1e-12).all())
    assert bool((r.point.sum(1) <= rates + 1e-9).all())
    assert bool((r.values.diff(dim=0) <= 1e-12).all())  # no step rises
    assert (r.gradients, r.minimisations) <= (401, 401)


def test_away_steps_converge_linearly_and_lazy_ones_ask_less() -> None:
    centre = torch.tensor(np.random.default_rng(1).uniform(0.2, 0.9, (1, 20)))
    rates, start = torch.tensor([4.0], dtype=torch.float64), torch.zeros(1, 20, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return ((x - centre) ** 2).sum(1)  # the optimum lies inside a face: plain steps zigzag

    run = {v: minimise(gradient_of(f), SparseBox(rates), start, function=f, variant=v, steps=300, tolerance=1e-9) for v in Variant}
    assert float(run[Variant.AWAY].dual_gap[0]) <= 1e-5
    assert float(run[Variant.LAZY_AWAY].dual_gap[0]) <= 1e-5
    assert float(run[Variant.PLAIN].dual_gap[0]) > 1e-3
    for lazy, eager in ((Variant.LAZY, Variant.PLAIN), (Variant.LAZY_AWAY, Variant.AWAY)):
        assert run[lazy].minimisations <= 0.7 * run[eager].minimisations
        assert float(run[lazy].value[0]) == pytest.approx(float(run[eager].value[0]), abs=2e-3)


def test_lanes_do_not_touch_each_other() -> None:
    f, *_ = quadratic(2, 3, 10)
    rates = torch.tensor([1.0, 4.0, 2.5], dtype=torch.float64)
    together = minimise(
        gradient_of(f), SparseBox(rates), torch.zeros(3, 10, dtype=torch.float64), function=f, variant=Variant.AWAY, steps=30
    )

    def second(x: Tensor) -> Tensor:
        return f(torch.cat([x, x, x]))[1:2]

    alone = minimise(
        gradient_of(second), SparseBox(rates[1:2]), torch.zeros(1, 10, dtype=torch.float64), function=second, variant=Variant.AWAY, steps=30
    )
    torch.testing.assert_close(together.point[1], alone.point[0])


def test_the_box_by_projected_gradients() -> None:
    import cvxpy as cp

    f, Q, c = quadratic(3, 2, 15)
    r = minimise_over_box(gradient_of(f), f, torch.full((2, 15), 0.5, dtype=torch.float64))
    for lane in range(2):
        s = cp.Variable(15)
        best = cp.Problem(cp.Minimize(0.5 * cp.quad_form(s, cp.psd_wrap(Q[lane])) + c[lane] @ s), [s >= 0, s <= 1]).solve()
        assert float(r.value[lane]) == pytest.approx(best, abs=1e-6)
    assert float(r.dual_gap.max()) < 1e-6


# ---- explanations -------------------------------------------------------------------------------------------------------------


def strings_net(n: int = 16, block: int = 5) -> nn.Sequential:
    """1 where the string holds `block` ones in a row, else 0: a network written down, not trained."""
    net = nn.Sequential(
        nn.Unflatten(1, (1, n)), nn.Conv1d(1, 1, block), nn.ReLU(), nn.Flatten(), nn.Linear(n - block + 1, 1), nn.ReLU(), nn.Linear(1, 1)
    )
    weights = {1: (1.0, 1.0 - block), 4: (-1.0, 1.0), 6: (-1.0, 1.0)}
    for i, (w, b) in weights.items():
        layer = net[i]
        assert isinstance(layer, nn.Conv1d | nn.Linear)
        nn.init.constant_(layer.weight, w)
        assert layer.bias is not None
        nn.init.constant_(layer.bias, b)
    return net.double().requires_grad_(False)


def string(rng: np.random.Generator, n: int = 16, block: int = 5) -> tuple[np.ndarray, set[int]]:
    """A random string with exactly one block of ones."""
    while True:
        x, a = rng.integers(0, 2, n).astype(float), int(rng.integers(0, n - block + 1))
        x[a : a + block] = 1
        if [i for i in range(n - block + 1) if x[i : i + block].all()] == [a]:
            return x, set(range(a, a + block))


def blocks_found(count: int, **settings: object) -> int:
    rng, found = np.random.default_rng(0), 0
    e = RateDistortion(strings_net(), "lagrangian", background=Background.uniform(0, 1, 16), **settings)  # type: ignore[arg-type]
    for _ in range(count):
        x, block = string(rng)
        found += int({int(i) for i in e.explain(x).order[:5]} == block)
    return found


def test_the_block_of_a_string_is_found() -> None:
    assert blocks_found(10) == 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diagonal", "full"])
def test_the_blocks_of_100_strings_are_found(mode: str) -> None:
    found = blocks_found(100, distortion=mode)
    print(f"\n{mode}: {found} of 100")
    assert found >= 95


SETTINGS: list[dict[str, object]] = [
    {"kind": "lagrangian"},
    {"kind": "constrained", "rate": 2},
    {"kind": "multi-rate", "rates": (1, 2.5, 5)},
    {"kind": "ordering", "iterations": 12, "batch": 0},
    {"kind": "ordering", "iterations": 12, "batch": 3},
    {"kind": "constrained", "rate": 2, "distortion": "sampling", "variant": "lazy-away"},
    {"kind": "constrained", "rate": 2, "distortion": "low-rank", "rank": 2, "variant": "plain", "step": "monotone"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_every_kind_answers(settings: dict[str, object]) -> None:
    net, X = dense_net(), torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    e = RateDistortion(net, **({"seed": 3, "iterations": 25} | settings))  # type: ignore[arg-type]
    maps, records = e.attribute(X), e.explain(X)
    assert maps.shape == X.shape
    assert maps.dtype == X.dtype
    for m, r, x in zip(maps, records, X, strict=True):
        np.testing.assert_allclose(m.numpy(), r.map, atol=1e-6)
        assert r.map.min() >= -1e-9
        assert r.map.max() <= 1 + 1e-9
        assert sorted(r.order) == list(range(6))
        assert r.target == int(net(x[None].double()).argmax())
        assert len(r.maps) == len(r.rates) == len(r.distortions) == len(r.dual_gaps)
        D = e.distortion_at(x)
        np.testing.assert_allclose(D(torch.tensor(r.maps.reshape(len(r.maps), -1))).numpy(), r.distortions, rtol=1e-6, atol=1e-9)
        assert (r.maps.reshape(len(r.maps), -1).sum(1) <= r.rates + 1e-6).all()


def test_more_rate_means_no_more_distortion() -> None:
    e = RateDistortion(dense_net(2), "multi-rate", rates=range(7), iterations=60)
    found = e.explain(np.random.default_rng(0).uniform(size=6))
    assert found.distortions[-1] == pytest.approx(0, abs=1e-5)  # everything may be kept
    assert found.distortions[-1] <= found.distortions.min() + 1e-9
    assert found.distortions[0] == found.distortions.max()
    np.testing.assert_allclose(found.map, found.maps.mean(0))


def test_an_ordering_stays_doubly_stochastic_and_follows_its_gradient() -> None:
    x = np.random.default_rng(1).uniform(size=6)
    e = RateDistortion(dense_net(1), "ordering", batch=0, iterations=60)
    r = e.explain(x)
    assert r.matrix is not None
    np.testing.assert_allclose([r.matrix.sum(0), r.matrix.sum(1)], 1.0, atol=1e-6)
    assert r.matrix.min() >= 0
    D = e.distortion_at(x)

    def total(order: tuple[int, ...] | np.ndarray) -> float:
        s = torch.zeros(6, 6, dtype=torch.float64)
        for k in range(1, 7):
            s[k - 1, list(order[:k])] = 1.0
        return float(D(s).sum())

    values = sorted(total(p) for p in permutations(range(6)))
    assert total(tuple(r.order)) <= values[len(values) // 20]  # among the best 5 % of the 720 orders


@pytest.mark.parametrize("batch", [0, 2])
def test_the_gradient_of_an_ordering_is_that_of_differences(batch: int) -> None:
    """One plain step of length 1 from the identity lands on the assignment of the true gradient of Σ_k D(S p_k)."""
    x = np.random.default_rng(2).uniform(size=6)
    e = RateDistortion(dense_net(3), "ordering", batch=0, iterations=1, rates=(2, 4, 5))
    D, S = e.distortion_at(x), torch.eye(6, dtype=torch.float64).requires_grad_(True)
    P = torch.stack([torch.tensor([0.0] * (6 - k) + [1.0] * k, dtype=torch.float64) for k in (2, 4, 5)])
    (g,) = torch.autograd.grad(D(P @ S.T).sum(), S)
    r = e.explain(x)
    assert r.matrix is not None
    np.testing.assert_allclose(r.matrix, Birkhoff(6).minimise(g.reshape(1, -1)).reshape(6, 6).numpy(), atol=1e-12)
    drawn = RateDistortion(dense_net(3), "ordering", batch=2, iterations=5, seed=batch)
    np.testing.assert_array_equal(drawn.explain(x).map, drawn.explain(x).map)  # the same seed, the same draws


class _Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.detach().sum(1), -x.detach().sum(1)], 1)


NET, X0 = dense_net(), np.linspace(0, 1, 6)
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: RateDistortion(NET, "unknown"), "kind='unknown'"),  # type: ignore[arg-type]
    (lambda: RateDistortion(NET, distortion="guess"), "distortion='guess'"),  # type: ignore[arg-type]
    (lambda: RateDistortion(NET, variant="pairwise"), "variant='pairwise'"),
    (lambda: RateDistortion(NET, step="short"), "step='short'"),
    (lambda: RateDistortion(NET, iterations=0), "iterations=0"),
    (lambda: RateDistortion(NET, penalties=()), "penalties="),
    (lambda: RateDistortion(NET, target=3).explain(X0), "target=3 is not one of the model's outputs 0 … 2"),
    (lambda: RateDistortion(NET).attribute(torch.zeros(2, 6) + torch.arange(6), target=[0, 1, 2]), "3 targets for 2 inputs"),
    (lambda: RateDistortion(NET).attribute(X0), "give a tensor"),  # type: ignore[arg-type]
    (lambda: RateDistortion(NET, rate=7).explain(X0), "must lie between 0 and the input's 6"),
    (lambda: RateDistortion(NET, "multi-rate", rates=(-1, 2)).explain(X0), "must lie between 0"),
    (lambda: RateDistortion(NET, "ordering", rates=(0, 2)).explain(X0), "rates of at least 1"),
    (lambda: RateDistortion(NET).explain(np.zeros(5)), "does not fit the model"),
    (lambda: RateDistortion(NET).explain(np.full(6, 0.5)), "pass background="),
    (lambda: RateDistortion(NET, background=Background.uniform(0, 1, 4)).explain(X0), "4 features, the input has 6"),
    (lambda: RateDistortion(NET, distortion="exact").explain(X0), "needs one hidden layer"),
    (lambda: RateDistortion(_Detached()).explain(X0), "_Detached has no rule"),
    (lambda: RateDistortion(_Detached(), distortion="sampling").explain(X0), "gives no gradient"),
    (lambda: RateDistortion(dense_net()).attribute(torch.zeros(1, 6), target="a"), "target='a' is no output number"),
    (lambda: RateDistortion(dense_net(), variant="faster"), "variant='faster' is not known; use one of second-order, plain"),
    (lambda: RateDistortion(NET, distortion="sampling", samples=1).explain(X0), "samples=1"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_mistakes_are_named(number: int) -> None:
    call, message = BAD[number]
    with pytest.raises(InputError, match=message):
        call()
