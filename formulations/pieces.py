r"""The pieces that every convex set lowers to.

A set C over the change δ ∈ R^d is the intersection of pieces, and each piece can do four things: stand in a program, hand back its
multipliers, turn *any* multipliers into a linear bound that holds on it, and measure a violation.

    Box    lo ≤ δ ≤ hi                                    multipliers (2, d) ≥ 0 (lower, upper)
    Rows   G δ ≤ h   or   G δ = h                          multipliers η (m,), ≥ 0 or free
    Ball   ‖M δ + e‖ ≤ ρ                                   multipliers u (k,), free
    Custom whatever `constraints(δ)` says                  multipliers as CVXPY returns them; no bound of its own

`dual(u)` returns (y, σ) with  y·δ ≤ σ  for every δ in the piece:

    Rows:  y = Gᵀη, σ = η·h           since η ≥ 0 and Gδ ≤ h
    Ball:  y = Mᵀu, σ = ρ‖u‖_* − u·e   since u·(Mδ+e) ≤ ‖u‖_*‖Mδ+e‖ ≤ ρ‖u‖_*

A Box absorbs residuals instead (formulations/dual_bound.py). Offsets (lo, hi, h, e, ρ) may carry a leading batch axis (n, ·); matrices are shared.
A piece written over the input z = x0 + δ becomes one over δ by `shifted(x0)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from formulations.norms import INF, Array, GroupNorm, Norm

Offsets = dict[str, Any]


@dataclass(frozen=True)
class PieceModel:
    """A piece inside a program: its CVXPY constraints, and how to read its multipliers once solved (λ ≥ 0 convention, `+ multiplier·g`)."""

    constraints: list[Any]
    read: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class BoxPiece:
    """lo ≤ δ ≤ hi; entries may be infinite."""

    lo: Array
    hi: Array
    kind = "box"

    @property
    def dim(self) -> int:
        return int(self.lo.shape[-1])

    @property
    def multiplier_shape(self) -> tuple[int, ...]:
        return (2, self.dim)

    def shifted(self, x0: Array) -> BoxPiece:
        return BoxPiece(self.lo - x0, self.hi - x0)

    def offsets(self) -> Offsets:
        return {"lo": self.lo, "hi": self.hi}

    def at(self, i: int) -> BoxPiece:
        return BoxPiece(_at(self.lo, i, 1), _at(self.hi, i, 1))

    def model(self, delta: Any, given: Offsets) -> PieceModel:
        lo, hi = np.atleast_2d(self.lo), np.atleast_2d(self.hi)
        fixed = np.flatnonzero((lo == hi).all(0))  # an equality, so that the pair of inequalities has no unbounded multipliers
        below = np.setdiff1d(np.flatnonzero(np.isfinite(lo).any(0)), fixed)
        above = np.setdiff1d(np.flatnonzero(np.isfinite(hi).any(0)), fixed)
        rows = [
            (given["lo"][below] - delta[below] <= 0) if len(below) else None,
            (delta[above] - given["hi"][above] <= 0) if len(above) else None,
            (delta[fixed] - given["hi"][fixed] == 0) if len(fixed) else None,
        ]

        def read() -> Array:
            mu = np.zeros((2, self.dim))
            if rows[0] is not None:
                mu[0, below] = np.maximum(_dual(rows[0]), 0)
            if rows[1] is not None:
                mu[1, above] = np.maximum(_dual(rows[1]), 0)
            if rows[2] is not None:
                nu = _dual(rows[2])
                mu[0, fixed], mu[1, fixed] = np.maximum(-nu, 0), np.maximum(nu, 0)
            return mu

        return PieceModel([r for r in rows if r is not None], read)

    def violation(self, delta: Array) -> float:
        return float(max(np.max(self.lo - delta, initial=-INF), np.max(delta - self.hi, initial=-INF)))


@dataclass(frozen=True, eq=False)
class RowsPiece:
    """G δ ≤ h, or G δ = h when `equality`. G is sparse (m, d)."""

    G: Any
    h: Array
    equality: bool = False

    @property
    def kind(self) -> str:
        return "equalities" if self.equality else "rows"

    @property
    def dim(self) -> int:
        return int(self.G.shape[1])

    @property
    def multiplier_shape(self) -> tuple[int, ...]:
        return (int(self.G.shape[0]),)

    def shifted(self, x0: Array) -> RowsPiece:
        return replace(self, h=self.h - (self.G @ x0.T).T)

    def offsets(self) -> Offsets:
        return {"h": self.h}

    def at(self, i: int) -> RowsPiece:
        return replace(self, h=_at(self.h, i, 1))

    def model(self, delta: Any, given: Offsets) -> PieceModel:
        row = (self.G @ delta - given["h"] == 0) if self.equality else (self.G @ delta - given["h"] <= 0)
        return PieceModel([row], lambda: _dual(row) if self.equality else np.maximum(_dual(row), 0))

    def dual(self, u: Array) -> tuple[Array, float]:
        eta = u if self.equality else np.maximum(u, 0)
        return self.G.T @ eta, float(eta @ self.h)

    def violation(self, delta: Array) -> float:
        slack = self.G @ delta - self.h
        return float(np.max(np.abs(slack) if self.equality else slack, initial=-INF))


@dataclass(frozen=True, eq=False)
class BallPiece:
    """‖M δ + e‖ ≤ ρ in `norm` (any `Norm`, group norms included); M is sparse (k, d)."""

    M: Any
    e: Array
    rho: Any
    norm: Norm
    kind = "ball"

    @property
    def dim(self) -> int:
        return int(self.M.shape[1])

    @property
    def multiplier_shape(self) -> tuple[int, ...]:
        return (int(self.M.shape[0]),)

    def shifted(self, x0: Array) -> BallPiece:
        return replace(self, e=self.e + (self.M @ x0.T).T)

    def offsets(self) -> Offsets:
        return {"e": self.e, "rho": np.asarray(self.rho, dtype=float)}

    def at(self, i: int) -> BallPiece:
        return replace(self, e=_at(self.e, i, 1), rho=_at(np.asarray(self.rho, dtype=float), i, 0))

    def model(self, delta: Any, given: Offsets) -> PieceModel:
        image, rho = self.M @ delta + given["e"], given["rho"]
        k = self.M.shape[0]
        if isinstance(self.norm, GroupNorm):
            assert self.norm.omega is not None
            t = cp.Variable(len(self.norm.groups))
            cones = [cp.SOC(t[j], image[g]) for j, g in enumerate(self.norm.groups)]
            total = self.norm.omega @ t - rho <= 0

            def read_group() -> Array:
                u = np.zeros(k)
                for c, g in zip(cones, self.norm.groups, strict=True):  # type: ignore[attr-defined]
                    u[g] = -np.ravel(c.dual_value[1])  # the cone's Lagrangian term is −(dual)·(t, x)
                return u

            return PieceModel([*cones, total], read_group)
        scaled = image if self.norm.weights is None else cp.multiply(self.norm.scale(k), image)
        w = self.norm.scale(k)
        if self.norm.p == 2.0:
            cone = cp.SOC(rho, scaled)
            return PieceModel([cone], lambda: -w * np.ravel(cone.dual_value[1]))
        if self.norm.p == 1.0:
            s = cp.Variable(k)
            up, down, total1 = scaled - s <= 0, -scaled - s <= 0, cp.sum(s) - rho <= 0
            return PieceModel([up, down, total1], lambda: w * (_dual(up) - _dual(down)))
        up, down = scaled - rho <= 0, -scaled - rho <= 0
        return PieceModel([up, down], lambda: w * (_dual(up) - _dual(down)))

    def hull(self) -> Array | None:
        """Half-widths of a box around −e that holds the ball when M is the identity (|v_i| w_i ≤ ‖v‖ in every norm here), else None."""
        k, d = self.M.shape
        if k != d or self.M.nnz != d or abs(self.M - identity(d)).nnz:
            return None
        if isinstance(self.norm, GroupNorm):
            assert self.norm.omega is not None
            return np.nextafter(np.asarray(self.rho)[..., None] / self.norm.omega[self.norm.labels], INF)
        return np.nextafter(np.asarray(self.rho)[..., None] / self.norm.scale(d), INF)

    def dual(self, u: Array) -> tuple[Array, float]:
        return self.M.T @ u, float(self.rho) * float(self.norm.dual_value(u)) - float(u @ self.e)

    def violation(self, delta: Array) -> float:
        return float(self.norm.value(self.M @ delta + self.e)) - float(self.rho)


@dataclass(frozen=True, eq=False)
class CustomPiece:
    """A user's set, known only by its CVXPY constraints on z = origin + δ. It shapes the primal; verified bounds leave it out (a larger set, so still valid)."""

    build: Callable[[Any], list[Any]]
    dim: int
    origin: Array = field(default_factory=lambda: np.zeros(1))
    kind = "custom"

    @property
    def multiplier_shape(self) -> tuple[int, ...]:
        return (-1,)

    def shifted(self, x0: Array) -> CustomPiece:
        return replace(self, origin=self.origin + x0)

    def offsets(self) -> Offsets:
        return {"origin": np.broadcast_to(self.origin, (*np.shape(self.origin)[:-1], self.dim))}

    def at(self, i: int) -> CustomPiece:
        return replace(self, origin=_at(self.origin, i, 1))

    def model(self, delta: Any, given: Offsets) -> PieceModel:
        rows = list(self.build(delta + given["origin"]))
        return PieceModel(rows, lambda: np.concatenate([np.ravel(_dual(c)) for c in rows] or [np.zeros(0)]))

    def violation(self, delta: Array) -> float:
        z = cp.Constant(np.asarray(delta) + self.origin)
        return float(max([np.max(c.violation(), initial=-INF) for c in self.build(z)], default=-INF))


