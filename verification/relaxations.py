r"""Linear bounds of nonlinear steps on boxes, batched in torch: what stands below and above each of them in a CROWN pass.

    curve            k_l·z + b_l ≤ f(z) ≤ k_u·z + b_u  on [l, u]                    one variable at a time
    softmax          s_i = 1/p_i,  p_i = Σ_j e^{z_j − z_i}                          lines of e^d on its range, then of 1/p (Wei et al. 2023)
    normalisation    y = z·r, r = (mean z² + ε)^{−½}, for z of mean 0               lines of z², then of v^{−½}, then of the products z_i r

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


def softmax_range(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of softmax over the last axis on a box."""
    with torch.no_grad():
        low, high = _differences(lower, upper)
        least, most = 1 / torch.exp(high).sum(-1), 1 / torch.exp(low).sum(-1)
        return (least * (1 - ROUNDING)).clamp(0, 1), (most * (1 + ROUNDING)).clamp(0, 1)


def softmax_planes(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(L, l0, U, u0) with  L z + l0 ≤ softmax(z) ≤ U z + u0  for lower ≤ z ≤ upper, over the last axis: L, U (…, K, K), l0, u0 (…, K).

    With d_j = z_j − z_i in its range and p = Σ_j e^{d_j} > 0:
        s_i ≥ 2/q₀ − q/q₀²  for p ≤ q, the chords of e^d, and any q₀ > 0 (a tangent of 1/q)
        s_i ≤ 1/p_l + 1/p_u − t/(p_l p_u)  for p ≥ t, the tangents of e^d, and p_l ≤ p ≤ p_u (a chord of 1/p)
    """
    with torch.no_grad():
        low, high = _differences(lower, upper)
        own = torch.eye(lower.shape[-1], dtype=torch.bool, device=lower.device)
        width = high - low
        chord = torch.where(width > 1e-9, torch.exp(low) * torch.expm1(width) / width.clamp(min=1e-300), torch.exp(high))
        chord = chord * (1 + ROUNDING)
        middle = (lower + upper) / 2
        d = middle.unsqueeze(-2) - middle.unsqueeze(-1)
        start = torch.exp(low) * (1 + ROUNDING)
        q0 = (start + chord * (d - low)).sum(-1, keepdim=True)
        slope_q, const_q = torch.where(own, 0.0, chord), torch.where(own, 1.0, start - chord * low).sum(-1, keepdim=True)
        L, l0 = -slope_q / q0**2, (2 / q0 - const_q / q0**2).squeeze(-1)
        at = torch.minimum(d, low + 1)  # a tangent there is not negative at the low end
        slope_t = torch.where(own, 0.0, torch.exp(at))
        const_t = torch.where(own, 1.0, torch.exp(at) * (1 - at)).sum(-1, keepdim=True)
        p_l, p_u = torch.exp(low).sum(-1, keepdim=True) * (1 - ROUNDING), torch.exp(high).sum(-1, keepdim=True) * (1 + ROUNDING)
        U, u0 = -slope_t / (p_l * p_u), (1 / p_l + 1 / p_u - const_t / (p_l * p_u)).squeeze(-1)
        most = torch.maximum(lower.abs(), upper.abs()).unsqueeze(-2)
        planes = []
        for matrix, const, sign in ((L, l0, -1.0), (U, u0, 1.0)):
            size = 2 * (matrix.abs() * (most + most.transpose(-1, -2))).sum(-1) + const.abs() + 2 / q0.squeeze(-1) + 2 / p_l.squeeze(-1)
            planes += [torch.where(own, -matrix.sum(-1, keepdim=True), matrix), const + sign * ROUNDING * 10 * size]
        return planes[0], planes[1], planes[2], planes[3]


def _differences(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """(low, high) (…, i, j) of z_j − z_i; 0 for j = i."""
    own = torch.eye(lower.shape[-1], dtype=torch.bool, device=lower.device)
    low, high = lower.unsqueeze(-2) - upper.unsqueeze(-1), upper.unsqueeze(-2) - lower.unsqueeze(-1)
    return torch.where(own, 0.0, low), torch.where(own, 0.0, high)


def normal_range(lower: Tensor, upper: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Bounds of y = z·(mean z² + ε)^{−½} over the last axis, for z that sum to 0.

    y_i grows in z_i; in the others it depends on the rest ρ = Σ_{j≠i} z_j² ≥ z_i²/(N − 1) (Cauchy, their sum is −z_i), which shrinks |y_i|.
    """
    with torch.no_grad():
        count = lower.shape[-1]
        near, far = (torch.relu(lower) + torch.relu(-upper)).square(), torch.maximum(lower.abs(), upper.abs()).square()
        least = (near.sum(-1, keepdim=True) - near).clamp(min=0) * (1 - count * ROUNDING)
        most = (far.sum(-1, keepdim=True) - far).clamp(min=0) * (1 + count * ROUNDING) + count * ROUNDING * far.amax(-1, keepdim=True)

        def outer(z: Tensor, away: Tensor) -> Tensor:
            """The value farthest from 0 where `away`, else nearest to it, with z_i = z."""
            rest = torch.where(away, torch.maximum(least, z * z / max(count - 1, 1)), most)
            return z * ((z * z + rest) / count + eps).rsqrt()

        low, high = outer(lower, lower < 0), outer(upper, upper > 0)
        return low - 10 * ROUNDING * (1 + low.abs()), high + 10 * ROUNDING * (1 + high.abs())


def normal_planes(lower: Tensor, upper: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(L, l0, U, u0) with  L z + l0 ≤ z·(mean z² + ε)^{−½} ≤ U z + u0  for lower ≤ z ≤ upper that sum to 0: L, U (…, N, N), l0, u0 (…, N).

    r = (mean z² + ε)^{−½} lies between planes (`_spread_planes`), z_i r between McCormick's; the constant `normal_range` where that is nearer at the middle.
    """
    with torch.no_grad():
        v_l, v_u = _mean_squares(lower, upper, eps)
        r_l, r_u = v_u.rsqrt() * (1 - ROUNDING), v_l.rsqrt() * (1 + ROUNDING)
        R, r0, S, s0 = (v.unsqueeze(-2) for v in _spread_planes(lower, upper, eps, v_l, v_u))  # (…, 1, N), (…, 1, 1)
        middle = (lower + upper) / 2
        constant = normal_range(lower, upper, eps)
        planes: list[Tensor] = []
        for sign, fixed, pairs in ((1.0, constant[0], ((r_l, lower), (r_u, upper))), (-1.0, constant[1], ((r_u, lower), (r_l, upper)))):
            best, kept, offset = sign * fixed, torch.zeros(*lower.shape, lower.shape[-1], dtype=lower.dtype, device=lower.device), fixed
            for r, end in pairs:  # z r ≥ (≤) r₀ z + z₀ r − z₀ r₀ at two corners (z₀, r₀) of the rectangle
                below = ((end >= 0) == (sign > 0)).unsqueeze(-1)  # the coefficient z₀ of r asks for its lower or its upper plane
                rows, const = torch.where(below, R, S) * end.unsqueeze(-1), torch.where(below, r0, s0).squeeze(-1) * end
                size = (
                    (rows.abs() * torch.maximum(lower.abs(), upper.abs()).unsqueeze(-2)).sum(-1)
                    + const.abs()
                    + 3 * r * (end.abs() + middle.abs())
                )
                rows = rows + torch.diag_embed(r.expand_as(lower))
                const = const - end * r - sign * 10 * ROUNDING * size
                value = sign * ((rows * middle.unsqueeze(-2)).sum(-1) + const)
                better = value > best
                best, kept, offset = (
                    torch.where(better, value, best),
                    torch.where(better.unsqueeze(-1), rows, kept),
                    torch.where(better, const, offset),
                )
            planes += [kept, offset]
        return planes[0], planes[1], planes[2], planes[3]


def _spread_planes(lower: Tensor, upper: Tensor, eps: float, v_l: Tensor, v_u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(L, l0, U, u0) with  L·z + l0 ≤ (mean z² + ε)^{−½} ≤ U·z + u0  for lower ≤ z ≤ upper: L, U (…, N), l0, u0 (…, 1).

    r falls and is convex in v = mean z² + ε ∈ [v_l, v_u]: below, its tangent at v₀ with v ≤ mean((l + u)z − lu) + ε; above, its chord with
    v ≥ mean(2tz − t²) + ε.
    """
    t = (lower + upper) / 2
    chords, count = -lower * upper, lower.shape[-1]
    v0 = torch.minimum((2 * t * t + chords).mean(-1, keepdim=True) + eps, v_u)
    k = -0.5 * v0.rsqrt() / v0
    L, l0 = k * 2 * t / count, v0.rsqrt() - k * v0 + k * (eps + chords.mean(-1, keepdim=True))
    wide = v_u - v_l > 1e-9 * v_l
    c = torch.where(wide, (v_u.rsqrt() - v_l.rsqrt()) / torch.where(wide, v_u - v_l, 1.0), 0.0)
    U, u0 = c * 2 * t / count, v_l.rsqrt() - c * v_l + c * (eps - (t * t).mean(-1, keepdim=True))
    most = torch.maximum(lower.abs(), upper.abs())
    planes = []
    for slope, const, sign in ((L, l0, -1.0), (U, u0, 1.0)):
        size = (slope.abs() * most).sum(-1, keepdim=True) + const.abs() + 2 * v_l.rsqrt() + (k.abs() + c.abs()) * (v0 + v_u)
        planes += [slope, const + sign * 10 * ROUNDING * size]
    return planes[0], planes[1], planes[2], planes[3]


def _mean_squares(lower: Tensor, upper: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Bounds (…, 1) of mean z² + ε."""
    near, far = torch.relu(lower) + torch.relu(-upper), torch.maximum(lower.abs(), upper.abs())
    return (near * near).mean(-1, keepdim=True) * (1 - ROUNDING) + eps, (far * far).mean(-1, keepdim=True) * (1 + ROUNDING) + eps
