r"""The Lagrangian of the quadratic model over C as one quadratic in z, for any multipliers.

Write δ = p + Nz (fixed coordinates and equalities are eliminated: N spans what is left), and sum up

    objective      ½‖Wδ‖₂² at p = 2;      ½ Σ ν_i (w_iδ_i)² at p = ∞, where Σν_i ‖Wδ‖∞² ≥ Σ ν_i (w_iδ_i)²
    model          λ q(δ)
    squares        ½ κ (‖F δ + e‖² − ρ²):  a two-sided bound (δ_i − mid)² ≤ rad², a coordinate of an ℓ∞ ball, an ℓ2 ball
    rows           η (Bδ − h):             rows, one-sided bounds
    sums           u·(Mδ + e) − ρ t with ‖u_g‖ ≤ ω_g t:   ℓ1 and group balls, total variation       (u·v ≤ Σ‖u_g‖‖v_g‖ ≤ t Σω_g‖v_g‖ ≤ ρt)

Every term but the objective is ≤ 0 on {q ≤ 0} ∩ C, so with  c + l·z + ½zᵀPz  for the sum and P ≻ 0, the *Shor dual*

    D = c − ½ lᵀP⁻¹l ≤ ½v*²,   attained at z = −P⁻¹l;   ∂D/∂(multiplier) = the value of its constraint there            (Shor 1987)

For box and equality-free sets this is the dual of the semidefinite relaxation with diag(X) ≤ (lo+hi)x − lo·hi (Anstreicher 2009).
At p = ∞ multipliers with Σν = S give v*² ≥ 2D/S. Custom sets are left out: a larger set, so the bound still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import NDArray

from formulations.norms import Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, Part, RowsPiece
from formulations.quadratic.model import QuadraticModel
from formulations.quadratic.rows import Rows

Index = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sum:
    """‖Mδ + e‖ ≤ ρ with Σ_g ω_g‖·_g‖: M (k, r) over z, group of each row, variables t then u at `at`."""

    M: Rows
    e: Array
    rho: float
    labels: Index
    omega: Array
    at: int

    @property
    def block(self) -> slice:
        return slice(self.at + 1, self.at + 1 + len(self.e))


@dataclass(frozen=True, eq=False)
class Terms:
    """All terms over z, scaled so that objective and model are of size one.

    Multipliers stand in one vector y: λ, κ (one a square), η (one a row), then t and u of every sum. `nonneg` marks those that must be ≥ 0.
    p (d,), N (d, r); c0, l0 (r,), P0 (r,) a diagonal or (r, r); m0, g (r,), H (r, r) or None with U (r, k), e (k,); F (R, r) csr, shift (R,),
    owner (R,) the square of each row, square_level (squares,) ρ²; B (rows, r) csr, h (rows,), divided by row_size. `nu` is the slice of y that
    holds ν at p = ∞. Lengths are in units of `unit`, the model in units of `level`. `metric` is Y where ½δᵀYδ stands for ½‖δ‖² (sdp.py).
    """

    p: Array
    N: Any
    unit: float
    level: float
    c0: float
    l0: Array
    P0: Array
    m0: float
    g: Array
    H: Array | None
    U: Array
    e: Array
    F: Rows
    shift: Array
    owner: Index
    square_level: Array
    B: Rows
    h: Array
    row_size: Array
    nonneg: Mask
    sums: tuple[Sum, ...]
    nu: slice
    reads: tuple[Any, ...]
    metric: Array | None = None

    @property
    def count(self) -> int:
        return len(self.nonneg)

    @property
    def kappa(self) -> slice:
        return slice(1, 1 + len(self.square_level))

    @property
    def eta(self) -> slice:
        start = 1 + len(self.square_level)
        return slice(start, start + len(self.h))

    @property
    def diagonal(self) -> bool:
        """Is P a diagonal plus a few columns? Then Woodbury's identity serves."""
        return self.H is None and self.P0.ndim == 1 and self.F.single

    def assemble(self, y: Array) -> tuple[float, Array]:
        """c and l of the sum."""
        k = y[self.kappa][self.owner]
        eta = y[self.eta]
        c = self.c0 + y[0] * self.m0 + 0.5 * float(k @ self.shift**2 - y[self.kappa] @ self.square_level) - float(eta @ self.h)
        l = self.l0 + y[0] * self.g + self.F.back(k * self.shift) + self.B.back(eta)
        for s in self.sums:
            u = y[s.block]
            c, l = c + float(u @ s.e) - s.rho * y[s.at], l + s.M.back(u)
        return float(c), l

    def constraint_values(self, z: Array) -> Array:
        """∂D/∂y: the model's and every constraint's value at z (for t: −ρ)."""
        out = np.empty(self.count)
        Hz = self.H @ z if self.H is not None else self.U @ (self.e * (self.U.T @ z))
        out[0] = self.m0 + self.g @ z + 0.5 * z @ Hz
        squares = np.bincount(self.owner, (self.F.times(z) + self.shift) ** 2, minlength=len(self.square_level))
        out[self.kappa] = 0.5 * (squares - self.square_level)
        out[self.eta] = self.B.times(z) - self.h
        for s in self.sums:
            out[s.at], out[s.block] = -s.rho, s.M.times(z) + s.e
        return out

    def matrix(self, y: Array) -> Array:
        """P as a full matrix."""
        k = y[self.kappa][self.owner]
        P = np.diag(self.P0) if self.P0.ndim == 1 else self.P0.copy()
        P += y[0] * self.H if self.H is not None else (self.U * (y[0] * self.e)) @ self.U.T
        return P + self.F.gram(k)


