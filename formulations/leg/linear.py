r"""LEG-TV as a sparse linear program, for every scheme: HiGHS through scipy, or Clarabel.

    min 1·s   s.t.   −s ≤ Bx + c ≤ s,   −L ≤ Ex − e ≤ L,   Fx = 0

    edge           x = g                 B = D,  E = σ²D,  e = b
    independent    x = v, g = (ȳ − Kv)/σ², since D⁺ᵀ(ȳ − σ²g) = Dv:         B = −DK/σ², c = Dȳ/σ², E = D, e = 0
    padded         x = (g, mean of g)     E = σ²[D, D⁺ᵀ1], e = b, F = [1ᵀ/p, −1]

What a solver claims is not believed: `LegProgram` makes its point and its multipliers feasible and evaluates both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from formulations.norms import Array

if TYPE_CHECKING:
    from formulations.leg.program import LegProgram

Pieces = tuple[Any, Array, Any, Array, Any, Callable[[Array], Array]]


def _pieces(program: LegProgram) -> Pieces:
    """(B, c, E, e, F, x → g)"""
    grid, s2, scheme = program.grid, program.perturbation.variance, program.perturbation.scheme
    D, m, p = grid.D, grid.edges, grid.pixels
    if scheme == "edge":
        return D, np.zeros(m), s2 * D, program.edge_moments, sp.csr_matrix((0, p)), lambda x: x
    if scheme == "independent":
        K = (D.T @ D).tocsr()
        y = program.moments - program.moments.mean()
        return -(D @ K) / s2, D @ y / s2, D, np.zeros(m), sp.csr_matrix((0, p)), lambda x: (y - K @ x) / s2
    spread = sp.csr_matrix(grid.potential_differences(np.ones(p))[:, None])
    mean = sp.hstack([sp.csr_matrix(np.full((1, p), 1.0 / p)), sp.csr_matrix([[-1.0]])]).tocsr()
    wide = sp.hstack([D, sp.csr_matrix((m, 1))]).tocsr()
    return wide, np.zeros(m), s2 * sp.hstack([D, spread]).tocsr(), program.edge_moments, mean, lambda x: x[:-1]


def solve_linear(program: LegProgram, level: float, solver: str, time_limit: float | None) -> tuple[Array, Array, Array]:
    """(g (p,), u (m,), y (m,)) as the solver leaves them; the empirical LEG and zeros where it leaves nothing."""
    B, c, E, e, F, read = _pieces(program)
    m, n = B.shape
    I, none = sp.identity(m, format="csr"), sp.csr_matrix((E.shape[0], m))
    G = sp.vstack([sp.hstack([B, -I]), sp.hstack([-B, -I]), sp.hstack([E, none]), sp.hstack([-E, none])]).tocsc()
    h = np.concatenate([-c, c, e + level, level - e])
    equal = sp.hstack([F, sp.csr_matrix((F.shape[0], m))]).tocsc()
    cost = np.concatenate([np.zeros(n), np.ones(m)])
    x, dual = (_highs if solver == "highs" else _clarabel)(cost, G, h, equal, time_limit)
    if x is None or dual is None or not (np.isfinite(x).all() and np.isfinite(dual).all()):
        return program.empirical.ravel(), np.zeros(m), np.zeros(m)
    up, down, above, below = np.split(dual, [m, 2 * m, 2 * m + E.shape[0]])
    u, y = up - down, below - above
    if program.perturbation.scheme == "independent":
        # stationarity in v: Bᵀu = −Eᵀ(above − below) gives K Dᵀu = σ²Dᵀy', and that is Dᵀu = Aᵀy' with A = σ²D⁺ᵀ; B = −DK/σ² turns the sign
        y = -y
    return read(x[:n]), u, y


def _highs(cost: Array, G: Any, h: Array, equal: Any, time_limit: float | None) -> tuple[Array | None, Array | None]:
    from scipy.optimize import linprog

    rows = {"A_eq": equal, "b_eq": np.zeros(equal.shape[0])} if equal.shape[0] else {}
    options = {} if time_limit is None else {"time_limit": time_limit}
    answer = linprog(cost, A_ub=G, b_ub=h, bounds=(None, None), method="highs", options=options, **rows)
    return answer.x, None if answer.x is None else -np.asarray(answer.ineqlin.marginals)


def _clarabel(cost: Array, G: Any, h: Array, equal: Any, time_limit: float | None) -> tuple[Array | None, Array | None]:
    import clarabel

    k = equal.shape[0]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-9
    if time_limit is not None:
        settings.time_limit = time_limit
    cones = ([clarabel.ZeroConeT(k)] if k else []) + [clarabel.NonnegativeConeT(len(h))]
    rows = sp.vstack([equal, G]).tocsc()
    no_squares = sp.csc_matrix((len(cost), len(cost)))
    clarabel_solver = clarabel.DefaultSolver(no_squares, cost, rows, np.concatenate([np.zeros(k), h]), cones, settings)
    answer = clarabel_solver.solve()
    return np.asarray(answer.x), np.asarray(answer.z)[k:]
