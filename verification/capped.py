r"""Rows that narrow each other: where a sound row of a larger scale does not fall, no flip is left to look for.

    a·δ + b ≤ m(δ)  on R_r      ⇒      every flip in R_r lies in the cap  { δ ∈ R_r : a·δ + b ≤ 0 }

so the next row of that margin only has to hold on the cap, where the layers have far tighter bounds (Kotha et al. 2023 bound preimages so). Both rows fall
at a flip, hence so does every mixture of theirs, and the nearest point of the best one is the new bound (Lagrange's dual of the program with both):

    v_k ≥ min(r, w),     w = max_θ min { ‖Wδ‖ : ((1−θ)a + θa')·δ + (1−θ)b + θb' ≤ 0, δ ∈ C }

The mixture cuts the next cap. A mixture found at r holds on every smaller region too, so it is carried along as the radius closes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formulations.caps import Cap
from formulations.norms import INF
from formulations.support import Region
from verification.lirpa import BoundEngine, BoundMethod

STEPS = 3  # caps at one radius
MIXTURES = 7  # in a grid
GROW = 1.15  # of what is proved: the next radius while none has failed
CLOSE = 5e-3  # relative distance of what is proved and what failed, below which an input is done
USEFUL = 1e-3  # relative gain of a row below which a pair is given up at this radius


class CappedRows:
    """What is proved row by row: `proved` (n, K), raised by each `look`; the radius of an input lies between its least and `high`."""

    def __init__(
        self, engine: BoundEngine, x: Tensor, Q: Tensor, s: Tensor, real: Tensor, region: Region, how: BoundMethod, proved: Tensor
    ) -> None:
        self.engine, self.x, self.Q, self.s, self.real, self.region, self.how = engine, x, Q, s, real, region, how
        self.proved = torch.where(real, proved, INF)
        self.high = torch.full_like(s[:, 0], INF)
        self.a, self.b = torch.zeros(*s.shape, engine.dim, dtype=s.dtype, device=s.device), torch.full_like(s, -INF)
        self.holds = torch.full_like(s, -INF)  # radius up to which the carried row is a minorant where flips are

    @property
    def lower(self) -> Tensor:
        """(n,) proved."""
        return self.proved.amin(1)

    def between(self) -> Tensor:
        """The next radius (n,), NaN where there is nothing left to find: half way to what failed, else GROW times what is proved."""
        low = self.lower
        step = torch.where(torch.isfinite(self.high), (low + self.high) / 2, GROW * low)
        return torch.where(torch.isfinite(low) & (low > 0) & (self.high > low * (1 + CLOSE)), step, torch.nan)

    def look(self, r: Tensor) -> Tensor:
        """Every pair of input and row that is not proved up to r (n,) is looked at on its caps; what is proved at r (n,), NaN where r is."""
        asked = torch.isfinite(r)
        at = torch.nonzero(asked).flatten()
        if len(at):
            region = self.region.take(at).with_radius(r[at])
            rows = self.engine.rows(self.x[at], self.Q[at], self.s[at], region, self.how)
            plain, b = rows.a, rows.b
            i, k = torch.nonzero(self.real[at] & torch.isfinite(b) & (self.proved[at] < r[at, None])).T
            self._narrow(at[i], k, region.take(i), plain[i, k], b[i, k], r[at[i]])
            self.high[at] = torch.where(self.lower[at] < r[at], torch.minimum(self.high[at], r[at]), self.high[at])
        covers = r >= self.region.reach() * (1 + 1e-9)
        return torch.where(asked, torch.where(covers, self.lower, torch.minimum(r, self.lower)), torch.nan)

    def _narrow(self, i: Tensor, k: Tensor, region: Region, a: Tensor, b: Tensor, r: Tensor) -> None:
        """Pairs (i, k) with their plain rows on the regions: the rows are narrowed STEPS times, and what they prove is noted."""
        covers = r >= region.reach() * (1 + 1e-9)
        carried = self.holds[i, k] >= r
        a, b, w = mixed(region, a, b, self.a[i, k], torch.where(carried, self.b[i, k], -INF))
        todo, before = torch.arange(len(i), device=r.device), w
        for step in range(STEPS + 1):
            here = i[todo], k[todo]
            self.a[here], self.b[here], self.holds[here] = a[todo], b[todo], r[todo]
            value = torch.where(covers[todo], w[todo], torch.minimum(r[todo], w[todo]))
            self.proved[here] = torch.maximum(self.proved[here], value)
            if step:
                todo = todo[w[todo] > before[todo] * (1 + USEFUL)]
            todo = todo[w[todo] < r[todo]]
            if step == STEPS or not len(todo):
                return
            before = w.clone()
            cap = Cap.of(region.take(todo), a[todo], b[todo])
            j, l = i[todo], k[todo]
            new = self.engine.rows(self.x[j], self.Q[j, l][:, None], self.s[j, l][:, None], cap, self.how, part=True)
            a[todo], b[todo], far = mixed(region.take(todo), a[todo], b[todo], new.a[:, 0], new.b[:, 0])
            w[todo] = torch.where(new.lower[:, 0] > 0, INF, torch.maximum(w[todo], far))  # the margin is positive on all of the cap


def mixed(region: Region, a: Tensor, b: Tensor, other: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, w): the mixture of rows a·δ + b and other·δ + level whose nearest point is farthest, and its distance; the first where level is −inf."""
    known = torch.isfinite(level)
    level, most, each = torch.where(known, level, 0.0), known.to(a.dtype), torch.arange(len(a), device=a.device)
    theta, width = most / 2, most / 2
    for _ in range(2):  # the distance has one hill in θ: the second grid lies between the neighbours of the best of the first
        grid = (theta[:, None] + width[:, None] * torch.linspace(-1, 1, MIXTURES, dtype=a.dtype, device=a.device)).clamp(0, 1)
        A = (1 - grid)[..., None] * a[:, None] + grid[..., None] * other[:, None]
        B = (1 - grid) * b[:, None] + grid * level[:, None]
        w, best = region.distance(A, B).max(1)
        theta, width = grid[each, best], width * 2 / (MIXTURES - 1)
    return A[each, best], B[each, best], w
