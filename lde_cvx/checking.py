"""Certificates checked again from their files, one record per file; batches against their manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from formulations.errors import InputError
from lde_cvx.manifest import NAME, Manifest, compare, read_manifest
from lde_cvx.signing import is_signed_by
from verification.checker import CheckReport, check_file
from verification.checking.outward import down, up
from verification.checking.text import FormatError, read


@dataclass(frozen=True)
class Checked:
    """What the checker says of one file; lower and upper as published, "" where the file does not say. notes: what was found that harms no claim."""

    path: str
    ok: bool
    status: str
    reasons: tuple[str, ...]
    norm: str
    lower: str
    upper: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """The certificates that were asked for, and what their manifests and signatures say about files, by path."""

    paths: tuple[Path, ...]
    wrong: dict[Path, str]
    harmless: dict[Path, str]

    def judge(self, checked: Checked) -> Checked:
        """The checker's word, and the manifest's."""
        path = Path(checked.path)
        if path in self.wrong:
            return replace(checked, ok=False, status="INVALID", reasons=(self.wrong[path], *checked.reasons))
        return replace(checked, notes=(self.harmless[path],)) if path in self.harmless else checked


def collect(files: Iterable[Path], key: Path | None = None) -> Batch:
    """The certificate files meant by files and folders: a manifest stands for the files it lists, another folder for its .json files.

    With a public key every manifest, and every certificate without one, must carry its signature. Raises InputError on what is not there, and on a manifest
    that cannot be relied on.
    """
    paths: list[Path] = []
    wrong: dict[Path, str] = {}
    harmless: dict[Path, str] = {}
    for f in files:
        if not f.exists():
            raise InputError(f"{f}: there is no such file; name certificate files or a folder of them.")
        place = f / NAME if f.is_dir() else f
        if place.name == NAME and place.is_file():
            manifest = read_manifest(place)
            if key is not None and not is_signed_by(place, key):
                raise InputError(f"{place}: the signature beside it is not by {key}; do not rely on this batch.")
            missing, words = _listed(manifest, paths)
            wrong, harmless = {**wrong, **missing}, {**harmless, **words}
            continue
        found = sorted(f.glob("*.json")) if f.is_dir() else [f]
        if not found:
            raise InputError(f"{f}: holds no .json file; name certificate files or a folder of them.")
        paths += found
        if key is not None:
            wrong |= {p: f"signature: the one beside the file is not by {key}" for p in found if not is_signed_by(p, key)}
    return Batch(tuple(dict.fromkeys(paths)), wrong, harmless)


def _listed(manifest: Manifest, paths: list[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    wrong, harmless = compare(manifest)
    paths += manifest.paths()
    paths += [p for p in wrong if p not in paths]
    return wrong, harmless


def check_files(paths: Iterable[Path], model: Path | None = None, level: str = "A") -> list[Checked]:
    """The checker's word on every file. A file that cannot be read is not valid.

    With a model file: at level "A" also its hash and its float64 outputs, by torch; at levels "B" and "C" the checker's own derivation from it.
    """
    check = checker_of(model, level)
    return [check(path) for path in paths]


def checker_of(model: Path | None, level: str) -> Callable[[Path], Checked]:
    """`check_files` for one file at a time."""
    if level != "A":
        return lambda path: _told(path, check_file(path, level=level, model=model))
    network = None
    if model is not None:
        from lde_cvx.models import load_model

        network = load_model(model)
    return lambda path: check_one(path, network)


def check_one(path: Path, network: Any = None) -> Checked:
    report: CheckReport
    if network is None:
        report = check_file(path)
    else:
        from verification.certificate import Certificate

        try:
            report = Certificate.load(path).check(network)
        except InputError as e:
            return Checked(str(path), False, "INVALID", (str(e),), "", "", "")
    return _told(path, report)


def _told(path: Path, report: CheckReport) -> Checked:
    return Checked(str(path), report.ok, report.status.name, report.reasons, *_published(path))


def _published(path: Path) -> tuple[str, str, str]:
    """(norm, lower, upper) as the file says, for the table."""
    try:
        record = read(path)
        p = record["norm"]["p"]
        lower, upper = (float.fromhex(record[k]) for k in ("lower", "upper"))
    except (FormatError, OSError, KeyError, TypeError, ValueError):
        return "", "", ""
    label = {"inf": "ℓ∞", "group": "group"}.get(p, f"ℓ{p}") if isinstance(p, str) else "?"
    weighted = p != "group" and bool(record["norm"].get("weights"))
    return f"weighted {label}" if weighted else label, _shown(lower, down), _shown(upper, up)


def _shown(v: float, side: Callable[[float, int], float]) -> str:
    return "∞" if math.isinf(v) else f"{side(v, 6):.6g}"
