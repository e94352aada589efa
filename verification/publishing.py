"""What a certificate may claim: the checker's own numbers, and, where it is settled, no more than the checker derives from the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from formulations.errors import InputError, SoundnessError
from verification.certificate_format import parse
from verification.checking.claims import FEASIBILITY, claims, contradictions, statements
from verification.checking.document import Verdict
from verification.checking.parts import distance
from verification.checking.rationals import bound_down, float_up
from verification.checking.text import FormatError, self_hash
from verification.checking.theorem import row_bounds
from verification.evidence import floats, hexes

if TYPE_CHECKING:
    from verification.rechecking.graph import Network

CONTRADICTION = 1e-6  # relative excess of the lower bound over the witness that the witness's feasibility tolerance may explain
SETTLING, ROOM = 3, 1e-9  # passes of level B over a certificate that is settled, and how far below what it derives a row is put, relatively


class ContradictionError(SoundnessError):
    """A certified lower bound exceeds the distance of a witness: rows, network or witness are wrong. Never ignore it."""


def published(record: dict[str, Any]) -> dict[str, Any]:
    """Fills in lower, upper, verdict and the self-hash with the checker's own numbers."""
    try:
        doc = parse(record)
    except FormatError as error:
        raise InputError(f"Certificate: {error}.") from None
    for wrong in statements(doc):
        raise InputError(f"Certificate: {wrong}; a certificate must not say so.")
    for wrong in contradictions(doc):
        raise ContradictionError(f"{wrong}: the bound pass, the network or the witness is wrong; please report it.")
    proved = row_bounds(doc)
    bounds = [bound_down(b) for b in proved]
    for entry, bound in zip(record["rivals"], bounds, strict=True):
        entry["lower"] = bound.hex()
    lower = min(bounds)
    upper = float("inf") if doc.witness is None else float_up(distance(doc, doc.witness))
    if lower > upper:
        if lower > upper * (1 + CONTRADICTION) + FEASIBILITY:
            raise ContradictionError(
                f"the evidence proves lower={lower!r}, but a witness lies at {upper!r}; one of them is wrong, please report it."
            )
        lower = upper  # the witness may leave C by the tolerance, and be that much nearer than the exact optimum
    record["lower"], record["upper"], record["verdict"] = lower.hex(), upper.hex(), Verdict.of(lower, upper).name
    for wrong in claims(replace(doc, lower=lower, row_lowers=bounds, upper=upper, verdict=Verdict.of(lower, upper)), proved):
        raise InputError(f"Certificate: {wrong}; give evidence that does.")
    record["sha256"] = self_hash(record)
    return record


def settled(record: dict[str, Any], network: Network) -> dict[str, Any]:
    """The record with every row lowered to what level B derives of it from the weights; the very record where nothing had to be lowered."""
    from verification.rechecking.rows import shortfalls

    for _ in range(SETTLING):
        found = shortfalls(parse(record), network)
        if not any(isinstance(missed, dict) and missed for row in found for missed in row):
            break
        rivals = [
            {**rival, "cells": [_lowered(cell, missed) for cell, missed in zip(rival["cells"], row, strict=True)]}
            for rival, row in zip(record["rivals"], found, strict=True)
        ]
        record = published({**record, "rivals": rivals})
    return record


def _lowered(cell: dict[str, Any], missed: dict[int, float] | str) -> dict[str, Any]:
    """The cell with its rows lowered by what they miss, and a little more; what cannot be derived at all stays, and stays undecided."""
    if isinstance(missed, str) or not missed:
        return cell
    b = floats(cell["b"])
    for j, short in missed.items():
        down = b[j] - short * (1 + ROOM) - ROOM * abs(b[j])
        b[j] = down if np.isfinite(down) else b[j]
    return {**cell, "b": hexes(b)}
