"""The one place where CVXPY problems are solved. What a solver claims is translated here, and never believed: see `programs` for the verification."""

from __future__ import annotations

import functools
import time
import warnings
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import cvxpy as cp
import numpy as np

from formulations.errors import InputError
from formulations.norms import INF, Array

if TYPE_CHECKING:
    from formulations.sets.base import ConvexSet

DEFAULT_SOLVER = "CLARABEL"


class Claim(Enum):
    """What the solver said, in one vocabulary for all solvers."""

    OPTIMAL = "optimal"
    INACCURATE = "stopped early with a value"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    LIMIT = "limit reached"
    FAILED = "no answer"


_CLAIMS = {
    cp.OPTIMAL: Claim.OPTIMAL,
    cp.OPTIMAL_INACCURATE: Claim.INACCURATE,
    cp.INFEASIBLE: Claim.INFEASIBLE,
    cp.INFEASIBLE_INACCURATE: Claim.INFEASIBLE,
    cp.UNBOUNDED: Claim.UNBOUNDED,
    cp.UNBOUNDED_INACCURATE: Claim.UNBOUNDED,
    "infeasible_or_unbounded": Claim.FAILED,
    cp.USER_LIMIT: Claim.LIMIT,
    cp.SOLVER_ERROR: Claim.FAILED,
}


@dataclass(frozen=True)
class Outcome:
    """A solver's claim, its seconds and its name. The values lie in the problem's variables and constraints."""

    claim: Claim
    seconds: float
    solver: str


def solver_settings(solver: str, time_limit: float | None) -> dict[str, Any]:
    """Settings under which the named solver is asked for about 1e-9."""
    name = solver.upper()
    if name == "CLARABEL":
        out: dict[str, Any] = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10, "max_iter": 200}
        return out | ({} if time_limit is None else {"time_limit": time_limit})
    if name == "SCS":
        out = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000}
        return out | ({} if time_limit is None else {"time_limit_secs": time_limit})
    return {}


def check_solver(solver: str) -> str:
    """The solver's name as CVXPY spells it. Raises InputError when it is not installed."""
    name = solver.upper()
    if name not in _installed():
        raise InputError(f"solver={solver!r} is not installed; installed are {', '.join(_installed())}.")
    return name


@functools.cache
def _installed() -> tuple[str, ...]:
    """Asking CVXPY costs several ms: as much as a small solve."""
    return tuple(cp.installed_solvers())


def run(problem: Any, *, solver: str = DEFAULT_SOLVER, time_limit: float | None = None) -> Outcome:
    """Solve in place. Never raises on a numerical failure: that is the claim FAILED."""
    name = check_solver(solver)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "solution may be inaccurate": the claim says so
        try:
            problem.solve(solver=name, **solver_settings(name, time_limit))
        except cp.error.SolverError:
            return Outcome(Claim.FAILED, time.perf_counter() - start, name)
    return Outcome(_CLAIMS.get(problem.status, Claim.FAILED), time.perf_counter() - start, name)


def maximise_linear(members: ConvexSet, a: Array) -> tuple[float, Array]:
    """(max a·z over the set, a maximiser). +inf when unbounded; InputError when the set is empty. An estimate to solver tolerance, not a bound."""
    z = cp.Variable(len(a))
    size = float(np.max(np.abs(a), initial=0.0)) or 1.0
    problem = cp.Problem(cp.Maximize((a / size) @ z), members.constraints(z))
    claim = run(problem).claim
    if claim is Claim.UNBOUNDED:
        return INF, np.full(len(a), np.nan)
    _refuse_empty(members, claim)
    return float(problem.value) * size, np.asarray(z.value)


def project_euclidean(members: ConvexSet, v: Array) -> Array:
    """argmin ‖z − v‖₂ over the set. InputError when the set is empty."""
    z = cp.Variable(len(v))
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(z - v)), members.constraints(z))
    _refuse_empty(members, run(problem).claim)
    return np.asarray(z.value)


def _refuse_empty(members: ConvexSet, claim: Claim) -> None:
    if claim is Claim.INFEASIBLE:
        raise InputError(f"{members!r}: the set is empty; loosen one of its constraints.")
    if claim not in (Claim.OPTIMAL, Claim.INACCURATE):
        raise InputError(f"{members!r}: the solver found no answer over this set ({claim.value}); check its scaling.")
