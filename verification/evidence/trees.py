r"""The trees of a branching search as evidence for a certificate: every leaf a cell, with the row that its flips obey and multipliers for it.

A leaf's row is claimed for changes that flip only,

    δ in the leaf,  ‖Wδ‖ ≤ radius,  m_k(δ) ≤ 0     ⟹     a·δ + b ≤ 0,

because the search narrows its bounds to them; the certificate says so (`FLIP_ROW`). A leaf that one row closed gets the multipliers of the exact program
min ‖Wδ‖ s.t. a·δ + b ≤ 0, δ ∈ C; a leaf that was solved as an activation region brings its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from formulations.norms import INF, Array, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets.base import ConvexSet
from formulations.solution import Solution
from formulations.support import Region
from verification.branching.answers import BranchingResult, RowTree
from verification.checking.document import FLIP_ROW
from verification.evidence.records import CellEvidence, RivalEvidence, Split
from verification.radii import CertifiedRow

METHOD = "branching"
ROUNDING = 1e-11  # relative: more than float64 takes from a row, so that outward-rounded arithmetic reaches it


@dataclass(frozen=True, eq=False)
class TreeRow(CertifiedRow):
    """One margin row of one input, proved by the leaves of a tree: `lower` is the least over them.

    radius, a, b and solution stay those of the single row that came before: leaves speak of flips below their radius only, so their multipliers are no
    slopes of anything beyond.
    """

    cells: tuple[CellEvidence, ...] = ()

    def evidence(self, method: str) -> RivalEvidence:
        return RivalEvidence(self.cells, METHOD)


def tree_rows(
    result: BranchingResult, rows: Sequence[CertifiedRow], x0: Array, norm: Norm, constraints: ConvexSet | None, names: Sequence[str]
) -> list[CertifiedRow]:
    """The margin rows `rows`, each with its tree where that proves more. x0 flat (d,); `names`: of the ReLU layers, in order (`relu_names`)."""
    parts = relative_parts(constraints, len(x0), x0)
    reach = float(Region.build(norm, parts, 1.0, len(x0), count=1).reach()[0]) * (1 + 1e-9)
    single = [leaf for tree in result.trees for leaf in tree.leaves if leaf.lam is None]
    solved: dict[int, Solution] = {}
    if single:
        a, b = np.stack([leaf.a[0] for leaf in single]), np.array([leaf.b[0] for leaf in single])
        found = min_norm(a, b, norm, constraints, np.tile(x0, (len(single), 1)))
        solved = {id(leaf): found[i] for i, leaf in enumerate(single)}
    return [_better(own, tree, solved, reach, names) for own, tree in zip(rows, result.trees, strict=True)]


def _better(own: CertifiedRow, tree: RowTree, solved: dict[int, Solution], reach: float, names: Sequence[str]) -> CertifiedRow:
    cells, bounds = [], []
    for leaf in tree.leaves:
        radius = INF if leaf.radius >= reach else leaf.radius  # then the leaf is all of C on its side of the splits
        lam, duals, lower = leaf.lam, leaf.duals, leaf.lower
        if lam is None or duals is None:
            solution = solved[id(leaf)]
            lam, duals, lower = solution.multipliers["margin"], solution.duals, solution.lower
        path = [Split(names[layer], neuron, 0.0, sign) for layer, neuron, sign in leaf.path]
        a, b, lam = _one_row(leaf.a, leaf.b, lam)
        slopes, splits = ((), ()) if leaf.splits is None else ((leaf.slopes,), (leaf.splits,))
        facets = () if leaf.splits is None or leaf.aim is None else (leaf.aim,)
        cells.append(CellEvidence(radius, a, b, lam, duals, path=path, row_of=[FLIP_ROW], slopes=slopes, splits=splits, facets=facets))
        bounds.append(min(radius, lower))
    lower = min(bounds, default=0.0)
    if own.lower >= lower:
        return own
    cells = [replace(cell, radius=min(cell.radius, lower)) for cell in cells]  # of flips beyond the row's bound nothing has to be said
    return TreeRow(own.rival, own.radius, own.a, own.b, own.solution, lower, cells=tuple(cells))


def _one_row(a: Array, b: Array, lam: Array) -> tuple[Array, Array, Array]:
    """(a (1, d), b (1,), λ (1,)): the sum of the rows that the multipliers speak of, in units of the first where that has a part, less what it is rounded by.

    Flips obey every row, so they obey the sum, which proves as much.
    """
    lam = np.nan_to_num(np.maximum(lam, 0.0), posinf=0.0, neginf=0.0)
    unit = lam[0] if lam[0] > 0 else max(float(lam.max()), 0.0)
    weight = lam / unit if unit > 0 else np.eye(len(b))[0]
    if not np.isfinite(weight).all():
        return a[:1], b[:1], lam[:1]
    return (weight @ a)[None], np.array([weight @ b - ROUNDING * (weight @ np.abs(b))]), np.array([unit])


def relu_names(model: nn.Module) -> list[str]:
    """The layers' names of a ReLU chain, in order; a ReLU that is called as a function goes by its name in the trace."""
    traced = torch.fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    names = []
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.ReLU):
            names.append(str(node.target))
        elif node.target in (torch.relu, nn.functional.relu, "relu"):
            names.append(str(node.name))
    return names
