r"""Multipliers and changes in the user's units.

A feature is z = (x − mean)/std, so one unit of z is `std` units of x. A bound v* that falls by μ per unit of a level in model space falls by
μ/std per unit of x (a year, a mark); a row that was divided by s before solving gives η/s per unit of its own right-hand side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.errors import InputError
from formulations.norms import Array
from formulations.semantic.columns import Categorical, Column, Numeric


@dataclass(frozen=True)
class Price:
    """Relaxing `item` by one `unit` lets the certified distance fall by at most `price` (a slope of a bound that holds globally).

    constraint  name of the set ("ranges", "fixed", …); item  the one inequality or equality in words;
    price       ≥ 0 for inequalities; for equalities, signed: per unit added to the right-hand side.
    """

    constraint: str
    item: str
    price: float
    unit: str

    def __str__(self) -> str:
        return f"{self.item}: {self.price:.4g} per {self.unit}"


@dataclass(frozen=True)
class Change:
    """What happens to one column between two points.

    before, after  in words; amount  after − before in original units for a numeric column, the share that moved (0 … 1, no unit) for a categorical one;
    relaxed        True when `after` is a fraction of a whole number or a mixture of categories: an allowed point of the relaxation only.
    """

    column: str
    before: str
    after: str
    amount: float
    unit: str
    relaxed: bool

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.column}: {self.before} → {self.after}{unit}{' (relaxed)' if self.relaxed else ''}"


def change_of(column: Column, z0: Array, z1: Array) -> Change:
    """The change of one column from features z0 to z1, each (width,)."""
    if isinstance(column, Numeric):
        before, after = column.decode(z0[None])[0], column.decode(z1[None])[0]
        amount = float(column.std * (z1[0] - z0[0]))
        fraction = column.integer and after != np.rint(after)
        return Change(column.name, f"{before:.6g}", f"{after:.6g}", amount, column.unit, bool(fraction))
    moved = float(np.abs(z1 - z0).sum() / 2)
    return Change(column.name, column.mixture(z0), column.mixture(z1), moved, "", bool(column.fractional(z1[None])[0]))


def feature_units(columns: tuple[Column, ...]) -> tuple[str, ...]:
    """The name of one original unit of every feature."""
    return tuple(unit for c in columns for unit in [unit_name(c)] * c.width)


def unit_name(column: Column) -> str:
    if isinstance(column, Categorical):
        return f"share of {column.name}"
    return f"{column.unit} of {column.name}" if column.unit else f"unit of {column.name}"


def feature_limits(columns: tuple[Column, ...]) -> tuple[tuple[float, float], ...]:
    """The allowed range of every feature in original units (shares for one-hot features)."""
    out: list[tuple[float, float]] = []
    for c in columns:
        if isinstance(c, Numeric):
            out.append((c.low, c.high))
        else:
            lo, hi = c.encoded_range()
            out += [(float(a), float(b)) for a, b in zip(lo, hi, strict=True)]
    return tuple(out)


def side_prices(
    constraint: str, sides: tuple[list[str], list[str]], multipliers: Array, scale: Array, units: tuple[str, ...]
) -> list[Price]:
    """Prices of box multipliers (2, d): `sides` says each lower and each upper bound in words."""
    d = len(scale)
    if multipliers.shape != (2, d):
        raise InputError(f"unit_price: {constraint!r} needs multipliers of shape (2, {d}), got {multipliers.shape}.")
    return [
        Price(constraint, sides[k][i], float(multipliers[k, i] / scale[i]), units[i]) for i in range(d) for k in (0, 1) if multipliers[k, i]
    ]


def row_prices(constraint: str, rows: tuple[str, ...], multipliers: Array, scale: Array, units: tuple[str, ...]) -> list[Price]:
    """Prices of row multipliers (m,), row k divided by scale[k] before solving."""
    if multipliers.shape != (len(rows),):
        raise InputError(f"unit_price: {constraint!r} needs {len(rows)} multipliers, got shape {multipliers.shape}.")
    return [Price(constraint, row, float(m / s), u) for row, m, s, u in zip(rows, multipliers, scale, units, strict=True) if m]
