"""`lde bench leg`: the LEG-TV program by min cuts and by network simplex beside the same sparse program in HiGHS and Clarabel, and a solution path's cost.

Per grid side: moments of tanh of a linear function with one bright block, 100 draws, σ² = 0.1, L = 0.1·L_max. Seconds are CPU seconds of this process (all
threads), so that other work on the machine does not count, the least of at most twenty repetitions that take less than half a minute together; the drawing of the
moments is left out. Every relative gap is evaluated by us: `objective` at a point made feasible, `lower` at multipliers made feasible, whatever the solver
claims. A rival that its limit stops shows the gap that it had reached.

The path has 50 levels from L_max down to 0.02·L_max in equal ratios, each started from its neighbour; "over one solve" compares with our fastest single
solve at L = 0.1·L_max, "over solve()" with the one that is made there when no solver is named: by the median over turns where both were timed in turns. Our
solvers are also asked at the path's last level. The network simplex is there where numba is; loading its compiled loops (and, once on a machine, compiling
them) is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from rich.console import Console

from formulations.leg.grid import Perturbation
from formulations.leg.program import LegProgram, LegSolution, available
from formulations.norms import Array
from lde_cvx.bench.table import show, write_whole

_SHARE, _LAST, _DRAWS, _POINTS = 0.1, 0.02, 100, 50
_LIMIT = {"highs": 112, "clarabel": 224}  # the largest side that a rival is asked at: HiGHS takes minutes at 112
_PATH_LIMIT = {"cuts": 56, "pivots": 224}
_NAMES = {"cuts": "min cuts", "pivots": "network simplex", "highs": "sparse HiGHS", "clarabel": "Clarabel"}
_REPETITIONS, _PATIENCE = 20, 30.0
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


@dataclass(frozen=True, eq=False)
class Row:
    """One method at one share of L_max: its answer, and its CPU seconds. Rows of the same turn were timed one after the other."""

    method: str
    share: str
    turn: int
    found: LegSolution
    seconds: Array

    def over(self, other: Row) -> float:
        """How many times the other's seconds: the median over common turns, as a machine is not equally fast at all times, else least over least."""
        if self.turn == other.turn:
            return float(np.median(self.seconds / other.seconds))
        return float(self.seconds.min() / other.seconds.min())


def measure(side: int, *, time_limit: float, path: bool) -> pd.DataFrame:
    """One row a method: CPU seconds, plain and over two single solves, objective, certified lower bound, relative gap; of a path, its widest gap."""
    program = instance(side)
    ours = ["cuts", "pivots"] if available() else ["cuts"]

    def one(solver: str, share: float) -> tuple[str, str, Callable[[], LegSolution]]:
        return _NAMES[solver], f"{share:g}", lambda: program.solve(share * program.maximal_level, solver=solver, time_limit=time_limit)

    for solver in ours:  # the faces of the grid are built, and the loops loaded, once
        one(solver, 0.9)[-1]()
    asked = [[one(s, _SHARE)] for s in (*ours, "highs", "clarabel") if side <= _LIMIT.get(s, side)]
    if path and side <= _PATH_LIMIT[ours[-1]]:
        levels = np.geomspace(1.0, _LAST, _POINTS) * program.maximal_level
        name = f"path of {_POINTS}, {_NAMES[ours[-1]]}"
        followed = (name, f"1 … {_LAST:g}", lambda: max(program.solve_path(levels), key=lambda s: s.relative_gap))
        asked[len(ours) - 1] += [one(ours[-1], _LAST), followed]  # in turns
        asked += [[one(solver, _LAST)] for solver in ours[:-1]]
    rows = [
        Row(name, share, turn, answer, np.array(seconds))
        for turn, group in enumerate(asked)
        for (name, share, _), (answer, seconds) in zip(group, _timed([work for *_, work in group]), strict=True)
    ]
    single = {solver: next(row for row in rows if row.method == _NAMES[solver]) for solver in ours}
    fastest = min(single.values(), key=lambda row: row.seconds.min())
    usual = single[program.solve(_SHARE * program.maximal_level).solver]
    shares, names = [f"{_SHARE:g}", f"{_LAST:g}", f"1 … {_LAST:g}"], list(_NAMES.values())
    rows.sort(key=lambda row: (shares.index(row.share), names.index(row.method) if row.method in names else 0))
    return pd.DataFrame([
        {"side": side, "method": row.method, "L / L_max": row.share, "CPU s": row.seconds.min(), "over one solve": row.over(fastest),
         "over solve()": row.over(usual), "objective": row.found.objective, "lower": row.found.lower, "relative gap": row.found.relative_gap}
        for row in rows
    ])  # fmt: skip


def _timed(works: Sequence[Callable[[], T]]) -> list[tuple[T, list[float]]]:
    """Of each its answer, and the CPU seconds of at most twenty repetitions, one after the other, within half a minute."""
    answers: list[T] = []
    seconds: list[list[float]] = [[] for _ in works]
    while not answers or (len(seconds[0]) < _REPETITIONS and sum(map(sum, seconds)) * (1 + 1 / len(seconds[0])) < _PATIENCE):
        answers = []
        for work, spent in zip(works, seconds, strict=True):
            begun = time.process_time()
            answers.append(work())
            spent.append(time.process_time() - begun)
    return list(zip(answers, seconds, strict=True))


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
