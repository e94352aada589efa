r"""One activation region as a convex program: with all signs s fixed every z_j is affine, so a flip there is  m ≤ 0,  s_j z_j ≥ 0,  δ ∈ C.

Its least norm is a verified lower bound of the region's flips, and its minimiser is a real input that flips, where one is within the radius.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from formulations.norms import Array
from formulations.pieces import BoxPiece, Part
from formulations.programs import MinNormProgram
from formulations.solution import Solution
from verification.exact.question import Question


@dataclass(frozen=True, eq=False)
class RegionProgram:
    """The program compiled once for all regions of a question. Neurons with one sign on the whole region of the question need no row."""

    question: Question
    parts: tuple[Part, ...]
    boxed: bool
    moving: tuple[NDArray[np.intp], ...]
    program: MinNormProgram

    @staticmethod
    def of(question: Question, plain: tuple[tuple[Tensor, ...], tuple[Tensor, ...]], hull: Array | None) -> RegionProgram:
        """`plain`: bounds (1, h) of every layer over the region, without splits and caps; `hull` (d,) a box |δ_i| ≤ hull_i that holds C, if it has none.

        The box changes nothing but that a ray which proves a region empty leaves a residual to be absorbed.
        """
        moving = tuple(np.flatnonzero(((l < 0) & (u > 0))[0].cpu().numpy()) for l, u in zip(*plain, strict=True))
        rows = 1 + sum(len(m) for m in moving)
        extra = () if hull is None else (Part("hull", BoxPiece(-hull, hull), "change"),)
        parts = (*question.parts, *extra)
        return RegionProgram(question, parts, hull is not None, moving, MinNormProgram(question.norm, parts, question.dim, rows=rows))

    def solve(self, row: int, signs: list[NDArray[np.int64]]) -> tuple[Array, Array, Solution]:
        """(A (K, d), b (K,), solution): the margin first, then one row per neuron that moves, −s_j z_j ≤ 0."""
        q = self.question
        A, b = [], []
        slope, shift = np.eye(q.dim), np.zeros(q.dim)
        for W, beta, sign, moving in zip(q.weights[:-1], q.shifts[:-1], signs, self.moving, strict=True):
            slope, shift = W @ slope, W @ shift + beta
            A.append(-sign[moving, None] * slope[moving])
            b.append(-sign[moving] * shift[moving])
            active = (sign > 0).astype(float)
            slope, shift = slope * active[:, None], shift * active
        r, c = q.margin_row(row)
        rows, offsets = np.concatenate([(r @ slope)[None], *A]), np.concatenate([[r @ shift + c], *b])
        return rows, offsets, self.program.solve(rows, offsets, self.parts)

    def multipliers(self, lam: Array, path: Sequence[tuple[int, int, int]]) -> Array:
        """β (path,) of the splits (layer, neuron, sign) in the sum λ·rows over λ_0: the multipliers of m − Σ β_j s_j z_j. 0 where λ_0 = 0."""
        starts = np.cumsum([1, *map(len, self.moving)])
        found = np.zeros(len(path))
        for i, (layer, neuron, _) in enumerate(path):
            at = np.flatnonzero(self.moving[layer] == neuron)
            if len(at) and lam[0] > 0:
                found[i] = lam[starts[layer] + at[0]] / lam[0]
        return found

    def beyond(self, rows: Array, offsets: Array, depth: float) -> Array:
        """The nearest change of the region whose margin is −depth or less: it flips for certain where the boundary itself leaves rounding to decide."""
        moved = offsets.copy()
        moved[0] += depth
        return self.program.solve(rows, moved, self.parts).delta
