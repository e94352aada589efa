"""What a search knows and may still spend, for a batch of inputs, and the moves on it that all others are made of: record a witness, meet a crossing."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from formulations.norms import INF, GroupNorm, Norm
from verification.attack.answers import Budget
from verification.attack.effort import Effort
from verification.attack.lanes import Lanes, place, smallest
from verification.attack.network import Network
from verification.attack.subproblem import Subproblem

SMALL = 0.05  # a crossing is close when its margin is this part of the margins that it began between
SETTLED = 1e-7  # relative to the length: shorter segments are not searched, and a trust region this small ends a lane's polish


class OutOfTime(Exception):
    """The seconds are spent."""


class SearchState:
    """One batch under search: `best` (n, d) is the shortest witness so far, NaN where there is none, and `length` (n,) its norm, +inf there.

    margins (n, K) are those at the anchors, where every search begins.
    """

    margins: Tensor

    def __init__(
        self, net: Network, steps: Subproblem, norm: Norm, budget: Budget, effort: Effort, seeds: list[int], deadline: float, tick: Callable[[], None]
    ) -> None:  # fmt: skip
        self.net, self.steps, self.norm, self.budget, self.effort = net, steps, norm, budget, effort
        self.seeds, self.deadline, self.tick = seeds, deadline, tick
        self.w = torch.tensor(norm.scale(net.d).copy(), device=net.device)
        self.anchor = steps.anchor
        self.best = torch.full_like(net.x0, float("nan"))
        self.length = torch.full_like(net.x0[:, 0], INF)
        self.regions = torch.zeros_like(net.forward_passes)

    def record(self, lanes: Lanes) -> None:
        """Keep the shortest flipped lane of every input; ties go to the first. Raises OutOfTime after the deadline."""
        flipped = torch.isfinite(lanes.length).nonzero()[:, 0]
        winner = flipped[smallest(lanes.who[flipped], lanes.length[flipped], 1)]
        winner = winner[lanes.length[winner] < self.length[lanes.who[winner]]]
        self.best[lanes.who[winner]], self.length[lanes.who[winner]] = lanes.delta[winner], lanes.length[winner]
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def affordable(self, who: Tensor, forward: int, backward: int) -> Tensor:
        """Indices of the lanes whose input can still pay for them, its first lanes first; none after the deadline. One forward pass is kept for the final check."""
        if time.monotonic() > self.deadline:
            return who.new_empty(0)
        share = place(who) + 1
        forward_left = self.budget.forward - 1 - self.net.forward_passes[who]
        backward_left = self.budget.backward - self.net.backward_passes[who]
        return ((share * forward <= forward_left) & (share * backward <= backward_left)).nonzero()[:, 0]

    def cross(self, inside: Tensor, m_in: Tensor, outside: Tensor, m_out: Tensor, done: Tensor, who: Tensor, passes: int) -> Tensor:
        """A flipped point near the crossing on each segment from `outside` (margin m_out) to the longer, flipped `inside` (m_in); `outside` where `done`.

        Margins are piecewise linear or nearly so: the secant is tried twice for every bisection. Where they saturate the margin says little about the
        distance: such lanes get up to `saturated` passes more, until their margin is a small part of what it was.
        """
        share_in, small = torch.ones_like(m_in).masked_fill(done, 0.0), SMALL * (m_out - m_in).abs()
        share_out, m_in, m_out = torch.zeros_like(m_in), m_in.clone(), m_out.clone()
        gain = self.norm_of(inside) - self.norm_of(outside)
        lanes = (~done & (gain > SETTLED * self.norm_of(inside))).nonzero()[:, 0]
        for k in range(passes + self.effort.saturated):
            if k >= passes:
                lanes = lanes[m_in[lanes] < -small[lanes]]
            if not len(lanes):
                break
            low, high, f_low, f_high = share_out[lanes], share_in[lanes], m_out[lanes], m_in[lanes]
            cut = ((f_low / (f_low - f_high)).nan_to_num(0.5) + 1e-3).clamp(1e-3, 0.999) if k % 3 != 2 else torch.full_like(low, 0.5)
            t = low + (high - low) * cut
            margins, flipped = self.net.margins(outside[lanes] + t[:, None] * (inside[lanes] - outside[lanes]), who[lanes])
            m = margins.amin(1)
            share_in[lanes], m_in[lanes] = torch.where(flipped, t, high), torch.where(flipped, m, f_high)
            share_out[lanes], m_out[lanes] = torch.where(flipped, low, t), torch.where(flipped, f_low, m)
        return torch.where((share_in == 1)[:, None], inside, outside + share_in[:, None] * (inside - outside))

    def random(self, inputs: Tensor, count: int, salt: int) -> Tensor:
        """(inputs × count, d) normal numbers, each input's from a generator of its own."""
        generators = [torch.Generator().manual_seed(self.seeds[i] ^ salt) for i in inputs.tolist()]
        draws = [torch.randn(count, self.net.d, generator=g, dtype=torch.float64) for g in generators]
        return torch.cat([self.net.x0.new_zeros(0, self.net.d), *(v.to(self.net.device) for v in draws)])

    def norm_of(self, delta: Tensor) -> Tensor:
        """‖Wδ‖ of every lane."""
        if isinstance(self.norm, GroupNorm):
            return torch.tensor(self.norm.value(delta.cpu().numpy()), device=delta.device)
        out: Tensor = torch.linalg.vector_norm(self.w * delta, self.norm.p, dim=1)
        return out

    def dual_norm_of(self, slope: Tensor) -> Tensor:
        """‖W⁻¹a‖_* of every lane."""
        if isinstance(self.norm, GroupNorm):
            return torch.tensor(self.norm.dual_value(slope.cpu().numpy()), device=slope.device)
        out: Tensor = torch.linalg.vector_norm(slope / self.w, self.norm.dual_p, dim=1)
        return out
