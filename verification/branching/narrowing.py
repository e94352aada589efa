r"""Bounds of the neurons over the cap: the changes of a cell that flip its row.

A change that flips obeys the cell's row, so an open neuron only has to be bounded where that row falls; tighter bounds give a better row
(verification/branching/ascent.py), hence a smaller cap, and so on. Near the radius the caps are small, and most neurons keep one sign on them.

    layer 1          z = W_1 v + β is bounded over the region and a·v + b ≤ 0                     (verification/branching/ball.py)
    later layers     on flips m ≤ 0, so for any γ ≥ 0:   z ≥ z + γ m ≥ affine minorant in v       and the same for −z

The second kind is verification/branching/joint.py's. Its steps begin with what the neuron had last, in whatever cell: what is best changes little from one to
the next.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from formulations.norms import INF
from verification.branching.ball import Ball, Capped, joined
from verification.branching.cells import Cells
from verification.branching.choice import scores
from verification.branching.coupled import Pull
from verification.branching.facets import Aim
from verification.branching.joint import Joint
from verification.branching.network import Lines, Network

MOST = 96  # neurons of a later layer and a cell in one go
CHUNK = 1 << 20  # numbers in one temporary


def plain_bounds(network: Network, ball: Ball) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(lower, upper), each (1, h_l) per layer, over the whole region: layer 1 by its support function, later layers backwards through the lines."""
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    lines: list[Lines] = []
    for l, (W, shift) in enumerate(zip(network.weights, network.shifts, strict=True)):
        A, const = torch.cat([-W, W])[None], torch.cat([-shift, shift])[None]
        A, const = network.to_input(A, const, lines, [x.steeper() for x in lines])
        low = const - ball.support(-A, ("plain", l))
        low = torch.where(torch.isnan(low), -INF, low)  # what overflowed says nothing: NaN must not pass for a sign that is known
        h = network.widths[l]
        upper.append(-low[:, :h])
        lower.append(torch.minimum(low[:, h:], upper[-1]))
        lines.append(Lines.of(lower[-1], upper[-1]))
    return tuple(lower), tuple(upper)


def narrow(network: Network, ball: Ball, cells: Cells, most: int = MOST) -> Cells:
    """The cells with the bounds of their open neurons taken over the caps."""
    lower, upper, gamma = list(cells.lower), list(cells.upper), list(cells.gamma)
    for l, (W, shift) in enumerate(zip(network.weights, network.shifts, strict=True)):
        is_open = (lower[l] < 0) & (upper[l] > 0)
        count = int(is_open.sum(1).max())
        if not count:
            continue
        if l and count > most:  # backward passes through other layers are dear: those neurons first that cost the row most
            now = replace(cells, lower=tuple(lower), upper=tuple(upper))
            start_at = sum(network.widths[:l])
            count, worth = most, scores(network, now)[:, start_at : start_at + network.widths[l]]
        else:
            worth = is_open.to(torch.uint8)
        index = worth.topk(count, 1).indices  # the rest of a cell's places go to neurons whose sign is known
        both = torch.cat([index, index + W.shape[0]], 1)
        start = gamma[l].gather(1, both)
        rows, offsets = torch.cat([W[index], -W[index]], 1), torch.cat([shift[index], -shift[index]], 1)
        if l == 0:
            top, found, pull = ball.cap(
                -rows, cells.a, cells.b, start if bool((start > 0).any()) else None, ball.memory.recall(("cap", 0), both)
            )
            low = offsets - top
        else:
            low, found, pull = _later_layer(
                network,
                ball,
                replace(cells, lower=tuple(lower), upper=tuple(upper)),
                l,
                rows,
                offsets,
                start,
                ball.memory.recall(("cap", l), both),
                both,
            )
        if pull is not None:
            ball.memory.keep(("cap", l), 2 * W.shape[0], both[0], pull.at(0))
        low = torch.where(torch.isfinite(low), low, -INF)  # what overflowed says nothing: NaN must not pass for a bound
        found = found.nan_to_num(0.0, 0.0, 0.0)
        new_upper = torch.minimum(upper[l].gather(1, index), -low[:, count:])
        new_lower = torch.maximum(lower[l].gather(1, index), low[:, :count])
        upper[l] = upper[l].scatter(
            1, index, torch.maximum(new_upper, new_lower)
        )  # where they cross, the cell holds no flip, and all is true of it
        lower[l] = lower[l].scatter(1, index, new_lower)
        gamma[l] = gamma[l].scatter(1, both, found)
    return replace(cells, lower=tuple(lower), upper=tuple(upper), gamma=tuple(gamma))


def _later_layer(
    network: Network, ball: Ball, cells: Cells, layer: int, rows: Tensor, offsets: Tensor, start: Tensor, pull: Pull | None, which: Tensor
) -> Capped:
    """(lower bounds, γ), each (n, s), of rows·relu(z_{layer−1}) + offsets on flips, in chunks; and the set's multipliers.

    which (n, s): the places of the rows' neurons in gamma.
    """
    joint = Joint.of(network, ball, cells, layer)
    n, s, width = rows.shape
    step = max(1, CHUNK // (s * max(width, network.dim)))
    pieces = [slice(k, k + step) for k in range(0, n, step)]
    known = ball.memory.slopes_of(layer, network.widths, rows.device)
    turns = None if joint.facets is None else ball.memory.turns_of(layer, network.widths[layer], network.dim, rows.device)
    out, found = [], []
    for i in pieces:
        warm = [v[which[i]] for v in known]
        aim = None if turns is None else Aim(turns[0][which[i]], turns[1][which[i]])
        capped, slopes, aim = joint.take(i).bound(ball, rows[i], offsets[i], start[i], None if pull is None else pull.at(i), warm, aim)
        out.append(capped)
        found.append([v[0] for v in slopes])
        if turns is not None and aim is not None and not i.start:
            turns[0][which[0]], turns[1][which[0]] = aim.kappa[0], aim.turn[0]
    for v, new in zip(known, found[0], strict=True):
        v[which[0]] = new
    return joined(out, 0)
