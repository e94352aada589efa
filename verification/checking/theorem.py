r"""What the evidence of a certificate proves: any multipliers give a lower bound, evaluated in exact rationals.

The symbols x0, m_k, N, C are those of the claim (verification/checker.py). C is a list of parts over the input z = x0+δ or over the change δ: boxes, rows
G·≤h, equalities, balls ‖M· + e‖ ≤ ρ (total variation, ellipsoids and group norms are balls). Every row k has cells, the leaves of a binary tree of splits.
A cell is {its sides of the splits} ∩ C ∩ {N ≤ radius}; on it affine rows hold: a_i·δ + b_i ≤ m_k(δ) for a margin row, ≤ 0 for the row that states a split,
and, for a row of the flips, ≤ 0 at every δ of the cell with m_k(δ) ≤ 0 (elsewhere it says nothing). So a change of the cell that flips row k satisfies
Aδ + b ≤ 0.
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
"""

from __future__ import annotations

import math
from collections.abc import Callable

from verification.checking.document import Cell, Document, NormSpec, Split
from verification.checking.parts import coordinate_bounds, dual_up, value_up, weights
from verification.checking.rationals import ZERO, Bound, Rational, exact, least


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
