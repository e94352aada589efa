"""The tables of the contract suites: a new set or norm joins every law with one line."""

from __future__ import annotations

from functools import lru_cache

import cvxpy as cp
import numpy as np

from formulations.norms import GroupNorm, Norm
from formulations.sets import (
    Box,
    ConvexSet,
    Ellipsoid,
    Frozen,
    LpBall,
    Polytope,
    Simplex,
    Subspace,
    TotalVariation,
)  # fmt: skip

DIM = 12
_rng = np.random.default_rng(20)
_weights = _rng.uniform(0.5, 2.0, DIM)
_groups = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10, 11]]
_rows = _rng.normal(size=(5, DIM))


class Spectral(ConvexSet):
    """A user's own set: the first six numbers as a symmetric 3×3 matrix M with −1 ⪯ M ⪯ 1, the rest in a box. A semidefinite cone."""

    on, name, dim = "change", "spectral", DIM
    _index = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])

    def constraints(self, z):
        M = sum(z[k] * (self._index == k).astype(float) for k in range(6))
        return [M << np.eye(3), M >> -np.eye(3), cp.abs(z[6:]) <= 1]


class LogSumExp(ConvexSet):
    """A user's own set: log Σ exp(z_i) ≤ 3.5 with z ≥ −1. An exponential cone."""

    on, name, dim = "change", "logsumexp", DIM

    def constraints(self, z):
        return [cp.log_sum_exp(z) <= 3.5, z >= -1]


NORMS = {
    "l1": Norm(1),
    "l2": Norm(2),
    "linf": Norm("inf"),
    "l1 weighted": Norm(1, _weights),
    "l2 weighted": Norm(2, _weights),
    "linf weighted": Norm("inf", _weights),
    "groups": GroupNorm(_groups),
    "groups weighted": GroupNorm(_groups, [1.0, 0.5, 2.0, 1.5, 1.0]),
}

SETS = {
    "box": Box(-0.5, 1.0, on="change"),
    "box on input": Box(-1.0, 2.0),
    "box with a fixed coordinate": Box(np.r_[0.0, -np.ones(DIM - 1)], np.r_[0.0, np.ones(DIM - 1)], on="change"),
    "half-line box": Box(-1.0, np.inf, on="change"),
    "ball l1": LpBall(1, 1.5),
    "ball l2": LpBall(2, 1.2),
    "ball linf": LpBall("inf", 0.7),
    "ball l1 weighted, centred": LpBall(Norm(1, _weights), 1.5, center=0.1 * _rng.normal(size=DIM)),
    "ball l2 weighted": LpBall(Norm(2, _weights), 1.5),
    "ball linf weighted": LpBall(Norm("inf", _weights), 1.5),
    "ball of groups": LpBall(GroupNorm(_groups), 1.5),
    "ball on input": LpBall(2, 2.5, on="input"),
    "tv 1-d": TotalVariation(2.0, (DIM,)) & Box(-1, 1, on="change"),
    "tv 2-d": TotalVariation(2.0, (3, 4)) & Box(-1, 1, on="change"),
    "tv channels": TotalVariation(2.0, (2, 2, 3)) & Box(-1, 1, on="change"),
    "tv isotropic": TotalVariation(2.0, (3, 4), isotropic=True) & Box(-1, 1, on="change"),
    "tv alone": TotalVariation(2.0, (3, 4)),
    "tv on input": TotalVariation(25.0, (3, 4), on="input") & Box(-3.0, 3.0),
    "polytope": Polytope(_rows, np.ones(5), on="change") & Box(-2, 2, on="change"),
    "polytope with equalities": Polytope(_rows[:3], np.ones(3), equal=(np.ones((1, DIM)), [0.0]), on="change") & LpBall("inf", 1.0),
    "polytope on input": Polytope(_rows, 6.0 * np.ones(5)) & Box(-3.0, 3.0),
    "ellipsoid": Ellipsoid(np.zeros(DIM), _rng.normal(size=(DIM, DIM)) / 3 + np.eye(DIM), 1.5),
    "flat ellipsoid": Ellipsoid(np.zeros(DIM), _rng.normal(size=(4, DIM)), 1.5, on="change") & Box(-1, 1, on="change"),
    "subspace": Subspace(_rng.normal(size=(7, DIM))) & Box(-1, 1, on="change"),
    "subspace alone": Subspace(_rng.normal(size=(7, DIM))),
    "frozen": Frozen([1, 5, 7], DIM) & Box(-1, 1, on="change"),
    "simplex": Simplex(DIM, 1.0),
    "two boxes": Box(-0.5, 2.0, on="change") & Box(-1.0, 0.6, on="change"),
    "spectral (own set)": Spectral(),
    "log-sum-exp (own set)": LogSumExp(),
}


@lru_cache
def start_for(C: ConvexSet) -> np.ndarray:
    """An input that lies in C where C is over the input."""
    x = 0.1 * np.random.default_rng(0).normal(size=DIM)
    inputs = [s for s in C.members() if s.on == "input"]
    while not all(s.contains(x) for s in inputs):  # alternating projections
        for s in inputs:
            x = s.project(x)
    return x
