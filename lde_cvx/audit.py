"""An audit: train, pick the declined applicants, certify each in each norm, check every file again, write the report.

One folder holds the result. A certificate file also carries its row of the table (under `notes`) and the key of the audit that wrote it (under
`provenance`), so an interrupted audit goes on where it stopped: valid files with the same key are used again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from formulations.errors import InputError
from formulations.norms import Norm
from formulations.whole_file import whole_file
from lde_cvx import report
from lde_cvx.auditing.case import Case, applicant_id, norm_name, prepare
from lde_cvx.auditing.record import AuditRow, from_json, to_json
from lde_cvx.auditing.rows import audit_row
from lde_cvx.auditing.summary import MODEL, results_csv, summarise
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.interrupts import Finished, only_finished, until_interrupted
from lde_cvx.manifest import NAME as MANIFEST
from lde_cvx.manifest import write_manifest
from lde_cvx.methods import SEARCHES
from lde_cvx.models import one_thread, save_model
from verification.certificate import Certificate
from verification.checker import CheckStatus, check_file
from verification.checking.text import self_hash

__all__ = ["AuditResult", "Case", "prepare", "run_audit"]

CHUNK = 15  # applicants that are bounded together; also what an interruption can lose
REPORTS = ("report.html", "summary.json", "results.csv", MODEL, MANIFEST)

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class AuditResult:
    """Where the audit is, its rows, and the summary that the report shows."""

    folder: Path
    rows: tuple[AuditRow, ...]
    summary: dict[str, Any]

    @property
    def failed(self) -> int:
        """Certificates that did not pass the check."""
        return int(self.summary["checks"]["failed"])


def run_audit(case: Case, folder: Path, tell: Tell = lambda *_: None) -> AuditResult:
    """Certifies every applicant in every norm, checks all files again and writes the report into `folder`.

    Interrupt it at any time: files are whole or absent, and the same call goes on. Raises InputError when the folder cannot be used.
    """
    begun = time.monotonic()
    certificates = open_folder(folder)
    forget_other_audits(folder, certificates, case)
    with one_thread(), only_finished() as finished:  # sums in one order, so that runs can be compared; and faster, for networks this small
        rows = [row for norm in case.norms for row in certify(case, norm, certificates, tell, finished)]
    order = [norm_name(norm) for norm in case.norms]
    rows.sort(key=lambda r: (r.data_row, order.index(r.norm)))
    save_model(case.trained.model, folder / MODEL)
    checked = []
    for k, row in enumerate(rows):
        checked.append(checked_again(row, folder, case))
        tell("checking certificates", k + 1, len(rows))
    summary = summarise(case, checked, folder, time.monotonic() - begun)
    write(folder / "results.csv", results_csv(checked))
    write(folder / "summary.json", json.dumps(to_json(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write(folder / "report.html", report.render(summary))
    write_manifest(folder, [folder / row.certificate for row in checked], folder / MODEL, f"lde audit {case.name}")
    return AuditResult(folder, tuple(checked), summary)


def checked_again(row: AuditRow, folder: Path, case: Case) -> AuditRow:
    """The row with what the checker says of its file: level A and the outputs, then level B from the model file; `level` is the highest one passed."""
    path = folder / row.certificate
    found = Certificate.load(path).check(case.trained.model)
    derived = check_file(path, level="B", model=folder / MODEL) if found.ok else found
    ok = found.ok and derived.status is not CheckStatus.INVALID  # what level B cannot decide, level A still holds of
    return replace(row, check="valid" if ok else str(derived), level=("B" if derived.ok else "A") if ok else "")


# ---- certificates ------------------------------------------------------------------------------------------------------


def certify(case: Case, norm: Norm, folder: Path, tell: Tell, finished: Finished) -> list[AuditRow]:
    """The rows of one norm; a certificate file is written as soon as its chunk is done."""
    short = norm_name(norm)
    rows = {row: reusable(folder / f"{applicant_id(row)}-{short}.json", case) for row in case.applicants}
    pending = [row for row, done in rows.items() if done is None]
    explainer = LagrangeDualExplainer(
        case.trained.model, norm=norm, constraints=case.schema.polytope(), method=case.config.question.method, seed=case.config.seed,
        feature_names=case.schema.feature_names, time_limit=case.config.question.seconds, jobs=os.cpu_count() or 1,
        rederive=True,
    )  # fmt: skip
    stage, ready = f"certifying, {norm.label}", len(rows) - len(pending)
    tell(stage, ready, len(rows))
    for start in range(0, len(pending), CHUNK):
        chunk = pending[start : start + CHUNK]
        counted = "branching" if case.config.question.method in SEARCHES else "certified radii"
        told = partial(_passing_on, tell, stage, counted, ready + start, len(rows))
        found = finished(explainer.explain(case.features[chunk], progress=until_interrupted(told, finished)))
        for row, explanation in zip(chunk, found if isinstance(found, list) else [found], strict=True):
            path = folder / f"{applicant_id(row)}-{short}.json"
            made = audit_row(case.schema, explanation, row, applicant_id(row), short, case.declined, f"{folder.name}/{path.name}")
            annotated(explanation.certificate, case, made).save(path)
            rows[row] = made
        tell(stage, ready + start + len(chunk), len(rows))
    return [row for row in rows.values() if row is not None]


def _passing_on(tell: Tell, stage: str, counted: str, ready: int, total: int, what: str, done: int, _: int) -> None:
    """The explainer's count in its longest stage, as this audit's count of applicants."""
    if what == counted:
        tell(stage, ready + done, total)


def annotated(certificate: Certificate, case: Case, row: AuditRow) -> Certificate:
    """The same claim with the audit's key and its row beside it; no claim rests on either."""
    record = {
        **certificate.record,
        "provenance": {"audit": case.key, "configuration": case.name, "data_sha256": case.data.sha256, "applicant": row.id},
        "notes": {"audit_row": to_json(row.to_dict())},
        "command": f"lde audit {case.name}",
    }
    return Certificate({**record, "sha256": self_hash(record)})


