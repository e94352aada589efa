"""Pulling a solver's answer back into the set: from 1e-8 outside to within 1e-9, without moving it noticeably.

Cyclic subgradient projections: every violated constraint g(δ) ≤ 0 moves δ by −(g/‖∇g‖²)∇g, onto the half-space that its linearisation cuts out,
and boxes and equalities are projected on exactly. For convex sets every move brings δ nearer to each point of the set (Bauschke & Borwein 1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse.linalg as spla

from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, CustomPiece, Part, RowsPiece
from formulations.sets.base import FEASIBILITY

ROUNDS = 200
DENSE = 4_000_000  # entries up to which the pseudo-inverse of an equality block is kept


class PullBack:
    """Repairs points of one set; the matrices of its pieces are factorised once and shared by all inputs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._inverse: dict[int, Any] = {}
        for part in parts:
            piece = part.piece
            if isinstance(piece, RowsPiece) and piece.equality and piece.G.shape[0] * piece.G.shape[1] <= DENSE:
                self._inverse[id(piece.G)] = np.linalg.pinv(piece.G.toarray())

    def __call__(self, delta: Array, parts: Sequence[Part], anchor: Array) -> tuple[Array, float]:
        """(point, violation): a point near δ and its largest violation, which is ≤ 1e-9 unless the repair failed."""
        best, least = delta, violation(delta, parts)
        point = delta
        for _ in range(ROUNDS):
            if least <= FEASIBILITY / 2:
                return best, least
            for part in parts:
                point = self._move(point, part.piece)
            now = violation(point, parts)
            if now < least:
                best, least = point, now
        for k in range(1, 8):  # towards the anchor, which lies in the set: violations of convex constraints shrink at least in proportion
            point = anchor + (1 - 10.0 ** (k - 8)) * (best - anchor)
            now = violation(point, parts)
            if now <= FEASIBILITY:
                return point, now
        return best, least

    def _move(self, delta: Array, piece: Any) -> Array:
        if isinstance(piece, BoxPiece):
            return np.clip(delta, piece.lo, piece.hi)
        if isinstance(piece, RowsPiece):
            slack = piece.G @ delta - piece.h
            if piece.equality:
                inverse = self._inverse.get(id(piece.G))
                step = inverse @ slack if inverse is not None else spla.lsqr(piece.G, slack, atol=1e-14, btol=1e-14)[0]
                return np.asarray(delta - step)
            for i in np.flatnonzero(slack > 0):
                row = piece.G[[i]].toarray().ravel()
                excess = float(row @ delta - piece.h[i])
                if excess > 0 and row.any():
                    delta = delta - (excess + FEASIBILITY / 10) / float(row @ row) * row
            return delta
        if isinstance(piece, BallPiece):
            image = piece.M @ delta + piece.e
            excess = float(piece.norm.value(image)) - float(piece.rho)
            if excess <= 0:
                return delta
            slope = piece.M.T @ _subgradient(piece.norm, image)
            length = float(slope @ slope)
            return np.asarray(delta - (excess + FEASIBILITY / 10) / length * slope) if length > 0 else delta
        assert isinstance(piece, CustomPiece)
        return delta  # known only by its constraints: the step towards the anchor repairs it


def violation(delta: Array, parts: Sequence[Part]) -> float:
    """Largest violation of any part at δ, in each constraint's own units; −inf without parts."""
    return max((p.piece.violation(delta) for p in parts), default=-INF)


def _subgradient(norm: Norm, v: Array) -> Array:
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        lengths = norm.group_lengths(v)
        return np.asarray(v * (norm.omega / np.maximum(lengths, 1e-300))[norm.labels])
    w = norm.scale(len(v))
    if norm.p == 1.0:
        return np.asarray(w * np.sign(v))
    if norm.p == 2.0:
        return np.asarray(w * w * v / max(float(norm.value(v)), 1e-300))
    out = np.zeros(len(v))
    k = int(np.argmax(w * np.abs(v)))
    out[k] = w[k] * np.sign(v[k])
    return out
