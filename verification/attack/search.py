r"""The search for the nearest witness: sequential linearisation, then a monotone polish, for all inputs × rivals × starts at once.

Approach. At a lane's point δ_k the row m + a·(δ − δ_k) ≤ 0 is met twice: by the shortest allowed δ, and by the allowed δ nearest to δ_k. The next point
lies between the two (as in FAB, Croce & Hein 2020), asking the row to fall a little further. A lane that flips has arrived. The nearest rivals are also met
in growing balls (growing.py). Where nothing flips and the set has no end, rays are followed far out (beyond.py). At p = 1 single entries leap as well
(leaping.py), and what was found walks along the boundary (walking.py).

What flips is polished by trust-region steps (polishing.py). Between rounds of polishing, random changes no longer than the best witness are looked at
(forward passes alone), and approached from where they nearly flip: other pieces of a folded boundary are met this way.

At the end the best witness is solved at its folds (folds.py), and on small chains of ReLUs the regions about the best witnesses are solved exactly (regions.py).

Every point stays in C: C is convex, and points only come from the subproblem or lie between two that do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from formulations.norms import INF, Norm
from verification.attack.answers import Budget, Stop
from verification.attack.beyond import beyond
from verification.attack.effort import Effort
from verification.attack.folds import unfold
from verification.attack.growing import grow
from verification.attack.lanes import Lanes, distinct, place, smallest
from verification.attack.leaping import leap
from verification.attack.network import Network
from verification.attack.polishing import polish
from verification.attack.regions import Hopper
from verification.attack.state import OutOfTime, SearchState
from verification.attack.subproblem import Subproblem
from verification.attack.walking import walk
from verification.relu_chain import ReluChain

OVERSHOOT = 0.02  # while approaching, a row m is asked to fall by this much more of |m|
BLEND = 0.1  # largest share of the answer measured from x0 in a step (FAB's α_max)
APART = 0.8  # samples nearer than this to the best witness, relative to its length, are not walked from


class Search(SearchState):
    """The order of the moves. `chain`: the network as a chain of ReLUs, where it is one small enough for its regions to be solved."""

    def __init__(
        self, net: Network, steps: Subproblem, norm: Norm, budget: Budget, effort: Effort, seeds: list[int], deadline: float,
        tick: Callable[[], None], chain: ReluChain | None = None,
    ) -> None:  # fmt: skip
        super().__init__(net, steps, norm, budget, effort, seeds, deadline, tick)
        self.chain = chain

    def run(self) -> Stop:
        """Search until the starts or the budget are used up; whatever ends it, `best` holds the best so far."""
        try:
            self._search()
        except OutOfTime:
            return Stop.TIME
        except KeyboardInterrupt:
            return Stop.INTERRUPTED
        return Stop.COMPLETE

    def _search(self) -> None:
        everyone = torch.arange(self.net.n, device=self.net.device)
        self.margins, flipped = self.net.margins(self.anchor, everyone)
        self.record(Lanes(everyone, everyone, self.anchor, torch.where(flipped, self.norm_of(self.anchor), INF)))
        open_ = everyone[~flipped]  # nothing is shorter than an anchor that flips
        lanes = self._approach(*self._aim(open_), at_anchor=True)
        if self.effort.growing:
            # by how far they came, flipped or not: where slopes turn much, the nearest row is often the one that was not met
            near = lanes.take(smallest(lanes.who, self.norm_of(lanes.delta), self.effort.growing))
            found = grow(self, near, self.effort.growing_steps)
            if self.steps.boxes and self.norm.p == 1:
                found = self._along(open_, found)
            lanes = Lanes.join(lanes, found)
        if self.effort.probes:
            lanes = Lanes.join(lanes, self._probe(open_, self.effort.probes, 0))
        lost = everyone[~torch.isfinite(self.length)]
        if len(lost):
            starts = self._probe(lost, self.effort.lost_probes, 1)
            still = ~torch.isfinite(self.length[starts.who])
            walked = self._approach(*self._open(starts.take(still.nonzero()[:, 0]), self.effort.rivals), at_anchor=False)
            lanes = Lanes.join(lanes, starts, walked)
            lanes = Lanes.join(lanes, beyond(self, lost[~torch.isfinite(self.length[lost])], self.effort.rays, self.effort.rivals))
        radius = 0.5 * (self.w * (lanes.delta - self.anchor[lanes.who])).abs().amax(1)
        for k, (keep, times) in enumerate(self.effort.polish):
            if k and self.effort.samples:
                fresh = self._explore(open_, lanes, k)
                wide = 0.25 * (self.w * (fresh.delta - self.anchor[fresh.who])).abs().amax(1)
                lanes, radius = Lanes.join(lanes, fresh), torch.cat([radius, wide])[torch.cat([lanes.who, fresh.who]).argsort(stable=True)]
            flipped_lanes = torch.isfinite(lanes.length).nonzero()[:, 0]
            kept = flipped_lanes[smallest(lanes.who[flipped_lanes], lanes.length[flipped_lanes], len(flipped_lanes))]
            kept = kept[distinct(lanes.who[kept], self.w * lanes.delta[kept])]
            kept = kept[place(lanes.who[kept]) < keep]
            lanes, radius = lanes.take(kept), radius[kept]
            for _ in range(times):
                polish(self, lanes, radius)
                self.tick()
        if self.effort.folds:
            best = Lanes(everyone, everyone, self.best, self.length)
            lanes = Lanes.join(lanes, unfold(self, best.take(open_), self.effort.folds))
        self._finish(lanes)
        if self.chain is not None:
            Hopper(self, self.chain).hop(lanes)

    def _along(self, inputs: Tensor, found: Lanes) -> Lanes:
        """The lanes found, leaps beside them, and walks along the boundary from the shortest of both in place of where they began."""
        if self.effort.leaps:
            found = Lanes.join(leap(self, inputs, self.effort.leaps, self.effort.leap_steps), found)
        return walk(self, found, self.effort.walk) if self.effort.walk and len(found) else found

    def _aim(self, inputs: Tensor) -> tuple[Lanes, Tensor, Tensor]:
        """Lanes at the anchors, one for each of the rows that look nearest there, with their margins and gradients."""
        few = min(self.margins.shape[1], 2 * self.effort.rivals)
        row = self.margins[inputs].argsort(dim=1, stable=True)[:, :few]
        real = torch.isfinite(self.margins[inputs].gather(1, row))
        who = inputs[:, None].expand_as(row)[real]
        return self._open(Lanes(who, row[real], self.anchor[who], torch.full_like(self.length[who], INF)), self.effort.rivals)

    def _open(self, lanes: Lanes, count: int) -> tuple[Lanes, Tensor, Tensor]:
        """The `count` lanes of every input whose linearised rows are nearest, with margins (L,) and gradients (L, d) of those rows."""
        lanes = lanes.take(self.affordable(lanes.who, 1, 1))
        margins, _, slope = self.net.linearise(lanes.delta, lanes.who, lanes.row)
        margin = margins.gather(1, lanes.row[:, None])[:, 0]
        near = self.steps.distance(lanes.who, slope, margin - (slope * lanes.delta).sum(1))
        kept = smallest(lanes.who, near, count)
        return lanes.take(kept), margin[kept], slope[kept]

    def _approach(self, lanes: Lanes, margin: Tensor, slope: Tensor, *, at_anchor: bool) -> Lanes:
        """Sequential linearisation of every lane until it flips; `margin`, `slope` belong to the lanes' present points."""
        lanes = Lanes(lanes.who, lanes.row, lanes.delta.clone(), lanes.length.clone())
        alive = torch.arange(len(lanes), device=self.net.device)
        for k in range(self.effort.steps):
            affordable = self.affordable(lanes.who[alive], 1, 1)
            alive, margin, slope = alive[affordable], margin[affordable], slope[affordable]
            if not len(alive):
                break
            now = lanes.take(alive)
            level = margin - (slope * now.delta).sum(1) + OVERSHOOT * margin.abs()
            point = self.steps.step(now.who, slope, level)
            if k or not at_anchor:
                local = self.steps.step(now.who, slope, level, origin=now.delta)
                far, short = self.norm_of(point), self.norm_of(local - now.delta)
                blend = (short / (short + far).clamp(min=1e-300)).clamp(max=BLEND)
                point = local + blend[:, None] * (point - local)
            margins, flipped, slope = self.net.linearise(point, now.who, now.row)
            lanes.put(alive, point, torch.where(flipped, self.norm_of(point), INF))
            self.record(lanes.take(alive))
            going = ~flipped
            alive, margin, slope = alive[going], margins.gather(1, now.row[:, None])[going, 0], slope[going]
            self.tick()
        return lanes

    def _probe(self, inputs: Tensor, count: int, salt: int) -> Lanes:
        """Random extreme points of C, drawn in (¼, ½ or 1 of the way out), at the crossing where they flip; where nothing flips, as starts."""
        who = inputs.repeat_interleave(count)
        affordable = self.affordable(who, 3 + self.effort.crossing + self.effort.saturated, 0)
        who, push = who[affordable], self.random(inputs, count, salt)[affordable]
        base = self.anchor[who]
        reach = 10 * (1 + self.net.x0[who].abs().amax(1)) * self.norm_of(push).clamp(min=1e-300)  # where C has no end: a long way out
        far = self.steps.step(who, push, reach - (push * base).sum(1))
        point, margins, flipped = base, self.margins[who], torch.zeros_like(who, dtype=torch.bool)
        for t in (0.25, 0.5, 1.0):
            further = base + t * (far - base)
            here, flips = self.net.margins(further, who)
            moved = ~flipped
            point, margins = torch.where(moved[:, None], further, point), torch.where(moved[:, None], here, margins)
            flipped = flipped | flips
        row = margins.argmin(1)
        crossing = self.cross(point, margins.amin(1), base, self.margins[who].amin(1), ~flipped, who, self.effort.crossing)
        point = torch.where(flipped[:, None], crossing, point)
        lanes = Lanes(who, row, point, torch.where(flipped, self.norm_of(point), INF))
        self.record(lanes)
        self.tick()
        return lanes

    def _explore(self, inputs: Tensor, lanes: Lanes, salt: int) -> Lanes:
        """Random changes no longer than the best witness (anywhere, where there is none), and approaches from those nearest to flipping."""
        who = inputs.repeat_interleave(self.effort.samples)
        share = self.random(inputs, self.effort.samples, 1 + salt)
        affordable = self.affordable(who, 1, 0)
        who, share = who[affordable], share[affordable]
        reach = 1 - 0.75 * place(who) / self.effort.samples  # samples at every depth
        point = self.steps.sample(who, share, reach * self.length[who], lanes)
        margins, flipped = self.net.margins(point, who)
        found = Lanes(who, margins.argmin(1), point, torch.where(flipped, self.norm_of(point), INF))
        self.record(found)
        known = self.norm_of(point - self.best[who]) < APART * self.length[who]  # those near the best witness lead back to it
        promise = torch.where(known, INF, margins.amin(1) / self.margins[who].amin(1).abs().clamp(min=1e-300))
        kept = smallest(who, torch.where(flipped, found.length - 1e300, promise), self.effort.restarts)
        found = found.take(kept)
        still = (~torch.isfinite(found.length)).nonzero()[:, 0]
        walked = self._approach(*self._open(found.take(still), self.effort.restarts), at_anchor=False)
        return Lanes.join(found.take(torch.isfinite(found.length).nonzero()[:, 0]), walked)

    def _finish(self, lanes: Lanes) -> None:
        """The crossing on the segment from each lane to its anchor."""
        lanes = lanes.take(self.affordable(lanes.who, 1 + self.effort.last_crossing + self.effort.saturated, 0))
        if len(lanes):
            margins, _ = self.net.margins(lanes.delta, lanes.who)
            outside, never = self.margins[lanes.who].amin(1), torch.zeros_like(lanes.who, dtype=torch.bool)
            point = self.cross(lanes.delta, margins.amin(1), self.anchor[lanes.who], outside, never, lanes.who, self.effort.last_crossing)
            self.record(Lanes(lanes.who, lanes.row, point, self.norm_of(point)))
        self.tick()
