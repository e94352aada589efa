"""Interior points for the dual network: bands against dense matrices, a Newton step against the equations that it claims to solve, programs against Clarabel."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lde_cvx as lde
from formulations.coupling import CutCoupling
from formulations.norms import INF, Norm
from formulations.programs import min_norm, relative_parts
from formulations.support import Region
from lde_cvx.bench.dual import programs
from verification.dual_network import DualNetwork, FixedRows
from verification.dual_network.bands import FULL, Bands
from verification.dual_network.cones import Cones, Scaling
from verification.dual_network.inequalities import Complementarity, Inequalities
from verification.dual_network.interior import bands_for
from verification.dual_network.newton import Newton

CPU = torch.device("cpu")


def differences(h, w):
    return lde.TotalVariation(1.0, (h, w)).D.tocsr()


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(0, 50), st.sampled_from([0.02, 0.1, 0.5]))
@settings(max_examples=40, deadline=None)
def test_bands_solve_what_a_dense_matrix_solves(seed, d, m, density):
    """Random K, thin rows and full ones, pairs of thin rows, isolated coordinates and empty rows: full rows are left out, everything else is there."""
    rng = np.random.default_rng(seed)
    K = sp.random(m, d, density, random_state=rng, format="csr")
    dense = K.toarray()
    full = (dense != 0).sum(1) > FULL
    some = rng.permutation(np.flatnonzero(~full))
    pairs = some[: len(some) // 2 * 2].reshape(2, -1)
    bands = Bands.of(K, CPU, pairs)
    assert bands.full.tolist() == np.flatnonzero(full).tolist()
    weights, right = torch.tensor(rng.uniform(0.1, 2, size=(3, d + m + pairs.shape[1]))), torch.tensor(rng.normal(size=(3, d, 2)))
    weights[:, d + m :] *= 0.04  # each pair's block of Ω stays positive definite
    thin = torch.tensor(dense * ~full[:, None])
    room = bands.storage(4, weights)
    for _ in range(2):  # the second time in the same room
        factor = bands.factor(weights, room)
        omega = torch.diag_embed(weights[:, d : d + m])
        omega[:, pairs[0], pairs[1]] = omega[:, pairs[1], pairs[0]] = weights[:, d + m :]
        A = torch.diag_embed(weights[:, :d]) + thin.T @ omega @ thin
        assert not factor.failed.any()
        assert torch.allclose(A @ factor.solve(right), right, atol=1e-9)
        weights = weights * 2


@pytest.mark.parametrize(("shape", "size"), [((28, 28), 28), ((9, 40), 16), ((1, 50), 16)])
def test_bands_of_a_grid_are_as_wide_as_its_short_side(shape, size):
    bands = Bands.of(differences(*shape), CPU)
    assert bands.size == size
    assert bands.blocks == -(-shape[0] * shape[1] // size)


def test_the_bands_of_a_sparse_set_are_read_without_laying_it_out(monkeypatch):
    """K of an image's total variation has a few entries a row: its bands are those of the dense matrix, met without it."""
    side = 20
    parts = relative_parts(lde.Box(0, 1) & lde.TotalVariation(3.0, shape=(side, side)), side * side, np.full(side * side, 0.5))
    link = Region.build(Norm(2), parts, np.zeros(1), side * side, count=1).coupling
    assert link.K.is_sparse_csr
    dense = Bands.of(sp.csr_matrix(link.K.to_dense().numpy()), torch.device("cpu"), np.zeros((2, 0), dtype=np.int64))
    monkeypatch.setattr(torch.Tensor, "to_dense", lambda *_: pytest.fail("the whole matrix was laid out"))
    bands = bands_for(link)
    for name in ("full", "place", "entry"):
        assert torch.equal(getattr(bands, name), getattr(dense, name))
    assert torch.equal(bands.weigh.values(), dense.weigh.values())


def test_a_matrix_that_is_not_positive_definite_says_so():
    bands = Bands.of(differences(4, 4), CPU)
    weights = torch.ones(2, 16 + 24, dtype=torch.float64)
    weights[1, 5] = -50.0
    assert bands.factor(weights, bands.storage(2, weights)).failed.tolist() == [False, True]


def region_of(norm, C, x0):
    n, d = x0.shape
    parts = relative_parts(C, d, x0, n)
    return parts, Region.build(norm, parts, np.zeros(n), d, count=n)


ISOTROPIC = lde.TotalVariation(2.0, (4, 6), isotropic=True) & lde.TotalVariation(1.0, (2, 3, 4), isotropic=True)


