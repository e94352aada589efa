"""What certificates are worth: unbroken by attacks, tight, and with scores that stay when the input is attacked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.explanation import Explanation

SLACK = 1e-9  # of the attack's own distance: both are sums in float64


def validity_rate(lower: Sequence[Explanation] | ArrayLike, distances: ArrayLike) -> float:
    """Share of certified lower bounds (n,) that no flip found at the distances (n,) or (n, attacks) undercuts (+inf: none was found). Anything below 1 is a bug."""
    low = _bounds(lower)
    found = np.asarray(distances, dtype=float).reshape(len(low), -1)
    if np.isnan(found).any() or (found < 0).any():
        raise InputError("validity_rate: distances must be numbers ≥ 0, +inf where no flip was found.")
    return float((low[:, None] <= found * (1 + SLACK)).all(1).mean())


def tightness(explanations: Sequence[Explanation]) -> Array:
    """(n,) (upper − lower)/upper: 0 where both sides meet."""
    return np.array([e.gap for e in explanations])


def importance_error(before: ArrayLike, after: ArrayLike) -> Array:
    """(n,) mean |share_i − share'_i| of the scores (n, …), each map as shares of its own total: the importance MAE of maps before and after an attack."""
    a, b = (np.abs(np.asarray(v, dtype=float)) for v in (before, after))
    if a.shape != b.shape or a.ndim < 2:
        raise InputError(f"importance_error: scores of shapes {a.shape} and {b.shape}; give (n, …) for both.")
    a, b = (v.reshape(len(v), -1) for v in (a, b))
    a, b = (v / np.maximum(v.sum(1, keepdims=True), 1e-300) for v in (a, b))
    return np.asarray(np.abs(a - b).mean(1))


def _bounds(given: Sequence[Explanation] | ArrayLike) -> Array:
    listed = list(given) if isinstance(given, Sequence) else given
    if isinstance(listed, list) and listed and isinstance(listed[0], Explanation):
        return np.array([e.lower for e in listed])  # type: ignore[union-attr]
    return np.asarray(listed, dtype=float).ravel()
