"""The table that an audit is about: a data set that ships, or a CSV file of the user's."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from formulations.errors import InputError
from formulations.semantic.relations import closest
from lde_cvx.auditing.config import AuditConfig
from lde_cvx.data import Dataset, load_dataset


def read_data(config: AuditConfig) -> Dataset:
    """The named data set or the CSV file, without the dropped columns. Raises InputError that names a missing column or label."""
    asked = config.data
    if (asked.name is None) == (asked.path is None):
        raise InputError("data: give either name (a data set that ships) or path (a CSV file).")
    data = load_dataset(asked.name) if asked.name is not None else read_csv(Path(str(asked.path)), asked.label)
    if not hasattr(data.X, "columns"):
        raise InputError(f"data.name={asked.name!r}: holds images; an audit needs a table.")
    if asked.declined not in data.classes:
        raise InputError(f"data.declined={asked.declined!r} is no label; the labels are {', '.join(map(repr, data.classes))}.")
    missing = [c for c in asked.drop if c not in data.X.columns]
    if missing:
        raise InputError(f"data.drop: no column {missing[0]!r}; {closest(missing[0], map(str, data.X.columns))}")
    return replace(data, X=data.X.drop(columns=asked.drop))


def read_csv(path: Path, label: str) -> Dataset:
    """A CSV file with a header; its column `label` holds the class. Raises InputError on a missing file, column or class."""
    import pandas as pd

    if not path.is_file():
        raise InputError(f"data.path={str(path)!r}: there is no such file; paths are relative to the current folder.")
    raw = path.read_bytes()
    try:
        table = pd.read_csv(io.BytesIO(raw), skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        raise InputError(f"data.path={str(path)!r}: is not a CSV table ({str(e).splitlines()[0]}).") from None
    if label not in table.columns:
        raise InputError(f"data.label: {path} has no column {label!r}; {closest(label, map(str, table.columns))}")
    empty = np.flatnonzero(table[label].isna())
    if len(empty):
        raise InputError(f"data.label: row {empty[0]} of {path} has no {label!r}; fill or drop the row.")
    values = table[label].astype(str)
    classes = tuple(sorted(values.unique()))
    if len(classes) < 2:
        raise InputError(f"data.label: every row of {path} has {label}={classes[0]!r}; a decision needs two classes.")
    y = np.array([classes.index(v) for v in values], dtype=np.int64)
    return Dataset(
        path.stem,
        table.drop(columns=[label]),
        y,
        classes,
        f"the file {path.name}",
        "not stated",
        "the user's file",
        hashlib.sha256(raw).hexdigest(),
    )
