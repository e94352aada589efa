r"""What a search hands to a certificate, and how it is written down.

Evidence for one margin row is a list of cells: affine rows that hold on {splits} ∩ C ∩ {‖Wδ‖ ≤ radius}, with multipliers for them. Any multipliers give a
true bound (verification/checking/theorem.py), so nothing here has to be optimal. Parts of C are written as they are, over the input or over the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError
from verification.checking.document import Split

if TYPE_CHECKING:
    from formulations.norms import Norm
    from formulations.pieces import Part

__all__ = [
    "CellEvidence", "InnerSlopes", "RivalEvidence", "Split", "WitnessEvidence",
    "floats", "hexes", "inner_slopes", "norm_record", "part_record", "plain", "rival_record", "witness_record",
]  # fmt: skip

Array = NDArray[np.float64]
STEPS = 255  # of a slope of intermediate bounds: it is a multiple of 1/255, which a certificate writes as two digits


@dataclass(frozen=True, eq=False)
class InnerSlopes:
    """Slopes of the lines below activation `by` in the bounds of what enters activation `of`, neuron by neuron: inputs, and low, up for lower and upper
    bounds, in units of 1/255."""

    of: int
    by: int
    neurons: NDArray[np.intp]
    inputs: list[NDArray[np.intp]]
    low: list[NDArray[np.uint8]]
    up: list[NDArray[np.uint8]]

    def record(self) -> dict[str, Any]:
        """Inputs that all neurons share are written once."""
        shared = all(np.array_equal(v, self.inputs[0]) for v in self.inputs)
        inputs = [v.tolist() for v in (self.inputs[:1] if shared else self.inputs)]
        tables = {side: [v.tobytes().hex() for v in table] for side, table in (("low", self.low), ("up", self.up))}
        return {
            "of": self.of,
            "by": self.by,
            "neurons": self.neurons.tolist(),
            "inputs": inputs[0] if shared and inputs else inputs,
            **tables,
        }


def inner_slopes(of: int, by: int, slopes: ArrayLike) -> InnerSlopes:
    """From (2, neurons, inputs) in units of 1/255, −1 where nothing is proposed."""
    codes = np.asarray(slopes)
    known = np.asarray((codes >= 0).all(0))
    neurons = np.flatnonzero(known.any(1))
    inputs = [np.flatnonzero(known[j]) for j in neurons]
    low, up = ([side[j, at].astype(np.uint8) for j, at in zip(neurons, inputs, strict=True)] for side in codes)
    return InnerSlopes(of, by, neurons, inputs, low, up)


@dataclass(frozen=True, eq=False)
class CellEvidence:
    """Affine rows on one cell, and multipliers for them.

    radius   the rows hold for the δ ∈ C of the cell with ‖Wδ‖ ≤ radius (inf: on all of C)
    a, b     (K, d), (K,): a·δ + b ≤ m(δ) for a margin row, ≤ 0 for the row of a neuron split or, at flips, for a row of the flips; a single row may be (d,)
    lam      (K,) multipliers of the rows
    duals    one array per part of C: boxes (2, d) lower/upper, rows and equalities (m,), balls (k,); None where there is none
    w        (d,) in the dual ball; by default what the box multipliers leave
    path     the splits that lead to the cell; row_of: −1 per margin row, −2 per row that holds where the margin has fallen (`FLIP_ROW`), else the place
             in the path of the split that the row states
    slopes   per row of margins or flips, per activation in the network's order, one slope per neuron: of the line that stands for it in the row (below it,
             for a row of the flips). They help level B of the checker to derive the same row again; without them it chooses its own
    inner    likewise for the bounds under the row; one cell's serve all cells of the same radius and path
    splits   per row that has slopes, the multipliers ≥ 0 of the path's splits in it
    facets   per row that has slopes, (κ, e (d,) of signs) of lines over the box of changes above the first rectifiers (verification/rechecking/facets.py)
    """

    radius: float
    a: Array
    b: Array
    lam: Array
    duals: Sequence[Array | None]
    w: Array | None = None
    path: Sequence[Split] = ()
    row_of: Sequence[int] | None = None
    slopes: Sequence[Sequence[Array]] = ()
    inner: Sequence[InnerSlopes] = ()
    splits: Sequence[Array] = ()
    facets: Sequence[tuple[float, Array]] = ()


@dataclass(frozen=True, eq=False)
class RivalEvidence:
    """The cells of one margin row: the leaves of a binary tree of splits, or one leaf. No cells: nothing is proved of this row."""

    cells: Sequence[CellEvidence] = ()
    method: str = ""


@dataclass(frozen=True, eq=False)
class WitnessEvidence:
    """A change δ that flips the decision, the network's float64 outputs at x0 + δ, and the rival that wins there."""

    delta: Array
    outputs: Array
    rival: int


