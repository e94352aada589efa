r"""Points of a certified region { δ ∈ C : N(δ) < lower }, aimed at flipping the decision.

Every point is pulled towards x0 until it lies in C (convex, and x0 is in it) and is shorter than `lower`. A point whose float64 margin is not positive is
settled in ball arithmetic: it counts only when it lies in C and is shorter than `lower`, exactly (equalities: to 1e-11), and the real-valued network flips
there for certain. What float64 alone says is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from formulations.norms import Array, Norm
from formulations.pieces import BallPiece, BoxPiece, Piece, RowsPiece, bounding_box
from formulations.programs import relative_parts
from formulations.sets import ConvexSet
from lde_cvx.campaign.networks import Random
from verification.attack import Budget, find_witness
from verification.checking.document import Document
from verification.checking.parts import distance, excess
from verification.checking.rationals import exact
from verification.decision import Decision
from verification.rechecking.graph import Network
from verification.rechecking.outputs import narrowed, points

NEARLY = 1 - 1e-9  # of `lower`: how long an attacked change may be
WIDE = 3.0  # an unreachable decision without a bounded set is attacked within this many units
STEPS = 12
EQUAL = 1e-11  # how far from an equality a point of a float64 attack may lie


@dataclass(frozen=True, eq=False)
class Attacked:
    """tried: the changes (n, d); least: the smallest float64 margin; unsound: inputs where the claim is false for certain; rounding: flips of float64 alone."""

    tried: Array
    least: float
    unsound: tuple[Array, ...]
    rounding: int


class Ground:
    """The set, the norm and the length to which changes are attacked."""

    def __init__(self, x0: Array, norm: Norm, C: ConvexSet | None, lower: float) -> None:
        self.x0, self.norm, self.dim = x0, norm, x0.size
        parts = relative_parts(C, self.dim, x0.reshape(1, -1), 1)
        self.pieces: list[Piece] = [p.at(0).piece for p in parts]
        self.lo, self.hi = bounding_box(tuple(p.at(0) for p in parts), self.dim)
        size = np.maximum(np.abs(self.lo), np.abs(self.hi))
        widest = float(norm.value(np.where(np.isfinite(size), size, WIDE)))
        self.reach = min(lower * NEARLY, widest) if math.isfinite(lower) else widest
        equal = [p.G.toarray() for p in self.pieces if isinstance(p, RowsPiece) and p.equality]
        self.plane = None if not equal else np.eye(self.dim) - np.linalg.pinv(np.vstack(equal)) @ np.vstack(equal)

    def pulled(self, deltas: Array) -> Array:
        """Every change shortened towards 0 until it lies in C and within reach; where there are no equalities it is clipped to the box first."""
        deltas = np.clip(deltas, self.lo, self.hi) if self.plane is None else deltas @ self.plane
        length = self.norm.value(deltas)[:, None]
        deltas = deltas * np.minimum(1.0, self.reach / np.maximum(length, 1e-300))
        low, high = np.zeros((len(deltas), 1)), np.ones((len(deltas), 1))
        outside = self._outside(deltas)
        if not outside.any():
            return deltas
        for _ in range(40):
            middle = (low + high) / 2
            out = self._outside(deltas * middle)[:, None]
            low, high = np.where(out, low, middle), np.where(out, middle, high)
        return np.where(outside[:, None], low * deltas, deltas)

    def _outside(self, deltas: Array) -> Any:
        return np.max([_violation(p, deltas) for p in self.pieces], axis=0) > 0 if self.pieces else np.zeros(len(deltas), dtype=bool)


def _violation(piece: Piece, deltas: Array) -> Array:
    """By how much each row (n, d) leaves a piece."""
    if isinstance(piece, BoxPiece):
        out: Array = np.maximum(piece.lo - deltas, deltas - piece.hi).max(1)
    elif isinstance(piece, RowsPiece):
        slack = (piece.G @ deltas.T).T - piece.h
        out = (np.abs(slack) - EQUAL / 4 if piece.equality else slack).max(1)
    elif isinstance(piece, BallPiece):
        out = piece.norm.value((piece.M @ deltas.T).T + piece.e) - piece.rho
    else:
        out = np.array([piece.violation(d) for d in deltas])
    return out


def attack(
    net: nn.Module, network: Network, doc: Document, ground: Ground, C: ConvexSet | None, decision: Decision, count: int, rng: Random, *, search: bool = True
) -> Attacked:  # fmt: skip
    """Tries `count` points by chance and half as many again for each gradient step, inside the region that the document's `lower` certifies.

    `search`: the witness search as well, from other starts than the certificate's.
    """
    if not ground.reach > 0:
        return Attacked(np.zeros((0, ground.dim)), math.inf, (), 0)
    best, flips, tried = math.inf, list[Array](), list[Array]()
    deltas = ground.pulled(_by_chance(rng, ground.dim, count, ground.norm) * ground.reach)
    for _ in range(STEPS + 1):
        value, gradient = _margins(net, ground.x0, deltas, decision)
        best = min(best, float(np.min(value)))
        flips += [d for d, v in zip(deltas, value, strict=True) if not v > 0]
        tried.append(deltas)
        worst = np.argsort(value)[: max(8, count // 8)]
        g = gradient[worst]
        kept = np.argsort(np.argsort(-np.abs(g), axis=1), axis=1) < rng.choice([1, 2, 3, ground.dim], (len(worst), 1))
        step = _unit(g * kept, ground.norm) * ground.reach * 2.0 ** rng.uniform(-4, 1.5, (len(worst), 1))
        start = deltas[worst] * (rng.random((len(worst), 1)) < 0.7)
        deltas = ground.pulled(np.where(rng.random((len(worst), 1)) < 0.8, start - step, -np.sign(g) * ground.reach))
    flips += _searched(net, ground, C, decision) if search else []
    unsound = tuple(ground.x0.ravel() + d for d in flips[:50] if refuted(doc, network, ground.x0.ravel() + d))
    return Attacked(np.concatenate(tried), best, unsound, len(flips) - len(unsound))


def refuted(doc: Document, network: Network, z: Array) -> bool:
    """Is z in C and nearer than `lower`, exactly, and does the real-valued network flip there for certain?"""
    told = z.tolist()
    delta, inputs = [exact(a) - exact(b) for a, b in zip(told, doc.x0, strict=True)], [exact(v) for v in told]
    for part in doc.parts:
        if part.kind != "custom" and excess(part, inputs if part.on == "input" else delta) > exact(
            EQUAL if part.kind == "equalities" else 0.0
        ):
            return False
    if doc.lower != math.inf and distance(doc, told) >= exact(doc.lower):
        return False
    return flips_for_certain(doc, network, told)


def flips_for_certain(doc: Document, network: Network, z: Sequence[float]) -> bool:
    point = narrowed(network, points(replace(doc, witness=list(z), witness_outputs=doc.outputs), network)[1])
    return any(point.margin(q, s)[1] <= 0 for q, s in zip(doc.rows, doc.shifts, strict=True))


def _margins(net: nn.Module, x0: Array, deltas: Array, decision: Decision) -> tuple[Array, Array]:
    """(smallest float64 margins (n,), their gradients (n, d))."""
    with torch.enable_grad():
        d = torch.as_tensor(deltas).requires_grad_(True)
        y = net(torch.as_tensor(x0)[None] + d.reshape(-1, *x0.shape))
        m = (y @ torch.as_tensor(decision.rows).T + torch.as_tensor(decision.shifts)).amin(1)
        (gradient,) = torch.autograd.grad(m.sum(), d)
    return m.detach().numpy(), np.nan_to_num(gradient.numpy())


def _by_chance(rng: Random, d: int, count: int, norm: Norm) -> Array:
    """Directions of length one or less: dense, sparse and corners, most of them of length one."""
    v = rng.normal(size=(count, d)) * (rng.random((count, d)) < rng.choice([0.2, 0.6, 1.0], (count, 1)))
    v = np.where(rng.random((count, 1)) < 0.3, np.sign(v), v)
    v[(v == 0).all(1), int(rng.integers(d))] = 1.0
    length = np.where(rng.random((count, 1)) < 0.7, 1.0, rng.random((count, 1)))
    return _unit(v, norm) * length


def _unit(v: Array, norm: Norm) -> Array:
    out: Array = v / (np.asarray(norm.value(v))[:, None] + 1e-300)
    return out


def _searched(net: nn.Module, ground: Ground, C: ConvexSet | None, decision: Decision) -> list[Array]:
    """The witness search with another seed; what it finds counts when it lies in the region."""
    found = find_witness(net, ground.x0[None], ground.norm, C, decisions=decision, seed=1, budget=Budget(seconds=1.0))
    return [np.asarray(found[0].delta).ravel()] if float(found.upper[0]) <= ground.reach else []
