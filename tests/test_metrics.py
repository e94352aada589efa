"""Metrics: closed forms on linear models, the oracle is best, the random map is worst, mistakes are named."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr, wilcoxon
from torch import Tensor, nn

import lde_cvx as lde
from formulations.errors import InputError
from lde_cvx.baselines import baseline
from lde_cvx.metrics import (
    agreement,
    aurc,
    cascading_randomisation,
    deletion,
    importance_error,
    insertion,
    interval,
    iou,
    key_size,
    log_odds_curve,
    measure,
    ordering_test,
    paired_test,
    pointing_game,
    relevance_mass,
    removal_curve,
    roar,
    stability_under_attack,
    stability_under_noise,
    tightness,
    validity_rate,
)  # fmt: skip
from lde_cvx.metrics.removal import filled, order_of
from lde_cvx.metrics.stability import cosine, rank_correlation, relative_distance
from tests.digits_net import correct_digits

D = 6


def linear(seed: int = 0, d: int = D, outputs: int = 2) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(d, outputs).double().requires_grad_(False)


def inputs(n: int = 4, d: int = D, seed: int = 1) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fill", ["zero", "mean", "noise", "given"])
@pytest.mark.parametrize("seed", range(5))
def test_curves_of_a_linear_model_are_their_closed_forms(fill: str, seed: int) -> None:
    net, x = linear(seed), inputs(seed=seed)
    maps = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    given = torch.randn(D, dtype=torch.float64)
    chosen = given if fill == "given" else fill
    r = filled(x, chosen, seed)  # type: ignore[arg-type]
    gain = net.weight[1] * (x - r)  # what feature i contributes against r
    order = maps.argsort(1, descending=True)
    steps = gain.gather(1, order).cumsum(1)
    zero = torch.zeros(len(x), 1, dtype=torch.float64)
    top, bottom = net(x)[:, [1]], net(r)[:, [1]]
    settings = {"target": 1, "fill": chosen, "scores": "raw", "seed": seed}
    down = deletion(net, x, maps, **settings)  # type: ignore[arg-type]
    up = insertion(net, x, maps, **settings)  # type: ignore[arg-type]
    least = removal_curve(net, x, maps, first="least", **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(down.values, (top - torch.cat([zero, steps], 1)).numpy(), atol=1e-9)
    np.testing.assert_allclose(up.values, (bottom + torch.cat([zero, steps], 1)).numpy(), atol=1e-9)
    backwards = gain.gather(1, order.flip(1)).cumsum(1)
    np.testing.assert_allclose(least.values, (top - torch.cat([zero, backwards], 1)).numpy(), atol=1e-9)
    # ∫: feature at place k (from 1) is gone for a share 1 − (k − ½)/d of the curve
    weight = 1 - (torch.arange(1, D + 1, dtype=torch.float64) - 0.5) / D
    np.testing.assert_allclose(aurc(down), (top[:, 0] - gain.gather(1, order) @ weight).numpy(), atol=1e-9)
    np.testing.assert_allclose(up.area, (bottom[:, 0] + gain.gather(1, order) @ weight).numpy(), atol=1e-9)


def test_coarse_steps_are_points_of_the_full_curve() -> None:
    net, x = linear(), inputs()
    full, coarse = (deletion(net, x, x, scores="raw", steps=s) for s in (None, 3))
    np.testing.assert_allclose(coarse.shares, [0, 2 / 6, 4 / 6, 1])
    np.testing.assert_array_equal(coarse.values, full.values[:, [0, 2, 4, 6]])


def test_log_odds_and_key_size_of_a_linear_model() -> None:
    for seed in range(10):
        net, x = linear(seed), inputs(seed=seed)
        maps = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
        order = maps.abs().argsort(1, descending=True)
        w = net.weight[1] - net.weight[0]  # the log odds of two classes are a linear function
        lost = (w * x).gather(1, order).cumsum(1)
        curve = log_odds_curve(net, x, maps, target=1, most=1.0)
        np.testing.assert_allclose(curve.values[:, 1:], -lost.numpy(), atol=1e-9)
        odds = (net(x)[:, 1] - net(x)[:, 0])[:, None] - lost
        start = (net(x)[:, 1] - net(x)[:, 0])[:, None]
        flipped = (odds > 0) != (start > 0)
        want = torch.where(flipped.any(1), (flipped.double().argmax(1) + 1) / D, 1.0)
        np.testing.assert_allclose(key_size(net, x, maps), want.numpy(), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_is_best_and_its_reverse_worst_of_all_orders(seed: int) -> None:
    net, x = linear(seed, 5), inputs(1, 5, seed)
    areas = {}
    for p in permutations(range(5)):
        ranks = torch.empty(1, 5, dtype=torch.float64)
        ranks[0, list(p)] = torch.arange(5.0, 0.0, -1.0, dtype=torch.float64)
        areas[p] = float(deletion(net, x, ranks, target=0, scores="raw").area[0])
    oracle = net.weight[0] * x
    best, worst = (float(deletion(net, x, m, target=0, scores="raw").area[0]) for m in (oracle, -oracle))
    assert best == pytest.approx(min(areas.values()), abs=1e-12)
    assert worst == pytest.approx(max(areas.values()), abs=1e-12)
    assert float(insertion(net, x, oracle, target=0, scores="raw").area[0]) >= max(
        float(insertion(net, x, torch.rand(1, 5), target=0, scores="raw").area[0]) for _ in range(30)
    )
    found = baseline("gradient-x-input", net).attribute(x, target=0) if _captum() else oracle
    torch.testing.assert_close(found, oracle)


def _captum() -> bool:
    from importlib.util import find_spec

    return find_spec("captum") is not None


def test_a_random_map_is_worst() -> None:
    """On the digits network: every method that looks at the model beats the map that does not, on the same 100 images."""
    net, X, _ = correct_digits(100)
    random = baseline("random", net).attribute(X)
    scores = {"random": random, "occlusion-like": _occluded(net, X)}
    scores["gradient x input"] = _gradients(net, X) * X
    area = {k: deletion(net, X, m, steps=32).area for k, m in scores.items()}
    keys = {k: key_size(net, X, m, size=False, steps=32) for k, m in scores.items()}
    kept = {k: ordering_test(net, X, m, samples=8, group=8).area for k, m in scores.items()}
    for name in ("occlusion-like", "gradient x input"):
        for found in (area, keys, kept):
            test = paired_test(found[name], found["random"])
            assert test.difference.high < 0, (name, test)
            assert test.p_value < 0.05


def _occluded(net: nn.Module, X: Tensor) -> Tensor:
    y = net(X)
    c = y.argmax(1)
    columns = []
    for j in range(X.shape[1]):
        z = X.clone()
        z[:, j] = 0
        columns.append((y - net(z)).gather(1, c[:, None])[:, 0])
    return torch.stack(columns, 1)


def _gradients(net: nn.Module, X: Tensor) -> Tensor:
    x = X.clone().requires_grad_(True)
    top = net(x).topk(2).values
    (g,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), x)
    return g


def test_fills() -> None:
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    assert float(filled(x, "zero").abs().max()) == 0
    torch.testing.assert_close(filled(x, "mean")[1], x[1].mean().expand(2, 8, 8))
    torch.testing.assert_close(filled(x, "blur")[2, 1].numpy(), gaussian_filter(x[2, 1].numpy(), 2.0))
    noise = filled(x, "noise", 3)
    assert bool((noise.flatten(1).min(1).values >= x.flatten(1).min(1).values).all())
    assert bool((noise.flatten(1).max(1).values <= x.flatten(1).max(1).values).all())
    torch.testing.assert_close(noise, filled(x, "noise", 3))
    with pytest.raises(InputError, match="needs images"):
        filled(torch.rand(2, 5), "blur")


def test_ties_are_broken_at_random_and_the_seed_decides() -> None:
    flat = torch.zeros(200, 4)
    first = order_of(flat, 0)[:, 0]
    assert set(first.tolist()) == {0, 1, 2, 3}
    assert torch.equal(order_of(flat, 0), order_of(flat, 0))
    assert bool((order_of(torch.tensor([[1.0, -3.0, 2.0]]), size=True) == torch.tensor([[1, 2, 0]])).all())


# ---- stability ------------------------------------------------------------------------------------------------------------------


class Fixed:
    """An explainer that is a function."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.f = f

    def attribute(self, x: Tensor, target: object = None) -> Tensor:
        return self.f(x)

    def explain(self, x0: object) -> object:
        return None


