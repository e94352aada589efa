r"""The radius of one margin row as a mixed-integer program, solved by HiGHS: the reference that region searches are compared with.

    minimise t   s.t.   t ≥ ‖Wδ‖ (p = 1 or ∞, as rows),   δ ∈ C (boxes, rows, equalities, ℓ1 and ℓ∞ balls of linear maps),
    z_l = W_l h_{l−1} + β_l,   h = z where l ≥ 0,   h = 0 where u ≤ 0,   and where l < 0 < u, with a ∈ {0, 1}
    h ≥ 0,   h ≥ z,   h ≤ u a,   h ≤ z − l (1 − a)                                      (Tjeng, Xiao, Tedrake 2019)

HiGHS keeps rows to 1e-9 and integrality to 1e-9 here, in floating point and without a proof: its dual bound is a number to compare with, not a certificate.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import Bounds as VariableBounds
from scipy.optimize import LinearConstraint, milp

from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, Part, RowsPiece
from verification.exact.bounds import Bounds
from verification.exact.question import Question

Index = NDArray[np.intp]
TOLERANCE = 1e-9  # asked of HiGHS for rows and integrality
MARGIN = 1e-6  # what is taken off its bound before it is called a lower bound: MARGIN · max(1, bound)


@dataclass(frozen=True, eq=False)
class RowAnswer:
    """bound: the solver's dual bound of t (+inf: it claims that nothing flips within the cap). delta (d,): its incumbent, NaN without one. done: did it end?"""

    bound: float
    delta: Array
    done: bool
    nodes: int


def is_polyhedral(norm: Norm, parts: tuple[Part, ...]) -> bool:
    """Can norm and set be written with linear rows?"""
    return _linear(norm) and all(
        isinstance(p.piece, BoxPiece | RowsPiece) or (isinstance(p.piece, BallPiece) and _linear(p.piece.norm)) for p in parts
    )


def smallest_change(question: Question, row: int, bounds: Bounds, cap: float, time_limit: float | None) -> RowAnswer:
    """The program of one margin row with ‖Wδ‖ ≤ cap (finite), for pre-activation bounds that hold there."""
    program = _Program()
    delta = program.columns(question.dim)
    t = _norm_rows(program, question, delta, cap)
    for part in question.parts:
        _piece_rows(program, part.piece, delta)
    h = delta  # columns of the values that enter a layer; −1: zero
    for layer in range(question.depth):
        h = _layer_rows(program, question.weights[layer], question.shifts[layer], bounds.lower[layer], bounds.upper[layer], h)
    direction, const = question.margin_row(row)
    program.rows([(direction[None], h)], -INF, np.array([-const]))
    return program.minimise(t, question.dim, time_limit)


def _linear(norm: Norm) -> bool:
    return norm.p in (1.0, INF) and not isinstance(norm, GroupNorm)


