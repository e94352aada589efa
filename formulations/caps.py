r"""The part of a region where an affine row falls: linear functions over the cap { δ ∈ R_i : a_i·δ + b_i ≤ 0 }, one row an input.

    max { A·δ : δ ∈ R, a·δ + b ≤ 0 }  ≤  h(γ) = σ_R(A − γ a) − γ b        for ANY γ ≥ 0        [−γ (a·δ + b) ≥ 0 on the cap; Lagrange]

h is convex with slope −(a·v + b), v a maximiser of A − γ a over R: the minimum is bracketed by tangents. Pieces of C that are no boxes are left out
of that search (their σ takes a dual ascent each time), not of the bound: h at the γ found, in float64 with room for rounding, or at γ = 0 where that is
less, so that a cap's bound is (up to that room) never worse than the region's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from formulations.ball_box import level
from formulations.norms import INF
from formulations.support import Region

ROUNDS = 8
PAD = 1e-11  # of the sizes of h's terms, far above their rounding: where the cap is thin, σ and γ b cancel


@dataclass(frozen=True, eq=False)
class Cap(Region):
    """R_i ∩ { a_i·δ + b_i ≤ 0 } for rows `a` (n, d), `b` (n,); build it with `Cap.of`. Where no δ of R_i obeys the row, any number is a bound."""

    a: Tensor
    b: Tensor

    @staticmethod
    def of(region: Region, a: Tensor, b: Tensor) -> Cap:
        """The caps of a region's members."""
        return Cap(**{field.name: getattr(region, field.name) for field in fields(Region)}, a=a, b=b)

    @property
    def whole(self) -> Region:
        """The region without its rows."""
        return Region(*(getattr(self, field.name) for field in fields(Region)))

    @property
    def is_box(self) -> bool:
        return False

    def take(self, index: Any) -> Cap:
        i = torch.as_tensor(index, dtype=torch.long, device=self.lo.device)
        return Cap.of(self.whole.take(i), self.a[i], self.b[i])

    def holds_zero(self, tolerance: float = 1e-6) -> Tensor:
        return self.whole.holds_zero(tolerance) & (self.b <= 0)

    def window_support(self, A: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """Of the row nothing is used, as of every piece that is no box."""
        return self.whole.window_support(A, pick)

    def affine(self, A: Tensor, radius: Tensor | None = None) -> tuple[Tensor, Tensor]:
        whole, r = self.whole, self._radii(A, radius)
        gamma = self._price(A.detach(), r)
        c, mu = self._at(A, gamma, r)
        if self.coupling is not None:
            plain = whole.affine(A, r)
            worse = (c + mu * level(r, self.p) >= plain[0] + plain[1] * level(r, self.p)).detach()
            c, mu = torch.where(worse, plain[0], c), torch.where(worse, plain[1], mu)
        return c, mu

    def _at(self, A: Tensor, gamma: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(c, μ) at that γ, with room for rounding: PAD of a bound of |A|·|δ| + γ(|a|·|δ| + |b|) on the region."""
        a, b = self.a[:, None], self.b[:, None]
        c, mu = self.whole.affine(A - gamma[..., None] * a, r)
        size = (self._dual(A.detach()) + gamma * self._dual(a)) * r + gamma * b.abs()
        return c - gamma * b + PAD * size, mu

    def _price(self, A: Tensor, r: Tensor) -> Tensor:
        """γ (n, s), the best met on the way to the minimum of h."""
        unit = (self._dual(A) / self._dual(self.a[:, None]).clamp(min=1e-300)).clamp(max=1e100)
        low, high, now = torch.zeros_like(unit), torch.full_like(unit, INF), torch.zeros_like(unit)
        left, right = (low, low), (low, low)  # h and slope at the ends of the bracket
        best, value = low, high
        for _ in range(ROUNDS):
            h, slope = self._tangent(A, now, r)
            best, value = torch.where(h < value, now, best), torch.minimum(h, value)
            falls = slope < 0
            low, high = torch.where(falls, now, low), torch.where(falls, high, now)
            left = torch.where(falls, h, left[0]), torch.where(falls, slope, left[1])
            right = torch.where(falls, right[0], h), torch.where(falls, right[1], slope)
            bounded = torch.isfinite(high)
            width = torch.where(bounded, high - low, 0.0)
            # where the two tangents meet; h lies above both
            part = (right[0] - left[0] - right[1] * width) / ((left[1] - right[1]) * width).clamp(max=-1e-300)
            now = torch.where(bounded, low + part.clamp(0.05, 0.95) * width, torch.where(low > 0, 8 * low, unit))
        return best

    def _tangent(self, A: Tensor, gamma: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """h(γ) and its slope over ball and box, both (n, s)."""
        with torch.enable_grad():
            g = gamma.detach().requires_grad_(True)
            simple = replace(self.whole, coupling=None)
            c, mu = simple.affine(A - g[..., None] * self.a[:, None], r)
            h = c + mu * level(r, self.p) - g * self.b[:, None]
            (slope,) = torch.autograd.grad(h.sum(), g)
        return h.detach(), slope

    def _dual(self, A: Tensor) -> Tensor:
        """‖W⁻¹A‖_{p*} of rows (…, d)."""
        size: Tensor = torch.linalg.vector_norm(A / self.scale, {1.0: INF, 2.0: 2.0, INF: 1.0}[self.p], dim=-1)
        return size
