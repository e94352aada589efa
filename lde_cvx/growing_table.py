"""A CSV that grows as a run finishes its cases (lde_cvx/growing_file.py), in a folder that says which settings its lines belong to."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from formulations.errors import InputError
from formulations.whole_file import whole_file
from lde_cvx.growing_file import append, lines


@dataclass(frozen=True)
class GrowingTable:
    """`table` with lines of `columns`; `stamp` holds the settings and their sha256. `what`: whose table it is, in a word."""

    table: Path
    stamp: Path
    columns: Sequence[str]
    what: str

    def claim(self, settings: Mapping[str, Any], sha256: str | None = None) -> None:
        """This folder is these settings'. Raises InputError where it holds a table of others."""
        folder, mine = self.table.parent, sha256 or hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        if self.stamp.is_file():
            try:
                before = json.loads(self.stamp.read_text(encoding="utf-8")).get("sha256")
            except (ValueError, AttributeError):
                before = None
            if before != mine:
                raise InputError(
                    f"--out {folder}: holds the table of another {self.what}; name another folder, or remove {self.table.name} and {self.stamp.name} there."
                )
            return
        if self.table.is_file():
            raise InputError(f"--out {folder}: holds a {self.table.name} without its {self.stamp.name}; name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.stamp) as draft:
            draft.write_text(json.dumps({"sha256": mine, self.what: dict(settings)}, indent=1) + "\n", encoding="utf-8", newline="")

    def kept(self) -> list[dict[str, str]]:
        """The whole lines of an earlier run; what a killed run left half-written is cut off the file."""
        whole = lines(self.table)
        rows = [r for r in csv.DictReader(whole) if None not in r and None not in r.values()]
        if whole and (len(rows) + 1 != len(whole) or whole[0] != ",".join(self.columns) + "\n"):
            raise InputError(f"{self.table}: is not a table of this version; name another folder.")
        return rows

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if not self.table.is_file() or self.table.stat().st_size == 0:
            writer.writeheader()
        writer.writerows(rows)
        append(self.table, [text.getvalue()])
