"""Slater's condition of a set: how much room one point has in all of its inequalities at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from formulations.norms import INF, GroupNorm
from formulations.pieces import BallPiece, BoxPiece, Part, RowsPiece
from formulations.solve import DEFAULT_SOLVER, Claim, run


def slater_room(parts: Sequence[Part], dim: int, *, solver: str = DEFAULT_SOLVER) -> tuple[float, bool]:
    """(room, qualified): the largest s ≤ 1 with a point that keeps s times each inequality's size free; whether the refined Slater condition holds.

    Equalities and coordinates with lo = hi take no slack. Refined (Rockafellar 1970, 28.2): affine constraints (boxes, rows, ℓ1 and ℓ∞ balls, total
    variation) need only a common point; the others need one strictly inside. Room is −inf when C has no point.
    """
    if not parts:
        return 1.0, True
    z, s, curved = cp.Variable(dim), cp.Variable(), cp.Variable()
    constraints: list[Any] = [s <= 1, curved <= 1]
    for part in parts:
        constraints += _with_room(part, z, s, curved)
    problem = cp.Problem(cp.Maximize(s), [*constraints, s <= curved])
    if run(problem, solver=solver).claim not in (Claim.OPTIMAL, Claim.INACCURATE) or s.value is None:
        return -INF, False
    room = float(s.value)
    if room > 1e-9:
        return room, True
    # no common room: room in the curved ones alone, affine ones just kept
    problem = cp.Problem(cp.Maximize(curved), [*constraints, s == 0])
    if run(problem, solver=solver).claim not in (Claim.OPTIMAL, Claim.INACCURATE) or curved.value is None:
        return (room if room >= -1e-9 else -INF), False
    return room, bool(float(curved.value) > 1e-9)


def _with_room(part: Part, z: Any, s: Any, curved: Any) -> list[Any]:
    """The part's constraints with a slack s (affine) or `curved` (others), in units of the constraint's own size."""
    piece = part.piece
    if isinstance(piece, BoxPiece):
        lo, hi = piece.lo, piece.hi
        fixed = lo == hi
        below, above = np.flatnonzero(np.isfinite(lo) & ~fixed), np.flatnonzero(np.isfinite(hi) & ~fixed)
        size = np.where(np.isfinite(hi - lo), (hi - lo) / 2, 1.0)
        out = [z[np.flatnonzero(fixed)] == lo[fixed]] if fixed.any() else []
        out += [z[below] - lo[below] >= size[below] * s] if len(below) else []
        return out + ([hi[above] - z[above] >= size[above] * s] if len(above) else [])
    if isinstance(piece, RowsPiece):
        if piece.equality:
            return [piece.G @ z == piece.h]
        size = np.asarray(np.sqrt(piece.G.power(2).sum(1)), dtype=float).ravel()
        return [piece.G @ z - piece.h + np.where(size > 0, size, 1.0) * s <= 0]
    if isinstance(piece, BallPiece):
        rho = float(piece.rho)
        affine = piece.norm.p in (1.0, INF) and not isinstance(piece.norm, GroupNorm)
        return [piece.norm.expression(piece.M @ z + piece.e) + (rho or 1.0) * (s if affine else curved) <= rho]
    return [*piece.build(z + piece.origin)]
