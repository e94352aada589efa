"""The explainer: its numbers obey the theory, its answers hold on the network, its errors name the value and the way out."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lde_cvx as lde
from formulations.status import Status
from lde_cvx.methods import BOUNDS, CHAINS
from lde_cvx.models import mlp
from lde_cvx.reading import Reading
from verification import radius
from verification.validity import Validity

DIM, CLASSES = 6, 3
BOX = lde.Box(0, 1)
SETS = {
    "all": None,
    "box": BOX,
    "box+tv": BOX & lde.TotalVariation(0.8, shape=(DIM,)),
    "polytope": lde.Polytope(None, None, equal=(np.ones((1, DIM)), [DIM / 2])) & BOX,
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A random network that answers class 1 at the middle of the box, narrowly."""
    net = mlp((DIM, 12, 12, CLASSES), seed=3)
    with torch.no_grad():
        net[-1].bias += torch.tensor([0.0, 0.06, 0.02]) - net(torch.full((1, DIM), 0.5, dtype=torch.float64))[0]
    return net


@pytest.fixture(scope="module")
def x0() -> torch.Tensor:
    return torch.full((DIM,), 0.5, dtype=torch.float64)


def outputs(model: nn.Module, z: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.as_tensor(z, dtype=torch.float64)).numpy()


def explained(model: nn.Module, x0: Any, **options: Any) -> lde.Explanation:
    return lde.LagrangeDualExplainer(model, **options).explain(x0)


# ---- what the numbers say is true ----------------------------------------------------------------------------------------


QUICK = [(1, "box"), (2, "box"), ("inf", "box"), (1, "all"), (2, "all"), ("inf", "all"), (2, "box+tv")]
TABLE = [pytest.param(p, kind, marks=[] if (p, kind) in QUICK else pytest.mark.slow) for p in (1, 2, "inf") for kind in SETS]


@pytest.mark.parametrize(("norm", "kind"), TABLE)
def test_the_bracket_holds_on_the_network(model: nn.Module, x0: torch.Tensor, norm: Any, kind: str) -> None:
    C = SETS[kind]
    e = explained(model, x0, norm=norm, constraints=C)
    decided = outputs(model, x0[None])[0].argmax()
    assert 0 < e.lower <= e.upper
    assert e.gap == pytest.approx((e.upper - e.lower) / e.upper)
    assert e.witness is not None
    assert outputs(model, e.witness[None])[0].argmax() != decided
    assert e.norm.value(e.change) <= e.upper
    assert C is None or C.relative_to(x0.numpy()).contains(e.change)
    assert e.certificate.lower == e.lower
    assert e.certificate.check(model).ok
    # attack: allowed changes just inside the certified radius, random and towards the witness
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(8, DIM))
    if C is not None:
        corners = np.array([C.relative_to(x0.numpy()).project(v) for v in corners])
    points = rng.dirichlet(np.full(9, 0.3), size=300) @ np.vstack([corners, e.change])  # C is convex
    size = e.norm.value(points)
    points *= (np.minimum(1, 0.999999 * e.lower / np.maximum(size, 1e-300)))[:, None]  # 0 ∈ C, so shrinking keeps a point in C
    assert np.all(outputs(model, x0.numpy() + points).argmax(1) == decided)


