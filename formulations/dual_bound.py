r"""Any multipliers give a bound: weak duality with every rounding error on the safe side.

For rows Aδ + b ≤ 0, λ ≥ 0, pieces with y_j·δ ≤ σ_j, a box lo ≤ δ ≤ hi around C, and any vector r ("what the box absorbs"):

    put  c = Aᵀλ + Σ_j y_j   and   w = r − c .   Then for every feasible δ
    w·δ  =  r·δ − Aδ·λ − Σ y_j·δ  ≥  Σ_i min(r_i lo_i, r_i hi_i) + λ·b − Σ_j σ_j  =:  L ,
    and  w·δ ≤ ‖w‖_* ‖δ‖.  So  ‖δ‖ ≥ L / ‖w‖_*  where L > 0, and with N = max(1, ‖w‖_*):   v* ≥ L / N .

No equality has to hold: r is a plain float vector, w is *defined* by the exact difference, and only ‖w‖_* carries the rounding error of c
(Neumaier–Shcherbina's idea with the norm in the place of the objective). On a coordinate without a bound on the side that r pulls to, r_i = 0.
With w = 0 (r = c) and L > 0 the rows and the set have no common point: proved infeasible.

Floating point: sums of n products are within γ_n = n u/(1 − n u) of the sum of their absolute values (Higham 2002, lemma 3.1), u = 2⁻⁵³.
The programs whose numbers these are, offsets included, are taken as exact float data; `exact_dual_bound` evaluates the same L in rationals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, CustomPiece, Part, RowsPiece, bounding_box

UNIT = 2.0**-53
TINY = 5e-324


def gamma(n: int) -> float:
    """γ_n = n u/(1 − n u), itself rounded up."""
    return n * UNIT / (1 - n * UNIT) * (1 + 4 * UNIT)


@dataclass(frozen=True, eq=False)
class DualBound:
    """A verified lower bound of min ‖δ‖: `value` (+inf: proved infeasible), what the box absorbs (`absorbed`, r), and the scale N that was divided by."""

    value: float
    absorbed: Array
    scale: float


@dataclass(frozen=True, eq=False)
class _Terms:
    """c with a componentwise error bound, λ·b − Σσ_j rounded down, and the box."""

    c: Array
    error: Array
    constant: float
    lo: Array
    hi: Array


def weak_dual_bound(
    norm: Norm,
    A: Array,
    b: Array,
    lam: Array,
    parts: tuple[Part, ...],
    duals: Sequence[Array],
    absorbed: Iterable[Array] = (),
) -> DualBound:
    """The best verified bound v* ≥ L/N that these multipliers give.

    A (K, d), b (K,), lam (K,) clipped at 0; `parts` over the change, `duals` one array per part (box multipliers (2, d); the entry of a custom
    part is ignored). `absorbed` adds candidates for r. NaN or infinite multipliers give the bound 0.
    """
    A, b = np.atleast_2d(A), np.atleast_1d(b)
    lam = np.maximum(np.nan_to_num(np.atleast_1d(lam), nan=0.0, posinf=0.0, neginf=0.0), 0.0)
    duals = [np.nan_to_num(u, nan=0.0, posinf=0.0, neginf=0.0) for u in duals]
    t = _terms(A, b, lam, parts, duals)
    empty = np.flatnonzero(t.lo > t.hi)
    if len(empty):
        return DualBound(INF, np.zeros(len(t.c)), 0.0)
    if _infeasible(t):
        return DualBound(INF, t.c, 0.0)
    best = DualBound(0.0, np.zeros(len(t.c)), 1.0)
    for r in (*_candidates(norm, t, parts, duals), *absorbed):
        found = _evaluate(norm, t, r)
        if found.value > best.value:
            best = found
    return best


def _terms(A: Array, b: Array, lam: Array, parts: tuple[Part, ...], duals: Sequence[Array]) -> _Terms:
    d = A.shape[1]
    c, size, count = A.T @ lam, np.abs(A).T @ lam, len(lam)
    constant, constant_size, constant_count = float(lam @ b), float(lam @ np.abs(b)), len(lam)
    for part, u in zip(parts, duals, strict=True):
        piece = part.piece
        if isinstance(piece, RowsPiece):
            eta = u if piece.equality else np.maximum(u, 0.0)
            c, size = c + piece.G.T @ eta, size + abs(piece.G).T @ np.abs(eta)
            constant, constant_size = constant - float(eta @ piece.h), constant_size + float(np.abs(eta) @ np.abs(piece.h))
            count, constant_count = count + len(eta), constant_count + len(eta)
        elif isinstance(piece, BallPiece):
            c, size = c + piece.M.T @ u, size + abs(piece.M).T @ np.abs(u)
            reach = float(piece.rho) * _dual_norm_up(piece.norm, np.abs(u))
            constant += float(u @ piece.e) - reach
            constant_size += float(np.abs(u) @ np.abs(piece.e)) + reach
            count, constant_count = count + len(u), constant_count + len(u) + 2
        elif isinstance(piece, CustomPiece):
            continue
    lo, hi = bounding_box(parts, d)
    error = gamma(count + len(parts) + 2) * size * (1 + 4 * UNIT) + TINY * (count + 1)
    error[size == 0] = 0.0
    low = constant - gamma(constant_count + len(parts) + 2) * constant_size * (1 + 4 * UNIT) - TINY * (constant_count + 1)
    return _Terms(c, error, float(np.nextafter(low, -INF)), lo, hi)


def _box_term(r: Array, lo: Array, hi: Array) -> float:
    """Σ_i min(r_i lo_i, r_i hi_i) rounded down; −inf where r pulls towards a missing bound."""
    with np.errstate(invalid="ignore"):
        terms = np.where(r > 0, r * lo, np.where(r < 0, r * hi, 0.0))
    total, size = float(terms.sum()), float(np.abs(terms).sum())
    if not np.isfinite(size):
        return -INF
    return total - gamma(len(r) + 2) * size * (1 + 4 * UNIT) - TINY * (len(r) + 1)


def _evaluate(norm: Norm, t: _Terms, r: Array) -> DualBound:
    L = t.constant + _box_term(r, t.lo, t.hi)
    if not L > 0:
        return DualBound(0.0, r, 1.0)
    L = float(np.nextafter(L, -INF))
    size = (np.abs(r - t.c) * (1 + 4 * UNIT) + t.error) * (1 + 4 * UNIT)
    N = max(1.0, _dual_norm_up(norm, size))
    return DualBound(float(np.nextafter(L / N, -INF)) if L > 0 else 0.0, r, N)


def _infeasible(t: _Terms) -> bool:
    """w = 0: the box absorbs all of c. Each coordinate takes the worst c in [c − error, c + error]."""
    below, above = t.c - t.error, t.c + t.error
    with np.errstate(invalid="ignore"):
        products = [np.where(s == 0, 0.0, s * bound) for s in (below, above) for bound in (t.lo, t.hi)]
    # min over c' in the interval of min(c' lo, c' hi), bilinear: attained at a corner
    terms = np.where((below == 0) & (above == 0), 0.0, np.minimum.reduce(products))
    if np.isnan(terms).any() or not np.isfinite(terms).all():
        return False
    size = float(np.abs(terms).sum())
    return t.constant + float(terms.sum()) - gamma(len(terms) + 4) * (size + abs(t.constant)) - TINY * len(terms) > 0


def _candidates(norm: Norm, t: _Terms, parts: tuple[Part, ...], duals: Sequence[Array]) -> list[Array]:
    """Choices of r. From the solver: μ_lo − μ_hi. For p = 1 the exact best: w = clip(−c, −W, W), coordinate by coordinate."""
    mu = np.zeros(len(t.c))
    for part, u in zip(parts, duals, strict=True):
        if part.piece.kind == "box":
            mu = mu + u[0] - u[1]
    out = [_towards_bounds(mu, t)]
    if not isinstance(norm, GroupNorm):
        W = norm.scale(len(t.c))
        if norm.p == 1.0:
            out.append(_towards_bounds(t.c + np.clip(-t.c, -W, W), t))
    return out


def _towards_bounds(r: Array, t: _Terms) -> Array:
    """r with zeros where it pulls towards a missing bound."""
    return np.where(((r > 0) & ~np.isfinite(t.lo)) | ((r < 0) & ~np.isfinite(t.hi)), 0.0, r)


def _dual_norm_up(norm: Norm, size: Array) -> float:
    """An upper bound of ‖w‖_* for every |w| ≤ size."""
    return float(norm.dual_value(size)) * (1 + 2 * gamma(len(size) + 8)) + TINY


def exact_dual_bound(
    norm: Norm, A: Array, b: Array, lam: Array, parts: tuple[Part, ...], duals: Sequence[Array], absorbed: Array
) -> tuple[Any, Any]:
    """(L, N²) of the same bound in exact rationals: v* ≥ L/√(max(1, N²)).

    N² is an upper bound of ‖w‖_*² (exact but for the square roots of ℓ2 constraint balls, which are rounded up to 2⁻¹²⁰ relative).
    Multipliers are taken as exact floats, λ and η clipped at 0; offsets as exact floats. Returns `flint.fmpq` numbers.
    """
    from formulations.rationals import dot, dual_norm_square, dual_norm_up, rational, transpose_times

    A, b = np.atleast_2d(A), np.atleast_1d(b)
    lam = np.maximum(np.atleast_1d(lam), 0.0)
    d = A.shape[1]
    c, L = transpose_times(A, lam, d), dot(lam, b)
    for part, u in zip(parts, duals, strict=True):
        piece = part.piece
        if isinstance(piece, RowsPiece):
            eta = u if piece.equality else np.maximum(u, 0.0)
            c, L = [x + y for x, y in zip(c, transpose_times(piece.G, eta, d), strict=True)], L - dot(eta, piece.h)
        elif isinstance(piece, BallPiece):
            c = [x + y for x, y in zip(c, transpose_times(piece.M, u, d), strict=True)]
            L = L + dot(u, piece.e) - rational(float(piece.rho)) * dual_norm_up(piece.norm, [rational(v) for v in u])
    lo, hi = bounding_box(parts, d)
    for i, r in enumerate(absorbed):
        if r != 0:
            bound = lo[i] if r > 0 else hi[i]
            if not np.isfinite(bound):
                raise InputError(f"exact_dual_bound: absorbed[{i}]={r} pulls towards a bound that does not exist; set it to 0.")
            L = L + rational(r) * rational(bound)
    w = [rational(r) - x for r, x in zip(absorbed, c, strict=True)]
    return L, dual_norm_square(norm, w)
