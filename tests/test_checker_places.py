"""Level B on images: rows kept as blocks are the rows over the whole image, lines of max pooling stay on their side, and both are attacked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verification.checking.document import Cell, Document, NormSpec, PartSpec, Verdict
from verification.rechecking.activations import Rectifier, Tanh
from verification.rechecking.affine import Add, Conv, Dense, Reshape, Scale
from verification.rechecking.bounds import Bounds
from verification.rechecking.graph import Network, Node
from verification.rechecking.places import WHOLE, Blocks, block_rows
from verification.rechecking.pooling import MaxPool
from verification.rechecking.region import Region
from verification.rechecking.sliding import Sliding

SHAPE = (2, 9, 9)


def document(norm: NormSpec, x0: np.ndarray, parts: list[PartSpec]) -> Document:
    return Document(x0.tolist(), "", [], [], [], norm, parts, [], 0.0, [], np.inf, None, [], Verdict.UNKNOWN, 0.0, 0.0, SHAPE)


def cell(radius: float) -> Cell:
    return Cell([], radius, [], [], [], [], [None], None)


def box(x0: np.ndarray, half: float) -> PartSpec:
    return PartSpec("box", "change", "box", [-half] * x0.size, [half] * x0.size)


def conv(
    rng: Any, shape: tuple[int, ...], out: int, kernel: int, stride: int = 1, pad: int = 1, dilation: int = 1, groups: int = 1
) -> Conv:
    W = rng.normal(size=(out, shape[0] // groups, kernel, kernel)) / kernel
    sliding = Sliding((kernel, kernel), (stride, stride), (dilation, dilation), (pad,) * 4)
    return Conv.of(W, rng.normal(size=out), shape, sliding, groups)


def chain(rng: Any, tail: str) -> Network:
    """Convolutions with stride, dilation and groups, scales, pools that overlap or leave a rest, a residual connection: and a dense end."""
    first = conv(rng, SHAPE, 4, 3, stride=2)
    nodes = [
        Node("0", first, (-1,)),
        Node("1", Scale.of(rng.uniform(0.5, 2, first.shape), None, None, 0.0), (0,)),
        Node("2", Rectifier(first.shape), (1,)),
    ]
    shape: tuple[int, ...] = first.shape
    if tail == "pool":
        pool = MaxPool.of(shape, Sliding((3, 3), (2, 2), pads=(1, 1, 1, 1)))
        nodes += [Node("3", pool, (2,)), Node("4", conv(rng, pool.shape, 4, 2, pad=0, groups=2), (3,))]
    elif tail == "residual":
        inner, other = conv(rng, shape, 4, 3, dilation=2, pad=2), conv(rng, shape, 4, 1, pad=0)
        nodes += [Node("3", inner, (2,)), Node("4", other, (2,)), Node("5", Add(shape), (3, 4)), Node("6", Tanh(shape), (5,))]
        nodes += [Node("7", conv(rng, shape, 3, 3), (6,))]
    else:
        nodes += [Node("3", conv(rng, shape, 3, 3, stride=2), (2,))]
    last: Any = nodes[-1].layer
    flat = Reshape(last.shape, (int(np.prod(last.shape)),))
    nodes += [Node("a", Rectifier(last.shape, 0.1), (len(nodes) - 1,)), Node("b", flat, (len(nodes),))]
    return Network(SHAPE, (*nodes, Node("c", Dense.of(rng.normal(size=(2, flat.shape[0])), None, flat.shape), (len(nodes) - 1,))))


def values(network: Network, x: np.ndarray) -> list[np.ndarray]:
    """All values at inputs x (n, *shape)."""
    out: list[np.ndarray] = []
    for node in network.nodes:
        z = [x if i < 0 else out[i] for i in node.sources]
        layer = node.layer
        if isinstance(layer, Add):
            out.append(z[0] + z[1])
        elif isinstance(layer, MaxPool):
            out.append(np.stack([layer.interval(v, v)[0] for v in z[0]]))
        elif isinstance(layer, Rectifier):
            out.append(np.where(z[0] >= 0, z[0], layer.negative * z[0]))
        elif isinstance(layer, Tanh):
            out.append(np.tanh(z[0]))
        else:
            out.append(layer.apply(z[0]) + (0 if layer.shift is None else layer.shift))  # type: ignore[union-attr]
    return out


@pytest.mark.parametrize("tail", ["plain", "pool", "residual"])
@pytest.mark.parametrize("p", ["1", "2", "inf"])
def test_blocks_say_what_whole_rows_say_and_both_hold(tail: str, p: str) -> None:
    rng = np.random.default_rng(len(tail))
    network, x0 = chain(rng, tail), rng.normal(size=162)
    radius = {"1": 1.5, "2": 0.5, "inf": 0.06}[p]
    norm, parts = NormSpec(p, rng.uniform(0.5, 2, 162).tolist() if p == "1" else None, []), [box(x0, 0.15)]
    bounds = Bounds(network, document(norm, x0, parts), Region(document(norm, x0, parts), cell(radius)), {}, {})
    v = rng.normal(size=(600, 162)) * (rng.random((600, 162)) < rng.choice([0.02, 0.2, 1.0], (600, 1)))
    size = {"1": np.abs(v * np.array(norm.weights or 1.0)).sum(1), "2": np.sqrt((v**2).sum(1)), "inf": np.abs(v).max(1)}[p]
    delta = np.clip(v * (radius / np.maximum(size, 1e-9))[:, None], -0.15, 0.15)
    met = values(network, (x0 + delta).reshape(-1, *SHAPE))
    for i, (low, high) in enumerate(bounds.bounds):
        assert (met[i] >= low - 1e-12).all(), i
        assert (met[i] <= high + 1e-12).all(), i
    for i, node in enumerate(network.nodes):
        shape = network.shape(i)
        if len(shape) != 3 or isinstance(node.layer, Rectifier | Tanh):
            continue
        n = int(np.prod(shape))
        index = rng.choice(n, min(n, 20), replace=False)
        signs = rng.choice([-1.0, 1.0], len(index)) * rng.uniform(0.1, 3, len(index))
        A = np.zeros((len(index), n))
        A[np.arange(len(index)), index] = signs
        a, c, error = bounds.back(i, A.reshape(-1, *shape))
        b, place, k, missed, _ = bounds.trace(i, *block_rows(shape, index, signs))
        assert np.allclose(place.flat(b, SHAPE), a, atol=1e-12)
        assert np.allclose(c, k, atol=1e-11)
        assert (missed <= 2 * error + 1e-14).all()
        if isinstance(place, Blocks):
            near = bounds.region.seen(place.columns()).above(-b.reshape(len(b), -1), search=False)[0]
            assert (near <= bounds.region.above(-a, search=False)[0] * (1 + 1e-9) + 1e-9).all()
            assert (near >= (-a @ delta.T).max(1)).all()
        reached = signs[:, None] * met[i].reshape(len(delta), -1)[:, index].T
        for coefficients, const, off in ((a, c, error), (place.flat(b, SHAPE), k, missed)):
            assert (coefficients @ (x0 + delta).T + (const - off)[:, None] <= reached + 1e-12 * (1 + np.abs(reached))).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(2, 2, 0, 6), (2, 2, 0, 7), (3, 1, 1, 5), (3, 2, 1, 6), (2, 1, 0, 5)]))
def test_lines_of_max_pooling_stay_on_their_side(seed: int, how: tuple[int, int, int, int]) -> None:
    kernel, stride, pad, side = how
    rng = np.random.default_rng(seed)
    shape = (2, side, side)
    pool = MaxPool.of(shape, Sliding((kernel, kernel), (stride, stride), pads=(pad,) * 4))
    l = rng.normal(size=shape) * 10.0 ** rng.uniform(-8, 8)
    u = l + np.abs(rng.normal(size=shape)) * rng.choice([0.0, 1e-6, 1.0], shape) * np.abs(l).max()
    lines = pool.lines(l, u)
    ends = [np.where(rng.random(shape) < 0.5, l, u) for _ in range(40)]
    for x in [l, u, *ends, *(l + (u - l) * rng.random(shape) for _ in range(40))]:
        seen, y = pool.windows(x, 0.0), pool.interval(x, x)[0]
        slack = 1e-14 * (1 + np.abs(seen).max(0))
        assert ((lines.low * seen).sum(0) <= y).all()
        assert ((lines.up * seen).sum(0) + lines.up_at >= y - slack).all()
    assert (((lines.up >= 0) & (lines.up <= 1)).all(), (lines.low.sum(0) == 1).all()) == (True, True)


def test_bounds_that_are_not_finite_give_no_line() -> None:
    pool = MaxPool.of((1, 3, 3), Sliding((2, 2), (1, 1)))
    for low, high in ((-np.inf, 1.0), (-1.0, np.inf), (-np.inf, np.inf)):
        l, u = np.zeros((1, 3, 3)), np.ones((1, 3, 3))
        l[0, 1, 1], u[0, 1, 1] = low, high
        lines = pool.lines(l, u)
        assert (lines.up_at >= (np.inf if high == np.inf else 1.0) - lines.up.sum(0)).all()


def test_a_cut_image_costs_what_its_blocks_cost() -> None:
    """The numbers that one row takes do not grow with the image."""
    rng, most = np.random.default_rng(0), []
    for side in (12, 24):
        first = conv(rng, (1, side, side), 2, 3)
        second = conv(rng, first.shape, 2, 3)
        nodes = (
            Node("0", first, (-1,)),
            Node("1", Rectifier(first.shape), (0,)),
            Node("2", second, (1,)),
            Node("3", Rectifier(second.shape), (2,)),
        )
        x0 = rng.normal(size=side * side)
        doc = replace(document(NormSpec("2", None, []), x0, [box(x0, 0.5)]), shape=(1, side, side))
        bounds = Bounds(Network((1, side, side), nodes), doc, Region(doc, cell(0.5)), {}, {})
        most.append(bounds.trace(2, *block_rows(second.shape, np.arange(4), np.ones(4)))[4])
        assert bounds.trace(2, np.ones((1, *second.shape)), WHOLE)[4] == 2 * side * side
    assert most[0] == most[1]