@pytest.mark.parametrize(("norm", "dual"), [(1, np.inf), (2, 2), ("inf", 1)])
def test_on_a_linear_network_both_sides_meet_the_closed_form(norm: Any, dual: Any) -> None:
    """v* = min_t m_t/‖∇m_t‖_*, λ = 1/‖∇m‖_*, S = λ|∇m|."""
    net = nn.Sequential(nn.Linear(DIM, CLASSES)).double()
    torch.manual_seed(1)
    x = torch.randn(DIM, dtype=torch.float64)
    y, W = outputs(net, x[None])[0], net[0].weight.detach().numpy()
    c = int(y.argmax())
    slopes = {t: W[c] - W[t] for t in range(CLASSES) if t != c}
    radii = {t: (y[c] - y[t]) / np.linalg.norm(a, dual) for t, a in slopes.items()}
    t = min(radii, key=radii.get)
    e = explained(net, x, norm=norm)
    assert e.target == t
    for value in (e.lower, e.upper, e.linear_radius):
        assert value == pytest.approx(radii[t], rel=1e-6)
    assert e.linear_certified_fraction == 1
    assert e.linear_validity is Validity.CERTIFIED
    assert e.margin_multiplier == pytest.approx(1 / np.linalg.norm(slopes[t], dual), rel=1e-5)
    np.testing.assert_allclose(e.scores, e.margin_multiplier * np.abs(slopes[t]), rtol=1e-5)


def test_scores_are_the_multiplier_times_the_certified_row(model: nn.Module, x0: torch.Tensor) -> None:
    e = explained(model, x0, constraints=BOX)
    entry = next(r for r in e.certificate.record["rivals"] if r["rival"] == e.target)
    (cell,) = entry["cells"]
    a, lam = np.array([float.fromhex(v) for v in cell["a"][0]]), float.fromhex(cell["lam"][0])
    np.testing.assert_allclose(e.scores, lam * np.abs(a))
    assert lam == e.margin_multiplier > 0
    assert set(e.multipliers) == {"margin", "box"}
    assert set(e.prices) >= {"box"}


def test_the_multiplier_at_the_witness_stands_beside_the_certified_one(model: nn.Module, x0: torch.Tensor) -> None:
    e = explained(model, x0, norm="inf", constraints=BOX)
    local = e.at_witness
    assert local is e.at_witness  # worked out once
    assert local.rival == outputs(model, e.witness[None])[0].argmax()
    assert local.lam > 0
    assert local.kkt.active["margin"].size
    certified, at_witness = e.multiplier_words()
    assert f"certified λ {e.margin_multiplier:.4g}, KKT residual" in certified
    assert f"local λ at the witness {local.lam:.4g}" in at_witness
    assert "active:" in certified
    for words in (certified, at_witness):
        assert html.escape(words) in e._repr_html_()
    tight = explained(model, x0, norm="inf", constraints=lde.Box(-1e-3, 1e-3, on="change"))
    assert tight.at_witness is None
    assert len(tight.multiplier_words()) == 1
    assert "linearised" in explained(model, x0, norm="inf", constraints=BOX, method="linear").multiplier_words()[0]


@pytest.mark.parametrize("method", ["linear", "ibp", "crown", "alpha-crown", "branching"])
@pytest.mark.parametrize("half", [1e-3, 0.5, 5.0])
def test_lambda_is_called_certified_only_where_its_program_proves_the_published_bound(
    model: nn.Module, x0: torch.Tensor, method: str, half: float
) -> None:
    """An infeasible program's multipliers are a ray of arbitrary size: no λ, no prices, no scores. Elsewhere the words name what is certified."""
    C = lde.Box(-half, half, on="change")
    e = explained(model, x0, constraints=C, method=method, time_limit=0.5 if method == "branching" else None)
    words, program = e.multiplier_words()[0], e.binding
    certified = words.startswith("certified λ")
    assert certified is (e.reading is Reading.BOUND)
    if certified:
        assert program.solution.lower == pytest.approx(e.lower, rel=5e-3)
    if program is None or program.solution.status is not Status.OPTIMAL or np.isinf(e.lower):
        assert not e.reading.has_lambda
        assert words.startswith("no λ")
        assert np.isnan(e.margin_multiplier)
        assert not e.scores.any()
        assert e.prices == {}
    else:
        assert e.margin_multiplier == pytest.approx(program.solution.multipliers["margin"].sum())
    assert e.to_dict()["reading"] == e.reading.name.lower()


