"""`lde bench tightness`: certified lower bound over witnessed upper bound, per method, beside auto_LiRPA used alone, in one run.

Every method is asked about the same inputs, norms and sets; the upper bound is the same witness for all. `seconds` is wall time per input.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from formulations.norms import Array, Norm
from lde_cvx.bench.networks import Case, cases
from lde_cvx.bench.table import show, write_whole
from verification.attack import find_witness
from verification.lirpa_alone import library_radius
from verification.model import decide, outputs
from verification.radius import certified_radius

ALONE, PLAIN = "auto_LiRPA alone", ("ibp", "crown", "alpha-crown")


def measure(case: Case, norm: float | str, device: str) -> list[dict[str, object]]:
    """One row per method."""
    x, C = case.x.to(device), case.constraints
    model = case.model.to(device)
    start = time.perf_counter()
    witnesses = find_witness(model, x, norm, C, device=device)
    upper = witnesses.upper
    rows: list[dict[str, object]] = []

    def record(method: str, lower: Array, spent: float) -> None:
        found = np.isfinite(upper) & (upper > 0)
        ratio = np.minimum(lower[found] / upper[found], 1.0)
        rows.append({
            "network": case.name, "norm": Norm.of(norm).label, "method": method, "inputs": len(x), "lower": float(np.mean(lower[found])),
            "upper": float(np.mean(upper[found])), "ratio": float(ratio.mean()), "worst": float(ratio.min()),
            "seconds": spent / len(x),
        })  # fmt: skip

    record("witness", np.zeros(len(x)), time.perf_counter() - start)
    decisions = decide(outputs(model, x), None)
    if case.box is not None:
        radii, spent = library_radius(model, x, decisions, norm, np.where(np.isfinite(upper), upper, 1.0), box=case.box)
        record(ALONE, radii, float(spent.sum()))
    for method in PLAIN:
        found = certified_radius(model, x, norm, C, method=method, upper=upper, device=device)
        record(method, found.lower, found.seconds)
    return rows


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """Run every case, print the table as it grows, write `tightness.csv` and `tightness.png` into `out`. An interrupt keeps what is done."""
    console = console or Console()
    rows: list[dict[str, object]] = []
    tell: Callable[[str], object] = console.print
    try:
        for case in cases(out, quick=quick, tell=tell):
            for norm in case.norms:
                console.print(f"{case.name}, {Norm.of(norm).label}, {len(case.x)} inputs …")
                rows += measure(case, norm, device)
                write_whole(out / "tightness.csv", pd.DataFrame(rows).to_csv)
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was measured")
    frame = pd.DataFrame(rows)
    if len(frame):
        write_whole(out / "tightness.csv", lambda path: frame.to_csv(path, index=False))
        show(frame, "certified lower bound over witness", console)
        console.print(f"{out / 'tightness.csv'}  {write_whole(out / 'tightness.png', lambda path: plot(frame, path))}")
    return frame


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Ratio against seconds an input: one panel per norm, one marker per method, one colour per network."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    norms, networks = list(dict.fromkeys(frame["norm"])), list(dict.fromkeys(frame["network"]))
    methods = [m for m in dict.fromkeys(frame["method"]) if m != "witness"]
    figure, axes = plt.subplots(1, len(norms), figsize=(5 * len(norms), 4.2), sharey=True, squeeze=False)
    for axis, norm in zip(axes[0], norms, strict=True):
        for k, network in enumerate(networks):
            part = frame[(frame["norm"] == norm) & (frame["network"] == network) & (frame["method"] != "witness")]
            axis.plot(part["seconds"], part["ratio"], color=f"C{k}", alpha=0.3)
            for marker, method in zip("Xvso*", methods, strict=False):
                one = part[part["method"] == method]
                axis.scatter(one["seconds"], one["ratio"], color=f"C{k}", marker=marker, s=60, label=f"{network}: {method}")
        axis.set(title=norm, xlabel="seconds an input", xscale="log", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("certified lower / witness")
    handles = [Line2D([], [], color="0.3", marker=m, linestyle="", label=name) for m, name in zip("Xvso*", methods, strict=False)]
    handles += [Line2D([], [], color=f"C{k}", label=name) for k, name in enumerate(networks)]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