def _usable(cells: Sequence[CellEvidence]) -> Sequence[CellEvidence]:
    """No cells when a bound pass left a row that is not finite: the leaves would not cover any more, and nothing is proved."""
    return cells if all(np.isfinite(c.a).all() and np.isfinite(c.b).all() for c in cells) else ()


def rival_record(evidence: RivalEvidence, rival: int, parts: Sequence[Part], norm: Norm | float | str, method: str) -> dict[str, Any]:
    """One entry of "rivals"; its `lower` is still 0."""
    cells = [cell_record(c, parts, norm) for c in _usable(evidence.cells)]
    return {"rival": int(rival), "method": evidence.method or method, "lower": (0.0).hex(), "cells": cells}


def cell_record(cell: CellEvidence, parts: Sequence[Part], norm: Norm | float | str) -> dict[str, Any]:
    a, b = np.atleast_2d(np.asarray(cell.a, dtype=float)), np.atleast_1d(np.asarray(cell.b, dtype=float))
    if len(cell.duals) != len(parts):
        raise InputError(
            f"Certificate: multipliers for {len(cell.duals)} parts, the set has {len(parts)}; give one array (or None) per part."
        )
    lam = np.maximum(_finite(np.atleast_1d(cell.lam)), 0.0)
    duals = [None if u is None else _finite(u) for u in cell.duals]
    w = from_box(a, lam, parts, duals, norm) if cell.w is None else np.asarray(cell.w, dtype=float)
    stored = [None if u is None or p.piece.kind in ("box", "custom") else hexes(np.maximum(u, 0.0) if p.piece.kind == "rows" else u)
              for p, u in zip(parts, duals, strict=True)]  # fmt: skip
    record: dict[str, Any] = {
        "path": [{"at": s.at, "index": s.index, "cut": float(s.cut).hex(), "side": s.side} for s in cell.path],
        "radius": float(cell.radius).hex(), "a": [hexes(row) for row in a], "b": hexes(b),
        "row_of": [-1] * len(b) if cell.row_of is None else [int(j) for j in cell.row_of],
        "lam": hexes(lam), "duals": stored, "w": None if w is None else hexes(w),
    }  # fmt: skip
    if len(cell.slopes) and all(np.isfinite(v).all() for row in cell.slopes for v in row):
        inner = [w.record() for w in cell.inner]
        record["relaxation"] = {"slopes": [[hexes(v) for v in row] for row in cell.slopes], "inner": inner}
        if len(cell.splits) and all(np.isfinite(v).all() for v in cell.splits):
            record["relaxation"]["splits"] = [hexes(np.maximum(v, 0.0)) for v in cell.splits]
        if len(cell.facets):
            record["relaxation"]["facets"] = [
                {"share": float(np.clip(share, 0, 1)).hex(), "turn": "".join("0+-"[int(e)] for e in np.sign(turn))}
                for share, turn in cell.facets
            ]
    return record


