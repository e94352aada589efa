r"""The quadratic model beside the linear one: its radius, and what bounds and witness say of it.

    q_k(δ) = m_k(0) + ∇m_k·δ + ½ δᵀ∇²m_k δ,        quadratic radius = min_k min { ‖Wδ‖ : q_k(δ) ≤ 0, δ ∈ C }

The model is a picture of the network around x0, so its radius is a claim and no bound. It is put to the same test as the linearised radius: certified where
the network's lower bound reaches it, refuted where a real input nearer than it flips the decision, and else unknown with the fraction that is certified.

A ReLU network is piecewise linear: its Hessian is zero wherever it exists, and the quadratic radius is the linearised one. `temperature` T asks the same
network with T·log(1 + e^{z/T}) for max(z, 0), whose Hessian shows the kinks within a distance of about T; `suggested_temperature` is a start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from formulations.errors import InputError
from formulations.norms import INF
from formulations.quadratic import QuadraticSolution
from formulations.sets.base import ConvexSet
from verification.curvature import QuadraticRadius, quadratic_radii
from verification.softened import SOFTENED_CALLS
from verification.validity import Validity, linear_validity

if TYPE_CHECKING:
    from lde_cvx.explanation import Explanation

SOLVER = 1e-6  # relative accuracy of the quadratic program's value: its validity is asked of the value less this much
SHARE = 0.1  # of the size of pre-activations: the suggested temperature


def check_order(order: int, temperature: float | None) -> None:
    """Raises InputError on an order that is neither 1 nor 2, and on a temperature that is not positive or has no use."""
    if order not in (1, 2):
        raise InputError(f"order={order!r} is not known; use 1 (linear) or 2 (with the quadratic model).")
    if temperature is not None and order == 1:
        raise InputError(f"temperature={temperature} softens the ReLUs of the quadratic model; give order=2 too, or leave it out.")
    if temperature is not None and not (np.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature={temperature} must be positive and finite; lde.suggested_temperature(model, x) is a start.")


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """What the quadratic models of one decision say. No number here is certified but `certified_fraction`, a statement about the network.

    radius      value of the nearest quadratic model: ‖Wδ‖ of a point of C where it has fallen; +inf: no model can fall within C; NaN: none was found
    lower       bound of that value, of the *model's* optimum: equal to it up to 1e-6 where `exact`
    rival       the class (or side) whose model falls first
    validity    of the radius less 1e-6 of it, on the network; certified_fraction: the largest part of it, at most 1, that the bounds certify
    flat        the Hessian vanishes (a ReLU network, almost everywhere): this is the linear model
    temperature of the softened ReLUs whose Hessian this is; None: the network's own
    """

    radius: float
    lower: float
    rival: int
    validity: Validity
    certified_fraction: float
    flat: bool
    temperature: float | None
    solution: QuadraticSolution

    @property
    def exact(self) -> bool:
        """Has the model's optimum been found, by both sides meeting?"""
        return self.radius == self.lower or self.radius - self.lower <= SOLVER * abs(self.radius)

    @property
    def note(self) -> str:
        """One sentence about where the curvature comes from."""
        if self.temperature is not None:
            return f"Curvature of the network with its ReLUs softened at temperature {self.temperature:g}: a picture of its kinks."
        if self.flat:
            return "The Hessian vanishes: the network is piecewise linear, and the quadratic radius is the linearised one; give a temperature= to see its kinks."
        return "Curvature of the network itself at the input."


def with_second_order(
    model: nn.Module, x: Tensor, explanations: Sequence[Explanation], constraints: ConvexSet | None, temperature: float | None = None
) -> list[Explanation]:
    """The explanations of inputs x (n, *shape) over one set, with `quadratic` and `quadratic_radius` filled in."""
    radii = quadratic_radii(
        model, x, explanations[0].norm, constraints, decisions=[e.decision for e in explanations], temperature=temperature
    )
    found = [judged(r, e.lower, e.upper, temperature) for r, e in zip(radii, explanations, strict=True)]
    return [replace(e, quadratic=q, quadratic_radius=q.radius) for e, q in zip(explanations, found, strict=True)]


def judged(r: QuadraticRadius, lower: float, upper: float, temperature: float | None = None) -> SecondOrder:
    """The quadratic radius against certified `lower` and witnessed `upper` of the network's own."""
    radius = r.value if r.value is not None else INF if r.lower == INF else float("nan")
    if np.isnan(radius):
        validity, fraction = Validity.UNKNOWN, 0.0
    else:
        validities, fractions = linear_validity(radius * (1 - SOLVER), lower, upper)
        validity, fraction = validities[0], float(fractions[0])
    return SecondOrder(radius, r.lower, r.rival, validity, fraction, r.flat, temperature, r.solution)


def suggested_temperature(model: nn.Module, x: Tensor) -> float:
    """A tenth of the root mean square of what enters the ReLUs at inputs x (n, *shape); 0.1 where the model has none."""
    with torch.no_grad(), _Listen() as heard:
        model(x)
    values = torch.cat([v.detach().flatten().double() for v in heard.entered]) if heard.entered else torch.ones(1)
    return SHARE * float(values.square().mean().sqrt()) or SHARE


class _Listen(TorchFunctionMode):
    """Keeps what enters the ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SOFTENED_CALLS:
            self.entered.append((args[0] if args else kwargs["input"]).clone())
        return func(*args, **kwargs)
