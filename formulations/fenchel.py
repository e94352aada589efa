r"""The min-norm program seen by Fenchel: conjugates instead of a Lagrangian.

    primal   min_δ  ‖δ‖ + Σ_j I_{S_j}(K_j δ)            S_0 = {v : v ≤ −b} with K_0 = A, one (K_j, S_j) for every piece of C
    dual     max_y  −Σ_j σ_{S_j}(y_j)   s.t.  ‖Σ_j K_jᵀ y_j‖_* ≤ 1                                             (Rockafellar 1970, 31.2)

for the conjugate of a norm is the indicator of its dual ball, that of an indicator I_S the support function σ_S:

    S                      σ_S(y)                               K
    v ≤ −b                 −y·b,        y ≥ 0                   A           y = λ
    v ≤ h   (v = h)        y·h,         y ≥ 0 (free)            G           y = η
    lo ≤ v ≤ hi            Σ max(y_i lo_i, y_i hi_i)            I           y = μ⁺ − μ⁻
    ‖v + e‖ ≤ ρ            ρ‖y‖_* − y·e                         M           y = u       (total variation: M = D, p = 1, or groups)

Term by term this is the Lagrange dual of `min_norm` (formulations/dual_bound.py), so values agree and `weak_dual_bound` verifies either's multipliers.
What it adds is the other road: only projections on S_j and the proximal operator of the norm are needed, never a cone solver.
`splitting` is that road: ADMM in graph form (Parikh & Boyd 2014), over-relaxed, one Cholesky factorisation of I + KᵀK. `conic` hands the dual to CVXPY.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import ArrayLike

from formulations.dual_bound import weak_dual_bound
from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, CustomPiece, Part, RowsPiece
from formulations.programs import relative_parts
from formulations.prox import project_ball, prox_norm
from formulations.quadratic.model import by_name
from formulations.sets.base import ConvexSet
from formulations.solve import DEFAULT_SOLVER, run

CHECK = 25  # iterations between two looks at the verified gap


@dataclass(frozen=True, eq=False)
class FenchelSolution:
    """The conjugate dual solved. value: ‖δ‖ at `delta`, which violates constraints by `violation`; dual: −Σσ at the multipliers, scaled into the dual
    ball; lower: the verified bound from the same multipliers; +inf in both where a ray proves that there is no point."""

    value: float
    dual: float
    lower: float
    delta: Array
    multipliers: dict[str, Array]
    duals: tuple[Array, ...]
    violation: float
    iterations: int

    @property
    def gap(self) -> float:
        return (self.value - self.lower) / max(1.0, self.value) if np.isfinite(self.value) else float("nan")


@dataclass(frozen=True, eq=False)
class _Block:
    """One (K_j, S_j): `project` on S_j, `support` σ_{S_j} of an admissible y, `admit` y into the domain of σ_{S_j}, `cost` σ as a CVXPY expression."""

    K: Any
    project: Callable[[Array], Array]
    support: Callable[[Array], float]
    admit: Callable[[Array], Array]
    cost: Callable[[Any], tuple[Any, list[Any]]]


def fenchel_min_norm(
    a: ArrayLike,
    b: ArrayLike,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    x0: ArrayLike | None = None,
    *,
    method: str = "splitting",
    tolerance: float = 1e-8,
    iterations: int = 20_000,
    solver: str = DEFAULT_SOLVER,
) -> FenchelSolution:
    """``min ‖δ‖ s.t. Aδ + b ≤ 0, δ ∈ C`` through its conjugate dual; one program: a (d,) or (K, d), b () or (K,), x0 (d,).

    `method` "splitting" (projections and a prox; stops at a verified relative gap and violation of `tolerance`) or "conic" (CVXPY).
    Raises InputError on custom sets (no projection or support function is known), shapes that do not fit, and another method.
    """
    norm = Norm.of(norm)
    A, B = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_1d(np.asarray(b, dtype=float))
    if B.shape != (len(A),) or not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise InputError(f"fenchel_min_norm: a has shape {A.shape} and b {B.shape}; give finite rows, and one entry of b for each.")
    if method not in ("splitting", "conic"):
        raise InputError(f"fenchel_min_norm: method={method!r} is not one of splitting, conic.")
    parts = tuple(p.at(0) for p in relative_parts(constraints, A.shape[1], x0))
    norm.scale(A.shape[1])
    custom = next((p for p in parts if isinstance(p.piece, CustomPiece)), None)
    if custom is not None:
        raise InputError(f"fenchel_min_norm: the set '{custom.name}' is known only by its CVXPY constraints; use min_norm.")
    blocks = [_margin_block(A, B), *(_block(p) for p in parts)]
    solve = _splitting if method == "splitting" else _conic
    return solve(norm, A, B, parts, blocks, tolerance, iterations, solver)


# ---- the blocks -------------------------------------------------------------------------------------------------------------


def _margin_block(A: Array, b: Array) -> _Block:
    return _Block(
        sp.csr_matrix(A), lambda v: np.minimum(v, -b), lambda y: -float(y @ b), lambda y: np.maximum(y, 0.0), lambda y: (-(y @ b), [y >= 0])
    )


def _block(part: Part) -> _Block:
    piece = part.piece
    if isinstance(piece, RowsPiece):
        h = piece.h
        if piece.equality:
            return _Block(piece.G, lambda v: h, lambda y: float(y @ h), lambda y: y, lambda y: (y @ h, []))
        return _Block(
            piece.G, lambda v: np.minimum(v, h), lambda y: float(y @ h), lambda y: np.maximum(y, 0.0), lambda y: (y @ h, [y >= 0])
        )
    if isinstance(piece, BoxPiece):
        return _box_block(piece.lo, piece.hi)
    assert isinstance(piece, BallPiece)
    e, rho, norm = piece.e, float(piece.rho), piece.norm
    return _Block(
        piece.M,
        lambda v: project_ball(norm, v + e, rho) - e,
        lambda y: rho * float(norm.dual_value(y)) - float(y @ e),
        lambda y: y,
        lambda y: (rho * _dual_expression(norm, y) - y @ e, []),
    )


def _box_block(lo: Array, hi: Array) -> _Block:
    below, above = np.isfinite(lo), np.isfinite(hi)
    low, high = np.where(below, lo, 0.0), np.where(above, hi, 0.0)

    def admit(y: Array) -> Array:
        return np.where((y > 0) & ~above, 0.0, np.where((y < 0) & ~below, 0.0, y))

    def cost(y: Any) -> tuple[Any, list[Any]]:
        up, down = cp.pos(y), cp.neg(y)
        limits = [y[np.flatnonzero(~above)] <= 0] if (~above).any() else []
        limits += [y[np.flatnonzero(~below)] >= 0] if (~below).any() else []
        # y hi where y > 0, y lo where y < 0, convex because lo ≤ hi: Σ hi·y + (hi − lo)·neg(y) on two-sided coordinates
        both = below & above
        term = cp.sum(cp.multiply(np.where(both, high, 0.0), y) + cp.multiply(np.where(both, high - low, 0.0), down))
        term += np.where(above & ~below, high, 0.0) @ up - np.where(below & ~above, low, 0.0) @ down
        return term, limits

    def support(y: Array) -> float:
        return float((np.maximum(y, 0.0) * high - np.maximum(-y, 0.0) * low).sum())

    return _Block(sp.identity(len(lo), format="csr"), lambda v: np.clip(v, lo, hi), support, admit, cost)


def _dual_expression(norm: Norm, y: Any) -> Any:
    """‖y‖_* as a CVXPY expression."""
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        return cp.maximum(*(cp.norm(y[g], 2) / float(o) for o, g in zip(norm.omega, norm.groups, strict=True)), 0)
    scaled = cp.multiply(1 / norm.scale(int(y.shape[0])), y)
    return cp.norm(scaled, {1.0: "inf", 2.0: 2, INF: 1}[norm.p])


# ---- two ways to solve -------------------------------------------------------------------------------------------------------


def _conic(
    norm: Norm, A: Array, b: Array, parts: tuple[Part, ...], blocks: Sequence[_Block], tolerance: float, iterations: int, solver: str
) -> FenchelSolution:  # fmt: skip
    """max −Σσ(y_j) s.t. w + Σ K_jᵀy_j = 0, ‖w‖_* ≤ 1; the multiplier of the equality is δ."""
    ys = [cp.Variable(block.K.shape[0]) for block in blocks]
    w = cp.Variable(A.shape[1])
    costs = [block.cost(y) for block, y in zip(blocks, ys, strict=True)]
    balance = w + sum(block.K.T @ y for block, y in zip(blocks, ys, strict=True)) == 0
    constraints = [balance, _dual_expression(norm, w) <= 1, *(c for _, limits in costs for c in limits)]
    run(cp.Problem(cp.Minimize(sum(term for term, _ in costs)), constraints), solver=solver)
    if any(y.value is None for y in ys):
        none = [np.zeros(block.K.shape[0]) for block in blocks]
        return _finish(norm, A, b, parts, blocks, none, np.full(A.shape[1], np.nan), 0)
    delta = np.full(A.shape[1], np.nan) if balance.dual_value is None else -np.asarray(balance.dual_value, dtype=float)
    return _finish(norm, A, b, parts, blocks, [np.asarray(y.value, dtype=float) for y in ys], delta, 0)


def _splitting(
    norm: Norm, A: Array, b: Array, parts: tuple[Part, ...], blocks: Sequence[_Block], tolerance: float, iterations: int, solver: str
) -> FenchelSolution:  # fmt: skip
    """ADMM on (x, v) with v = Kx: prox of the norm on x, projections on v, then a projection on the graph of K by one factorisation."""
    scaled = [_normalised(block) for block in blocks]
    K = sp.vstack([s.K for s, _ in scaled]).tocsr()
    cuts = np.cumsum([s.K.shape[0] for s, _ in scaled])[:-1]
    factor = scipy.linalg.cho_factor(np.eye(A.shape[1]) + (K.T @ K).toarray())
    unit = _unit(norm, A, b)
    x, v = np.zeros(A.shape[1]), np.zeros(K.shape[0])
    xd, vd = np.zeros_like(x), np.zeros_like(v)
    rho = 1.0 / unit  # weight of the coupling; prox of ‖·‖/rho moves by about one unit of length
    best: FenchelSolution | None = None
    for k in range(1, iterations + 1):
        half_x = prox_norm(norm, x - xd, 1 / rho)
        half_v = np.concatenate([s.project(p) for (s, _), p in zip(scaled, np.split(v - vd, cuts), strict=True)])
        mixed_x, mixed_v = 1.6 * half_x - 0.6 * x, 1.6 * half_v - 0.6 * v  # over-relaxation
        cx, cv = mixed_x + xd, mixed_v + vd
        new_x = scipy.linalg.cho_solve(factor, cx + K.T @ cv)
        new_v = K @ new_x
        xd, vd = cx - new_x, cv - new_v
        primal = np.sqrt(float((half_x - new_x) @ (half_x - new_x) + (half_v - new_v) @ (half_v - new_v)))
        dual = np.sqrt(float((new_x - x) @ (new_x - x) + (new_v - v) @ (new_v - v)))
        x, v = new_x, new_v
        if k % CHECK == 0:
            ys = [np.asarray(-rho * p) * size for (_, size), p in zip(scaled, np.split(vd, cuts), strict=True)]
            now = _finish(norm, A, b, parts, blocks, ys, x, k)
            if best is None or now.lower > best.lower or (now.lower >= best.lower and now.violation < best.violation):
                best = now
            if now.lower == INF or (now.gap <= tolerance and now.violation <= tolerance * (1 + unit)):
                return now
            if k % (4 * CHECK) == 0 and k < iterations // 2:  # balance the residuals; the scaled duals keep their product with rho
                turn = 2.0 if primal > 5 * dual else 0.5 if dual > 5 * primal else 1.0
                rho, xd, vd = rho * turn, xd / turn, vd / turn
    assert best is not None
    return best


def _normalised(block: _Block) -> tuple[_Block, Array | float]:
    """The block with K brought to length one as a whole (a projection survives only a common factor), and the factor back for its y."""
    size = float(np.sqrt(max(abs(block.K).sum(0).max() * abs(block.K).sum(1).max(), 1e-300)))
    return _Block(block.K / size, lambda v: block.project(v * size) / size, block.support, block.admit, block.cost), 1 / size


def _unit(norm: Norm, A: Array, b: Array) -> float:
    """A length of the size of the answer: the largest distance of a row alone."""
    dual = np.maximum(np.atleast_1d(norm.dual_value(A)), 1e-300)
    return float(np.clip((b / dual).max(), 1e-6, 1e6))


def _finish(
    norm: Norm, A: Array, b: Array, parts: tuple[Part, ...], blocks: Sequence[_Block], ys: Sequence[Array], delta: Array, iterations: int
) -> FenchelSolution:  # fmt: skip
    """Multipliers admitted into the domains of their support functions, the conjugate objective scaled into the dual ball, and the verified bound."""
    ys = [block.admit(np.nan_to_num(y)) for block, y in zip(blocks, ys, strict=True)]
    w = -np.asarray(sum(block.K.T @ y for block, y in zip(blocks, ys, strict=True)))
    size = max(1.0, float(norm.dual_value(w)))
    dual = -sum(block.support(y) for block, y in zip(blocks, ys, strict=True)) / size
    duals = tuple(
        np.stack([np.maximum(-y, 0.0), np.maximum(y, 0.0)]) if isinstance(part.piece, BoxPiece) else y
        for part, y in zip(parts, ys[1:], strict=True)
    )  # fmt: skip
    bound = weak_dual_bound(norm, A, b, ys[0], parts, duals)
    value = float(norm.value(delta)) if np.isfinite(delta).all() else INF
    violation = max([float((A @ delta + b).max()), *(p.piece.violation(delta) for p in parts), 0.0]) if value < INF else INF
    named = by_name(parts, 0.0, duals) | {"margin": ys[0]}
    return FenchelSolution(value, max(dual, 0.0), bound.value, delta, named, duals, violation, iterations)
