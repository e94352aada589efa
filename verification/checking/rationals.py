"""Exact numbers: floats are dyadic rationals; what has to be rounded is rounded to 256 bits, in a stated direction."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from flint import fmpq

BITS = 256  # significant bits kept where a rational has to be rounded
ZERO = fmpq(0)

Rational = Any  # flint.fmpq
Bound = Any  # an fmpq, or math.inf


@lru_cache(maxsize=1 << 18)  # the same inputs and bounds come back in every check
def exact(v: float) -> Rational:
    return fmpq(*v.as_integer_ratio())


def round_up(q: Rational) -> Rational:
    """A dyadic rational ≥ q: q itself when it is dyadic, else within 2^-BITS relative."""
    n, d = int(q.p), int(q.q)
    if d & (d - 1) == 0:
        return q
    shift = max(0, BITS - n.bit_length() + d.bit_length())
    return fmpq(-((-n << shift) // d), 1 << shift)


def sqrt_up(q: Rational) -> Rational:
    """A dyadic s ≥ √q: the ceiling of √q in units of 2^-shift, at least BITS significant bits; exact when q is a square in those units."""
    n, d = int(q.p), int(q.q)
    shift = max(0, BITS - (n.bit_length() - d.bit_length()) // 2)
    m = -((-n << 2 * shift) // d)
    root = math.isqrt(m)
    return fmpq(root + (root * root < m), 1 << shift)


def float_down(q: Rational) -> float:
    """The largest float ≤ q."""
    try:
        v = int(q.p) / int(q.q)  # correctly rounded
    except OverflowError:
        return sys.float_info.max if q > 0 else -math.inf
    return math.nextafter(v, -math.inf) if exact(v) > q else v


def float_up(q: Rational) -> float:
    return -float_down(-q)


def least(bounds: Iterable[Bound]) -> Bound:
    return min((b for b in bounds if b is not math.inf), default=math.inf)


def bound_down(b: Bound) -> float:
    return math.inf if b is math.inf else float_down(b)
