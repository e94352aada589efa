r"""Far out: where nothing has flipped and the set has no end, random rays are followed by powers of ten.

Slopes at x0 foresee what happens nearby, and say nothing where every unit is dead there or saturated; a first scale taken from x0 is then as good as any
other. On a ray a ReLU network ends in an affine piece, so what flips on it at all flips at some power of ten: looked at are (10 … 10⁸)·(1 + ‖x0‖_∞), one
forward pass each. A ray that leaves a box is clipped onto it and follows its boundary. Of those that leave other sets a few bend too, to the allowed δ nearest
to x0 with push·δ ≤ −reach, by a solver's run each. A ray whose set goes no further stops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from formulations.sets.base import FEASIBILITY
from verification.attack.lanes import Lanes, place, smallest
from verification.attack.state import SearchState

RUNGS = 8
FURTHER = 2.0  # a rung that comes less than this much further, of the tenfold asked for, is the set's end
BENT = 8  # rays that a solver may bend
SALT = 1 << 20  # apart from the numbers that other moves draw


def beyond(search: SearchState, inputs: Tensor, count: int, kept: int) -> Lanes:
    """The `kept` shortest flips met on `count` rays of every input whose set has no end, each at the crossing on its last power of ten."""
    net = search.net
    lo, hi = search.steps.box(inputs)
    inputs = inputs[(torch.isinf(lo) | torch.isinf(hi)).any(1)]
    who = inputs.repeat_interleave(count)
    affordable = search.affordable(who, RUNGS + search.effort.crossing + search.effort.saturated, 0)
    who, push = who[affordable], search.random(inputs, count, SALT)[affordable]
    base = search.anchor[who]
    point, margins = base.clone(), search.margins[who].amin(1)
    before, above = point.clone(), margins.clone()
    row, flipped = torch.zeros_like(who), torch.zeros_like(who, dtype=torch.bool)
    push, unit = push / search.norm_of(push).clamp(min=1e-300)[:, None], 1 + net.x0[who].abs().amax(1)
    bends = place(who) < BENT
    alive = torch.arange(len(who), device=net.device)
    for k in range(1, RUNGS + 1):
        if not len(alive):
            break
        further = _rung(search, who[alive], push[alive], 10.0**k * unit[alive], bends[alive])
        goes_on = search.norm_of(further - base[alive]) > FURTHER * search.norm_of(point[alive] - base[alive])
        alive, further = alive[goes_on], further[goes_on]
        here, flips = net.margins(further, who[alive])
        before[alive], above[alive] = point[alive], margins[alive]
        point[alive], margins[alive] = further, here.amin(1)
        row[alive], flipped[alive] = here.argmin(1), flips
        alive = alive[~flips]
    at = flipped.nonzero()[:, 0]
    at = at[smallest(who[at], search.norm_of(point[at]), kept)]
    never = torch.zeros_like(at, dtype=torch.bool)
    crossing = search.cross(point[at], margins[at], before[at], above[at], never, who[at], search.effort.crossing)
    lanes = Lanes(who[at], row[at], crossing, search.norm_of(crossing))
    search.record(lanes)
    search.tick()
    return lanes


def _rung(search: SearchState, who: Tensor, push: Tensor, reach: Tensor, bends: Tensor) -> Tensor:
    """Allowed changes about `reach` from the anchor, against `push`; the anchor itself where a ray leaves the set and may not bend."""
    steps, base = search.steps, search.anchor[who]
    point = base - reach[:, None] * push
    if steps.boxes:
        return steps.outward(who, point, torch.ones_like(reach))  # clipped
    points = point.cpu().numpy()
    outside = [steps.violation(i, points[k]) > FEASIBILITY for k, i in enumerate(who.tolist())]
    leaves = torch.tensor(outside, dtype=torch.bool, device=who.device)
    bent = (leaves & bends).nonzero()[:, 0]
    point[leaves] = base[leaves]
    point[bent] = steps.step(who[bent], push[bent], reach[bent] - (push[bent] * base[bent]).sum(1))
    return point
