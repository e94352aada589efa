r"""Leaps: one entry after another moved as far as it may go, chosen by what that really does to the margin.

Where ‖Wδ‖_1 counts, near flips change few entries, and change them much: further than the slope that proposes them holds. So the `count` entries of the
steepest slopes are tried one by one, each at the end of its range, with a forward pass each, and the one that lets the margin fall most for its length
is kept (as in greedy coordinate descent, with differences in place of derivatives). The last leap stops at its crossing. A run needs one gradient for
every entry that it changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formulations.norms import INF
from verification.attack.lanes import Lanes
from verification.attack.state import SearchState

LEAST = 0.02  # ranges shorter than this part of an input's longest are not worth a leap


def leap(search: SearchState, inputs: Tensor, count: int, times: int) -> Lanes:
    """The flipped points that at most `times` leaps from the anchors of the `inputs` lead to, one for each input that gets there."""
    net, w = search.net, search.w
    lo, hi = _ranges(search, inputs)
    point, row = search.anchor[inputs].clone(), torch.zeros_like(inputs)
    arrived = torch.zeros_like(inputs, dtype=torch.bool)
    alive, count = torch.arange(len(inputs), device=net.device), min(count, net.d)
    for _ in range(times):
        alive = alive[search.affordable(inputs[alive], 2 + count + search.effort.crossing + search.effort.saturated, 1)]
        if not len(alive):
            break
        who, here = inputs[alive], point[alive]
        margins, _, slope = net.linearise(here, who)
        far = torch.where(slope > 0, lo[alive], hi[alive])
        room = w * (far - here).abs()
        worth = (slope / w).abs() * (room > LEAST * room.amax(1, keepdim=True))
        entry = worth.argsort(dim=1, descending=True, stable=True)[:, :count]
        tried = here[:, None].repeat(1, count, 1).scatter_(2, entry[:, :, None], far.gather(1, entry)[:, :, None])
        falls = margins.amin(1)[:, None] - net.margins(tried.flatten(0, 1), who.repeat_interleave(count))[0].amin(1).view(-1, count)
        best = (falls / room.gather(1, entry).clamp(min=1e-300)).argmax(1)
        ahead = tried[torch.arange(len(alive), device=net.device), best]
        beyond, flipped = net.margins(ahead, who)
        crossing = search.cross(ahead, beyond.amin(1), here, margins.amin(1), ~flipped, who, search.effort.crossing)
        point[alive] = torch.where(flipped[:, None], crossing, ahead)
        row[alive], arrived[alive] = beyond.argmin(1), flipped
        alive = alive[~flipped]
        search.tick()
    lanes = Lanes(inputs, row, point, torch.where(arrived, search.norm_of(point), INF)).take(arrived.nonzero()[:, 0])
    search.record(lanes)
    return lanes


def _ranges(search: SearchState, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(lo, hi): C, and nothing longer in one entry than the shortest witness known; where C has no end and there is none, a long way out."""
    far = 10 * (1 + search.net.x0[inputs].abs().amax(1)) * search.w.amax()
    reach = torch.where(torch.isfinite(search.length[inputs]), search.length[inputs], far)[:, None] / search.w
    ends = (search.steps.outward(inputs, search.anchor[inputs] + side * reach, torch.ones_like(far)) for side in (-1, 1))
    lo, hi = ends
    return lo, hi
