"""The results of an audit as tables: the CSV file, and the summary that the report shows."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lde_cvx
from formulations.semantic import Categorical, Numeric, Schema
from lde_cvx.auditing.case import SCHEMA, Case, norm_name, source_sha256
from lde_cvx.auditing.record import AuditRow
from lde_cvx.manifest import file_hash
from verification.certificate import Certificate, ModelRecord

MODEL = "model.safetensors"
METHOD_WORDS = {
    "branching": "branch and bound, after a crown pass",
    "exact": "branch and bound to the end, after a crown pass",
    "dual-network": "dual network (slopes and multipliers trained together), after a crown pass",
}


def results_csv(rows: Sequence[AuditRow]) -> str:
    """One line per applicant and norm, without anything that changes from run to run."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([
        "applicant", "data_row", "norm", "score", "linear_radius", "linear_validity", "linear_certified_fraction", "lower", "upper", "gap", "lambda",
        "lambda_reading", "verdict", "top_features", "active_constraints", "witness", "certificate", "check",
    ])  # fmt: skip
    for r in rows:
        numbers = [r.lower, r.upper, r.gap, r.multiplier]
        table.writerow([
            r.id, r.data_row, r.norm, repr(r.score), repr(r.linear_radius), r.linear_validity, repr(r.linear_certified_fraction), *map(repr, numbers),
            r.reading, r.verdict, "; ".join(f"{name}: {value:.6g}" for name, value in r.top_features),
            "; ".join(f"{p.constraint}: {p.price:.6g} per {p.unit}" for p in r.prices),
            "" if r.witness is None else "; ".join(f"{m.feature}: {m.before} -> {m.after}" for m in r.witness), r.certificate, r.check,
        ])  # fmt: skip
    return out.getvalue()


def summarise(case: Case, rows: Sequence[AuditRow], folder: Path, seconds: float) -> dict[str, Any]:
    """Everything that the report shows, as plain values."""
    config, trained = case.config, case.trained
    people = []
    for row in case.applicants:
        own = [r for r in rows if r.data_row == row]
        people.append({
            "id": own[0].id, "data_row": row, "score": own[0].score, "summary": in_short(case, row), "rows": [r.to_dict() for r in own],
        })  # fmt: skip
    norms = []
    for norm in case.norms:
        ratios = [r.lower / r.upper for r in rows if r.norm == norm_name(norm) and 0 < r.upper < np.inf]
        norms.append({
            "name": norm_name(norm), "label": norm.label, "bracketed": len(ratios),
            "mean_ratio": float(np.mean(ratios)) if ratios else float("nan"), "worst_ratio": float(np.min(ratios)) if ratios else float("nan"),
        })  # fmt: skip
    sizes = [layer.out_features for layer in trained.model if isinstance(layer, torch.nn.Linear)]
    names = case.data.classes
    reused = sum(r.reused for r in rows)
    declined, other = names[case.declined], ", ".join(c for k, c in enumerate(names) if k != case.declined)
    return {
        "schema": SCHEMA, "version": lde_cvx.__version__, "report_id": case.key[:12], "created_utc": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "title": config.title, "subtitle": config.subtitle, "duration_words": f"{seconds:.0f} s" + (f", {reused} certificates re-used" if reused else ""),
        "seconds": seconds, "checks": {"checked": len(rows), "failed": sum(r.check != "valid" for r in rows), "level_B": sum(r.level == "B" for r in rows)},
        "score_name": f"P({declined})",
        "norms": norms, "totals": {"verdicts": dict(Counter(r.verdict for r in rows)), "skipped": len(case.skipped), "reused": reused},
        "question": [
            ("Decision", f"the network answers “{declined}” (declined); it stands while the output “{declined}” stays ahead of {other}"),
            ("Asked", "the smallest allowed change of the application that turns the decision, bracketed from both sides"),
            ("Applicants", f"the first {len(people)} rows of the test split that the network declines"),
            ("Distances", ", ".join(norm.label for norm in case.norms) + " of the change in standardised units"),
            ("Bound pass", f"{METHOD_WORDS.get(config.question.method, config.question.method)}, float64, every layer bounded over the allowed set itself"),
        ],
        "constraints": constraint_words(case.schema), "applicants": people, "skipped": list(case.skipped),
        "model": [
            ("Kind", f"multilayer perceptron {'-'.join(map(str, [case.schema.dim, *sizes]))}, ReLU, trained here on one thread"),
            ("File", f"{MODEL}, sha256 {file_hash(folder / MODEL)}"), ("Weights sha256", ModelRecord.of(trained.model).sha256),
            ("Test accuracy", f"{trained.accuracy:.1%}"),
            ("Train accuracy", f"{trained.train_accuracy:.1%}"), ("Test AUC", f"{trained.auc:.3f}"), ("Outputs", ", ".join(names)),
        ],
        "data": [
            ("Name", case.data.name), ("Rows", f"{len(case.data)}: {len(trained.train_rows)} for training, {len(trained.test_rows)} for testing"),
            ("Features", f"{case.schema.dim} from {len(case.schema.columns)} columns"), ("File sha256", case.data.sha256),
            ("Source", case.data.source), ("Licence", case.data.licence),
        ],
        "command": f"lde audit {case.name} --out {folder}" + ("" if case.limit is None else f" --limit {case.limit}"),
        "check_command": f"lde check {folder} --model {folder}/model.safetensors --level B", "seed": config.seed,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}",
        "config_sha256": config.sha256, "config_text": case.config_text,
        "versions": [("source sha256", source_sha256()), *sorted(Certificate.load(folder / rows[0].certificate).record["versions"].items())],
    }  # fmt: skip


def in_short(case: Case, row: int) -> str:
    """A few numbers of an application, to recognise it by."""
    record = case.data.X.iloc[row]
    told = [c for c in case.schema.columns if isinstance(c, Numeric) and c.unit][:4]
    return ", ".join(f"{c.name} {record[c.name]:g} {c.unit}" for c in told)


def constraint_words(schema: Schema) -> list[tuple[str, str]]:
    """The schema in words: ranges and categories in one line each, then the other rules as the schema says them."""
    free = [c for c in schema.columns if not schema.is_fixed(c.name)]
    numeric = [c for c in free if isinstance(c, Numeric)]
    stated = "stated" if any(c.given for c in numeric) else "from the data"
    ranges = ", ".join(f"{c.name} {c.low:g} to {c.high:g}{f' {c.unit}' if c.unit else ''}" for c in numeric)
    whole = [c.name for c in numeric if c.integer]
    groups = [c for c in free if isinstance(c, Categorical)]
    out = [("ranges", f"{ranges} ({stated})")] if numeric else []
    out += [("whole numbers", f"relaxed, may be fractions: {', '.join(whole)}")] if whole else []
    out += (
        [("one-hot groups", f"shares ≥ 0 that sum to one, relaxed, so that mixtures count: {', '.join(c.name for c in groups)}")]
        if groups
        else []
    )
    lines = [line.partition(": ") for line in schema.describe().splitlines()[1:]]
    return out + [(rule, words) for rule, _, words in lines if rule != "range"]
