"""A margin's rows against their scale: what is certified, what is a picture, and where they part."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lde_cvx.plots import GRID, LOWER, MUTED, PANEL, STYLE, UPPER
from verification.checking.outward import down_words, up_words
from verification.scales import MultiScale, RowKind

_LINES: dict[RowKind, dict[str, Any]] = {
    RowKind.MINORANT: {"color": LOWER, "marker": "o", "label": "sound minorant: certified"},
    RowKind.SMOOTHED: {"color": PANEL[1], "marker": "s", "linestyle": "--", "label": "smoothed gradient: a picture"},
    RowKind.SECANT: {"color": PANEL[2], "marker": "D", "linestyle": "none", "label": "secant to the witness: a picture"},
}


def scale_plot(record: MultiScale, *, upper: float | None = None) -> Figure:
    """Value of every row against its scale, both distances in the norm; the chosen one is ringed, `upper` is a witness's distance."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(6.4, 4.2), layout="constrained")
        ax = fig.subplots()
        shown = [r for r in record.rows if np.isfinite(r.value)]
        top = max((r.scale for r in shown), default=1.0)
        ax.plot(
            [0, top], [0, top], color=MUTED, linewidth=0.8, linestyle=":", label="value = scale: the most that a ball of that radius proves"
        )
        for kind, style in _LINES.items():
            rows = sorted((r for r in shown if r.kind is kind), key=lambda r: r.scale)
            if rows:
                ax.plot([r.scale for r in rows], [r.value for r in rows], markersize=4, linewidth=1.2, **style)
        if np.isfinite(record.lower):
            at = min(record.chosen.scale, top)
            ax.plot([at], [record.lower], marker="o", markersize=11, markerfacecolor="none", color=LOWER, linestyle="none")
            ax.annotate(
                f"certified {down_words(record.lower, 3)}", (at, record.lower), textcoords="offset points", xytext=(8, -14), color=LOWER
            )
        if upper is not None and np.isfinite(upper):
            ax.axhline(upper, color=UPPER, linewidth=1.2, label=f"witness {up_words(upper, 3)}")
        ax.set(xlabel="scale r: the radius on which the row is taken", ylabel="distance that the row says")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.grid(color=GRID)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=8)
        return fig
