r"""Growing balls: what falls most within a ball, followed while the ball grows until it flips, then shrinks and grows about the boundary.

At a lane's point δ_k the margin's slope a says which point of {‖W(δ − anchor)‖ ≤ ε} ∩ C falls most to first order (a Frank–Wolfe step), and the lane
moves a share of the way to it. ε grows while the lane stands and shrinks where it has flipped (as in DDN, Rony et al. 2019), the shares fall by a cosine.
Where the network bends often, small shares of the way to many slopes' answers add up to what balances them.
Sequential linearisation jumps to the boundary that the slopes at x0 foresee; this meets the one that the margin's own valley leads to, often nearer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from formulations.norms import INF
from verification.attack.lanes import Lanes, smallest
from verification.attack.state import SearchState

FIRST = 0.3  # first ball, relative to the best length known
ARRIVAL = 0.2  # part of the steps in which a ball that grows at the first rate reaches that length
SCREENING = 0.2  # part of the steps after which the nearest lane of an input goes on alone
LEAST_RATE = 3e-3
SHARES = (0.7, 0.015)  # of the way to the step's answer, first and last
CORNER = 3.0  # length of a step at share 1, in half diagonals of the ball


def grow(search: SearchState, starts: Lanes, times: int) -> Lanes:
    """The shortest flipped point that each start's row leads to within `times` steps; the starts' own points only say how far a flip is.

    After SCREENING of the steps the lane with the least ball goes on alone.
    """
    net = search.net
    known = torch.where(torch.isfinite(search.length), search.length, INF)[starts.who]
    far = torch.where(torch.isfinite(known), known, search.norm_of(starts.delta))
    starts, far = starts.take((far > 0).nonzero()[:, 0]), far[far > 0]
    anchor = search.anchor[starts.who]
    lanes = Lanes(starts.who, starts.row, anchor.clone(), torch.full_like(far, INF))
    point, ball = anchor.clone(), FIRST * far
    fastest = (1 / FIRST) ** (1 / max(ARRIVAL * times, 1)) - 1
    alive = torch.arange(len(lanes), device=net.device)
    for k in range(times):
        if k == int(SCREENING * times):
            alive = alive[smallest(lanes.who[alive], torch.minimum(ball, lanes.length)[alive], 1)]
        alive = alive[search.affordable(lanes.who[alive], 1, 1)]
        if not len(alive):
            break
        cosine = 0.5 * (1 + math.cos(math.pi * k / times))
        who, here = lanes.who[alive], point[alive]
        _, flipped, slope = net.linearise(here, who, lanes.row[alive])
        size = torch.where(flipped, search.norm_of(here), INF)
        better = size < lanes.length[alive]
        lanes.put(alive[better], here[better], size[better])
        if k:
            rate = max(fastest * cosine, LEAST_RATE)
            ball[alive] = torch.where(flipped, torch.minimum(ball[alive], size) * (1 - rate), ball[alive] * (1 + rate))
        point[alive] = _towards(search, who, here, slope, ball[alive], SHARES[1] + (SHARES[0] - SHARES[1]) * cosine)
        search.tick()
    found = lanes.take(torch.isfinite(lanes.length).nonzero()[:, 0])
    search.record(found)
    return found


def _towards(search: SearchState, who: Tensor, here: Tensor, slope: Tensor, radius: Tensor, share: float) -> Tensor:
    """A `share` of the way from `here` to what falls most within the ball and C, drawn out to the ball's surface as far as the set is known to allow.

    Where the ball is a box too (p = ∞), what falls most is a corner, and every entry would turn with its slope's sign however small: there the step
    follows the slope itself, CORNER times as far, and is clipped onto both.
    """
    rest = search.anchor[who]
    if search.steps.clips:
        fall = -slope / search.w**2
        far = CORNER * share * radius * (search.net.d**0.5 / torch.linalg.vector_norm(search.w * fall, dim=1).clamp(min=1e-300))
        reach = radius[:, None] / search.w
        moved = torch.minimum(torch.maximum(here + far[:, None] * fall, rest - reach), rest + reach)
        return search.steps.outward(who, moved, torch.ones_like(radius))
    # a fall of ε‖W⁻¹a‖_* is the most that the ball without C gives: the answer is as long as ε or longer, and is drawn in
    answer = search.steps.step(who, slope, radius * search.dual_norm_of(slope) - (slope * rest).sum(1))
    answer = rest + (answer - rest) * (radius / search.norm_of(answer - rest).clamp(min=1e-300)).clamp(max=1.0)[:, None]
    moved = here + share * (answer - here)
    return search.steps.outward(who, moved, radius / search.norm_of(moved - rest).clamp(min=1e-300))
