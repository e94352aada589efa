"""Exact arithmetic on floats: every float64 is a dyadic rational, so sums and products are exact in `flint.fmpq`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from flint import fmpq, fmpz

from formulations.norms import INF, GroupNorm, Norm

ROOT_BITS = 120


def rational(x: float) -> Any:
    """The float x as an exact fraction."""
    n, d = float(x).as_integer_ratio()
    return fmpq(n, d)


def dot(u: Iterable[float], v: Iterable[float]) -> Any:
    """Σ u_i v_i, exactly."""
    total = fmpq(0)
    for x, y in zip(u, v, strict=True):
        if x != 0 and y != 0:
            total += rational(x) * rational(y)
    return total


def transpose_times(M: Any, u: Iterable[float], d: int) -> list[Any]:
    """Mᵀu for a dense or sparse M (k, d), exactly."""
    out = [fmpq(0)] * d
    rows = sp.csr_matrix(M)
    for k, weight in enumerate(u):
        if weight != 0:
            factor = rational(weight)
            for at in range(rows.indptr[k], rows.indptr[k + 1]):
                j = rows.indices[at]
                out[j] = out[j] + factor * rational(rows.data[at])
    return out


def root_up(q: Any) -> Any:
    """A rational upper bound of √q, at most 2⁻¹²⁰ relative above it."""
    if q == 0:
        return fmpq(0)
    p, s = fmpz(q.p), fmpz(q.q)
    shift = max(0, ROOT_BITS - (int(p).bit_length() + int(s).bit_length()) // 2) + 1
    # √(p/s) = √(p s)/s ; scaled by 2^shift before the integer root
    return fmpq((p * s * fmpz(4) ** shift).isqrt() + 1, s * fmpz(2) ** shift)


def dual_norm_square(norm: Norm, w: Sequence[Any]) -> Any:
    """‖w‖_*² exactly (p = 2, ∞ and groups); for p = ∞ the square of the exact ℓ1 value."""
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        squares = (
            sum((w[i] * w[i] for i in g), fmpq(0)) / (rational(o) * rational(o)) for g, o in zip(norm.groups, norm.omega, strict=True)
        )
        return max(squares)
    scale = norm.scale(len(w))
    scaled = [abs(x) / rational(s) for x, s in zip(w, scale, strict=True)]
    if norm.p == 2.0:
        return sum((x * x for x in scaled), fmpq(0))
    value = max(scaled) if norm.p == 1.0 else sum(scaled, fmpq(0))
    return value * value


def dual_norm_up(norm: Norm, w: Sequence[Any]) -> Any:
    """‖w‖_*, exact for p = 1 and ∞ without groups, else rounded up by `root_up`."""
    if not isinstance(norm, GroupNorm) and norm.p in (1.0, INF):
        scaled = [abs(x) / rational(s) for x, s in zip(w, norm.scale(len(w)), strict=True)]
        return max(scaled, default=fmpq(0)) if norm.p == 1.0 else sum(scaled, fmpq(0))
    return root_up(dual_norm_square(norm, w))


def float_down(q: Any) -> float:
    """The largest float ≤ q (up to one unit)."""
    x = float(int(q.p) / int(q.q))
    while rational(x) > q:
        x = float(np.nextafter(x, -INF))
    return x
