"""`lde bench dual`: the dual network on fixed rows, box and total variation at d = 784, beside Clarabel one program at a time.

Clarabel's problem is set up once and its data updated in place; only update and solve are timed, on every program. The dual network takes all programs as one
batch (verification/dual_network/interior.py), for more and more steps, and is set up anew each time; its bounds are verified, as Clarabel's multipliers are for
the comparison, and what is told is the part of Clarabel's verified dual value that they reach. Times: seconds of the process's CPU on a CPU, of the wall clock
on another device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from formulations.cones import ConeProgram
from formulations.norms import INF, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets import Box, ConvexSet, TotalVariation
from formulations.support import Region
from lde_cvx.bench.table import show, write_whole
from verification.dual_network import DualNetwork, FixedRows

STEPS = (10, 20, 30, 40, 100)
SIDE = 28


def programs(n: int, side: int, norm: Norm, seed: int = 0) -> tuple[ConvexSet, np.ndarray, np.ndarray, np.ndarray]:
    """(C, x0, a, b): smoothed random rows that must fall by 20 to 60 % of what the set allows, so that both the box and the budget bind."""
    rng, d = np.random.default_rng(seed), side * side
    C = Box(0, 1) & TotalVariation(12 * (side / 28) ** 2, (side, side))
    a = rng.normal(size=(n, side, side))
    a = (a + np.roll(a, 1, 1) + np.roll(a, 1, 2)).reshape(n, d)
    x0 = rng.uniform(0.1, 0.4, size=(n, d))
    wide = Region.build(norm, relative_parts(C, d, x0, n), np.full(n, 1e6), d, count=n)
    return C, x0, a, wide.support(torch.tensor(-a)[:, None])[:, 0].numpy() * rng.uniform(0.2, 0.6, size=n)


def measure(p: float, n: int, device: str = "cpu", steps: tuple[int, ...] = STEPS, side: int = SIDE) -> pd.DataFrame:
    """One line for Clarabel and one per number of steps: milliseconds a program, how many times Clarabel's throughput, shares of its dual value."""
    norm, d = Norm(p), side * side
    C, x0, a, b = programs(n, side, norm)
    parts = relative_parts(C, d, x0, n)
    each = [tuple(q.at(i) for q in parts) for i in range(n)]
    cone = ConeProgram(norm, parts, d, 1)
    cone.solve(a[:1], b[:1], each[0])
    ready = [cone.numbers(a[i : i + 1], b[i : i + 1], each[i]) for i in range(n)]
    alone = _clock(lambda: [cone.raw(*numbers) for numbers in ready], "cpu") / n
    target = min_norm(a, b, norm, C, x0).lower
    region = Region.build(norm, parts, np.zeros(n), d, count=n, device=device)
    rows = FixedRows(torch.tensor(a, device=device)[:, None], torch.tensor(b, device=device)[:, None])
    DualNetwork(rows, norm, parts, region).settle(20)  # warms torch and the device up
    lines: list[dict[str, Any]] = [_line(p, "Clarabel, one by one", n, alone, alone, np.ones(n))]
    for count in steps:
        network = DualNetwork(rows, norm, parts, region)
        seconds = _clock(lambda net=network, k=count: net.settle(k), device) / n  # type: ignore[misc]
        reached = network().detach().cpu().numpy() / target
        lines.append(_line(p, f"dual network, {count} steps", n, seconds, alone, reached))
    return pd.DataFrame(lines)


def _line(p: float, method: str, n: int, seconds: float, alone: float, share: Any) -> dict[str, Any]:
    return {
        "norm": "inf" if p == INF else f"{p:g}", "method": method, "programs": n, "ms": 1e3 * seconds, "throughput": alone / seconds,
        "median share": float(np.median(share)), "least share": float(np.min(share)),
        "at 99 %": float((share >= 0.99).mean()), "at 99.9 %": float((share >= 0.999).mean()),
    }  # fmt: skip


def _clock(work: Callable[[], Any], device: str) -> float:
    cuda = torch.device(device).type == "cuda"
    now = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    if cuda:
        torch.cuda.synchronize()
    begun = now()
    work()
    if cuda:
        torch.cuda.synchronize()
    return now() - begun


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """256 programs a norm (8 at d = 64 when quick); prints the table and writes `dual.csv` into `out`."""
    console = console or Console()
    size = (8, device, (10, 40), 8) if quick else (256, device)
    frame = pd.concat([measure(p, *size) for p in (1.0, 2.0, INF)], ignore_index=True)  # type: ignore[arg-type]
    show(frame, f"dual network against Clarabel, box and TV, on {device}", console)
    console.print(str(write_whole(out / "dual.csv", lambda path: frame.to_csv(path, index=False))))
    return frame
