"""Bounds in print: a lower bound is cut off, an upper one raised, so that the printed figure is a bound too."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def down(value: float, digits: int) -> float:
    """The largest decimal of `digits` significant digits ≤ value, as the float that prints so; 0, infinities and NaN stay."""
    return _cut(value, digits, ROUND_FLOOR)


def up(value: float, digits: int) -> float:
    """The smallest such decimal ≥ value."""
    return _cut(value, digits, ROUND_CEILING)


def down_words(value: float, digits: int) -> str:
    return f"{down(value, digits):.{digits}g}"


def up_words(value: float, digits: int) -> str:
    return f"{up(value, digits):.{digits}g}"


def _cut(value: float, digits: int, rounding: str) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    exact = Decimal(value)
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=rounding)) if exact.adjusted() >= -300 else value
