r"""min f(v), v ∈ box, a·v ≤ h, K v ∈ S with S of rows and of balls of norms 1, ∞ and Σ_g ω_g‖·‖₂, as inequalities G(v, c) + y = h, y ≥ 0, multipliers z ≥ 0.

With w = (v, Kv, â·v) and caps c of the absolute values, or lengths of groups, that a norm or a ball adds up,

    ranges    w ≤ u,  −w ≤ −l                 box, rows, ∞-balls, the row
    pairs     w − c ≤ −e,  −w − c ≤ e         1-balls, and ‖·‖:  f = Σc for p = 1, f = c, one for all, for p = ∞
    budgets   Σ ω c ≤ ρ                       of each ball (its multiplier ζ)
    cones     ‖w + e‖ ≤ c                     of each group (cones.py); y and z lie in the cone

`newton.py` has the steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from formulations.coupling import Ball, Coupling, CutCoupling, Rows
from formulations.norms import INF
from verification.dual_network.cones import Cones, Scaling

LARGEST = 4  # entries of a group up to which its weights have room in the bands


class Parts(NamedTuple):
    """Of y, z, h or a residual."""

    up: Tensor
    down: Tensor
    plus: Tensor
    minus: Tensor
    budgets: Tensor
    cones: Tensor


def expressible(blocks: tuple[tuple[slice, Rows | Ball], ...]) -> bool:
    """Are all pieces rows, unweighted 1- and ∞-balls, or balls of small groups, of given radii?"""
    return all(
        isinstance(b, Rows) or (b.rho is not None and (b.p in (1, INF) if b.labels is None else _small(b.labels))) for _, b in blocks
    )


def couples(link: Coupling) -> Tensor:
    """Pairs (2, k) of rows of K that lie in one group."""
    found = [torch.zeros(2, 0, dtype=torch.long, device=link.K.device)]
    found += [where.start + _mates(block.labels) for where, block in link.blocks if isinstance(block, Ball) and block.labels is not None]
    return torch.cat(found, 1)


@dataclass(frozen=True, eq=False)
class Inequalities:
    """Right sides h (R, N), those that are there `finite`, for the p of the norm. `link` ends in the row.

    ranges, pairs, tails: slices of w; `cones` the groups of the tails. Caps c are those of pairs, then those of groups; `load` (1, C) their ω, `balls` the
    caps of each budget, as slices. For p = 1, ∞ the first d pairs are the norm's. `beside` (2, k): tails of one group.
    """

    link: CutCoupling
    p: float
    ranges: tuple[slice, ...]
    pairs: tuple[slice, ...]
    tails: tuple[slice, ...]
    cones: Cones
    balls: tuple[slice, ...]
    load: Tensor
    beside: Tensor
    h: Tensor
    finite: Tensor

    @staticmethod
    def of(link: CutCoupling, lo: Tensor, hi: Tensor, p: float, widen: Tensor) -> Inequalities:
        """From the box (R, d) and the blocks of `link`, all by `widen` (R, 1) wider, so that there is an inside."""
        (R, d), table = lo.shape, _Table()
        table.ranges.append((slice(0, d), hi, -lo))
        if p != 2:
            table.pairs.append((slice(0, d), torch.zeros_like(lo)))
        for where, block in link.blocks:
            table.add(slice(d + where.start, d + where.stop), block, R)
        labels, load, ends = [lo.new_zeros(0, dtype=torch.long)], [], [0 if p == 2 else d]
        groups, pairs, mates = 0, sum(e.shape[1] for _, e in table.pairs), [labels[0].new_zeros(2, 0)]
        for _, _, block_labels, omega in table.groups:
            mates.append(sum(len(v) for v in labels) + _mates(block_labels))
            labels.append(block_labels + groups)
            load.append(omega)
            groups += len(omega)
        cones = Cones(torch.cat(labels), groups)
        for n in (*(n for n, _ in table.summed), *(len(v) for v in load)):
            ends.append(ends[-1] + n)
        shift, tails = [e for _, e in table.pairs], [e for _, e, _, _ in table.groups]
        budgets = [rho for _, rho in (*table.summed, *table.grouped)]
        h = torch.cat([
            *(u for _, u, _ in table.ranges), *(l for _, _, l in table.ranges), *(-e for e in shift), *shift, *budgets, lo.new_zeros(R, groups), *tails
        ], -1)  # fmt: skip
        finite, n = torch.isfinite(h), h.shape[1] - len(cones.labels)
        wide = torch.where(finite, torch.cat([h[:, :n] + widen, h[:, n:]], -1), 0.0)  # a cone is widened at its head
        return Inequalities(
            link, p, tuple(at for at, _, _ in table.ranges), tuple(at for at, _ in table.pairs), tuple(at for at, _, _, _ in table.groups), cones,
            tuple(slice(i, j) for i, j in pairwise(ends)), torch.cat([lo.new_ones(1, pairs), *(v[None] for v in load)], -1), torch.cat(mates, 1), wide, finite,
        )  # fmt: skip

    def take(self, index: Tensor) -> Inequalities:
        return replace(self, link=self.link.take(index), h=self.h[index], finite=self.finite[index])

    @property
    def dim(self) -> int:
        return int(self.link.cut.shape[-1])

    @property
    def norm(self) -> slice:
        """The norm's own pairs, as a slice of c."""
        return slice(0, 0 if self.p == 2 else self.dim)

    @property
    def straight(self) -> int:
        """How many inequalities are numbers; those of the cones follow."""
        return int(self.h.shape[1]) - self.cones.count - len(self.cones.labels)

    @property
    def degree(self) -> Tensor:
        """Numbers and cones (R, 1): what y·z is shared by."""
        return self.finite[:, : self.straight].sum(-1, keepdim=True) + self.cones.count

    def parts(self, z: Tensor) -> Parts:
        n, k = (sum(s.stop - s.start for s in of) for of in (self.ranges, self.pairs))
        return Parts(*torch.split(z, [n, n, k, k, len(self.balls), z.shape[1] - self.straight], -1))

    def image(self, v: Tensor) -> Tensor:
        """w (R, d + m + 1)."""
        return torch.cat([v, self.link.apply(v[:, None])[:, 0]], -1)

    def pull(self, w: Tensor) -> Tensor:
        """The adjoint of `image`."""
        back: Tensor = w[:, : self.dim] + self.link.back(w[:, None, self.dim :])[:, 0]
        return back

    def of_entries(self, caps: Tensor) -> Tensor:
        """Numbers of the caps (…, C), to each pair and tail that of its own."""
        k = caps.shape[-1] - self.cones.count
        return torch.cat([caps[..., :k], caps[..., k:][..., self.cones.labels]], -1) if self.cones.count else caps

    def gather(self, w: Tensor, of: tuple[slice, ...]) -> Tensor:
        return torch.cat([w[:, s] for s in of], -1) if of else w[:, :0]

    def spread(self, ranges: Tensor, entries: Tensor) -> Tensor:
        """Numbers of the ranges, and of the pairs and tails, at their places in w."""
        w = ranges.new_zeros(len(ranges), self.dim + self.link.size)
        for of, numbers in ((self.ranges, ranges), ((*self.pairs, *self.tails), entries)):
            begun = 0
            for s in of:
                w[:, s] += numbers[:, begun : begun + s.stop - s.start]
                begun += s.stop - s.start
        return w

    def apply(self, w: Tensor, c: Tensor) -> Tensor:
        """G (R, N) of an image and caps."""
        r, q, k = self.gather(w, self.ranges), self.gather(w, self.pairs), c.shape[1] - self.cones.count
        budgets = [(self.load[:, b] * c[:, b]).sum(-1, keepdim=True) for b in self.balls]
        return torch.cat([r, -r, q - c[:, :k], -q - c[:, :k], *budgets, -c[:, k:], -self.gather(w, self.tails)], -1)

    def multipliers(self, z: Tensor) -> Tensor:
        """Of w (R, d + m + 1)."""
        of = self.parts(z)
        return self.spread(of.up - of.down, torch.cat([of.plus - of.minus, -self.cones.split(of.cones)[1]], -1))

    def slopes(self, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What of the Lagrangian's derivatives in v and in c is left; of p = ∞ the cap's own is the sum over the norm's pairs, and 1 for each is their share."""
        of = self.parts(z)
        in_v = self.pull(self.multipliers(z))
        in_c = -torch.cat([of.plus + of.minus, self.cones.split(of.cones)[0]], -1)
        for j, ball in enumerate(self.balls):
            in_c[:, ball] += self.load[:, ball] * of.budgets[:, j : j + 1]
        in_c[:, self.norm] += 1.0 if self.p == 1 else 1.0 / max(self.norm.stop, 1)
        return (in_v + v if self.p == 2 else in_v), in_c

    def room(self, y: Tensor, dy: Tensor) -> Tensor:
        """How far y may go along Δy, at most 1 (R, 1)."""
        k = self.straight
        far = torch.where(self.finite[:, :k] & (dy[:, :k] < 0), -y[:, :k] / dy[:, :k], INF).amin(-1, keepdim=True)
        if self.cones.count:
            far = torch.minimum(far, self.cones.room(y[:, k:], dy[:, k:]).amin(-1, keepdim=True))
        return far.clamp(max=1.0)


class _Table:
    """What the blocks add: ranges with upper bounds of w and of −w, pairs and tails with their e, budgets with how many caps they sum."""

    def __init__(self) -> None:
        self.ranges: list[tuple[slice, Tensor, Tensor]] = []
        self.pairs: list[tuple[slice, Tensor]] = []
        self.groups: list[tuple[slice, Tensor, Tensor, Tensor]] = []
        self.summed: list[tuple[int, Tensor]] = []
        self.grouped: list[tuple[int, Tensor]] = []

    def add(self, at: slice, block: Rows | Ball, count: int) -> None:
        if isinstance(block, Rows):
            h = block.h[:, 0].expand(count, -1)
            self.ranges.append((at, h, -h if block.equality else torch.full_like(h, INF)))
            return
        assert block.rho is not None
        e, rho = block.e[:, 0].expand(count, -1), block.rho.expand(count, 1)
        if block.labels is not None and block.omega is not None:
            self.groups.append((at, e, block.labels, block.omega))
            self.grouped.append((len(block.omega), rho))
        elif block.p == INF:
            self.ranges.append((at, rho - e, rho + e))
        else:
            self.pairs.append((at, e))
            self.summed.append((e.shape[1], rho))


@dataclass(frozen=True, eq=False)
class Complementarity:
    """y z = 0 and λ∘λ = 0 about (y, z): W = z/y of the numbers, Nesterov and Todd's of the cones. Numbers that are not there have z = Δz = Δy = 0."""

    of: Inequalities
    y: Tensor
    z: Tensor
    W: Tensor
    cones: Scaling

    @staticmethod
    def about(of: Inequalities, y: Tensor, z: Tensor) -> Complementarity:
        k = of.straight
        W = z[:, :k] / y[:, :k]  # 0 where y = 1 and z = 0 stand for what is not there
        return Complementarity(of, y[:, :k], z[:, :k], W, Scaling.between(of.cones, y[:, k:], z[:, k:]))

    def _join(self, numbers: Tensor, cones: Tensor) -> Tensor:
        k = self.of.straight
        there = torch.where(self.of.finite[:, :k], numbers, 0.0)
        return torch.cat([there, cones], -1) if cones.shape[1] else there

    def products(self) -> Tensor:
        """y z, and λ∘λ."""
        return self._join(self.y * self.z, self.cones.square())

    def corrected(self, dy: Tensor, dz: Tensor, mu: Tensor) -> Tensor:
        """y z + Δy Δz − μ, and the same of the cones."""
        k, s = self.of.straight, self.cones
        numbers = self.y * self.z + dy[:, :k] * dz[:, :k] - mu
        return self._join(numbers, s.square() + s.cross(dy[:, k:], dz[:, k:]) - mu * s.of.unit(dy[:, k:]))

    def lead(self, products: Tensor, residual: Tensor) -> Tensor:
        """q of Δz = W GΔ + q."""
        k, s = self.of.straight, self.cones
        return self._join(self.W * residual[:, :k] - products[:, :k] / self.y, s.weigh(residual[:, k:]) - s.lead(products[:, k:]))

    def rise(self, image: Tensor, q: Tensor) -> Tensor:
        """Δz of GΔ."""
        k = self.of.straight
        return self._join(self.W * image[:, :k] + q[:, :k], self.cones.weigh(image[:, k:]) + q[:, k:])

    def slack(self, products: Tensor, dz: Tensor) -> Tensor:
        """Δy."""
        k = self.of.straight
        return self._join(-(products[:, :k] + self.y * dz[:, :k]) / self.z, self.cones.slack(products[:, k:], dz[:, k:]))


def _small(labels: Tensor) -> bool:
    return bool(torch.bincount(labels).max() <= LARGEST)


def _mates(labels: Tensor) -> Tensor:
    """Pairs (2, k) of one label."""
    order = torch.argsort(labels, stable=True)
    label = labels[order]
    found = [torch.stack([order[:-k][label[k:] == label[:-k]], order[k:][label[k:] == label[:-k]]]) for k in range(1, LARGEST)]
    return torch.cat(found, 1)
