"""One explanation in the words and units of its table: a row of the audit."""

from __future__ import annotations

from typing import Any

import numpy as np

from formulations.norms import Array
from formulations.semantic import Schema
from lde_cvx.auditing.record import AuditRow, Move, Price
from lde_cvx.explanation import Explanation

NOISE = 1e-6  # in standardised units: multipliers below this are no active constraints, changes below this are left to the certificate file


def audit_row(schema: Schema, e: Explanation, data_row: int, name: str, norm: str, declined: int, certificate: str) -> AuditRow:
    """The row of applicant `data_row`; `declined` is the output that declines, `certificate` the file's path inside the audit's folder."""
    sensitivities = {f: float(s) for f, s in zip(schema.feature_names, e.scores.ravel(), strict=True) if s > 0}
    return AuditRow(
        id=name, data_row=data_row, norm=norm, norm_label=e.norm.label, score=probability(e.outputs, declined),
        linear_radius=e.linear_radius, linear_validity=e.linear_validity.name.lower(), linear_certified_fraction=e.linear_certified_fraction,
        lower=e.lower, upper=e.upper, gap=e.gap, multiplier=e.margin_multiplier, reading=e.reading.name.lower(), reading_words=e.reading.value,
        prices=prices(schema, e.multipliers) if e.reading.has_lambda else (), sensitivities=sensitivities, witness=moves(schema, e),
        verdict=e.verdict.name, advice=e.verdict.sentence(e.lower), certificate=certificate, check="not yet checked",
    )  # fmt: skip


def probability(outputs: Array, k: int) -> float:
    """softmax(outputs)_k"""
    z = np.exp(outputs - outputs.max())
    return float(z[k] / z.sum())


def prices(schema: Schema, multipliers: dict[str, Array]) -> tuple[Price, ...]:
    """Every active constraint in the user's units: rules that a person can speak of first, limits of one-hot shares last, each by size of multiplier."""
    found: list[tuple[bool, float, Price]] = []
    for name, u in multipliers.items():
        if name == "margin":
            continue
        if name == "budget":
            found += [(False, -p.price, Price(p.item, p.price, p.unit)) for p in schema.unit_price(name, u)]
            continue
        for index in zip(*np.nonzero(np.abs(u) > NOISE), strict=True):
            alone = np.zeros_like(u)
            alone[index] = u[index]
            shares = name == "one_hot" or (name == "ranges" and "=" in schema.feature_names[index[-1]])
            found += [(shares, -abs(float(u[index])), Price(p.item, p.price, p.unit)) for p in schema.unit_price(name, alone)]
    return tuple(price for _, _, price in sorted(found, key=lambda item: item[:2]))


def moves(schema: Schema, e: Explanation) -> tuple[Move, ...] | None:
    """What the witness changes, in original units."""
    if e.witness is None:
        return None
    changed: list[Any] = list(schema.changes(e.x0.ravel(), e.witness.ravel(), at_least=NOISE))
    return tuple(Move(c.column, f"{c.before}{_unit(c)}", f"{c.after}{_unit(c)}{' (relaxed)' if c.relaxed else ''}") for c in changed)


def _unit(change: Any) -> str:
    return "" if change.unit in ("", "share") else f" {change.unit}"
