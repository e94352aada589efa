"""Certificates checked again from their files, one record per file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verification.certificate_format import FormatError, read
from verification.checker import CheckReport, check_file


@dataclass(frozen=True)
class Checked:
    """What the checker says of one file; lower and upper as published, "" where the file does not say."""

    path: str
    ok: bool
    status: str
    reasons: tuple[str, ...]
    norm: str
    lower: str
    upper: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_files(paths: Iterable[Path], model: Path | None = None, level: str = "A") -> list[Checked]:
    """The checker's word on every file. A file that cannot be read is not valid.

    With a model file: at level "A" also its hash and its float64 outputs, by torch; at levels "B" and "C" the checker's own derivation from it.
    """
    if level != "A":
        return [_told(path, check_file(path, level=level, model=model)) for path in paths]
    network = None
    if model is not None:
        from lde_cvx.models import load_model

        network = load_model(model)
    return [check_one(path, network) for path in paths]


def check_one(path: Path, network: Any = None) -> Checked:
    report: CheckReport
    if network is None:
        report = check_file(path)
    else:
        from formulations.errors import InputError
        from verification.certificate import Certificate

        try:
            report = Certificate.load(path).check(network)
        except InputError as e:
            return Checked(str(path), False, "INVALID", (str(e),), "", "", "")
    return _told(path, report)


def _told(path: Path, report: CheckReport) -> Checked:
    norm, lower, upper = _published(path)
    return Checked(str(path), report.ok, report.status.name, report.reasons, norm, lower, upper)


def _published(path: Path) -> tuple[str, str, str]:
    """(norm, lower, upper) as the file says, for the table."""
    try:
        record = read(path)
        p = record["norm"]["p"]
        numbers = [float.fromhex(record[k]) for k in ("lower", "upper")]
    except (FormatError, OSError, KeyError, TypeError, ValueError):
        return "", "", ""
    label = {"inf": "ℓ∞", "group": "group"}.get(p, f"ℓ{p}")
    return (
        f"weighted {label}" if p != "group" and record["norm"].get("weights") else label,
        *("∞" if math.isinf(v) else f"{v:.6g}" for v in numbers),
    )  # type: ignore[return-value]
