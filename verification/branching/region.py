r"""One activation region as a convex program: with all signs s fixed every z_j is affine, so a flip there is  m ≤ 0,  s_j z_j ≥ 0,  δ ∈ C.

Its least norm is a verified lower bound of the region's flips, and its minimiser is a real input that flips, where one is within the radius.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from formulations.norms import Array
from formulations.pieces import BoxPiece, Part
from formulations.programs import MinNormProgram
from formulations.solution import Solution
from verification.branching.answers import Split
from verification.exact.question import Question


@dataclass(frozen=True, eq=False)
class Settled:
    """A region with nothing left to bound: no change of it shorter than `lower` flips.

    a (K, d), b (K,)   what its flips obey, a·δ + b ≤ 0; lam, duals: the multipliers of these rows and of the set that prove `lower`, None: the rows alone do
    splits             multipliers of the path's splits
    flip               the program's minimiser, where it flips up to the solver's accuracy
    """

    a: Array
    b: Array
    lower: float
    lam: Array | None
    duals: tuple[Array, ...] | None
    splits: Array | None
    flip: Array | None


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

    def settle(
        self,
        row: int,
        signs: list[NDArray[np.int64]],
        path: Sequence[Split],
        radius: float,
        alone: Callable[[], tuple[float, Array, Array]],
    ) -> Settled:
        """The region's leaf at radius R; `path` its splits, `alone` what the cell's own row proves: (lower, a (1, d), b (1,))."""
        A, b = self.rows(row, signs)
        solution = self.program.solve(A, b, self.parts)
        lower, lam = solution.lower, solution.multipliers["margin"]
        met = lower < radius and self._converged(A, b, solution)
        flip = solution.delta if met else None
        if lower <= radius and not met:
            own, row_a, row_b = alone()
            if own > lower:  # the solver failed: the cell's own row says more
                return Settled(row_a, row_b, min(own, radius), None, None, None, None)
        if lower > radius:  # signs that are no split of the cell were fixed for changes within the radius alone
            lower = radius
        elif lower == radius:
            lower = float(np.nextafter(lower, 0.0))  # a flip at this very distance is not excluded
        splits = self.multipliers(lam, path)
        if not self.boxed:
            return Settled(A, b, lower, lam, solution.duals, splits, flip)
        # multipliers of the hull are none of C's: what stays true is the sum of the rows
        weight = np.nan_to_num(lam / max(float(np.abs(lam).max(initial=0.0)), 1e-300), posinf=0.0, neginf=0.0).clip(min=0)
        weight = weight if weight.any() else np.eye(len(b))[0]
        return Settled((weight @ A)[None], np.array([weight @ b]), lower, None, None, splits, flip)

    def _converged(self, A: Array, b: Array, solution: Solution) -> bool:
        """Is there a flip at `lower`, up to the solver's accuracy? A region that is empty has none, though that was not proved."""
        if not np.isfinite(solution.delta).all():
            return False
        outside = float((A @ solution.delta + b).max()) / (1 + float(np.abs(b).max(initial=0.0)))
        return outside <= 1e-6 and float(self.question.norm.value(solution.delta)) <= solution.lower + 1e-4 * (solution.lower + 1e-3)

    def rows(self, row: int, signs: list[NDArray[np.int64]]) -> tuple[Array, Array]:
        """(A (K, d), b (K,)): the margin first, then one row per neuron that moves, −s_j z_j ≤ 0."""
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
        return np.concatenate([(r @ slope)[None], *A]), np.concatenate([[r @ shift + c], *b])

    def multipliers(self, lam: Array, path: Sequence[Split]) -> Array:
        """β (path,) of the splits (layer, neuron, sign) in the sum λ·rows over λ_0: the multipliers of m − Σ β_j s_j z_j. 0 where λ_0 = 0."""
        starts = np.cumsum([1, *map(len, self.moving)])
        found = np.zeros(len(path))
        for i, (layer, neuron, _) in enumerate(path):
            at = np.flatnonzero(self.moving[layer] == neuron)
            if len(at) and lam[0] > 0:
                found[i] = lam[starts[layer] + at[0]] / lam[0]
        return found

    def beyond(self, row: int, signs: list[NDArray[np.int64]], depth: float) -> Array:
        """The nearest change of the region whose margin is −depth·(1 + |b|_∞) or less: it flips for certain where the boundary itself leaves rounding to decide."""
        A, b = self.rows(row, signs)
        b[0] += depth * (1 + float(np.abs(b).max(initial=0.0)))
        return self.program.solve(A, b, self.parts).delta