def inside(of, rng, absent):
    """Slacks or multipliers inside their domains."""
    y = torch.where(of.finite, torch.tensor(rng.uniform(0.5, 2, size=of.h.shape)), absent)
    heads, tails = of.cones.split(y[:, of.straight :])
    y[:, of.straight :] = of.cones.join(heads + of.cones.sums(tails.square()).sqrt(), tails - 1)
    return y


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 4), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_algebra_of_cones(seed, sizes):
    """The identities that define the products, the scaling and its weights without heads; and how far a ray stays inside, from both sides."""
    rng, n = np.random.default_rng(seed), sum(sizes)
    labels = torch.tensor(np.repeat(np.arange(len(sizes)), sizes), dtype=torch.long)
    of = Cones(labels, len(sizes))

    def point():
        tails = torch.tensor(rng.normal(size=(2, n)))
        return of.join(of.sums(tails.square()).sqrt() + torch.tensor(rng.uniform(0.05, 2, size=(2, len(sizes)))), tails)

    y, z, other = point(), point(), torch.tensor(rng.normal(size=(2, len(sizes) + n)))
    scaling = Scaling.between(of, y, z)
    for left, right in [
        (scaling.root(z), scaling.unroot(y)), (scaling.root(scaling.unroot(other)), other), (of.times(of.inverse(y), y), of.unit(y)),
        (of.times(of.over(other, y), y), other), (of.inner(scaling.point, scaling.point), of.inner(y, z)),
    ]:  # fmt: skip
        assert torch.allclose(left, right, atol=1e-7)
    i, j = (np.triu_indices(n, 1)[k] for k in (0, 1))
    same = labels[i] == labels[j]
    pairs = torch.tensor(np.stack([i, j]))[:, same]
    alpha, lean, diagonal, beside = scaling.reduced(pairs)
    identity = torch.eye(len(sizes) + n, dtype=torch.float64)
    W = torch.stack([scaling.weigh(e.expand(2, -1)) for e in identity], -1)
    head, cross, block = W[:, : len(sizes), : len(sizes)], W[:, : len(sizes), len(sizes) :], W[:, len(sizes) :, len(sizes) :]
    found = torch.diag_embed(diagonal)
    found[:, pairs[0], pairs[1]] = found[:, pairs[1], pairs[0]] = beside
    size = W.abs().amax()
    assert torch.allclose(torch.diagonal(head, dim1=1, dim2=2), alpha, atol=1e-9 * size)
    assert torch.allclose(block - cross.mT @ torch.linalg.solve(head, cross), found, atol=1e-9 * size)
    assert torch.allclose(-torch.linalg.solve(head, cross).sum(1), lean, atol=1e-9 * size)
    far = of.room(y, other).clamp(max=1e3)
    for part, within in ((0.999, True), (1.001, False)):
        after = y + of.scale(part * far, other)
        heads, tails = of.split(after)
        stays = heads >= of.sums(tails.square()).sqrt()
        assert (stays == within)[far < 1e3].all()
        assert stays[far == 1e3].all()


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_a_newton_step_solves_the_linearised_conditions(p):
    """Residuals, slopes and products, each to first order, with every kind of inequality, full rows and unbounded sides among them."""
    rng = np.random.default_rng(0)
    n, d = 3, 24
    C = (
        lde.Box(0, np.where(np.arange(d) % 5 == 0, np.inf, 1.0)) & lde.TotalVariation(3.0, (4, 6)) & ISOTROPIC & lde.LpBall(1, 2.0) & lde.LpBall("inf", 0.7)
        & lde.Polytope(rng.normal(size=(2, d)), [9.0, 9.0]) & lde.Polytope(None, None, equal=(np.eye(d)[:1] - np.eye(d)[1:2], [0.0]))
    )  # fmt: skip
    x0 = np.repeat(rng.uniform(0.2, 0.5, size=(n, 1)), d, 1)
    _, region = region_of(Norm(p), C, x0)
    bands = bands_for(region.coupling)
    assert len(bands.full) == 2
    cut = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(n, 1, d))), dim=-1)
    link = CutCoupling.of(region.coupling, cut, torch.full((n, 1, 1), -0.2, dtype=torch.float64))
    of = Inequalities.of(link, region.lo, region.hi, p, torch.full((n, 1), 1e-3, dtype=torch.float64))
    y, z = (inside(of, rng, v) for v in (1.0, 0.0))
    v, c = torch.tensor(rng.normal(size=(n, d))), torch.tensor(rng.uniform(0.5, 1, size=(n, of.load.shape[1])))
    if p == INF:
        c[:, of.norm] = c[:, :1]
    residual = torch.where(of.finite, of.apply(of.image(v), c) + y - of.h, 0.0)
    about, none = Complementarity.about(of, y, z), torch.zeros_like(z)
    products = about.corrected(none, none, torch.full((n, 1), 0.1, dtype=torch.float64))
    dv, dc, dz = Newton.about(of, about, bands, bands.storage(n, v)).step(of.slopes(v, z), residual, products)
    dy = about.slack(products, dz)

    def left(t):
        in_v, in_c = of.slopes(v + t * dv, z + t * dz)
        if p == INF:
            in_c = torch.cat([in_c[:, of.norm].sum(-1, keepdim=True), in_c[:, of.norm.stop :]], -1)
        feasible = torch.where(of.finite, of.apply(of.image(v + t * dv), c + t * dc) + y + t * dy - of.h, 0.0)
        return torch.cat([in_v, in_c, feasible], -1).abs().amax()

    assert left(0.0) > 0.1
    assert left(1.0) <= 1e-9 * (1 + dz.abs().amax())
    k, cones, scaling = of.straight, of.cones, about.cones
    assert torch.allclose((z * dy + y * dz)[:, :k], -products[:, :k], atol=1e-9)
    turned = scaling.unroot(dy[:, k:]) + scaling.root(dz[:, k:])
    assert torch.allclose(cones.times(scaling.point, turned), -products[:, k:], atol=1e-9)