def from_box(a: Array, lam: Array, parts: Sequence[Part], duals: Sequence[Array | None], norm: Norm | float | str) -> Array | None:
    """w = −(c + μ_hi − μ_lo), which is stationarity; None (the checker's own choice) at p = 1, where clipping is exact, and without box multipliers."""
    from formulations.norms import GroupNorm, Norm
    from formulations.pieces import BallPiece, RowsPiece

    n = Norm.of(norm)
    boxes = [u for p, u in zip(parts, duals, strict=True) if p.piece.kind == "box" and u is not None]
    if not boxes or (n.p == 1.0 and not isinstance(n, GroupNorm)):
        return None
    c = a.T @ lam
    for part, u in zip(parts, duals, strict=True):
        if u is not None and isinstance(part.piece, RowsPiece):
            c = c + part.piece.G.T @ (u if part.piece.equality else np.maximum(u, 0.0))
        elif u is not None and isinstance(part.piece, BallPiece):
            c = c + part.piece.M.T @ u
    out: Array = sum((u[0] - u[1] for u in boxes), -c)
    return out


def witness_record(witness: WitnessEvidence, x0: Array) -> dict[str, Any]:
    delta = np.asarray(witness.delta, dtype=float).ravel()
    if delta.shape != x0.shape:
        raise InputError(f"Certificate: the witness has {delta.size} entries, the input {x0.size}.")
    return {"input": hexes(x0 + delta), "outputs": hexes(witness.outputs), "rival": int(witness.rival)}


def norm_record(norm: Norm | float | str, dim: int) -> dict[str, Any]:
    from formulations.norms import GroupNorm, Norm

    n = Norm.of(norm)
    n.scale(dim)
    if isinstance(n, GroupNorm):
        return {"p": "group", "weights": hexes(n.omega), "groups": [g.tolist() for g in n.groups]}
    return {"p": {1.0: "1", 2.0: "2"}.get(n.p, "inf"), "weights": None if n.weights is None else hexes(n.weights)}


def part_record(part: Part) -> dict[str, Any]:
    from formulations.pieces import BallPiece, BoxPiece, RowsPiece

    piece, head = part.piece, {"name": part.name, "on": part.on, "kind": part.piece.kind}
    if isinstance(piece, BoxPiece):
        return {**head, "lo": hexes(piece.lo), "hi": hexes(piece.hi)}
    if isinstance(piece, RowsPiece):
        return {**head, "matrix": _matrix_record(piece.G), "h": hexes(piece.h)}
    if isinstance(piece, BallPiece):
        norm = norm_record(piece.norm, piece.M.shape[0])
        return {**head, "matrix": _matrix_record(piece.M), "e": hexes(piece.e), "rho": float(piece.rho).hex(), "norm": norm}
    return head


def _matrix_record(matrix: Any) -> dict[str, Any]:
    import scipy.sparse as sp

    m = sp.csr_matrix(matrix, copy=True)
    m.sum_duplicates()
    return {"shape": [int(n) for n in m.shape], "indptr": m.indptr.tolist(), "indices": m.indices.tolist(), "data": hexes(m.data)}


def hexes(values: ArrayLike | None) -> list[str]:
    return [v.hex() for v in np.asarray(values, dtype=float).ravel().tolist()]


def floats(values: Sequence[str]) -> Array:
    return np.array([float.fromhex(v) for v in values], dtype=np.float64)


def _finite(u: ArrayLike) -> Array:
    out: Array = np.nan_to_num(np.asarray(u, dtype=float), nan=0.0, posinf=0.0, neginf=0.0)
    return out


def plain(value: Any, depth: int = 16) -> Any:
    """What JSON holds: numpy scalars and arrays become plain; what is unknown, not finite or nested deeper than `depth` becomes its string."""
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), depth)
    if isinstance(value, Mapping) and depth:
        return {str(k): plain(v, depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple) and depth:
        return [plain(v, depth - 1) for v in value]
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    return value if isinstance(value, float) and np.isfinite(value) else str(value)
