"""A witness is confirmed at the very input that is stored, x0 + δ in float64, with the outputs that are stored beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from formulations.norms import INF, Norm
from formulations.programs import relative_parts
from formulations.sets import ConvexSet
from formulations.sets.base import FEASIBILITY
from verification.attack import Witness, WitnessStatus
from verification.attack.feasible import violation
from verification.decision import Decision

FURTHER = (0.0, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9)  # relative; a flip by one rounding may not be one in another batch


def confirmed(model: nn.Module, x: Tensor, decision: Decision, norm: Norm, constraints: ConvexSet | None, witness: Witness) -> Witness:
    """The witness of x (*shape), moved outwards by so little that it stays within the set's tolerance, until it flips here; else none."""
    if witness.upper == INF:
        return witness
    parts = tuple(p.at(0) for p in relative_parts(constraints, x.numel(), x.detach().cpu().numpy().reshape(1, -1)))
    start = x.detach().cpu().numpy().ravel()
    for more in FURTHER:
        delta = (start + witness.delta * (1 + more)) - start  # what the stored input says
        if violation(delta, parts) > FEASIBILITY:
            break
        point = torch.as_tensor(start + delta, dtype=x.dtype, device=x.device).view(1, *x.shape)
        with torch.no_grad():
            margins = decision.margins(model(point).cpu().numpy())[0]
        if margins.min() <= 0:
            row = int(margins.argmin())
            upper = witness.upper if more == 0.0 else float(np.nextafter(float(norm.value(delta)) * (1 + 1e-14), INF))
            return replace(witness, delta=delta, upper=upper, rival=int(decision.rivals[row]), row=row, margin=float(margins[row]))
    return replace(
        witness, status=WitnessStatus.NOT_FOUND, delta=np.full(len(start), np.nan), upper=INF, rival=-1, row=-1, margin=float("nan")
    )
