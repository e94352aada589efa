"""Configuration files read: one place for what can be wrong with their text."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from formulations.errors import InputError

DEEPEST = 64
"""Tables and arrays inside one another that a configuration may have."""


def embedded(package: str) -> list[str]:
    """Names of the configurations that ship in a package."""
    return sorted(f.name.removesuffix(".toml") for f in files(package).iterdir() if f.name.endswith(".toml"))


def text_of(source: str | Path, package: str, what: str) -> str:
    """The text of an embedded configuration, or of a file. Raises InputError where it is neither."""
    name, known = str(source), embedded(package)
    if name in known:
        return (files(package) / f"{name}.toml").read_text(encoding="utf-8")
    if not Path(name).is_file():
        raise InputError(f"{name}: is neither a file nor an embedded {what}; embedded are {', '.join(known)}.")
    return file_text(Path(name))


def file_text(path: Path) -> str:
    """The text of a file. Raises InputError on what is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: is not UTF-8 text (byte {e.start}); save it as UTF-8.") from None


def parsed(text: str, name: str | Path) -> dict[str, Any]:
    """The tables of a TOML text. Raises InputError on what is not TOML, or nests deeper than any configuration."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"{name}: is not TOML: {e}.") from None
    except RecursionError:
        tables = None
    if tables is None or _nests_deeper(tables, DEEPEST):  # whether the parser itself gives up depends on the process's recursion limit
        raise InputError(f"{name}: nests its values more than {DEEPEST} deep; a configuration needs three or four.")
    return tables


def _nests_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [v for held in level for v in (held.values() if isinstance(held, dict) else held if isinstance(held, list) else ())]
    return bool(level)
