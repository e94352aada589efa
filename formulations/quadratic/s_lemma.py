r"""The quadratic model without C at p = 2, exactly.

    min ½‖v‖²  s.t.  q(v) = m₀ + g·v + ½vᵀHv ≤ 0                                              (v = Wδ)

has no duality gap although H may be indefinite (S-lemma: Yakubovich 1971; Boyd & Vandenberghe 2004, B.1): with H = V diag(h) Vᵀ, γ = Vᵀg,

    D(λ) = λm₀ − ½λ² Σ γ_i²/(1+λh_i),     v(λ) = −λ(I + λH)⁻¹g,     D'(λ) = q(v(λ)) =: φ(λ),     φ' = −Σ γ_i²/(1+λh_i)³ < 0

on 0 ≤ λ < Λ, Λ = 1/(−h_min), or ∞ when H ⪰ 0. So λ is the root of the *secular equation* φ(λ) = 0: a decreasing scalar function, bisection.

    H has a negative eigenvalue     φ → −∞ at Λ where γ has a part in the lowest eigenspace: a root.
                                    Else (the *hard case*) φ(Λ) is finite; where it is positive, λ = Λ and v = v(Λ) + t·u with any unit u of that
                                    eigenspace: q = φ(Λ) − ½|h_min|t² = 0 gives t. (u ⟂ g and (I + ΛH)u = 0, so v stays stationary.)
    H ⪰ 0                           φ falls to inf q. Where that is ≥ 0 the model does not fall: proved by D → ∞.

Near the pole nothing is lost to cancellation: with s = 1 − λ/Λ ∈ (0, 1], 1 + λh_i = (h_min − h_i)/h_min + s h_i/h_min is exactly s at h_min.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.quadratic.model import QuadraticModel, QuadraticSolution, stationarity
from formulations.solution import Residuals
from formulations.status import Status

HALVINGS = 400
FLOOR = -320.0  # log(1 − λ/Λ) below which the root counts as lying at the pole
CEILING = 650.0  # |log λ| at most


def s_lemma(model: QuadraticModel, norm: Norm | float | str = 2) -> QuadraticSolution:
    """``min ‖Wδ‖₂  s.t.  m₀ + g·δ + ½δᵀHδ ≤ 0``, exact, by one scalar equation; O(dk²) with k eigenpairs.

    Ties (±) of the hard case are broken arbitrarily. The value is the *model's*, never certified for a network.
    Raises InputError for another norm than a weighted ℓ2.
    """
    start = time.perf_counter()
    norm = Norm.of(norm)
    if norm.p != 2.0 or isinstance(norm, GroupNorm):
        raise InputError(f"s_lemma: the norm is {norm.label}; the S-lemma answers p=2 alone, use min_norm_quadratic.")
    w = norm.scale(model.dim)
    if model.level <= 0:
        return _answer(model, norm, np.zeros(model.dim), 0.0, 0.0, start)
    h, V = model.scaled(w).eigen
    g = model.gradient / w
    gamma = V.T @ g
    rest = g - V @ gamma  # the part of g where H vanishes
    flat = 0.0 if V.shape[1] == model.dim else float(rest @ rest)
    if flat <= 1e-30 * model.dim * float(g @ g):
        flat = 0.0  # rounding of the projection, not a slope
    h = np.where(np.abs(h) <= 1e-15 * np.abs(h).max(initial=0.0), 0.0, h)
    root = _secular(model.level, gamma, flat, h)
    if root is None:
        nothing = np.full(model.dim, np.nan)
        return QuadraticSolution(
            None, INF, nothing, {"margin": np.full(1, INF)}, (), Status.INFEASIBLE, "s-lemma", Residuals(INF, 0.0, 0.0), time.perf_counter() - start
        )  # fmt: skip
    v = -root.lam * (V @ (gamma / root.denominators) + (rest if flat else 0.0))
    if root.extra:
        v = v + root.extra * V[:, int(np.argmin(h))]
    return _answer(model, norm, v / w, root.lam, root.dual, start)


@dataclass(frozen=True)
class _Root:
    """λ of the squared objective, 1 + λh_i, the step along the lowest eigenvector in the hard case, D(λ)."""

    lam: float
    denominators: Array
    extra: float
    dual: float


def _secular(level: float, gamma: Array, flat: float, h: Array) -> _Root | None:
    """The root of φ, None when φ stays positive on [0, ∞)."""
    lowest = float(h.min(initial=0.0))
    curved = lowest < 0

    def at(t: float) -> tuple[float, Array]:
        """λ and 1 + λh, from t = log(1 − λ/Λ) with negative curvature, else t = log λ."""
        if curved:
            return float(np.expm1(t)) / lowest, (lowest - h) / lowest + np.exp(t) * (h / lowest)
        return float(np.exp(t)), 1 + np.exp(t) * h

    def fall(t: float, keep: NDArray[np.bool_] | slice = slice(None)) -> float:
        lam, den = at(t)
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = lam * gamma[keep] / den[keep]
            return float(level - lam * flat - ratio @ gamma[keep] + 0.5 * (h[keep] * ratio) @ ratio)

    def dual(lam: float, den: Array) -> float:
        return lam * level - 0.5 * lam * lam * (flat + float(gamma / den @ gamma))

    low, high = (FLOOR, 0.0) if curved else (-CEILING, CEILING)
    if curved and fall(FLOOR) > 0:  # hard case: the terms of the lowest eigenspace give way to one step along it
        apart = h > lowest
        missing = fall(FLOOR, apart)
        toward = gamma[int(np.argmin(h))]
        extra = float(np.sqrt(max(2 * missing / -lowest, 0.0))) * (-1.0 if toward > 0 else 1.0)
        lam, den = at(FLOOR)
        den = np.where(apart, den, INF)
        return _Root(lam, den, extra, dual(lam, den))
    if not curved and not fall(CEILING) < 0:
        return None
    for _ in range(HALVINGS):
        mid = 0.5 * (low + high)
        if (fall(mid) > 0) == curved:  # φ rises with t where H has negative curvature, and falls with it elsewhere
            high = mid
        else:
            low = mid
        if high - low <= 2.3e-16 * abs(mid):
            break
    lam, den = at(0.5 * (low + high))
    return _Root(lam, den, 0.0, dual(lam, den))


def _answer(model: QuadraticModel, norm: Norm, delta: Array, lam: float, dual: float, start: float) -> QuadraticSolution:
    value = float(norm.value(delta))
    lower = min(float(np.sqrt(max(2 * dual, 0.0))), value)
    price = lam / value if value > 0 else 0.0
    stationary = stationarity(norm, price * model.slope(delta), delta)
    violation = max(model.value(delta), 0.0)
    status = Status.OPTIMAL if value - lower <= 1e-6 * value else Status.INACCURATE
    return QuadraticSolution(
        value, lower, delta, {"margin": np.array([price])}, (), status, "s-lemma", Residuals(violation, stationary, value - lower), time.perf_counter() - start
    )  # fmt: skip
