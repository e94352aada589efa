r"""The min-norm program as one Clarabel problem whose data are updated in place.

    minimise ½xᵀPx + q·x   subject to   A x + s = rhs,  s ∈ K,      x = (δ, auxiliary)

This is the program of `formulations.programs` written out by hand, piece by piece, in cone form: the same answers (a test says so) without CVXPY's
share of the time. Rows enter as the first block of A, offsets only in rhs; so a new instance changes numbers, never the pattern.
Multipliers come straight from Clarabel's z ∈ K*, which obeys Px + q + Aᵀz = 0: for Gx ≤ h it is η, for (ρ, v) in a quadratic cone u = −z_v.

    objective   p=1: Σt, ±Wδ ≤ t          p=∞: t, ±Wδ ≤ t·1          p=2: ½‖Wδ‖²          groups: Σ ω_g t_g, (t_g, δ_g) ∈ Q
    ball        q=1: ±W(Mδ+e) ≤ s, Σs ≤ ρ   q=∞: ±W(Mδ+e) ≤ ρ        q=2: (ρ, W(Mδ+e)) ∈ Q   groups: Σ ω_g s_g ≤ ρ, (s_g, (Mδ+e)_g) ∈ Q
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import clarabel
import numpy as np
import scipy.sparse as sp

from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, Part, RowsPiece
from formulations.solve import Claim, solver_settings

_CLAIMS = {
    "Solved": Claim.OPTIMAL,
    "AlmostSolved": Claim.INACCURATE,
    "PrimalInfeasible": Claim.INFEASIBLE,
    "AlmostPrimalInfeasible": Claim.INFEASIBLE,
    "DualInfeasible": Claim.UNBOUNDED,
    "AlmostDualInfeasible": Claim.UNBOUNDED,
    "MaxIterations": Claim.LIMIT,
    "MaxTime": Claim.LIMIT,
    "NumericalError": Claim.FAILED,
    "InsufficientProgress": Claim.INACCURATE,
}


@dataclass(frozen=True)
class _Block:
    """Rows of A: the part on δ (m, d), the part on `aux` own auxiliary variables, the right-hand side from a piece's offsets, the cones."""

    on_delta: Any
    on_aux: Any
    rhs: Callable[[Any], Array]
    cones: tuple[Any, ...]
    read: Callable[[Array], Array]
    cost: Array


