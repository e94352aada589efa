r"""The trees of a search by input splits as evidence for a certificate: every leaf a cell of C, with its minorant row and multipliers for it.

A leaf's program is  min ‖Wδ‖  s.t.  a·δ + b ≤ 0,  δ ∈ C,  lo ≤ x0 + δ ≤ hi.  The cell's box is no part of C; its multipliers, like those of C's own boxes,
are what w leaves (verification/checking/theorem.py), which reads the box off the path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from formulations.norms import INF, Array, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets import Box, Everything
from formulations.sets.base import ConvexSet
from verification.branching.inputs import InputLeaf, InputSplit, InputSplitResult
from verification.evidence.records import CellEvidence, Split, from_box
from verification.evidence.trees import TreeRow
from verification.radii import CertifiedRow

INPUT = "input"


def input_tree_rows(
    result: InputSplitResult, rows: Sequence[CertifiedRow], x0: Array, norm: Norm, constraints: ConvexSet | None
) -> list[CertifiedRow]:
    """The margin rows `rows`, each with its tree where that proves more. x0 flat (d,)."""
    return [_better(own, leaves, x0, norm, constraints) for own, leaves in zip(rows, result.trees, strict=True)]


def _better(own: CertifiedRow, leaves: Sequence[InputLeaf], x0: Array, norm: Norm, constraints: ConvexSet | None) -> CertifiedRow:
    if own.lower >= min((leaf.lower for leaf in leaves), default=0.0) and own.lower < INF:
        return own
    found = [_cell(leaf, x0, norm, constraints) for leaf in leaves]
    lower = min((bound for _, bound in found), default=0.0)
    if own.lower >= lower:
        return own
    return TreeRow(own.rival, own.radius, own.a, own.b, own.solution, lower, cells=tuple(cell for cell, _ in found))


def _cell(leaf: InputLeaf, x0: Array, norm: Norm, constraints: ConvexSet | None) -> tuple[CellEvidence, float]:
    lo, hi = cell_box(leaf.path, len(x0))
    inside = (constraints or Everything()) & Box(lo, hi, name="cell")
    solution = min_norm(leaf.a, leaf.b, norm, inside, x0)[0]
    lam, parts = solution.multipliers["margin"], relative_parts(inside, len(x0), x0)
    w = from_box(leaf.a[None], np.maximum(lam, 0.0), parts, solution.duals, norm)
    path = [Split(INPUT, s.feature, s.cut, s.side) for s in leaf.path]
    slopes = (leaf.slopes,) if leaf.slopes else ()
    cell = CellEvidence(leaf.radius, leaf.a[None], np.array([leaf.b]), lam, solution.duals[:-1], w=w, path=path, slopes=slopes)
    return cell, min(leaf.radius, solution.lower)


def cell_box(path: Sequence[InputSplit], dim: int) -> tuple[Array, Array]:
    """(lo, hi) over the input, ±inf where nothing was cut."""
    lo, hi = np.full(dim, -INF), np.full(dim, INF)
    for index, cut, side in path:
        if side < 0:
            hi[index] = min(hi[index], cut)
        else:
            lo[index] = max(lo[index], cut)
    return lo, hi
