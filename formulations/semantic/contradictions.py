r"""When linear rows contradict each other, and the proof in words.

Farkas: the rows  G x ≤ h  have no common point  ⇔  some y ≥ 0 has  Gᵀy = 0  and  h·y < 0  (their y-weighted sum reads 0 ≤ h·y < 0).

The y is sought as a vertex of  {y ≥ 0, Gᵀy = 0, Σy = 1}  by linear programming in floats. At a vertex the columns (g_k, 1), k ∈ support, are
linearly independent, so  Σ y_k g_k = 0  determines y on its support up to scale: it is solved again there in rationals, and only a y that
passes Farkas' conditions exactly is returned. The support of a vertex is minimal: leave one row out and nothing is contradicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from formulations.norms import Array


@dataclass(frozen=True)
class LinearRow:
    """``Σ coefficient·variable ≤ bound``, exact; `text` says it in the user's words."""

    text: str
    coefficients: tuple[tuple[str, Fraction], ...]
    bound: Fraction


@dataclass(frozen=True)
class Contradiction:
    """Rows that cannot hold together: Σ weight·row reads ``0 ≤ −excess`` with excess > 0. Weights are positive whole numbers."""

    rows: tuple[LinearRow, ...]
    weights: tuple[int, ...]
    excess: Fraction

    def words(self) -> str:
        listed = "; ".join(row.text for row in self.rows)
        weights = ", ".join(map(str, self.weights))
        plain = all(w == 1 for w in self.weights)
        how = "added together" if plain else f"added with weights {weights}"
        return f"{listed}: {how} they read 0 <= {-float(self.excess):g}"

    def holds(self) -> bool:
        """Farkas' conditions, checked in rationals."""
        total: dict[str, Fraction] = {}
        bound = Fraction(0)
        for row, weight in zip(self.rows, self.weights, strict=True):
            bound += weight * row.bound
            for name, c in row.coefficients:
                total[name] = total.get(name, Fraction(0)) + weight * c
        return all(w > 0 for w in self.weights) and not any(total.values()) and bound == -self.excess and bound < 0


def find_contradiction(rows: Sequence[LinearRow]) -> Contradiction | None:
    """A minimal set of `rows` without a common point, with its proof; None when none could be proved."""
    if not rows:
        return None
    candidate = _vertex(rows)
    if candidate is None:
        return None
    for threshold in (1e-9, 1e-7, 1e-5):  # what counts as support in floats; the exact check below decides
        support = [row for row, y in zip(rows, candidate, strict=True) if y > threshold]
        weights = _balance(support)
        if weights is None:
            continue
        excess = -sum((w * row.bound for w, row in zip(weights, support, strict=True)), start=Fraction(0))
        found = Contradiction(tuple(support), weights, excess)
        if found.holds():
            return found
    return None


def _vertex(rows: Sequence[LinearRow]) -> Array | None:
    """argmin h·y over {y ≥ 0, Gᵀy = 0, Σy = 1} as a vertex, rows and columns scaled near 1; None when the set is empty."""
    from scipy.optimize import linprog

    names = sorted({name for row in rows for name, _ in row.coefficients})
    place = {name: j for j, name in enumerate(names)}
    G, h = np.zeros((len(rows), len(names))), np.array([float(row.bound) for row in rows])
    for k, row in enumerate(rows):
        for name, c in row.coefficients:
            G[k, place[name]] += float(c)
    size = np.abs(G).max(axis=1, initial=0)
    size[size == 0] = 1.0
    G, h = G / size[:, None], h / size
    column = np.abs(G).max(axis=0, initial=0)
    column[column == 0] = 1.0
    answer = linprog(h, A_eq=np.vstack([(G / column).T, np.ones(len(rows))]), b_eq=np.append(np.zeros(len(names)), 1.0), method="highs-ds")
    return None if answer.x is None or answer.status != 0 else np.asarray(answer.x, dtype=float)


def _balance(rows: Sequence[LinearRow]) -> tuple[int, ...] | None:
    """The positive whole weights with Σ weight·row = 0, when they are unique up to scale; None otherwise. Elimination in rationals."""
    names = sorted({name for row in rows for name, _ in row.coefficients})
    matrix = [[dict(row.coefficients).get(name, Fraction(0)) for row in rows] for name in names]
    pivots: list[int] = []
    for j in range(len(rows)):
        i = next((i for i in range(len(pivots), len(matrix)) if matrix[i][j]), None)
        if i is None:
            continue
        r = len(pivots)
        matrix[r], matrix[i] = matrix[i], matrix[r]
        head = matrix[r][j]
        matrix[r] = [v / head for v in matrix[r]]
        for other in range(len(matrix)):
            if other != r and matrix[other][j]:
                c = matrix[other][j]
                matrix[other] = [v - c * p for v, p in zip(matrix[other], matrix[r], strict=True)]
        pivots.append(j)
    free = [j for j in range(len(rows)) if j not in pivots]
    if len(free) != 1:
        return None
    y = [Fraction(0)] * len(rows)
    y[free[0]] = Fraction(1)
    for r, j in enumerate(pivots):
        y[j] = -matrix[r][free[0]]
    if any(v <= 0 for v in y):
        return None
    common = lcm(*(v.denominator for v in y))
    whole = [int(v * common) for v in y]
    divisor = gcd(*whole)
    return tuple(v // divisor for v in whole)