def reusable(path: Path, case: Case) -> AuditRow | None:
    """The row of a certificate that this very audit wrote and that still passes the check, else None."""
    if not path.is_file():
        return None
    try:
        certificate = Certificate.load(path)
        if certificate.record["provenance"].get("audit") != case.key or not certificate.check().ok:
            return None
        return replace(AuditRow.from_dict(from_json(certificate.record["notes"]["audit_row"])), reused=True)
    except (InputError, KeyError, TypeError, AttributeError):
        return None


# ---- the folder ------------------------------------------------------------------------------------------------------------


def open_folder(folder: Path) -> Path:
    """The folder for certificates, made when it is not there. Raises InputError when it cannot be written to."""
    certificates = folder / "certificates"
    try:
        certificates.mkdir(parents=True, exist_ok=True)
        probe = certificates / f".{os.getpid()}.part"
        probe.touch()
        probe.unlink()
        for killed in certificates.glob(".applicant-*.part"):  # what a killed run was writing
            killed.unlink(missing_ok=True)
    except OSError as e:
        raise InputError(f"--out {folder}: cannot be written to ({e.strerror or e}); name a folder that is writable.") from None
    return certificates


def forget_other_audits(folder: Path, certificates: Path, case: Case) -> None:
    """Removes what an audit of something else left here: its certificates, known by their provenance, and the report. Nothing else is touched."""
    for path in sorted(certificates.glob("applicant-*.json")):
        try:
            key = Certificate.load(path).record["provenance"].get("audit", case.key)
        except (InputError, AttributeError, KeyError, TypeError):
            continue
        if key != case.key:
            path.unlink()
    for name in REPORTS:
        (folder / name).unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")
