r"""The Shor dual as one semidefinite program, for every norm, up to 64 features.

    maximise γ   s.t.   [ 2(c − γ)  lᵀ ]  ⪰ 0,      multipliers ≥ 0 where signed          (Schur complement of D ≥ γ, P ⪰ 0)
                        [ l         P  ]

The objective enters as ½δᵀYδ ≤ ½‖δ‖², for a symmetric Y chosen by the program:

    p = 2      Y = W²
    p = ∞      Y = W diag(ν) W,  ν ≥ 0, Σν ≤ 1          Σν_i(w_iδ_i)² ≤ max (w_iδ_i)²
    p = 1      |Y_ij| ≤ w_i w_j                         Σ Y_ij δ_i δ_j ≤ (Σ w_i|δ_i|)²
    groups     ‖Y_gh‖₂ ≤ ω_g ω_h for every block        Σ δ_gᵀY_ghδ_h ≤ (Σ ω_g‖δ_g‖)²

The solver's multipliers are moved a little towards an interior point and evaluated again by Cholesky: that value is the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from formulations.errors import InputError
from formulations.norms import Array, GroupNorm, Norm
from formulations.pieces import Part
from formulations.quadratic.model import QuadraticModel
from formulations.quadratic.shor import Point, evaluate, start
from formulations.quadratic.terms import Terms, build
from formulations.solve import DEFAULT_SOLVER, run

LIMIT = 64
INWARD = 10.0 ** np.arange(-12.0, -1.0)  # how far towards the interior point, tried in turn until P ≻ 0


def shor_sdp(
    model: QuadraticModel, norm: Norm, parts: Sequence[Part], *, solver: str = DEFAULT_SOLVER, time_limit: float | None = None
) -> tuple[Terms, Point] | None:
    """(terms, evaluated point) of the best dual multipliers that a conic solver finds; None where it finds none.

    Raises InputError above 64 features.
    """
    if model.dim > LIMIT:
        raise InputError(
            f"Shor's semidefinite program: {model.dim} features; it takes up to {LIMIT}, use method='shor' (p=2, inf) or 'restriction'."
        )
    t = build(model, norm, parts)
    y = cp.Variable(t.count)
    top = cp.Variable()
    free_metric = norm.p == 1.0
    c, l, P = _lagrangian(t, y)
    constraints: list[Any] = [y[np.flatnonzero(t.nonneg)] >= 0]
    Y = None
    if free_metric:
        Y = cp.Variable((model.dim, model.dim), symmetric=True)
        constraints += _below_square(norm, Y, model.dim)
        N = _full(t.N) / t.unit
        p = t.p / t.unit
        P, l, c = P + N.T @ Y @ N, l + N.T @ (Y @ p), c + 0.5 * (p @ Y @ p)
    if t.nu.stop:
        constraints.append(cp.sum(y[t.nu]) <= 1)
    r = len(t.g)
    Z = cp.Variable((r + 1, r + 1), PSD=True)
    constraints += [Z[1:, 1:] == P, Z[0, 1:] == l, Z[0, 0] == 2 * (c - top)]
    for s in t.sums:
        for g in range(len(s.omega)):
            block = np.flatnonzero(s.labels == g) + s.at + 1
            constraints.append(cp.norm(y[block], 2) <= float(s.omega[g]) * y[s.at])
    run(cp.Problem(cp.Maximize(top), constraints), solver=solver, time_limit=time_limit)
    if y.value is None:
        return None
    if Y is not None:
        assert Y.value is not None
        t = _with_metric(t, _shrunk(norm, np.asarray(Y.value)))
    return _admissible(t, np.asarray(y.value), norm)


def _lagrangian(t: Terms, y: Any) -> tuple[Any, Any, Any]:
    """c, l and P as affine expressions in the multipliers (terms.py)."""
    kappa, eta = y[t.kappa], y[t.eta]
    H = t.H if t.H is not None else (t.U * t.e) @ t.U.T
    c = t.c0 + y[0] * t.m0
    l = t.l0 + y[0] * t.g
    P = (np.diag(t.P0) if t.P0.ndim == 1 else t.P0) + y[0] * H
    if len(t.square_level):
        owner = np.eye(len(t.square_level))[t.owner]  # rows of F × squares
        k = owner @ kappa
        F = t.F.dense
        c = c + 0.5 * ((t.shift**2) @ k - kappa @ t.square_level)
        l = l + F.T @ cp.multiply(t.shift, k)
        P = P + F.T @ cp.diag(k) @ F
    if len(t.h):
        c, l = c - eta @ t.h, l + t.B.dense.T @ eta
    for s in t.sums:
        c, l = c + y[s.block] @ s.e - s.rho * y[s.at], l + s.M.dense.T @ y[s.block]
    return c, l, P


def _below_square(norm: Norm, Y: Any, d: int) -> list[Any]:
    """Constraints under which ½δᵀYδ ≤ ½‖δ‖² (module docstring)."""
    if not isinstance(norm, GroupNorm):
        w = norm.scale(d)
        return [cp.abs(Y) <= np.outer(w, w)]
    assert norm.omega is not None
    return [
        cp.sigma_max(Y[np.ix_(a, b)]) <= float(norm.omega[i] * norm.omega[j])
        for i, a in enumerate(norm.groups) for j, b in enumerate(norm.groups) if i <= j
    ]  # fmt: skip


def _shrunk(norm: Norm, Y: Array) -> Array:
    """Y scaled down until it truly satisfies its constraints."""
    Y = (Y + Y.T) / 2
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        excess = max(
            float(np.linalg.norm(Y[np.ix_(a, b)], 2)) / (norm.omega[i] * norm.omega[j])
            for i, a in enumerate(norm.groups) for j, b in enumerate(norm.groups)
        )  # fmt: skip
    else:
        w = norm.scale(len(Y))
        excess = float((np.abs(Y) / np.outer(w, w)).max())
    return np.asarray(Y / max(excess * (1 + 1e-12), 1.0))


def _with_metric(t: Terms, Y: Array) -> Terms:
    N = _full(t.N) / t.unit
    p = t.p / t.unit
    return replace(t, P0=N.T @ Y @ N, l0=N.T @ (Y @ p), c0=0.5 * float(p @ Y @ p), metric=Y)


def _admissible(t: Terms, y: Array, norm: Norm) -> tuple[Terms, Point] | None:
    """The solver's multipliers brought into their cones and, by steps towards an interior point, into P ≻ 0. D is concave: short steps cost little."""
    y = np.where(t.nonneg, np.maximum(y, 0.0), y)
    for s in t.sums:
        size = np.sqrt(np.bincount(s.labels, y[s.block] ** 2, minlength=len(s.omega)))
        y[s.at] = max(y[s.at], float((size / s.omega).max(initial=0.0)) * (1 + 1e-15))
    best: tuple[Terms, Point] | None = None
    plain = t if t.metric is None else _with_metric(t, _plain_metric(norm, len(t.metric)))
    inside = start(plain).y
    for share in INWARD:
        mixed = t if t.metric is None or plain.metric is None else _with_metric(t, (1 - share) * t.metric + share * plain.metric)
        point = evaluate(mixed, (1 - share) * y + share * inside)
        if point is not None and (best is None or point.D > best[1].D):
            best = mixed, point
    return best


def _full(N: Any) -> Array:
    return np.asarray(N.toarray() if sp.issparse(N) else N)


def _plain_metric(norm: Norm, d: int) -> Array:
    """The diagonal Y that every one of these norms allows: w_i², or ω_g² throughout a group."""
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        return np.diag(norm.omega[norm.labels] ** 2)
    return np.diag(norm.scale(d) ** 2)
