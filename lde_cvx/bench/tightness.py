"""`lde bench tightness`: certified lower bound over witnessed upper bound, per method, beside auto_LiRPA used alone, in one run.

Every method is asked about the same inputs, norms and sets; the upper bound is the same for all: the shortest flipping change that the attack or a search
met. `seconds` is time per input, of branching with the CROWN pass before it; `closed` counts inputs whose lower bound meets the upper one to 1e-4.
Branching and exact (all activation regions, where there are few ReLUs) take chains of affine layers and ReLUs. Elsewhere an explainer would split inputs,
which gets nowhere at 784 of them: those networks are named as left out. Every method has the case's limit of seconds an input: a bound pass or a halving that
was begun is ended, branching and exact stop in it, and a stopped bound is a bound.

What is finished, a network under a norm, is kept in `tightness.csv`; the next run of the same settings goes on after it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from rich.console import Console
from torch import nn

import lde_cvx
from formulations.errors import InputError
from formulations.norms import Array, Norm
from lde_cvx.bench.networks import Case, cases
from lde_cvx.bench.table import show, write_whole
from lde_cvx.growing_table import GrowingTable
from lde_cvx.interrupts import only_finished, until_interrupted
from lde_cvx.progress import Progress, progress_bar, silent
from verification.attack import find_witness
from verification.branching import branch_radii
from verification.exact import exact_radius
from verification.lirpa.alone import library_radius
from verification.model import decide, outputs
from verification.radii import CertifiedRadii
from verification.radius import certified_radius
from verification.relu_chain import ReluChain

ALONE, PLAIN = "auto_LiRPA alone", ("ibp", "crown", "alpha-crown")
MARKERS = {ALONE: "X", "ibp": "v", "crown": "s", "alpha-crown": "o", "branching": "*", "exact": "D"}
SMALL = 80  # ReLUs: up to here all activation regions are asked as well
COLUMNS = ("network", "norm", "method", "inputs", "lower", "upper", "ratio", "worst", "closed", "seconds")
MET = 1 - 1e-4  # of the upper bound: lower bounds beyond count as closed


def measure(case: Case, norm: float | str, device: str, *, jobs: int = 1, tell: Progress = silent) -> list[dict[str, object]]:
    """One row per method. `jobs` processes for branching and exact; an input's seconds are those of its own search."""
    n = len(case.x)
    x, C = case.x.to(device), case.constraints
    model = case.model.to(device)
    start = time.perf_counter()
    tell("witness", 0, n)
    upper = find_witness(model, x, norm, C, device=device).upper
    tell("witness", n, n)
    found: list[tuple[str, Array, float]] = [("witness", np.zeros(len(x)), time.perf_counter() - start)]
    decisions = decide(outputs(model, x), None)
    if case.box is not None:
        tell(ALONE, 0, n)
        top = np.where(np.isfinite(upper), upper, 1.0)
        radii, spent = library_radius(model, x, decisions, norm, top, box=case.box, limit=case.seconds)
        tell(ALONE, n, n)
        found.append((ALONE, radii, float(spent.sum())))
    plain: dict[str, CertifiedRadii] = {}
    for method in PLAIN:
        plain[method] = certified_radius(
            model, x, norm, C, method=method, upper=upper, seconds=case.seconds * n, device=device,
            progress=lambda done, total, method=method: tell(method, done, total),  # type: ignore[misc]
        )  # fmt: skip
        found.append((method, plain[method].lower, plain[method].seconds))
    neurons = _neurons(model, tuple(x.shape[1:]))
    if neurons is not None:
        crown = plain["crown"]
        trees = branch_radii(
            model, x, uppers=upper.tolist(), jobs=jobs, norm=norm, constraints=C, time_limit=case.seconds, device=device,
            tell=lambda done, total: tell("branching", done, total),
        )  # fmt: skip
        lower = np.maximum(crown.lower, [r.lower for r in trees])
        found.append(("branching", lower, crown.seconds + sum(r.seconds for r in trees)))
        upper = np.minimum(upper, [r.upper for r in trees])
        if neurons <= SMALL:
            work = (
                delayed(exact_radius)(model, z, None, norm, C, upper=u, time_limit=case.seconds)
                for z, u in zip(x.cpu(), upper, strict=True)
            )
            regions = list(Parallel(n_jobs=jobs)(work))
            found.append(("exact", np.array([r.lower for r in regions]), sum(r.seconds for r in regions)))
            upper = np.minimum(upper, [r.upper for r in regions])
    return [_row(case, norm, method, lower, upper, spent) for method, lower, spent in found]


