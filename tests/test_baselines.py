"""Baselines: equal to the library's own calls, complete where they promise it, equal to enumeration where we wrote them."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lde_cvx as lde
from formulations.errors import DependencyError, InputError
from lde_cvx.attribution import Explainer
from lde_cvx.baselines import METHODS, Baseline, baseline, sensitivities
from lde_cvx.baselines.perturbations import dependence
from lde_cvx.baselines.shapley import neighbours, within
from lde_cvx.leg import LEG, LEGTV
from lde_cvx.rate_distortion import RateDistortion

captum_attr = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def image_net(seed: int = 0, pool: type[nn.Module] = nn.MaxPool2d) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), pool(2), nn.Flatten(), nn.Linear(36, 10), nn.ReLU(),
        nn.Linear(10, 3),
    )  # fmt: skip
    return net.double().eval()


def dense_net(d: int = 7, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)).double()


X = torch.rand(3, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 2, 1])


def seeded(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Input by input, each from seed 0: how ours draws."""

    def run(x: Tensor, t: Tensor) -> Tensor:
        out = []
        for i in range(len(x)):
            torch.manual_seed(0)
            out.append(call(x[i : i + 1], t[i : i + 1]))
        return torch.cat(out)

    return run


def direct(net: nn.Module) -> dict[str, tuple[dict[str, object], Callable[[Tensor, Tensor], Tensor]]]:
    """name → (our settings, the library's own call)."""
    from captum._utils.models.linear_model import SkLearnLasso

    a = captum_attr
    cells = (torch.arange(6)[:, None] // 2 * 3 + torch.arange(6) // 2)[None, None]
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    return {
        "saliency": ({}, lambda x, t: a.Saliency(net).attribute(x, target=t)),
        "gradient-x-input": ({}, lambda x, t: a.InputXGradient(net).attribute(x, target=t)),
        "integrated-gradients": (
            {"steps": 50, "reference": 0.1}, lambda x, t: a.IntegratedGradients(net).attribute(x, baselines=0.1, target=t, n_steps=50),
        ),
        "smoothgrad": (
            {"samples": 12, "sigma": 0.2},
            seeded(lambda x, t: a.NoiseTunnel(a.Saliency(net)).attribute(x, nt_samples=12, stdevs=0.2, target=t, nt_samples_batch_size=12)),
        ),
        "guided-backprop": ({}, lambda x, t: a.GuidedBackprop(net).attribute(x, target=t)),
        "deeplift": ({"reference": 0.2}, lambda x, t: a.DeepLift(net).attribute(x, baselines=torch.full_like(x, 0.2), target=t)),
        "gradcam": (
            {},
            lambda x, t: nn.functional.interpolate(
                a.LayerGradCam(net, last).attribute(x, target=t, relu_attributions=True), (6, 6), mode="bilinear"
            ),
        ),
        "occlusion": (
            {"window": 3, "stride": 1}, lambda x, t: a.Occlusion(net).attribute(x, (1, 3, 3), strides=(1, 1, 1), baselines=0.0, target=t),
        ),
        "lime": (
            {"samples": 40, "cell": 2, "penalty": 1e-5},
            seeded(
                lambda x, t: a.Lime(net, interpretable_model=SkLearnLasso(alpha=1e-5)).attribute(
                    x, target=t, feature_mask=cells, n_samples=40, perturbations_per_eval=64, baselines=0.0
                )
            ),
        ),
        "kernel-shap": (
            {"samples": 60, "cell": 2},
            seeded(lambda x, t: a.KernelShap(net).attribute(x, target=t, feature_mask=cells, n_samples=60, perturbations_per_eval=64)),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(direct(image_net())))
def test_captum_methods_equal_the_librarys_own_call(name: str) -> None:
    net = image_net(
        pool=nn.AvgPool2d if name == "deeplift" else nn.MaxPool2d
    )  # of max pooling behind a ReLU captum's sum is wrong: see below
    settings, call = direct(net)[name]
    ours = baseline(name, net, **settings).attribute(X, target=T)
    theirs = call(X.clone(), T).detach()
    assert float((ours - theirs).abs().max()) <= 1e-6 * max(1.0, float(theirs.abs().max()))
    assert float(ours.abs().max()) > 0


@pytest.mark.parametrize(("name", "rule"), [("lrp", "EpsilonRule"), ("lrp", "Alpha1_Beta0_Rule"), ("deep-taylor", "Alpha1_Beta0_Rule")])
def test_lrp_equals_the_librarys_own_call(name: str, rule: str) -> None:
    from captum._utils.models.linear_model import model as _  # noqa: F401  (the library's private paths exist)
    from captum.attr._utils import lrp_rules

    net, x = dense_net(), torch.rand(2, 7, dtype=torch.float64)
    make = getattr(lrp_rules, rule)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.rule = make(1e-6) if rule == "EpsilonRule" else make()
    theirs = captum_attr.LRP(net).attribute(x, target=T[:2]).detach()
    settings = {"rule": "alpha-beta"} if name == "lrp" and rule != "EpsilonRule" else {}
    ours = baseline(name, net, **settings).attribute(x, target=T[:2])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def total(maps: Tensor) -> Tensor:
    return maps.flatten(1).sum(1)


def twice_pooled(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(4, 3),
    ).double().eval()  # fmt: skip


def test_the_library_alone_loses_part_of_the_sum_behind_a_relu() -> None:
    """Why layers are kept apart; when this fails, captum has been repaired."""
    net, r = twice_pooled(), torch.full_like(X, 0.3)
    want = (net(X) - net(r))[torch.arange(3), T].detach()
    alone = total(captum_attr.DeepLift(net).attribute(X.clone(), baselines=r, target=T)).detach()
    assert float((alone - want).abs().max()) > 1e-3


@pytest.mark.parametrize("make", [image_net, twice_pooled, lambda: image_net(pool=nn.AvgPool2d), lambda: dense_net(36)])
@pytest.mark.parametrize("name", ["integrated-gradients", "deeplift"])
def test_completeness(name: str, make: Callable[[], nn.Module]) -> None:
    net = make()
    x = X if any(isinstance(m, nn.Conv2d) for m in net.modules()) else X.flatten(1)
    r = torch.full_like(x, 0.3)
    rows = torch.arange(3)
    want = (net(x) - net(r))[rows, T].detach()
    got = total(baseline(name, net, reference=0.3).attribute(x, target=T))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    if name == "integrated-gradients":  # one node is not enough, so the sum above is earned
        assert float((total(baseline(name, net, reference=0.3, steps=1).attribute(x, target=T)) - want).abs().max()) > 1e-3


def test_lrp_keeps_relevance_without_biases() -> None:
    net = dense_net()
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    x = torch.rand(4, 7, dtype=torch.float64)
    torch.testing.assert_close(
        total(baseline("lrp", net, epsilon=1e-12).attribute(x, target=0)), net(x)[:, 0].detach(), atol=1e-4, rtol=1e-4
    )


# ---- ours against enumeration -------------------------------------------------------------------------------------------------


def by_permutations(value: Callable[[frozenset[int]], float], n: int) -> np.ndarray:
    """Shapley's values from the definition over all orders."""
    out, orders = np.zeros(n), list(permutations(range(n)))
    for order in orders:
        for k, i in enumerate(order):
            out[i] += value(frozenset(order[: k + 1])) - value(frozenset(order[:k]))
    return out / len(orders)


def game(net: nn.Module, x: Tensor, reference: float, target: int) -> Callable[[frozenset[int]], float]:
    known: dict[frozenset[int], float] = {}

    def value(T: frozenset[int]) -> float:
        if T not in known:
            z = torch.full_like(x, reference)
            z[list(T)] = x[list(T)]
            known[T] = float(net(z[None])[0, target])
        return known[T]

    return value


def test_shapley_values_equal_enumeration() -> None:
    net, x = dense_net(6), torch.rand(6, dtype=torch.float64)
    want = by_permutations(game(net, x, 0.2, 1), 6)
    for name, settings in (("shapley", {}), ("l-shapley", {"order": 5}), ("l-shapley", {"order": 9, "context": "kept"})):
        got = baseline(name, net, reference=0.2, **settings).attribute(x[None], target=1)[0]
        np.testing.assert_allclose(got.numpy(), want, atol=1e-10)
    assert abs(want.sum() - (game(net, x, 0.2, 1)(frozenset(range(6))) - game(net, x, 0.2, 1)(frozenset()))) < 1e-10


def test_shapley_of_ten_cells_equals_enumeration() -> None:
    net, x = dense_net(10), torch.rand(10, dtype=torch.float64)
    value, want = game(net, x, 0.0, 2), np.zeros(10)
    for i in range(10):
        rest = [j for j in range(10) if j != i]
        for bits in range(2**9):
            S = frozenset(j for k, j in enumerate(rest) if bits >> k & 1)
            want[i] += (value(S | {i}) - value(S)) / (10 * _choose(9, len(S)))
    for name, settings in (("shapley", {}), ("l-shapley", {"order": 9})):
        got = baseline(name, net, **settings).attribute(x[None], target=2)[0]
        np.testing.assert_allclose(got.numpy(), want, atol=1e-10)


def test_shapley_values_equal_the_library() -> None:
    net, x = dense_net(4), torch.rand(2, 4, dtype=torch.float64)
    want = captum_attr.ShapleyValues(net).attribute(x, target=2)
    torch.testing.assert_close(baseline("shapley", net).attribute(x, target=2), want.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", ["l-shapley", "c-shapley"])
def test_local_shapley_values_equal_enumeration(name: str, order: int) -> None:
    """From the definitions, subset by subset, on a chain of 8 and on a 2 × 4 grid."""
    for shape in ((8,), (2, 4)):
        net, x = dense_net(8, seed=3), torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(order))
        model = net if len(shape) == 1 else nn.Sequential(nn.Flatten(), net)
        value, beside = game(net, x, 0.0, 0), neighbours(shape)
        want = np.zeros(8)
        for i in range(8):
            near = sorted(within(beside, i, order))
            rest = [j for j in near if j != i]
            for bits in range(2 ** len(rest)):
                T = frozenset(j for k, j in enumerate(rest) if bits >> k & 1)
                if name == "l-shapley":
                    w = 1.0 / len(near) / float(_choose(len(rest), len(T)))
                    want[i] += w * (value(T | {i}) - value(T))
                elif _connected(T | {i}, beside):
                    u = len(T) + 1
                    want[i] += 2.0 / ((u + 2) * (u + 1) * u) * (value(T | {i}) - value(T))
        got = baseline(name, model, order=order).attribute(x.reshape(1, *shape), target=0)
        np.testing.assert_allclose(got.ravel().numpy(), want, atol=1e-10)


def _choose(n: int, k: int) -> int:
    return int(np.prod([float(n - j) / (j + 1) for j in range(k)]).round())


def _connected(nodes: frozenset[int], beside: dict[int, set[int]]) -> bool:
    seen, todo = set(), [min(nodes)]
    while todo:
        i = todo.pop()
        seen.add(i)
        todo += [j for j in beside[i] & nodes if j not in seen]
    return seen == nodes


def test_dependence_is_the_trace_and_vanishes_for_what_is_not_asked() -> None:
    g = torch.Generator().manual_seed(0)
    kept = (torch.rand(40, 3, generator=g, dtype=torch.float64) < 0.5).double()
    y = torch.rand(40, generator=g, dtype=torch.float64)
    gaps = (y[:, None] - y[None]).abs()
    L = torch.exp(-0.5 * (gaps / gaps[gaps > 0].median()) ** 2)
    H = torch.eye(40, dtype=torch.float64) - 1 / 40
    want = [torch.trace((kept[:, [i]] == kept[:, [i]].T).double() @ H @ L @ H) / 39**2 for i in range(3)]
    torch.testing.assert_close(dependence(kept, y), torch.stack(want))
    found = baseline("hsic", lambda x: x[:, :1], samples=2000).attribute(torch.ones(1, 6))[0]
    assert float(found[0]) > 20 * float(found[1:].max())


def test_rise_estimates_the_conditional_mean() -> None:
    """E[f | M_i] of a linear f whose cells are tossed alone: f's mean, plus what keeping i adds."""
    w = torch.tensor([3.0, 0.0, -2.0, 0.0, 1.0], dtype=torch.float64)
    found = baseline("rise", lambda x: x @ w.numpy()[:, None], samples=4000, grid=5, seed=1).attribute(torch.ones(1, 5).double())[0]
    assert int(found.argmax()) == 0
    assert int(found.argmin()) == 2


def test_sensitivities_of_a_linear_and_a_quadratic_function() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x**2).sum(1, keepdim=True)

    x = torch.randn(50, 4, dtype=torch.float64)
    torch.testing.assert_close(sensitivities(Square(), x, 0, "square"), 2 * x.square().mean(0).sqrt(), atol=1e-8, rtol=0)
    torch.testing.assert_close(sensitivities(Square(), x, 0, "mean"), 2 * x.mean(0), atol=1e-8, rtol=0)
    torch.testing.assert_close(sensitivities(Square(), x, 0, "deviation"), 2 * x.std(0, correction=0), atol=1e-8, rtol=0)
    flat = baseline("sensitivity", nn.Linear(4, 2).double(), statistic="deviation").attribute(x[:1], target=0)
    assert float(flat.abs().max()) < 1e-12


# ---- one interface --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_the_interface(name: str) -> None:
    net = image_net()
    settings: dict[str, object] = {
        "shapley": {"cell": 3},
        "lime": {"samples": 30},
        "kernel-shap": {"samples": 30},
        "rise": {"grid": 3},
    }.get(name, {})
    e = lde.baseline(name, net, **settings)
    assert isinstance(e, Explainer)
    batch = X[:2].float()
    maps = e.attribute(batch, target=1)
    assert maps.shape == batch.shape
    assert maps.dtype == torch.float32
    assert bool(torch.isfinite(maps).all())
    assert float((e.attribute(batch[1:], target=1) - maps[1:]).abs().max()) <= 1e-6  # alone as in a batch
    records = e.explain(batch)
    torch.testing.assert_close(torch.tensor(records[0].map).float(), e.attribute(batch)[0], atol=1e-6, rtol=1e-5)
    assert records[0].target == int(net(batch[:1].double()).argmax())
    assert records[0].seconds > 0
    assert not any(p.requires_grad for p in e.model.parameters())


def test_our_explainers_have_the_interface() -> None:
    net = dense_net()
    for e in (lde.LagrangeDualExplainer(net), LEG(net), LEGTV(net), RateDistortion(net)):
        assert isinstance(e, Explainer)


def test_the_callers_model_is_left_alone() -> None:
    net = image_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for name in ("lrp", "deeplift", "guided-backprop", "gradcam"):
        baseline(name, net).attribute(X)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(hasattr(m, "rule") or m._forward_hooks or m._backward_hooks for m in net.modules())
    assert all(m.inplace for m in net.modules() if isinstance(m, nn.ReLU) and m is net[2])


class _Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :2]