def test_similarities_are_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 12).astype(float), rng.normal(size=12)
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert cosine(a, b) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
        assert relative_distance(a, b) == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), abs=1e-12)
    flat = np.ones(4)
    assert rank_correlation(flat, 2 * flat) == 1
    assert rank_correlation(flat, np.arange(4.0)) == 0


def test_stability_of_a_constant_map_is_perfect_and_of_noise_is_none() -> None:
    net, x = linear(), inputs(8)
    w = net.weight[1].clone()
    steady = stability_under_noise(Fixed(lambda v: w.expand_as(v)), net, x)
    np.testing.assert_allclose([steady.rank, steady.cosine, 1 - steady.distance], 1.0, atol=1e-12)
    shaky = stability_under_noise(Fixed(lambda v: torch.randn_like(v)), net, x, repeats=20)
    assert np.abs(shaky.rank).mean() < 0.35
    attacked = stability_under_attack(Fixed(lambda v: w * v), net, x, radius=0.5, steps=15)
    smooth = stability_under_noise(Fixed(lambda v: w * v), net, x, sigma=0.5 / 3**0.5)
    assert attacked.rank.mean() < smooth.rank.mean()  # the worst found lies below the mean
    unmoved = stability_under_attack(Fixed(lambda v: w * v), net, x, radius=0.0)
    np.testing.assert_allclose(unmoved.rank, 1.0, atol=1e-12)
    np.testing.assert_allclose([steady.shares, unmoved.shares], 0.0, atol=1e-15)
    assert (attacked.shares > 0).all()
    assert (shaky.shares < 2 / w.numel()).all()  # two distributions on d features differ by at most 2 in all