D = 16
FIXED = np.where(np.arange(D) < 4, 0.3, 0.0), np.where(np.arange(D) < 4, 0.3, 1.0)  # the first coordinates have one value only
SETS = {
    "tv": lde.Box(0, 1) & lde.TotalVariation(1.2, (4, 4), on="input"),
    "tv of the change": lde.Box(0, 1) & lde.TotalVariation(2.5, (4, 4)),
    "isotropic": lde.Box(0, 1) & lde.TotalVariation(1.5, (4, 4), isotropic=True) & lde.TotalVariation(1.5, (2, 2, 4), isotropic=True),
    "two balls": lde.Box(0, 1) & lde.LpBall(1, 2.0) & lde.LpBall("inf", 0.5) & lde.TotalVariation(2.0, (4, 4)),
    "full rows": lde.Box(0, 1) & lde.Polytope(np.vstack([np.ones(D), np.arange(D) / D]), [8.0, 4.5]),
    "equations": lde.Box(0, 1) & lde.Polytope(None, None, equal=(np.eye(D)[:3] - np.eye(D)[3:6], np.zeros(3))),
    "single values": lde.Box(*FIXED) & lde.TotalVariation(2.0, (4, 4)),
    "no box": lde.TotalVariation(3.0, (4, 4)),
}


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
@pytest.mark.parametrize("kind", list(SETS))
def test_interior_points_reach_the_solvers_dual_value(kind, p):
    """≥ 99.999 % of every program's verified optimum within 60 steps, and never above its primal; beyond reach on both sides alike."""
    C, n, norm = SETS[kind], 8, Norm(p)
    rng = np.random.default_rng(1)
    a = rng.normal(size=(n, D))
    x0 = np.full((n, D), 0.3)
    parts, region = region_of(norm, C, x0)
    assert bands_for(region.coupling) is not None
    wide = Region.build(norm, parts, np.full(n, 1e6), D, count=n)
    most = wide.support(torch.tensor(-a)[:, None])[:, 0].numpy()
    b = np.where(np.isfinite(most) & (most < 1e5), most, 2.0) * np.linspace(
        0.2, 1.2, n
    )  # the last ones cannot be met, where anything bounds the fall
    solved = min_norm(a, b, norm, C, x0)
    net = DualNetwork(FixedRows(torch.tensor(a)[:, None], torch.tensor(b)[:, None]), norm, parts, region)
    net.settle(60)
    found, reached = net().detach().numpy(), np.isfinite(solved.value)
    assert reached.sum() >= 4
    assert (found[reached] <= solved.value[reached] * (1 + 1e-7)).all()
    assert (found[reached] >= (1 - 1e-5) * solved.lower[reached]).all()


@pytest.mark.parametrize("p", [1.0, INF])
def test_degenerate_programs_settle_in_few_steps(p):
    """The benchmark's programs, linear and degenerate, on a grid with several blocks, split into chunks or not."""
    norm, side, n = Norm(p), 20, 6
    C, x0, a, b = programs(n, side, norm, seed=2)
    parts, region = region_of(norm, C, x0)
    solved = min_norm(a, b, norm, C, x0)
    net = DualNetwork(FixedRows(torch.tensor(a)[:, None], torch.tensor(b)[:, None]), norm, parts, region)
    net.settle(60)
    found = net().detach().numpy()
    assert (found <= solved.value * (1 + 1e-7)).all()
    assert (found >= (1 - 1e-4) * solved.lower).all()


def test_rows_that_hold_or_cannot_be_met():
    """b ≤ 0 is met where it stands; a row of zeros never is; neither disturbs its neighbours."""
    C, x0 = SETS["tv"], np.full((3, D), 0.3)
    parts, region = region_of(Norm(1), C, x0)
    a = torch.ones(3, 1, D, dtype=torch.float64)
    a[2] = 0
    net = DualNetwork(FixedRows(a, torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64)), Norm(1), parts, region)
    net.settle()
    found = net().tolist()
    assert found[0] == 0
    assert found[1] == pytest.approx(1.0, rel=1e-6)
    assert found[2] == np.inf


def test_sets_that_inequalities_do_not_say_or_whose_steps_are_dear_are_left_to_splitting():
    rng, x0 = np.random.default_rng(0), np.full((2, 400), 0.3)
    large = lde.LpBall(lde.GroupNorm(np.arange(400).reshape(50, 8)), 3.0)
    for C in (lde.LpBall(2, 0.6), large, lde.Polytope(rng.normal(size=(60, 400)), np.full(60, 500.0))):
        assert bands_for(region_of(Norm(1), lde.Box(0, 1) & C, x0)[1].coupling) is None
