"""TotalVariation(τ) = {z : Σ_edges |z_i − z_j| ≤ τ} on a 1-D, 2-D or multi-channel grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.given import wholes
from formulations.norms import INF, GroupNorm, Norm
from formulations.pieces import BallPiece, Part
from formulations.sets.base import ConvexSet, level, on_input


class TotalVariation(ConvexSet):
    """``{z : ‖D z‖₁ ≤ budget}``, D the differences along the edges of the grid `shape` = (length,), (height, width) or (channels, height, width).

    Anisotropic (one multiplier per edge) unless `isotropic`, where the horizontal and vertical difference of a pixel form one ℓ2 group.
    Channels are not coupled. Over the change unless said otherwise. Unbounded along constants of each channel.
    """

    def __init__(self, budget: float, shape: Sequence[int], *, isotropic: bool = False, on: str = "change", name: str = "tv") -> None:
        self.budget, self.shape = level("TotalVariation: budget", budget), tuple(wholes("TotalVariation: shape", shape))
        if not 1 <= len(self.shape) <= 3 or min(self.shape) < 1:
            raise InputError(f"TotalVariation: shape={tuple(shape)} must be (length,), (height, width) or (channels, height, width).")
        self.dim = int(np.prod(self.shape))
        self.D, pixels = grid_differences(self.shape)
        self.isotropic = isotropic
        self.norm: Norm = GroupNorm(_groups(pixels)) if isotropic and len(pixels) else Norm(1)
        self.on, self.name = on_input(on), name

    def parts(self, dim: int) -> tuple[Part, ...]:
        self.check_dim(dim)
        if self.D.shape[0] == 0:
            return ()
        return (Part(self.name, BallPiece(self.D, np.zeros(self.D.shape[0]), self.budget, self.norm), self.on),)

    def support(self, a: ArrayLike) -> float:
        v = np.asarray(a, dtype=float)
        self.check_dim(len(v))
        channels = v.reshape(self.shape[0] if len(self.shape) == 3 else 1, -1)
        if np.any(np.abs(channels.sum(1)) > 1e-12 * max(1.0, np.abs(v).sum())):
            return INF  # constants of a channel are free directions
        return super().support(v - (channels.mean(1, keepdims=True) * np.ones_like(channels)).ravel())

    def value(self, z: ArrayLike) -> float:
        """Total variation of z."""
        return float(self.norm.value(self.D @ np.asarray(z, dtype=float).ravel())) if self.D.shape[0] else 0.0

    def describe(self) -> str:
        return f"{'isotropic' if self.isotropic else 'anisotropic'} total variation of the {self.on} at most {self.budget:g} on a {self.shape} grid"

    def __repr__(self) -> str:
        return f"TotalVariation({self.budget:g}, shape={self.shape})"


def grid_differences(shape: Sequence[int]) -> tuple[Any, Any]:
    """(D, pixel): D (edges, d) with rows e_j − e_i along every axis but the channel's, and for each edge the index i of its first pixel."""
    index = np.arange(int(np.prod(shape))).reshape(shape)
    axes = range(1, 3) if len(shape) == 3 else range(len(shape))
    first = [np.take(index, range(shape[k] - 1), axis=k).ravel() for k in axes]
    second = [np.take(index, range(1, shape[k]), axis=k).ravel() for k in axes]
    i, j = np.concatenate(first), np.concatenate(second)
    rows = np.arange(len(i))
    data = np.concatenate([-np.ones(len(i)), np.ones(len(j))])
    D = sp.csr_matrix((data, (np.concatenate([rows, rows]), np.concatenate([i, j]))), shape=(len(i), index.size))
    return D, i


def _groups(pixels: Any) -> list[list[int]]:
    order = np.argsort(pixels, kind="stable")
    cuts = np.flatnonzero(np.diff(pixels[order])) + 1
    return [g.tolist() for g in np.split(order, cuts)]
