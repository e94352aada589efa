r"""Certified radii over sets that shrink: the published bound never falls when a constraint is added.

Rows that hold on { ‖Wδ‖ ≤ r } ∩ C hold on { ‖Wδ‖ ≤ r } ∩ C ∩ C′, where fewer δ make them fall: their exact program over C ∩ C′ is worth no less. So the rows of
every set are carried to the next, solved there, and the better of them and of the rows found anew is published. The order of the sets makes each a subset of the
one before by construction; nothing is taken on trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import Array, Norm
from formulations.programs import min_norm
from formulations.sets.base import ConvexSet
from formulations.solution import Solution
from verification.decision import Decision
from verification.lirpa import BoundEngine, BoundMethod
from verification.model import batch_of
from verification.radii import CertifiedRadii, CertifiedRadius
from verification.radius import certified_radius


def nested_radii(
    model: nn.Module | BoundEngine,
    x0: Tensor | ArrayLike,
    norm: Norm | float | str,
    constraints: Sequence[ConvexSet],
    *,
    decisions: Decision | Sequence[Decision] | None = None,
    method: BoundMethod | str = "crown",
    max_passes: int = 25,
    device: torch.device | str | None = None,
) -> tuple[CertifiedRadii, ...]:
    """``lower`` over C₁, C₁ ∩ C₂, C₁ ∩ C₂ ∩ C₃ …, one answer each; no answer is below the one before it, up to 1e-9 of it.

    `constraints` are added one after another; the other arguments are those of `certified_radius`, as is what is raised. Raises InputError on an empty sequence.
    """
    if not constraints:
        raise InputError("nested_radii: give at least one constraint set.")
    x = batch_of(x0, model.input_shape if isinstance(model, BoundEngine) else None)
    engine = model if isinstance(model, BoundEngine) else BoundEngine(model, tuple(x.shape[1:]), device)
    answers: list[CertifiedRadii] = []
    whole: ConvexSet | None = None
    for constraint in constraints:
        whole = constraint if whole is None else whole & constraint
        found = certified_radius(engine, x, norm, whole, decisions=decisions, method=method, max_passes=max_passes)
        if answers:
            flat = x.flatten(1).cpu().numpy()
            carried = [_carried(item, found.norm, whole, flat[i]) for i, item in enumerate(answers[-1])]
            found = replace(found, items=tuple(_better(*pair) for pair in zip(found, carried, strict=True)))
        answers.append(found)
    return tuple(answers)


def _carried(item: CertifiedRadius, norm: Norm, constraints: ConvexSet, x0: np.ndarray) -> CertifiedRadius:
    """The same rows over a smaller set."""
    held = [row for row in item.rows if row.solution is not None]
    if len(held) < len(item.rows):
        return item
    solved = min_norm(np.stack([r.a for r in held]), np.array([r.b for r in held]), norm, constraints, np.repeat(x0[None], len(held), 0))
    rows = []
    for row, fresh in zip(held, solved, strict=True):
        s = fresh if row.solution is None or fresh.lower >= row.solution.lower else _extended(row.solution, fresh)
        rows.append(replace(row, solution=s, lower=max(0.0, min(row.radius, s.lower))))
    return replace(item, rows=tuple(rows))


def _extended(old: Solution, fresh: Solution) -> Solution:
    """The multipliers over the larger set, 0 for the parts that were added: as good a bound there, where a solver's own is worse by its tolerance."""

    def none(values: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.zeros_like(v) for name, v in values.items()}

    added = tuple(None if u is None else np.zeros_like(u) for u in fresh.duals[len(old.duals) :])
    return replace(
        fresh, lower=old.lower, duals=(*old.duals, *added), multipliers={**none(fresh.multipliers), **old.multipliers},
        prices={**{name: 0 * v for name, v in fresh.prices.items()}, **old.prices}, status=fresh.status if old.lower < np.inf else old.status,
    )  # fmt: skip


def _better(new: CertifiedRadius, carried: CertifiedRadius) -> CertifiedRadius:
    return new if new.lower >= carried.lower else carried


__all__ = ["nested_radii"]
