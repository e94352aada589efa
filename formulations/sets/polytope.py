"""Polytope(G, h) = {z : G z ≤ h, E z = e}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.given import array
from formulations.norms import Array
from formulations.pieces import Part, RowsPiece
from formulations.sets.base import ConvexSet, on_input, vector


class Polytope(ConvexSet):
    """``{z : G z ≤ h}``, with ``equal=(E, e)`` also ``E z = e``; dense or sparse rows; over the input unless said otherwise.

    Its multipliers are η ≥ 0 for the inequalities, then the free ones of the equalities. `rows` names the rows in reports.
    Raises InputError on ragged shapes or entries that are not finite. Emptiness is found when the set is used.
    """

    def __init__(
        self,
        G: Any | None,
        h: ArrayLike | None,
        *,
        equal: tuple[Any, ArrayLike] | None = None,
        on: str = "input",
        name: str = "polytope",
        rows: tuple[str, ...] = (),
    ) -> None:
        if equal is not None and not (isinstance(equal, Sequence) and len(equal) == 2):
            raise InputError(f"Polytope: equal={equal!r:.60} is no pair; give equal=(E, e) with E z = e.")
        blocks = []
        for label, matrix, right, equality in (("G", G, h, False), ("E", *(equal or (None, None)), True)):
            if matrix is None:
                continue
            M = sp.csr_matrix(matrix if sp.issparse(matrix) else np.atleast_2d(_rows(label, matrix)), dtype=float)
            r = np.atleast_1d(vector("Polytope: right-hand side", () if right is None else right)).ravel()
            vector(f"Polytope: {label}", M.data)
            if M.shape[0] == len(r) == 0:
                raise InputError(f"Polytope: {label} has no rows; leave it out.")
            if M.shape[0] != len(r):
                raise InputError(f"Polytope: {label} has {M.shape[0]} rows and its right-hand side {len(r)} entries; give one each.")
            blocks.append(RowsPiece(M, r, equality))
        if not blocks:
            raise InputError("Polytope: no rows given; pass G and h, or equal=(E, e).")
        if len({b.dim for b in blocks}) > 1:
            raise InputError(f"Polytope: G has {blocks[0].dim} columns and E has {blocks[1].dim}; both act on the same features.")
        self.blocks, self.dim = tuple(blocks), blocks[0].dim
        self.on, self.name, self.rows = on_input(on), name, tuple(rows)

    def parts(self, dim: int) -> tuple[Part, ...]:
        self.check_dim(dim)
        return tuple(Part(self.name, b, self.on) for b in self.blocks)

    def support(self, a: ArrayLike) -> float:
        from formulations.solve import maximise_linear

        return maximise_linear(self, np.asarray(a, dtype=float))[0]

    @property
    def levels(self) -> Array:
        """Right-hand sides, inequalities first: the levels that the multipliers price."""
        return np.concatenate([b.h for b in self.blocks])

    def describe(self) -> str:
        counts = [f"{b.G.shape[0]} linear {'equalities' if b.equality else 'inequalities'}" for b in self.blocks]
        return f"{' and '.join(counts)} over the {self.on}"

    def __repr__(self) -> str:
        return f"Polytope({sum(b.G.shape[0] for b in self.blocks)} rows, d={self.dim})"


def _rows(label: str, matrix: Any) -> Array:
    rows = array(f"Polytope: {label}", matrix)
    if rows.ndim > 2:
        raise InputError(f"Polytope: {label} has shape {rows.shape}; give (rows, features).")
    return rows
