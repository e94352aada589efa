"""LpBall(p, radius) = {z : ‖W(z − center)‖_p ≤ radius}."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, Part, identity
from formulations.sets.base import ConvexSet, level, on_input, vector


class LpBall(ConvexSet):
    """``{z : ‖z − center‖ ≤ radius}`` in any `Norm` (p = 1, 2, "inf", weighted, grouped); over the change unless said otherwise.

    Raises InputError on a negative or infinite radius.
    """

    def __init__(
        self, p: float | str | Norm, radius: float, *, center: ArrayLike | None = None, on: str = "change", name: str = "ball"
    ) -> None:
        self.norm, self.radius = Norm.of(p), level("LpBall: radius", radius)
        self.center = None if center is None else vector("LpBall: center", center).ravel()
        sizes = {len(v) for v in (self.center, self.norm.weights) if v is not None}
        if isinstance(self.norm, GroupNorm):
            sizes.add(self.norm.dim)
        if len(sizes) > 1:
            raise InputError(f"LpBall: center and norm have different sizes {sorted(sizes)}.")
        self.dim = sizes.pop() if sizes else None
        self.on, self.name = on_input(on), name

    def _center(self, dim: int) -> Array:
        self.check_dim(dim)
        return np.zeros(dim) if self.center is None else self.center

    def parts(self, dim: int) -> tuple[Part, ...]:
        return (Part(self.name, BallPiece(identity(dim), -self._center(dim), self.radius, self.norm), self.on),)

    def support(self, a: ArrayLike) -> float:
        v = np.asarray(a, dtype=float)
        return float(self._center(len(v)) @ v + self.radius * self.norm.dual_value(v))

    def project(self, v: ArrayLike) -> Array:
        p = np.asarray(v, dtype=float)
        center = self._center(len(p))
        gap = p - center
        if self.norm.value(gap) <= self.radius:
            return p.copy()
        if isinstance(self.norm, GroupNorm) or (self.norm.p == 2 and self.norm.weights is not None):
            return super().project(p)
        if self.norm.p == 2:
            return center + gap * (self.radius / np.linalg.norm(gap))
        w = self.norm.scale(len(p))
        if self.norm.p == INF:
            return center + np.clip(gap, -self.radius / w, self.radius / w)
        return center + _project_weighted_l1(gap, w, self.radius)

    def describe(self) -> str:
        centre = "" if self.center is None else " around a given centre"
        return f"{self.norm.label} ball of radius {self.radius:g} over the {self.on}{centre}"

    def __repr__(self) -> str:
        return f"LpBall({self.norm.label}, {self.radius:g})"


def _project_weighted_l1(v: Array, w: Array, radius: float) -> Array:
    """argmin ‖x − v‖₂ s.t. Σ w|x| ≤ radius: soft threshold at θw, θ from the sorted breakpoints |v|/w (Duchi et al. 2008, weighted)."""
    ratio = np.abs(v) / w
    order = np.argsort(-ratio)
    wv, ww = np.cumsum((w * np.abs(v))[order]), np.cumsum((w * w)[order])
    theta_k = (wv - radius) / ww
    k = int(np.flatnonzero(ratio[order] > theta_k)[-1]) if radius > 0 else len(v) - 1
    theta = theta_k[k] if radius > 0 else float(ratio.max())
    return np.sign(v) * np.maximum(np.abs(v) - theta * w, 0)
