r"""An independent checker of certificates, and the specification of what they prove. It needs numpy and python-flint: no torch, no solver, no bound library.

    python -m verification.checker FILE…            exit 0: every file valid, 1: some file invalid, 2: some file cannot be decided

The claim
---------
A network f (sha256 of its weights), an input x0, margin rows m_k(δ) = q_k·f(x0+δ) + s_k, all > 0 at δ = 0, a norm N(δ) = ‖Wδ‖_p (or Σ_g ω_g‖δ_g‖₂)
and a convex set C of allowed changes. The certificate claims

    lower:  no δ ∈ C with N(δ) < lower makes any m_k(δ) ≤ 0          (lower = inf: no δ ∈ C at all)
    upper:  the witness z is an input with z − x0 ∈ C (up to the tolerance), N(z − x0) ≤ upper, and some m_k(z − x0) ≤ 0.

The evidence for lower: rows over the leaves of a tree of splits, and multipliers of the constraints. verification/checking/theorem.py states what they prove.

What level A decides
--------------------
The form of the file (certificate_format.py), its own hash and the hash of x0; the decision stands at x0 and x0 lies in C; the leaves cover the root (at every
node both sides of one split); lower is at most what the evidence proves; the witness lies in C (tolerance ≤ 1e-9, in each constraint's units) and is not
longer than upper; the stored outputs flip there, and contradict no row at x0 or at the witness; lower ≤ upper; the verdict follows from both. It does not
decide whether the rows hold (level B) or whether the outputs are the network's (level C, or `Certificate.check(model)` in floating point).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from verification.certificate_format import parse
from verification.checking.claims import claims, contradictions, statements
from verification.checking.document import Verdict
from verification.checking.outward import down_words, up_words
from verification.checking.rationals import bound_down, least
from verification.checking.text import MAX_BYTES, FormatError, read, self_hash
from verification.checking.theorem import row_bounds

__all__ = ["CheckReport", "CheckStatus", "Verdict", "check_file", "check_record", "main"]


class CheckStatus(Enum):
    """Outcome of a check; the value says what it means for the reader."""

    VALID = "Everything that this level decides holds."
    INVALID = "The file is damaged, or its evidence does not support its claim: do not rely on it."
    CANNOT_DECIDE = "Nothing wrong was found, but something that this level should decide is beyond it: read the reasons."


@dataclass(frozen=True)
class CheckReport:
    """lower, upper, verdict: as published. proved, row_proved: what the evidence proves, rounded down. `premises`: what this level takes on trust."""

    status: CheckStatus
    reasons: tuple[str, ...]
    level: str = "A"
    lower: float = 0.0
    upper: float = math.inf
    verdict: Verdict | None = None
    proved: float = 0.0
    row_proved: tuple[float, ...] = ()
    premises: tuple[str, ...] = ()
    path: str = ""

    @property
    def ok(self) -> bool:
        return self.status is CheckStatus.VALID

    def __str__(self) -> str:
        return f"{self.status.name.lower().replace('_', ' ')}: {'; '.join(self.reasons) or self.status.value}"


# --------------------------------------------------------------------------------------------------------------- entry points


def check_record(
    record: Mapping[str, Any], *, level: str = "A", model: str | Path | None = None, model_sha256: str | None = None
) -> CheckReport:
    """Checks a decoded certificate. `model`: the model file, for levels "B" and "C"; `model_sha256`: the hash of the model that the reader means."""
    try:
        own = self_hash(record)
        if record.get("sha256") != own:
            harmless = "; what it says now still follows from its evidence, as after a change of words (versions, notes)"
            told = harmless if check_record({**record, "sha256": own}).ok else ""
            return CheckReport(CheckStatus.INVALID, (f"sha256: the file's own hash does not match its content{told}",), level)
        doc = parse(record)
    except FormatError as error:
        return CheckReport(CheckStatus.INVALID, (f"format: {error}",), level)
    bounds = row_bounds(doc)
    wrong, undecided = statements(doc) + claims(doc, bounds) + contradictions(doc), []
    told = record["model"]["sha256"]
    if model_sha256 is not None and told != model_sha256:
        wrong.append(f"model.sha256: the certificate is about model {told[:12]}…, not about {model_sha256[:12]}…")
    custom = [p.name for p in doc.parts if p.kind == "custom"]
    if custom and doc.witness is not None:
        undecided.append(f"part '{custom[0]}' is the user's own code: no file can tell whether the witness lies in it")
    premises: tuple[str, ...] = (
        "rows: minorants of the margins on their cells, as the bound pass found (level B)",
        "outputs: as stored (level C)",
    )
    if level not in ("A", "B", "C") or (level != "A" and model is None):
        undecided.append(f"level {level}: {'give the model file' if level in ('B', 'C') else 'no such level, use A, B or C'}")
    elif model is not None and not wrong:
        from verification.rechecking.rows import check_model  # levels B and C build on this file

        found = check_model(doc, record["model"], model, level)
        wrong, undecided, premises = (
            wrong + found.wrong,
            undecided + found.undecided,
            premises if found.premises is None else found.premises,
        )
    status = CheckStatus.INVALID if wrong else CheckStatus.CANNOT_DECIDE if undecided else CheckStatus.VALID
    return CheckReport(
        status, tuple(wrong or undecided), level, doc.lower, doc.upper, doc.verdict,
        proved=bound_down(least(bounds)), row_proved=tuple(bound_down(b) for b in bounds), premises=premises,
    )  # fmt: skip


def check_file(
    path: str | Path, *, level: str = "A", model: str | Path | None = None, model_sha256: str | None = None, max_bytes: int = MAX_BYTES
) -> CheckReport:
    """Checks one certificate file, at level "A", "B" or "C" (the latter two with a model file); never raises on what the files hold."""
    try:
        report = check_record(read(path, max_bytes), level=level, model=model, model_sha256=model_sha256)
    except FormatError as error:
        report = CheckReport(CheckStatus.INVALID, (f"format: {error}",), level)
    return replace(report, path=str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m verification.checker", description="Checks certificates without torch, solver or bound library."
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--level", choices=["A", "B", "C"], default="A", help="A: bounds, coverage, witness; B: the rows; C: the outputs")
    parser.add_argument("--model", help="the model file (.safetensors), for levels B and C; with level A only its hash is compared")
    parser.add_argument("--model-sha256", help="refuse certificates about another model")
    given = parser.parse_args(arguments)
    seen = set()
    for f in given.files:
        report = check_file(f, level=given.level, model=given.model, model_sha256=given.model_sha256)
        seen.add(report.status)
        claim = (
            f"  [{down_words(report.lower, 6)}, {up_words(report.upper, 6)}] {report.verdict.name}" if report.verdict and report.ok else ""
        )
        print(f"{f}: {report}{claim}", flush=True)
    return 1 if CheckStatus.INVALID in seen else 2 if CheckStatus.CANNOT_DECIDE in seen else 0


if __name__ == "__main__":
    sys.exit(main())
