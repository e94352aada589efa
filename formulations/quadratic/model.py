r"""The quadratic model of a margin row, and the answer about it.

    q(δ) = m₀ + g·δ + ½ δᵀHδ          H symmetric, any signs; dense, or H = U diag(e) Uᵀ with few columns

The model is a local picture of the network, exact at δ = 0 to second order. Nothing computed from it is certified for the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import Array, Norm
from formulations.pieces import Part
from formulations.solution import Residuals
from formulations.status import Status


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """``q(δ) = m₀ + g·δ + ½ δᵀHδ``; build it with `dense` or `low_rank`.

    level m₀, gradient g (d,); `matrix` (d, d) symmetric, or None and H = vectors diag(values) vectorsᵀ with vectors (d, k), values (k,).
    """

    level: float
    gradient: Array
    matrix: Array | None
    vectors: Array
    values: Array

    @staticmethod
    def dense(level: float, gradient: ArrayLike, matrix: ArrayLike) -> QuadraticModel:
        """H as a full matrix; only its symmetric part counts. Raises InputError on shapes that do not fit and entries that are not finite."""
        g, H = np.array(gradient, dtype=float).ravel(), np.array(matrix, dtype=float)
        if H.shape != (len(g), len(g)):
            raise InputError(f"QuadraticModel: the gradient has {len(g)} entries and H the shape {H.shape}; expected ({len(g)}, {len(g)}).")
        return QuadraticModel(_finite("level", level), g, (H + H.T) / 2, np.zeros((len(g), 0)), np.zeros(0))._checked()

    @staticmethod
    def low_rank(level: float, gradient: ArrayLike, vectors: ArrayLike, values: ArrayLike) -> QuadraticModel:
        """H = U diag(e) Uᵀ; the columns of U (d, k) need not be orthonormal. Raises InputError as `dense` does."""
        g, e = np.array(gradient, dtype=float).ravel(), np.array(values, dtype=float).ravel()
        U = np.array(vectors, dtype=float).reshape(len(g), -1) if np.size(vectors) else np.zeros((len(g), 0))
        if U.shape[1] != len(e):
            raise InputError(f"QuadraticModel: {U.shape[1]} columns of U and {len(e)} values; give one value per column.")
        return QuadraticModel(_finite("level", level), g, None, U, e)._checked()

    def _checked(self) -> QuadraticModel:
        for name, v in (("gradient", self.gradient), ("matrix", self.matrix), ("vectors", self.vectors), ("values", self.values)):
            if v is not None and not np.isfinite(v).all():
                raise InputError(f"QuadraticModel: {name} has the entry {v[~np.isfinite(v)][0]}; the model must be finite.")
        return self

    @property
    def dim(self) -> int:
        return len(self.gradient)

    def curvature(self, delta: Array) -> Array:
        """Hδ for δ (…, d)."""
        v = np.asarray(delta, dtype=float)
        return v @ self.matrix if self.matrix is not None else ((v @ self.vectors) * self.values) @ self.vectors.T

    def value(self, delta: ArrayLike) -> float:
        """q(δ)."""
        v = np.asarray(delta, dtype=float)
        return float(self.level + self.gradient @ v + 0.5 * v @ self.curvature(v))

    def slope(self, delta: ArrayLike) -> Array:
        """∇q(δ) = g + Hδ."""
        v = np.asarray(delta, dtype=float)
        return self.gradient + self.curvature(v)

    def full(self) -> Array:
        """H as a (d, d) array."""
        return self.matrix if self.matrix is not None else (self.vectors * self.values) @ self.vectors.T

    @cached_property
    def eigen(self) -> tuple[Array, Array]:
        """(e (k,), V (d, k)) with H = V diag(e) Vᵀ and VᵀV = I; k = d when H is dense."""
        if self.matrix is not None:
            e, V = np.linalg.eigh(self.matrix)
            return e, V
        return orthonormal(self.vectors, self.values)

    def scaled(self, w: Array) -> QuadraticModel:
        """The model over v = diag(w) δ."""
        if self.matrix is not None:
            return QuadraticModel(self.level, self.gradient / w, self.matrix / w / w[:, None], self.vectors, self.values)
        return QuadraticModel(self.level, self.gradient / w, None, self.vectors / w[:, None], self.values)

    def __repr__(self) -> str:
        kind = "dense" if self.matrix is not None else f"rank {len(self.values)}"
        return f"QuadraticModel(level={self.level:.4g}, d={self.dim}, {kind})"


@dataclass(frozen=True, eq=False)
class QuadraticSolution:
    """min ‖Wδ‖ s.t. q(δ) ≤ 0, δ ∈ C, answered for the quadratic *model*. No number here is certified for a network.

    value        ‖Wδ‖ at `delta`, a point of C where the model has fallen: an upper bound of the model's optimum; None when none was found
    lower        dual bound of the model's optimum (up to rounding); +inf: the model cannot fall within C; 0 when no dual was computed
    delta        (d,), NaN when there is none
    multipliers  {"margin": λ (1,), constraint name: array} in the convention of `Solution`, for the norm (not its square); those of `lower`, or of the
                 restricted program for method="restriction". Those of `lower` are slopes of a global minorant of the *square*:
                 v(m₀ + t)² ≥ lower² + 2·lower·λ·t for every t (a dual of ½‖·‖² that stays admissible when levels move)
    duals        the same piece by piece
    status       OPTIMAL when value and lower agree to 1e-6 relative
    method       "s-lemma", "shor", "shor-sdp" or "restriction"; "linear" where the model has no curvature
    residuals    primal: largest violation at `delta`; dual: how far −(λ∇q + Σ…) is from the subgradients of the norm at `delta`; gap: value − lower
    """

    value: float | None
    lower: float
    delta: Array
    multipliers: dict[str, Array]
    duals: tuple[Array, ...]
    status: Status
    method: str
    residuals: Residuals
    seconds: float

    @property
    def gap(self) -> float:
        """(value − lower)/value; NaN when one side is missing."""
        if self.value is None or not np.isfinite(self.value) or not np.isfinite(self.lower):
            return float("nan")
        return (self.value - self.lower) / max(self.value, 1e-300)


def orthonormal(U: Array, e: Array) -> tuple[Array, Array]:
    """(values, V) with U diag(e) Uᵀ = V diag(values) Vᵀ, VᵀV = I: the small symmetric matrix R diag(e) Rᵀ of U = QR decides. O(dk²)."""
    if not len(e):
        return np.zeros(0), np.zeros((len(U), 0))
    Q, R = np.linalg.qr(U)
    values, S = np.linalg.eigh((R * e) @ R.T)
    return values, Q @ S


def by_name(parts: Sequence[Part], lam: float, duals: Sequence[Array]) -> dict[str, Array]:
    """Multipliers under their sets' names; a set of several pieces gets them one after the other."""
    out: dict[str, Array] = {"margin": np.array([lam])}
    for part, u in zip(parts, duals, strict=True):
        out[part.name] = np.concatenate([out[part.name], u], axis=-1) if part.name in out else u
    return out


def stationarity(norm: Norm, pull: Array, delta: Array) -> float:
    """How far −pull is from ∂‖·‖ at δ ≠ 0, which is {s : ‖s‖_* ≤ 1, s·δ = ‖δ‖}: the larger of the two violations, relative."""
    size = float(norm.value(delta))
    if size == 0:
        return max(float(norm.dual_value(pull)) - 1.0, 0.0)
    return max(float(norm.dual_value(pull)) - 1.0, abs(1.0 + float(pull @ delta) / size))


def violation(model: QuadraticModel, parts: Sequence[Part], delta: Array) -> float:
    """Largest violation of the row or a constraint at δ, each in its own units; 0 inside."""
    return max(model.value(delta), *(p.piece.violation(delta) for p in parts), 0.0)


def _finite(name: str, value: float) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise InputError(f"QuadraticModel: {name}={value} is not finite.")
    return number