def test_a_small_set_is_certified_unreachable(model: nn.Module, x0: torch.Tensor) -> None:
    e = explained(model, x0, constraints=lde.Box(-1e-3, 1e-3, on="change"))
    assert e.verdict is lde.Verdict.CERTIFIED_UNREACHABLE
    assert math.isinf(e.lower)
    assert math.isinf(e.upper)
    assert e.witness is None
    assert e.gap == 0
    assert not e.scores.any()
    assert e.certificate.check(model).ok


def test_the_linear_method_certifies_nothing(model: nn.Module, x0: torch.Tensor) -> None:
    e = explained(model, x0, constraints=BOX, method="linear")
    assert e.lower == 0
    assert e.certificate is None
    assert e.upper > 0
    assert e.linear_radius > 0
    assert e.linear_validity is not Validity.CERTIFIED
    assert e.multipliers["margin"].sum() > 0
    assert e.verdict is lde.Verdict.BRACKETED
    assert e.verdict.sentence(e.lower) in e._repr_html_()
    assert e.verdict.value not in e._repr_html_()  # "none is nearer than the lower bound" would read as a certified claim
    certified = explained(model, x0, constraints=BOX)
    assert certified.linear_radius == pytest.approx(e.linear_radius, rel=1e-9)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "alpha-crown"])
def test_other_bounds_are_bounds_too(model: nn.Module, x0: torch.Tensor, method: str) -> None:
    e = explained(model, x0, constraints=BOX, method=method)
    assert 0 < e.lower <= e.upper
    assert e.certificate.check(model).ok


