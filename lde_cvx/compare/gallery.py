"""The gallery of a comparison: what the maps of every method look like, side by side."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from formulations.norms import Array
from lde_cvx.compare.cases import Case
from lde_cvx.compare.cells import CellStore
from lde_cvx.compare.config import CompareConfig
from lde_cvx.plots import GRID, LOWER, STYLE

NAMED = 120  # features that still have room for their names


def gallery(config: CompareConfig, case: Case, store: CellStore, most: int = 6) -> Figure:
    """Images: the first `most` inputs that every method explained, a column each. Flat inputs: bars per feature, over all such inputs."""
    done = [i for i in range(len(case.x)) if all(store.map_of(m, i) is not None for m in config.methods)]
    maps = {m.name: np.abs(np.stack([np.asarray(store.map_of(m, i))[0] for i in done])) for m in config.methods}
    with matplotlib.rc_context(STYLE):
        return _pictures(case, done[:most], maps) if case.x.ndim > 2 else _bars(case, maps)


def _pictures(case: Case, shown: list[int], maps: dict[str, Array]) -> Figure:
    """One column per input, one row per method: |map| scaled to its 99.5 % point."""
    rows = len(maps) + 1
    fig = Figure(figsize=(1.9 + 1.05 * len(shown), 1.05 * rows), layout="constrained")
    axes = fig.subplots(rows, len(shown), squeeze=False)
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
    for column, i in enumerate(shown):
        axes[0, column].imshow(_plane(case.x[i].numpy()), cmap="gray_r")
    _label(axes[0, 0], "input")
    for row, (name, values) in enumerate(maps.items(), start=1):
        for column in range(len(shown)):
            plane = _plane(values[column])
            axes[row, column].imshow(plane, cmap="magma", vmin=0.0, vmax=max(float(np.quantile(plane, 0.995)), 1e-12))
        _label(axes[row, 0], name)
    return fig


def _bars(case: Case, maps: dict[str, Array]) -> Figure:
    """One row per method, to its own scale: the mean over the inputs of each feature's share of Σ|map|."""
    d, n = case.x.shape[1], len(next(iter(maps.values())))
    names = case.features if len(case.features) == d <= NAMED else ()
    longest = max((len(name) for name in names), default=0)
    fig = Figure(figsize=(2.4 + (0.14 * d if names else 6.0), 0.6 + 0.42 * len(maps) + 0.065 * longest), layout="constrained")
    axes = fig.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        share = (values / np.maximum(values.sum(1, keepdims=True), 1e-300)).mean(0)
        ax.bar(range(d), share, color=LOWER)
        ax.set_ylim(0, 1.05 * max(float(share.max()), 1e-12))
        ax.set_yticks([])
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="x", color=GRID, lw=0.5)
        ax.set_axisbelow(True)
        _label(ax, name)
    last = axes[-1]
    last.set_xlim(-0.6, d - 0.4)
    if names:
        last.set_xticks(range(d), names, rotation=90, fontsize=7)
    else:
        last.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.supxlabel(
        f"{'feature' if names else 'number of the feature'}; bars: share of Σ|map|, mean of {n} inputs, each row to its own scale",
        fontsize=9,
    )
    return fig


def _label(ax: Any, text: str) -> None:
    ax.set_ylabel(text, rotation=0, ha="right", va="center")


def _plane(image: Array) -> Array:
    """(h, w): the mean over channels."""
    return np.asarray(image.mean(0) if image.ndim == 3 else image)
