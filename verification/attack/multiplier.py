r"""The multiplier at a witness: what prices the boundary there, to be read beside the certified multiplier.

A witness δ̂ that is a local minimum solves the program that the network's own slopes pose there,

    min ‖Wδ‖   s.t.   a_j·(δ − δ̂) + m(δ̂) ≤ 0  for the slopes a_j of the fallen margin around δ̂,   δ ∈ C

with one slope where the network is smooth; where a ReLU bends at δ̂, one for every linear piece met nearby, and Σ λ_j a_j / Σ λ_j is then an element of
Clarke's generalised gradient. δ̂ is feasible there, so the optimum is at most ‖Wδ̂‖; where they agree, δ̂ is a KKT point and λ is a multiplier of the
real boundary. All of this is *local*: a nearer flip elsewhere says nothing against it, and it certifies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError
from formulations.kkt import KktDiagnosis, diagnose
from formulations.norms import Array, Norm
from formulations.programs import min_norm, relative_parts
from formulations.sets.base import FEASIBILITY, ConvexSet
from verification.attack.feasible import violation
from verification.attack.network import Network
from verification.decision import Decision
from verification.model import batch_of, float64_copy

NEARBY = 1e-5  # how far around the witness other linear pieces are looked for, relative to its largest change
LOOKS = 64  # points looked at
SAME = 1e-3  # slopes that differ by less, relative, count as one: a smooth network has one
SHORT = 1e-2  # largest relative shortfall of a witness that counts as a local minimum


class WitnessStanding(Enum):
    """Is the witness a local minimum? The value is the advice."""

    LOCAL_MINIMUM = "To first order no allowed change nearby is shorter: λ prices the boundary at the witness. Local, not certified."
    NOT_SETTLED = "The first-order program at the witness has a shorter answer: raise the search's budget before reading λ."
    NO_SLOPE = "The margin has no slope at the witness (saturated or constant): there is no λ to read."


@dataclass(frozen=True, eq=False)
class WitnessMultiplier:
    """The local multiplier at one witness δ̂.

    lam          λ = Σ λ_j ≥ 0: by how much the distance falls for each unit that the boundary comes nearer, locally
    slope        (d,) a = Σ λ_j a_j / λ: the margin's (generalised) gradient at δ̂; |λ a_i| are the local sensitivities `scores`
    pieces       number of linear pieces around δ̂ that entered
    shortfall    (‖Wδ̂‖ − optimum of the first-order program)/‖Wδ̂‖, ≥ 0 up to the solver's tolerance; 0 at a local minimum
    multipliers  of the constraints, by name, as in `Solution`
    kkt          residuals and active constraints at δ̂ itself (formulations.kkt)
    margin       m(δ̂) ≤ 0 of the row that fell, row its index, rival its class
    """

    standing: WitnessStanding
    lam: float
    slope: Array
    pieces: int
    shortfall: float
    multipliers: dict[str, Array]
    kkt: KktDiagnosis | None
    margin: float
    row: int
    rival: int

    @property
    def scores(self) -> Array:
        """(d,) λ·|a_i|: the local counterpart of the certified sensitivities."""
        return self.lam * np.abs(self.slope)

    @property
    def residual(self) -> float:
        """KKT stationarity residual at δ̂, relative; inf without a slope."""
        return float("inf") if self.kkt is None else self.kkt.stationarity

    @property
    def active(self) -> dict[str, NDArray[np.intp]]:
        """Constraints that hold with equality at δ̂, by name, margin rows left out."""
        return {} if self.kkt is None else {k: v for k, v in self.kkt.active.items() if k != "margin"}


def witness_multiplier(
    model: torch.nn.Module,
    x0: torch.Tensor | ArrayLike,
    delta: ArrayLike,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    decision: Decision | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> WitnessMultiplier:
    """λ of ``min ‖Wδ‖ s.t. m(δ) ≤ 0, δ ∈ C`` at a witness δ̂ = `delta` (d,), from the network's own slopes around it.

    x0 (*shape) is one input; `decision` None is classification by the predicted class. Clarke, Optimization and Nonsmooth Analysis, 1983, 6.1.
    Raises InputError where `delta` leaves the set by more than 1e-9, or does not flip the decision.
    """
    norm, change = Norm.of(norm), np.asarray(delta, dtype=float).ravel()
    twin = float64_copy(model, device)
    place = torch.device(device) if device is not None else next((p.device for p in twin.parameters()), torch.device("cpu"))
    inputs = batch_of(torch.as_tensor(x0)[None], None, place)
    net = Network(twin, inputs, 64)
    if len(change) != net.d or not np.isfinite(change).all():
        raise InputError(f"witness_multiplier: delta has shape {np.shape(delta)} or is not finite; the input has {net.d} features.")
    (chosen,) = net.decide(None if decision is None else [decision])
    parts = tuple(p.at(0) for p in relative_parts(constraints, net.d, net.x0.cpu().numpy(), 1))
    outside = violation(change, parts)
    if outside > FEASIBILITY:
        raise InputError(f"witness_multiplier: delta violates the constraints by {outside:.3g}; give a witness of this set.")
    point = torch.tensor(change, device=place)[None]
    who = torch.zeros(1, dtype=torch.long, device=place)
    margins, flipped = net.margins(point, who)
    if not bool(flipped[0]):
        raise InputError(f"witness_multiplier: the decision stands at delta (lowest margin {float(margins.min()):.3g}); give a witness.")
    row = int(margins[0].argmin())
    margin = float(margins[0, row])
    slopes = _slopes(net, change, row, seed)
    size = float(norm.value(change))
    if not slopes.any() or size == 0:
        return WitnessMultiplier(
            WitnessStanding.NO_SLOPE, 0.0, np.zeros(net.d), 0, 0.0, {}, None, margin, row, int(chosen.rivals[row])
        )  # fmt: skip
    levels = margin - slopes @ change
    solved = min_norm(slopes[None], levels[None], norm, constraints, net.x0.cpu().numpy())[0]
    lam = np.maximum(np.nan_to_num(np.atleast_1d(np.asarray(solved.multipliers["margin"], dtype=float))), 0.0)
    total = float(lam.sum())
    slope = lam @ slopes / total if total > 0 else slopes.mean(0)
    kkt = diagnose(replace(solved, delta=change), norm, slopes, levels, parts, slater=False)
    shortfall = max((size - float(solved.value)) / size, 0.0) if np.isfinite(solved.value) else 0.0
    standing = WitnessStanding.LOCAL_MINIMUM if shortfall <= SHORT else WitnessStanding.NOT_SETTLED
    multipliers = {k: v for k, v in solved.multipliers.items() if k != "margin"}
    return WitnessMultiplier(standing, total, slope, len(slopes), shortfall, multipliers, kkt, margin, row, int(chosen.rivals[row]))


def _slopes(net: Network, change: Array, row: int, seed: int) -> Array:
    """(K, d) the margin's slopes at δ̂ and at points about it, those that are equal once."""
    noise = torch.randn(LOOKS, net.d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(net.device)
    noise[0] = 0.0
    around = torch.tensor(change, device=net.device) + NEARBY * float(np.abs(change).max(initial=0.0)) * noise
    who = torch.zeros(LOOKS, dtype=torch.long, device=net.device)
    _, _, slopes = net.linearise(around, who, torch.full_like(who, row))
    return _distinct(slopes.cpu().numpy())


def _distinct(slopes: Array) -> Array:
    kept: list[Array] = []
    for a in slopes:
        size = float(np.abs(a).max())
        if all(float(np.abs(a - b).max()) > SAME * max(size, float(np.abs(b).max())) for b in kept):
            kept.append(a)
    return np.stack(kept)


def witness_multipliers(
    model: torch.nn.Module, x0: torch.Tensor | ArrayLike, deltas: ArrayLike, norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None, *, decisions: Sequence[Decision] | None = None, seed: int = 0,
) -> list[WitnessMultiplier | None]:  # fmt: skip
    """`witness_multiplier` for a batch x0 (n, *shape) and deltas (n, d); None where a row of deltas is NaN (no witness)."""
    inputs, changes = torch.as_tensor(x0), np.asarray(deltas, dtype=float)
    own: Sequence[Decision | None] = [None] * len(inputs) if decisions is None else decisions
    return [
        witness_multiplier(model, x, d, norm, constraints, decision=c, seed=seed) if np.isfinite(d).all() else None
        for x, d, c in zip(inputs, changes, own, strict=True)
    ]
