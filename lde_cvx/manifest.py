"""The manifest of a batch of certificates: which files, each file's sha256, which model, which command, which versions.

    {"format": "lde-manifest", "version": 1, "sha256": of the canonical form of everything else,
     "files": [{"name": "certificates/a.json", "sha256": …, "claim": …, "bytes": …}, …], "count": 60, "verdicts": {"BRACKETED": 60},
     "model": {"sha256": of the weights, as in the certificates, "file": "model.safetensors" or null, "file_sha256": … or null},
     "command", "versions", "seed"}

It is written last and at once (a temporary file, then `os.replace`): a folder with a manifest holds a whole batch. `claim` is the hash of a certificate
without the fields that no claim rests on (`WORDS`), so that a change of version text can be told from a change of the claim. A manifest proves nothing by
itself; a detached signature of it (signing.py) says who vouches for the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from formulations.errors import InputError
from formulations.whole_file import whole_file
from verification.checking.text import FormatError, canonical, read, self_hash

__all__ = ["NAME", "WORDS", "Entry", "Manifest", "claim_hash", "compare", "read_manifest", "write_manifest"]

NAME = "manifest.json"
FORMAT, VERSION = "lde-manifest", 1
MAX_BYTES = 64 * 2**20
WORDS = ("command", "method", "notes", "provenance", "seed", "sha256", "versions")  # of a certificate: no claim rests on them


@dataclass(frozen=True)
class Entry:
    """One file of the batch; name: its path below the manifest's folder, with forward slashes."""

    name: str
    sha256: str
    claim: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A manifest that has the right form and its own hash; the files are not compared yet."""

    folder: Path
    entries: tuple[Entry, ...]
    model_sha256: str
    model_file: str | None
    model_file_sha256: str | None

    def paths(self) -> list[Path]:
        return [self.folder / e.name for e in self.entries]


def claim_hash(record: Mapping[str, Any]) -> str:
    """sha256 of the canonical form of everything that a claim rests on."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k not in WORDS})).hexdigest()


def file_hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: str | Path, files: Iterable[str | Path], model: str | Path | None = None, command: str = "") -> Path:
    """Writes `folder`/manifest.json about certificate files below the folder, and the model file where there is one; the manifest is whole or absent.

    Raises InputError on no files, a file outside the folder, one that is no certificate, and certificates of several models.
    """
    root = Path(folder).resolve()
    entries, models, verdicts, versions, seeds = [], set(), Counter[str](), dict[str, Any](), set()
    for path in sorted(Path(f) for f in files):
        try:
            name = path.resolve().relative_to(root).as_posix()
            record = read(path)
            entries.append({"name": name, "sha256": file_hash(path), "claim": claim_hash(record), "bytes": path.stat().st_size})
            models.add(str(record["model"]["sha256"]))
            verdicts[str(record["verdict"])] += 1
            seeds.add(record["seed"])
            versions = {**versions, **record["versions"]}
        except (FormatError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no certificate ({error}); a manifest lists whole certificates only.") from None
        except ValueError:
            raise InputError(f"{path}: lies outside {folder}; a manifest lists files below its own folder.") from None
    if len(models) != 1:
        raise InputError(
            f"{folder}: {len(entries)} certificates of {len(models)} models; a manifest is about one model and at least one file."
        )
    file = None if model is None else Path(model)
    record = {
        "format": FORMAT, "version": VERSION, "sha256": "", "files": entries, "count": len(entries), "verdicts": dict(sorted(verdicts.items())),
        "model": {"sha256": models.pop(), "file": None if file is None else file.resolve().relative_to(root).as_posix(),
                  "file_sha256": None if file is None else file_hash(file)},
        "command": command, "versions": versions, "seed": seeds.pop() if len(seeds) == 1 else None,
    }  # fmt: skip
    record["sha256"] = self_hash(record)
    target = root / NAME
    with whole_file(target) as draft:
        draft.write_bytes(json.dumps(record, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n")
    return target


def read_manifest(path: str | Path) -> Manifest:
    """The manifest in a file. Raises InputError, one line, when it is none, was changed, or names a file outside its folder."""
    place = Path(path)
    try:
        record = read(place, MAX_BYTES)
        if record.get("format") != FORMAT or record.get("version") != VERSION or type(record.get("version")) is not int:
            raise FormatError(
                f"format={str(record.get('format'))[:40]!r}, version={str(record.get('version'))[:40]} is not '{FORMAT}', {VERSION}"
            )
        if record.get("sha256") != self_hash(record):
            raise FormatError("sha256: the manifest's own hash does not match its content")
        entries = tuple(_entry(e) for e in record["files"])
        model = record["model"]
        if not entries or len({e.name for e in entries}) != len(entries) or record["count"] != len(entries):
            raise FormatError("files: a name appears twice, there are none, or they are not `count`")
        file, digest = model["file"], model["file_sha256"]
        if not all(v is None or isinstance(v, str) for v in (file, digest)) or (file is None) != (digest is None):
            raise FormatError("model: file and file_sha256 are neither two strings nor two nulls")
        return Manifest(place.parent, entries, str(model["sha256"]), None if file is None else _inside(file), digest)
    except (FormatError, KeyError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, FormatError) else f"a field is missing or of another kind ({str(error)[:60]})"
        raise InputError(f"{place}: {why}; this is not a manifest that can be relied on, get the folder again.") from None


def _entry(value: Any) -> Entry:
    if not all(isinstance(value[k], str) for k in ("name", "sha256", "claim")) or type(value["bytes"]) is not int:
        raise FormatError("files: an entry is not {name, sha256, claim, bytes}")
    return Entry(_inside(value["name"]), value["sha256"], value["claim"], value["bytes"])


def _inside(name: str) -> str:
    """A relative path that stays below the folder, in words; links are followed by whoever opens it."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        raise FormatError(f"the name {name[:60]!r} does not stay below the manifest's folder")
    return name


def compare(manifest: Manifest) -> tuple[dict[Path, str], dict[Path, str]]:
    """(what is wrong, what is harmless) of the batch's files, by path: missing, changed, not listed; or changed in words on which no claim rests."""
    wrong: dict[Path, str] = {}
    harmless: dict[Path, str] = {}
    root = manifest.folder.resolve()
    listed = {manifest.folder / e.name for e in manifest.entries}
    for entry in manifest.entries:
        path = manifest.folder / entry.name
        if not path.is_file() or not path.resolve().is_relative_to(root):
            wrong[path] = "manifest: the file is missing, or leads out of the folder"
        elif path.stat().st_size != entry.bytes or file_hash(path) != entry.sha256:
            if _claim_of(path) == entry.claim:
                harmless[path] = "manifest: changed since, but only in words on which no claim rests (such as versions or notes)"
            else:
                wrong[path] = "manifest: not the file that the manifest lists (another sha256, and another claim)"
    for folder in sorted({p.parent for p in listed}):
        for path in sorted(folder.glob("*.json")) if folder.resolve().is_relative_to(root) else []:
            if path not in listed and path.name != NAME and _claim_of(path) is not None:
                wrong[path] = "manifest: a certificate that the manifest does not list"
    if manifest.model_file is not None:
        path = manifest.folder / manifest.model_file
        if not path.is_file() or not path.resolve().is_relative_to(root) or file_hash(path) != manifest.model_file_sha256:
            wrong[path] = "manifest: the model file is missing or not the one that the manifest lists"
    return wrong, harmless


def _claim_of(path: Path) -> str | None:
    """The claim's hash of a certificate file; None where it is none."""
    try:
        record = read(path)
        return claim_hash(record) if record.get("format") == "lde-certificate" else None
    except FormatError:
        return None
