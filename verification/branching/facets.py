r"""Upper lines of the first layer's ReLUs over the box of changes, not over the range of z alone.

Write z = z̄ + w·d for a neuron of the first layer, d = v − mid, |d_i| ≤ half_i, l ≤ z ≤ u,  H = |w|·half.  For any turn e in [−1, 1]^d, with

    q = Σ |w_i| e_i d_i     the part of w·d whose signs are turned to e          ζ = Σ half_i w_i e_i     its counterpart: w·d at d = e∘half

and any 0 ≤ τ ≤ min(t, 1 − t):

    relu(z) ≤ t (z − z̄) − τ q + max( (t − τ)(z̄ − l) + τ (H − ζ),  z̄ + (1 − t − τ)(u − z̄) + τ (H + ζ) ).

Proof. With g·d = t (z − z̄) − τ q the two terms bound −g·d and z − g·d: the first is −(t − τ)(z − z̄) − τ Σ |w_i| (sign w_i − e_i) d_i, where z ≥ l and
|d_i| ≤ half_i; the second (1 − t − τ)(z − z̄) + τ Σ |w_i| (sign w_i + e_i) d_i, where z ≤ u.                                                              ∎

τ = 0 is the chord ū (z − l). The terms are equal, which is best, at t = ū + τ ρ, ρ = (2ζ + (z̄ − l) − (u − z̄)) / (u − l), and the line is then

    ū (z − l) + τ ( ρ (z − l) − q + H − ζ − (z̄ − l) ).

At d = e∘half it lies below the chord by τ (1 − ρ)(z − l) ≥ 0: with e the maximiser that a row has with chords, the row gains at once, until its coefficients
change sign. These are the facets of the ReLU's hull over the box (Anderson et al. 2020) whose slopes take two values. A row takes τ = κ times the most
that is allowed, one κ in [0, 1] for all its neurons: in κ its value is concave, and one product with |W| more is all it costs.

Whether flips or all changes are meant does not matter, as long as l ≤ z ≤ u holds for them. The box may be larger than the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verification.branching.cells import Cells
from verification.branching.face import Face
from verification.branching.network import Network

TINY = 1e-12
FIRST = 0.5  # κ to begin with
ROUNDING = 1e-11  # of the constants that cancel, as PAD in verification/branching/ball.py


@dataclass(frozen=True, eq=False)
class Aim:
    """κ (…) and the turn e (…, d) of rows; κ < 0 where there is none yet."""

    kappa: Tensor
    turn: Tensor

    def to(self, dtype: torch.dtype) -> Aim:
        return Aim(self.kappa.to(dtype), self.turn.to(dtype))


@dataclass(frozen=True, eq=False)
class Sight:
    """What an aim makes of the neurons (…, h): ρ, the most that τ may be, and H − ζ − (z̄ − l)."""

    kappa: Tensor
    turn: Tensor
    tilt: Tensor
    most: Tensor
    gain: Tensor


@dataclass(frozen=True, eq=False)
class Share:
    """The part of a minorant that κ scales: row (…, d) over v, const (…,); and coefficients (…, h) of z that are still to be multiplied with W."""

    row: Tensor
    head: Tensor
    const: Tensor


@dataclass(frozen=True, eq=False)
class Facets:
    """The first layer of cells: low, width (n, h) of the range of z, up (n, h) = ū where the sign is open, else 0; W, |W| (h, d), H, z̄ (h,), mid, half (d,)."""

    low: Tensor
    width: Tensor
    up: Tensor
    open: Tensor
    W: Tensor
    size: Tensor
    reach: Tensor
    centre: Tensor
    mid: Tensor
    half: Tensor

    @staticmethod
    def of(network: Network, face: Face, cells: Cells) -> Facets:
        """Of the network's first layer, in the box of the face and the bounds of the cells."""
        W, mid, half, lower, upper = network.weights[0], face.mid, face.half, cells.lower[0], cells.upper[0]
        is_open = (lower < 0) & (upper > 0)
        width = torch.where(is_open, upper - lower, 1.0)
        size = W.abs()
        return Facets(
            lower, width, torch.where(is_open, upper / width, 0.0), is_open, W, size, size @ half, W @ mid + network.shifts[0], mid, half
        )

    def take(self, index: slice) -> Facets:
        return Facets(self.low[index], self.width[index], self.up[index], self.open[index], self.W, self.size, self.reach, self.centre,
                      self.mid, self.half)  # fmt: skip

    def each(self) -> Facets:
        """For several rows a cell, (n, s, …)."""
        low, width, up, is_open = (v.unsqueeze(1) for v in (self.low, self.width, self.up, self.open))
        return Facets(low, width, up, is_open, self.W, self.size, self.reach, self.centre, self.mid, self.half)

    def to(self, dtype: torch.dtype) -> Facets:
        low, width, up, *rest = (
            v.to(dtype) for v in (self.low, self.width, self.up, self.W, self.size, self.reach, self.centre, self.mid, self.half)
        )
        return Facets(low, width, up, self.open, *rest)

    def turn(self, v: Tensor) -> Tensor:
        """e for which e∘half is the vertex next to v (…, d)."""
        return torch.sign(v - self.mid)

    def sight(self, aim: Aim) -> Sight:
        zeta = (aim.turn * self.half) @ self.W.T
        back = self.centre - self.low
        tilt = (2 * (zeta + back) - self.width) / self.width
        steep = self.open & (tilt.abs() < 1)  # else the vertex lies outside l ≤ z ≤ u, and nothing is gained there
        most = torch.minimum(self.up / (1 - tilt).clamp(min=TINY), (1 - self.up) / (1 + tilt).clamp(min=TINY))
        return Sight(aim.kappa, aim.turn, tilt, most.clamp(0, 0.5) * (1 - TINY) * steep, self.reach - zeta - back)

    def share(self, negative: Tensor, sight: Sight) -> Share:
        """What κ = 1 adds to the minorant of rows that have coefficients `negative` (…, h) ≤ 0 on relu(z)."""
        T = negative * sight.most
        head = T * sight.tilt
        row = (T @ self.size) * sight.turn
        const = (T * sight.gain).sum(-1) - (head * self.low).sum(-1) + row @ self.mid
        const = const + ROUNDING * (T * (sight.gain.abs() + self.low.abs() + self.reach)).sum(-1)
        return Share(-row, head, const)

    def lift(self, z: Tensor, v: Tensor, sight: Sight) -> Tensor:
        """By how much the lines lie above the chords at v (…, d), z = Wv + shift (…, h)."""
        q = (sight.turn * (v - self.mid)) @ self.size.T
        return sight.kappa.unsqueeze(-1) * sight.most * (sight.tilt * (z - self.low) - q + sight.gain)
