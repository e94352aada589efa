"""A schema as plain values, and from TOML files.

A TOML file holds the keywords of `Schema.from_frame` as keys; with a table ``[[columns]]`` for every column it needs no data:

    immutable = ["age"]                     [[columns]]
    relations = ["debt <= 5 * income"]      name = "age"                        [[columns]]
    [permitted_range]                       kind = "numeric"                    name = "housing"
    income = [0, 200000]                    mean = 35.5                         kind = "categorical"
    [units]                                 std = 11.4                          categories = ["own", "rent"]
    age = "year"                            low = 18
                                            high = 80                           (low, high: left out = unlimited)
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from formulations.errors import InputError
from formulations.norms import INF
from formulations.semantic.build import check_name, names_of
from formulations.semantic.columns import Categorical, Column, Numeric
from formulations.semantic.relations import closest, parse_relation

if TYPE_CHECKING:
    import pandas as pd

    from formulations.semantic.schema import Schema

MAX_BYTES = 10_000_000  # a schema is written by people; beyond this the file is something else

_RULES = ("immutable", "increasing", "decreasing", "relations", "features_to_vary", "budget")
_FRAME_KEYS = (*_RULES, "categorical", "permitted_range", "units")
_NUMERIC = {"name", "kind", "mean", "std", "low", "high", "integer", "given", "unit"}
_CATEGORICAL = {"name", "kind", "categories", "allowed"}


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """See `Schema.to_dict`."""
    return {
        "columns": [_column_to_dict(c) for c in schema.columns],
        "immutable": list(schema.immutable),
        "increasing": list(schema.increasing),
        "decreasing": list(schema.decreasing),
        "relations": [r.text for r in schema.relations],
        "features_to_vary": None if schema.features_to_vary is None else list(schema.features_to_vary),
        "budget": None if schema.budget is None else float(schema.budget),
    }


def schema_from_dict(record: Mapping[str, Any]) -> Schema:
    """See `Schema.from_dict`."""
    from formulations.semantic.schema import Schema

    _only("schema", record, ("columns", *_RULES))
    if not isinstance(record.get("columns"), list) or not record["columns"]:
        raise InputError("schema: no columns; give one table per column, or a DataFrame to read them from.")
    columns = tuple(_column_from_dict(c) for c in record["columns"])
    numeric = [c.name for c in columns if isinstance(c, Numeric)]
    vary = record.get("features_to_vary")
    return Schema(
        columns,
        names_of("immutable", record.get("immutable", ())),
        names_of("increasing", record.get("increasing", ())),
        names_of("decreasing", record.get("decreasing", ())),
        tuple(parse_relation(text, numeric) for text in names_of("relations", record.get("relations", ()))),
        None if vary is None or vary == "all" else names_of("features_to_vary", vary),
        record.get("budget"),
    )


def schema_from_toml(path: Path, df: pd.DataFrame | None) -> Schema:
    """See `Schema.from_toml`."""
    from formulations.semantic.schema import Schema

    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES} bytes; a schema file holds rules, not data.")
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:  # arrays in arrays, thousands deep
        raise InputError(f"{path}: is not TOML: {error}.") from None
    if df is None:
        if "columns" not in record:
            raise InputError(f"{path}: has no [[columns]]; add one table per column, or pass the DataFrame that the columns come from.")
        return schema_from_dict(record)
    if "columns" in record:
        raise InputError(f"{path}: has its own [[columns]], and a DataFrame was given too; use one of the two.")
    _only(str(path), record, _FRAME_KEYS)
    return Schema.from_frame(df, **record)


def _column_to_dict(column: Column) -> dict[str, Any]:
    if isinstance(column, Categorical):
        return {"name": column.name, "kind": "categorical", "categories": list(column.categories), "allowed": list(column.allowed)}
    return {
        "name": column.name, "kind": "numeric", "mean": column.mean, "std": column.std,
        "low": column.low if column.low > -INF else None, "high": column.high if column.high < INF else None,
        "integer": column.integer, "given": column.given, "unit": column.unit,
    }  # fmt: skip


def _column_from_dict(record: Any) -> Column:
    if not isinstance(record, Mapping) or "name" not in record:
        raise InputError(f"schema: column {record!r:.60} is no table with a name.")
    name, kind = check_name(record["name"]), record.get("kind")
    if kind == "categorical":
        _only(f"column {name!r}", record, _CATEGORICAL)
        categories = names_of(f"column {name!r}: categories", record.get("categories", ()))
        if not all(isinstance(c, (str, bool, int, float)) for c in categories):
            raise InputError(f"column {name!r}: categories {list(categories)!r:.80} must be texts, numbers or booleans.")
        return Categorical(name, categories, names_of(f"column {name!r}: allowed", record.get("allowed", categories)))
    if kind != "numeric":
        raise InputError(f"column {name!r}: kind={kind!r} must be 'numeric' or 'categorical'.")
    _only(f"column {name!r}", record, _NUMERIC)
    numbers = {}
    for key, default in (("mean", None), ("std", None), ("low", -INF), ("high", INF)):
        value = record.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"column {name!r}: {key}={record.get(key)!r} must be a number.")
        numbers[key] = float(value)
    return Numeric(
        name, **numbers, integer=bool(record.get("integer", False)), given=bool(record.get("given", True)), unit=str(record.get("unit", ""))
    )


def _only(where: str, record: Mapping[str, Any], known: Any) -> None:
    for key in record:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; {closest(str(key), sorted(known))}")


__all__ = ["schema_from_dict", "schema_from_toml", "schema_to_dict"]