def build(model: QuadraticModel, norm: Norm, parts: Sequence[Part]) -> Terms:
    """The terms for min ‖Wδ‖ s.t. q(δ) ≤ 0 over the parts (relative, without a batch axis).

    For p = 1 and group norms the objective is left out: the semidefinite program brings its own (sdp.py).
    """
    d, w = model.dim, norm.scale(model.dim)
    p, N, eliminated = _eliminate(parts, d)
    slope = float(norm.dual_value(model.gradient))
    unit = abs(model.level) / slope if slope > 0 and model.level else 1.0  # the linear radius: z of size one
    level = max(abs(model.level), slope * unit, 1e-300)
    N = N * unit
    r = N.shape[1]
    squares: list[tuple[Any, Array, Index, Array]] = []  # F, shift, owner within the block, ρ²
    rows: list[tuple[Any, Array]] = []
    sums: list[tuple[Any, Array, float, Index, Array]] = []
    reads: list[Any] = []

    def square(F: Any, e: Array, owner: Index, rho2: Array) -> slice:
        start = sum(len(s[3]) for s in squares)
        squares.append((sp.csr_matrix(F / unit) @ N, (e + F @ p) / unit, owner, rho2 / unit**2))
        return slice(1 + start, 1 + start + len(rho2))

    nu = slice(0, 0)
    if norm.p == np.inf:
        nu = square(sp.diags(w), np.zeros(d), np.arange(d), np.zeros(d))
    for part in parts:
        reads.append(_lower(part, p, eliminated, square, rows, sums))
    F, shift, owner, level2 = _stack_squares(squares, r)
    raw = sp.vstack([sp.csr_matrix(m) for m, _ in rows], format="csr") if rows else sp.csr_matrix((0, d))
    size = np.asarray(np.sqrt(raw.power(2).sum(1)), dtype=float).ravel() * unit
    row_size = np.where(size > 0, size, 1.0)
    B = Rows(sp.diags(1 / row_size) @ raw @ N)
    h = (np.concatenate([right for _, right in rows]) - raw @ p) / row_size if rows else np.zeros(0)
    at = 1 + len(level2) + len(h)
    placed, nonneg = [], [np.ones(at, dtype=bool)]
    for M, e, rho, labels, omega in sums:
        placed.append(Sum(Rows(sp.csr_matrix(M @ N) / unit), (e + M @ p) / unit, rho / unit, labels, omega, at))
        nonneg.append(np.r_[True, np.zeros(len(e), dtype=bool)])
        at += 1 + len(e)
    two = norm.p == 2.0
    weight = w / unit
    wp = weight * p
    narrow = sp.issparse(N) and N.nnz == r
    if not two:
        P0, l0 = np.zeros(r), np.zeros(r)
    elif narrow:
        P0, l0 = np.asarray((N.multiply(weight[:, None])).power(2).sum(0)).ravel(), np.asarray(N.T @ (weight * wp)).ravel()
    else:
        WN = N.toarray() * weight[:, None] if sp.issparse(N) else N * weight[:, None]
        P0, l0 = WN.T @ WN, WN.T @ wp
    g = np.asarray(N.T @ model.slope(p)).ravel() / level
    H = None if model.matrix is None else np.asarray(N.T @ (N.T @ model.matrix).T) / level
    U = np.asarray(N.T @ model.vectors)
    return Terms(
        p, N, unit, level, 0.5 * float(wp @ wp) if two else 0.0, l0, P0, model.value(p) / level, g, H, U, model.values / level,
        Rows(F), shift, owner, level2, B, h, row_size, np.concatenate(nonneg), tuple(placed), nu, tuple(reads),
    )  # fmt: skip


