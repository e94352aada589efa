r"""Pixels of an h × w grid, their edges, and Gaussian perturbations whose covariance the edges diagonalise.

    D (m, p)       differences along edges: first the h−1 rows of vertical edges g[i+1, j] − g[i, j], then the horizontal ones g[i, j+1] − g[i, j]
    K = DᵀD        Neumann Laplacian of the grid: the DCT-II diagonalises it, eigenvalues (2 − 2cos πk/h) + (2 − 2cos πl/w)
    padded D       2(h + w) more rows, one per side of a pixel on the border: D_b g = g. Then K is the Dirichlet Laplacian (DST-I) and is invertible

Schemes of the perturbation Z ~ N(0, Σ) of an input with p pixels:

    "edge"         Σ = σ²(K + 11ᵀ/p)         D⁺ᵀΣ = σ²D, so the linear program of LEG-TV is sparse: a network
    "independent"  Σ = σ²I                    D⁺ᵀΣ = σ²D⁺ᵀ
    "padded"       as "edge" with padded D     D⁺ᵀΣ = σ²(D + (D⁺ᵀ1)1ᵀ/p): the released code's estimator

Source: Luo, Barut, Jin, "Statistically consistent saliency estimation", section 4.2; there Σ comes from a dense SVD, here from the edges themselves:
σ(Dᵀξ + η·1/√p) with ξ ~ N(0, I_m), η ~ N(0, 1) has covariance Σ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.fft import dctn, dstn, idctn, idstn

from formulations.errors import InputError
from formulations.norms import Array
from formulations.sets.total_variation import grid_differences

SchemeName = Literal["edge", "independent", "padded"]
SCHEMES = ("edge", "independent", "padded")


@dataclass(frozen=True)
class Grid:
    """An h × w grid with its difference operator D (m, p), p = h·w pixels in row-major order; `padded` adds the border rows."""

    height: int
    width: int
    padded: bool = False

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.height * self.width < 2:
            raise InputError(f"Grid: {self.height} × {self.width} has no edges; use at least two pixels.")

    @property
    def shape(self) -> tuple[int, int]:
        return (self.height, self.width)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def edges(self) -> int:
        h, w = self.shape
        return (h - 1) * w + h * (w - 1) + (2 * (h + w) if self.padded else 0)

    @cached_property
    def D(self) -> Any:
        """(m, p) sparse."""
        inner = grid_differences(self.shape)[0]
        if not self.padded:
            return inner
        index = np.arange(self.pixels).reshape(self.shape)
        border = np.concatenate([index[0], index[-1], index[:, 0], index[:, -1]])
        rows = sp.csr_matrix((np.ones(len(border)), (np.arange(len(border)), border)), shape=(len(border), self.pixels))
        return sp.vstack([inner, rows]).tocsr()

    @cached_property
    def _spectrum(self) -> Array:
        """(h, w) eigenvalues of K."""
        h, w = self.shape
        i, j = (np.arange(1, h + 1), np.arange(1, w + 1)) if self.padded else (np.arange(h), np.arange(w))
        a, b = (h + 1, w + 1) if self.padded else (h, w)
        return np.asarray((2 - 2 * np.cos(np.pi * i / a))[:, None] + (2 - 2 * np.cos(np.pi * j / b)))

    def pseudo_inverse(self, y: ArrayLike) -> Array:
        """K⁺y for y (…, p), by two cosine (padded: sine) transforms: O(p log p)."""
        v = np.asarray(y, dtype=float)
        image = v.reshape(-1, *self.shape)
        if self.padded:
            out = idstn(dstn(image, type=1, axes=(1, 2), norm="ortho") / self._spectrum, type=1, axes=(1, 2), norm="ortho")
        else:
            spectrum = self._spectrum.copy()
            spectrum[0, 0] = np.inf  # K1 = 0
            out = idctn(dctn(image, axes=(1, 2), norm="ortho") / spectrum, axes=(1, 2), norm="ortho")
        return np.asarray(out).reshape(v.shape)

    def potential_differences(self, y: ArrayLike) -> Array:
        """D⁺ᵀy = D K⁺ y for y (p,): (m,)."""
        return np.asarray(self.D @ self.pseudo_inverse(y))

    def widest_row(self) -> float:
        """max_e ‖row e of D⁺ᵀ‖₁, the ‖D⁺‖₁ of the theorem. It is reached at an edge in the middle of the grid, so only the middle ones are evaluated."""
        h, w = self.shape
        index = np.arange(self.pixels).reshape(h, w)
        i, j = sorted({(h - 1) // 2, h // 2}), sorted({(w - 1) // 2, w // 2})
        pairs = [(index[a, b], index[a + 1, b]) for a in {max(0, h // 2 - 1), (h - 1) // 2} if a + 1 < h for b in j]
        pairs += [(index[a, b], index[a, b + 1]) for b in {max(0, w // 2 - 1), (w - 1) // 2} if b + 1 < w for a in i]
        units = np.zeros((len(pairs), self.pixels))
        for k, (a, b) in enumerate(pairs):
            units[k, a], units[k, b] = -1.0, 1.0
        return float(np.abs(self.pseudo_inverse(units)).sum(1).max())


@dataclass(frozen=True)
class Perturbation:
    """Z ~ N(0, Σ) on a grid, by `scheme`; `variance` is σ² in the squared unit of the input. Raises InputError on an unknown scheme or σ² ≤ 0."""

    height: int
    width: int
    variance: float = 0.1
    scheme: SchemeName = "edge"

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InputError(f"scheme={self.scheme!r} is not known; use one of {', '.join(SCHEMES)}.")
        if not (np.isfinite(self.variance) and self.variance > 0):
            raise InputError(f"variance={self.variance} must be positive; 0.05 … 0.3 suits pixels in [0, 1].")

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.height, self.width, self.scheme == "padded")

    @property
    def normals_per_draw(self) -> int:
        return self.grid.pixels if self.scheme == "independent" else self.grid.edges + 1

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """(n, p) draws. A sequence of calls gives the same draws however n is split."""
        normal = rng.standard_normal((n, self.normals_per_draw))
        sigma = np.sqrt(self.variance)
        if self.scheme == "independent":
            return np.asarray(sigma * normal)
        return np.asarray(sigma * ((self.grid.D.T @ normal[:, :-1].T).T + normal[:, -1:] / np.sqrt(self.grid.pixels)))

    def covariance(self) -> Array:
        """Σ (p, p), dense: for small grids and for tests."""
        p = self.grid.pixels
        return np.asarray(
            self.variance * (np.eye(p) if self.scheme == "independent" else (self.grid.D.T @ self.grid.D).toarray() + 1.0 / p)
        )

    def solve(self, y: ArrayLike) -> Array:
        """Σ⁻¹y for y (p,)."""
        v = np.asarray(y, dtype=float)
        if self.scheme == "independent":
            return np.asarray(v / self.variance)
        if self.scheme == "edge":  # Σ = σ²K on the complement of 1, σ² along 1
            return np.asarray((self.grid.pseudo_inverse(v) + v.mean()) / self.variance)
        p = self.grid.pixels  # Sherman–Morrison
        one = self.grid.pseudo_inverse(np.ones(p))
        inverse = self.grid.pseudo_inverse(v)
        return np.asarray((inverse - one * (inverse.sum() / (p + one.sum()))) / self.variance)
