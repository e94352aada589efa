"""`lde bench leg`: the LEG-TV program by min cuts and by network simplex beside the same sparse program in HiGHS and Clarabel, and a solution path's cost.

Per grid side: moments of tanh of a linear function with one bright block, 100 draws, σ² = 0.1, L = 0.1·L_max. Seconds are CPU seconds of this process (all
threads), so that other work on the machine does not count, the least of at most twenty repetitions that take less than ten seconds together; the drawing of the
moments is left out. Every relative gap is evaluated by us: `objective` at a point made feasible, `lower` at multipliers made feasible, whatever the solver
claims. A rival that its limit stops shows the gap that it had reached.

The path has 50 levels from L_max down to 0.02·L_max in equal ratios, each started from its neighbour; "over one solve" compares with our fastest single
solve at L = 0.1·L_max, "over solve()" with the one that is made there when no solver is named. Our solvers are also asked at the path's last level. The
network simplex is there where numba is; loading its compiled loops (and, once on a machine, compiling them) is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from rich.console import Console

from formulations.leg.grid import Perturbation
from formulations.leg.program import LegProgram, LegSolution, available
from lde_cvx.bench.table import show, write_whole

_SHARE, _LAST, _DRAWS, _POINTS = 0.1, 0.02, 100, 50
_LIMIT = {"highs": 112, "clarabel": 224}  # the largest side that a rival is asked at: HiGHS takes minutes at 112
_PATH_LIMIT = {"cuts": 56, "pivots": 224}
_NAMES = {"cuts": "min cuts", "pivots": "network simplex", "highs": "sparse HiGHS", "clarabel": "Clarabel"}
_REPETITIONS, _PATIENCE = 20, 10.0
T = TypeVar("T")


def instance(side: int, seed: int = 0) -> LegProgram:
    """The program of a side × side image with one bright block."""
    P, rng = Perturbation(side, side), np.random.default_rng(seed)
    truth = np.zeros((side, side))
    truth[side // 4 : side // 2, side // 3 : 2 * side // 3] = 8.0 / side
    moments = np.zeros(side * side)
    for _ in range(_DRAWS):
        z = P.sample(1, rng)[0]
        moments += np.tanh(z @ truth.ravel()) * z / _DRAWS
    return LegProgram(P, moments)


def measure(side: int, *, time_limit: float, path: bool) -> pd.DataFrame:
    """One row a method: CPU seconds, plain and over two single solves, objective, certified lower bound, relative gap; of a path, its widest gap."""
    program = instance(side)
    ours = ["cuts", "pivots"] if available() else ["cuts"]

    def row(name: str, share: str, work: Callable[[], LegSolution]) -> tuple[str, str, LegSolution, float]:
        return (name, share, *_timed(work))

    def one(solver: str, share: float) -> Callable[[], LegSolution]:
        return lambda: program.solve(share * program.maximal_level, solver=solver, time_limit=time_limit)

    for solver in ours:  # the faces of the grid are built, and the loops loaded, once
        one(solver, 0.9)()
    asked = [s for s in (*ours, "highs", "clarabel") if side <= _LIMIT.get(s, side)]
    rows = [row(_NAMES[solver], f"{_SHARE:g}", one(solver, _SHARE)) for solver in asked]
    single = dict(zip(ours, (seconds for *_, seconds in rows), strict=False))
    fastest, usual = min(single.values()), single[program.solve(_SHARE * program.maximal_level).solver]
    if path and side <= _PATH_LIMIT[ours[-1]]:
        levels = np.geomspace(1.0, _LAST, _POINTS) * program.maximal_level
        rows += [row(_NAMES[solver], f"{_LAST:g}", one(solver, _LAST)) for solver in ours]
        name = f"path of {_POINTS}, {_NAMES[ours[-1]]}"
        rows.append(row(name, f"1 … {_LAST:g}", lambda: max(program.solve_path(levels), key=lambda s: s.relative_gap)))
    return pd.DataFrame([
        {"side": side, "method": name, "L / L_max": share, "CPU s": seconds, "over one solve": seconds / fastest,
         "over solve()": seconds / usual,
         "objective": s.objective, "lower": s.lower, "relative gap": s.relative_gap}
        for name, share, s, seconds in rows
    ])  # fmt: skip


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """The answer, and the least CPU seconds of at most twenty repetitions within ten seconds."""
    least, spent, repetitions = np.inf, 0.0, 0
    while repetitions < _REPETITIONS and (repetitions == 0 or spent * (repetitions + 1) / repetitions < _PATIENCE):
        begun = time.process_time()
        found = work()
        seconds = time.process_time() - begun
        least, spent, repetitions = min(least, seconds), spent + seconds, repetitions + 1
    return found, least


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """28, 56, 112 and 224 pixels a side (10 and 14 when quick); prints the table and writes `leg.csv` into `out`. An interrupt keeps what is done."""
    console = console or Console()
    parts: list[pd.DataFrame] = []
    try:
        for side in (10, 14) if quick else (28, 56, 112, 224):
            parts.append(measure(side, time_limit=10.0 if quick else 300.0, path=True))
            show(parts[-1], f"LEG-TV, {side} × {side}", console)
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was measured")
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if len(frame):
        console.print(str(write_whole(out / "leg.csv", lambda path: frame.to_csv(path, index=False))))
    return frame
