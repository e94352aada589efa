r"""Projections on norm balls and proximal operators of norms, in closed form or by one scalar root (numpy, one vector).

    prox_{t‖·‖}(v) = v − Π(v),   Π the projection on t·{w : ‖w‖_* ≤ 1}                             (Moreau 1965)

With W = diag(w) and thresholds found by sorting (weighted ℓ1: Duchi et al. 2008) or by Newton's method (ellipsoid):

    ball of               ‖Wv‖_1                    ‖Wv‖_2           ‖Wv‖_∞             Σ ω_g‖v_g‖₂
    is a ball of          Σ w_i|v_i|                an ellipsoid     a box              weighted ℓ1 in the lengths ‖v_g‖
    and its dual ball     a box                     an ellipsoid     Σ |v_i|/w_i        a product of ℓ2 balls
"""

from __future__ import annotations

import numpy as np

from formulations.norms import INF, Array, GroupNorm, Norm


def project_ball(norm: Norm, v: Array, radius: float) -> Array:
    """argmin ‖x − v‖₂ s.t. ‖x‖ ≤ radius, for v (d,)."""
    if float(norm.value(v)) <= radius:
        return v
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        lengths = norm.group_lengths(v)
        kept = _weighted_l1(lengths, norm.omega, radius)
        return np.asarray(v * (kept / np.maximum(lengths, 1e-300))[norm.labels])
    w = norm.scale(len(v))
    if norm.p == 1.0:
        return _weighted_l1(v, w, radius)
    return np.asarray(np.clip(v, -radius / w, radius / w)) if norm.p == INF else _ellipsoid(v, w, radius)


def project_dual_ball(norm: Norm, v: Array, radius: float) -> Array:
    """argmin ‖x − v‖₂ s.t. ‖x‖_* ≤ radius, for v (d,)."""
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        shrink = np.minimum(1.0, radius * norm.omega / np.maximum(norm.group_lengths(v), 1e-300))
        return np.asarray(v * shrink[norm.labels])
    w = norm.scale(len(v))
    if norm.p == 1.0:
        return np.asarray(np.clip(v, -radius * w, radius * w))
    return _ellipsoid(v, 1 / w, radius) if norm.p == 2.0 else _weighted_l1(v, 1 / w, radius)


def prox_norm(norm: Norm, v: Array, t: float) -> Array:
    """argmin t‖x‖ + ½‖x − v‖₂²."""
    return np.asarray(v - project_dual_ball(norm, v, t))


def _weighted_l1(v: Array, w: Array, radius: float) -> Array:
    """Projection on Σ w|x| ≤ radius: soft threshold at θw, θ from the sorted breakpoints |v|/w."""
    if float(w @ np.abs(v)) <= radius:
        return v
    if radius <= 0:
        return np.zeros_like(v)
    ratio = np.abs(v) / w
    order = np.argsort(-ratio)
    theta = (np.cumsum((w * np.abs(v))[order]) - radius) / np.cumsum((w * w)[order])
    k = int(np.flatnonzero(ratio[order] > theta)[-1])
    return np.asarray(np.sign(v) * np.maximum(np.abs(v) - theta[k] * w, 0.0))


def _ellipsoid(v: Array, w: Array, radius: float) -> Array:
    """Projection on ‖Wx‖₂ ≤ radius: x = v/(1 + θw²), θ ≥ 0 with ‖Wx‖ = radius. 1/‖Wx(θ)‖ is concave and rising: Newton from 0 never overshoots twice."""
    if float(np.linalg.norm(w * v)) <= radius:
        return v
    if radius <= 0:
        return np.zeros_like(v)
    if (w == w[0]).all():
        return np.asarray(v * (radius / np.linalg.norm(w * v)))
    theta, low, high = 0.0, 0.0, float(np.linalg.norm(v / w)) / radius  # ‖Wx‖ ≤ ‖v/w‖/θ
    for _ in range(100):
        x = v / (1 + theta * w * w)
        size = float(np.linalg.norm(w * x))
        low, high = (theta, high) if size > radius else (low, theta)
        slope = float((w**4 * x * x / (1 + theta * w * w)).sum())
        step = theta + size * size / slope * (size - radius) / radius
        step = step if low < step < high else 0.5 * (low + high)
        if abs(size - radius) <= 1e-15 * radius or step == theta:
            break
        theta = step
    return np.asarray(v / (1 + theta * w * w))
