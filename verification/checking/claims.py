"""Does a certificate's evidence support what it publishes? Each function answers with the sentences that say where it does not."""

from __future__ import annotations

import math

import numpy as np

from verification.checking.document import FLIP_ROW, MARGIN_ROW, Cell, Document, Verdict
from verification.checking.parts import change, distance, excess
from verification.checking.rationals import ZERO, Bound, Rational, bound_down, exact, float_up, least
from verification.checking.text import input_hash
from verification.checking.theorem import covers

FEASIBILITY = 1e-9  # largest feasibility tolerance that a certificate may publish, in each constraint's units
REPRODUCIBILITY = 1e-6  # largest relative difference of the outputs between machines that it may publish
REFUTED = 1e-7  # relative: a float64 evaluation of network and row does not hide a valid row by more


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
        length, delta = float_up(distance(doc, z)), np.array([float_up(v) for v in change(doc, z)])
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


def _rounding(doc: Document) -> list[Rational]:
    """What the float64 sum q·f + s at the witness may be off by: at most m + 1 roundings, 2^-52 each, relative to Σ|q f| + |s|."""
    f = doc.witness_outputs
    sizes = [sum(abs(exact(q * 2.0**-52) * exact(v)) for q, v in zip(row, f, strict=True)) for row in doc.rows]
    return [(t + abs(exact(s * 2.0**-52))) * (len(f) + 1) for t, s in zip(sizes, doc.shifts, strict=True)]


def _outside(doc: Document, z: list[float], who: str) -> list[str]:
    delta, inputs, out = change(doc, z), [exact(v) for v in z], []
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
