"""What LEG and LEG-TV answer: the moments that a model's owner hands over, and the explanations made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.leg.grid import Perturbation
from formulations.leg.program import LegProgram, LegSolution
from formulations.norms import Array


@dataclass(frozen=True, eq=False)
class Moments:
    """ȳ (channels, pixels of the grid): means of (f(x0 + z) − f(x0)) z over the draws, and what is needed to interpret them. Holds no input and no model.

    score is f(x0); shape is the input's; target and against name f = score of target − score of against (None: target alone).
    """

    vectors: Array
    score: float
    samples: int
    shape: tuple[int, ...]
    perturbation: Perturbation
    target: int
    against: int | None

    def programs(self) -> tuple[LegProgram, ...]:
        """The LEG-TV program of each channel."""
        return tuple(LegProgram(self.perturbation, v) for v in self.vectors)

    def enlarge(self, maps: Array) -> Array:
        """(channels, h, w) on the grid → the input's shape: every pixel takes the value of the grid cell it lies in."""
        return enlarge(maps, self.shape)


@dataclass(frozen=True, eq=False)
class LegExplanation:
    """map: Σ⁻¹ȳ in the input's shape (signed); grid_map (channels, h, w) before it was enlarged; `moments` it came from."""

    map: Array
    grid_map: Array
    moments: Moments
    seconds: float

    @property
    def saliency(self) -> Array:
        """Σ over channels of |map|: (h, w), or |map| where the input has no channels."""
        return np.abs(self.map).sum(0) if self.map.ndim == 3 else np.abs(self.map)


@dataclass(frozen=True, eq=False)
class LegTVExplanation(LegExplanation):
    """`map` is the LEG-TV map; one program per channel was solved: `solutions`, with multipliers, levels and both values of each."""

    solutions: tuple[LegSolution, ...]

    @property
    def objective(self) -> float:
        """Σ over channels of ‖D map‖₁ on the grid."""
        return float(sum(s.objective for s in self.solutions))

    @property
    def lower(self) -> float:
        """Σ of the dual values: a lower bound of the least objective."""
        return float(sum(s.lower for s in self.solutions))

    @property
    def dual_gap(self) -> float:
        """objective − lower ≥ 0."""
        return float(sum(s.dual_gap for s in self.solutions))

    @property
    def relative_gap(self) -> float:
        return self.dual_gap / self.objective if self.objective > 0 else 0.0

    @property
    def levels(self) -> Array:
        """L of each channel."""
        return np.array([s.level for s in self.solutions])

    @property
    def multipliers(self) -> Array:
        """(channels, edges): how fast the objective falls as an edge's level L grows."""
        return np.stack([s.multipliers for s in self.solutions])


def enlarge(maps: Array, shape: tuple[int, ...]) -> Array:
    """(c, h, w) → (c, H, W) by nearest cells, then in the input's shape where c is its number of channels."""
    H, W = (1, *shape)[-2:] if len(shape) > 1 else (1, shape[0])
    rows, columns = np.arange(H) * maps.shape[1] // H, np.arange(W) * maps.shape[2] // W
    large = maps[:, rows][:, :, columns]
    return large.reshape(shape) if large.size == int(np.prod(shape)) else large
