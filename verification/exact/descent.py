r"""Short witnesses: the nearest flipping point of one activation region, exactly, and the regions to try first.

On the region of δ the margin is affine, so its nearest flip is a convex program: the relaxation with every sign fixed. Its minimiser is asked to lie a
little below the margin's zero, pulled back into C and checked on the network itself; only then does it count.
"""

from __future__ import annotations

import numpy as np

from formulations.boxed import BoxedSolutions
from formulations.norms import INF, Array, GroupNorm
from formulations.pieces import BoxPiece
from formulations.programs import MinNormProgram
from verification.exact.bounds import Bounds
from verification.exact.question import Question, Witness
from verification.exact.relaxation import Relaxation, Splits

PUSHES = (3e-10, 1e-9, 1e-8, 1e-7, 1e-6)  # how far below 0 a witness's margin is asked to lie, relative to the outputs
WORTH = 1e-8  # relative gain under which a shorter witness is not worth the search
STEPS = 8


class Descent:
    """Looks for witnesses; every region is tried once for every row."""

    def __init__(self, question: Question, relaxation: Relaxation) -> None:
        self.q, self._relaxation = question, relaxation
        self._tried: set[tuple[int, bytes]] = set()
        boxed = all(isinstance(p.piece, BoxPiece) for p in question.parts) and not isinstance(question.norm, GroupNorm)
        self._program = None if boxed else MinNormProgram(question.norm, question.parts, question.dim)
        free = tuple(np.full(len(b), INF) for b in question.shifts[:-1])
        self._anywhere = Bounds(tuple(-v for v in free), free)

    def guess(self, row: int) -> float:
        """The radius of the row's linearisation at x0: +inf where it never falls. Not a bound of anything."""
        found = self._nearest(np.zeros(self.q.dim), row)
        return float(self.q.norm.value(found)) if np.isfinite(found).all() else INF

    def start(self, row: int, upper: float) -> Witness | None:
        """A witness of the row below `upper`, by repeated linearisation from δ = 0, if one is met."""
        delta = np.zeros(self.q.dim)
        for _ in range(STEPS):
            delta = self._nearest(delta, row)
            if not np.isfinite(delta).all():
                return None
            witness = self.at(delta, row, upper)
            if witness is not None:
                return witness
        return None

    def at(self, delta: Array, row: int, upper: float) -> Witness | None:
        """The nearest flip of `row` on the region of δ when it is shorter than `upper` and stands the check; then on the region where it lies, and so on."""
        best: Witness | None = None
        while (found := self._one(delta, row, upper)) is not None:
            best, upper, delta = found, found.upper, found.delta
        return best

    def _nearest(self, delta: Array, row: int) -> Array:
        """The nearest point of C where the row's linearisation at δ falls; NaN where there is none."""
        a, b = self.q.linearised(delta, row)
        if not np.isfinite(b) or not a.any():
            return np.full(self.q.dim, np.nan)
        if self._program is None:
            return np.asarray(BoxedSolutions(a[None], np.array([b]), self.q.norm, self.q.parts).delta[0])
        return self._program.solve(a[None], np.array([b])).delta

    def _one(self, delta: Array, row: int, upper: float) -> Witness | None:
        if not np.isfinite(delta).all():
            return None
        signs = [z > 0 for z in self.q.preactivations(delta)]
        key = (row, b"".join(np.packbits(s).tobytes() for s in signs))
        if key in self._tried:
            return None
        self._tried.add(key)
        splits: Splits = {(layer, j): bool(on) for layer, s in enumerate(signs) for j, on in enumerate(s)}
        size = self.q.margins(delta)[1]
        for push in PUSHES:
            point = self._relaxation.minimiser(row, self._anywhere, splits, shift=push * max(size, 1e-12))
            if not np.isfinite(point).all() or float(self.q.norm.value(point)) >= upper * (1 - WORTH):
                return None
            witness = self.q.witness(point)
            if witness is not None:
                return witness if witness.upper < upper else None
        return None
