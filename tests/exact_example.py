"""Small networks, norms and sets for the exact search, and the truth by trying every activation pattern."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from formulations.norms import INF, GroupNorm, Norm
from formulations.programs import min_norm
from formulations.sets import Box, Ellipsoid, Frozen, LpBall, Polytope, Subspace, TotalVariation
from verification.decision import Decision
from verification.relu_chain import ReluChain

DIM = 4
_weights = np.array([0.5, 1.0, 2.0, 1.5])
_rng = np.random.default_rng(5)

NORMS = {
    "l1": Norm(1),
    "l2": Norm(2),
    "linf": Norm("inf"),
    "l1 weighted": Norm(1, _weights),
    "l2 weighted": Norm(2, _weights),
    "linf weighted": Norm("inf", _weights),
    "groups": GroupNorm([[0, 1], [2, 3]]),
}

SETS = {
    "everything": None,
    "box on input": Box(-1.0, 1.0),
    "half-line box": Box(-0.6, np.inf, on="change"),
    "rows": Polytope(np.array([[1.0, 1, 0, 0], [0, 1, -1, 1]]), [0.6, 0.4], on="change") & Box(-1, 1),
    "equalities": Polytope(None, None, equal=(np.ones((1, DIM)), [0.0]), on="change") & Box(-2, 2, on="change"),
    "frozen": Frozen([1], DIM) & Box(-1.5, 1.5, on="change"),
    "tv": TotalVariation(1.5, (DIM,)) & Box(-1.5, 1.5, on="change"),
    "tv isotropic": TotalVariation(1.5, (2, 2), isotropic=True) & Box(-1.5, 1.5, on="change"),
    "ball l1": LpBall(1, 1.2),
    "ball l2 on input": LpBall(2, 1.5, on="input"),
    "ball linf": LpBall("inf", 0.7),
    "ellipsoid": Ellipsoid(np.zeros(DIM), np.diag([1.0, 2.0, 0.5, 1.0]), 1.2),
    "subspace": Subspace(_rng.normal(size=(3, DIM))) & Box(-2, 2, on="change"),
}
LINEAR = {
    "everything",
    "box on input",
    "half-line box",
    "rows",
    "equalities",
    "frozen",
    "tv",
    "ball l1",
    "ball linf",
    "subspace",
}  # what a MILP can say


@dataclass(frozen=True, eq=False)
class Case:
    chain: ReluChain
    x0: np.ndarray
    decision: Decision


def network(seed: int, widths: tuple[int, ...], x0: np.ndarray | None = None) -> ReluChain:
    """Random weights; with x0 the last shift brings the outputs there near each other, so that flips are not far."""
    rng = np.random.default_rng(seed)
    weights = [torch.tensor(rng.normal(size=(b, a)) * 1.4 / np.sqrt(a)) for a, b in itertools.pairwise(widths)]
    chain = ReluChain(tuple(weights), tuple(torch.tensor(0.3 * rng.normal(size=b)) for b in widths[1:]))
    if x0 is None:
        return chain
    return ReluChain(chain.weights, (*chain.shifts[:-1], 2 * chain.shifts[-1] - chain(torch.tensor(x0[None]))[0]))


def case(seed: int, widths: tuple[int, ...] = (DIM, 3, 2, 3)) -> Case:
    x0 = np.random.default_rng(seed + 1000).uniform(-0.4, 0.4, widths[0])
    chain = network(seed, widths, x0)
    return Case(chain, x0, Decision.classification(int(chain(torch.tensor(x0[None])).argmax()), widths[-1]))


def truth(c: Case, norm, constraints) -> tuple[float, float]:
    """(best value, verified lower bound) of v*: the smallest of the programs of all 2^n activation patterns and all margin rows."""
    weights, shifts = [W.numpy() for W in c.chain.weights], [b.numpy() for b in c.chain.shifts]
    A, B = [], []
    for pattern in itertools.product([False, True], repeat=sum(c.chain.widths)):
        signs, rows, levels = iter(pattern), [], []
        M, v = np.eye(len(c.x0)), c.x0
        for W, b in zip(weights[:-1], shifts[:-1], strict=True):
            M, v = W @ M, W @ v + b
            on = np.array([next(signs) for _ in b])
            side = np.where(on, -1.0, 1.0)
            rows.append(side[:, None] * M)
            levels.append(side * v)
            M, v = on[:, None] * M, on * v
        M, v = weights[-1] @ M, weights[-1] @ v + shifts[-1]
        for q, s in zip(c.decision.rows, c.decision.shifts, strict=True):
            A.append(np.vstack([*rows, (q @ M)[None]]))
            B.append(np.concatenate([*levels, [q @ v + s]]))
    solved = min_norm(np.array(A), np.array(B), norm, constraints, c.x0, solver="CLARABEL")
    best = min((s.value for s in solved if s.residuals.primal <= 1e-7), default=INF)
    return float(best), float(solved.lower.min())


def scene(seed: int):
    """(case, norm name, set name): every norm and every set within 13·7 seeds."""
    norms, sets = list(NORMS), list(SETS)
    return case(seed), norms[seed % len(norms)], sets[seed % len(sets)]
