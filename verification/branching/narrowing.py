r"""Bounds of the neurons over the cap: the changes of a cell that flip its row.

A change that flips obeys the cell's row, so an open neuron only has to be bounded where that row falls; tighter bounds give a better row
(verification/branching/ascent.py), hence a smaller cap, and so on. Near the radius the caps are small, and most neurons keep one sign on them.

    layer 1          z = W_1 v + β is bounded over the region and a·v + b ≤ 0                     (verification/branching/ball.py)
    later layers     on flips m ≤ 0, so for any γ ≥ 0:   z ≥ z + γ m ≥ affine minorant in v       and the same for −z

The second kind adds γ m to z *before* the ReLUs of the earlier layers are bounded by lines, where parts of the two cancel. γ ≥ 0 and the slopes
α of the earlier layers, both free for every neuron, are raised by a few Adam steps in float32; the bound is what they give in float64. The steps
begin with the slopes that the neuron had last, in whatever cell: what is best changes little from one to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from formulations.norms import INF
from verification.branching.adam import Adam
from verification.branching.ball import PAD, Ball, Capped, Face, joined
from verification.branching.cells import Cells
from verification.branching.choice import scores
from verification.branching.coupled import Pull
from verification.branching.network import Lines, Network

MOST = 96  # neurons of a later layer and a cell in one go
STEPS = 3
RATE = 0.1
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
    joint = Joint.of(network, cells, layer)
    n, s, width = rows.shape
    step = max(1, CHUNK // (s * max(width, network.dim)))
    pieces = [slice(k, k + step) for k in range(0, n, step)]
    known = ball.memory.slopes_of(layer, network.widths, rows.device)
    out, found = [], []
    for i in pieces:
        warm = [v[which[i]] for v in known]
        capped, slopes = joint.take(i).bound(ball, rows[i], offsets[i], start[i], None if pull is None else pull.at(i), warm)
        out.append(capped)
        found.append([v[0] for v in slopes])
    for v, new in zip(known, found[0], strict=True):
        v[which[0]] = new
    return joined(out, 0)


@dataclass(frozen=True, eq=False)
class Joint:
    """A cell's margin row as it stands before the layer's ReLUs were entered, m ≥ head·relu(z) + const, and the earlier layers:

    lines, slopes (n, h) of the row, pull = Σ β s (n, h) of the splits, weights, shifts.
    """

    head: Tensor
    const: Tensor
    lines: tuple[Lines, ...]
    slopes: tuple[Tensor, ...]
    pulls: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]

    @staticmethod
    def of(network: Network, cells: Cells, layer: int) -> Joint:
        lines = [Lines.of(l, u) for l, u in zip(cells.lower, cells.upper, strict=True)]
        head, const = network.rows[cells.row], network.offsets[cells.row]
        for l in reversed(range(layer, network.depth)):
            const = const + (head.clamp(max=0) * lines[l].cut).sum(1)
            head = head * torch.where(head < 0, lines[l].up, lines[l].low(cells.slope[l])) - cells.beta[l] * cells.sign[l]
            const = const + head @ network.shifts[l]
            head = head @ network.weights[l]
        slopes = tuple(lines[l].low(cells.slope[l]) for l in range(layer))
        pulls = tuple(cells.beta[l] * cells.sign[l] for l in range(layer))
        return Joint(head, const, tuple(lines[:layer]), slopes, pulls, network.weights[:layer], network.shifts[:layer])

    def take(self, index: slice) -> Joint:
        lines = tuple(Lines(x.up[index], x.cut[index], x.least[index], x.most[index]) for x in self.lines)
        slopes, pulls = tuple(v[index] for v in self.slopes), tuple(v[index] for v in self.pulls)
        return Joint(self.head[index], self.const[index], lines, slopes, pulls, self.weights, self.shifts)

    def to(self, dtype: torch.dtype) -> Joint:
        def cast(vs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(v.to(dtype) for v in vs)

        lines = tuple(Lines(*cast((x.up, x.cut, x.least, x.most))) for x in self.lines)
        return Joint(
            self.head.to(dtype), self.const.to(dtype), lines, cast(self.slopes), cast(self.pulls), cast(self.weights), cast(self.shifts)
        )

    def bound(
        self, ball: Ball, rows: Tensor, offsets: Tensor, start: Tensor, pull: Pull | None, warm: list[Tensor]
    ) -> tuple[Capped, list[Tensor]]:
        """(lower bounds, γ), each (n, s), and the set's multipliers; the slopes. `warm` (n, s, h) per earlier layer: slopes to begin with, < 0 where there are none."""
        quick = self.to(torch.float32)
        link = ball.region.coupling
        gamma, slopes = start.float(), [v.unsqueeze(1).expand(*rows.shape[:2], -1) for v in quick.slopes]
        slopes = [torch.where(w < 0, v, x.clip(w)) for v, w, x in zip(slopes, warm, quick.lines, strict=True)]
        cold = gamma == 0
        unit = rows.float().abs().mean(-1) / quick.head.abs().mean(-1, keepdim=True).clamp(min=1e-30)
        gamma = torch.where(cold, 0.3 * unit, gamma)
        push, extra = None, torch.zeros_like(gamma)
        if link is not None:  # multipliers of the set's other pieces: good for the first γ and slopes, then held
            A, _, _ = self._minorant(rows, offsets, gamma.to(rows.dtype), [v.to(rows.dtype) for v in slopes])
            pull = ball.pull(-A, pull)
            u = pull.u.to(A.dtype)
            push, extra = link.back(u), ball.sigma(u)
        climbed = quick.climb(
            ball.quick, rows.float(), offsets.float(), gamma, slopes, unit, None if push is None else push.float(), extra.float()
        )
        gamma, slopes, mu = climbed
        exact, found = [v.to(rows.dtype) for v in slopes], gamma.to(rows.dtype)
        A, const, _ = self._minorant(rows, offsets, found, exact)
        if link is None:
            top = ball.face.bound(-A, mu.to(rows.dtype).clamp(min=1e-18))
        else:
            assert pull is not None
            top, pull = ball.over(-A, pull.u), ball.pull(-A, pull)
            top = torch.minimum(top, ball.over(-A, pull.u))
        return (const - top - PAD * (1 + const.abs() + top.abs()), found, pull), slopes

    def climb(
        self,
        face: Face,
        rows: Tensor,
        offsets: Tensor,
        gamma: Tensor,
        slopes: list[Tensor],
        unit: Tensor,
        push: Tensor | None,
        extra: Tensor,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """(γ, slopes, μ): the best met. Slopes of the value: in γ the margin's minorant at the maximiser, in α_j its A_j⁺ z_j."""
        adam = Adam([gamma, *slopes])
        best = torch.full_like(gamma, -INF)
        kept_gamma, kept_slopes, kept_mu = gamma, slopes, gamma
        mu: Tensor | None = None
        for step in range(STEPS):
            A, const, heads = self._minorant(rows, offsets, gamma, slopes)
            top, v, mu = face.peak(-A if push is None else -A - push, mu)
            value = const - top - extra
            better = value > best
            best, kept_gamma, kept_mu = (
                torch.where(better, value, best),
                torch.where(better, gamma, kept_gamma),
                torch.where(better, mu, kept_mu),
            )
            kept_slopes = [torch.where(better.unsqueeze(-1), new, old) for new, old in zip(slopes, kept_slopes, strict=True)]
            if step + 1 == STEPS:
                break
            y, rise, turns = v, self.const.unsqueeze(1).expand_as(gamma), []
            for W, shift, x, s, head, pull in zip(self.weights, self.shifts, self.lines, slopes, heads, self.pulls, strict=True):
                z = y @ W.T + shift
                turns.append(head.clamp(min=0) * z)
                rise = rise - (z @ pull.unsqueeze(-1)).squeeze(-1)
                falling = (head < 0).to(z.dtype)
                y = z * torch.lerp(s, x.up.unsqueeze(1).expand_as(s), falling) + falling * x.cut.unsqueeze(1)
            rise = rise + (y @ self.head.unsqueeze(-1)).squeeze(-1)
            moves = adam.steps([rise, *turns])
            gamma = (gamma + RATE * torch.maximum(unit, gamma) * moves[0]).clamp(min=0)
            slopes = [x.clip(s + RATE * move) for s, move, x in zip(slopes, moves[1:], self.lines, strict=True)]
        return kept_gamma, kept_slopes, kept_mu

    def _minorant(self, rows: Tensor, offsets: Tensor, gamma: Tensor, slopes: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(A (n, s, d), const (n, s), heads per layer (n, s, h)): A·v + const ≤ rows·relu(z) + offsets + γ m."""
        A = rows + gamma.unsqueeze(-1) * self.head.unsqueeze(1)
        const = offsets + gamma * self.const.unsqueeze(1)
        heads = [A] * len(slopes)
        for l in reversed(range(len(slopes))):
            heads[l] = A
            positive = A.clamp(min=0)
            negative = A - positive
            const = const + (negative @ self.lines[l].cut.unsqueeze(-1)).squeeze(-1)
            A = positive * slopes[l] + negative * self.lines[l].up.unsqueeze(1) - gamma.unsqueeze(-1) * self.pulls[l].unsqueeze(1)
            const = const + A @ self.shifts[l]
            A = A @ self.weights[l]
        return A, const, heads
