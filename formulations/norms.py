r"""Norms of a change, and their duals.

    ‖δ‖ = ‖W δ‖_p,   p ∈ {1, 2, ∞},   W = diag(weights) > 0
    ‖w‖_* = max { w·δ : ‖W δ‖_p ≤ 1 } = ‖W⁻¹ w‖_{p*},   1/p + 1/p* = 1

    GroupNorm:  ‖δ‖ = Σ_g ω_g ‖δ_g‖₂      ‖w‖_* = max_g ‖w_g‖₂ / ω_g

A norm enters programs through `expression`, bounds through `dual_value`. Both act on the last axis, so a batch is (n, d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError
from formulations.given import array, wholes

Array = NDArray[np.float64]
INF = float("inf")


def _exponent(p: Any) -> float:
    if isinstance(p, str):
        p = INF if p.strip().lower() in ("inf", "linf", "infinity", "∞") else p
    try:
        value = float("nan") if isinstance(p, bool | np.bool_) else float(p)
    except (TypeError, ValueError):
        value = float("nan")
    if value not in (1.0, 2.0, INF):
        raise InputError(f"Norm: p={p!r} is not supported; use 1, 2 or 'inf' (or GroupNorm).")
    return value


@dataclass(frozen=True, eq=False)
class Norm:
    """``‖W δ‖_p`` with ``W = diag(weights)``; `weights` (d,) positive, or None for ones.

    Raises InputError on another p, and on weights that are not finite and positive.
    """

    p: float
    weights: Array | None = None

    def __init__(self, p: float | str, weights: ArrayLike | None = None) -> None:
        object.__setattr__(self, "p", _exponent(p))
        object.__setattr__(self, "weights", None if weights is None else _positive("weights", weights))

    @staticmethod
    def of(spec: Norm | float | str) -> Norm:
        """A `Norm` from what users write: 1, 2, "inf" or a Norm."""
        return spec if isinstance(spec, Norm) else Norm(spec)

    def scale(self, dim: int) -> Array:
        """Diagonal of W as an array of shape (dim,). Raises InputError when the number of weights is another one."""
        if self.weights is None:
            return np.ones(dim)
        if len(self.weights) != dim:
            raise InputError(f"Norm: {len(self.weights)} weights for {dim} features; give one weight per feature.")
        return self.weights

    @property
    def dual_p(self) -> float:
        return {1.0: INF, 2.0: 2.0, INF: 1.0}[self.p]

    def value(self, delta: ArrayLike) -> Any:
        """‖W δ‖_p over the last axis: a float for (d,), an array (n,) for (n, d)."""
        v = np.asarray(delta, dtype=float)
        return _last(np.linalg.norm(v * self.scale(v.shape[-1]), self.p, axis=-1))

    def dual_value(self, w: ArrayLike) -> Any:
        """‖W⁻¹ w‖_{p*} over the last axis."""
        v = np.asarray(w, dtype=float)
        return _last(np.linalg.norm(v / self.scale(v.shape[-1]), self.dual_p, axis=-1))

    def expression(self, delta: Any) -> Any:
        """The CVXPY expression ‖W δ‖_p."""
        scaled = delta if self.weights is None else cp.multiply(self.scale(delta.shape[-1]), delta)
        return cp.norm(scaled, "inf" if self.p == INF else int(self.p))

    @property
    def label(self) -> str:
        name = "ℓ∞" if self.p == INF else f"ℓ{int(self.p)}"
        return name if self.weights is None else f"weighted {name}"

    def __repr__(self) -> str:
        return f"Norm({'inf' if self.p == INF else int(self.p)!r}{'' if self.weights is None else ', weights=…'})"


@dataclass(frozen=True, eq=False, repr=False)
class GroupNorm(Norm):
    """``Σ_g ω_g ‖δ_g‖₂`` over disjoint feature groups that cover 0 … d−1; `omega` (groups,) positive, ones by default.

    One-hot blocks, superpixels and embeddings then count as one feature. Raises InputError on ragged or overlapping groups.
    """

    groups: tuple[NDArray[np.intp], ...] = ()
    omega: Array | None = None

    def __init__(self, groups: Sequence[Sequence[int]], omega: ArrayLike | None = None) -> None:
        if isinstance(groups, str | bytes):
            raise InputError(f"GroupNorm: groups={groups!r:.60} is text; give lists of positions, such as [[0, 1], [2]].")
        arrays = tuple(np.asarray(wholes(f"GroupNorm: groups[{k}]", g), dtype=np.intp) for k, g in enumerate(groups))
        flat = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.intp)
        if len(flat) == 0 or not np.array_equal(np.sort(flat), np.arange(len(flat))) or any(len(g) == 0 for g in arrays):
            raise InputError(f"GroupNorm: the groups must hold every index 0 … d−1 exactly once; got {[g.tolist() for g in arrays][:4]} …")
        om = np.ones(len(arrays)) if omega is None else _positive("omega", omega)
        if len(om) != len(arrays):
            raise InputError(f"GroupNorm: {len(om)} weights for {len(arrays)} groups; give one weight per group.")
        object.__setattr__(self, "p", 1.0)
        object.__setattr__(self, "weights", None)
        object.__setattr__(self, "groups", arrays)
        object.__setattr__(self, "omega", om)

    @property
    def dim(self) -> int:
        return sum(len(g) for g in self.groups)

    @property
    def labels(self) -> NDArray[np.intp]:
        """Group number of every feature, shape (d,)."""
        out = np.empty(self.dim, dtype=np.intp)
        for k, g in enumerate(self.groups):
            out[g] = k
        return out

    @property
    def dual_p(self) -> float:
        raise InputError("GroupNorm: has no single dual exponent; use dual_value.")

    def scale(self, dim: int) -> Array:
        if dim != self.dim:
            raise InputError(f"GroupNorm: groups cover {self.dim} features, the change has {dim}.")
        return np.ones(dim)

    def group_lengths(self, delta: ArrayLike) -> Array:
        """‖δ_g‖₂ for every group: (..., groups)."""
        v = np.asarray(delta, dtype=float)
        self.scale(v.shape[-1])
        return np.stack([np.linalg.norm(v[..., g], axis=-1) for g in self.groups], axis=-1)

    def value(self, delta: ArrayLike) -> Any:
        assert self.omega is not None
        return _last(self.group_lengths(delta) @ self.omega)

    def dual_value(self, w: ArrayLike) -> Any:
        assert self.omega is not None
        return _last((self.group_lengths(w) / self.omega).max(axis=-1))

    def expression(self, delta: Any) -> Any:
        assert self.omega is not None
        self.scale(delta.shape[-1])
        return cp.sum([float(o) * cp.norm(delta[g], 2) for o, g in zip(self.omega, self.groups, strict=True)])

    @property
    def label(self) -> str:
        return f"group ℓ1/ℓ2 ({len(self.groups)} groups)"

    def __repr__(self) -> str:
        return f"GroupNorm({len(self.groups)} groups)"


def _positive(name: str, values: ArrayLike) -> Array:
    w = array(f"Norm: {name}", values).ravel()
    bad = np.flatnonzero(~(np.isfinite(w) & (w > 0)))
    if len(bad):
        raise InputError(f"Norm: {name}[{bad[0]}]={w[bad[0]]} is not finite and positive; freeze a feature with a constraint instead.")
    w.flags.writeable = False
    return w


def _last(v: Any) -> Any:
    return float(v) if np.ndim(v) == 0 else v
