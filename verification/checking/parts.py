"""Norms and the parts of a set in exact rationals: values, dual norms and violations, rounded up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flint import fmpq

from verification.checking.document import Document, NormSpec, PartSpec
from verification.checking.rationals import ZERO, Rational, exact, round_up, sqrt_up


def value_up(norm: NormSpec, v: Sequence[Rational]) -> Rational:
    """An upper bound of ‖v‖, exact up to square roots."""
    if norm.p == "group":
        return sum((w * _length(v, g) for g, w in zip(norm.groups, map(exact, norm.weights or ()), strict=True)), ZERO)
    if norm.weights is None:
        return _plain(norm.p, [abs(x) for x in v])
    return _plain(norm.p, [abs(x) * exact(w) for x, w in zip(v, norm.weights, strict=True)])


def dual_up(norm: NormSpec, w: Sequence[Rational]) -> Rational:
    """An upper bound of the dual norm ‖w‖_* = max {w·v : ‖v‖ ≤ 1}."""
    if norm.p == "group":
        return max(round_up(_length(w, g) / om) for g, om in zip(norm.groups, map(exact, norm.weights or ()), strict=True))
    conjugate = {"1": "inf", "2": "2", "inf": "1"}[norm.p]
    if norm.weights is None:
        return _plain(conjugate, [abs(x) for x in w])
    return _plain(conjugate, [round_up(abs(x) / exact(om)) if x else ZERO for x, om in zip(w, norm.weights, strict=True)])


def _plain(p: str, v: list[Rational]) -> Rational:
    """‖v‖_p of non-negative entries, rounded up."""
    if p == "inf":
        return max(v, default=ZERO)
    return sum(v, ZERO) if p == "1" else sqrt_up(sum((x * x for x in v if x), ZERO))


def _length(v: Sequence[Rational], group: list[int]) -> Rational:
    return _plain("2", [abs(v[i]) for i in group])


def weights(norm: NormSpec, dim: int) -> list[Rational]:
    """Numbers ω with ω_i|v_i| ≤ ‖v‖: the diagonal of W, or the weight of i's group."""
    out = [fmpq(1)] * dim if norm.weights is None or norm.groups else [exact(w) for w in norm.weights]
    for group, w in zip(norm.groups, norm.weights or (), strict=False):
        for i in group:
            out[i] = exact(w)
    return out


def change(doc: Document, z: Sequence[float]) -> list[Rational]:
    """z − x0, exactly."""
    return [exact(a) - exact(b) for a, b in zip(z, doc.x0, strict=True)]


def distance(doc: Document, z: Sequence[float]) -> Rational:
    """N(z − x0), exact up to a square root that is rounded up."""
    return value_up(doc.norm, change(doc, z))


def excess(part: PartSpec, z: list[Rational]) -> Rational:
    """By how much a part is violated at z, in its own units, rounded up; ≤ 0 inside."""
    if part.kind == "box":
        low = [exact(a) - x for a, x in zip(part.lo, z, strict=True) if a != -math.inf]
        high = [x - exact(b) for b, x in zip(part.hi, z, strict=True) if b != math.inf]
        return max(low + high, default=ZERO)
    image = [sum((exact(g) * z[i] for i, g in row), ZERO) for row in part.matrix]
    if part.norm is not None:
        return value_up(part.norm, [a + exact(e) for a, e in zip(image, part.right, strict=True)]) - exact(part.rho)
    gaps = [a - exact(h) for a, h in zip(image, part.right, strict=True)]
    return max((abs(g) if part.kind == "equalities" else g for g in gaps), default=ZERO)


def coordinate_bounds(part: PartSpec) -> Iterable[tuple[int, Rational | None, Rational | None]]:
    """Bounds (i, lo, hi) on single coordinates that follow from a part, None where there is none, rounded outwards."""
    for i, (a, b) in enumerate(zip(part.lo, part.hi, strict=True)):
        yield i, None if a == -math.inf else exact(a), None if b == math.inf else exact(b)
    omega = None if part.norm is None else weights(part.norm, len(part.matrix))
    for j, row in enumerate(part.matrix):
        if len(row) != 1 or row[0][1] == 0:
            continue
        (i, entry), right = row[0], exact(part.right[j])
        g = exact(entry)
        if omega is not None:  # ω|g z_i + e_j| ≤ ‖Mz + e‖ ≤ ρ
            ends = sorted([(-right - exact(part.rho) / omega[j]) / g, (-right + exact(part.rho) / omega[j]) / g])
        else:
            ends = [right / g, right / g]
        yield (
            i,
            None if part.kind == "rows" and entry > 0 else -round_up(-ends[0]),
            None if part.kind == "rows" and entry < 0 else round_up(ends[1]),
        )