def _eliminate(parts: Sequence[Part], d: int) -> tuple[Array, Any, Mask]:
    """(p, N, fixed): δ = p + Nz satisfies every equality and every fixed coordinate; N orthonormal, a selection when nothing else is equated."""
    lo, hi = np.full(d, -np.inf), np.full(d, np.inf)
    for part in parts:
        if isinstance(part.piece, BoxPiece):
            lo, hi = np.maximum(lo, part.piece.lo), np.minimum(hi, part.piece.hi)
    fixed = lo >= hi
    p: Array = np.where(fixed, lo, 0.0)
    keep = np.flatnonzero(~fixed)
    N = sp.csc_matrix((np.ones(len(keep)), (keep, np.arange(len(keep)))), shape=(d, len(keep)))
    equal = [part.piece for part in parts if isinstance(part.piece, RowsPiece) and part.piece.equality]
    if equal and len(keep):
        E = sp.vstack([q.G for q in equal]).tocsc()
        e = np.concatenate([q.h for q in equal]) - E @ p
        free = E[:, keep].toarray()
        Q, R, _ = scipy.linalg.qr(free.T, pivoting=True)
        size = np.abs(np.diag(R))
        rank = int((size > 1e-12 * size.max(initial=0.0)).sum()) if size.max(initial=0.0) > 0 else 0
        p[keep] = np.linalg.lstsq(free, e, rcond=None)[0]
        basis = np.zeros((d, len(keep) - rank))
        basis[keep] = Q[:, rank:]
        return p, basis, fixed
    return p, N, fixed


def _lower(part: Part, p: Array, fixed: Mask, square: Any, rows: list[Any], sums: list[Any]) -> Any:
    """Adds the part's terms; returns how to find them again: (kind, where, data)."""
    piece, d = part.piece, len(p)
    if isinstance(piece, BoxPiece):
        both = np.flatnonzero(np.isfinite(piece.lo) & np.isfinite(piece.hi) & ~fixed)
        above = np.flatnonzero(~np.isfinite(piece.lo) & np.isfinite(piece.hi) & ~fixed)
        below = np.flatnonzero(np.isfinite(piece.lo) & ~np.isfinite(piece.hi) & ~fixed)
        mid, rad = (piece.lo[both] + piece.hi[both]) / 2, (piece.hi[both] - piece.lo[both]) / 2
        where = square(_pick(both, d), -mid, np.arange(len(both)), rad**2) if len(both) else slice(0, 0)
        start = sum(len(r[1]) for r in rows)
        rows.append((sp.vstack([_pick(above, d), -_pick(below, d)]), np.r_[piece.hi[above], -piece.lo[below]]))
        return ("box", where, start, both, above, below)
    if isinstance(piece, RowsPiece):
        if piece.equality:
            return ("equal",)
        start = sum(len(r[1]) for r in rows)
        rows.append((piece.G, piece.h))
        return ("rows", start, len(piece.h))
    if isinstance(piece, BallPiece):
        k, rho = piece.M.shape[0], float(piece.rho)
        group = isinstance(piece.norm, GroupNorm)
        if piece.norm.p == 1.0:
            omega = piece.norm.omega if isinstance(piece.norm, GroupNorm) else piece.norm.scale(k)
            labels = piece.norm.labels if isinstance(piece.norm, GroupNorm) else np.arange(k)
            assert omega is not None
            sums.append((piece.M, piece.e, rho, labels, omega))
            return ("sum", len(sums) - 1)
        scale = np.ones(k) if group else piece.norm.scale(k)
        one = piece.norm.p == 2.0
        owner, level = (np.zeros(k, dtype=int), np.array([rho**2])) if one else (np.arange(k), np.full(k, rho**2))
        return ("ball", square(sp.diags(scale) @ piece.M, scale * piece.e, owner, level), one, scale)
    return ("custom",)


def _pick(index: Index, d: int) -> Any:
    return sp.csr_matrix((np.ones(len(index)), (np.arange(len(index)), index)), shape=(len(index), d))


def _stack_squares(squares: list[tuple[Any, Array, Index, Array]], r: int) -> tuple[Any, Array, Index, Array]:
    if not squares:
        return sp.csr_matrix((0, r)), np.zeros(0), np.zeros(0, dtype=int), np.zeros(0)
    starts = np.cumsum([0, *(len(s[3]) for s in squares)])
    F = sp.csr_matrix(sp.vstack([sp.csr_matrix(s[0]) for s in squares]))
    owner = np.concatenate([s[2] + k for s, k in zip(squares, starts, strict=False)])
    return F, np.concatenate([s[1] for s in squares]), owner, np.concatenate([s[3] for s in squares])
