r"""Second-order cones  { (c, w) : ‖w_g‖ ≤ c_g }  of small groups g: what an interior point method does with them, for a batch.

A point x holds the heads c (R, g) and then the tails w (R, n), of groups `labels`. With J = diag(1, −I) and x∘x' = (x·x', c w' + c'w) in every cone,

    Nesterov–Todd scaling   W = η(2vvᵀ − J),  W z = W⁻¹ y = λ,      η⁴ = yᵀJy/zᵀJz,   W² = η²(2ŵŵᵀ − J),   v = (ŵ + 1)/√(2(ŵ₀ + 1))
    ŵ = (ŷ + Jẑ)/2γ,  γ² = (1 + ŷ·ẑ)/2,   ŷ = y/√(yᵀJy),   ẑ = z/√(zᵀJz)

(Nesterov & Todd 1997; the algebra as in Vandenberghe's report on CVXOPT, 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cones:
    """Groups of `labels` (n,), `count` of them."""

    labels: Tensor
    count: int

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.count], x[:, self.count :]

    def sums(self, tails: Tensor) -> Tensor:
        """Of each group (R, g)."""
        return tails.new_zeros(len(tails), self.count).index_add(-1, self.labels, tails)

    def join(self, heads: Tensor, tails: Tensor) -> Tensor:
        return torch.cat([heads, tails], -1)

    def unit(self, like: Tensor) -> Tensor:
        """1: heads one, tails zero."""
        out = torch.zeros_like(like)
        out[:, : self.count] = 1.0
        return out

    def inner(self, x: Tensor, other: Tensor) -> Tensor:
        """x·x' of each cone (R, g)."""
        return self.sums((x * other)[:, self.count :]) + (x * other)[:, : self.count]

    def determinant(self, x: Tensor) -> Tensor:
        """xᵀJx = (c − ‖w‖)(c + ‖w‖) (R, g)."""
        heads, tails = self.split(x)
        length = self.sums(tails.square()).sqrt()
        return (heads - length) * (heads + length)

    def reflect(self, x: Tensor) -> Tensor:
        """J x."""
        heads, tails = self.split(x)
        return self.join(heads, -tails)

    def scale(self, by: Tensor, x: Tensor) -> Tensor:
        """Every cone's x times its number (R, g)."""
        heads, tails = self.split(x)
        return self.join(by * heads, by[:, self.labels] * tails)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """x∘x'."""
        (c, w), (d, u) = self.split(x), self.split(other)
        return self.join(self.inner(x, other), c[:, self.labels] * u + d[:, self.labels] * w)

    def over(self, x: Tensor, by: Tensor) -> Tensor:
        """The r with by∘r = x."""
        w, (d, u) = self.split(x)[1], self.split(by)
        head = self.inner(self.reflect(by), x) / self.determinant(by)
        return self.join(head, (w - head[:, self.labels] * u) / d[:, self.labels])

    def inverse(self, x: Tensor) -> Tensor:
        """The r with x∘r = 1."""
        return self.scale(1 / self.determinant(x), self.reflect(x))

    def room(self, x: Tensor, dx: Tensor) -> Tensor:
        """How far each cone's x may go along dx before it leaves (R, g), +inf where it never does."""
        root = self.determinant(x).clamp(min=1e-300).sqrt()
        x = self.scale(1 / root, x)
        along = self.inner(self.reflect(x), dx)
        (head, tails), (dhead, dtails) = self.split(x), self.split(dx)
        off = dtails - ((along + dhead) / (head + 1))[:, self.labels] * tails
        speed = (self.sums(off.square()).sqrt() - along) / root
        return torch.where(speed > 0, 1 / speed, torch.inf)


@dataclass(frozen=True, eq=False)
class Scaling:
    """W of slacks y and multipliers z, with ŵ and λ."""

    of: Cones
    eta: Tensor
    w: Tensor
    v: Tensor
    point: Tensor

    @staticmethod
    def between(of: Cones, y: Tensor, z: Tensor) -> Scaling:
        dy, dz = (of.determinant(x).clamp(min=1e-300) for x in (y, z))
        y_, z_ = of.scale(dy.rsqrt(), y), of.scale(dz.rsqrt(), z)
        gamma = ((1 + of.inner(y_, z_)) / 2).sqrt()
        w = of.scale(0.5 / gamma, y_ + of.reflect(z_))
        v = of.scale((2 * (w[:, : of.count] + 1)).rsqrt(), w + of.unit(w))
        eta = (dy / dz) ** 0.25
        half = Scaling(of, eta, w, v, w)
        return Scaling(of, eta, w, v, half.root(z))

    def root(self, x: Tensor) -> Tensor:
        """W x."""
        of = self.of
        return of.scale(self.eta, of.scale(2 * of.inner(self.v, x), self.v) - of.reflect(x))

    def unroot(self, x: Tensor) -> Tensor:
        """W⁻¹ x."""
        of, v = self.of, self.of.reflect(self.v)
        return of.scale(1 / self.eta, of.scale(2 * of.inner(v, x), v) - of.reflect(x))

    def square(self) -> Tensor:
        """λ∘λ."""
        return self.of.times(self.point, self.point)

    def cross(self, dy: Tensor, dz: Tensor) -> Tensor:
        """(W⁻¹Δy)∘(WΔz)."""
        return self.of.times(self.unroot(dy), self.root(dz))

    def weigh(self, x: Tensor) -> Tensor:
        """W⁻² x."""
        return self.unroot(self.unroot(x))

    def lead(self, products: Tensor) -> Tensor:
        """W⁻¹(λ⁻¹∘products)."""
        return self.unroot(self.of.over(products, self.point))

    def slack(self, products: Tensor, dz: Tensor) -> Tensor:
        """The Δy of WΔz + W⁻¹Δy = −λ⁻¹∘products."""
        return -self.root(self.of.over(products, self.point) + self.root(dz))

    def reduced(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W⁻² = [α βᵀ; β Γ] without its heads: (α (R, g), −β/α (R, n), diagonal of Γ − ββᵀ/α (R, n), its entries at `pairs` (2, k) of one group)."""
        of, scale = self.of, self.eta**-2
        heads, tails = of.split(self.w)
        squares = tails.square()
        across = of.sums(squares)
        wide = 1 + 2 * across  # 2ŵ₀² − 1
        diagonal = (scale / wide)[:, of.labels] * (1 + 2 * (across[:, of.labels] - squares).clamp(min=0))
        i, j = pairs
        beside = -2 * (scale / wide)[:, of.labels[i]] * tails[:, i] * tails[:, j]
        return scale * wide, (2 * heads / wide)[:, of.labels] * tails, diagonal, beside
