r"""The min-norm program, solved exactly, with its multipliers and a verified bound.

    minimise ‖Wδ‖_p   subject to   A δ + b ≤ 0 (rows that must fall together),   δ ∈ C

One program is compiled for a norm, a number of rows and a set of pieces, and solved again for every instance: in CVXPY rows and offsets are
parameters; Clarabel without custom pieces gets the same program written out in cone form and updated in place (`formulations.cones`).
For p = 2 the objective is ½‖Wδ‖² (a quadratic cone would cost seconds to compile), and multipliers are divided by ‖Wδ‖ afterwards: with
v = ‖Wδ‖, ∇(½v²) = v∇v, so those of the norm are those of the square over v.

A solver's status is a claim. The answer's `lower` is `weak_dual_bound` of the returned multipliers; INFEASIBLE means that this bound is +∞, and
OPTIMAL that the bound meets the value of a point whose violations, priced by the multipliers, are negligible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import joblib
import numpy as np
from numpy.typing import ArrayLike

from formulations.boxed import BoxedSolutions
from formulations.cones import ConeProgram
from formulations.dual_bound import DualBound, weak_dual_bound
from formulations.errors import InputError
from formulations.given import array
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, CustomPiece, Part, PieceModel
from formulations.sets.base import FEASIBILITY, ConvexSet, Everything
from formulations.solution import Residuals, Solution, Solutions, SolvedOneByOne
from formulations.solve import DEFAULT_SOLVER, Claim, check_solver, run
from formulations.status import Status

CLOSE = 1e-6  # relative gap under which value and verified bound count as the same number
CLEAN = 1e-7  # largest violation, relative to the size of the constraint's data, of a point that counts as feasible


class MinNormProgram:
    """``min ‖Wδ‖  s.t.  Aδ + b ≤ 0, δ ∈ C`` compiled once for `rows` rows; `solve(A, b, parts)` as often as wanted.

    `parts` given here fix the structure (which bounds exist, which coordinates are fixed); the ones given to `solve` bring the offsets.
    `modelled` forces the CVXPY model where the cone form would serve: the reference of the tests and of the benchmark.
    """

    def __init__(self, norm: Norm | float | str, parts: Sequence[Part], dim: int, *, rows: int = 1, solver: str = DEFAULT_SOLVER, modelled: bool = False
    ) -> None:  # fmt: skip
        self.norm, self.dim, self.rows, self.solver = Norm.of(norm), dim, rows, check_solver(solver)
        self.norm.scale(dim)
        self.parts = tuple(parts)
        self.squared = self.norm.p == 2.0 and not isinstance(self.norm, GroupNorm)
        direct = self.solver == "CLARABEL" and not modelled and not any(isinstance(p.piece, CustomPiece) for p in parts)
        self._engine: ConeProgram | ModelledProgram = (
            ConeProgram(self.norm, self.parts, dim, rows) if direct else ModelledProgram(self.norm, self.parts, dim, rows, self.solver)
        )

    def solve(self, A: Array, b: Array, parts: Sequence[Part] | None = None, *, time_limit: float | None = None) -> Solution:
        """One instance: A (rows, d), b (rows,), parts over the change without a batch axis. Rows are scaled to unit size inside."""
        parts = tuple(p.at(0) for p in self.parts) if parts is None else tuple(parts)
        size = np.abs(A).max(axis=1)
        size = np.where(size > 0, size, np.maximum(np.abs(b), 1.0))
        claim, delta, lam, duals, seconds = self._engine.solve(A / size[:, None], b / size, parts, time_limit=time_limit)
        lam = lam / size
        if claim is Claim.INFEASIBLE or not np.isfinite(delta).all():
            delta = np.full(self.dim, np.nan)
        value = float(self.norm.value(delta)) if np.isfinite(delta).all() else INF
        if self.squared and 0 < value < INF:
            lam, duals = lam / value, [u / value for u in duals]
        if value == INF:
            lam, duals = _tame(lam, duals)
        return self._answer(A, b, parts, delta, value, lam, tuple(duals), claim, seconds)

    def _answer(
        self, A: Array, b: Array, parts: tuple[Part, ...], delta: Array, value: float, lam: Array, duals: tuple[Array, ...], claim: Claim, seconds: float
    ) -> Solution:  # fmt: skip
        bound = weak_dual_bound(self.norm, A, b, lam, parts, duals)
        violation, relative = _violations(A, b, parts, delta)
        status = _status(claim, value, bound, relative)
        if status is Status.INFEASIBLE:
            delta, value = np.full(self.dim, np.nan), INF
        named, prices = _by_name(parts, lam, duals)
        residuals = Residuals(violation, bound.scale - 1.0, value - bound.value if value < INF else float("nan"))
        return Solution(status, value, bound.value, delta, named, prices, duals, residuals, self.solver, seconds)


class ModelledProgram:
    """The program as a CVXPY problem with parameters: any installed solver, any set."""

    def __init__(self, norm: Norm, parts: Sequence[Part], dim: int, rows: int, solver: str = DEFAULT_SOLVER) -> None:
        self.solver = solver
        self._delta = cp.Variable(dim)
        self._A, self._b = cp.Parameter((rows, dim)), cp.Parameter(rows)
        self._margin = self._A @ self._delta + self._b <= 0
        self._given: list[dict[str, Any]] = []
        self._models: list[PieceModel] = []
        for part in parts:
            offsets = {k: cp.Parameter(np.shape(v), nonneg=(k == "rho") or None) for k, v in part.at(0).piece.offsets().items()}
            self._given.append(offsets)
            self._models.append(part.piece.model(self._delta, offsets))
        square = norm.p == 2.0 and not isinstance(norm, GroupNorm)
        scaled = cp.multiply(norm.scale(dim), self._delta)
        objective = 0.5 * cp.sum_squares(scaled) if square else norm.expression(self._delta)
        self.problem = cp.Problem(cp.Minimize(objective), [self._margin, *(c for m in self._models for c in m.constraints)])

    def solve(
        self, A: Array, b: Array, parts: Sequence[Part], *, time_limit: float | None = None
    ) -> tuple[Claim, Array, Array, list[Array], float]:
        """(claim, δ, λ, multipliers per part, seconds) for one instance."""
        self._A.value, self._b.value = A, b
        for part, given in zip(parts, self._given, strict=True):
            for key, value in part.piece.offsets().items():
                given[key].value = np.where(np.isfinite(value), value, 0.0)  # a missing bound has no constraint
        outcome = run(self.problem, solver=self.solver, time_limit=time_limit)
        delta = np.full(A.shape[1], np.nan) if self._delta.value is None else np.asarray(self._delta.value, dtype=float)
        lam = np.zeros(len(b)) if self._margin.dual_value is None else np.maximum(np.ravel(self._margin.dual_value), 0)
        return outcome.claim, delta, lam, [m.read() for m in self._models], outcome.seconds


def min_norm(
    a: ArrayLike,
    b: ArrayLike,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    x0: ArrayLike | None = None,
    *,
    solver: str | None = None,
    time_limit: float | None = None,
    jobs: int = 1,
) -> Solutions:
    """``min ‖δ‖  s.t.  a·δ + b ≤ 0, δ ∈ C`` for a batch of n programs.

    a (d,), (n, d) or (n, K, d) with K rows that must fall together; b one number for all, (n,) or (n, K); x0 (d,) or (n, d) places sets over the input.
    `solver` None takes the exact closed form for one row and a box (batched, no solver), else Clarabel; a name takes that solver for all.
    `time_limit` is in seconds per program; `jobs` > 1 spreads the programs over processes.
    Raises InputError on shapes that do not fit, NaN, a set over the input without x0, and an empty box.
    """
    A, B = _numbers("a", a), _numbers("b", b)
    if not 1 <= A.ndim <= 3 or A.size == 0:
        raise InputError(
            f"min_norm: a has shape {A.shape}; give (features), (programs, features) or (programs, rows, features), none of them 0."
        )
    if constraints is not None and not isinstance(constraints, ConvexSet):
        raise InputError(f"min_norm: constraints is a {type(constraints).__name__}; give a convex set such as Box(0, 1), or None.")
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"min_norm: time_limit={time_limit} must be positive; leave it out for no limit.")
    if A.ndim == 1:
        A, B = A[None], np.atleast_1d(B)
    if B.ndim == 0:
        B = np.full(A.shape[:-1], B)
    if A.ndim == 2:
        A, B = A[:, None, :], (B[:, None] if B.ndim == 1 else B)
    n, rows, dim = A.shape
    if B.shape != (n, rows):
        raise InputError(f"min_norm: a has shape {np.shape(a)} and b {np.shape(b)}; b needs one entry per row.")
    for name, v in (("a", A), ("b", B)):
        if not np.isfinite(v).all():
            raise InputError(
                f"min_norm: {name} has the entry {v[~np.isfinite(v)][0]} at flat position {np.flatnonzero(~np.isfinite(v))[0]}; rows must be finite."
            )
    parts = relative_parts(constraints, dim, x0, n)
    norm = Norm.of(norm)
    if solver is None and rows == 1 and not isinstance(norm, GroupNorm) and all(isinstance(p.piece, BoxPiece) for p in parts):
        return BoxedSolutions(A[:, 0, :], B[:, 0], norm, parts)
    name = check_solver(solver or DEFAULT_SOLVER)
    chunks = [range(k, n, jobs) for k in range(min(max(jobs, 1), n))]
    work = (joblib.delayed(_solve_some)(norm, parts, A[list(c)], B[list(c)], list(c), name, time_limit) for c in chunks)
    solved = dict(pair for chunk in joblib.Parallel(n_jobs=len(chunks))(work) for pair in chunk)
    return SolvedOneByOne([solved[i] for i in range(n)])


def _solve_some(
    norm: Norm, parts: tuple[Part, ...], A: Array, B: Array, which: list[int], solver: str, time_limit: float | None
) -> list[tuple[int, Solution]]:
    """The programs of one process: compiled once, solved in turn."""
    program = MinNormProgram(norm, parts, A.shape[2], rows=A.shape[1], solver=solver)
    return [(i, program.solve(A[k], B[k], tuple(p.at(i) for p in parts), time_limit=time_limit)) for k, i in enumerate(which)]


def relative_parts(constraints: ConvexSet | None, dim: int, x0: ArrayLike | None, n: int = 1) -> tuple[Part, ...]:
    """The set's parts over the change, offsets batched as (n, ·) where they depend on x0. Raises InputError as `min_norm` says."""
    C = Everything() if constraints is None else constraints
    if not isinstance(C, ConvexSet):
        raise InputError(f"constraints: got {type(C).__name__}; give a convex set such as Box(0, 1), or None.")
    parts = C.parts(dim)
    if x0 is None:
        if any(p.on == "input" for p in parts):
            raise InputError(f"{C!r}: is over the input; pass x0 so that it can be placed, or build it with on='change'.")
        return parts
    start = array("x0", x0)
    if start.size not in (dim, n * dim):
        raise InputError(f"x0 has shape {start.shape}; give {dim} features, once or for each of the {n} programs.")
    start = start.reshape(n, dim) if start.size == n * dim else np.broadcast_to(start.reshape(1, dim), (n, dim))
    if not np.isfinite(start).all():
        raise InputError(
            f"x0 has the entry {start[~np.isfinite(start)][0]} at flat position {np.flatnonzero(~np.isfinite(start))[0]}; inputs must be finite."
        )
    return tuple(p.relative_to(start) for p in parts)


