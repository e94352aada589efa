"""Columns of a schema read from a DataFrame: which are numeric, which categorical, and what the data say of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from formulations.errors import InputError
from formulations.semantic.columns import Categorical, Column, Numeric, numbers, plain_value
from formulations.semantic.relations import closest

if TYPE_CHECKING:
    import pandas as pd


def columns_from_frame(
    df: pd.DataFrame, categorical: Iterable[str], permitted_range: Mapping[str, Any], units: Mapping[str, str]
) -> tuple[Column, ...]:
    """One `Column` per column of `df`: text, booleans, pandas categories and those listed in `categorical` become one-hot groups.

    Raises InputError on a frame without rows, duplicate names, unknown names, empty cells, constant columns, dates and contradictory ranges.
    """
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise InputError(f"Schema.from_frame: got {type(df).__name__}; give a pandas DataFrame with one row per data point.")
    if len(df) < 2:
        raise InputError(f"Schema.from_frame: {len(df)} rows; ranges and scales need at least 2.")
    names = [check_name(c) for c in df.columns]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise InputError(f"Schema.from_frame: column {repeated[0]!r} occurs {names.count(repeated[0])} times; rename the columns.")
    listed = names_of("categorical", categorical)
    for argument, table in (("permitted_range", permitted_range), ("units", units)):
        if not isinstance(table, Mapping):
            raise InputError(f"{argument}={table!r:.60}: give a table {{column: value}}.")
    for argument, given in (("categorical", listed), ("permitted_range", permitted_range), ("units", units)):
        known_names(argument, given, names)
    out: list[Column] = []
    for name in names:
        series = df[name]
        kind = series.dtype.kind if isinstance(series.dtype, np.dtype) else getattr(series.dtype, "kind", "O")
        if kind in "mMc":
            raise InputError(f"column {name!r}: {series.dtype} cannot be standardised; derive a number (age in years, say) or drop it.")
        is_number = kind in "iuf" and not isinstance(series.dtype, pd.CategoricalDtype)
        if name in listed or not is_number:
            if name in units:
                raise InputError(f"units: {name!r} is categorical and has no unit; remove it from units.")
            out.append(_categorical(name, series, permitted_range.get(name)))
        else:
            out.append(_numeric(name, series, permitted_range.get(name), units.get(name, "")))
    return tuple(out)


def names_of(argument: str, given: Iterable[str]) -> tuple[str, ...]:
    """A tuple of column names; raises InputError when a lone text was given where a list was meant."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise InputError(f"{argument}={given!r}: give a list of column names, [{given!r}].")
    return tuple(given)


def known_names(argument: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raises InputError on the first name that is no column."""
    for name in given:
        if name not in names:
            raise InputError(f"{argument}: no column {name!r}; {closest(str(name), names)}")


def check_name(name: Any) -> str:
    if not isinstance(name, str) or not name or "`" in name:
        raise InputError(f"column name {name!r}: must be a non-empty text without backticks; rename it.")
    return name


def _numeric(name: str, series: Any, given: Any, unit: str) -> Numeric:
    x = numbers(name, series.to_numpy(dtype=float, na_value=np.nan), list(series.index))
    low, high = float(x.min()), float(x.max())
    if low == high:
        raise InputError(f"column {name!r}: every row holds {low:g}; drop a constant column.")
    if given is not None:
        ends = [given] if isinstance(given, (str, int, float)) else list(given)
        if len(ends) != 2 or any(isinstance(e, str) or (e is not None and np.isnan(e)) for e in ends):
            raise InputError(f"permitted_range: {name!r}={given!r} must be (low, high); None keeps the end of the data, ±inf removes it.")
        low, high = (old if end is None else float(end) for old, end in zip((low, high), ends, strict=True))
        if not low <= high:
            raise InputError(f"permitted_range: {name!r} from {low:g} to {high:g} is empty; swap or widen the ends.")
        if not np.any((low <= x) & (x <= high)):
            raise InputError(
                f"permitted_range: {name!r} from {low:g} to {high:g} holds no row of the data ({x.min():g} … {x.max():g}); widen it."
            )
    with np.errstate(over="ignore"):
        mean, std = float(x.mean()), float(x.std())
    return Numeric(name, mean, std, low, high, integer=bool(np.all(x == np.rint(x))), given=given is not None, unit=str(unit))


def _categorical(name: str, series: Any, given: Any) -> Categorical:
    import pandas as pd

    values = [plain_value(v) for v in series]
    for label, value in zip(series.index, values, strict=True):
        if value is None:
            raise InputError(f"column {name!r}, row {label}: is empty; fill or drop the row.")
        if not isinstance(value, (str, bool, int, float)):
            raise InputError(f"column {name!r}, row {label}: {value!r:.60} is no category; use text, numbers or booleans.")
    present = set(values)
    if isinstance(series.dtype, pd.CategoricalDtype):
        categories = tuple(c for c in (plain_value(v) for v in series.dtype.categories) if c in present)
    else:
        categories = tuple(sorted(present, key=lambda v: (isinstance(v, str), v)))
    allowed = categories if given is None else tuple(plain_value(c) for c in names_of(f"permitted_range[{name!r}]", given))
    chosen = set(allowed)
    return Categorical(name, categories, tuple(c for c in categories if c in chosen) + tuple(c for c in allowed if c not in categories))
