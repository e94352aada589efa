r"""Between the dual's variables y (terms.py) and multipliers of the norm, part by part, in the convention of `Solution.duals`.

The dual works on ½‖·‖²/unit² and q/level. With s = S·v (S = Σν at p = ∞, else 1; v the bound),

    λ_norm = y₀ unit²/(level s)      κ_norm = κ/s      η_norm = η unit²/(row size · s)      u_norm = u unit/s

A two-sided bound has the term ½κ(δ−lo)(δ−hi); its multipliers are the slopes of the bound in its two levels, −∂/∂hi = ½κ(δ−lo), ∂/∂lo = ½κ(hi−δ).
Equalities and fixed coordinates were eliminated; they take what is left of ∇L = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from formulations.norms import Array, Norm
from formulations.pieces import BallPiece, BoxPiece, Part, Piece, RowsPiece
from formulations.quadratic.model import QuadraticModel
from formulations.quadratic.terms import Terms


def read_multipliers(
    t: Terms, y: Array, z: Array, model: QuadraticModel, norm: Norm, parts: Sequence[Part], lower: float
) -> tuple[float, tuple[Array, ...]]:
    """(λ, one array per part) of the norm, from the dual's y and the minimiser z of the Lagrangian there; `lower` is the bound."""
    delta = t.p + np.asarray(t.N @ z).ravel()
    share = 1.0 / (max(lower, 1e-300) * _total(t, y))
    lam = float(y[0]) * share * t.unit**2 / t.level
    w = norm.scale(len(delta))
    slope = t.metric @ delta if t.metric is not None else w * w * delta * (y[t.nu] if t.nu.stop else 1.0)
    pull = slope * share + lam * model.slope(delta)
    found: list[Array | None] = []
    for part, read in zip(parts, t.reads, strict=True):
        u = _read(part.piece, read, t, y * share, delta)
        pull = pull + (np.zeros(len(delta)) if u is None else pulled(part.piece, u))
        found.append(u)
    _share(parts, pull, delta, found)
    return lam, tuple(np.zeros(0) if u is None else u for u in found)


def write_multipliers(
    t: Terms, lam: float, duals: Sequence[Array], delta: Array, value: float, model: QuadraticModel, norm: Norm, parts: Sequence[Part]
) -> Array:
    """The dual's y from multipliers of a min-norm program (its solution δ of length `value`): where a climb may start. P ≻ 0 is not promised."""
    y = np.zeros(t.count)
    y[0] = lam * value * t.level / t.unit**2
    pull = lam * model.gradient
    for part, read, u in zip(parts, t.reads, duals, strict=True):
        piece = part.piece
        if u.size:
            pull = pull + pulled(piece, u)
        v = u * value
        if isinstance(piece, BoxPiece):
            _, where, start, both, above, below = read
            y[where] = 2 * np.maximum(v[0], v[1])[both] / np.maximum((piece.hi - piece.lo)[both], 1e-300)
            eta = y[t.eta]
            eta[start : start + len(above)] = v[1, above]
            eta[start + len(above) : start + len(above) + len(below)] = v[0, below]
            eta[start : start + len(above) + len(below)] *= t.row_size[start : start + len(above) + len(below)] / t.unit**2
        elif isinstance(piece, RowsPiece) and not piece.equality:
            here = slice(t.eta.start + read[1], t.eta.start + read[1] + read[2])
            y[here] = v * t.row_size[read[1] : read[1] + read[2]] / t.unit**2
        elif isinstance(piece, BallPiece) and read[0] == "sum":
            s = t.sums[read[1]]
            y[s.block] = v / t.unit
            size = np.sqrt(np.bincount(s.labels, y[s.block] ** 2, minlength=len(s.omega)))
            y[s.at] = float((size / s.omega).max(initial=0.0))
        elif isinstance(piece, BallPiece):
            _, where, one, scale = read
            image = scale * (piece.M @ delta + piece.e)
            y[where] = (
                np.linalg.norm(v / scale) / max(float(np.linalg.norm(image)), 1e-300)
                if one
                else np.abs(v / scale) / max(float(piece.rho), 1e-300)
            )
    if t.nu.stop:  # subgradient of max|w_iδ_i|: Σ_i ν_i sgn(δ_i) w_i e_i with Σν = 1
        y[t.nu] = np.abs(pull) / norm.scale(len(delta))
        y[t.nu] = (y[t.nu] + 1e-3 / len(delta)) / max(float(y[t.nu].sum()) + 1e-3, 1e-300)
    return y


def pulled(piece: Piece, u: Array) -> Array:
    """The gradient in δ of (multiplier)·(constraint): Mᵀu, Gᵀη, μ⁺ − μ⁻; 0 for a custom set."""
    if isinstance(piece, BoxPiece):
        return np.asarray(u[1] - u[0])
    if isinstance(piece, RowsPiece):
        return np.asarray(piece.G.T @ u)
    return np.asarray(piece.M.T @ u) if isinstance(piece, BallPiece) else np.zeros(piece.dim)


def _total(t: Terms, y: Array) -> float:
    return float(y[t.nu].sum()) if t.nu.stop else 1.0


def _read(piece: Piece, read: Any, t: Terms, y: Array, delta: Array) -> Array | None:
    eta = y[t.eta] * t.unit**2 / t.row_size
    if isinstance(piece, BoxPiece):
        _, where, start, both, above, below = read
        u = np.zeros((2, len(delta)))
        kappa = y[where]
        u[0, both], u[1, both] = kappa / 2 * (piece.hi - delta)[both], kappa / 2 * (delta - piece.lo)[both]
        u[1, above] = eta[start : start + len(above)]
        u[0, below] = eta[start + len(above) : start + len(above) + len(below)]
        return np.asarray(np.maximum(u, 0.0))
    if isinstance(piece, RowsPiece):
        return None if piece.equality else np.asarray(eta[read[1] : read[1] + read[2]])
    if isinstance(piece, BallPiece):
        if read[0] == "sum":
            return np.asarray(y[t.sums[read[1]].block] * t.unit)
        _, where, _, scale = read
        return np.asarray(y[where] * scale * scale * (piece.M @ delta + piece.e))
    return None


def _share(parts: Sequence[Part], pull: Array, delta: Array, found: list[Array | None]) -> None:
    """Free multipliers of equalities, and those of coordinates that boxes hold fixed, from ∇L = 0 by least squares; in place."""
    equal = [(i, part.piece) for i, part in enumerate(parts) if isinstance(part.piece, RowsPiece) and part.piece.equality]
    boxes = [(i, part.piece) for i, part in enumerate(parts) if isinstance(part.piece, BoxPiece)]
    lo, hi = np.full(len(pull), -np.inf), np.full(len(pull), np.inf)
    for _, box in boxes:
        lo, hi = np.maximum(lo, box.lo), np.minimum(hi, box.hi)
    fixed = lo >= hi
    if equal:
        E = sp.vstack([q.G for _, q in equal]).toarray()
        nu = np.linalg.lstsq(E[:, ~fixed].T, -pull[~fixed], rcond=None)[0] if (~fixed).any() else np.zeros(len(E))
        pull = pull + E.T @ nu
        for i, q in equal:
            found[i], nu = nu[: len(q.h)], nu[len(q.h) :]
    left = np.where(fixed, pull, 0.0)
    for i, box in boxes:  # the first box whose bound is met takes the whole of it
        u = found[i]
        assert u is not None
        up, down = fixed & (box.hi <= delta) & (left < 0), fixed & (box.lo >= delta) & (left > 0)
        u[1, up], u[0, down] = -left[up], left[down]
        left[up | down] = 0.0
