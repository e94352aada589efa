"""A file that grows by whole lines as a run finishes its cases: a run that was killed loses the line it was writing, and the next one goes on after the last."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from formulations.errors import InputError
from formulations.whole_file import whole_file


def lines(path: Path) -> list[str]:
    """The whole lines, each with its end; what a killed run left half-written is cut off the file. Raises InputError on what is no text."""
    if not path.exists():
        return []
    found = path.read_bytes()
    kept = found[: found.rfind(b"\n") + 1]
    try:
        whole = list(io.StringIO(kept.decode("utf-8"), newline="\n"))  # str.splitlines would cut at other characters too
    except UnicodeDecodeError as reason:
        raise InputError(f"{path}: cannot be read ({reason.reason} at byte {reason.start}); name another folder, or delete it.") from None
    if kept != found:
        with whole_file(path) as draft:
            draft.write_bytes(kept)
    return whole


def append(path: Path, new: Iterable[str]) -> None:
    """Lines, each with its end, at the end of the file and on the disk."""
    with path.open("ab") as stream:
        stream.write("".join(new).encode())
        stream.flush()
        os.fsync(stream.fileno())


def records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that holds one a line. Raises InputError on anything else."""
    try:
        found = [json.loads(line) for line in lines(path)]
    except ValueError as reason:
        if isinstance(reason, InputError):
            raise
        found = [None]
    if not all(isinstance(r, dict) for r in found):
        raise InputError(
            f"{path}: cannot be read (no JSON object in every line); name another folder, or delete it to measure everything again."
        )
    return found


def add(path: Path, record: Mapping[str, Any]) -> None:
    """One more of them."""
    append(path, [json.dumps(record, sort_keys=True) + "\n"])
