"""Laws of the exact one-row solutions: they equal Clarabel, their lower bounds hold in rationals, and every verdict is true."""

from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction
from itertools import product
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.closed_form import BoxSolution, linear_radius, min_norm_box
from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from formulations.status import Status

INF = float("inf")
PS: tuple[Any, ...] = (1, 2, "inf")
D = 7
CASES_PER_KIND = 60  # × 3 norms × weighted or not × 3 boxes = 1080, and 360 without a box
BOXES = ("around 0", "excludes 0", "half infinite")


def random_case(rng: np.random.Generator, box: str, n: int, d: int = D) -> tuple[np.ndarray, ...]:
    """Rows and boxes of one kind: some zero gradients, some zero widths; b reachable in about four cases of five."""
    a = rng.normal(size=(n, d)) * rng.choice([1e-2, 1, 30], size=(n, 1))
    a[rng.random((n, d)) < 0.1] = 0.0
    a[np.abs(a).sum(1) == 0, 0] = 1.0
    lo, hi = -rng.random((n, d)), rng.random((n, d))
    if box == "excludes 0":
        shift = rng.choice([0.0, -0.9, 0.9], size=(n, d))
        lo, hi = lo + shift, hi + shift
    still = rng.random((n, d)) < 0.1
    hi = np.where(still, lo, hi)
    if box == "half infinite":
        lo, hi = np.where(rng.random((n, d)) < 0.5, -INF, np.minimum(lo, 0)), np.where(rng.random((n, d)) < 0.5, INF, np.maximum(hi, 0))
    finite_lo, finite_hi = np.maximum(lo, -5.0), np.minimum(hi, 5.0)
    fall = -np.where(a > 0, a * finite_lo, a * finite_hi).sum(1)
    rise = -np.where(a > 0, a * finite_hi, a * finite_lo).sum(1)
    b = np.where(rng.random(n) < 0.2, fall + 0.1 * np.abs(fall), rise + (fall - rise) * rng.uniform(0.3, 0.97, n))
    return a, b, lo, hi


class Reference:
    """The same program in CVXPY, compiled once and solved by Clarabel; infinite bounds become 1e4, which no answer comes near.

    At p = 2 it minimises ½‖Wδ‖² (λ of the norm = λ of the square / ‖Wδ‖), whose multipliers Clarabel gets right to more digits.
    """

    def __init__(self, p: Any, d: int = D) -> None:
        self.a, self.b, self.w = cp.Parameter(d), cp.Parameter(), cp.Parameter(d, pos=True)
        self.lo, self.hi, self.delta = cp.Parameter(d), cp.Parameter(d), cp.Variable(d)
        self.row = self.a @ self.delta + self.b <= 0
        box = [self.delta >= self.lo, self.delta <= self.hi]
        scaled = cp.multiply(self.w, self.delta)
        self.squared, goal = p == 2, 0.5 * cp.sum_squares(scaled) if p == 2 else cp.norm(scaled, p)
        self.problem = cp.Problem(cp.Minimize(goal), [self.row, *box])

    def solve(self, a: Any, b: float, lo: Any, hi: Any, w: Any) -> tuple[str, float, float]:
        size = np.abs(a).max()  # a scaled row is the same row, with λ scaled back
        self.a.value, self.b.value, self.w.value = a / size, b / size, w
        self.lo.value, self.hi.value = np.maximum(lo, -1e4), np.minimum(hi, 1e4)
        self.problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        value, lam = float(self.problem.value), float(np.squeeze(self.row.dual_value)) if self.row.dual_value is not None else INF
        if self.squared and np.isfinite(value):
            value = float(np.sqrt(2 * value))
            lam /= max(value, 1e-300)
        return self.problem.status, value, lam / size


