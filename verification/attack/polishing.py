r"""The monotone polish: trust-region steps from flipped points, of which none gets longer.

At a flipped point δ_k the row that fell is linearised and the program solved within |W(δ − δ_k)| ≤ r, then linearised again at its answer and
solved once more (a second-order correction). δ_k is feasible there, so the new point is never longer, and by convexity neither is any point between the
two: where the new point does not flip, the segment is searched for the crossing. r grows with success and shrinks without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formulations.norms import INF
from verification.attack.lanes import Lanes
from verification.attack.state import SETTLED, SearchState

NUDGE = 1e-5  # how far past the linearised boundary a correction aims, relative to the length
SHRINK = 0.35  # of a trust region whose step was no use


def polish(search: SearchState, lanes: Lanes, radius: Tensor) -> None:
    """One trust-region step of every lane that has not settled; changes `lanes` and `radius` in place."""
    active = (radius > SETTLED * lanes.length).nonzero()[:, 0]
    active = active[search.affordable(lanes.who[active], 3 + search.effort.crossing + search.effort.saturated, 2)]
    if not len(active):
        return
    now, r = lanes.take(active), radius[active]
    margins, _, slope = search.net.linearise(now.delta, now.who)
    m0 = margins.amin(1)
    first = search.steps.step(now.who, slope, m0 - (slope * now.delta).sum(1), around=now.delta, radius=r)
    margins, flips1, slope = search.net.linearise(first, now.who)
    m1 = margins.amin(1)
    level = m1 - (slope * first).sum(1) + NUDGE * now.length * search.dual_norm_of(slope)
    second = search.steps.step(now.who, slope, level, around=now.delta, radius=r)
    margins, flips2 = search.net.margins(second, now.who)
    m2 = margins.amin(1)
    best, length = _shorter(search, now.delta, now.length, first, flips1)
    best, length = _shorter(search, best, length, second, flips2)
    # The crossing lies between the two answers where only the second flips, else between δ_k and the second, or the first where that one strays
    useful = search.norm_of(second) < now.length
    pair = flips2 & useful
    inside, m_in = torch.where(pair[:, None], second, now.delta), torch.where(pair, m2, m0)
    beyond = useful & ~flips2
    outside, m_out = torch.where(beyond[:, None], second, first), torch.where(beyond, m2, m1)
    done = flips1 & ~beyond
    crossing = search.cross(inside, m_in, outside, m_out, done, now.who, search.effort.crossing)
    best, length = _shorter(search, best, length, crossing, torch.ones_like(flips2))
    radius[active] = torch.where(length < 0.999 * now.length, r * 1.5, r * SHRINK)
    lanes.put(active, best, length)
    search.record(lanes.take(active))


def _shorter(search: SearchState, best: Tensor, length: Tensor, point: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.where(flipped, search.norm_of(point), INF)
    better = size < length
    return torch.where(better[:, None], point, best), torch.where(better, size, length)
