r"""Multipliers as prices.

Let v(t) be the optimum of the min-norm program when the level of one constraint moves by t: a row b_k, a right-hand side h_i, a budget or
radius ρ, a bound lo_i or hi_i. v is convex in t where the constraint is convex in (δ, t), and by weak duality the multipliers give a *global* minorant

    v(t) ≥ lower + slope · t      for every t (with the same multipliers, no matter how far),

    slope:   b_k: +λ_k      h_i: −η_i      ρ: −‖u‖_*      hi_i: −μ⁺_i      lo_i: +μ⁻_i .

So a price is a promise, not only a derivative. Where left and right derivative differ, multipliers are not unique and a single price says only
which of many supporting lines the solver found: `one_sided_prices` finds both sides by re-solving, and calls that *degenerate*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from formulations.errors import InputError
from formulations.norms import Array
from formulations.pieces import BallPiece, BoxPiece, Part, RowsPiece
from formulations.programs import MinNormProgram
from formulations.solution import Solution


@dataclass(frozen=True)
class Level:
    """One number that a constraint can be moved by: `part` (index into the parts; −1 for the margin rows), `index` within it, `side` for boxes."""

    part: int
    index: int = 0
    side: str = "upper"


@dataclass(frozen=True)
class Price:
    """Slope of v at a level: the multiplier's (`slope`), and the left and right difference quotients. `degenerate`: the two sides differ."""

    slope: float
    left: float
    right: float
    degenerate: bool


def slope(solution: Solution, parts: Sequence[Part], level: Level) -> float:
    """dv/d(level) as the multipliers have it; the slope of the global minorant. Raises InputError for a level that the part does not have."""
    if level.part < 0:
        return float(solution.multipliers["margin"][level.index])
    piece, u = parts[level.part].piece, solution.duals[level.part]
    if isinstance(piece, RowsPiece):
        return -float(u[level.index])
    if isinstance(piece, BallPiece):
        return -float(piece.norm.dual_value(u))
    if isinstance(piece, BoxPiece):
        return -float(u[1, level.index]) if level.side == "upper" else float(u[0, level.index])
    raise InputError(f"Level: {parts[level.part].name} has no level that can be priced; it is a custom set.")


def shifted(b: Array, parts: Sequence[Part], level: Level, t: float) -> tuple[Array, tuple[Part, ...]]:
    """The program's offsets with one level moved by t."""
    if level.part < 0:
        moved = b.copy()
        moved[level.index] += t
        return moved, tuple(parts)
    part = parts[level.part]
    piece = part.piece
    step = np.zeros(piece.dim if isinstance(piece, BoxPiece) else piece.multiplier_shape[0])
    if isinstance(piece, BallPiece):
        new: BallPiece | RowsPiece | BoxPiece = replace(piece, rho=float(piece.rho) + t)
    elif isinstance(piece, RowsPiece):
        step[level.index] = t
        new = replace(piece, h=piece.h + step)
    elif isinstance(piece, BoxPiece):
        step[level.index] = t
        new = BoxPiece(piece.lo, piece.hi + step) if level.side == "upper" else BoxPiece(piece.lo + step, piece.hi)
    else:
        raise InputError(f"Level: {part.name} has no level that can be moved; it is a custom set.")
    return b, (*parts[: level.part], replace(part, piece=new), *parts[level.part + 1 :])


def minorant_after_shift(solution: Solution, parts: Sequence[Part], level: Level, t: float) -> float:
    """lower + slope·t: a lower bound of the optimum after the level moved by t, from the multipliers at hand (up to rounding of the slope)."""
    return solution.lower + slope(solution, parts, level) * t


def one_sided_prices(
    program: MinNormProgram, A: Array, b: Array, parts: Sequence[Part], solution: Solution, level: Level, *, step: float = 1e-4, agree: float = 1e-2
) -> Price:  # fmt: skip
    """Left and right derivative of v at a level by two more solves, beside the multiplier's slope. `agree`: relative difference of the sides above which
    the level counts as degenerate."""
    sides = []
    for t in (-step, step):
        moved_b, moved = shifted(b, parts, level, t)
        sides.append((program.solve(A, moved_b, moved).value - solution.value) / t)
    left, right = sides
    size = max(abs(left), abs(right), 1e-6)
    return Price(slope(solution, parts, level), left, right, bool(not np.isfinite(left + right) or abs(left - right) > agree * size))