def _row(case: Case, norm: float | str, method: str, lower: Array, upper: Array, spent: float) -> dict[str, object]:
    """Means over the inputs that can be flipped; all methods over the shortest change that any of them met."""
    known = np.isfinite(upper) & (upper > 0)
    low, high = lower[known], upper[known]
    if not known.any():  # nothing was flipped: no ratio to speak of
        low, high = np.array([np.nan]), np.array([np.nan])
    ratio = np.minimum(low / high, 1.0)
    row = {
        "network": case.name, "norm": Norm.of(norm).label, "method": method, "inputs": len(upper), "lower": float(np.mean(low)),
        "upper": float(np.mean(high)), "ratio": float(ratio.mean()), "worst": float(ratio.min()), "closed": int((ratio >= MET).sum()),
        "seconds": spent / len(upper),
    }  # fmt: skip
    return dict(zip(COLUMNS, row.values(), strict=True))


def _neurons(model: nn.Module, shape: tuple[int, ...]) -> int | None:
    """How many ReLUs a chain has; None for networks that branching does not take."""
    try:
        return sum(ReluChain.from_model(model, shape).widths)
    except InputError:
        return None


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """Every case under every norm, those that an earlier run of the same settings finished left as they are; table, `tightness.csv`, `tightness.png` in `out`.

    An interrupt keeps what is done. Raises InputError when the folder holds the table of other settings.
    """
    console = console or Console()
    table = GrowingTable(out / "tightness.csv", out / "tightness.json", COLUMNS, "bench")
    table.claim({"bench": "tightness", "quick": quick, "device": device, "version": lde_cvx.__version__})
    done = {(r["network"], r["norm"]) for r in table.kept()}
    left_out: list[str] = []
    try:
        with only_finished() as finished:
            for case in cases(out, quick=quick, tell=console.print):
                if _neurons(case.model, tuple(case.x.shape[1:])) is None:
                    left_out.append(case.name)
                for norm in case.norms:
                    label = Norm.of(norm).label
                    if (case.name, label) in done:
                        console.print(f"{case.name}, {label}: kept from an earlier run")
                        continue
                    console.print(f"{case.name}, {label}, {len(case.x)} inputs, at most {case.seconds:g} s each a method …")
                    with progress_bar(not console.is_terminal) as bar:
                        tell = until_interrupted(bar, finished)
                        table.append(finished(measure(case, norm, device, jobs=os.cpu_count() or 1, tell=tell)))
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was measured; the same command goes on from there")
    frame = pd.read_csv(table.table) if table.kept() else pd.DataFrame(columns=list(COLUMNS))
    if len(frame):
        show(frame, "certified lower bound over witness", console)
        for name in left_out:
            console.print(f"{name}: no branching (not a chain of affine layers and ReLUs; input splits get nowhere in so many dimensions)")
        console.print(f"{table.table}  {write_whole(out / 'tightness.png', lambda path: plot(frame, path))}")
    return frame


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Ratio against seconds an input: one panel per norm, one marker per method, one colour per network."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter, PercentFormatter

    from lde_cvx.plots import GRID, STYLE

    bounds = frame[frame["method"] != "witness"]
    norms, networks = list(dict.fromkeys(bounds["norm"])), list(dict.fromkeys(bounds["network"]))
    methods = [m for m in MARKERS if m in set(bounds["method"])]
    spent = np.log10(bounds["seconds"].clip(lower=1e-4))
    decades = 10 ** np.floor(spent.min() - 0.05), 10 ** np.ceil(spent.max() + 0.05)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(norms) + 2.6, 4.0), layout="constrained")
        axes = figure.subplots(1, len(norms), sharex=True, sharey=True, squeeze=False)[0]
        for axis, norm in zip(axes, norms, strict=True):
            for k, network in enumerate(networks):
                part = bounds[(bounds["norm"] == norm) & (bounds["network"] == network)]
                for method in methods:
                    one = part[part["method"] == method]
                    size = 110 if MARKERS[method] == "*" else 42
                    axis.scatter(
                        one["seconds"], one["ratio"], color=f"C{k}", marker=MARKERS[method], s=size, edgecolor="white", lw=0.6, zorder=3
                    )
            axis.set(title=norm, xlabel="seconds an input", xscale="log", xlim=decades, ylim=(0, 1.03))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
            axis.grid(color=GRID)
            axis.set_axisbelow(True)
        axes[0].set_ylabel("certified lower / upper bound, mean")
        handles = [Line2D([], [], color="0.35", marker=MARKERS[m], ms=9 if MARKERS[m] == "*" else 6, lw=0, label=m) for m in methods]
        handles += [Line2D([], [], color=f"C{k}", lw=3, label=name) for k, name in enumerate(networks)]
        figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
        figure.savefig(path, format="png", dpi=130)