def test_no_draw_changes_the_decision() -> None:
    net, seen = linear(3), []

    def record(v: Tensor) -> Tensor:
        seen.append(v.clone())
        return v

    x = inputs(20)
    stability_under_noise(Fixed(record), net, x, sigma=5.0, repeats=3)
    stability_under_attack(Fixed(record), net, x, radius=5.0, steps=3)
    classes = net(x).argmax(1)
    assert len(seen) == 8
    assert all(torch.equal(net(v).argmax(1), classes) for v in seen)
    assert any(bool((v != x).any()) for v in seen)


def test_agreement_of_settings() -> None:
    x = inputs(5)
    names, table = agreement({"a": Fixed(lambda v: v), "b": Fixed(lambda v: v**3), "c": Fixed(lambda v: -v)}, x)
    assert names == ("a", "b", "c")
    np.testing.assert_allclose(table, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)


# ---- localisation, sanity, retraining, certificates, cost, statistics ------------------------------------------------------------


def test_localisation_by_hand() -> None:
    maps = np.array([[0.5, 2.0, 1.0, -4.0], [1.0, 1.0, 0.0, 0.0], [0.0, -1.0, -1.0, -2.0]])
    masks = np.array([[0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 0, 0]])
    np.testing.assert_allclose(pointing_game(maps, masks), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(iou(maps, masks), [1 / 3, 1 / 3, 0.0])
    np.testing.assert_allclose(relevance_mass(maps, masks), [2 / 3.5, 0.5, 0.0])
    image = np.zeros((1, 3, 4, 4))
    image[0, :, 1, 2] = 1.0
    box = np.zeros((1, 4, 4), dtype=bool)
    box[0, 1, 2] = True
    assert pointing_game(image, box) == iou(image, box) == relevance_mass(image, box) == 1.0
    np.testing.assert_allclose(iou(masks.astype(float), masks), 1.0)  # the truth itself is best


def test_cascading_randomisation_sees_the_weights_go() -> None:
    net, X, _ = correct_digits(6)
    found = cascading_randomisation(lambda m: Fixed(lambda v: _gradients(m, v)), net, X, seed=1)
    assert found.layers == ("4", "2", "0")
    assert found.maps.shape == (4, 6, 64)
    np.testing.assert_allclose(found.rank[0], 1.0)
    assert found.rank[3].mean() < 0.5
    blind = cascading_randomisation(lambda m: Fixed(lambda v: v), net, X)
    np.testing.assert_allclose(blind.rank, 1.0)  # a map that ignores the network is exposed
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), correct_digits(6)[0].parameters(), strict=True))


def test_roar_falls_faster_for_what_matters() -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(400, 10, generator=g, dtype=torch.float64)
    y = (X[:, 0] + X[:, 1] > 0).long()

    def train(a: Tensor, b: Tensor, c: Tensor, e: Tensor) -> float:
        w = torch.linalg.lstsq(torch.cat([a, torch.ones(len(a), 1).double()], 1), (2.0 * b - 1)[:, None].double()).solution
        said = (torch.cat([c, torch.ones(len(c), 1).double()], 1) @ w)[:, 0] > 0
        return float((said == (e > 0)).double().mean())

    truth = torch.zeros(10, dtype=torch.float64)
    truth[:2] = 1.0
    noise = torch.rand(400, 10, generator=g, dtype=torch.float64)
    data, test = (X[:300], y[:300]), (X[300:], y[300:])
    informed = roar(train, data, test, truth.expand(300, 10), truth.expand(100, 10), shares=(0.0, 0.2, 0.5))
    random = roar(train, data, test, noise[:300], noise[300:], shares=(0.0, 0.2, 0.5))
    assert informed.accuracy[0] == random.accuracy[0] > 0.9
    assert informed.accuracy[1] < 0.65 < random.accuracy[1]
    assert informed.area < random.area


