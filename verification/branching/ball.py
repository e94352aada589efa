r"""Linear functions over the changes that can still flip: the region { ‖v‖_p ≤ R } ∩ C of one question, cut by a half-space. v = Wδ throughout.

Where every change that matters satisfies a·v + b ≤ 0, a linear function is asked for over that *cap* only:

    max { A·v : v in the region, a·v + b ≤ 0 }  ≤  h(γ) = σ(A − γa) − γb          for ANY γ ≥ 0   (weak duality)

h is convex. Its minimum is bracketed by tangents, for a whole batch of rows at once, in float32; the bound is h at the γ found, evaluated in float64.
σ is itself a dual bound, in a multiplier of the ball and its boxes (verification/branching/face.py) and multipliers u of the pieces that are no boxes
(verification/branching/coupled.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from formulations.coupling import Coupling, CutCoupling
from formulations.norms import INF
from formulations.support import Region
from verification.branching.coupled import COLD as COLD_STEPS
from verification.branching.coupled import WARM as WARM_STEPS
from verification.branching.coupled import Memory, Pull, climb
from verification.branching.face import Face

PAD = 1e-11  # what rounding in float64 may take from a bound, relative to 1 + |bound|: far more than it can
CHUNK = 1 << 20  # numbers in one temporary
COLD, WARM = 9, 4  # tangent rounds without and with a γ to start from
SHRINK = 0.1  # of the bracket at least, per round


@dataclass(frozen=True, eq=False)
class Ball:
    """The region of one question: one input, one radius, shared by all nodes. `tight`: are the first layer's lines taken over its box (facets.py)?"""

    region: Region
    face: Face
    quick: Face
    memory: Memory
    tight: bool = False

    @staticmethod
    def of(region: Region, radius: float, memory: Memory | None = None, tight: bool = False) -> Ball:
        """From the region of one input, at this radius."""
        at = region.with_radius(torch.tensor([radius], dtype=region.lo.dtype))
        r = float(at.radius[0])
        lo, hi = at.lo[0].clamp(min=-r, max=r), at.hi[0].clamp(min=-r, max=r)
        face = Face(at.p, r, lo, hi, (lo + hi) / 2, (hi - lo) / 2)
        return Ball(at, face, face.to(torch.float32), memory or Memory(), tight and at.p == INF)

    @property
    def radius(self) -> float:
        return self.face.radius

    @property
    def holds_zero(self) -> bool:
        """Do the boxes hold δ = 0? Where they do not, caps are left out: bounds are then those of the region."""
        return bool((self.face.lo <= 0).all() and (self.face.hi >= 0).all())

    def support(self, A: Tensor, name: tuple[str, int] | None = None) -> Tensor:
        """An upper bound (n, s) of max A·v over the region, for rows A (n, s, d); `name`: where the multipliers of like rows are kept."""
        if self.region.coupling is None:
            value, _, _ = self.face.peak(A, None)
            return value + PAD * (1 + value.abs())
        every = torch.arange(A.shape[1], device=A.device).expand(A.shape[:2])
        pull = self.pull(A, None if name is None else self.memory.recall(name, every))
        if name is not None:
            self.memory.keep(name, A.shape[1], every[0], pull.at(0))
        value = torch.minimum(self.over(A, pull.u).nan_to_num(nan=INF), self.face.peak(A, None)[0])
        return value + PAD * (1 + value.abs())

    def cap(self, A: Tensor, a: Tensor, b: Tensor, gamma: Tensor | None = None, start: Pull | None = None) -> Capped:
        """(bound, γ), each (n, s), and the set's multipliers: an upper bound of max A·v over the region and a·v + b ≤ 0, for rows A (n, s, d), a (n, d), b (n,)."""
        if not self.holds_zero:
            return self.support(A), torch.zeros_like(A[..., 0]), None
        width, step = max(1, CHUNK // A[0].numel()), max(1, CHUNK // A.shape[2])
        if len(A) > width:
            pieces = [slice(k, k + width) for k in range(0, len(A), width)]
            parts = [
                self.cap(A[i], a[i], b[i], None if gamma is None else gamma[i], None if start is None else start.at(i)) for i in pieces
            ]
            return joined(parts, 0)
        if A.shape[1] > step:
            pieces = [slice(k, k + step) for k in range(0, A.shape[1], step)]
            parts = [
                self.cap(A[:, i], a, b, None if gamma is None else gamma[:, i], None if start is None else start.at((slice(None), i)))
                for i in pieces
            ]
            return joined(parts, 1)
        if self.region.coupling is None:
            value, g, _ = self._tangents(A, a, b, gamma)
            return value + PAD * (1 + value.abs() + g * b.abs()[:, None]), g, None  # γb cancels against σ: what it is rounded to counts
        return self._coupled(A, a, b, start)

    def _tangents(self, A: Tensor, a: Tensor, b: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Minimise h over γ row by row; (h in float64 at the γ found, γ, μ)."""
        rows, cut, off = A.float(), a.float().unsqueeze(1), b.float().unsqueeze(1)
        column = cut.transpose(1, 2)
        low, low_h, low_s = torch.zeros_like(rows[..., 0]), None, None
        if gamma is None:
            value, v, mu = self.quick.peak(rows, None)
            slope = -((v @ column).squeeze(-1) + off)
            best, best_h, best_mu, low_h, low_s = low, value, mu, value, slope
            g = 0.3 * rows.norm(dim=-1) / cut.norm(dim=-1).clamp(min=1e-30)
            settled = slope >= 0  # the maximiser of the whole region lies in the cap
        else:
            best = low
            best_h, best_mu = torch.full_like(low, INF), torch.zeros_like(low)
            mu, g = None, gamma.float()
            low_h, low_s = torch.full_like(low, INF), torch.full_like(low, -INF)
            settled = torch.zeros_like(low, dtype=torch.bool)
        high, high_h, high_s = torch.full_like(low, INF), torch.zeros_like(low), torch.zeros_like(low)
        known = torch.full_like(settled, gamma is None)  # is the low end a point that was evaluated?
        for _ in range(COLD if gamma is None else WARM):
            value, v, mu = self.quick.peak(torch.addcmul(rows, g.unsqueeze(-1), cut, value=-1), mu)
            value = value - g * off
            slope = -((v @ column).squeeze(-1) + off)
            better = (value < best_h) & ~settled
            best, best_h, best_mu = torch.where(better, g, best), torch.where(better, value, best_h), torch.where(better, mu, best_mu)
            left = slope < 0
            low, low_h, low_s = torch.where(left, g, low), torch.where(left, value, low_h), torch.where(left, slope, low_s)
            high, high_h, high_s = torch.where(left, high, g), torch.where(left, high_h, value), torch.where(left, high_s, slope)
            known = known | left
            width = high - low
            crossing = (high_h - low_h + low_s * low - high_s * high) / (low_s - high_s).clamp(max=-1e-30)
            crossing = torch.minimum(torch.maximum(crossing, low + SHRINK * width), high - SHRINK * width)
            crossing = torch.where(known, crossing, high / 2)
            g = torch.where(torch.isfinite(high), crossing, low * 3 + 1e-6).nan_to_num(0.0, 0.0, 0.0)
        best = best.to(A.dtype)
        B = torch.addcmul(A, best.unsqueeze(-1), a.unsqueeze(1), value=-1)
        mu = best_mu.to(A.dtype).clamp(min=1e-18)
        return self.face.bound(B, mu) - best * b.unsqueeze(1), best, mu

    def _coupled(self, A: Tensor, a: Tensor, b: Tensor, start: Pull | None) -> tuple[Tensor, Tensor, Pull]:
        """The same with multipliers u of the other pieces: (u, γ) together, the half-space as one more piece; then γ again at that u."""
        link = self.region.coupling
        assert link is not None
        n, s, d = A.shape
        size = a.norm(dim=-1).clamp(min=1e-30)
        owner = torch.arange(n, device=A.device).repeat_interleave(s)
        cut = CutCoupling.of(link, (a / size[:, None])[owner, None], (-b / size)[owner, None, None]).to(torch.float32)
        pull = self._climb(A.reshape(-1, 1, d), cut, None if start is None else Pull(start.u.flatten(0, 1), start.z.flatten(0, 1)))
        pull = Pull(pull.u.view(n, s, -1), pull.z.view(n, s, -1))
        u = self._feasible(pull.u[..., :-1].to(A.dtype))
        value, gamma, _ = self._tangents(A - link.back(u), a, b, None)
        cost = self.sigma(u)
        value = value + cost
        return value + PAD * (1 + value.abs() + cost.abs() + gamma * b.abs()[:, None]), gamma, pull

    def pull(self, B: Tensor, start: Pull | None = None, steps: int | None = None) -> Pull:
        """Good multipliers for max B·v over the region, B (n, s, d); any are valid."""
        link = self.region.coupling
        assert link is not None
        begin = None if start is None else Pull(start.u.flatten(0, 1), start.z.flatten(0, 1))
        found = self._climb(B.detach().reshape(-1, 1, B.shape[-1]), link.to(torch.float32), begin, steps)
        return Pull(found.u.view(*B.shape[:-1], -1), found.z.view(*B.shape[:-1], -1))

    def over(self, B: Tensor, u: Tensor) -> Tensor:
        """The bound of max B·v that multipliers u (n, s, m) give, in float64."""
        link = self.region.coupling
        assert link is not None
        exact = self._feasible(u.to(B.dtype))
        return self.face.peak(B - link.back(exact), None)[0] + self.sigma(exact)

    def _climb(self, rows: Tensor, link: Coupling, start: Pull | None, steps: int | None = None) -> Pull:
        """Multipliers for rows (R, 1, d), in float32: the best of the candidates that ADMM ends with."""
        lo, hi = (v.float().clamp(-self.radius, self.radius)[None, None] for v in (self.face.lo, self.face.hi))
        width, out = max(1, CHUNK // (rows.shape[-1] + link.size)), []
        for k in range(0, len(rows), width):
            part = rows[k : k + width].float()
            here = link.take(torch.arange(k, k + len(part), device=rows.device))
            begin = None if start is None else start.at(slice(k, k + width))
            radius = part.new_full((len(part), 1), self.radius)
            _, v, _ = self.quick.peak(part, None)
            count = steps or (COLD_STEPS if begin is None else WARM_STEPS)
            us, state = climb(part, here, lo, hi, radius, self.region.p, v.norm(dim=-1), begin, count)
            value = self.quick.peak(part - here.back(us), None)[0] + self._levels(here, us)
            at = value.nan_to_num(nan=INF).argmin(1)
            best = us.gather(1, at.view(-1, 1, 1).expand(-1, 1, us.shape[-1]))[:, 0]
            out.append(Pull(best, state.z))
        return Pull(torch.cat([x.u for x in out]), torch.cat([x.z for x in out]))

    def _feasible(self, u: Tensor) -> Tensor:
        link = self.region.coupling
        assert link is not None
        return torch.cat([block.feasible(u[..., where]) for where, block in link.blocks], -1)

    def sigma(self, u: Tensor) -> Tensor:
        """Σ_j σ_j(u) (n, s): what the multipliers of the other pieces cost at this radius."""
        assert self.region.coupling is not None
        return self._levels(self.region.coupling, u)

    def _levels(self, link: Coupling, u: Tensor) -> Tensor:
        level = self.radius**2 / 2 if self.region.p == 2.0 else self.radius
        total = torch.zeros_like(u[..., 0])
        for where, block in link.blocks:
            constant, slope = block.sigma(u[..., where])
            total = total + constant + slope * level
        return total


Capped = tuple[Tensor, Tensor, Pull | None]


def joined(parts: list[Capped], dim: int) -> Capped:
    pulls = [p for _, _, p in parts if p is not None]
    pull = Pull(torch.cat([p.u for p in pulls], dim), torch.cat([p.z for p in pulls], dim)) if len(pulls) == len(parts) else None
    return torch.cat([v for v, _, _ in parts], dim), torch.cat([g for _, g, _ in parts], dim), pull