Piece = BoxPiece | RowsPiece | BallPiece | CustomPiece


@dataclass(frozen=True, eq=False)
class Part:
    """A piece with the name of the set it came from, over the change (`relative`) or still over the input."""

    name: str
    piece: Piece
    on: str

    def relative_to(self, x0: Array) -> Part:
        """The same part over δ = z − x0; x0 (d,) or a batch (n, d)."""
        return self if self.on == "change" else Part(self.name, self.piece.shifted(x0), "change")

    def at(self, i: int) -> Part:
        """Instance i of a batch."""
        return replace(self, piece=self.piece.at(i))


def bounding_box(parts: tuple[Part, ...], dim: int) -> tuple[Array, Array]:
    """A box around the intersection: Box pieces and the hulls of plain balls (M = identity), rounded outward.

    Returns (lo, hi), each (d,) or (n, d), ±inf where no piece bounds a coordinate.
    """
    lo, hi = np.full(dim, -INF), np.full(dim, INF)
    for part in parts:
        if isinstance(part.piece, BoxPiece):
            lo, hi = np.maximum(lo, part.piece.lo), np.minimum(hi, part.piece.hi)
        elif isinstance(part.piece, BallPiece) and (reach := part.piece.hull()) is not None:
            below, above = np.nextafter(-part.piece.e - reach, -INF), np.nextafter(-part.piece.e + reach, INF)
            lo, hi = np.maximum(lo, below), np.minimum(hi, above)
    return lo, hi


def identity(dim: int) -> Any:
    return sp.identity(dim, format="csr")


def _at(v: Array, i: int, event_dims: int) -> Any:
    return v[i] if np.ndim(v) > event_dims else v


def _dual(constraint: Any) -> Array:
    value = constraint.dual_value
    if isinstance(value, list):
        return np.concatenate([np.ravel(v) for v in value])
    return np.zeros(constraint.size) if value is None else np.asarray(value, dtype=float).ravel()
