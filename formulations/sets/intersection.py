"""A & B: every member must hold; each keeps its own name and multipliers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import Array
from formulations.pieces import Part
from formulations.sets.base import ConvexSet, Shifted


class Intersection(ConvexSet):
    """The intersection of convex sets, over the input, the change, or a mixture of both. Repeated names are numbered: box, box2, …

    A mixture needs an input to be laid out in one space: use `relative_to(x0)` before `support`, `project` or `contains`.
    """

    name = "intersection"

    def __init__(self, *sets: ConvexSet) -> None:
        flat: list[ConvexSet] = []
        for s in sets:
            flat += s.members()
        sizes = sorted({s.dim for s in flat if s.dim is not None})
        if len(sizes) > 1:
            raise InputError(f"Intersection: sets of different dimensions {sizes} cannot be intersected.")
        self.sets, self.dim = tuple(flat), sizes[0] if sizes else None
        kinds = {s.on for s in flat}
        self.on = kinds.pop() if len(kinds) == 1 else ("mixed" if kinds else "change")
        seen: Counter[str] = Counter()
        self.names: list[str] = []
        for s in flat:
            seen[s.name] += 1
            self.names.append(s.name if seen[s.name] == 1 else f"{s.name}{seen[s.name]}")

    def members(self) -> tuple[ConvexSet, ...]:
        return self.sets

    def parts(self, dim: int) -> tuple[Part, ...]:
        return tuple(Part(n, p.piece, p.on) for n, s in zip(self.names, self.sets, strict=True) for p in s.parts(dim))

    def constraints(self, z: Any) -> list[Any]:
        self._one_space()
        return [c for s in self.sets for c in s.constraints(z)]

    def support(self, a: ArrayLike) -> float:
        self._one_space()
        return self.sets[0].support(a) if len(self.sets) == 1 else super().support(a)

    def project(self, v: ArrayLike) -> Array:
        self._one_space()
        return self.sets[0].project(v) if len(self.sets) == 1 else super().project(v)

    def violation(self, z: ArrayLike) -> float:
        self._one_space()
        return max((s.violation(z) for s in self.sets), default=-float("inf"))

    def relative_to(self, x0: ArrayLike) -> ConvexSet:
        if self.on == "change":
            return self
        moved = Intersection(*(s.relative_to(x0) for s in self.sets))
        return moved

    def describe(self) -> str:
        return "; ".join(s.describe() for s in self.sets)

    def _one_space(self) -> None:
        if self.on == "mixed":
            raise InputError("Intersection: has sets over the input and over the change; call relative_to(x0) first.")

    def __repr__(self) -> str:
        return " & ".join(map(repr, self.sets))


__all__ = ["Intersection", "Shifted"]
