"""`lde bench convex`: the min-norm program against a naive CVXPY rebuild, DPP reuse, and Clarabel's raw in-place update, in one run.

Per (d, set, norm): the same random instances go through every method; milliseconds an instance, and the ratio to the naive rebuild.

    naive CVXPY      build the problem and solve it, every time
    DPP reuse        one CVXPY problem with parameters
    raw update       Clarabel.update + solve on ready-made numbers: no CVXPY, no multipliers read, no bound verified
    lde              MinNormProgram: multipliers by name, prices, and a verified dual bound with every answer
    lde closed form  the batched exact solution (one row and a box only), on `device`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from formulations.closed_form import min_norm_box
from formulations.cones import ConeProgram
from formulations.norms import INF, Norm
from formulations.pieces import bounding_box
from formulations.programs import MinNormProgram, relative_parts
from formulations.sets import Box, ConvexSet, Polytope, TotalVariation
from formulations.solve import run
from lde_cvx.bench.table import show, write_whole

SHAPES = {10: (10,), 64: (8, 8), 784: (28, 28), 3072: (3, 32, 32)}
SETS = ("box", "box+tv", "box+polytope")
NORMS = (1.0, 2.0, INF)


def constraint_set(kind: str, d: int, rng: np.random.Generator) -> ConvexSet:
    """The sets of the table: [0, 1] over the input; with TV ≤ d/20 of the change; with 20 dense rows."""
    box = Box(0, 1)
    if kind == "box+tv":
        return box & TotalVariation(max(1.0, d / 20), SHAPES.get(d, (d,)))
    if kind == "box+polytope":
        G = rng.normal(size=(20, d)) / np.sqrt(d)
        return box & Polytope(G, np.abs(rng.normal(size=20)) + 0.5, on="change")
    return box


def instances(kind: str, d: int, n: int, seed: int) -> tuple[ConvexSet, np.ndarray, np.ndarray, np.ndarray]:
    """(C, x0, a, b): rows at the size of a classifier's margin, feasible by construction."""
    rng = np.random.default_rng(seed)
    C = constraint_set(kind, d, rng)
    x0, a = rng.uniform(0.2, 0.8, size=(n, d)), rng.normal(size=(n, d)) / np.sqrt(d)
    parts = relative_parts(C, d, x0, n)
    # a step of 0.05 against the gradient, shortened until it is allowed, lowers the row by twice b
    step = -0.05 * np.sign(a)
    for i in range(n):
        while any(p.at(i).piece.violation(step[i]) > 0 for p in parts):
            step[i] *= 0.7
    return C, x0, a, 0.5 * -(a * step).sum(1)


def measure(d: int, kind: str, p: float, n: int, device: str = "cpu") -> dict[str, float]:
    """Milliseconds an instance by method."""
    C, x0, a, b = instances(kind, d, n, seed=d)
    norm, parts = Norm(p), relative_parts(C, d, x0, n)
    each = [tuple(q.at(i) for q in parts) for i in range(n)]
    out: dict[str, float] = {}

    def clock(name: str, work: Callable[[], Any], count: int) -> Any:
        start = time.perf_counter()
        result = work()
        out[name] = (time.perf_counter() - start) / count * 1e3
        return result

    few = min(n, 5 if d >= 784 else 10)
    naive = clock("naive CVXPY", lambda: [_rebuild(norm, C, a[i], b[i], x0[i]) for i in range(few)], few)
    modelled = MinNormProgram(norm, parts, d, modelled=True)
    modelled.solve(a[:1], b[:1], each[0])
    clock("DPP reuse", lambda: [modelled.solve(a[i : i + 1], b[i : i + 1], each[i]) for i in range(few)], few)
    cone = ConeProgram(norm, parts, d, 1)
    cone.solve(a[:1], b[:1], each[0])
    ready = [cone.numbers(a[i : i + 1], b[i : i + 1], each[i]) for i in range(n)]
    program = MinNormProgram(norm, parts, d)
    program.solve(a[:1], b[:1], each[0])
    clock("raw update", lambda: [cone.raw(*numbers) for numbers in ready], n)
    ours = clock("lde", lambda: [program.solve(a[i : i + 1], b[i : i + 1], each[i]) for i in range(n)], n)
    worst = max(abs(s.value - v) / max(1e-9, v) for s, v in zip(ours, naive, strict=False))
    if kind == "box":
        many = max(n, 1000 if d <= 784 else 100)
        rows, level = np.resize(a, (many, d)), np.resize(b, many)
        lo, hi = (np.resize(v, (many, d)) for v in bounding_box(parts, d))
        A, B, L, H = (torch.tensor(v, device=device) for v in (rows, level, lo, hi))
        min_norm_box(A[:2], B[:2], L[:2], H[:2], norm)
        clock("lde closed form", lambda: min_norm_box(A, B, L, H, norm).value.sum().item(), many)
    out["largest relative difference of values"] = worst
    return out


