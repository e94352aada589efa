r"""Branching behind the explainer: CROWN's radii first, then the trees of each input within its own time, row by row whichever proves more.

`branching` stops at its time; `exact` is the same search without one: it ends when the bracket has closed to 1e-6, or where float64 cannot decide any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import INF, Norm
from formulations.pieces import CustomPiece
from formulations.sets import ConvexSet, Everything
from lde_cvx.confirm import confirmed
from verification.attack import Witness, WitnessStatus
from verification.branching import BranchingResult, BranchingStop, branch_radius
from verification.decision import Decision
from verification.radii import CertifiedRadius, CertifiedRow
from verification.relu_chain import ReluChain
from verification.tree_evidence import relu_names, tree_rows

SEARCHES = ("branching", "exact")
SECONDS = 10.0  # per input, where the caller sets no limit
MET = 1 - 1e-6  # of the witness: a bound this near needs no search


def check_searchable(model: nn.Module, shape: tuple[int, ...], constraints: ConvexSet | None) -> list[str]:
    """The names of the ReLU layers. Raises InputError on a layer that is neither affine nor a ReLU, by name, and on a set known only by its cones."""
    ReluChain.from_model(model, shape)
    dim = 1
    for side in shape:
        dim *= side
    for part in (constraints or Everything()).parts(dim):
        if isinstance(part.piece, CustomPiece):
            raise InputError(
                f"constraints: {part.name!r} is known only by its CVXPY constraints, which branching cannot bound; use method='crown', or build it "
                "from the sets of this package."
            )
    return relu_names(model)


def search_radii(
    model: nn.Module,
    x: Tensor,
    decisions: Sequence[Decision],
    norm: Norm,
    constraints: ConvexSet | None,
    radii: Sequence[CertifiedRadius],
    witnesses: Sequence[Witness],
    names: Sequence[str],
    *,
    seconds: float | None,
    device: torch.device | str | None,
    jobs: int,
    tell: Callable[[int, int], None],
) -> tuple[list[CertifiedRadius], list[Witness]]:
    """Radii and witnesses no worse than the given ones, for a batch x (n, *shape). An interrupt keeps what the inputs before it gained.

    seconds   per input; None: until the bracket closes
    """
    found, nearest = list(radii), list(witnesses)
    open_ = [i for i in range(len(x)) if not radii[i].lower >= witnesses[i].upper * MET and radii[i].lower < INF]
    work = (
        delayed(branch_radius)(
            model, x[i], decisions[i], norm, constraints, upper=witnesses[i].upper, start=radii[i].lower or None, time_limit=seconds, device=device
        )
        for i in open_
    )  # fmt: skip
    tell(len(x) - len(open_), len(x))
    results: Iterator[BranchingResult] = Parallel(n_jobs=jobs, return_as="generator")(work)
    try:
        for done, (i, result) in enumerate(zip(open_, results, strict=True)):
            rows = tree_rows(result, radii[i].rows, x[i].detach().cpu().numpy().ravel(), norm, constraints, names)
            found[i] = replace(radii[i], rows=tuple(rows))
            if result.upper < witnesses[i].upper and np.isfinite(result.delta).all():
                met = replace(witnesses[i], status=WitnessStatus.FOUND, delta=result.delta, upper=result.upper)
                nearest[i] = min(witnesses[i], confirmed(model, x[i], decisions[i], norm, constraints, met), key=lambda w: w.upper)
            tell(len(x) - len(open_) + done + 1, len(x))
            if result.stop is BranchingStop.INTERRUPTED:
                break
    except KeyboardInterrupt:
        pass  # what was found stands; a search of its own process ends with it
    return found, nearest


def binding_row(radius: CertifiedRadius, witness: Witness) -> CertifiedRow:
    """The row that limits the radius; where trees have brought several to the same one, the row that falls at the witness, or CROWN's nearest."""
    least = [row for row in radius.rows if row.lower <= radius.lower / MET]
    fallen = [row for row in least if row.rival == witness.rival]
    return min(fallen or least, key=lambda row: 0.0 if row.solution is None else row.solution.lower)
