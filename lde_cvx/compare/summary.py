"""From cells to a table with intervals and its best groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from formulations.errors import InputError
from formulations.norms import Array
from lde_cvx.compare.config import CompareConfig
from lde_cvx.metrics.statistics import Interval, interval, paired_test

if TYPE_CHECKING:
    import pandas as pd

    from lde_cvx.compare.cells import CellStore

LOWER_IS_BETTER = {
    "deletion": True, "insertion": False, "key_size": True, "ordering": True, "stability": False, "seconds": True,
    "cpu_seconds": True, "memory": True,
}  # fmt: skip
TITLES = {
    "deletion": "deletion ↓", "insertion": "insertion ↑", "key_size": "key size ↓", "ordering": "ordering ↓", "stability": "stability ↑",
    "seconds": "seconds ↓", "cpu_seconds": "CPU seconds ↓", "memory": "MB ↓",
}  # fmt: skip
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Entry:
    """One method in one metric; best: not significantly worse than the best mean (paired Wilcoxon at 5 %)."""

    method: str
    metric: str
    values: Array
    interval: Interval
    best: bool


def entries(config: CompareConfig, store: CellStore) -> tuple[list[Entry], int]:
    """(entries, number of inputs): over the inputs that every method finished. Raises InputError when there are none."""
    names = config.metrics.names
    inputs = sorted({cell.input for cell in store.cells.values()})
    common = [i for i in inputs if all(store.has(m, i, k) for m in config.methods for k in names)]
    if not common:
        raise InputError(f"{store.folder}: no input was finished by every method; let the comparison run on.")
    out = []
    for metric in names:
        rows = {m.name: np.array([store.value(m, i, metric) for i in common], dtype=float) for m in config.methods}
        sign = 1.0 if LOWER_IS_BETTER[metric] else -1.0
        winner = min(rows, key=lambda name: sign * float(rows[name].mean()))
        for name, values in rows.items():
            best = name == winner or paired_test(values, rows[winner]).p_value >= LEVEL
            out.append(Entry(name, metric, values, interval(values, seed=config.seed), best))
    return out, len(common)


def frame(found: list[Entry]) -> pd.DataFrame:
    """Long form: method, metric, mean, low, high, n, best."""
    import pandas as pd

    return pd.DataFrame(
        [(e.method, e.metric, e.interval.mean, e.interval.low, e.interval.high, e.interval.n, e.best) for e in found],
        columns=["method", "metric", "mean", "low", "high", "n", "best"],
    )


def grid(found: list[Entry]) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """(headings, rows of (text, best)): one row per method."""
    metrics = list(dict.fromkeys(e.metric for e in found))
    by = {(e.method, e.metric): e for e in found}
    rows = []
    for method in dict.fromkeys(e.method for e in found):
        row: list[tuple[str, bool]] = [(method, False)]
        row += [(words(by[(method, m)].interval), by[(method, m)].best) for m in metrics]
        rows.append(row)
    return ["method", *(TITLES[m] for m in metrics)], rows


def words(i: Interval) -> str:
    """Mean and interval with the digits that tell them apart."""
    return f"{_short(i.mean)} [{_short(i.low)}, {_short(i.high)}]"


def _short(v: float) -> str:
    text = f"{v:.3f}" if abs(v) < 10 else f"{v:.3g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def markdown(found: list[Entry]) -> str:
    """The table in Markdown; the best group of each column is bold."""
    headings, rows = grid(found)
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(["---"] + ["---:"] * (len(headings) - 1)) + "|"]
    lines += ["| " + " | ".join(f"**{t}**" if best else t for t, best in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