def test_certificates_and_scores() -> None:
    assert validity_rate([1.0, 2.0], [[1.0, np.inf], [1.9, 3.0]]) == 0.5
    assert validity_rate([0.5], [0.5]) == 1.0
    np.testing.assert_allclose(importance_error([[1.0, 1.0], [2.0, 0.0]], [[5.0, 5.0], [0.0, 3.0]]), [0.0, 1.0])
    net, X, _ = correct_digits(2)
    explanations = lde.LagrangeDualExplainer(net, norm="inf", constraints=lde.Box(0, 1)).explain(X, quiet=True)
    assert validity_rate(explanations, [e.upper for e in explanations]) == 1.0
    assert validity_rate(explanations, [0.9 * e.lower for e in explanations]) == 0.0
    np.testing.assert_allclose(tightness(explanations), [(e.upper - e.lower) / e.upper for e in explanations])


def test_costs_are_seen() -> None:
    cost = measure(lambda: np.ones(30_000_000).sum())
    assert cost.result == 30_000_000
    assert cost.seconds > 0
    assert cost.cpu_seconds > 0
    asleep = measure(lambda: time.sleep(0.2))
    assert asleep.cpu_seconds < asleep.seconds
    assert cost.peak_bytes > 100_000_000


def test_statistics() -> None:
    rng = np.random.default_rng(0)
    v = rng.normal(3.0, 1.0, 200)
    found = interval(v)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(v.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * v.std() / 200**0.5, rel=0.15)
    assert interval(v) == interval(v)
    assert (interval([2.0, 2.0]).low, interval([5.0]).high) == (2.0, 5.0)
    test = paired_test(v, v + 0.3 + 0.1 * rng.normal(size=200))
    assert test.p_value < 1e-6
    assert test.difference.high < 0
    assert test.below > 0.9
    a, b = rng.normal(size=12), rng.normal(size=12)
    assert paired_test(a, b).p_value == pytest.approx(wilcoxon(a - b).pvalue)
    assert paired_test(a, a).p_value == 1


NET, X0 = linear(), inputs()
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: deletion(NET, X0, X0[:, :3]), "do not fit inputs"),
    (lambda: deletion(NET, X0, X0 * float("nan")), "not finite"),
    (lambda: deletion(NET, X0, X0, target=2), "target=2 is not one of the model's outputs 0 … 1"),
    (lambda: deletion(NET, X0, X0, fill="grey"), "fill='grey'"),  # type: ignore[arg-type]
    (lambda: deletion(NET, X0, X0, fill=torch.zeros(3)), "fill: shape"),
    (lambda: deletion(NET, X0, X0, steps=0), "steps=0"),
    (lambda: deletion(NET, X0, X0, scores="odds"), "scores='odds'"),  # type: ignore[arg-type]
    (lambda: removal_curve(NET, X0, X0, first="all"), "first='all'"),  # type: ignore[arg-type]
    (lambda: key_size(NET, X0[:, :4], X0[:, :4]), "does not take inputs of shape"),
    (lambda: log_odds_curve(NET, X0, X0, most=0.0), "most=0"),
    (lambda: ordering_test(NET, X0, X0, group=0), "group=0"),
    (lambda: pointing_game(np.ones((2, 4)), np.array([[1, 0, 0, 0], [0, 0, 0, 0]])), "mask 1 is empty"),
    (lambda: iou(np.ones((2, 4)), np.ones((2, 5))), "do not fit"),
    (lambda: relevance_mass(np.full((1, 4), np.nan), np.ones((1, 4))), "not finite"),
    (lambda: stability_under_noise(Fixed(lambda v: v), NET, X0, repeats=0), "repeats=0"),
    (lambda: stability_under_attack(Fixed(lambda v: v), NET, X0, radius=-1.0), "radius=-1"),
    (lambda: cascading_randomisation(lambda m: Fixed(lambda v: v), nn.Sequential(nn.ReLU()), X0), "no layer with weights"),
    (lambda: roar(lambda *_: 0.0, (X0, X0), (X0, X0), X0, X0, shares=(2.0,)), "shares="),
    (lambda: roar(lambda *_: 0.0, (X0, X0), (X0, X0), X0[:1], X0), "do not fit the data"),
    (lambda: validity_rate([1.0], [-1.0]), "numbers ≥ 0"),
    (lambda: importance_error([[1.0]], [[1.0, 2.0]]), "scores of shapes"),
    (lambda: interval([]), "no values"),
    (lambda: interval([1.0, np.inf]), "value 1 is not finite"),
    (lambda: paired_test([1.0], [1.0, 2.0]), "1 and 2 values"),
    (lambda: agreement({}, X0), "no explainers"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_mistakes_are_named(number: int) -> None:
    call, message = BAD[number]
    with pytest.raises(InputError, match=message):
        call()
