"""From cells to a table with intervals, its best groups, and a gallery of maps."""

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
    from matplotlib.figure import Figure

    from lde_cvx.compare.cases import Case
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


def gallery(config: CompareConfig, case: Case, store: CellStore, most: int = 6) -> Figure:
    """Images: one column per input, one row per method, |map| scaled to its 99.5 % point. Tables: bars of the mean share of |map| per feature."""
    import matplotlib
    from matplotlib.figure import Figure

    from lde_cvx.plots import STYLE

    shown = [i for i in range(len(case.x)) if all(store.map_of(m, i) is not None for m in config.methods)][:most]
    image = case.x.ndim > 2
    with matplotlib.rc_context(STYLE):
        rows = len(config.methods) + int(image)
        fig = Figure(figsize=(1.9 + 1.05 * len(shown), 1.05 * rows) if image else (8.0, 0.6 + 0.55 * rows), layout="constrained")
        axes = fig.subplots(rows, len(shown) if image else 1, squeeze=False)
        for ax in axes.ravel():
            ax.set_xticks([])
            ax.set_yticks([])
        if image:
            for column, i in enumerate(shown):
                axes[0, column].imshow(_plane(case.x[i].numpy()), cmap="gray_r")
            _label(axes[0, 0], "input")
        for row, method in enumerate(config.methods, start=int(image)):
            maps = [store.map_of(method, i) for i in shown]
            if image:
                for column, m in enumerate(maps):
                    plane = _plane(np.abs(np.asarray(m)[0]))
                    axes[row, column].imshow(plane, cmap="magma", vmin=0.0, vmax=max(float(np.quantile(plane, 0.995)), 1e-12))
            else:
                share = np.mean([np.abs(np.asarray(m)).ravel() / max(float(np.abs(np.asarray(m)).sum()), 1e-300) for m in maps], axis=0)
                axes[row, 0].bar(range(len(share)), share, color="#0b6e6e")
            _label(axes[row, 0], method.name)
        return fig


def _label(ax: object, text: str) -> None:
    ax.set_ylabel(text, rotation=0, ha="right", va="center")  # type: ignore[attr-defined]


def _plane(image: Array) -> Array:
    """(h, w): the mean over channels."""
    return np.asarray(image.mean(0) if image.ndim == 3 else image)
