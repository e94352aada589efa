r"""An independent checker of certificates, and the specification of what they prove. It needs numpy and python-flint: no torch, no solver, no bound library.

    python -m verification.checker FILE…            exit 0: every file valid, 1: some file invalid, 2: some file cannot be decided

The claim
---------
A network f (sha256 of its weights), an input x0, margin rows m_k(δ) = q_k·f(x0+δ) + s_k, all > 0 at δ = 0, a norm N(δ) = ‖Wδ‖_p (or Σ_g ω_g‖δ_g‖₂)
and a convex set C of allowed changes. The certificate claims

    lower:  no δ ∈ C with N(δ) < lower makes any m_k(δ) ≤ 0          (lower = inf: no δ ∈ C at all)
    upper:  the witness z is an input with z − x0 ∈ C (up to the tolerance), N(z − x0) ≤ upper, and some m_k(z − x0) ≤ 0.

The evidence for lower
----------------------
C is a list of parts over the input z = x0+δ or over the change δ: boxes, rows G·≤h, equalities, balls ‖M· + e‖ ≤ ρ (total variation, ellipsoids and
group norms are balls). Every row k has cells, the leaves of a binary tree of splits. A cell is {its sides of the splits} ∩ C ∩ {N ≤ radius}; on it affine
rows hold: a_i·δ + b_i ≤ m_k(δ) for a margin row, ≤ 0 for the row that states a split, and, for a row of the flips, ≤ 0 at every δ of the cell with
m_k(δ) ≤ 0 (elsewhere it says nothing). So a change of the cell that flips row k satisfies Aδ + b ≤ 0.
That the rows hold is the *premise* of level A. From multipliers λ ≥ 0 (negative ones are read as 0) and u_j of part j:

    rows:  η ≥ 0,  y = Gᵀη,  σ = η·h              y·z ≤ σ on the part (negative η are read as 0; equalities: η free)
    ball:  u free, y = Mᵀu,  σ = ρ‖u‖_* − u·e      since u·(Mz+e) ≤ ‖u‖_*‖Mz+e‖
    over the input:  y·δ ≤ σ − y·x0                so that a part is never shifted in floats
    c = Aᵀλ + Σ y_j,   w any vector,   r = w + c,   lo ≤ δ ≤ hi on the cell
    L = λ·b − Σ σ_j + Σ_i min(r_i lo_i, r_i hi_i)

Theorem. Every flipping δ of the cell has N(δ)·‖w‖_* ≥ L. Proof: 0 ≥ λ·(Aδ+b) ≥ c·δ − Σσ_j + λ·b, and c·δ = r·δ − w·δ ≥ Σ min(r lo, r hi) − w·δ, so
w·δ ≥ L; and w·δ ≤ N(δ)‖w‖_*. Scaling (λ, u, w) by t > 0 scales both sides, so nothing has to be normalised:
L > 0 gives N(δ) ≥ L/‖w‖_*, and L > 0 with w = 0 says that the cell holds no flip.

Let H ≥ max N between lo and hi, and reach = min(radius, H). If L > reach·‖w‖_*, the cell holds no flip; when moreover radius ≥ H, the cell is all of C on
its side of the splits, and its bound is +inf; otherwise changes longer than the radius stay open, and the bound is the radius. If 0 < L ≤ reach·‖w‖_*, the
bound is L/‖w‖_* ≤ radius. Else it is 0. +inf is granted only if L stays large enough with every constraint relaxed by the tolerance, so that a set that is
empty by rounding proves nothing. Row k's bound is the minimum over its cells; what the evidence proves is the minimum over the rows.

Choices of w, tried in turn (the best counts): the stored one (when null: clip(−c, −W, W) at p = 1); −c; and w = 0. A coordinate where r_i would meet
an infinite side takes w_i = −c_i exactly. lo and hi are read off boxes, rows with one entry, ball rows with one entry, and input splits.

All of this is evaluated in exact rationals: floats are dyadic. Square roots, and quotients that are summed, are rounded to 256 bits, always towards the
weaker claim.

What level A decides
--------------------
The form of the file (certificate_format.py), its own hash and the hash of x0; the decision stands at x0 and x0 lies in C; the leaves cover the root (at every
node both sides of one split); lower is at most what the evidence proves; the witness lies in C (tolerance ≤ 1e-9, in each constraint's units) and is not
longer than upper; the stored outputs flip there, and contradict no row at x0 or at the witness; lower ≤ upper; the verdict follows from both. It does not
decide whether the rows hold (level B) or whether the outputs are the network's (level C, or `Certificate.check(model)` in floating point).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flint import fmpq

from verification.certificate_format import (
    FLIP_ROW,
    MARGIN_ROW,
    MAX_BYTES,
    Cell,
    Document,
    FormatError,
    NormSpec,
    PartSpec,
    Split,
    Verdict,
    input_hash,
    parse,
    read,
    self_hash,
)  # fmt: skip

__all__ = ["CheckReport", "CheckStatus", "Verdict", "check_file", "check_record", "main"]

FEASIBILITY = 1e-9  # largest feasibility tolerance that a certificate may publish, in each constraint's units
REPRODUCIBILITY = 1e-6  # largest relative difference of the outputs between machines that it may publish
REFUTED = 1e-7  # relative: a float64 evaluation of network and row does not hide a valid row by more
BITS = 256  # significant bits kept where a rational has to be rounded
ZERO = fmpq(0)

Rational = Any  # flint.fmpq
Bound = Any  # an fmpq, or math.inf


class CheckStatus(Enum):
    """Outcome of a check; the value says what it means for the reader."""

    VALID = "Everything that this level decides holds."
    INVALID = "The file is damaged, or its evidence does not support its claim: do not rely on it."
    CANNOT_DECIDE = "Nothing wrong was found, but something that this level should decide is beyond it: read the reasons."


@dataclass(frozen=True)
class CheckReport:
    """lower, upper, verdict: as published. proved, row_proved: what the evidence proves, rounded down. `premises`: what this level takes on trust."""

    status: CheckStatus
    reasons: tuple[str, ...]
    level: str = "A"
    lower: float = 0.0
    upper: float = math.inf
    verdict: Verdict | None = None
    proved: float = 0.0
    row_proved: tuple[float, ...] = ()
    premises: tuple[str, ...] = ()
    path: str = ""

    @property
    def ok(self) -> bool:
        return self.status is CheckStatus.VALID

    def __str__(self) -> str:
        return f"{self.status.name.lower().replace('_', ' ')}: {'; '.join(self.reasons) or self.status.value}"


# -------------------------------------------------------------------------------------------------------------- exact numbers


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


# ------------------------------------------------------------------------------------------------------------ norms and parts


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


# ---------------------------------------------------------------------------------------------------------------- the theorem


class Hull:
    """lo ≤ δ ≤ hi, coordinate by coordinate and exact; None where infinite."""

    def __init__(self, doc: Document) -> None:
        self.lo: list[Rational | None] = [None] * len(doc.x0)
        self.hi: list[Rational | None] = [None] * len(doc.x0)
        for part in doc.parts:
            for i, low, high in coordinate_bounds(part):
                self.tighten(i, low, high, exact(doc.x0[i]) if part.on == "input" else ZERO)

    def tighten(self, i: int, low: Rational | None, high: Rational | None, origin: Rational) -> None:
        """origin + δ_i ∈ [low, high]."""
        lo, hi = self.lo[i], self.hi[i]
        if low is not None and (lo is None or low - origin > lo):
            self.lo[i] = low - origin
        if high is not None and (hi is None or high - origin < hi):
            self.hi[i] = high - origin

    def within(self, doc: Document, path: list[Split]) -> Hull:
        """The hull of a cell."""
        cell = Hull.__new__(Hull)
        cell.lo, cell.hi = list(self.lo), list(self.hi)
        for s in path:
            if s.at == "input":
                cell.tighten(s.index, exact(s.cut) if s.side > 0 else None, exact(s.cut) if s.side < 0 else None, exact(doc.x0[s.index]))
        return cell

    def largest(self, norm: NormSpec) -> Bound:
        """H ≥ max N between lo and hi; inf when some coordinate is unbounded."""
        sizes = [max(abs(a), abs(b)) for a, b in zip(self.lo, self.hi, strict=True) if a is not None and b is not None]
        return value_up(norm, sizes) if len(sizes) == len(self.lo) else math.inf


def cell_bound(doc: Document, cell: Cell, hull: Hull) -> Bound:
    """The bound of one cell, by the theorem above: an fmpq or math.inf."""
    hull = hull.within(doc, cell.path)
    H = hull.largest(doc.norm)
    radius: Bound = math.inf if cell.radius == math.inf else exact(cell.radius)
    reach = least([radius, H])
    whole = radius is math.inf or (H is not math.inf and radius >= H)
    c, constant, relax = combine(doc, cell)
    best: Bound = ZERO
    for choose in choices(doc.norm, cell.w, len(c)):
        L, loss, w = constant, relax, []
        for i, ci in enumerate(c):
            wi = choose(i, ci)
            r = wi + ci
            if r != 0:
                end = hull.lo[i] if r > 0 else hull.hi[i]
                if end is None:
                    wi = -ci
                else:
                    L, loss = L + r * end, loss + abs(r)
            w.append(wi)
        if L <= 0:
            continue
        length = dual_up(doc.norm, w)
        most = ZERO if length == 0 else math.inf if reach is math.inf else reach * length  # of w·δ over the cell
        if most is math.inf or most >= L:
            found = L / length
        elif whole and L - exact(doc.feasibility) * loss > most:
            return math.inf
        else:
            found = ZERO if reach is math.inf else reach
        best = max(best, found)
        if not whole and best is not ZERO and best == reach:
            break  # no choice proves more
    return best


def combine(doc: Document, cell: Cell) -> tuple[list[Rational], Rational, Rational]:
    """c = Aᵀλ + Σ y_j;  λ·b − Σ σ_j;  and Σ|η| + Σ‖u‖_*, how fast the latter falls when every constraint is relaxed."""
    c = [ZERO] * len(doc.x0)
    constant, relax = ZERO, ZERO
    for a, b, lam in zip(cell.a, cell.b, cell.lam, strict=True):
        if lam > 0:
            t = exact(lam)
            constant += t * exact(b)
            c = [ci + t * exact(ai) if ai else ci for ci, ai in zip(c, a, strict=True)]
    for part, dual in zip(doc.parts, cell.duals, strict=True):
        if dual is None:
            continue
        u = [exact(max(v, 0.0) if part.kind == "rows" else v) for v in dual]
        for uj, row, right in zip(u, part.matrix, part.right, strict=True):
            if uj:
                constant += uj * exact(right) * (-1 if part.norm is None else 1)
                for i, g in row:
                    step = uj * exact(g)
                    c[i] += step
                    if part.on == "input":
                        constant += step * exact(doc.x0[i])
        size = sum((abs(v) for v in u), ZERO) if part.norm is None else dual_up(part.norm, u)
        relax += size
        constant -= exact(part.rho) * size  # ρ = 0 where the part is no ball
    return c, constant, relax


def choices(norm: NormSpec, stored: list[float] | None, dim: int) -> list[Callable[[int, Rational], Rational]]:
    """The vectors w to try, as functions of (i, c_i)."""
    tried: list[Callable[[int, Rational], Rational]] = [lambda i, c: -c, lambda i, c: ZERO]
    if stored is not None:
        return [lambda i, c: exact(stored[i]), *tried]
    if norm.p == "1":
        W = weights(norm, dim)
        return [lambda i, c: max(-W[i], min(W[i], -c)), *tried]
    return tried


def covers(paths: list[list[Split]]) -> bool:
    """Do the leaves cover the root? At every node either a leaf ends there, or both sides of one and the same split go on and are covered."""
    todo = [(paths, 0)]
    while todo:
        leaves, depth = todo.pop()
        if any(len(p) == depth for p in leaves):
            continue
        if len({p[depth].question for p in leaves}) != 1:
            return False
        todo += [([p for p in leaves if p[depth].side == side], depth + 1) for side in (-1, 1)]
    return True


def row_bounds(doc: Document) -> list[Bound]:
    """What the evidence proves of every margin row: the minimum over its cells, 0 where there is no cell or the cells do not cover."""
    hull = Hull(doc)
    return [least(cell_bound(doc, cell, hull) for cell in cells) if covers([c.path for c in cells]) else ZERO for cells in doc.cells]


# ----------------------------------------------------------------------------------------------------------------- the checks


def margins(doc: Document, outputs: list[float]) -> list[Rational]:
    f = [exact(v) for v in outputs]
    return [sum((exact(q) * v for q, v in zip(row, f, strict=True)), exact(s)) for row, s in zip(doc.rows, doc.shifts, strict=True)]


def statements(doc: Document) -> list[str]:
    """What is wrong with the question and the witness, apart from the bounds."""
    wrong: list[str] = []
    if doc.x0_sha256 != input_hash(doc.x0):
        wrong.append("input.sha256 is not the hash of x0")
    for name, value, most in (("feasibility", doc.feasibility, FEASIBILITY), ("outputs", doc.reproducibility, REPRODUCIBILITY)):
        if value > most:
            wrong.append(f"tolerances.{name}={value!r} is looser than {most!r}")
    if any(m <= 0 for m in margins(doc, doc.outputs)):
        wrong.append("outputs: the decision does not stand at x0")
    wrong += _outside(doc, doc.x0, "x0")
    if doc.witness is not None:
        wrong += _outside(doc, doc.witness, "the witness")
        if not any(m <= t for m, t in zip(margins(doc, doc.witness_outputs), _rounding(doc), strict=True)):
            wrong.append("the witness's stored outputs do not flip the decision")
    return wrong


def contradictions(doc: Document) -> list[str]:
    """Rows that the stored outputs refute: a point of the region lies in some cell, and there the rows hold."""
    points = [("x0", doc.x0, doc.outputs)] + ([] if doc.witness is None else [("the witness", doc.witness, doc.witness_outputs)])
    wrong = []
    for who, z, outputs in points:
        length, delta = float_up(distance(doc, z)), np.array([float_up(v) for v in _change(doc, z)])
        for k, (cells, m) in enumerate(zip(doc.cells, margins(doc, outputs), strict=True)):
            if cells and not any(_may_lie_in(cell, z, length, delta, float_up(m)) for cell in cells):
                wrong.append(f"rivals[{k}]: a row exceeds the margin that is stored for {who}")
    return wrong


def claims(doc: Document, bounds: list[Bound]) -> list[str]:
    """Published numbers that the evidence does not support."""
    wrong: list[str] = []
    for k, (cells, published, bound) in enumerate(zip(doc.cells, doc.row_lowers, bounds, strict=True)):
        if cells and not covers([c.path for c in cells]):
            wrong.append(f"rivals[{k}]: the cells' splits do not cover the whole region")
        wrong += _too_high(f"rivals[{k}].lower", published, bound)
    wrong += _too_high("lower", doc.lower, least(bounds))
    if doc.witness is None and doc.upper != math.inf:
        wrong.append(f"upper={doc.upper!r} has no witness")
    if doc.witness is not None and (doc.upper == math.inf or distance(doc, doc.witness) > exact(doc.upper)):
        wrong.append(f"upper={doc.upper!r} is not the witness's distance {float_up(distance(doc, doc.witness))!r} or more")
    if doc.lower > doc.upper:
        wrong.append(f"lower={doc.lower!r} exceeds upper={doc.upper!r}")
    if doc.verdict is not Verdict.of(doc.lower, doc.upper):
        wrong.append(f"verdict={doc.verdict.name} does not follow from lower={doc.lower!r} and upper={doc.upper!r}")
    return wrong


def _too_high(name: str, published: float, bound: Bound) -> list[str]:
    if bound is math.inf or (published != math.inf and exact(published) <= bound):
        return []
    return [f"{name}={published!r} exceeds what the evidence proves, {bound_down(bound)!r}"]


def _change(doc: Document, z: list[float]) -> list[Rational]:
    return [exact(a) - exact(b) for a, b in zip(z, doc.x0, strict=True)]


def distance(doc: Document, z: list[float]) -> Rational:
    """N(z − x0), exact up to a square root that is rounded up."""
    return value_up(doc.norm, _change(doc, z))


def _rounding(doc: Document) -> list[Rational]:
    """What the float64 sum q·f + s at the witness may be off by: at most m + 1 roundings, 2^-52 each, relative to Σ|q f| + |s|."""
    f = doc.witness_outputs
    sizes = [sum(abs(exact(q * 2.0**-52) * exact(v)) for q, v in zip(row, f, strict=True)) for row in doc.rows]
    return [(t + abs(exact(s * 2.0**-52))) * (len(f) + 1) for t, s in zip(sizes, doc.shifts, strict=True)]


def _outside(doc: Document, z: list[float], who: str) -> list[str]:
    delta, inputs, out = _change(doc, z), [exact(v) for v in z], []
    for part in doc.parts:
        over = ZERO if part.kind == "custom" else excess(part, inputs if part.on == "input" else delta)
        if over > exact(doc.feasibility):
            out.append(f"{who} violates part '{part.name}' by {float_up(over):.3g}")
    return out


def _may_lie_in(cell: Cell, z: list[float], length: float, delta: np.ndarray, margin: float) -> bool:
    """False when the point is on another side of an input split, or lies within the radius and refutes a row."""
    if any((z[s.index] - s.cut) * s.side < 0 for s in cell.path if s.at == "input"):
        return False
    a, b = np.array(cell.a), np.array(cell.b)
    with np.errstate(all="ignore"):
        kinds = np.array(cell.row_of)
        told = np.where(kinds == MARGIN_ROW, margin, 0.0) + np.where((kinds == FLIP_ROW) & (margin > 0), math.inf, 0.0)
        gap = a @ delta + b - told
        slack = REFUTED * (1 + np.abs(a) @ np.abs(delta) + np.abs(b) + abs(margin))
        return length >= cell.radius or not bool(np.any(gap > slack))


# --------------------------------------------------------------------------------------------------------------- entry points


def check_record(
    record: Mapping[str, Any], *, level: str = "A", model: str | Path | None = None, model_sha256: str | None = None
) -> CheckReport:
    """Checks a decoded certificate. `model`: the model file, for levels "B" and "C"; `model_sha256`: the hash of the model that the reader means."""
    try:
        own = self_hash(record)
        if record.get("sha256") != own:
            harmless = "; what it says now still follows from its evidence, as after a change of words (versions, notes)"
            told = harmless if check_record({**record, "sha256": own}).ok else ""
            return CheckReport(CheckStatus.INVALID, (f"sha256: the file's own hash does not match its content{told}",), level)
        doc = parse(record)
    except FormatError as error:
        return CheckReport(CheckStatus.INVALID, (f"format: {error}",), level)
    bounds = row_bounds(doc)
    wrong, undecided = statements(doc) + claims(doc, bounds) + contradictions(doc), []
    told = record["model"]["sha256"]
    if model_sha256 is not None and told != model_sha256:
        wrong.append(f"model.sha256: the certificate is about model {told[:12]}…, not about {model_sha256[:12]}…")
    custom = [p.name for p in doc.parts if p.kind == "custom"]
    if custom and doc.witness is not None:
        undecided.append(f"part '{custom[0]}' is the user's own code: no file can tell whether the witness lies in it")
    premises: tuple[str, ...] = (
        "rows: minorants of the margins on their cells, as the bound pass found (level B)",
        "outputs: as stored (level C)",
    )
    if level not in ("A", "B", "C") or (level != "A" and model is None):
        undecided.append(f"level {level}: {'give the model file' if level in ('B', 'C') else 'no such level, use A, B or C'}")
    elif model is not None and not wrong:
        from verification.rechecking.rows import check_model  # levels B and C build on this file

        found = check_model(doc, record["model"], model, level)
        wrong, undecided, premises = (
            wrong + found.wrong,
            undecided + found.undecided,
            premises if found.premises is None else found.premises,
        )
    status = CheckStatus.INVALID if wrong else CheckStatus.CANNOT_DECIDE if undecided else CheckStatus.VALID
    return CheckReport(
        status, tuple(wrong or undecided), level, doc.lower, doc.upper, doc.verdict,
        proved=bound_down(least(bounds)), row_proved=tuple(bound_down(b) for b in bounds), premises=premises,
    )  # fmt: skip


def check_file(
    path: str | Path, *, level: str = "A", model: str | Path | None = None, model_sha256: str | None = None, max_bytes: int = MAX_BYTES
) -> CheckReport:
    """Checks one certificate file, at level "A", "B" or "C" (the latter two with a model file); never raises on what the files hold."""
    try:
        report = check_record(read(path, max_bytes), level=level, model=model, model_sha256=model_sha256)
    except FormatError as error:
        report = CheckReport(CheckStatus.INVALID, (f"format: {error}",), level)
    return replace(report, path=str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m verification.checker", description="Checks certificates without torch, solver or bound library."
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--level", choices=["A", "B", "C"], default="A", help="A: bounds, coverage, witness; B: the rows; C: the outputs")
    parser.add_argument("--model", help="the model file (.safetensors), for levels B and C; with level A only its hash is compared")
    parser.add_argument("--model-sha256", help="refuse certificates about another model")
    given = parser.parse_args(arguments)
    seen = set()
    for f in given.files:
        report = check_file(f, level=given.level, model=given.model, model_sha256=given.model_sha256)
        seen.add(report.status)
        claim = f"  [{report.lower:g}, {report.upper:g}] {report.verdict.name}" if report.verdict and report.ok else ""
        print(f"{f}: {report}{claim}", flush=True)
    return 1 if CheckStatus.INVALID in seen else 2 if CheckStatus.CANNOT_DECIDE in seen else 0


if __name__ == "__main__":
    sys.exit(main())
