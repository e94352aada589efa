r"""KKT diagnosis: what is active at a solution, and when its multipliers may be read as prices.

At (δ, λ, u) of  min ‖Wδ‖ s.t. rows g_k(δ) ≤ 0, δ ∈ C:

    stationarity        −(Σ λ_k∇g_k + Σ K_jᵀu_j) ∈ ∂‖·‖(δ) = {s : ‖s‖_* ≤ 1, s·δ = ‖δ‖}
    complementarity     multiplier · slack = 0;  *strict* where an active constraint has a multiplier > 0
    uniqueness of λ_k   ∇g_k outside the span of: the other active gradients, the faces of the active balls' normal cones, and the directions in which
                        ∂‖·‖(δ) extends (coordinates with δ_i = 0 at p = 1, ties of the largest at p = ∞). Then no other λ_k solves the KKT system.
    Slater              a point with room to spare in every constraint that is not affine; then multipliers exist, and they are bounded

A multiplier is a *slope* of a global minorant of the optimum in every case (formulations/prices.py: weak duality needs none of this). It is the
*derivative*, the price that one more unit really costs on either side, exactly where it is unique: the optimum is convex in a row's level, and its
subdifferential there is the set of all λ that solve the KKT system (Rockafellar 1970, 29.1). A weakly active constraint only makes λ change at once.
For a nonlinear row (a `QuadraticModel`) the KKT system is only necessary: the Lagrangian's Hessian must be positive on the tangent space too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, CustomPiece, Part, RowsPiece
from formulations.quadratic.model import QuadraticModel, stationarity
from formulations.quadratic.multipliers import pulled
from formulations.slater import slater_room

Mask = NDArray[np.bool_]


class PriceFlag(Enum):
    """Why λ may not be read as a price. The value is the advice."""

    NO_POINT = "There is no solution to price: the program is infeasible or unsolved."
    NOT_STATIONARY = (
        "The KKT residual is large: the multipliers belong to another point, or the solver stopped early. Solve again, more accurately."
    )
    NOT_UNIQUE = "Several λ solve the KKT system (degenerate): the price differs to the left and right; use one_sided_prices."
    WEAKLY_ACTIVE = (
        "A constraint is active at no price: one more unit of some level switches the active set, so prices hold on one side only."
    )
    NO_SLATER = "The set has no interior point in its curved constraints: multipliers may not exist or be unbounded. Loosen a radius."
    CUSTOM_SET = "A set known only by its CVXPY constraints is left out of the diagnosis: its multipliers are the solver's word."
    SADDLE = "The row curves so that the point is no local minimum along the boundary: λ prices a point that slides away."


class Solved(Protocol):
    """What is diagnosed: a `Solution` or a `QuadraticSolution`."""

    @property
    def delta(self) -> Array: ...
    @property
    def multipliers(self) -> dict[str, Array]: ...
    @property
    def duals(self) -> tuple[Array, ...]: ...


@dataclass(frozen=True, eq=False)
class KktDiagnosis:
    """Residuals, active set and flags of one solution.

    stationarity      distance of −(Σ…) from ∂‖·‖(δ), relative; primal: largest violation; negative: most negative multiplier that must be ≥ 0 (as ≥ 0);
    complementarity   largest multiplier·slack, relative to ‖δ‖
    active            {constraint name: indices of its active levels}; boxes index lower bounds 0…d−1 and upper ones d…2d−1; balls [0]
    weakly_active     the same, of those whose multiplier is negligible
    independence      per margin row, the part of its gradient outside the span of everything else that may move, relative; 0: λ is not unique
    room              largest slack (in units of each constraint's size, at most 1) that one point of C has in all inequalities at once; NaN when not asked
    qualified         Slater's condition in its refined form: C has a point, strictly inside its constraints that are not affine
    bend              ½δᵀHδ/m₀: the part of the margin that curvature makes up along the step; 0 for linear rows, None without a level
    tangent_curvature smallest eigenvalue of the Lagrangian's Hessian on the tangent space, times ‖δ‖ (p = 2 and a quadratic row alone, else None)
    flags             why λ is no price, and notes; without any, and with notes alone, λ is the derivative of the optimum in the row's level
    """

    stationarity: float
    primal: float
    negative: float
    complementarity: float
    active: dict[str, NDArray[np.intp]]
    weakly_active: dict[str, NDArray[np.intp]]
    independence: Array
    room: float
    qualified: bool | None
    bend: float | None
    tangent_curvature: float | None
    flags: tuple[PriceFlag, ...]

    @property
    def is_price(self) -> bool:
        """May λ be read as a price, the same on both sides?"""
        return all(flag is PriceFlag.WEAKLY_ACTIVE for flag in self.flags)

    @property
    def degenerate(self) -> bool:
        return PriceFlag.NOT_UNIQUE in self.flags or PriceFlag.WEAKLY_ACTIVE in self.flags


def diagnose(
    solution: Solved, norm: Norm | float | str, A: Array | QuadraticModel, b: Array | float | None, parts: Sequence[Part], *,
    tolerance: float = 1e-5, slater: bool = True,
) -> KktDiagnosis:  # fmt: skip
    """The diagnosis of a solved program: rows ``A δ + b ≤ 0`` (A (K, d) or (d,)), or ``q(δ) ≤ 0`` with a `QuadraticModel` for A and no b; parts over the change.

    `tolerance`, relative, decides what is active and what is zero; `slater` False saves the one solve that looks for an interior point.
    Raises InputError when rows and multipliers do not fit.
    """
    norm, delta = Norm.of(norm), solution.delta
    lam = np.atleast_1d(np.asarray(solution.multipliers["margin"], dtype=float))
    if not np.isfinite(delta).all() or not np.isfinite(lam).all():
        nothing: dict[str, NDArray[np.intp]] = {}
        return KktDiagnosis(INF, INF, 0.0, INF, nothing, nothing, np.zeros(len(lam)), float("nan"), None, None, None, (PriceFlag.NO_POINT,))
    rows, values = _rows(A, b, delta)
    if len(lam) != len(rows):
        raise InputError(f"diagnose: {len(rows)} margin rows and {len(lam)} multipliers; give the rows that were solved.")
    duals = tuple(u if np.size(u) or isinstance(p.piece, CustomPiece) else _zeros(p) for p, u in zip(parts, solution.duals, strict=True))
    look = _Look(norm, delta, tolerance, lam)
    look.rows("margin", -values, lam, np.abs(rows).sum(1) * look.reach + np.abs(values))
    for part, u in zip(parts, duals, strict=True):
        look.part(part, u)
    pull = lam @ rows + sum(
        (pulled(p.piece, u) for p, u in zip(parts, duals, strict=True) if np.size(u) and not isinstance(p.piece, CustomPiece)),
        np.zeros(len(delta)),
    )
    still = stationarity(norm, pull, delta)
    primal = max(float(values.max(initial=0.0)), *(p.piece.violation(delta) for p in parts), 0.0)
    independence = _independence(norm, delta, rows, look)
    room, qualified = slater_room(parts, len(delta)) if slater else (float("nan"), None)
    bend, tangent = _curvature(A, norm, delta, float(lam[0]), look) if isinstance(A, QuadraticModel) else (0.0, None)
    flags = []
    if still > 100 * tolerance or primal > tolerance * (1 + look.reach) or look.negative > tolerance * look.price:
        flags.append(PriceFlag.NOT_STATIONARY)
    if (independence[lam > tolerance * lam.max(initial=0.0)] <= tolerance).any():
        flags.append(PriceFlag.NOT_UNIQUE)
    if any(len(v) for v in look.weak.values()):
        flags.append(PriceFlag.WEAKLY_ACTIVE)
    if qualified is False:
        flags.append(PriceFlag.NO_SLATER)
    if any(isinstance(p.piece, CustomPiece) for p in parts):
        flags.append(PriceFlag.CUSTOM_SET)
    if tangent is not None and tangent <= -tolerance:
        flags.append(PriceFlag.SADDLE)
    return KktDiagnosis(
        still, primal, look.negative, look.complementarity, look.active, look.weak, independence, room, qualified, bend, tangent, tuple(flags)
    )  # fmt: skip


class _Look:
    """Walks over the constraints, collecting what is active; `pinned` coordinates and `columns` span where multipliers other than the rows' may move."""

    def __init__(self, norm: Norm, delta: Array, tolerance: float, lam: Array) -> None:
        self.delta, self.tolerance = delta, tolerance
        self.reach = float(np.abs(delta).max(initial=0.0))
        self.size = max(float(norm.value(delta)), 1e-300)
        self.price = max(float(lam.max(initial=0.0)), 1e-300)
        self.active: dict[str, NDArray[np.intp]] = {}
        self.weak: dict[str, NDArray[np.intp]] = {}
        self.negative, self.complementarity = 0.0, 0.0
        self.pinned: Mask = np.zeros(len(delta), dtype=bool)
        self.columns: list[Array] = []
        self.row_active: Mask = np.zeros(len(lam), dtype=bool)

    def note(self, name: str, slack: Array, multiplier: Array, size: Array, offset: int = 0) -> Mask:
        """Which levels are active; records them, and those without a price. A multiplier counts when it moves ‖δ‖ by tolerance·‖δ‖ over the level's size."""
        active = slack <= self.tolerance * (size + 1e-300)
        weak = active & (np.abs(multiplier) * size <= self.tolerance * self.size)
        self.active[name] = np.concatenate([self.active.get(name, np.zeros(0, dtype=np.intp)), np.flatnonzero(active) + offset])
        self.weak[name] = np.concatenate([self.weak.get(name, np.zeros(0, dtype=np.intp)), np.flatnonzero(weak) + offset])
        self.negative = max(self.negative, float(-multiplier.min(initial=0.0)))
        finite = np.isfinite(slack)
        self.complementarity = max(
            self.complementarity, float(np.abs(multiplier * np.where(finite, slack, 0.0)).max(initial=0.0)) / self.size
        )
        return np.asarray(active)

    def rows(self, name: str, slack: Array, multiplier: Array, size: Array) -> None:
        self.row_active = self.note(name, slack, multiplier, size)

    def part(self, part: Part, u: Array) -> None:
        piece, delta = part.piece, self.delta
        if isinstance(piece, BoxPiece):
            fixed = piece.lo >= piece.hi
            span = np.where(np.isfinite(piece.hi - piece.lo), piece.hi - piece.lo, 1.0 + np.abs(delta))
            low = self.note(part.name, np.where(fixed, INF, delta - piece.lo), np.where(fixed, 0.0, u[0]), span)
            high = self.note(part.name, np.where(fixed, INF, piece.hi - delta), np.where(fixed, 0.0, u[1]), span, len(delta))
            self.pinned |= low | high | fixed
        elif isinstance(piece, RowsPiece) and piece.equality:
            self.columns += list(np.asarray(piece.G.toarray()))
            self.active[part.name] = np.arange(len(piece.h))
            self.weak.setdefault(part.name, np.zeros(0, dtype=np.intp))
        elif isinstance(piece, RowsPiece):
            G = np.asarray(piece.G.toarray())
            size = np.abs(G) @ np.abs(delta) + np.abs(piece.h)
            self.columns += list(G[self.note(part.name, piece.h - piece.G @ delta, u, size)])
        elif isinstance(piece, BallPiece):
            price = np.array([float(piece.norm.dual_value(u))])
            slack = np.array([float(piece.rho) - float(piece.norm.value(piece.M @ delta + piece.e))])
            if self.note(part.name, slack, price, np.array([max(float(piece.rho), 1e-300)]))[0]:
                self.columns += _face(piece, piece.M @ delta + piece.e, self.tolerance)


def _face(piece: BallPiece, v: Array, tolerance: float) -> list[Array]:
    """Columns Mᵀd over the directions d in which the multiplier of an active ball may move: the span of its normal cone at v."""
    direction, free = _subgradients(piece.norm, v, tolerance)
    return [np.asarray(piece.M.T @ d).ravel() for d in (*direction, *free)]


def _subgradients(norm: Norm, v: Array, tolerance: float) -> tuple[list[Array], list[Array]]:
    """One subgradient of the norm at v, and a basis of the directions in which the subdifferential extends from it."""
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        lengths = norm.group_lengths(v)
        zero = lengths <= tolerance * lengths.max(initial=0.0)
        one = v * (norm.omega / np.maximum(lengths, 1e-300))[norm.labels] * ~zero[norm.labels]
        return [one], [np.eye(len(v))[i] for i in np.flatnonzero(zero[norm.labels])]
    w = norm.scale(len(v))
    x = w * v
    top = float(np.abs(x).max(initial=0.0))
    if norm.p == 2.0:
        return [w * x / max(float(np.linalg.norm(x)), 1e-300)], []
    if norm.p == 1.0:
        zero = np.abs(x) <= tolerance * top
        return [np.where(zero, 0.0, w * np.sign(x))], [np.eye(len(v))[i] for i in np.flatnonzero(zero)]
    tied = np.flatnonzero(np.abs(x) >= (1 - tolerance) * top)
    corners = [w[i] * np.sign(x[i]) * np.eye(len(v))[i] for i in tied]
    return [corners[0]], [c - corners[0] for c in corners[1:]]


def _independence(norm: Norm, delta: Array, rows: Array, look: _Look) -> Array:
    """For every row, ‖its gradient minus the best combination of all other movable directions‖/‖gradient‖; 1 where the row is not active."""
    if isinstance(norm, GroupNorm) or norm.p == 1.0:  # whole coordinates: no need for columns
        x = norm.group_lengths(delta)[norm.labels] if isinstance(norm, GroupNorm) else np.abs(norm.scale(len(delta)) * delta)
        pinned, columns = look.pinned | (x <= look.tolerance * x.max(initial=0.0)), look.columns
    else:
        pinned, columns = look.pinned, look.columns + _subgradients(norm, delta, look.tolerance)[1]
    free = ~pinned
    scale = 1 / norm.scale(len(delta))
    out = np.ones(len(rows))
    for k in np.flatnonzero(look.row_active):
        others = list(columns) + [rows[j] for j in np.flatnonzero(look.row_active) if j != k]
        a = (rows[k] * scale)[free]
        whole = max(float(np.linalg.norm(rows[k] * scale)), 1e-300)
        if len(others) and free.any():
            span = np.stack([(c * scale)[free] for c in others], 1)
            a = a - span @ np.linalg.lstsq(span, a, rcond=1e-9)[0]
        out[k] = float(np.linalg.norm(a)) / whole
    return out


def _curvature(model: QuadraticModel, norm: Norm, delta: Array, lam: float, look: _Look) -> tuple[float | None, float | None]:
    """(bend, smallest eigenvalue of ∇²L·‖δ‖ on the tangent space of what is active) at p = 2; ∇²L = W²/v − (W²δ)(W²δ)ᵀ/v³ + λH."""
    bend = 0.5 * float(delta @ model.curvature(delta)) / model.level if model.level else None
    if norm.p != 2.0 or isinstance(norm, GroupNorm):
        return bend, None
    free = np.flatnonzero(~look.pinned)
    if not len(free):
        return bend, None
    w = norm.scale(len(delta))
    v = look.size
    touching = [*look.columns, model.slope(delta)]
    Q, R = np.linalg.qr(np.stack([c[free] for c in touching], 1), mode="complete")
    rank = int((np.abs(np.diag(R)) > 1e-10 * np.abs(R).max(initial=0.0)).sum())
    T = Q[:, rank:]
    if not T.shape[1]:
        return bend, None
    inner = (w * w * delta)[free] @ T
    L = (T.T * (w[free] ** 2)) @ T / v - np.outer(inner, inner) / v**3
    L += lam * (T.T @ _rows_of(model, free) @ T)
    return bend, float(np.linalg.eigvalsh(L)[0]) * v


def _rows_of(model: QuadraticModel, free: NDArray[np.intp]) -> Array:
    if model.matrix is not None:
        return np.asarray(model.matrix[np.ix_(free, free)])
    return np.asarray((model.vectors[free] * model.values) @ model.vectors[free].T)


def _rows(A: Array | QuadraticModel, b: Array | float | None, delta: Array) -> tuple[Array, Array]:
    """(gradients (K, d), values (K,)) of the margin rows at δ."""
    if isinstance(A, QuadraticModel):
        return A.slope(delta)[None], np.array([A.value(delta)])
    if b is None:
        raise InputError("diagnose: b is missing; linear rows are A δ + b ≤ 0.")
    rows = np.atleast_2d(np.asarray(A, dtype=float))
    return rows, rows @ delta + np.atleast_1d(np.asarray(b, dtype=float))


def _zeros(part: Part) -> Array:
    return np.zeros(part.piece.multiplier_shape)