BRANCHED = [(1, "box"), (2, "box"), ("inf", "all"), pytest.param(2, "polytope", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("norm", "kind"), BRANCHED)
def test_branching_closes_what_rows_leave_open(model: nn.Module, x0: torch.Tensor, norm: Any, kind: str) -> None:
    """crown ≤ branching ≤ v* ≤ upper, closed on a network this small; the certificate carries the trees."""
    rows, trees, exact = (
        explained(model, x0, norm=norm, constraints=SETS[kind], method=m, time_limit=60.0) for m in ("crown", "branching", "exact")
    )
    assert rows.lower < 0.999 * rows.upper, "a case that rows close tests nothing"
    for e in (trees, exact):
        assert rows.lower <= e.lower * (1 + 1e-9)
        assert e.upper * (1 - 1e-5) <= e.lower <= e.upper <= rows.upper
        assert e.certificate.lower == e.lower
        assert e.certificate.check(model).ok
        assert any(r["method"] == "branching" for r in e.certificate.record["rivals"])
        assert e.scores.any()
        y = outputs(model, e.witness[None])[0]
        assert y[e.target] >= y[1], "the rival that binds is the one that wins at the witness"


def test_branching_certifies_what_cannot_be_reached(model: nn.Module, x0: torch.Tensor) -> None:
    """A set that ends a little before the nearest flip: rows leave it open, branching does not."""
    far = explained(model, x0, norm="inf", method="exact").lower
    just = lde.Box(-0.995 * far, 0.995 * far, on="change")
    assert explained(model, x0, norm="inf", constraints=just).verdict is not lde.Verdict.CERTIFIED_UNREACHABLE
    e = explained(model, x0, norm="inf", constraints=just, method="branching")
    assert e.verdict is lde.Verdict.CERTIFIED_UNREACHABLE
    assert e.certificate.check(model).ok
    assert not e.scores.any()


EDGES = {
    "no time": {"constraints": BOX, "time_limit": 1e-3},
    "weights": {"constraints": BOX, "time_limit": 60.0, "norm": lde.Norm(1, weights=np.arange(1.0, DIM + 1))},
    "groups": {"constraints": BOX, "time_limit": 2.0, "norm": lde.GroupNorm([[0, 1, 2], [3, 4, 5]], [1.0, 2.0])},
    "own set": {"time_limit": 60.0, "constraints": lambda z: lde.Box(z - 0.4, z + 0.4)},
    "threshold": {"time_limit": 60.0, "constraints": BOX, "decision": lambda y: lde.Decision.threshold(1, y[1] - 0.03, CLASSES)},
    "target": {"constraints": BOX, "target": 0, "time_limit": 60.0},
}


@pytest.mark.parametrize("case", EDGES)
def test_branching_answers_sensibly_at_the_edges(model: nn.Module, x0: torch.Tensor, case: str) -> None:
    e = explained(model, x0, method="branching", **EDGES[case])
    assert 0 <= e.lower <= e.upper
    assert e.certificate.check(model).ok
    if case not in ("no time", "groups"):  # what is cut off may be unknown, and is not wrong
        assert 0 < e.upper * (1 - 1e-4) <= e.lower


def test_branching_of_dead_half_and_linear_networks(x0: torch.Tensor) -> None:
    dead, half = mlp((DIM, 4, 2), seed=0), mlp((DIM, 8, 2), seed=1).half()
    with torch.no_grad():
        dead[-1].weight.zero_()
        dead[-1].bias[:] = torch.tensor([1.0, 0.0])
    assert explained(dead, x0, method="branching").verdict is lde.Verdict.CERTIFIED_UNREACHABLE
    e = explained(half, x0.half(), constraints=BOX, method="branching")
    assert e.upper * (1 - 1e-4) <= e.lower <= e.upper
    assert half[0].weight.dtype == torch.float16, "the caller's model is left as it was"
    flat = explained(mlp((DIM, 3), seed=0), x0, method="exact")
    assert flat.upper * (1 - 1e-4) <= flat.lower <= flat.upper


@pytest.mark.slow
def test_a_batch_branches_in_processes(model: nn.Module, x0: torch.Tensor) -> None:
    x = torch.stack([x0, x0 + 0.02, x0 - 0.02])
    one, two = (lde.LagrangeDualExplainer(model, constraints=BOX, method="branching", jobs=jobs).explain(x, quiet=True) for jobs in (1, 2))
    assert [e.lower for e in one] == [e.lower for e in two]


def test_exact_needs_a_relu_chain(model: nn.Module, x0: torch.Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(lde.InputError, match=r"'_1' \(Tanh\).*use method='crown'") as caught:
        explained(net, x0, method="exact")
    assert "\n" not in str(caught.value)
    assert explained(net, x0, method="crown").lower > 0


def test_weights_of_the_norm_scale_distances(model: nn.Module, x0: torch.Tensor) -> None:
    plain, doubled = explained(model, x0), explained(model, x0, norm=lde.Norm(2, weights=np.full(DIM, 2.0)))
    assert doubled.lower == pytest.approx(2 * plain.lower, rel=5e-3)  # the search for the radius stops within 1e-3
    assert doubled.linear_radius == pytest.approx(2 * plain.linear_radius, rel=1e-6)


# ---- decisions and targets ---------------------------------------------------------------------------------------------------


def test_a_target_is_the_only_rival(model: nn.Module, x0: torch.Tensor) -> None:
    anywhere = explained(model, x0, constraints=BOX)
    decided = int(outputs(model, x0[None])[0].argmax())
    for t in set(range(CLASSES)) - {decided}:
        e = explained(model, x0, constraints=BOX, target=t)
        assert e.target == t
        assert e.decision.rivals == (t,)
        assert anywhere.lower <= e.upper
        if e.witness is not None:
            y = outputs(model, e.witness[None])[0]
            assert y[t] >= y[decided]


def test_threshold_and_band_decisions() -> None:
    net = mlp((DIM, 8, 1), seed=0)
    x = torch.full((DIM,), 0.3, dtype=torch.float64)
    y = float(outputs(net, x[None])[0, 0])
    e = explained(net, x, decision=lde.Decision.threshold(0, y - 0.2, 1))
    assert outputs(net, e.witness[None])[0, 0] <= y - 0.2
    band = explained(net, x, decision=lambda out: lde.Decision.band(out[0] - 0.1, out[0] + 0.3))
    assert 0 < band.lower <= band.upper
    assert abs(outputs(net, band.witness[None])[0, 0] - y) >= 0.1 - 1e-9


def test_constraints_may_depend_on_the_input(model: nn.Module) -> None:
    x = torch.tensor(np.random.default_rng(2).uniform(0.3, 0.7, size=(3, DIM)))
    seen: list[np.ndarray] = []

    def around(z: np.ndarray) -> lde.ConvexSet:
        seen.append(z)
        return lde.Box(z - 0.9, z + 0.9)

    found = lde.LagrangeDualExplainer(model, constraints=around).explain(x, quiet=True)
    np.testing.assert_allclose(np.stack(seen), x.numpy())
    for e in found:
        assert np.abs(e.change).max() <= 0.9 + 1e-9
        assert 0 < e.lower <= e.upper


# ---- shapes, batches, captum's call ---------------------------------------------------------------------------------------------


def test_one_input_a_batch_of_one_and_a_batch(model: nn.Module, x0: torch.Tensor) -> None:
    explainer = lde.LagrangeDualExplainer(model, constraints=BOX)
    one, row = explainer.explain(x0.float().numpy()), explainer.explain(x0[None])
    assert isinstance(one, lde.Explanation)
    assert isinstance(row, lde.Explanation)
    assert one.lower == row.lower
    batch = explainer.explain(torch.stack([x0, x0 + 0.1]), quiet=True)
    assert [type(e) for e in batch] == [lde.Explanation] * 2
    assert batch[0].upper == one.upper
    assert batch[0].lower == pytest.approx(one.lower, rel=5e-3)


def test_images_keep_their_shape() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.rand(1, 4, 4)
    explainer = lde.LagrangeDualExplainer(net, norm="inf", constraints=BOX)
    e = explainer.explain(x)
    assert e.scores.shape == e.x0.shape == (1, 4, 4)
    assert e.witness is None or e.witness.shape == (1, 4, 4)
    assert e.names()[5] == "x[0, 1, 1]"
    assert explainer.attribute(x[None]).shape == (1, 1, 4, 4)
    assert all(p.dtype == torch.float32 for p in net.parameters()), "the caller's model is left as it was"


def test_attribute_is_captums_call(model: nn.Module, x0: torch.Tensor) -> None:
    explainer = lde.LagrangeDualExplainer(model, constraints=BOX)
    x = torch.stack([x0, x0 + 0.05]).float()
    decided = outputs(model, x).argmax(1)
    free = explainer.attribute(x)
    assert free.shape == x.shape
    assert free.dtype == x.dtype
    assert bool((free >= 0).all())
    assert bool(free.any())
    torch.testing.assert_close(explainer.attribute(x, target=decided.tolist()), free)
    torch.testing.assert_close(explainer.attribute(x, target=torch.tensor(decided)), free)
    other = [(int(c) + 1) % CLASSES for c in decided]
    towards = explainer.attribute(x, target=other)
    single = lde.LagrangeDualExplainer(model, constraints=BOX, target=other[0]).explain(x[0])
    np.testing.assert_allclose(towards[0].numpy(), single.scores, rtol=2e-2, atol=1e-6)
    with pytest.raises(lde.InputError, match="baselines"):
        explainer.attribute(x, baselines=torch.zeros(DIM + 1))
    with pytest.raises(lde.InputError, match="3 targets for 2 inputs"):
        explainer.attribute(x, target=[0, 1, 2])


@pytest.mark.parametrize("method", ["linear", "crown"])
def test_contributions_share_out_what_the_row_loses_on_the_way_to_the_baseline(model: nn.Module, method: str) -> None:
    x = 0.1 + 0.8 * torch.rand(4, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    explainer, reference = lde.LagrangeDualExplainer(model, constraints=BOX, method=method), 0.3
    signed = explainer.attribute(x, baselines=reference).numpy()
    np.testing.assert_allclose(np.abs(signed), explainer.attribute(x).numpy() * np.abs(x.numpy() - reference), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(signed, explainer.attribute(x, baselines=torch.full((4, DIM), reference, dtype=torch.float64)).numpy())
    assert signed.any()
    for c, e in zip(signed, explainer.explain(x, quiet=True), strict=True):
        assert e.binding is not None
        lost = e.margin_multiplier * float(e.binding.a @ (e.x0 - reference))  # λ·(row at x0 − row at the reference)
        assert float(c.sum()) == pytest.approx(lost if e.scores.any() else 0.0, abs=1e-9)  # zero where nothing flips, as the scores are
        assert not e.contributions(e.x0).any()  # a feature at its reference contributes nothing
    with pytest.raises(lde.InputError, match="reference: shape"):
        explainer.explain(x[0]).contributions(np.zeros(DIM + 1))


def test_a_model_without_gradient_is_named(model: nn.Module) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.detach())

    for method in ("linear", "crown"):
        with pytest.raises(lde.InputError, match="gives no gradient at its input"):
            lde.LagrangeDualExplainer(Detached(), method=method).attribute(torch.rand(1, DIM))


def test_the_record_shows_itself(model: nn.Module, x0: torch.Tensor) -> None:
    names = [f"<feature {k}>" for k in range(DIM)]
    e = explained(model, x0, constraints=BOX, feature_names=names)
    frame = e.to_frame(3)
    assert list(frame.columns) == ["feature", "value", "score", "witness"]
    assert frame["score"].is_monotonic_decreasing
    assert frame["feature"][0] == names[int(e.scores.argmax())]
    assert f"{e.lower:.4g}" in repr(e)
    assert "&lt;feature" in e._repr_html_()
    assert "<feature" not in e._repr_html_()
    told = e.to_dict()
    assert told["lower"] == e.lower
    assert np.shape(told["scores"]) == (DIM,)
    from lde_cvx.plots import plot_scores, png, svg

    assert png(plot_scores(e)).startswith(b"\x89PNG")
    assert svg(plot_scores(e)) == svg(plot_scores(e)), "the same data give the same bytes"


# ---- errors: one line, the value, the way out ---------------------------------------------------------------------------------


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x, dim=1).values


BAD_INPUT = {
    "wrong shape": ({}, np.zeros(DIM + 1), r"shape \(7,\).*6 features"),
    "NaN": ({}, np.array([0.5, np.nan, 0.5, 0.5, 0.5, 0.5]), r"\[1\] is nan"),
    "no number": ({}, ["a"] * DIM, "not a number"),
    "empty": ({}, np.zeros((0, DIM)), r"shape \(0, 6\)"),
    "infeasible set": ({"constraints": BOX & lde.Box(2, 3, name="far")}, np.full(DIM, 0.5), "empty"),
    "outside the set": ({"constraints": BOX}, np.full(DIM, 1.5), r"'box' is violated by 0\.5"),
    "set of another size": ({"constraints": lde.Box(np.zeros(3), np.ones(3))}, np.full(DIM, 0.5), "3 dimensions"),
    "flipped already": ({"decision": lde.Decision.threshold(0, 1e6, CLASSES)}, np.full(DIM, 0.5), "does not stand"),
    "no such class": ({"target": 99}, np.full(DIM, 0.5), "99"),
    "no set returned": ({"constraints": lambda x: 3}, np.full(DIM, 0.5), "int"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_inputs_are_refused_in_one_line(model: nn.Module, case: str) -> None:
    options, x, words = BAD_INPUT[case]
    with pytest.raises(lde.InputError, match=words) as caught:
        lde.LagrangeDualExplainer(model, **options).explain(x, quiet=True)
    assert "\n" not in str(caught.value)


def test_the_class_that_the_model_answers_already_is_refused(model: nn.Module, x0: torch.Tensor) -> None:
    decided = int(outputs(model, x0[None])[0].argmax())
    with pytest.raises(lde.InputError, match=f"already answers class {decided}"):
        explained(model, x0, target=decided)


def test_a_layer_that_cannot_be_bounded_is_named(x0: torch.Tensor) -> None:
    net = nn.Sequential(nn.Linear(DIM, DIM), Sorted(), nn.Linear(DIM, 2))
    with pytest.raises(lde.InputError, match=r"(?i)sort") as caught:
        explained(net, x0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"method": "magic"},
            "'magic' is not known; use one of linear, ibp, crown-ibp, crown, alpha-crown, dual-network, branching, exact",
        ),
        ({"method": "branching", "jobs": 0}, "jobs=0"),
        ({"order": 3}, "order=3"),
        ({"norm": 3}, "p=3"),
        ({"target": 1, "decision": lde.Decision.threshold(0, 0, CLASSES)}, "target=1"),
        ({"time_limit": 0}, "time_limit=0"),
        ({"constraints": 5}, "int"),
        ({"norm": True}, "p=True"),
        ({"time_limit": True}, "time_limit=True"),
        ({"seed": 2**200}, "does not fit into 64 bits"),
        ({"device": "meta"}, "'meta' cannot be used"),
    ],
)
def test_bad_options_are_refused_when_they_are_given(model: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(lde.InputError, match=words.replace("(", r"\(")):
        lde.LagrangeDualExplainer(model, **options)


def test_what_is_no_decision_and_no_question_is_told_in_one_line(model: nn.Module, x0: torch.Tensor) -> None:
    with pytest.raises(lde.InputError, match="None is no Decision"):
        explained(model, x0, decision=lambda _: None)
    for ask in (lde.find_witness, lde.certified_radius):
        with pytest.raises(lde.InputError, match="x is no Decision"):
            ask(model, x0[None], decisions="x")
    with pytest.raises(lde.InputError, match="top=-1"):
        explained(model, x0, constraints=BOX, method="linear").to_frame(-1)
    with pytest.raises(lde.InputError, match="time_limit=nan"):
        lde.LagrangeDualExplainer(model, constraints=BOX).sufficient_reason(x0, time_limit=math.nan)
    with pytest.raises(lde.InputError, match="G has no rows"):
        lde.Polytope(np.zeros((0, DIM)), np.zeros(0))


@pytest.mark.parametrize("radius", [1e2, 1e8, 1e20, 1e300])
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_linear_program_that_the_solver_loses_has_no_radius(model: nn.Module, x0: torch.Tensor, radius: float) -> None:
    """A ball far beyond every flip changes nothing: its linearised radius is that of no set, or is said not to be known."""
    free = explained(model, x0, method="linear")
    huge = explained(model, x0, constraints=lde.LpBall(2, radius), method="linear")
    assert np.isnan(huge.linear_radius) or huge.linear_radius == pytest.approx(free.linear_radius, rel=1e-6)
    if np.isnan(huge.linear_radius):
        assert huge.linear_validity is Validity.UNKNOWN
        assert huge.linear_certified_fraction == 0
        assert huge.multiplier_words()[0].startswith("no λ: the program was not solved")


def test_what_a_method_cannot_bound_is_refused_before_the_work(model: nn.Module, x0: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lde_cvx.explainer.find_witness", lambda *_, **__: pytest.fail("the search had begun"))
    for method in CHAINS:
        with pytest.raises(lde.InputError, match="neither affine nor a ReLU"):
            explained(nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, CLASSES)), x0, method=method)
    with pytest.raises(lde.InputError, match="GroupNorm"):
        explained(model, x0, norm=lde.GroupNorm([[0], list(range(1, DIM))]), method="dual-network")


def test_methods_are_those_of_the_radii() -> None:
    assert radius.METHODS == BOUNDS


def test_a_broken_model_is_refused(x0: torch.Tensor) -> None:
    net = mlp((DIM, 2), seed=0)
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    with pytest.raises(lde.InputError, match="not finite"):
        explained(net, x0)
    with pytest.raises(lde.InputError, match="Module"):
        lde.LagrangeDualExplainer(lambda x: x)  # type: ignore[arg-type]
