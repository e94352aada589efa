r"""Linear bounds of functions of several variables on boxes, batched in torch:  L z + l0 ≤ f(z) ≤ U z + u0.

    softmax          s_i = 1/p_i,  p_i = Σ_j e^{z_j − z_i}                 lines of e^d on its range, then of 1/p (Wei et al. 2023)
    normalisation    y = z·r, r = (mean z² + ε)^{−½}, for z of mean 0      lines of z², then of v^{−½}, then of the products z_i r

No gradients flow through these bounds; rounding is covered by `ROUNDING`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verification.lirpa.curves import ROUNDING


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
