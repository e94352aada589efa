r"""Points of the quadratic model: the convex restriction, moved along (convex–concave procedure).

Split H = H⁺ − H⁻ into its positive and negative parts, both ⪰ 0. −½δᵀH⁻δ is concave, so it lies below its tangent at any a:

    q(δ) ≤ q_a(δ) := m₀ + g·δ + ½δᵀH⁺δ − aᵀH⁻δ + ½aᵀH⁻a ,       with equality at δ = a                           (*)

q_a is convex, and q_a(δ) ≤ 0 implies q(δ) ≤ 0: each program  min ‖Wδ‖ s.t. q_a(δ) ≤ 0, δ ∈ C  has a smaller feasible set than the model's, so its
solution is a point of the model and its value an *upper* bound of the model's optimum. a = 0 drops the negative curvature altogether (H⁺ ⪰ H).
(Dropping the positive part instead would enlarge the feasible set, and leave it non-convex.)
With a moved to the last solution the values fall, because that solution stays feasible; a fixed point satisfies the model's own KKT conditions,
∇q_a(a) = ∇q(a) (Yuille & Rangarajan 2003; Lipp & Boyd 2016). Where no feasible a is known, the same majorant is minimised over C until q ≤ 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np

from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import Part
from formulations.quadratic.model import QuadraticModel, violation
from formulations.solve import DEFAULT_SOLVER, Claim, run

ROUNDS = 20
SLOW = 1e-8  # relative progress of a round below which a chain of tangents ends
CLEAN = 1e-7
INSIDE = 1e-9  # the row is asked to fall this far below 0, relative to m₀, so that solver tolerance does not undo it


@dataclass(frozen=True, eq=False)
class Restricted:
    """A point of the model with the multipliers (of the norm) of the restricted program that it solves."""

    value: float
    delta: Array
    lam: float
    duals: tuple[Array, ...]


class Restriction:
    """The programs of (*) compiled once for a model, a norm and parts (relative, without a batch axis); `solve(a)` as often as wanted."""

    def __init__(self, model: QuadraticModel, norm: Norm, parts: Sequence[Part], *, solver: str = DEFAULT_SOLVER) -> None:
        self.model, self.norm, self.parts, self.solver = model, norm, tuple(parts), solver
        d = model.dim
        e, V = model.eigen
        size = np.abs(e).max(initial=0.0)
        up, down = e > 1e-14 * size, e < -1e-14 * size
        self._plus = V[:, up] * np.sqrt(e[up])
        self._minus = V[:, down] * np.sqrt(-e[down])
        self._size = max(abs(model.level), 1e-300) if model.level else max(float(np.abs(model.gradient).max(initial=0.0)), 1e-300)
        self._delta, self._row, self._level = cp.Variable(d), cp.Parameter(d), cp.Parameter()
        row = self._row @ self._delta + self._level
        if self._plus.shape[1]:
            row = row + 0.5 * cp.sum_squares((self._plus / np.sqrt(self._size)).T @ self._delta)
        self._margin = row <= 0
        self._models = [p.piece.model(self._delta, p.piece.offsets()) for p in self.parts]
        inside = [c for m in self._models for c in m.constraints]
        self._squared = norm.p == 2.0 and not isinstance(norm, GroupNorm)
        objective = 0.5 * cp.sum_squares(cp.multiply(norm.scale(d), self._delta)) if self._squared else norm.expression(self._delta)
        self._nearest = cp.Problem(cp.Minimize(objective), [self._margin, *inside])
        self._lowest = cp.Problem(cp.Minimize(row), inside)

    def _place(self, a: Array) -> None:
        bent = self._minus.T @ a
        self._row.value = (self.model.gradient - self._minus @ bent) / self._size
        self._level.value = (self.model.level + 0.5 * float(bent @ bent)) / self._size + INSIDE

    def nearest(self, a: Array) -> Restricted | None:
        """The solution of the program with the tangent at a; None where the solver finds none that is feasible for the *model*."""
        self._place(a)
        outcome = run(self._nearest, solver=self.solver)
        if outcome.claim not in (Claim.OPTIMAL, Claim.INACCURATE) or self._delta.value is None:
            return None
        delta = np.asarray(self._delta.value, dtype=float)
        if violation(self.model, self.parts, delta) > CLEAN * (1 + float(np.abs(delta).max(initial=0.0))):
            return None
        value = float(self.norm.value(delta))
        factor = 1 / value if self._squared and value > 0 else 1.0
        lam = max(float(np.ravel(self._margin.dual_value)[0]), 0.0) * factor / self._size
        return Restricted(value, delta, lam, tuple(m.read() * factor for m in self._models))

    def falling(self, a: Array) -> Array | None:
        """A point of C where the majorants, and so q, have come down to 0 from a; None where they stop above it."""
        best = INF
        for _ in range(ROUNDS):
            self._place(a)
            if run(self._lowest, solver=self.solver).claim not in (Claim.OPTIMAL, Claim.INACCURATE) or self._delta.value is None:
                return None
            a = np.asarray(self._delta.value, dtype=float)
            here = self.model.value(a)
            if here <= -10 * INSIDE * self._size:
                return a
            if here > best - 1e-6 * self._size:
                return None
            best = here
        return None

    def descend(self, starts: Iterable[Array], *, enough: float = 0.0) -> Restricted | None:
        """The best fixed point met from the starts; stops at a value ≤ enough. None where no point of the model was found."""
        best: Restricted | None = None
        for a in starts:
            here = self.nearest(a)
            if here is None and (down := self.falling(a)) is not None:
                here = self.nearest(down)
            for _ in range(ROUNDS):
                if here is None:
                    break
                if best is None or here.value < best.value:
                    best = here
                after = self.nearest(here.delta) if self._minus.shape[1] else None
                here = after if after is not None and after.value < here.value * (1 - SLOW) else None
            if best is not None and best.value <= enough:
                break
        return best
