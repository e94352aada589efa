"""The linearised question: per input, the nearest of the programs  min ‖Wδ‖  s.t.  ∇m_k·δ + m_k(0) ≤ 0,  δ ∈ C.  A local model: not certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from formulations.norms import INF, Array, Norm
from formulations.programs import min_norm
from formulations.sets import ConvexSet
from formulations.solution import Solution
from formulations.status import Status
from lde_cvx.inputs import Batch
from lde_cvx.progress import Progress
from verification.decision import Decision
from verification.model import linearise, stack


@dataclass(frozen=True, eq=False)
class Linearised:
    """The binding program of one input: its value (an estimate of v*; NaN where it was not solved), row, rival and solution."""

    radius: float
    a: Array
    b: float
    rival: int
    solution: Solution


def nearest_linearised(
    model: nn.Module, batch: Batch, decisions: Sequence[Decision], norm: Norm, C: ConvexSet | None, time_limit: float | None, tell: Progress
) -> list[Linearised]:
    """One per input; `time_limit`: seconds per program."""
    Q, s, _ = stack(decisions, batch.outputs)
    a, b = (v.cpu().numpy() for v in linearise(model, batch.x, Q, s))
    out = []
    for i, (x, decision) in enumerate(zip(batch.flat, decisions, strict=True)):
        rows = len(decision.shifts)
        solved = min_norm(a[i, :rows], b[i, :rows], norm, C, np.tile(x, (rows, 1)), time_limit=time_limit)
        values = [INF if r.status is Status.INFEASIBLE else r.value if r.status is Status.OPTIMAL else r.lower for r in solved]
        k = int(np.argmin(values))  # of a program that was not solved only the bound below it counts: it may be the nearest
        radius = values[k] if solved[k].status.is_answer else np.nan
        out.append(Linearised(float(radius), a[i, k], float(b[i, k]), int(decision.rivals[k]), solved[k]))
        tell("linearised programs", i + 1, len(batch))
    return out
