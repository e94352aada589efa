"""What is known of a question before any radius is asked about: the shortest and longest allowed changes, and the rows that hold on all of C."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from formulations.norms import INF
from formulations.pieces import BallPiece, bounding_box
from verification.branching.answers import Leaf, RowTree
from verification.exact.bounds import everywhere
from verification.exact.question import Question


def nearest(question: Question) -> float:
    """The norm of the point of C's boxes nearest to 0: no allowed change is shorter. 0 where x0 itself is allowed."""
    lo, hi = bounding_box(question.parts, question.dim)
    return float(question.norm.value(np.clip(0.0, lo, hi)))


def reach_of_balls(question: Question) -> float:
    """An upper bound of the norm over C, +inf where no ball ‖Mδ + e‖ ≤ ρ with M of full column rank bounds it:  |δ + M⁺e|_i ≤ ρ ‖M⁺_i‖_*."""
    far = INF
    for part in question.parts:
        if not isinstance(part.piece, BallPiece) or min(part.piece.M.shape) > 2000:
            continue
        M = part.piece.M.toarray() if sp.issparse(part.piece.M) else np.asarray(part.piece.M)
        if M.shape[0] >= M.shape[1] and np.linalg.cond(M) < 1e8:
            inverse = np.linalg.pinv(M)
            hull = np.abs(inverse @ part.piece.e) + float(part.piece.rho) * np.asarray(part.piece.norm.dual_value(inverse))
            far = min(far, float(question.norm.value(hull)) * (1 + 1e-6))  # room for the inverse's rounding
    return far


def standing_everywhere(question: Question) -> list[RowTree]:
    """Rows that interval arithmetic keeps positive on all of C need no radius, which an unbounded set would not end without."""
    q, zero = question, np.zeros((1, question.dim))
    lo, hi = bounding_box(q.parts, q.dim)
    weights = (*q.weights[:-1], q.decision.rows @ q.weights[-1])
    shifts = (*q.shifts[:-1], q.decision.rows @ q.shifts[-1] + q.decision.shifts)
    leasts = everywhere(weights, shifts, lo, hi)[1]
    return [
        RowTree(k, q.decision.rivals[k], INF, (Leaf((), zero, np.array([least]), INF, INF),)) for k, least in enumerate(leasts) if least > 0
    ]
