"""Configuration files read: one place for what can be wrong with their text, and with their tables."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from formulations.errors import InputError

DEEPEST = 64
"""Tables and arrays inside one another that a configuration may have."""


class Table(BaseModel):
    """A table of a configuration: every key checked, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Configuration = TypeVar("Configuration", bound=Table)
Several = TypeVar("Several", list[Any], dict[str, Any])


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


def validated(kind: type[Configuration], text: str, name: str | Path) -> Configuration:
    """The configuration that a TOML text holds. Raises InputError, one line, on what is not TOML, and naming the first key that is wrong and its value."""
    tables = parsed(text, name)
    try:
        return kind.model_validate(tables)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        ours = first.get("ctx", {}).get("error") if first["type"] == "value_error" else None  # a sentence of ours keeps its letters
        said = first["msg"][:1].lower() + first["msg"][1:] if ours is None else str(ours).rstrip(".")
        if first["type"] == "extra_forbidden":
            said = f"is not known; there are {', '.join(_keys(kind, first['loc'][:-1]))}"
        told = first["type"] == "missing" or isinstance(first["input"], dict) or repr(first["input"]) in said
        given = "" if told else f", got {first['input']!r:.80}"
        more = f" ({e.error_count() - 1} more)" if e.error_count() > 1 else ""
        raise InputError(f"{name}: {where}: {said}{given}{more}.") from None


def _keys(kind: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """The keys of the table that a path through a configuration leads to."""
    for part in where:
        if isinstance(part, str):
            held = kind.model_fields[part].annotation
            kind = next(t for t in (held, *get_args(held)) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(kind.model_fields)


def distinct(values: Several) -> Several:
    """A list or table as it is. Raises ValueError where it is empty or says something twice."""
    if not values or len(set(values)) < len(values):
        raise ValueError("name at least one, each once")
    return values


def _nests_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [v for held in level for v in (held.values() if isinstance(held, dict) else held if isinstance(held, list) else ())]
    return bool(level)
