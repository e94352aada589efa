r"""The Shor dual followed along its central path, by Newton's method.

    maximise  D(y) + τ [ log det P(y) + Σ log y_i (signed ones) + Σ log(t²ω_g² − ‖u_g‖²) ]   for τ → 0

At the exact maximiser for τ, D is within τ·(number of barrier terms) of the best bound (Nesterov & Nemirovski 1994, 3.2). With x the minimiser of the
Lagrangian, r_j the gradient of constraint j there, S_j = ∂P/∂y_j, all second derivatives are

    ∂²D = −r_jᵀP⁻¹r_k          ∂² log det P = −tr(P⁻¹S_jP⁻¹S_k)

Dense: O(r³ + n³) a step for n multipliers. Every iterate is admissible, so its D is a bound whether the path was followed to its end or not.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from formulations.norms import Array
from formulations.quadratic.shor import Point, evaluate
from formulations.quadratic.terms import Sum, Terms

SHRINK = 0.15
CENTRED = 0.1  # Newton decrement (in units of τ) below which τ shrinks


def follow(t: Terms, begin: Point, *, accuracy: float = 1e-9, steps: int = 150, enough: float = np.inf) -> Point:
    """The best point met on the central path, within `accuracy` (relative, of D) of the optimum unless `steps` ran out or D > enough."""
    y = _interior(t, begin.y)
    here = evaluate(t, y)
    while here is None:  # the start is interior; pushing multipliers off zero only adds to P
        y[0] *= 0.5
        here = evaluate(t, y)
    best, tau = here, 0.1
    barriers = len(here.z) + int(t.nonneg.sum()) + 2 * sum(len(s.omega) for s in t.sums)
    for _ in range(steps):
        value, gradient, hessian = _expand(t, here, tau)
        step = _newton(hessian, gradient)
        decrement = float(step @ gradient)
        if decrement <= CENTRED * tau:
            if tau * barriers <= accuracy * max(abs(best.D), 1e-3):
                break
            tau *= SHRINK
            continue
        moved = _line(t, here, step, value, decrement, tau)
        if moved is None:
            if tau * barriers <= accuracy * max(abs(best.D), 1e-3):
                break
            tau *= SHRINK  # rounding has the last word at this τ
            if tau < 1e-16:
                break
            continue
        here = moved
        if _merit(t, here) > _merit(t, best):
            best = here
        if enough < best.D:
            break
    return best


def _merit(t: Terms, point: Point) -> float:
    total = float(point.y[t.nu].sum()) if t.nu.stop else 0.0
    return point.D - 0.5 * total**2


def _interior(t: Terms, y: Array) -> Array:
    out = np.where(t.nonneg, np.maximum(y, 1e-3), y)
    for s in t.sums:
        out[s.block] = 0.0
    return out


def _slack(t: Terms, y: Array) -> list[Array]:
    """t²ω_g² − ‖u_g‖² of every sum, by group."""
    return [(y[s.at] * s.omega) ** 2 - np.bincount(s.labels, y[s.block] ** 2, minlength=len(s.omega)) for s in t.sums]


def _barrier(t: Terms, y: Array) -> float:
    slack = _slack(t, y)
    if (y[t.nonneg] <= 0).any() or any((s <= 0).any() for s in slack):
        return -np.inf
    return float(np.log(y[t.nonneg]).sum() + sum(np.log(s).sum() for s in slack))


def _expand(t: Terms, point: Point, tau: float) -> tuple[float, Array, Array]:
    """Value, gradient and minus the Hessian of the barrier function."""
    y, z = point.y, point.z
    P = t.matrix(y)
    L = np.linalg.cholesky(P)
    n = t.count
    # D
    R = np.zeros((len(z), n))
    H = t.H if t.H is not None else (t.U * t.e) @ t.U.T
    R[:, 0] = t.g + H @ z
    F = t.F.dense
    R[:, t.kappa] = _by_owner(t, F * (t.F.times(z) + t.shift)[:, None]).T
    R[:, t.eta] = t.B.dense.T
    for s in t.sums:
        R[:, s.block] = s.M.dense.T
    LR = scipy.linalg.solve_triangular(L, R, lower=True, check_finite=False)
    curve = LR.T @ LR
    gradient = point.gradient.copy()
    if t.nu.stop:
        gradient[t.nu] -= y[t.nu].sum()
        curve[t.nu, t.nu] += 1.0
    # log det P
    LF = scipy.linalg.solve_triangular(L, F.T, lower=True, check_finite=False)
    LH = scipy.linalg.solve_triangular(
        L, scipy.linalg.solve_triangular(L, H, lower=True, check_finite=False).T, lower=True, check_finite=False
    )
    G = LF.T @ LF
    gradient[0] += tau * np.trace(LH)
    gradient[t.kappa] += tau * _by_owner(t, np.diag(G))
    curve[0, 0] += tau * float((LH * LH).sum())
    cross = _by_owner(t, np.einsum("ij,ij->j", LF, LH @ LF))
    curve[0, t.kappa] += tau * cross
    curve[t.kappa, 0] += tau * cross
    curve[t.kappa, t.kappa] += tau * _by_owner(t, _by_owner(t, G * G).T)
    # signs and sums
    inverse = np.where(t.nonneg, 1 / np.where(t.nonneg, y, 1.0), 0.0)
    gradient += tau * inverse
    curve[np.diag_indices(n)] += tau * inverse**2
    for s, slack in zip(t.sums, _slack(t, y), strict=True):
        _sum_barrier(s, slack, y, tau, gradient, curve)
    value = _merit(t, point) + tau * (2 * float(np.log(np.diag(L)).sum()) + _barrier(t, y))
    return value, gradient, curve


def _sum_barrier(s: Sum, slack: Array, y: Array, tau: float, gradient: Array, curve: Array) -> None:
    """Derivatives of Σ log(t²ω² − ‖u_g‖²), added in place (minus the Hessian)."""
    u, each, w = y[s.block], slack[s.labels], s.omega
    gradient[s.at] += tau * float((2 * y[s.at] * w**2 / slack).sum())
    gradient[s.block] -= tau * 2 * u / each
    curve[s.at, s.at] += tau * float((4 * y[s.at] ** 2 * w**4 / slack**2 - 2 * w**2 / slack).sum())
    mixed = -tau * 4 * y[s.at] * (w**2)[s.labels] * u / each**2
    curve[s.at, s.block] += mixed
    curve[s.block, s.at] += mixed
    same = s.labels[:, None] == s.labels[None, :]
    curve[s.block, s.block] += tau * (np.diag(2 / each) + np.where(same, 4 * np.outer(u, u) / np.outer(each, each), 0.0))


def _by_owner(t: Terms, rows: Array) -> Array:
    """Rows of F summed into their squares."""
    out = np.zeros((len(t.square_level), *rows.shape[1:]))
    np.add.at(out, t.owner, rows)
    return out


def _newton(curve: Array, gradient: Array) -> Array:
    """curve⁻¹ gradient with the diagonal brought to one, and lifted a little where rounding has made it indefinite."""
    scale = 1 / np.sqrt(np.maximum(np.diag(curve), 1e-300))
    K = curve * scale[:, None] * scale[None, :]
    lift = 0.0
    while True:
        try:
            L = np.linalg.cholesky(K + lift * np.eye(len(K)))
            return np.asarray(scale * scipy.linalg.cho_solve((L, True), scale * gradient, check_finite=False))
        except np.linalg.LinAlgError:
            lift = max(10 * lift, 1e-14)


def _line(t: Terms, here: Point, step: Array, value: float, decrement: float, tau: float) -> Point | None:
    size = 1.0
    for _ in range(50):
        y = here.y + size * step
        inside = _barrier(t, y)
        if np.isfinite(inside):
            new = evaluate(t, y)
            if new is not None:
                merit = _merit(t, new) + tau * (_log_det(t, y) + inside)
                if merit >= value + 1e-4 * size * decrement:
                    return new
        size *= 0.5
    return None


def _log_det(t: Terms, y: Array) -> float:
    try:
        return 2 * float(np.log(np.diag(np.linalg.cholesky(t.matrix(y)))).sum())
    except np.linalg.LinAlgError:
        return -np.inf
