r"""Multipliers of the pieces that couple coordinates, for many slightly different rows: ADMM that goes on from where a similar row ended.

The iteration is that of formulations/ascent.py, for  max { B·v : v in ball ∩ box, K v ∈ S }.  At its end y = B − Kᵀu lies in the normal cone of the ball and
box at z, so (u, z) is all a restart needs: a row that moved a little takes a dozen steps where a cold start takes a hundred. Any u is a valid multiplier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from formulations.ball_box import project
from formulations.coupling import Coupling

COLD, WARM = 60, 12  # steps without and with a state to start from
RELAX = 1.5
SMALL = 1e-30


@dataclass(frozen=True, eq=False)
class Pull:
    """Multipliers u (…, m) and the point z (…, d) near the maximiser, both float32."""

    u: Tensor
    z: Tensor

    def at(self, index: Any) -> Pull:
        return Pull(self.u[index], self.z[index])


@dataclass(eq=False)
class Memory:
    """The last pulls and slopes of the rows of a network's neurons: where the next cell's, or the next question's, begin."""

    kept: dict[tuple[str, int], Pull] = field(default_factory=dict)
    slopes: dict[int, list[Tensor]] = field(default_factory=dict)
    turns: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def slopes_of(self, layer: int, widths: tuple[int, ...], device: torch.device) -> list[Tensor]:
        """Per earlier layer (2 h, h'), float32: the last slopes of the layer's h neurons, from below and from above; −1 before there are any. To be written to."""
        if layer not in self.slopes:
            self.slopes[layer] = [torch.full((2 * widths[layer], w), -1.0, dtype=torch.float32, device=device) for w in widths[:layer]]
        return self.slopes[layer]

    def turns_of(self, layer: int, width: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """κ (2 h,) and turns (2 h, d) of the layer's rows (verification/branching/facets.py); κ < 0 before there are any. To be written to."""
        if layer not in self.turns:
            turns = torch.zeros(2 * width, dim, dtype=torch.float32, device=device)
            self.turns[layer] = torch.full_like(turns[:, 0], -1.0), turns
        return self.turns[layer]

    def recall(self, name: tuple[str, int], index: Tensor) -> Pull | None:
        """For rows `index` (n, s); None before the first `keep`."""
        return self.kept[name].at(index) if name in self.kept else None

    def keep(self, name: tuple[str, int], rows: int, index: Tensor, pull: Pull) -> None:
        if name not in self.kept:
            self.kept[name] = Pull(pull.u.new_zeros(rows, pull.u.shape[-1]), pull.z.new_zeros(rows, pull.z.shape[-1]))
        known = self.kept[name]
        known.u[index], known.z[index] = pull.u, pull.z


def climb(
    rows: Tensor, link: Coupling, lo: Tensor, hi: Tensor, radius: Tensor, p: float, far: Tensor, start: Pull | None, steps: int
) -> tuple[Tensor, Pull]:
    """Candidates (R, c, m) for the multipliers of rows (R, 1, d), and the state to go on from. `far` (R, 1): a length that v is of."""
    size = rows.norm(dim=-1, keepdim=True).clamp(min=SMALL)
    A, t = rows / size, (0.8 * far.unsqueeze(-1)).clamp(min=1e-12)
    if start is None:
        z, y, u = torch.zeros_like(A), torch.zeros_like(A), A.new_zeros(len(A), 1, link.size)
    else:
        z, u = start.z.unsqueeze(1), start.u.unsqueeze(1) / size
        y = A - link.back(u)
    theta, roots = torch.zeros_like(far), [torch.zeros_like(far)] * len(link.blocks)
    zk, total, half = link.apply(z), torch.zeros_like(u), steps // 2
    first = u
    for k in range(steps):
        x = link.solve((A - y) * t + z + link.back(zk - u * t))
        xr, kr = RELAX * x + (1 - RELAX) * z, RELAX * link.apply(x) + (1 - RELAX) * zk
        z, theta = project(xr + y * t, lo, hi, radius, p, theta, rounds=2)
        y = y + (xr - z) / t
        target, parts = kr + u * t, []
        for j, (where, block) in enumerate(link.blocks):
            part, roots[j] = block.project(target[..., where], radius, roots[j])
            parts.append(part)
        zk = torch.cat(parts, -1)
        u = (target - zk) / t
        if k >= half:
            total = total + u
    found = torch.cat([u, total / max(steps - half, 1), first], 1) * size
    found = torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
    found = torch.cat([block.feasible(found[..., where]) for where, block in link.blocks], -1)
    return found, Pull(found[:, 0], torch.nan_to_num(z[:, 0], 0.0, 0.0, 0.0))