class _Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


NET, IMAGE_NET = dense_net(), image_net()
V = torch.rand(2, 7).double()
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: baseline("gradcam++", NET), "baseline 'gradcam[+]+' is not known"),
    (lambda: baseline("saliency", NET, steps=3), "has no setting 'steps'"),
    (lambda: baseline("saliency", lambda x: x), "needs gradients"),
    (lambda: baseline("saliency", 3), "expected a torch.nn.Module"),
    (lambda: baseline("saliency", _Detached()).attribute(V), "gives no gradient"),
    (lambda: baseline("saliency", NET).attribute(V, target=0.5), "target=0.5 is no output number"),
    (
        lambda: baseline("saliency", nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten())).attribute(torch.zeros(1, 1, 3, 3)),
        "1 channel of at least 5 × 5",
    ),
    (lambda: baseline("saliency", NET).attribute(V, target=3), "target=3 is not one of the model's outputs 0 … 2"),
    (lambda: baseline("saliency", NET, target=-1).explain(V), "target=-1"),
    (lambda: baseline("saliency", NET).attribute(V, target=[0, 1, 2]), "3 targets for 2 inputs"),
    (lambda: baseline("saliency", NET).attribute(V, target=["a", "b"]), "is no output number"),
    (lambda: baseline("saliency", NET).attribute(V.numpy()), "give a tensor"),
    (lambda: baseline("saliency", NET).attribute(V * float("nan")), "replace it with a finite number"),
    (lambda: baseline("occlusion", IMAGE_NET, window=7).attribute(X), "window=7 must lie between 1 and the input's smallest side, 6"),
    (lambda: baseline("occlusion", IMAGE_NET, window=3, stride=4).attribute(X), "stride=4"),
    (lambda: baseline("lime", IMAGE_NET, cell=9).attribute(X), "cell=9 must lie between 1"),
    (lambda: baseline("kernel-shap", IMAGE_NET, cell=6).attribute(X), "leaves one cell"),
    (lambda: baseline("rise", IMAGE_NET, grid=9).attribute(X), "grid=9"),
    (lambda: baseline("shapley", IMAGE_NET).attribute(X), "36 cells are more than 16"),
    (lambda: baseline("l-shapley", IMAGE_NET, order=4).attribute(X), "order=4 gives neighbourhoods"),
    (lambda: baseline("gradcam", NET).attribute(V), "needs images"),
    (lambda: baseline("gradcam", nn.Sequential(nn.Flatten(), nn.Linear(36, 2))).attribute(X), "no two-dimensional convolution"),
    (lambda: baseline("gradcam", IMAGE_NET, layer="conv9").attribute(X), "layer='conv9'"),
    (lambda: baseline("deep-taylor", NET).attribute(-V), "for inputs ≥ 0"),
    (lambda: baseline("lrp", nn.Sequential(nn.Linear(7, 4), _Odd(), nn.Linear(4, 2))).attribute(V), "cannot propagate"),
    (lambda: baseline("lrp", NET, rule="gamma"), "rule='gamma'"),
    (lambda: baseline("integrated-gradients", NET, reference=torch.zeros(3)).attribute(V), "reference: shape"),
    (lambda: baseline("sensitivity", NET, statistic="max"), "statistic='max'"),
    (lambda: baseline("saliency", IMAGE_NET).explain(np.zeros((1, 2, 2))), "does not fit the model"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_mistakes_are_named(number: int) -> None:
    call, message = BAD[number]
    with pytest.raises(InputError, match=message):
        call()


def test_without_captum_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "captum":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DependencyError, match=r"pip install 'lde-cvx\[baselines\]'"):
        baseline("saliency", NET).attribute(V)
    assert isinstance(baseline("random", NET), Baseline)
