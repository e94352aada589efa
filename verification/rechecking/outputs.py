r"""Level C of the checker: the outputs, evaluated again from the weights without rounding. It needs numpy and python-flint only.

Intervals in outward-rounded float64 enclose the real-valued network's outputs at x0 and at the witness: the stored ones must lie there up to the
certificate's tolerance, the decision must stand at x0 and fall at the witness for certain. Where the interval of a margin holds 0, it is narrowed in ball
arithmetic of 200 bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from verification.checking.document import Document
from verification.checking.parts import distance, excess
from verification.checking.rationals import Rational, exact, float_up
from verification.rechecking.activations import Rectifier, Tanh
from verification.rechecking.affine import Add, Affine
from verification.rechecking.bounds import enclose
from verification.rechecking.graph import Network, Node
from verification.rechecking.pooling import MaxPool
from verification.rechecking.rounding import Array

__all__ = ["Findings", "Point", "check_outputs", "narrowed", "points"]


@dataclass
class Findings:
    """What a level found: refutations, what it could not decide, and what it still takes on trust (None: all that level A does)."""

    wrong: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    premises: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """A stored input: its name, z, δ and N(δ) exactly, is it in C for certain?, bounds of the network's values there, of its outputs exactly, and the stored outputs."""

    name: str
    input: list[float]
    delta: list[Rational]
    length: Rational
    inside: bool
    values: list[tuple[Array, Array]]
    ends: list[tuple[Rational, Rational]]
    told: list[float]

    def margin(self, q: Sequence[float], shift: float) -> tuple[Rational, Rational]:
        """Bounds of q·f + shift."""
        terms = [sorted((exact(g) * low, exact(g) * high)) for g, (low, high) in zip(q, self.ends, strict=True) if g]
        return sum((t[0] for t in terms), exact(shift)), sum((t[1] for t in terms), exact(shift))


def points(doc: Document, network: Network) -> list[Point]:
    """x0 and the witness; a point where float64 overflows has no `ends`."""
    stored = [("x0", doc.x0, doc.outputs)] + ([] if doc.witness is None else [("the witness", doc.witness, doc.witness_outputs)])
    out = []
    for name, z, told in stored:
        x = np.array(z).reshape(network.shape_in)
        delta = [exact(a) - exact(b) for a, b in zip(z, doc.x0, strict=True)]
        inputs = [exact(v) for v in z]
        inside = all(part.kind != "custom" and excess(part, inputs if part.on == "input" else delta) <= 0 for part in doc.parts)
        values = enclose(network, x, x)
        low, high = (v.ravel().tolist() for v in values[-1])
        ends = [(exact(a), exact(b)) for a, b in zip(low, high, strict=True)] if all(map(math.isfinite, low + high)) else []
        out.append(Point(name, z, delta, distance(doc, z), inside, values, ends, told))
    return out


def check_outputs(doc: Document, network: Network) -> Findings:
    """Level C: are the stored outputs the network's; does the decision stand at x0 and fall at the witness?"""
    out = Findings()
    for point in points(doc, network):
        found = _outputs_at(doc, point)
        if found.undecided:
            found = _outputs_at(doc, narrowed(network, point))
        out.wrong += found.wrong
        out.undecided += found.undecided
    return out


def _outputs_at(doc: Document, point: Point) -> Findings:
    if not point.ends:
        return Findings(undecided=[f"outputs: the network overflows at {point.name}"])
    slack = exact(doc.reproducibility) * (1 + max(abs(exact(v)) for v in point.told))
    off = max(max(exact(t) - high, low - exact(t)) for t, (low, high) in zip(point.told, point.ends, strict=True))
    if off > slack:
        return Findings([f"outputs: the network's outputs at {point.name} differ from the stored ones by {float_up(off):.3g}"])
    margins = [point.margin(q, s) for q, s in zip(doc.rows, doc.shifts, strict=True)]
    if point.name == "x0":
        if any(high <= 0 for _, high in margins):
            return Findings(["outputs: the network's decision at x0 is another one"])
        return Findings(undecided=["outputs: x0 is within rounding of the boundary"] if any(low <= 0 for low, _ in margins) else [])
    if any(high <= 0 for _, high in margins):
        return Findings()
    least = min(low for low, _ in margins)
    where = f"the smallest margin at the witness is at least {float_up(least):.3g}"
    if least > slack:
        return Findings([f"outputs: the witness does not flip the network, {where}"])
    return Findings(undecided=[f"outputs: the witness is within rounding of the boundary, {where}, and not certainly ≤ 0"])


def narrowed(network: Network, point: Point) -> Point:
    """The same point, its outputs enclosed at 200 bits."""
    before, ctx.prec = ctx.prec, 200
    try:
        values: list[Any] = []
        x = np.array([arb(v) for v in point.input], dtype=object).reshape(network.shape_in)
        for node in network.nodes:
            values.append(_balls(node, [x if i < 0 else values[i] for i in node.sources]))
        return replace(point, ends=[(_dyadic(v.lower()), _dyadic(v.upper())) for v in values[-1].ravel().tolist()])
    finally:
        ctx.prec = before


def _balls(node: Node, sources: list[Any]) -> Any:
    """A layer in ball arithmetic, on arrays of arb."""
    layer, x = node.layer, sources[0]
    if isinstance(layer, Add):
        return x + sources[1]
    if isinstance(layer, Affine):
        y = layer.apply(x[None])[0] * (
            arb(1, 1.01 * layer.theta) if layer.theta else 1
        )  # of one sign or one term: θ of each product is θ of the sum
        if layer.shift is None:
            return y
        tau = np.zeros(layer.shift.shape) if layer.tau is None else layer.tau
        return y + np.array(
            [arb(m, r) for m, r in zip(layer.shift.ravel().tolist(), tau.ravel().tolist(), strict=True)], dtype=object
        ).reshape(layer.shape)
    if isinstance(layer, MaxPool):
        flat = x.ravel()
        return np.array([functools.reduce(arb.max, [flat[j] for j in window if j >= 0]) for window in layer.index], dtype=object).reshape(
            layer.shape
        )
    if isinstance(layer, Rectifier):
        slope = arb(layer.negative)
        return np.array([v.max(arb(0)) + slope * v.min(arb(0)) for v in x.ravel().tolist()], dtype=object).reshape(layer.shape)
    one = arb.tanh if isinstance(layer, Tanh) else _logistic
    return np.array([one(v) for v in x.ravel().tolist()], dtype=object).reshape(layer.shape)


def _logistic(v: Any) -> Any:
    return 1 / (1 + (-v).exp())


def _dyadic(v: Any) -> Rational:
    """An arb without radius as a rational."""
    mantissa, exponent = v.man_exp()
    return fmpq(mantissa) * fmpq(2) ** int(exponent)