def large(p: float, device: str, d: int = 150_528, n: int = 10) -> float:
    """Milliseconds an instance of the closed form at ImageNet's size (224·224·3)."""
    rng = np.random.default_rng(0)
    A, x0 = torch.tensor(rng.normal(size=(n, d)), device=device), torch.tensor(rng.uniform(size=(n, d)), device=device)
    B = torch.full((n,), 20.0, dtype=torch.float64, device=device)
    min_norm_box(A[:1], B[:1], -x0[:1], 1 - x0[:1], p)
    start = time.perf_counter()
    min_norm_box(A, B, -x0, 1 - x0, p).value.sum().item()
    return (time.perf_counter() - start) / n * 1e3


def _rebuild(norm: Norm, C: ConvexSet, a: np.ndarray, b: float, x0: np.ndarray) -> float:
    delta = cp.Variable(len(a))
    objective = 0.5 * cp.sum_squares(delta) if norm.p == 2 else norm.expression(delta)
    constraints = [a @ delta + b <= 0]
    for member in C.members():
        constraints += member.constraints(x0 + delta if member.on == "input" else delta)
    run(cp.Problem(cp.Minimize(objective), constraints))
    return float(norm.value(delta.value))


def cases(dims: tuple[int, ...]) -> Iterator[tuple[int, str, float]]:
    return ((d, kind, p) for d in dims for kind in SETS for p in NORMS)


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """Run every case, print the table, write `convex.csv` and `convex.png` into `out`. An interrupt keeps what is done."""
    console = console or Console()
    dims, n = ((10, 64), 5) if quick else ((10, 64, 784, 3072), 20)
    rows = []
    try:
        for d, kind, p in track(list(cases(dims)), description="bench convex", console=console):
            times = measure(d, kind, p, n if d < 3072 else max(3, n // 4), device)
            worst = times.pop("largest relative difference of values")
            for method, ms in times.items():
                rows.append({
                    "d": d, "set": kind, "norm": Norm(p).label, "method": method, "ms": ms, "times naive": times["naive CVXPY"] / ms,
                    "over raw update": ms / times["raw update"], "value difference": worst,
                })  # fmt: skip
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was measured")
    frame = pd.DataFrame(rows)
    if not quick:
        console.print("d = 150528, box, closed form: " + ", ".join(f"{Norm(p).label} {large(p, device):.3g} ms an instance" for p in NORMS))
    if len(frame):
        wide = frame.pivot(index=["d", "set", "norm"], columns="method", values="ms")[list(dict.fromkeys(frame["method"]))]
        ours = wide["lde"]
        wide["naive / lde"], wide["lde / raw"] = wide["naive CVXPY"] / ours, ours / wide["raw update"]
        if "lde closed form" in wide:
            wide["naive / closed form"] = wide["naive CVXPY"] / wide["lde closed form"]
        show(wide.reset_index(), "milliseconds an instance, and ratios", console)
        write_whole(out / "convex.csv", lambda path: frame.to_csv(path, index=False))
        console.print(f"{out / 'convex.csv'}  {write_whole(out / 'convex.png', lambda path: _plot(frame, path))}")
    return frame


def _plot(frame: pd.DataFrame, path: Path) -> None:
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(frame["set"]))
    figure, axes = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for method, part in frame[frame["set"] == kind].groupby("method", sort=False):
            middle = part.groupby("d")["ms"].median()
            axis.loglog(middle.index, middle.values, marker="o", label=method)
        axis.set(title=kind, xlabel="dimension d")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("milliseconds an instance (median over norms)")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=130)
    plt.close(figure)
