r"""Branching behind the explainer: CROWN's radii first, then the trees of each input within its own time, row by row whichever proves more.

Chains of affine maps and ReLUs are split at their ReLUs (verification/branching/branch.py), other networks at their inputs (verification/branching/inputs.py).
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
from verification.branching.inputs import TOLERANCE, split_inputs
from verification.decision import Decision
from verification.evidence.inputs import input_tree_rows
from verification.evidence.trees import relu_names, tree_rows
from verification.lirpa import BoundEngine
from verification.radii import CertifiedRadius, CertifiedRow
from verification.relu_chain import ReluChain

SECONDS = 10.0  # per input, where the caller sets no limit
MET = 1 - 1e-6  # of the witness: a bound this near needs no search
CLOSE = 1 - TOLERANCE  # the same for a search that splits the input


def check_searchable(
    model: nn.Module, shape: tuple[int, ...], constraints: ConvexSet | None, method: str = "branching"
) -> list[str] | None:
    """The names of the ReLU layers of a chain of affine maps and ReLUs; None for other networks, whose inputs are split.

    Raises InputError on a set known only by its cones and, where the method is "exact", on a layer that is neither affine nor a ReLU, by name.
    """
    try:
        ReluChain.from_model(model, shape)
        names: list[str] | None = relu_names(model)
    except InputError:
        if method == "exact":  # splits of the input come near, to 1e-3
            raise
        names = None
    dim = 1
    for side in shape:
        dim *= side
    for part in (constraints or Everything()).parts(dim):
        if isinstance(part.piece, CustomPiece):
            raise InputError(
                f"constraints: {part.name!r} is known only by its CVXPY constraints, which branching cannot bound; use method='crown', or build it "
                "from the sets of this package."
            )
    return names


def search_radii(
    model: nn.Module,
    x: Tensor,
    decisions: Sequence[Decision],
    norm: Norm,
    constraints: ConvexSet | None,
    radii: Sequence[CertifiedRadius],
    witnesses: Sequence[Witness],
    names: Sequence[str] | None,
    *,
    engine: BoundEngine,
    seconds: float | None,
    device: torch.device | str | None,
    jobs: int,
    tell: Callable[[int, int], None],
) -> tuple[list[CertifiedRadius], list[Witness]]:
    """Radii and witnesses no worse than the given ones, for a batch x (n, *shape). An interrupt keeps what the inputs before it gained.

    names     of the ReLU layers; None: the input is split, in this process, with the bounds of `engine`
    seconds   per input; None: until the bracket closes
    """
    if names is None:
        return _by_inputs(engine, x, decisions, norm, constraints, radii, witnesses, seconds, tell), list(witnesses)
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


def _by_inputs(
    engine: BoundEngine, x: Tensor, decisions: Sequence[Decision], norm: Norm, constraints: ConvexSet | None, radii: Sequence[CertifiedRadius],
    witnesses: Sequence[Witness], seconds: float | None, tell: Callable[[int, int], None],
) -> list[CertifiedRadius]:  # fmt: skip
    found = list(radii)
    for i, (radius, witness) in enumerate(zip(radii, witnesses, strict=True)):
        if radius.lower < witness.upper * CLOSE and radius.lower < INF:
            result = split_inputs(
                engine, x[i], decisions[i], norm, constraints, upper=witness.upper, start=radius.lower or None, time_limit=seconds
            )
            found[i] = replace(
                radius, rows=tuple(input_tree_rows(result, radius.rows, x[i].detach().cpu().numpy().ravel(), norm, constraints))
            )
            if result.stop is BranchingStop.INTERRUPTED:
                break
        tell(i + 1, len(x))
    return found


def binding_row(radius: CertifiedRadius, witness: Witness) -> CertifiedRow:
    """The row that limits the radius; where trees have brought several to the same one, the row that falls at the witness, or CROWN's nearest."""
    least = [row for row in radius.rows if row.lower <= radius.lower / MET]
    fallen = [row for row in least if row.rival == witness.rival]
    return min(fallen or least, key=lambda row: 0.0 if row.solution is None else row.solution.lower)
