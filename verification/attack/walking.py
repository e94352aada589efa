r"""Walks along the boundary where ‖Wδ‖_1 counts: from a flipped point, small steps that keep to the boundary and shorten the change.

A step from δ_k is the convex program

    min ‖Wδ‖_1   s.t.   a·δ + b ≤ 0,   ‖W(δ − δ_k)‖_2 ≤ r,   lo ≤ δ ≤ hi

(Brendel & Bethge 2019), whose answer is, with v = Wδ, multipliers μ of the row and 1/τ of the ball: v = clip(soft(v_k − μ W⁻¹a, τ), W lo, W hi). The row's
value falls with μ and the answer's distance from δ_k grows with τ, so both are found by bisection. The ball is Euclidean on purpose: every entry that
does not pay loses τ, while a box would let the few steepest entries move alone.
The slope a is an average over the walk's past, which is what makes it bear: at a single point of a network that bends often, a slope tells of that
piece alone. r shrinks geometrically. Points are not asked to flip, so a walk may cross to the other side and come back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from formulations.norms import INF
from verification.attack.lanes import Lanes, smallest
from verification.attack.state import SearchState

MEMORY = 0.8  # share of the past in the averaged slope
TRUST = (0.25, 0.01)  # radius of the first and the last step, relative to the start's Euclidean length
PAST = 1e-6  # how far beyond the linearised boundary a step aims, relative to the length
OUTER, INNER = 18, 26  # bisections of τ and of μ


def walk(search: SearchState, starts: Lanes, stages: Sequence[tuple[int, int]]) -> Lanes:
    """The flipped `starts`, those that were walked from replaced by the shortest flipped points of their walks.

    For every (keep, times) of `stages`, the `keep` lanes of an input that have come nearest go on for `times` steps.
    """
    net = search.net
    walked = smallest(starts.who, starts.length, stages[0][0])
    rest = torch.ones_like(starts.who, dtype=torch.bool)
    rest[walked] = False
    lanes = starts.take(walked)
    lanes = Lanes(lanes.who, lanes.row.clone(), lanes.delta.clone(), lanes.length.clone())
    point, slope = lanes.delta.clone(), torch.zeros_like(lanes.delta)
    size = torch.linalg.vector_norm(search.w * lanes.delta, dim=1)
    alive, k, total = torch.arange(len(lanes), device=net.device), 0, sum(times for _, times in stages)
    for keep, times in stages:
        alive = alive[smallest(lanes.who[alive], lanes.length[alive], keep)]
        for _ in range(times):
            alive = alive[search.affordable(lanes.who[alive], 1, 1)]
            if not len(alive):
                break
            who, here = lanes.who[alive], point[alive]
            margins, flipped, fresh = net.linearise(here, who)
            length = torch.where(flipped, search.norm_of(here), INF)
            better = length < lanes.length[alive]
            lanes.put(alive[better], here[better], length[better])
            lanes.row[alive[better]] = margins.argmin(1)[better]
            a = MEMORY * slope[alive] + (1 - MEMORY) * fresh if k else fresh
            slope[alive] = a
            level = margins.amin(1) - (a * here).sum(1) + PAST * search.norm_of(here) * search.dual_norm_of(a)
            point[alive] = shrink(search, who, a, level, here, size[alive] * TRUST[0] * (TRUST[1] / TRUST[0]) ** (k / total))
            k += 1
            search.tick()
    search.record(lanes)
    return Lanes.join(starts.take(rest.nonzero()[:, 0]), lanes)


def shrink(search: SearchState, who: Tensor, a: Tensor, b: Tensor, here: Tensor, radius: Tensor) -> Tensor:
    """The step's answer (lanes, d); where no δ within the ball meets the row, one that comes near to it."""
    w = search.w
    begin = w * here
    lo, hi = (w * v for v in search.steps.box(who))
    push = a / w
    free = torch.where(push > 0, begin > lo, begin < hi)  # entries that may still fall: the largest of them sets the scale of μ
    scale = (push.abs() * free).amax(1)
    scale = torch.where(scale > 0, scale, 1.0)
    push, level, size = push / scale[:, None], b / scale, begin.abs().amax(1)

    def answer(mu: Tensor, tau: Tensor) -> Tensor:
        moved = begin - mu[:, None] * push
        return torch.minimum(torch.maximum(moved.sign() * (moved.abs() - tau[:, None]).clamp(min=0.0), lo), hi)

    def on_row(tau: Tensor) -> Tensor:
        low, high = torch.zeros_like(tau), 2 * (tau + size) + radius
        for _ in range(INNER):
            mu = 0.5 * (low + high)
            above = (push * answer(mu, tau)).sum(1) + level > 0
            low, high = torch.where(above, mu, low), torch.where(above, high, mu)
        return answer(high, tau)

    short, long = 1e-7 * radius, 4 * radius
    for _ in range(OUTER):
        tau = (short * long).sqrt()
        outside = torch.linalg.vector_norm(on_row(tau) - begin, dim=1) > radius
        short, long = torch.where(outside, short, tau), torch.where(outside, tau, long)
    step = on_row(short) - begin
    step = step * (radius / torch.linalg.vector_norm(step, dim=1).clamp(min=1e-300)).clamp(max=1.0)[:, None]
    return search.steps.outward(who, here + step / w, torch.ones_like(radius))
