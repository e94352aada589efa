"""What a table says: how often the local models' radii are true, and how they compare with what is certified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lde_cvx.plots import GRID, INK, LOWER, RANGE, STYLE, UPPER

if TYPE_CHECKING:
    import pandas as pd

BY = ["data", "network", "norm", "set", "method", "order"]
SHARES = ("certified", "refuted", "unknown")


def validity_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Per cell and order: inputs, shares of radii certified true, refuted and unknown, medians of radius, certified fraction and lower/upper."""
    import pandas as pd

    rows = []
    for key, part in table.groupby(BY, sort=False):
        finite = part[np.isfinite(part.upper) & (part.upper > 0)]
        rows.append(
            dict(zip(BY, key, strict=True))
            | {"inputs": len(part)}
            | {name: float((part.validity == name).mean()) for name in SHARES}
            | {
                "median_radius": float(part.radius.median()),
                "median_fraction": float(part.certified_fraction.median()),
                "median_lower_upper": float((finite.lower / finite.upper).median()) if len(finite) else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def validity_plot(table: pd.DataFrame) -> Figure:
    """One bar per cell and order: the shares certified, unknown and refuted."""
    rates = validity_rates(table)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(9.0, 1.4 + 0.24 * len(rates)), layout="constrained")
        ax = fig.subplots()
        left = np.zeros(len(rates))
        y = np.arange(len(rates))
        for name, colour in (("certified", LOWER), ("unknown", RANGE), ("refuted", UPPER)):
            ax.barh(y, rates[name], left=left, color=colour, label=name, height=0.72)
            left = left + rates[name].to_numpy()
        for at, (fraction, n) in enumerate(zip(rates.median_fraction, rates.inputs, strict=True)):
            ax.text(1.01, at, f"{fraction:.0%} of it certified (median of {n})", va="center", fontsize=7, color=INK)
        ax.set_yticks(y, [f"{r.norm}  {r.set}  {r.method}  {'linear' if r.order == 1 else 'quadratic'}" for r in rates.itertuples()])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.32)
        ax.set_xticks(np.linspace(0, 1, 6), [f"{v:.0%}" for v in np.linspace(0, 1, 6)])
        ax.set_xlabel("share of inputs, by what is known of the local model's radius")
        ax.grid(axis="x", color=GRID)
        ax.set_axisbelow(True)
        data = ", ".join(sorted(set(table.data)))
        ax.set_title(f"Are the local models' radii true? {data}")
        ax.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.12 - 0.4 / (1 + len(rates))))
        return fig
