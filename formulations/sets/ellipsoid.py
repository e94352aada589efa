"""Ellipsoid(center, L, radius) = {z : ‖L(z − center)‖₂ ≤ radius}: with LᵀL = Σ⁻¹ the Mahalanobis ball, for changes that stay plausible."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.given import array
from formulations.norms import INF, Norm
from formulations.pieces import BallPiece, Part
from formulations.sets.base import ConvexSet, level, on_input, vector


class Ellipsoid(ConvexSet):
    """``{z : ‖L(z − center)‖₂ ≤ radius}``, L (k, d) dense or sparse; over the input unless said otherwise.

    L may be flat (k < d): then the set is unbounded along its kernel. Raises InputError on shapes that do not fit.
    """

    def __init__(self, center: ArrayLike, L: Any, radius: float, *, on: str = "input", name: str = "ellipsoid") -> None:
        self.center, self.radius = vector("Ellipsoid: center", center).ravel(), level("Ellipsoid: radius", radius)
        self.L = sp.csr_matrix(L if sp.issparse(L) else np.atleast_2d(array("Ellipsoid: L", L)), dtype=float)
        vector("Ellipsoid: L", self.L.data)
        self.dim = len(self.center)
        if self.L.shape[1] != self.dim:
            raise InputError(
                f"Ellipsoid: L has {self.L.shape[1]} columns and the centre {self.dim} entries; they act on the same features."
            )
        self.on, self.name = on_input(on), name
        self._offset, self._norm = -(self.L @ self.center), Norm(2)

    @staticmethod
    def from_data(X: ArrayLike, radius: float, *, name: str = "ellipsoid") -> Ellipsoid:
        """The set of inputs within Mahalanobis distance `radius` of the mean of X (n, d), with a Ledoit–Wolf covariance (J. Multivar. Anal. 2004).

        Constant columns are refused: they have no distance.
        """
        from sklearn.covariance import LedoitWolf

        data = vector("Ellipsoid.from_data: X", X)
        if data.ndim != 2:
            raise InputError(f"Ellipsoid.from_data: X has shape {data.shape}; give (rows, features).")
        flat = np.flatnonzero(data.std(axis=0) == 0)
        if len(flat):
            raise InputError(f"Ellipsoid.from_data: column {flat[0]} is constant; drop it or freeze it with a constraint.")
        fitted = LedoitWolf().fit(data)
        # Σ = R Rᵀ, so ‖R⁻¹ z‖² = zᵀΣ⁻¹z
        return Ellipsoid(fitted.location_, np.linalg.inv(np.linalg.cholesky(fitted.covariance_)), radius, name=name)

    def parts(self, dim: int) -> tuple[Part, ...]:
        self.check_dim(dim)
        return (Part(self.name, BallPiece(self.L, self._offset, self.radius, self._norm), self.on),)

    def support(self, a: ArrayLike) -> float:
        """c·a + ρ‖y‖₂ with Lᵀy = a of least length; +inf when a is outside the range of Lᵀ."""
        v = np.asarray(a, dtype=float)
        self.check_dim(len(v))
        y = np.linalg.lstsq(self.L.toarray().T, v, rcond=None)[0]
        if np.abs(self.L.T @ y - v).max(initial=0) > 1e-9 * max(1.0, np.abs(v).max(initial=0)):
            return INF
        return float(self.center @ v + self.radius * np.linalg.norm(y))

    def distance(self, z: ArrayLike) -> float:
        """‖L(z − center)‖₂."""
        return float(np.linalg.norm(self.L @ np.asarray(z, dtype=float).ravel() + self._offset))

    def describe(self) -> str:
        return f"within distance {self.radius:g} of a centre, measured by a given {self.L.shape[0]}×{self.dim} matrix, over the {self.on}"

    def __repr__(self) -> str:
        return f"Ellipsoid(radius={self.radius:g}, d={self.dim})"
