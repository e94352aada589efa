r"""Linear bounds of functions of one variable on intervals, batched in torch:  k_l·z + b_l ≤ f(z) ≤ k_u·z + b_u  for z in [l, u].

A curve is cut where its curvature changes sign. On a convex piece f − k·z is largest at an end; on a concave one, at the point where f' = k, which a bisection
brackets by [a, b], and there f(z) − k·z ≤ g(a) + g'(a)(b − a) by concavity. So for ANY slope k the intercept is proved, and slopes only have to be good: they
support the curve's hull above the middle of [l, u], found on a grid of chords. No gradients flow through these bounds; rounding is covered by `ROUNDING`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-13  # of the terms of a line, by which every line is moved outwards
GRID = 8  # chords have their ends on this many points on either side of the middle
HALVINGS = 26  # the intercept's excess is of second order in 2^−26 of the interval
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Curve:
    """f and f' on (floor, ∞), convex (+1) or concave (−1) on each piece between the cuts; `value` may lie off such a curve by up to `jump` (a threshold of torch)."""

    value: Function
    slope: Function
    cuts: tuple[float, ...] = ()
    bends: tuple[int, ...] = (1,)
    floor: float = -math.inf
    jump: float = 0.0

    def range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """(least, largest) value on [lower, upper], as bounds."""
        with torch.no_grad():
            l, u = self._domain(lower, upper)
            flat = torch.zeros_like(l)
            return -self._most(l, u, flat, -1), self._most(l, u, flat, 1)

    def lines(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(k_l, b_l, k_u, b_u) with k_l·z + b_l ≤ f(z) ≤ k_u·z + b_u for lower ≤ z ≤ upper; NaN where the interval is not finite."""
        with torch.no_grad():
            l, u = self._domain(lower, upper)
            out = []
            for sign in (-1, 1):
                k = self._supporting(l, u, sign)
                out += [k, sign * self._most(l, u, k, sign)]
            return out[0], out[1], out[2], out[3]

    def _domain(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The network is defined, so its value lies above `floor` whatever the bounds say."""
        l = lower.detach().clamp(min=self.floor)
        return l, torch.maximum(upper.detach(), l)

    def _supporting(self, l: Tensor, u: Tensor, sign: int) -> Tensor:
        """The slope of the line over (sign = 1) or under the curve that is nearest to it at the middle of [l, u], by chords of a grid and the tangent there."""
        middle = l + (u - l) / 2
        steps = torch.arange(1, GRID + 1, dtype=l.dtype, device=l.device) / GRID
        half = ((u - l) / 2).unsqueeze(-1)
        left, right = middle.unsqueeze(-1) - half * steps, middle.unsqueeze(-1) + half * steps
        if self.cuts:  # corners of the hull may lie there
            cuts, near = torch.tensor(self.cuts, dtype=l.dtype, device=l.device), half / 64
            cuts = cuts.expand(*l.shape, len(self.cuts))
            left = torch.cat([left, torch.minimum(torch.maximum(cuts, left[..., -1:]), middle.unsqueeze(-1) - near)], -1)
            right = torch.cat([right, torch.maximum(torch.minimum(cuts, right[..., -1:]), middle.unsqueeze(-1) + near)], -1)
        low, high = self.value(left), self.value(right)
        back, ahead = (middle.unsqueeze(-1) - left).unsqueeze(-1), (right - middle.unsqueeze(-1)).unsqueeze(-2)
        share = torch.nan_to_num(back / (back + ahead))  # of the right end in the chord's value at the middle
        at_middle = sign * (low.unsqueeze(-1) * (1 - share) + high.unsqueeze(-2) * share)
        best, which = at_middle.flatten(-2).max(-1)
        i, j = which // right.shape[-1], which % right.shape[-1]
        width = torch.gather(right, -1, j.unsqueeze(-1)) - torch.gather(left, -1, i.unsqueeze(-1))
        chord = ((torch.gather(high, -1, j.unsqueeze(-1)) - torch.gather(low, -1, i.unsqueeze(-1))) / width).squeeze(-1)
        tangent = self.slope(middle)
        here = self.value(middle)
        over = (
            sign * (v - here.unsqueeze(-1) - tangent.unsqueeze(-1) * (z - middle.unsqueeze(-1))) for v, z in ((low, left), (high, right))
        )
        supports = torch.maximum(*(v.amax(-1) for v in over)) <= 1e-9 * (1 + here.abs())
        k = torch.where(((best > sign * here) | ~supports) & (u - l > 1e-9), chord, tangent)
        return torch.where(torch.isfinite(k), k, 0.0)

    def _most(self, l: Tensor, u: Tensor, k: Tensor, sign: int) -> Tensor:
        """An upper bound of max { sign·(f(z) − k·z) : l ≤ z ≤ u }."""
        most = torch.full_like(l, -torch.inf)
        size = torch.zeros_like(l)
        for low, high, bend in zip((-math.inf, *self.cuts), (*self.cuts, math.inf), self.bends, strict=True):
            a, b = l.clamp(min=low), u.clamp(max=high)
            here = a <= b
            b = torch.maximum(a, b)
            for end in (a, b):
                f = self.value(end)
                most = torch.where(here, torch.maximum(most, sign * (f - k * end)), most)
                size = torch.where(here, torch.maximum(size, f.abs() + (k * end).abs()), size)
            if sign * bend < 0:
                for _ in range(HALVINGS):
                    middle = a + (b - a) / 2
                    rising = sign * (self.slope(middle) - k) > 0
                    a, b = torch.where(rising, middle, a), torch.where(rising, b, middle)
                f = self.value(a)
                top = sign * (f - k * a) + (sign * (self.slope(a) - k)).clamp(min=0) * (b - a)
                most = torch.where(here, torch.maximum(most, top), most)
        most = most + ROUNDING * size + self.jump
        return torch.where(torch.isfinite(l) & torch.isfinite(u), most, torch.nan)


def _normal(z: Tensor) -> Tensor:
    """Φ(z), accurate in the lower tail."""
    tail: Tensor = torch.special.erfc(-z / math.sqrt(2))
    return tail / 2


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _tanh_gate(z: Tensor) -> tuple[Tensor, Tensor]:
    """(σ(2y), dy/dz) for y = √(2/π)(z + 0.044715 z³): GELU's tanh form is z·σ(2y)."""
    c = math.sqrt(2 / math.pi)
    return torch.sigmoid(2 * c * (z + 0.044715 * z**3)), c * (1 + 3 * 0.044715 * z * z)


def _tanh_gelu_slope(z: Tensor) -> Tensor:
    gate, speed = _tanh_gate(z)
    return gate + z * 2 * gate * (1 - gate) * speed


def _silu_slope(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z)
    return gate + z * gate * (1 - gate)


def _mish_slope(z: Tensor) -> Tensor:
    gate = torch.tanh(torch.nn.functional.softplus(z, threshold=50))
    return gate + z * torch.sigmoid(z) * (1 - gate * gate)


def softplus(beta: float, threshold: float) -> Curve:
    """log(1 + e^{βz})/β; torch answers z itself beyond the threshold, which is lower by no more than e^{−threshold}/β."""
    return Curve(
        lambda z: torch.nn.functional.softplus(z, beta, threshold),
        lambda z: torch.sigmoid(beta * z),
        jump=math.exp(-threshold) / beta,
    )


def elu(alpha: float, scale: float, speed: float) -> Curve:
    """scale·z for z > 0, scale·α(e^{speed·z} − 1) below: ELU, SELU and CELU."""
    return Curve(
        lambda z: scale * torch.where(z > 0, z, alpha * torch.expm1(speed * z.clamp(max=0))),
        lambda z: scale * torch.where(z > 0, 1.0, alpha * speed * torch.exp(speed * z.clamp(max=0))),
        (0.0,),
        (1 if alpha * scale >= 0 else -1, 1),
    )


def clipped(low: float, high: float) -> Curve:
    """min(max(z, low), high)."""
    return Curve(lambda z: z.clamp(low, high), lambda z: ((z > low) & (z < high)).to(z.dtype), (low, high), (1, 1, 1))


GELU = Curve(
    lambda z: z * _normal(z),
    lambda z: _normal(z) + z * _density(z),
    (-math.sqrt(2), math.sqrt(2)),  # f'' = (2 − z²)φ(z)
    (-1, 1, -1),
)
TANH_GELU_BEND = 1.418504008790828  # the positive zero of f''
LOG = Curve(torch.log, torch.reciprocal, bends=(-1,), floor=0.0)
LOG_SIGMOID = Curve(torch.nn.functional.logsigmoid, lambda z: torch.sigmoid(-z), bends=(-1,))
TANH_GELU = Curve(lambda z: z * _tanh_gate(z)[0], _tanh_gelu_slope, (-TANH_GELU_BEND, TANH_GELU_BEND), (-1, 1, -1))
SILU_BEND = 2.3993572805154675  # the positive zero of f'': z·tanh(z/2) = 2
SILU = Curve(lambda z: z * torch.sigmoid(z), _silu_slope, (-SILU_BEND, SILU_BEND), (-1, 1, -1))
MISH = Curve(
    lambda z: z * torch.tanh(torch.nn.functional.softplus(z, threshold=50)),
    _mish_slope,
    (-2.25637639636079312, 1.49057147948542846),  # zeros of f''
    (-1, 1, -1),
    jump=1e-15,
)
HARD_SWISH = Curve(
    lambda z: z * (z + 3).clamp(0, 6) / 6,
    lambda z: torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, (2 * z + 3) / 6)),
    (-3.0, 3.0),
    (1, 1, 1),
)
HARD_SIGMOID = Curve(lambda z: (z / 6 + 0.5).clamp(0, 1), lambda z: ((z > -3) & (z < 3)).to(z.dtype) / 6, (-3.0, 3.0), (1, 1, 1))
SQUARE = Curve(lambda z: z * z, lambda z: 2 * z)
ROOT = Curve(lambda z: z.sqrt(), lambda z: 0.5 / z.clamp(min=1e-300).sqrt(), bends=(-1,), floor=0.0)


def reciprocal_lines(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(k_l, b_l, k_u, b_u) of 1/z on intervals that do not hold 0: tangent at the middle and chord, mirrored for negative z; NaN where 0 is inside."""
    with torch.no_grad():
        side = torch.where(lower > 0, 1.0, torch.where(upper < 0, -1.0, torch.nan)).to(lower)
        a, b = torch.minimum(side * lower, side * upper), torch.maximum(side * lower, side * upper)
        m = (a * b).sqrt()  # tangent and chord are then parallel
        k = -1 / (a * b)
        below, above = 2 / m, 1 / a + 1 / b
        below, above = below - ROUNDING * (below + above), above + ROUNDING * (below + above)
        return k, torch.where(side > 0, below, -above), k, torch.where(side > 0, above, -below)
