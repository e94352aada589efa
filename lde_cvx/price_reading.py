"""The program whose multipliers an explanation shows, and the boundary at its witness, kept so that they can be diagnosed when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.kkt import KktDiagnosis, PriceFlag, diagnose
from formulations.norms import Array, Norm
from formulations.pieces import Part
from formulations.programs import relative_parts
from formulations.sets.base import ConvexSet
from formulations.solution import Solution
from verification.attack import WitnessMultiplier, witness_multiplier
from verification.decision import Decision


@dataclass(frozen=True, eq=False)
class BindingProgram:
    """``min ‖Wδ‖  s.t.  a·δ + b ≤ 0, δ ∈ C`` with its solution; parts over the change."""

    norm: Norm
    a: Array
    b: float
    parts: tuple[Part, ...]
    solution: Solution

    @staticmethod
    def of(norm: Norm, a: Array, b: float, constraints: ConvexSet | None, x0: Array, solution: Solution) -> BindingProgram:
        """The program at an input x0 (*shape)."""
        parts = tuple(p.at(0) for p in relative_parts(constraints, x0.size, x0.ravel()))
        return BindingProgram(norm, a, b, parts, solution)

    @cached_property
    def diagnosis(self) -> KktDiagnosis:
        """KKT residuals, the active set, and whether λ is a price. Computed when first asked for (one small program for Slater's condition)."""
        return diagnose(self.solution, self.norm, self.a, np.array([self.b]), self.parts)

    @property
    def margin_multiplier(self) -> float:
        return float(np.sum(self.solution.multipliers["margin"]))

    @property
    def flags(self) -> tuple[PriceFlag, ...]:
        return self.diagnosis.flags


@dataclass(frozen=True, eq=False)
class BoundaryAtWitness:
    """The network about a witness x0 + δ̂, `change` = δ̂ (d,): the network's own slopes there give a local multiplier."""

    model: nn.Module
    x: Tensor
    change: Array
    norm: Norm
    constraints: ConvexSet | None
    decision: Decision
    seed: int

    @cached_property
    def multiplier(self) -> WitnessMultiplier | None:
        """`witness_multiplier` at δ̂; None where δ̂ flips by so little that the search's own evaluation, in blocks, rounds it back."""
        try:
            return witness_multiplier(self.model, self.x, self.change, self.norm, self.constraints, decision=self.decision, seed=self.seed)
        except InputError:
            return None
