"""An invented audit summary: enough to look at a report without running one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lde_cvx.auditing.record import AuditRow, Move, Price
from lde_cvx.reading import Reading

FEATURES = (
    "duration",
    "credit_amount",
    "checking_status: <0",
    "savings_status: <100",
    "purpose: <new & used>",
    "age",
    "installment_commitment",
)


def example_row(k: int, norm: str, label: str, verdict: str = "BRACKETED") -> AuditRow:
    rng = np.random.default_rng([k, len(norm), ord(norm[-1])])
    lower = float(rng.uniform(0.2, 1.5))
    upper = {"BRACKETED": lower * float(rng.uniform(1.0, 1.3)), "CERTIFIED_UNREACHABLE": math.inf, "LOWER_ONLY": math.inf}[verdict]
    lower = math.inf if verdict == "CERTIFIED_UNREACHABLE" else lower
    gap = {"BRACKETED": (upper - lower) / upper if math.isfinite(lower) else 0.0, "CERTIFIED_UNREACHABLE": 0.0, "LOWER_ONLY": 1.0}[verdict]
    reachable = verdict != "CERTIFIED_UNREACHABLE"
    return AuditRow(
        id=f"applicant-{k:04d}", data_row=k, norm=norm, norm_label=label, score=float(rng.uniform(0.5, 0.99)),
        linear_radius=lower * float(rng.uniform(0.9, 1.2)) if reachable else math.inf, linear_validity=("certified", "refuted", "unknown")[k % 3],
        linear_certified_fraction=0.8, lower=lower, upper=upper, gap=gap, multiplier=0.37 if reachable else math.nan,
        reading="bound" if reachable else "unreachable", reading_words=Reading.BOUND.value if reachable else Reading.UNREACHABLE.value,
        prices=(Price("age stays as it is", 0.012, "year"), Price("duration within the data's range", 3.1e-5, "month")) if k % 2 else (),
        sensitivities=dict(zip(FEATURES, map(float, rng.dirichlet(np.ones(len(FEATURES)))), strict=True)) if reachable else {},
        witness=(Move("duration", "48 months", "31.5 months"), Move("checking_status", "<0", "62 % <0, 38 % 0<=X<200")) if verdict == "BRACKETED" else None,
        verdict=verdict, advice="No allowed change flips the decision.", certificate=f"certificates/applicant-{k:04d}-{norm}.json",
        check="valid",
    )  # fmt: skip


def example_summary(applicants: int = 8) -> dict[str, Any]:
    verdicts = ["BRACKETED"] * (applicants - 2) + ["CERTIFIED_UNREACHABLE", "LOWER_ONLY"]
    people = []
    for k, verdict in enumerate(verdicts):
        rows = [example_row(k, n, label, verdict).to_dict() for n, label in (("l1", "ℓ1"), ("l2", "ℓ2"))]
        people.append(
            {"id": rows[0]["id"], "data_row": k, "score": rows[0]["score"], "summary": "42 years, radio/tv, 3 <b>x</b>", "rows": rows}
        )
    return {
        "schema": "lde-audit/1", "version": "0.1.0", "report_id": "0123456789ab", "created_utc": "2026-11-22 06:00 UTC",
        "title": "Certified audit of declined credit applications", "subtitle": "How far is each declined applicant from approval?",
        "duration_words": "41 s", "checks": {"checked": 2 * applicants, "failed": 0, "level_B": 2 * applicants}, "score_name": "P(bad)",
        "norms": [{"name": "l1", "label": "ℓ1", "mean_ratio": 0.93, "bracketed": applicants - 2},
                  {"name": "l2", "label": "ℓ2", "mean_ratio": 0.91, "bracketed": applicants - 2}],
        "totals": {"verdicts": {"BRACKETED": 2 * (applicants - 2), "CERTIFIED_UNREACHABLE": 2, "LOWER_ONLY": 2}, "skipped": 0},
        "question": [("Decision", "declined: P(bad) ≥ 0.5")], "constraints": [("immutable", "age and foreign_worker stay as they are")],
        "applicants": people, "skipped": [], "model": [("sha256", "ab" * 32)], "data": [("sha256", "cd" * 32)], "command": "lde audit german_credit --out out",
        "check_command": "lde check out --model out/model.safetensors --level B", "seed": 0, "hardware": "2 cores, CPU", "config_sha256": "ef" * 32,
        "config_text": "[audit]\nseed = 0\n", "versions": [("python", "3.11")],
    }  # fmt: skip
