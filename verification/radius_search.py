r"""The lockstep search for the radius at which minorant rows are worth most.

Rows that hold on R_r = C ∩ {‖Wδ‖ ≤ r} prove  v* ≥ min(r, w(r)),  w(r) = min_k min { ‖Wδ‖ : a_k·δ + b_k ≤ 0, δ ∈ C }: a flip within r would have to be one of the
rows'. w falls as r grows (relaxations loosen), so the best r is the fixpoint of w. Each pass brackets it from both sides: w(r) ≥ r certifies r and the
fixpoint lies above, w(r) < r certifies w(r) and it lies in [w(r), r]. Fixed slopes may make w jump; the best value seen is kept, whatever the bracket does.
Once r covers all of C the rows hold on C, and w(r) is a bound by itself: +∞ says that no allowed change flips the decision.

Every item (an input with all rivals, or with one) has its own radius; a pass is one call of the engine for all items that are still open.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from formulations.support import Region
from verification.evidence import InnerSlopes, inner_slopes
from verification.lirpa import BoundEngine, BoundMethod
from verification.radii import SearchStop

Progress = Callable[[int, int], None]
COVERS = 1 + 1e-9  # a radius this far beyond the set's reach certainly covers it
FAR = 1e6  # first radius, in units of 1 + ‖x0‖, when nothing else gives a scale
HORIZON = 1e12  # a certified radius beyond which the search climbs no further


class RadiusSearch:
    """State of N searches: `value` (N,) certified so far, with the rows `a` (N, K, d), `b` (N, K) and the `radius` (N,) that prove it (inf: on all of C)."""

    def __init__(self, engine: BoundEngine, x: Tensor, Q: Tensor, s: Tensor, region: Region, method: BoundMethod, start: Tensor) -> None:
        self.engine, self.x, self.Q, self.s, self.region, self.method = engine, x, Q, s, region, method
        n, K = s.shape
        self.reach = region.reach() * COVERS
        self.r = torch.minimum(start, self.reach)
        self.value, self.low, self.high = (x.new_zeros(n) for _ in range(3))
        self.high += torch.inf
        self.radius = x.new_zeros(n)
        self.a, self.b = x.new_zeros(n, K, region.dim), x.new_full((n, K), -torch.inf)
        self.slopes: tuple[Tensor, ...] = ()  # of the lines in these rows and in the bounds under them, where the engine tells them
        self.inner: dict[int, tuple[InnerSlopes, ...]] = {}
        self.last = x.new_full((2, n), torch.nan)  # (r, w − r) of the pass before, for secants
        self.open = torch.ones(n, dtype=torch.bool, device=x.device)
        self.passes = 0

    def run(self, tolerance: float, max_passes: int, seconds: float | None, progress: Progress | None) -> SearchStop:
        """Passes until every bracket is narrower than `tolerance` (relative), or a limit."""
        begun = time.monotonic()
        try:
            while bool(self.open.any()):
                if self.passes >= max_passes or (seconds is not None and time.monotonic() - begun > seconds):
                    return SearchStop.LIMIT
                self._pass(torch.nonzero(self.open).flatten(), tolerance)
                if progress is not None:
                    progress(int((~self.open).sum()), len(self.open))
        except KeyboardInterrupt:
            return SearchStop.INTERRUPTED
        return SearchStop.COMPLETE

    def _pass(self, i: Tensor, tolerance: float) -> None:
        everyone = len(i) == len(self.open)
        r = self.r[i]
        region = (self.region if everyone else self.region.take(i)).with_radius(r)
        rows = self.engine.rows(self.x[i], self.Q[i], self.s[i], region, self.method)
        known = torch.isfinite(rows.b)
        w = torch.where(known, region.distance(rows.a, torch.where(known, rows.b, 0.0)), 0.0).amin(1)
        self.passes += 1
        covers = r >= self.reach[i]
        value = torch.where(covers, w, torch.minimum(r, w))
        better = value > self.value[i]
        j = i[better]
        self.value[j], self.radius[j] = value[better], torch.where(covers, torch.inf, r)[better]
        self.a[j], self.b[j] = rows.a[better], rows.b[better]
        if not self.slopes:
            self.slopes = tuple(v.new_zeros(len(self.open), *v.shape[1:]) for v in rows.slopes)
        for kept, v in zip(self.slopes, rows.slopes, strict=False):
            kept[j] = v[better]
        for at, k in zip(j.tolist(), torch.nonzero(better).flatten().tolist(), strict=True) if rows.inner else ():
            self.inner[at] = tuple(inner_slopes(*pair, v[k].cpu().numpy()) for pair, v in rows.inner.items())
        self._bracket(i, r, w, covers, tolerance)

    def _bracket(self, i: Tensor, r: Tensor, w: Tensor, covers: Tensor, tolerance: float) -> None:
        up = w >= r
        low, high = torch.where(up, r, torch.maximum(self.low[i], w)), torch.where(up, self.high[i], torch.minimum(self.high[i], r))
        low = torch.minimum(torch.maximum(low, self.low[i]), high)
        done = (up & covers) | (high - low <= tolerance * low) | (high < 1e-12) | (low > HORIZON)
        gap, (r0, gap0) = w - r, self.last[:, i]
        secant = r + gap * (r - r0) / (gap0 - gap)
        middle = low + (high - low) / 2
        secant = torch.where(torch.isfinite(secant), secant, middle)
        edge = (high - low) * 0.05
        inside = torch.minimum(torch.maximum(secant, low + edge), high - edge)
        inside = torch.where(low > 0, inside, torch.where(high < torch.inf, high / 4, inside))  # nothing certified yet: by factors
        # no upper end yet: the whole set when the rows never fall, else most of the way to where they do
        ahead = torch.where(torch.isfinite(w), r + 0.7 * (w - r), torch.where(torch.isfinite(self.reach[i]), self.reach[i], 100 * r))
        ahead = torch.minimum(torch.maximum(ahead, 1.05 * r), self.reach[i])
        self.r[i] = torch.where(torch.isfinite(high), inside, ahead)
        self.low[i], self.high[i] = low, high
        self.last[:, i] = torch.stack([r, gap])
        self.open[i] = ~done
