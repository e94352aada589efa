r"""The question that the engines share:  min ‖Wδ‖  s.t.  m_k(δ) ≤ 0 for some row k,  δ ∈ C,  for a chain of affine maps and ReLUs.

A witness is only what passes here: within the set to 1e-9 after a pull-back, and flipping by a clear margin in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Array, Norm
from formulations.pieces import CustomPiece, Part, bounding_box
from formulations.programs import relative_parts
from formulations.sets.base import FEASIBILITY, ConvexSet
from verification.attack.feasible import PullBack, violation
from verification.decision import Decision
from verification.relu_chain import ReluChain

FLIP = 1e-10  # a margin this far below 0, relative to the outputs, flips in any order of summation


@dataclass(frozen=True, eq=False)
class Witness:
    """A change that flips row `row`, with its norm rounded up."""

    delta: Array
    upper: float
    row: int
    margin: float


@dataclass(frozen=True, eq=False)
class Question:
    """Weights and shifts are the chain's, in numpy, with x0 folded into the first shift: z_1 = W_1 δ + (β_1 + W_1 x0).

    first_shift_size is |β_1| + |W_1||x0|, relative to which that sum is rounded.
    """

    weights: tuple[Array, ...]
    shifts: tuple[Array, ...]
    first_shift_size: Array
    x0: Array
    decision: Decision
    norm: Norm
    parts: tuple[Part, ...]
    outputs: Callable[[Array], Array]
    pull: PullBack

    @staticmethod
    def build(
        model: torch.nn.Module | ReluChain,
        x0: ArrayLike,
        decision: Decision | None,
        norm: Norm | float | str,
        constraints: ConvexSet | None,
    ) -> Question:
        """Raises InputError on shapes that do not fit, a model that is no chain, entries that are not finite, and sets known only by their cones."""
        start = np.asarray(x0.detach().cpu() if isinstance(x0, torch.Tensor) else x0, dtype=float)
        shape = start.shape
        x = start.ravel()
        if not np.isfinite(x).all():
            raise InputError(
                f"exact_radius: x0 holds {x[~np.isfinite(x)][0]} at flat position {np.flatnonzero(~np.isfinite(x))[0]}; inputs must be finite."
            )
        chain = model if isinstance(model, ReluChain) else ReluChain.from_model(model, shape, device="cpu")
        weights = tuple(W.detach().cpu().double().numpy() for W in chain.weights)
        shifts = tuple(b.detach().cpu().double().numpy() for b in chain.shifts)
        if weights[0].shape[1] != prod(shape):
            raise InputError(f"exact_radius: x0 has {prod(shape)} features, the network takes {weights[0].shape[1]}.")
        run = _runner(model, chain, shape)
        outputs = run(x)
        if decision is None:
            decision = Decision.classification(int(outputs.argmax()), len(outputs))
        if decision.rows.shape[1] != len(outputs):
            raise InputError(f"exact_radius: a decision over {decision.rows.shape[1]} outputs for a network with {len(outputs)}.")
        norm = Norm.of(norm)
        norm.scale(len(x))
        parts = tuple(p.at(0) for p in relative_parts(constraints, len(x), x[None]))
        own = next((p.name for p in parts if isinstance(p.piece, CustomPiece)), None)
        if own is not None:
            raise InputError(
                f"exact_radius: {own!r} is known only by its CVXPY constraints, which give no verified bound; build it from the sets of this package."
            )
        lo, hi = bounding_box(parts, len(x))
        empty = np.flatnonzero(lo > hi + FEASIBILITY)
        if len(empty):
            i = empty[0]
            raise InputError(
                f"exact_radius: the constraints leave coordinate {i} no value ({lo[i]:g} > {hi[i]:g}); the set is empty, widen it."
            )
        size = np.abs(shifts[0]) + np.abs(weights[0]) @ np.abs(x)
        return Question(weights, (shifts[0] + weights[0] @ x, *shifts[1:]), size, x, decision, norm, parts, run, PullBack(parts))

    @property
    def dim(self) -> int:
        return len(self.x0)

    @property
    def depth(self) -> int:
        """Number of ReLU layers."""
        return len(self.weights) - 1

    @property
    def rows(self) -> int:
        return len(self.decision.shifts)

    def preactivations(self, delta: Array) -> list[Array]:
        """Inputs of the ReLU layers at x0 + δ."""
        out, v = [], delta
        for W, shift in zip(self.weights[:-1], self.shifts[:-1], strict=True):
            out.append(W @ v + shift)
            v = np.maximum(out[-1], 0.0)
        return out

    def margins(self, delta: Array) -> tuple[Array, float]:
        """(margins (K,) of the network itself at x0 + δ in float64, the size of its outputs)."""
        outputs = self.outputs(self.x0 + delta)
        return self.decision.margins(outputs[None])[0], float(np.abs(outputs).max(initial=0.0))

    def margin_row(self, row: int) -> tuple[Array, float]:
        """(r, c) with m_row = r·relu(z_L) + c, z_L the inputs of the last ReLUs (r·δ + c without a ReLU)."""
        q = self.decision.rows[row]
        return q @ self.weights[-1], float(q @ self.shifts[-1] + self.decision.shifts[row])

    def linearised(self, delta: Array, row: int) -> tuple[Array, float]:
        """(a, b) with m_row = a·δ' + b on the activation region of δ."""
        mu = self.decision.rows[row]
        const = float(self.decision.shifts[row]) + float(mu @ self.shifts[-1])
        for W, shift, z in zip(self.weights[:0:-1], self.shifts[-2::-1], reversed(self.preactivations(delta)), strict=True):
            mu = (mu @ W) * (z > 0)
            const += float(mu @ shift)
        return mu @ self.weights[0], const

    def witness(self, delta: Array) -> Witness | None:
        """δ pulled back into C, if it then flips some row."""
        if not np.isfinite(delta).all():
            return None
        delta, outside = self.pull(delta, self.parts, delta)
        if outside > FEASIBILITY or violation(delta, self.parts) > FEASIBILITY:
            return None
        margins, size = self.margins(delta)
        fallen = (margins <= -FLIP * size) | (margins == 0)
        if not fallen.any():
            return None
        row = int(np.argmin(np.where(fallen, margins, INF)))
        value = float(self.norm.value(delta))
        return Witness(delta, float(np.nextafter(value * (1 + 4e-16 * (len(delta) + 4)), INF)) if value else 0.0, row, float(margins[row]))


def _runner(model: torch.nn.Module | ReluChain, chain: ReluChain, shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """The network that witnesses are checked on: the model itself in float64 where there is one."""
    import copy

    if isinstance(model, ReluChain):
        size: tuple[int, ...] = (int(chain.weights[0].shape[1]),)
        device = chain.weights[0].device
        net: Callable[[torch.Tensor], torch.Tensor] = chain
    else:
        size, own = shape, copy.deepcopy(model).double().eval()
        device = next((p.device for p in own.parameters()), torch.device("cpu"))
        net = own

    def run(x: Array) -> Array:
        with torch.no_grad():
            out = net(torch.as_tensor(x, dtype=torch.float64, device=device).view(1, *size))
        return np.asarray(out.cpu().numpy()[0], dtype=float)

    return run
