"""What a certificate's claim is worth, judged without the checker: the programs of its own evidence by the solver, and the network's own radius."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from formulations.errors import InputError
from formulations.norms import GroupNorm, Norm
from formulations.pieces import BallPiece, Part
from formulations.programs import min_norm
from formulations.sets import Box, Intersection, Polytope
from formulations.sets.base import ConvexSet
from formulations.status import Status
from verification.checking.document import Cell, Document, NormSpec, PartSpec
from verification.decision import Decision
from verification.exact import exact_radius

FAR = 1e6


class Ball(ConvexSet):
    """One ball of a file, as it is."""

    def __init__(self, part: PartSpec, M: np.ndarray) -> None:
        assert part.norm is not None
        self.on, self.name, self.dim = part.on, part.name, M.shape[1]
        self.piece = BallPiece(sp.csr_matrix(M), np.array(part.right), part.rho, norm_of(part.norm))

    def parts(self, dim: int) -> tuple[Part, ...]:
        return (Part(self.name, self.piece, self.on),)


def norm_of(spec: NormSpec) -> Norm:
    if spec.p == "group":
        return GroupNorm(spec.groups, spec.weights)
    return Norm({"1": 1, "2": 2, "inf": "inf"}[spec.p], spec.weights)


def set_of(doc: Document) -> ConvexSet:
    """C, from the parts that the file lists."""
    parts: list[ConvexSet] = []
    for p in doc.parts:
        if p.kind == "box":
            lo, hi = ([v if abs(v) < FAR else math.copysign(math.inf, v) for v in side] for side in (p.lo, p.hi))
            parts.append(Box(lo, hi, on=p.on))  # a solver has no use for bounds that far out
            continue
        M = np.zeros((len(p.matrix), len(doc.x0)))
        for j, row in enumerate(p.matrix):
            for i, g in row:
                M[j, i] += g
        if p.kind == "ball":
            parts.append(Ball(p, M))
        else:
            equal = (M, p.right) if p.kind == "equalities" else None
            parts.append(Polytope(None if equal else M, None if equal else p.right, equal=equal, on=p.on))
    return Intersection(*parts)


def cell_value(doc: Document, cell: Cell, C: ConvexSet) -> float:
    """What the cell's rows prove: min(radius, min ‖Wδ‖ s.t. rows, C, the path's input splits)."""
    lo, hi = np.full(len(doc.x0), -np.inf), np.full(len(doc.x0), np.inf)
    for s in cell.path:
        if s.at == "input" and s.side > 0:
            lo[s.index] = max(lo[s.index], s.cut)
        elif s.at == "input":
            hi[s.index] = min(hi[s.index], s.cut)
    if (lo > hi).any():
        return math.inf
    try:
        inside = C & Box(lo, hi) if np.isfinite(np.r_[lo, hi]).any() else C
        solved = min_norm(np.array(cell.a)[None], np.array(cell.b)[None], norm_of(doc.norm), inside, np.array(doc.x0))[0]
    except InputError:  # a set that is empty, say
        return math.inf
    if solved.status not in (Status.OPTIMAL, Status.INFEASIBLE):
        return math.inf
    value = solved.value if solved.status is Status.OPTIMAL else math.inf
    if value == math.inf:  # no flip in the cell within its radius; none at all where no allowed change is longer
        return math.inf if cell.radius >= longest(doc, C) * (1 - 1e-9) else cell.radius
    return min(cell.radius, float(value)) if math.isfinite(value) else cell.radius


def longest(doc: Document, C: ConvexSet) -> float:
    """An upper bound of N over C, coordinate by coordinate."""
    inside = C.relative_to(np.array(doc.x0))
    reach = [max(inside.support(e), inside.support(-e)) for e in np.eye(len(doc.x0))]
    return float(norm_of(doc.norm).value(np.array(reach))) if np.isfinite(reach).all() else math.inf


def follows(doc: Document) -> bool:
    """Does every row's bound follow from its cells, says the solver? (A program that is infeasible, or a solver that gives up, refutes nothing.)"""
    C = set_of(doc)
    return all(
        lower <= min((cell_value(doc, cell, C) for cell in cells), default=0.0) + 1e-6
        for cells, lower in zip(doc.cells, doc.row_lowers, strict=True)
    )


def true_of(doc: Document, model: torch.nn.Module) -> bool:
    """Is no flip nearer than `lower`, says the exact search on the network itself?"""
    decision = Decision(np.array(doc.rows), np.array(doc.shifts), tuple(range(len(doc.rows))), "", "threshold")
    try:
        found: Any = exact_radius(model, np.array(doc.x0), decision, norm_of(doc.norm), set_of(doc), time_limit=20.0)
    except InputError:  # an empty set, a decision that does not stand: other statements of the file speak of that
        return True
    return bool(doc.lower <= found.upper * (1 + 1e-6) + 1e-9)


def nearest_on_a_grid(doc: Document, model: torch.nn.Module, side: int = 121, reach: float = 1.0) -> bool:
    """The same for a network with two inputs, on a grid of changes and around it."""
    axis = np.linspace(-reach, reach, side)
    delta = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    delta = np.concatenate([delta, delta * 0.3])
    with torch.no_grad():
        y = model(torch.as_tensor(np.array(doc.x0) + delta)).numpy()
    flips = ((y @ np.array(doc.rows).T + np.array(doc.shifts)) <= 0).any(1)
    inside = set_of(doc).relative_to(np.array(doc.x0))
    lengths = [
        float(n) for d, n in zip(delta[flips], norm_of(doc.norm).value(delta[flips]), strict=True) if n < doc.lower and inside.contains(d)
    ]
    return not lengths