def check_inside(parts: tuple[Part, ...], n: int) -> None:
    """Raises InputError where δ = 0 violates a part (over the change, for n inputs), naming it and the violation."""
    for i in range(n):
        for part in parts:
            piece = part.piece.at(i)
            gap = piece.violation(np.zeros(piece.dim))
            if not gap <= FEASIBILITY:
                raise InputError(f"x0: input {i} lies outside the constraint {part.name!r} by {gap:.3g}; move it inside or widen the set.")


def _numbers(name: str, given: ArrayLike) -> Array:
    return array(f"min_norm: {name}", given)


def _tame(lam: Array, duals: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Rays of infeasible programs come in any length; an exact power of two brings them to size 1 (bounds are homogeneous)."""
    top = max((float(np.abs(np.nan_to_num(v, posinf=0, neginf=0)).max(initial=0.0)) for v in (lam, *duals)), default=0.0)
    if top < 2.0**40:
        return lam, list(duals)
    factor = 2.0 ** -np.frexp(top)[1]
    return lam * factor, [u * factor for u in duals]


def _violations(A: Array, b: Array, parts: tuple[Part, ...], delta: Array) -> tuple[float, float]:
    """(largest violation in its own units, largest violation relative to the size of the data it came from)."""
    if not np.isfinite(delta).all():
        return INF, INF
    reach = float(np.abs(delta).max(initial=0.0))
    row = A @ delta + b
    size = np.abs(b) + np.abs(A).sum(1) * reach + 1e-300
    absolute, relative = float(row.max(initial=-INF)), float((row / size).max(initial=-INF))
    for p in parts:
        v = p.piece.violation(delta)
        absolute, relative = max(absolute, v), max(relative, v / (1.0 + reach))
    return max(absolute, 0.0), max(relative, 0.0)


def _status(claim: Claim, value: float, bound: DualBound, violation: float) -> Status:
    if bound.value == INF:
        return Status.INFEASIBLE
    if claim is Claim.LIMIT:
        return Status.LIMIT
    if claim is Claim.UNBOUNDED:
        return Status.UNBOUNDED
    closed = value < INF and abs(value - bound.value) <= CLOSE * max(1.0, value)
    if closed and violation <= CLEAN:
        return Status.OPTIMAL
    return Status.INACCURATE if claim is Claim.INACCURATE else Status.UNKNOWN


def _by_name(parts: tuple[Part, ...], lam: Array, duals: Sequence[Array]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Multipliers under their sets' names; prices: −d(v*)/d(level) for every level that the set has."""
    named: dict[str, Array] = {"margin": lam}
    prices: dict[str, Any] = {"margin": lam}
    for part, u in zip(parts, duals, strict=True):
        piece = part.piece
        named[part.name] = u if part.name not in named else np.concatenate([named[part.name], u], axis=-1)
        price = float(piece.norm.dual_value(u)) if isinstance(piece, BallPiece) else u
        prices[part.name] = price if part.name not in prices else np.concatenate([np.ravel(prices[part.name]), np.ravel(price)])
    return named, prices
