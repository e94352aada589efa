"""auto_LiRPA used alone, as the rival of the benchmarks: its own ℓp ball around x0, CROWN, bisection of the radius, one input at a time.

At p = ∞ it gets the ball ∩ box as the smaller box it is; at p = 1, 2 its ball cannot hold a box, so it certifies the ball without the constraints
(a larger set: still a valid bound). No multipliers, no rows, no constraints beyond a box.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import INF, Array, Norm
from verification.decision import Decision
from verification.lirpa.compat import library
from verification.lirpa.translate import float64_default
from verification.model import float64_copy

STEPS = 12


def library_radius(
    model: nn.Module,
    x0: Tensor,
    decisions: list[Decision],
    norm: Norm | float | str,
    upper: Array,
    *,
    box: tuple[float, float] | None = None,
    limit: float = INF,
) -> tuple[Array, Array]:
    """(certified radii (n,), seconds (n,)): the largest radius in [0, upper_i] that the library certifies in `STEPS` halvings,
    or in those begun within `limit` seconds an input.

    Raises InputError on a weighted norm, which its balls do not have.
    """
    norm, lib = Norm.of(norm), library()
    if norm.weights is not None:
        raise InputError("library_radius: auto_LiRPA's balls have no weights; compare on an unweighted norm.")
    net, x = float64_copy(model), x0.double()
    radii, seconds = np.zeros(len(x)), np.zeros(len(x))
    with float64_default(), torch.no_grad():
        bounded = lib.BoundedModule(net, x[:1], device=x.device)
        for i, decision in enumerate(decisions):
            start, point = time.perf_counter(), x[i : i + 1]
            C, shift = torch.tensor(decision.rows, device=x.device)[None], torch.tensor(decision.shifts, device=x.device)
            low, high = 0.0, float(upper[i])
            for _ in range(STEPS):
                if time.perf_counter() - start > limit:
                    break
                r = (low + high) / 2
                if norm.p == INF:
                    sides = (point - r, point + r) if box is None else ((point - r).clamp(*box), (point + r).clamp(*box))
                    ball = lib.PerturbationLpNorm(norm=np.inf, x_L=sides[0], x_U=sides[1])
                else:
                    ball = lib.PerturbationLpNorm(norm=norm.p, eps=r)
                lower = bounded.compute_bounds(x=(lib.BoundedTensor(point, ball),), C=C, method="CROWN", bound_upper=False)[0]
                low, high = (r, high) if bool((lower[0] + shift > 0).all()) else (low, r)
            radii[i], seconds[i] = low, time.perf_counter() - start
    return radii, seconds
