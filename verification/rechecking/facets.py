r"""Upper lines of rectifiers over a box, not over the range of z alone: proved in outward-rounded float64. It needs numpy only.

Let z = W y + β with |y − mid| ≤ half and l ≤ z ≤ u, z̄ = W mid + β, H = |W| half. For any slope s, any τ ≥ 0 and any turn e in {−1, 0, 1}^n, with ζ = W (e ∘ half)
and q = |W| (e ∘ (y − mid)),

    max(z, 0) ≤ s z − τ q + t,      t = max( max_z −(s − τ) z − τ z̄ + τ (H − ζ),   max_z (1 − s − τ) z + τ z̄ + τ (H + ζ) ),     z from {l, u}.

Proof. Both 0 − s z + τ q and z − s z + τ q are at most t: the first is −(s − τ) z − τ (z − q), where z − q = z̄ + Σ |W_i| (sign W_i − e_i)(y_i − mid_i), and
|W_i| |sign W_i − e_i| half_i sums to H − ζ; the second is (1 − s − τ) z + τ (z + q), and |W_i| |sign W_i + e_i| half_i sums to H + ζ.                       ∎

So s, τ and e are only a proposal, as slopes are. Good ones, for the chord's slope ū and a share κ of the most that helps (Anderson et al. 2020; the algebra is in
verification/branching/facets.py): s = ū + τ ρ, τ = κ min( ū/(1 − ρ), (1 − ū)/(1 + ρ) ), ρ = (2 (ζ + z̄ − l) − (u − l)) / (u − l).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from verification.rechecking.affine import Affine, Conv, Dense
from verification.rechecking.rounding import INFLATE, TINY, Array, U, gamma

if TYPE_CHECKING:
    from verification.rechecking.backward import Backward

__all__ = ["Aim", "Facets"]

SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Aim:
    """Of R rows: the shares κ (R,) and the turns e (R, n)."""

    kappa: Array
    turn: Array


@dataclass(frozen=True, eq=False)
class Sight:
    """What a turn makes of the rectifiers (R, h), roughly: ζ, ρ, the most that τ may be, and H − ζ − (z̄ − l)."""

    zeta: Array
    tilt: Array
    most: Array
    gain: Array


@dataclass(frozen=True, eq=False)
class Facets:
    """Of the rectifiers at `place`: their input z is `value` = layer(y), y is `source`; size is |W|. (h,): bounds of z, own slopes ū and intercepts above,
    z̄ and by how much it may be off, H rounded up, where the sign is open; mid, half (n,) of y's box."""

    place: int
    source: int
    layer: Dense | Conv
    size: Dense | Conv
    low: Array
    high: Array
    up: Array
    up_at: Array
    centre: Array
    off: Array
    reach: Array
    mid: Array
    half: Array

    @staticmethod
    def of(bounds: Backward, place: int) -> Facets:
        """On the bounds at hand of y and z."""
        value = bounds.network.nodes[place].sources[0]
        layer, source = bounds.network.nodes[value].layer, bounds.network.nodes[value].sources[0]
        assert isinstance(layer, Dense | Conv)
        size = replace(layer, W=np.abs(layer.W), shift=None)
        lo, hi = (v.ravel() for v in bounds.of(source))
        mid = lo + (hi - lo) / 2
        half = np.nextafter(np.maximum(hi - mid, mid - lo), np.inf)
        shift = np.zeros(layer.shape) if layer.shift is None else layer.shift
        centre = _times(layer, mid[None])[0] + shift.ravel()
        off = (gamma(layer.terms + 2) * (_times(size, np.abs(mid)[None])[0] + np.abs(shift.ravel())) + layer.terms * TINY) * INFLATE
        reach = _times(size, half[None])[0] * (1 + gamma(layer.terms + 1)) + layer.terms * TINY
        low, high = (v.ravel() for v in bounds.of(value))
        own = bounds.lines[place]
        return Facets(place, source, layer, size, low, high, own.up.ravel(), own.up_at.ravel(), centre, off, reach, mid, half)

    # ----------------------------------------------------------------------------------------------------------- a proposal, in floats

    def turn(self, y: Array) -> Array:
        """e for which mid + e∘half is the vertex next to y (R, n)."""
        return np.sign(y - self.mid)

    def sight(self, turn: Array) -> Sight:
        zeta, back, width = _times(self.layer, turn * self.half), self.centre - self.low, self.high - self.low
        is_open: NDArray[np.bool_] = (self.low < 0) & (self.high > 0)
        tilt = (2 * (zeta + back) - width) / np.where(is_open, width, 1.0)
        steep = is_open & (np.abs(tilt) < 1)  # else the vertex lies outside l ≤ z ≤ u, and nothing is gained there
        most = np.minimum(self.up / np.maximum(1 - tilt, SMALL), (1 - self.up) / np.maximum(1 + tilt, SMALL))
        return Sight(zeta, tilt, np.where(steep, np.clip(most, 0, 0.5) * (1 - SMALL), 0.0), self.reach - zeta - back)

    def lift(self, z: Array, y: Array, turn: Array, sight: Sight) -> Array:
        """By how much the lines with κ = 1 lie above the chords at y (R, n), z (R, h)."""
        q = _times(self.size, turn * (y - self.mid))
        out: Array = sight.most * (sight.tilt * (z - self.low) - q + sight.gain)
        return out

    # --------------------------------------------------------------------------------------------------------------------- the proof

    def lines(self, aim: Aim) -> tuple[Array, Array, Array]:
        """(s, τ, t), each (R, h), with max(z, 0) ≤ s z − τ q + t proved; the lines' own where τ = 0."""
        turn = np.sign(np.nan_to_num(aim.turn))
        sight = self.sight(turn)
        tau = np.nan_to_num(np.clip(aim.kappa, 0, 1)[:, None] * sight.most)
        s = self.up + tau * np.nan_to_num(sight.tilt)
        rest, slack = s - tau, 1 - s - tau
        size, zeta = np.maximum(np.abs(self.low), np.abs(self.high)), sight.zeta
        first = np.maximum(-rest * self.low, -rest * self.high) + tau * ((self.reach - zeta) - self.centre)
        second = np.maximum(slack * self.low, slack * self.high) + tau * ((self.reach + zeta) + self.centre)
        rounded = 16 * U * ((1 + np.abs(s) + tau) * size + tau * (self.reach + np.abs(zeta) + np.abs(self.centre)))
        missed = tau * (self.off + gamma(self.layer.terms + 2) * self.reach)  # of z̄ and of ζ
        t = np.maximum(first, second) + (rounded + missed) * INFLATE + TINY
        flat = tau == 0
        return np.where(flat, self.up, s), tau, np.where(flat, self.up_at, t)

    def across(self, T: Array, turn: Array) -> tuple[Array, Array, Array]:
        """(rows over y (R, n), constants, errors (R,)): below Σ_j T_j (−q_j) for T (R, h) ≤ 0, each entry off by two roundings at most."""
        turn, n = np.sign(np.nan_to_num(turn)), self.mid.size
        total = self.size.back(T.reshape(-1, *self.size.shape)).reshape(len(T), -1)
        row = -turn * total
        const = -(row @ self.mid)
        missed = gamma(self.layer.back_terms + 4) * (np.abs(T) @ self.reach) + gamma(n + 2) * (np.abs(row) @ np.abs(self.mid))
        return row, const, missed * INFLATE + n * TINY


def _times(layer: Affine, v: Array) -> Array:
    """W v, flat, for rows v (R, n)."""
    out: Array = layer.apply(v.reshape(-1, *layer.shape_in)).reshape(len(v), -1)
    return out
