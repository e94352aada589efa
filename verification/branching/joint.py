r"""Rows of a later layer together with the margin row: what the neurons of that layer are bounded by on flips.

On flips m ≤ 0, so for any γ ≥ 0:   z ≥ z + γ m.  γ m is added to z before the ReLUs of the earlier layers are bounded by lines, where parts of the two cancel.
γ, the slopes α of the lower lines and the share κ of the first layer's facets (verification/branching/facets.py) are all free, for every row: they are raised by
a few Adam steps in float32, with the slopes that the envelope theorem gives at the maximiser, and the bound is what they give in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from formulations.norms import INF
from verification.branching.adam import Adam
from verification.branching.ball import PAD, Ball, Capped
from verification.branching.cells import Cells
from verification.branching.coupled import Pull
from verification.branching.face import Face
from verification.branching.facets import FIRST, Aim, Facets, Share, Sight
from verification.branching.network import Lines, Network

STEPS, DEAR = 3, 2  # evaluations; with facets, which cost twice as much, and one more where they have no turn to begin with
RATE = 0.1


@dataclass(frozen=True, eq=False)
class Joint:
    """A cell's margin row as it stands before the layer's ReLUs were entered, m ≥ head·relu(z) + const, and the earlier layers:

    lines, slopes (n, h) of the row, pull = Σ β s (n, h) of the splits, weights, shifts; facets of the first layer, where they are used.
    """

    head: Tensor
    const: Tensor
    lines: tuple[Lines, ...]
    slopes: tuple[Tensor, ...]
    pulls: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    facets: Facets | None = None

    @staticmethod
    def of(network: Network, ball: Ball, cells: Cells, layer: int) -> Joint:
        lines = [Lines.of(l, u) for l, u in zip(cells.lower, cells.upper, strict=True)]
        head, const = network.rows[cells.row], network.offsets[cells.row]
        for l in reversed(range(layer, network.depth)):
            const = const + (head.clamp(max=0) * lines[l].cut).sum(1)
            head = head * torch.where(head < 0, lines[l].up, lines[l].low(cells.slope[l])) - cells.beta[l] * cells.sign[l]
            const = const + head @ network.shifts[l]
            head = head @ network.weights[l]
        slopes = tuple(lines[l].low(cells.slope[l]) for l in range(layer))
        pulls = tuple(cells.beta[l] * cells.sign[l] for l in range(layer))
        facets = Facets.of(network, ball.face, cells) if ball.tight else None
        return Joint(head, const, tuple(lines[:layer]), slopes, pulls, network.weights[:layer], network.shifts[:layer], facets)

    def take(self, index: slice) -> Joint:
        lines = tuple(Lines(x.up[index], x.cut[index], x.least[index], x.most[index]) for x in self.lines)
        slopes, pulls = tuple(v[index] for v in self.slopes), tuple(v[index] for v in self.pulls)
        facets = None if self.facets is None else self.facets.take(index)
        return Joint(self.head[index], self.const[index], lines, slopes, pulls, self.weights, self.shifts, facets)

    def to(self, dtype: torch.dtype) -> Joint:
        def cast(vs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(v.to(dtype) for v in vs)

        lines = tuple(Lines(*cast((x.up, x.cut, x.least, x.most))) for x in self.lines)
        facets = None if self.facets is None else self.facets.to(dtype)
        return Joint(
            self.head.to(dtype),
            self.const.to(dtype),
            lines,
            cast(self.slopes),
            cast(self.pulls),
            cast(self.weights),
            cast(self.shifts),
            facets,
        )

    def bound(
        self, ball: Ball, rows: Tensor, offsets: Tensor, start: Tensor, pull: Pull | None, warm: list[Tensor], aim: Aim | None
    ) -> tuple[Capped, list[Tensor], Aim | None]:
        """(lower bounds, γ), each (n, s), and the set's multipliers; slopes and aim of these bounds.

        `warm` (n, s, h) per earlier layer: slopes to begin with, < 0 where there are none; `aim` the same for the facets.
        """
        quick = self.to(torch.float32)
        link = ball.region.coupling
        gamma, slopes = start.float(), [v.unsqueeze(1).expand(*rows.shape[:2], -1) for v in quick.slopes]
        slopes = [torch.where(w < 0, v, x.clip(w)) for v, w, x in zip(slopes, warm, quick.lines, strict=True)]
        cold = gamma == 0
        unit = rows.float().abs().mean(-1) / quick.head.abs().mean(-1, keepdim=True).clamp(min=1e-30)
        gamma = torch.where(cold, 0.3 * unit, gamma)
        push, extra = None, torch.zeros_like(gamma)
        if link is not None:  # multipliers of the set's other pieces: good for the first γ and slopes, then held
            A, *_ = self._minorant(rows, offsets, gamma.to(rows.dtype), [v.to(rows.dtype) for v in slopes], None)
            pull = ball.pull(-A, pull)
            u = pull.u.to(A.dtype)
            push, extra = link.back(u).float(), ball.sigma(u).float()
        best = quick.climb(ball.quick, rows.float(), offsets.float(), _Point(gamma, slopes, aim), unit, push, extra)
        found, exact = best.gamma.to(rows.dtype), [v.to(rows.dtype) for v in best.slopes]
        A, const, *_ = self._minorant(rows, offsets, found, exact, self._look(best.aim, rows.dtype))
        if link is None:
            assert best.mu is not None
            top = ball.face.bound(-A, best.mu.to(rows.dtype).clamp(min=1e-18))
        else:
            assert pull is not None
            top, pull = ball.over(-A, pull.u), ball.pull(-A, pull)
            top = torch.minimum(top, ball.over(-A, pull.u))
        return (const - top - PAD * (1 + const.abs() + top.abs()), found, pull), best.slopes, best.aim

    def climb(self, face: Face, rows: Tensor, offsets: Tensor, start: _Point, unit: Tensor, push: Tensor | None, extra: Tensor) -> _Point:
        """The best point met. Slopes of the value: in γ the margin's minorant at the maximiser, in α_j its A_j⁺ z_j, in κ what the facets add there."""
        at, steps = start, STEPS if start.aim is None else DEAR
        cold = None if at.aim is None else at.aim.kappa < 0
        if at.aim is not None and cold is not None and bool(cold.any()):
            at, steps = replace(at, aim=Aim(at.aim.kappa.clamp(min=0), at.aim.turn)), DEAR + 1
        sight = self._look(at.aim, rows.dtype)
        adam = Adam([at.gamma, at.gamma, *at.slopes])
        best, kept = torch.full_like(at.gamma, -INF), at
        mu: Tensor | None = None
        for step in range(steps):
            A, const, heads, share = self._minorant(rows, offsets, at.gamma, at.slopes, sight)
            top, v, mu = face.peak(-A if push is None else -A - push, mu)
            value = const - top - extra
            better = value > best
            best, kept = torch.where(better, value, best), replace(at, mu=mu).over(kept, better)
            if step + 1 == steps:
                break
            rise, turns, grow = self._slopes_at(v, at.slopes, heads, sight, share)
            moves = adam.steps([rise, grow, *turns])
            gamma = (at.gamma + RATE * torch.maximum(unit, at.gamma) * moves[0]).clamp(min=0)
            slopes = [x.clip(s + RATE * move) for s, move, x in zip(at.slopes, moves[2:], self.lines, strict=True)]
            aim = at.aim
            if aim is not None and cold is not None and self.facets is not None:
                kappa = (aim.kappa + 2 * RATE * moves[1]).clamp(0, 1)
                if step == 0 and steps > DEAR:  # the vertices that the rows have with chords
                    aim = Aim(torch.where(cold, FIRST, kappa), torch.where(cold.unsqueeze(-1), self.facets.turn(v), aim.turn))
                    sight = self._look(aim, rows.dtype)
                else:
                    aim = Aim(kappa, aim.turn)
                    assert sight is not None
                    sight = replace(sight, kappa=kappa)
            at = _Point(gamma, slopes, aim)
        return kept

    def _look(self, aim: Aim | None, dtype: torch.dtype) -> Sight | None:
        return None if aim is None or self.facets is None else self.facets.each().sight(aim.to(dtype))

    def _slopes_at(
        self, v: Tensor, slopes: list[Tensor], heads: list[Tensor], sight: Sight | None, share: Share | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Slopes of the value in γ (n, s), in the slopes α (n, s, h) of every layer, and in κ (n, s), with the maximiser v (n, s, d)."""
        y, rise, turns = v, self.const.unsqueeze(1).expand(v.shape[:-1]), []
        grow = torch.zeros_like(rise)
        for l, (W, shift, x, s, head, pull) in enumerate(
            zip(self.weights, self.shifts, self.lines, slopes, heads, self.pulls, strict=True)
        ):
            z = y @ W.T + shift
            turns.append(head.clamp(min=0) * z)
            rise = rise - (z @ pull.unsqueeze(-1)).squeeze(-1)
            falling = (head < 0).to(z.dtype)
            y = z * torch.lerp(s, x.up.unsqueeze(1).expand_as(s), falling) + falling * x.cut.unsqueeze(1)
            if l == 0 and sight is not None and share is not None and self.facets is not None:
                grow = (share.head * z).sum(-1) + (share.row * v).sum(-1) + share.const
                y = y + falling * self.facets.each().lift(z, v, sight)
        return rise + (y @ self.head.unsqueeze(-1)).squeeze(-1), turns, grow

    def _minorant(
        self, rows: Tensor, offsets: Tensor, gamma: Tensor, slopes: list[Tensor], sight: Sight | None
    ) -> tuple[Tensor, Tensor, list[Tensor], Share | None]:
        """(A (n, s, d), const (n, s), heads per layer (n, s, h), what κ = 1 would add):  A·v + const ≤ rows·relu(z) + offsets + γ m."""
        A = rows + gamma.unsqueeze(-1) * self.head.unsqueeze(1)
        const = offsets + gamma * self.const.unsqueeze(1)
        heads, share = [A] * len(slopes), None
        for l in reversed(range(len(slopes))):
            heads[l] = A
            positive = A.clamp(min=0)
            negative = A - positive
            const = const + (negative @ self.lines[l].cut.unsqueeze(-1)).squeeze(-1)
            A = positive * slopes[l] + negative * self.lines[l].up.unsqueeze(1) - gamma.unsqueeze(-1) * self.pulls[l].unsqueeze(1)
            if l == 0 and sight is not None and self.facets is not None:
                share = self.facets.each().share(negative, sight)
                A = A + sight.kappa.unsqueeze(-1) * share.head
                const = const + sight.kappa * share.const
            const = const + A @ self.shifts[l]
            A = A @ self.weights[l]
        if sight is not None and share is not None:
            A = A + sight.kappa.unsqueeze(-1) * share.row
        return A, const, heads, share


@dataclass(frozen=True, eq=False)
class _Point:
    """γ, κ (n, s), slopes (n, s, h) per earlier layer, turns (n, s, d); μ (n, s) of the ball there."""

    gamma: Tensor
    slopes: list[Tensor]
    aim: Aim | None
    mu: Tensor | None = None

    def over(self, other: _Point, better: Tensor) -> _Point:
        """This point where it is better."""
        wide = better.unsqueeze(-1)
        slopes = [torch.where(wide, new, old) for new, old in zip(self.slopes, other.slopes, strict=True)]
        aim = self.aim
        if aim is not None and other.aim is not None:
            turn = aim.turn if aim.turn is other.aim.turn else torch.where(wide, aim.turn, other.aim.turn)
            aim = Aim(torch.where(better, aim.kappa, other.aim.kappa), turn)
        mu = self.mu if other.mu is None or self.mu is None else torch.where(better, self.mu, other.mu)
        return _Point(torch.where(better, self.gamma, other.gamma), slopes, aim, mu)