class _Program:
    """Columns and rows of a mixed-integer program, collected block by block."""

    def __init__(self) -> None:
        self._lo: list[Array] = []
        self._hi: list[Array] = []
        self._integer: list[Array] = []
        self._blocks: list[list[tuple[Any, Index]]] = []
        self._below: list[Array] = []
        self._above: list[Array] = []
        self.width = 0

    def columns(self, count: int, lo: Array | float = -INF, hi: Array | float = INF, *, integer: bool = False) -> Index:
        """Numbers of new columns."""
        self._lo.append(np.broadcast_to(np.asarray(lo, dtype=float), count))
        self._hi.append(np.broadcast_to(np.asarray(hi, dtype=float), count))
        self._integer.append(np.full(count, float(integer)))
        self.width += count
        return np.arange(self.width - count, self.width)

    def rows(self, terms: list[tuple[Any, Index]], below: Array | float, above: Array | float) -> None:
        """below ≤ Σ M x[columns] ≤ above; a column −1 stands for zero."""
        count = terms[0][0].shape[0]
        self._blocks.append(terms)
        self._below.append(np.broadcast_to(np.asarray(below, dtype=float), count))
        self._above.append(np.broadcast_to(np.asarray(above, dtype=float), count))

    def minimise(self, t: Index, dim: int, time_limit: float | None) -> RowAnswer:
        """Minimises the sum of the columns t; δ is in the first `dim` columns."""
        cost = np.zeros(self.width)
        cost[t] = 1.0
        A = sp.vstack([sum((self._placed(M, at) for M, at in terms[1:]), self._placed(*terms[0])) for terms in self._blocks], format="csc")
        options: dict[str, Any] = {"mip_rel_gap": 0.0, "mip_abs_gap": 1e-10, "mip_feasibility_tolerance": TOLERANCE, "primal_feasibility_tolerance": TOLERANCE,
                   "dual_feasibility_tolerance": TOLERANCE} | ({} if time_limit is None else {"time_limit": time_limit})  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "unrecognized options … passed to HiGHS verbatim": that is what is wanted
            answer = milp(
                cost, integrality=np.concatenate(self._integer), bounds=VariableBounds(np.concatenate(self._lo), np.concatenate(self._hi)),
                constraints=LinearConstraint(A, np.concatenate(self._below), np.concatenate(self._above)), options=options,
            )  # fmt: skip
        delta = np.full(dim, np.nan) if answer.x is None else np.asarray(answer.x[:dim], dtype=float)
        nodes = int(getattr(answer, "mip_node_count", 0) or 0)
        if answer.status == 2:
            return RowAnswer(INF, delta, True, nodes)
        bound = getattr(answer, "mip_dual_bound", None)
        if bound is None and answer.status == 0:  # no column was integer
            bound = answer.fun
        value = 0.0 if bound is None or not np.isfinite(bound) else max(float(bound), 0.0)
        return RowAnswer(value, delta, answer.status == 0, nodes)

    def _placed(self, M: Any, columns: Index) -> Any:
        M = sp.coo_matrix(M)
        keep = columns[M.col] >= 0
        return sp.csr_matrix((M.data[keep], (M.row[keep], columns[M.col][keep])), shape=(M.shape[0], self.width))


def _norm_rows(program: _Program, question: Question, delta: Index, cap: float) -> Index:
    """Columns whose sum is ‖Wδ‖ at the optimum."""
    w, d = question.norm.scale(question.dim), question.dim
    t = program.columns(d if question.norm.p == 1.0 else 1, 0.0, cap)
    W, spread = sp.diags(w), sp.identity(d) if question.norm.p == 1.0 else np.ones((d, 1))
    program.rows([(W, delta), (-spread, t)], -INF, 0.0)
    program.rows([(-W, delta), (-spread, t)], -INF, 0.0)
    program.rows([(np.ones((1, len(t))), t)], -INF, cap)
    return t


def _piece_rows(program: _Program, piece: Any, delta: Index) -> None:
    if isinstance(piece, BoxPiece):
        program.rows([(sp.identity(piece.dim), delta)], piece.lo, piece.hi)
    elif isinstance(piece, RowsPiece):
        program.rows([(piece.G, delta)], piece.h if piece.equality else -INF, piece.h)
    elif isinstance(piece, BallPiece):
        k, rho = piece.M.shape[0], float(piece.rho)
        WM, e = sp.diags(piece.norm.scale(k)) @ piece.M, piece.norm.scale(k) * piece.e
        if piece.norm.p == INF:
            program.rows([(WM, delta)], -rho - e, rho - e)
            return
        s = program.columns(k, 0.0)
        program.rows([(WM, delta), (-sp.identity(k), s)], -INF, -e)
        program.rows([(-WM, delta), (-sp.identity(k), s)], -INF, e)
        program.rows([(np.ones((1, k)), s)], -INF, rho)


def _layer_rows(program: _Program, W: Array, shift: Array, l: Array, u: Array, h: Index) -> Index:
    """Columns of relu(W h + shift), −1 where it is zero."""
    use, out = np.flatnonzero(u > 0), np.full(len(shift), -1)
    on, free = l[use] >= 0, l[use] < 0
    z = program.columns(len(use), l[use], u[use])
    program.rows([(W[use], h), (-sp.identity(len(use)), z)], -shift[use], -shift[use])
    out[use[on]] = z[on]
    count = int(free.sum())
    if count:
        low, high, z, eye = l[use][free], u[use][free], z[free], sp.identity(count)
        v, a = program.columns(count, 0.0, high), program.columns(count, 0.0, 1.0, integer=True)
        program.rows([(eye, z), (-eye, v)], -INF, 0.0)
        program.rows([(eye, v), (sp.diags(-high), a)], -INF, 0.0)
        program.rows([(eye, v), (-eye, z), (sp.diags(-low), a)], -INF, -low)
        out[use[free]] = v
    return out