class ConeProgram:
    """Clarabel's form of ``min ‖Wδ‖ s.t. Aδ + b ≤ 0, δ ∈ C``; no custom pieces. `solve` may be called any number of times.

    The last `beside` of the `dim` coordinates are not part of the norm: they are there for the rows.
    """

    def __init__(self, norm: Norm, parts: Sequence[Part], dim: int, rows: int, beside: int = 0) -> None:
        self.dim, self.rows = dim, rows
        objective = _objective_block(norm, dim - beside)
        objective = replace(objective, on_delta=sp.hstack([objective.on_delta, sp.csc_matrix((objective.on_delta.shape[0], beside))]))
        self._blocks = [objective, *(_part_block(p.piece) for p in parts)]
        margin = sp.csc_matrix(np.ones((rows, dim)))
        aux = [b.on_aux.shape[1] for b in self._blocks]
        starts = np.concatenate([[0], np.cumsum(aux)]).astype(int)
        width = dim + int(starts[-1])
        stacked = [sp.hstack([margin, sp.csc_matrix((rows, width - dim))])]
        for k, block in enumerate(self._blocks):
            m = block.on_delta.shape[0]
            left, right = sp.csc_matrix((m, int(starts[k]))), sp.csc_matrix((m, int(starts[-1] - starts[k + 1])))
            stacked.append(sp.hstack([block.on_delta, left, block.on_aux, right]))
        self._A = sp.vstack(stacked).tocsc()
        self._A.sort_indices()
        self._margin_at = np.flatnonzero(self._A.indices < rows)  # column by column, so the order of A.T.ravel()
        self._cones = [clarabel.NonnegativeConeT(rows), *(c for b in self._blocks for c in b.cones)]
        self._q = np.concatenate([np.zeros(dim), *(b.cost for b in self._blocks)])
        square = np.zeros(dim)
        if norm.p == 2.0 and not isinstance(norm, GroupNorm):
            square[: dim - beside] = norm.scale(dim - beside) ** 2
        self._P = sp.diags(np.concatenate([square, np.zeros(width - dim)]), format="csc")
        if not square.any():
            self._P = sp.csc_matrix((width, width))
        self._solver: Any = None
        self._limit: float | None = None

    def solve(
        self, A: Array, b: Array, parts: Sequence[Part], *, time_limit: float | None = None
    ) -> tuple[Claim, Array, Array, list[Array], float]:
        """(claim, δ, λ, multipliers per part, seconds) for one instance."""
        start = time.perf_counter()
        answer = self.raw(*self.numbers(A, b, parts), time_limit=time_limit)
        x, z = np.array(answer.x), np.array(answer.z)
        duals, at = [], self.rows
        for block in self._blocks:
            m = block.on_delta.shape[0]
            duals.append(block.read(z[at : at + m]))
            at += m
        claim = _CLAIMS.get(str(answer.status), Claim.FAILED)
        return claim, x[: self.dim], np.maximum(z[: self.rows], 0.0), duals[1:], time.perf_counter() - start

    def numbers(self, A: Array, b: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
        """(A's nonzeros, right-hand side) of one instance: all that changes."""
        data = self._A.data.copy()
        data[self._margin_at] = A.T.ravel()
        pieces = [None, *(p.piece for p in parts)]
        return data, np.concatenate([-b, *(block.rhs(piece) for block, piece in zip(self._blocks, pieces, strict=True))])

    def raw(self, data: Array, rhs: Array, *, time_limit: float | None = None) -> Any:
        """Clarabel's own answer for these numbers."""
        if self._solver is None or time_limit != self._limit:
            settings = clarabel.DefaultSettings()
            settings.verbose, settings.presolve_enable = False, False
            for key, value in solver_settings("CLARABEL", time_limit).items():
                setattr(settings, key, value)
            self._A.data = data
            self._solver, self._limit = clarabel.DefaultSolver(self._P, self._q, self._A, rhs, self._cones, settings), time_limit
        else:
            self._solver.update(A=data, b=rhs)
        return self._solver.solve()


def _nonneg(n: int) -> tuple[Any, ...]:
    return (clarabel.NonnegativeConeT(n),) if n else ()


def _objective_block(norm: Norm, d: int) -> _Block:
    def nothing(z: Array) -> Array:
        return z

    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        on_delta, on_aux, cones = _group_cones(norm, -sp.identity(d, format="csr"))
        m = on_delta.shape[0]
        return _Block(on_delta, on_aux, lambda _: np.zeros(m), cones, nothing, np.asarray(norm.omega))
    if norm.p == 2.0:
        return _Block(sp.csc_matrix((0, d)), sp.csc_matrix((0, 0)), lambda _: np.zeros(0), (), nothing, np.zeros(0))
    W = sp.diags(norm.scale(d))
    t = -sp.identity(d) if norm.p == 1.0 else sp.csc_matrix(-np.ones((d, 1)))
    cost = np.ones(d if norm.p == 1.0 else 1)
    return _Block(sp.vstack([W, -W]), sp.vstack([t, t]), lambda _: np.zeros(2 * d), _nonneg(2 * d), nothing, cost)


def _part_block(piece: Any) -> _Block:
    if isinstance(piece, BoxPiece):
        return _box_block(piece)
    if isinstance(piece, RowsPiece):
        cone = clarabel.ZeroConeT if piece.equality else clarabel.NonnegativeConeT
        m = piece.G.shape[0]
        clip = (lambda z: z) if piece.equality else (lambda z: np.maximum(z, 0.0))
        return _Block(piece.G, sp.csc_matrix((m, 0)), lambda p: p.h, (cone(m),), clip, np.zeros(0))
    assert isinstance(piece, BallPiece)
    return _ball_block(piece)


def _box_block(piece: BoxPiece) -> _Block:
    lo, hi = np.atleast_2d(piece.lo), np.atleast_2d(piece.hi)
    d = piece.dim
    fixed = np.flatnonzero((lo == hi).all(0))
    below = np.setdiff1d(np.flatnonzero(np.isfinite(lo).any(0)), fixed)
    above = np.setdiff1d(np.flatnonzero(np.isfinite(hi).any(0)), fixed)
    eye = sp.identity(d, format="csr")
    cones = ((clarabel.ZeroConeT(len(fixed)),) if len(fixed) else ()) + _nonneg(len(below) + len(above))

    def read(z: Array) -> Array:
        mu, f = np.zeros((2, d)), len(fixed)
        mu[0, fixed], mu[1, fixed] = np.maximum(-z[:f], 0), np.maximum(z[:f], 0)
        mu[0, below], mu[1, above] = np.maximum(z[f : f + len(below)], 0), np.maximum(z[f + len(below) :], 0)
        return mu

    rows = sp.vstack([eye[fixed], -eye[below], eye[above]])
    return _Block(
        rows,
        sp.csc_matrix((rows.shape[0], 0)),
        lambda p: np.concatenate([p.hi[fixed], -p.lo[below], p.hi[above]]),
        cones,
        read,
        np.zeros(0),
    )


def _ball_block(piece: BallPiece) -> _Block:
    norm, (k, d) = piece.norm, piece.M.shape
    if isinstance(norm, GroupNorm):
        on_delta, on_aux, cones = _group_cones(norm, -piece.M)
        order = np.concatenate([np.concatenate([[-1], g]) for g in norm.groups])
        inside = order >= 0
        total = sp.csr_matrix(np.asarray(norm.omega)[None, :])

        def rhs_group(p: BallPiece) -> Array:
            out = np.zeros(len(order) + 1)
            out[:-1][inside], out[-1] = p.e[order[inside]], float(p.rho)
            return out

        def read_group(z: Array) -> Array:
            u = np.zeros(k)
            u[order[inside]] = -z[:-1][inside]
            return u

        rows = sp.vstack([on_delta, sp.csr_matrix((1, d))])
        return _Block(
            rows, sp.vstack([on_aux, total]), rhs_group, (*cones, clarabel.NonnegativeConeT(1)), read_group, np.zeros(len(norm.groups))
        )
    w = norm.scale(k)
    WM = sp.diags(w) @ piece.M
    if norm.p == 2.0:
        return _Block(
            sp.vstack([sp.csr_matrix((1, d)), -WM]), sp.csc_matrix((k + 1, 0)), lambda p: np.concatenate([[float(p.rho)], w * p.e]),
            (clarabel.SecondOrderConeT(k + 1),), lambda z: -w * z[1:], np.zeros(0),
        )  # fmt: skip
    if norm.p == INF:
        return _Block(
            sp.vstack([WM, -WM]), sp.csc_matrix((2 * k, 0)), lambda p: np.concatenate([float(p.rho) - w * p.e, float(p.rho) + w * p.e]),
            _nonneg(2 * k), lambda z: w * (z[:k] - z[k:]), np.zeros(0),
        )  # fmt: skip
    eye = sp.identity(k)
    aux = sp.vstack([-eye, -eye, sp.csr_matrix(np.ones((1, k)))])
    return _Block(
        sp.vstack([WM, -WM, sp.csr_matrix((1, d))]), aux, lambda p: np.concatenate([-w * p.e, w * p.e, [float(p.rho)]]),
        _nonneg(2 * k + 1), lambda z: w * (z[:k] - z[k : 2 * k]), np.zeros(k),
    )  # fmt: skip


def _group_cones(norm: GroupNorm, minus_M: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Rows (−t_g, −(Mδ)_g) for every group, in order; auxiliary t (groups)."""
    groups, (_, d) = norm.groups, minus_M.shape
    left = sp.vstack([sp.vstack([sp.csr_matrix((1, d)), minus_M[g]]) for g in groups])
    heads = np.cumsum([0] + [len(g) + 1 for g in groups[:-1]])
    right = sp.csr_matrix((-np.ones(len(groups)), (heads, np.arange(len(groups)))), shape=(left.shape[0], len(groups)))
    return left, right, tuple(clarabel.SecondOrderConeT(len(g) + 1) for g in groups)