def unstable(a: Any, b: Any, lo: Any, hi: Any, norm: Norm, lam: np.ndarray) -> np.ndarray:
    """Where the multiplier jumps near b, any value in between is right."""
    shift = 1e-5 * (1e-3 + np.abs(b))
    near = [min_norm_box(a, b + s, lo, hi, norm).lam.numpy() for s in (-shift, shift)]
    return np.any([~np.isclose(v, lam, rtol=1e-3) for v in near], axis=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", PS)
def test_box_equals_clarabel(p: Any, weighted: bool) -> None:
    rng, reference = np.random.default_rng(0), Reference(p)
    w = rng.uniform(0.3, 3.0, D) if weighted else np.ones(D)
    norm, compared = Norm(p, w), 0
    for box in BOXES:
        a, b, lo, hi = random_case(rng, box, CASES_PER_KIND)
        ours = min_norm_box(a, b, lo, hi, norm)
        jumps = unstable(a, b, lo, hi, norm, ours.lam.numpy())
        for i in range(CASES_PER_KIND):
            status, value, lam = reference.solve(a[i], b[i], lo[i], hi[i], w)
            assert (status == "infeasible") == bool(ours.infeasible[i]), (box, i, status)
            if ours.infeasible[i]:
                assert ours.value[i] == ours.lower[i] == INF
                continue
            blur = 1e-8 if p != 2 or value > 1e-2 else 1e-5  # √ of Clarabel's absolute tolerance
            assert ours.value[i] == pytest.approx(value, rel=1e-6, abs=blur)
            assert ours.lower[i] == pytest.approx(value, rel=1e-6, abs=blur)
            if not jumps[i] and (value > 1e-5 or p != 2):
                assert ours.lam[i] == pytest.approx(lam, rel=1e-5, abs=1e-7 / np.abs(a[i]).max())
                compared += 1
    assert compared > CASES_PER_KIND  # most cases are not degenerate


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", PS)
def test_linear_radius_equals_clarabel(p: Any, weighted: bool) -> None:
    rng, reference = np.random.default_rng(1), Reference(p)
    w = rng.uniform(0.3, 3.0, D) if weighted else np.ones(D)
    a, _, _, _ = random_case(rng, "around 0", CASES_PER_KIND)
    b = np.abs(a).max(1) * rng.uniform(0.3, 3, CASES_PER_KIND)
    ours, box = linear_radius(a, b, Norm(p, w)), min_norm_box(a, b, -INF, INF, Norm(p, w))
    for i in range(CASES_PER_KIND):
        _, value, lam = reference.solve(a[i], b[i], -INF * np.ones(D), INF * np.ones(D), w)
        for answer in (ours, box):
            assert answer.value[i] == pytest.approx(value, rel=1e-6)
            assert answer.lam[i] == pytest.approx(lam, rel=1e-5)
            assert value * (1 - 1e-6) <= answer.lower[i] <= answer.value[i]
    assert torch.allclose((torch.tensor(a) * ours.delta).sum(1), -torch.tensor(b), rtol=1e-12)
    assert np.allclose(Norm(p, w).value(ours.delta.numpy()), ours.value, rtol=1e-12)


@pytest.mark.parametrize("p", PS)
def test_linear_radius_edges(p: Any) -> None:
    ours = linear_radius([[3.0, -4.0], [3.0, -4.0], [0.0, 0.0], [0.0, 0.0]], [-1.0, 0.0, 1.0, -1.0], p)
    assert ours.value.tolist() == ours.lower.tolist() == [0.0, 0.0, INF, 0.0]
    assert ours.status == [Status.OPTIMAL, Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
    assert (ours.delta[[0, 1, 3]] == 0).all()
    assert ours.delta[2].isnan().all()


def exact_optimum(a: Any, b: float, lo: Any, hi: Any, p: Any) -> Fraction | None:
    """The optimum for p = 1 or ∞ in rational arithmetic, for boxes around 0; None when infeasible."""
    slope = [abs(Fraction(v)) for v in a]
    room = [abs(Fraction(lo[i] if a[i] > 0 else hi[i])) for i in range(len(a))]
    need = Fraction(b)
    if need <= 0:
        return Fraction(0)
    if sum(s * r for s, r in zip(slope, room, strict=True)) < need:
        return None
    spent = Fraction(0)
    if p == 1:
        for i in sorted(range(len(a)), key=lambda i: -slope[i]):
            step = min(room[i], need / slope[i])
            spent, need = spent + step, need - slope[i] * step
            if need == 0:
                return spent
    for i in sorted(range(len(a)), key=lambda i: room[i]):  # raise a common level, coordinates drop out in order of their room
        rest = [j for j in range(len(a)) if room[j] >= room[i]]
        fall = sum((slope[j] * room[j] for j in range(len(a)) if j not in rest), Fraction(0))
        total = sum((slope[j] for j in rest), Fraction(0))
        if total and (need - fall) / total <= room[i]:
            return (need - fall) / total
    return None


@pytest.mark.parametrize("p", [1, "inf"])
def test_lower_never_exceeds_the_rational_optimum(p: Any) -> None:
    rng = np.random.default_rng(2)
    a, b, lo, hi = random_case(rng, "around 0", 300, 6)
    b, lo, hi = np.abs(b), np.minimum(lo, 0), np.maximum(hi, 0)
    ours = min_norm_box(a, b, lo, hi, p)
    tight = 0
    for i in range(300):
        exact = exact_optimum(a[i], b[i], lo[i], hi[i], p)
        assert bool(ours.infeasible[i]) == (exact is None)
        if exact is not None:
            assert Fraction(ours.lower[i].item()) <= exact
            assert ours.value[i].item() == pytest.approx(float(exact), rel=1e-13)
            tight += ours.lower[i].item() >= float(exact) * (1 - 1e-12)
    assert tight > 200


@pytest.mark.parametrize("p", PS)
def test_lower_never_exceeds_any_feasible_point(p: Any) -> None:
    """Attack: random points of the box that meet the row are never shorter than `lower`."""
    rng = np.random.default_rng(3)
    for box in BOXES:
        a, b, lo, hi = random_case(rng, box, 200)
        ours = min_norm_box(a, b, lo, hi, Norm(p, np.full(D, 0.7)))
        points = rng.uniform(np.maximum(lo, -3), np.minimum(hi, 3), size=(400, 200, D))
        points = np.concatenate([points, ours.delta[None].nan_to_num().numpy() + 1e-3 * (points - ours.delta[None].nan_to_num().numpy())])
        meets = ((points * a).sum(-1) + b <= 0) & (points >= lo).all(-1) & (points <= hi).all(-1)
        assert meets.any()
        assert not (meets & (Norm(p, np.full(D, 0.7)).value(points) < ours.lower.numpy())).any()


@pytest.mark.parametrize("p", PS)
def test_verdicts_at_the_edge_of_reach(p: Any) -> None:
    """b within a few units in the last place of the largest fall: a proved verdict agrees with rational arithmetic, and 1e-9 away it is proved."""
    rng = np.random.default_rng(4)
    a, _, lo, hi = random_case(rng, "around 0", 200, 20)
    reach = -np.where(a > 0, a * lo, a * hi).sum(1)
    exact = [
        -sum(Fraction(a[i, j]) * Fraction(lo[i, j] if a[i, j] > 0 else hi[i, j]) for j in range(20) if a[i, j] != 0) for i in range(200)
    ]
    kinds = set()
    for shift in (-1e-9, -1e-12, -4e-16, 0.0, 4e-16, 1e-12, 1e-9):
        b = reach + shift * np.abs(reach)
        ours = min_norm_box(a, b, lo, hi, p)
        kinds |= set(ours.status)
        for i, verdict in enumerate(ours.status):
            truth = Status.OPTIMAL if Fraction(b[i]) <= exact[i] else Status.INFEASIBLE
            assert verdict in (truth, Status.UNKNOWN)
            assert abs(shift) < 1e-9 or verdict is truth
    assert kinds == {Status.OPTIMAL, Status.INFEASIBLE, Status.UNKNOWN}


@pytest.mark.parametrize("p", PS)
def test_edge_cases(p: Any) -> None:
    def one(a: list[float], b: float, lo: Any, hi: Any) -> BoxSolution:
        return min_norm_box([a], [b], lo, hi, p)

    dead = one([0.0, 0.0], 1.0, -1, 1)
    assert dead.status == [Status.INFEASIBLE]
    assert one([0.0, 0.0], -1.0, -1, 1).value == 0
    assert one([0.0, 0.0], 0.0, -1, 1).status == [Status.OPTIMAL]  # the row holds with equality at 0, exactly

    ties = one([1.0, 1.0, -1.0], 1.5, -1, 1)
    assert ties.value == pytest.approx({1: 1.5, 2: 0.75**0.5, "inf": 0.5}[p])
    assert ties.lam == pytest.approx({1: 1.0, 2: 3**-0.5, "inf": 1 / 3}[p])
    assert (torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64) * ties.delta[0]).sum() == pytest.approx(-1.5)

    frozen = one([5.0, 1.0], 0.5, [[0.0, -1.0]], [[0.0, 1.0]])  # zero width takes the steep coordinate out
    assert frozen.delta[0].tolist() == [0.0, -0.5]
    assert one([5.0, 1.0], 0.5, 0, 0).status == [Status.INFEASIBLE]

    forced = one([1.0, 0.0], -3.0, [[0.2, 0.4]], [[1.0, 1.0]])  # the row holds already, the box alone keeps δ from 0
    assert forced.delta[0].tolist() == [0.2, 0.4]
    assert forced.lam == 0
    assert forced.lower == pytest.approx(Norm(p).value([0.2, 0.4]))

    pushed = one([-1.0, 0.0], 0.3, [[0.2, 0.9]], [[1.0, 1.0]])
    assert pushed.delta[0].tolist() == pytest.approx([0.3, 0.9])
    assert pushed.lam == pytest.approx({1: 1.0, 2: 0.3 / np.hypot(0.3, 0.9), "inf": 0.0}[p])
    assert pushed.lower == pytest.approx(Norm(p).value([0.3, 0.9]))

    for lo, hi in ((0.5, -0.5), (INF, INF), (-INF, -INF)):
        assert one([1.0, 1.0], 1.0, lo, hi).status == [Status.INFEASIBLE]

    assert min_norm_box(np.zeros((0, 3)), np.zeros(0), -1, 1, p).delta.shape == (0, 3)
    tiny = one([1e-300, 1.0], 0.5, -INF, INF)
    assert tiny.value == pytest.approx(0.5)


@pytest.mark.parametrize("p", PS)
def test_float32_and_its_lower_bound(p: Any) -> None:
    rng = np.random.default_rng(5)
    a, b, lo, hi = (torch.tensor(v, dtype=torch.float32) for v in random_case(rng, "around 0", 200, 30))
    coarse, fine = min_norm_box(a, b, lo, hi, p), min_norm_box(a.double(), b.double(), lo.double(), hi.double(), p)
    assert coarse.value.dtype == torch.float32
    known = coarse.feasible & fine.feasible
    assert known.sum() > 100
    assert not (coarse.feasible & fine.infeasible).any()
    assert not (coarse.infeasible & fine.feasible).any()
    assert torch.allclose(coarse.value[known].double(), fine.value[known], rtol=1e-4, atol=1e-6)
    assert (coarse.lower[known].double() <= fine.value[known]).all()


@pytest.mark.parametrize("p", PS)
def test_an_instance_does_not_see_its_batch(p: Any) -> None:
    rng = np.random.default_rng(6)
    a, b, lo, hi = random_case(rng, "excludes 0", 50, 1000)  # more entries than a block
    together = min_norm_box(a, b, lo, hi, p)
    order = rng.permutation(50)
    shuffled = min_norm_box(a[order], b[order], lo[order], hi[order], p)
    for name in ("value", "lower", "lam", "delta"):
        whole = getattr(together, name)
        assert torch.equal(getattr(shuffled, name).nan_to_num(), whole[torch.tensor(order)].nan_to_num())
        for i in (0, 31, 49):
            alone = min_norm_box(a[i : i + 1], b[i : i + 1], lo[i : i + 1], hi[i : i + 1], p)
            assert torch.equal(getattr(alone, name)[0].nan_to_num(), whole[i].nan_to_num())


numbers = st.floats(-4, 4).map(lambda v: round(v, 3))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(PS), st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), numbers, st.floats(0.2, 5))
def test_laws(p: Any, triples: list[tuple[float, float, float]], b: float, t: float) -> None:
    a = np.array([[v for v, _, _ in triples]])
    lo, hi = (np.array([[f(x, y) for _, x, y in triples]]) for f in (min, max))
    base = min_norm_box(a, b, lo, hi, p)
    if base.status == [Status.UNKNOWN]:
        return
    assert base.lower <= base.value
    if base.feasible:
        delta = base.delta.numpy()
        assert (lo <= delta).all()
        assert (delta <= hi).all()
        assert (a * delta).sum() + b <= 1e-12
        assert base.value == pytest.approx(Norm(p).value(delta)[0])
        assert base.lower == pytest.approx(base.value.item(), rel=1e-9, abs=1e-9)  # KKT: the multiplier proves the value
    row = min_norm_box(t * a, t * b, lo, hi, p)  # the row may be scaled
    scaled = min_norm_box(a, t * b, t * lo, t * hi, p)  # the norm is homogeneous
    wider = min_norm_box(a, b, lo - t, hi + t, p)  # a bigger box is never farther
    if row.status != [Status.UNKNOWN] and scaled.status != [Status.UNKNOWN]:
        assert row.value == pytest.approx(base.value.item(), rel=1e-9, abs=1e-12)
        assert scaled.value == pytest.approx(t * base.value.item(), rel=1e-9, abs=1e-12)
    assert wider.lower <= base.value
    if base.feasible:  # λ is the slope of a global affine minorant of the value in b
        for other in (b - t, b + 0.1 * t, b + t):
            assert min_norm_box(a, other, lo, hi, p).value >= base.value + base.lam * (other - b) - 1e-9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, 2.0], 1.0, -1, 1), "rows"),
        (([[1.0, np.nan]], 1.0, -1, 1), "nan"),
        (([[1.0, 2.0]], [1.0, 2.0], -1, 1), "one number per row"),
        (([[1.0, 2.0]], INF, -1, 1), "inf"),
        (([[1.0, 2.0]], 1.0, np.nan, 1), "NaN"),
        (([[1.0, 2.0]], 1.0, [-1.0, -1.0, -1.0], 1), "does not fit"),
        (([[1.0, 2.0]], 1.0, -1, 1, GroupNorm([[0, 1]])), "GroupNorm"),
        (([[1.0, 2.0]], 1.0, -1, 1, Norm(2, [1.0, 1.0, 1.0])), "3 weights"),
    ],
)
def test_errors_name_the_value(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        min_norm_box(*arguments)


def test_memory_is_linear_in_the_dimension() -> None:
    """At d = 150,528 a dense d × d array would take 181 GB; the growth allowed here is 100 arrays of length d."""
    code = """
import resource, torch
from formulations.closed_form import linear_radius, min_norm_box
g = torch.Generator().manual_seed(0)
a = torch.randn(1, 150528, generator=g, dtype=torch.float64)
min_norm_box(a[:, :8], 1.0, -1, 1, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for p in (1, 2, "inf"):
    assert min_norm_box(a, 100.0, -1, 1, p).feasible.all() and linear_radius(a, 1.0, p).feasible.all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS and in kilobytes elsewhere
    assert int(run.stdout) * unit < 100 * 150528 * 8


@pytest.mark.slow
@pytest.mark.parametrize(("d", "ratio"), [(10, 1000), (784, 100)])
def test_speed_against_a_naive_rebuild(d: int, ratio: float) -> None:
    rng = np.random.default_rng(7)
    a, b, lo, hi = (torch.tensor(v) for v in random_case(rng, "around 0", 1000, d))
    for p in PS:
        naive, ours = [], []
        for i in range(5):
            begun, delta = time.perf_counter(), cp.Variable(d)
            rows = [a[i].numpy() @ delta + b[i].item() <= 0, delta >= lo[i].numpy(), delta <= hi[i].numpy()]
            cp.Problem(cp.Minimize(cp.norm(delta, p)), rows).solve(solver="CLARABEL")
            naive.append(time.perf_counter() - begun)
        for _ in range(3):
            begun = time.perf_counter()
            min_norm_box(a, b, lo, hi, p)
            ours.append((time.perf_counter() - begun) / 1000)
        assert np.median(naive) >= ratio * min(ours), (d, p)


def test_all_kinds_are_covered() -> None:
    assert CASES_PER_KIND * len(list(product(PS, (False, True), BOXES))) >= 1000


def test_a_row_too_small_to_square_is_not_called_solved() -> None:
    """a·a underflows: the bound stands, δ falls short of the row."""
    solved = min_norm_box(np.full((1, 4), 1e-300), np.ones(1), -np.inf, np.inf, 2)
    assert solved.status == [Status.UNKNOWN] or solved.value[0] >= solved.lower[0] * (1 - 1e-6)
