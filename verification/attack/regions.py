r"""Region hopping: on a small chain of affine maps and ReLUs, the exact nearest flip of one activation region after another.

Within the region of one activation pattern the network is affine, so the nearest flip there is one convex program,

    min ‖Wδ‖   s.t.   ±(neuron's input) ≤ 0 for every neuron,   m_k(δ) ≤ 0,   δ ∈ C

and where a neuron's row is active at its answer, the region on its other side is next. Regions are taken in the order of the answers that led to them,
and left alone when their own answer is longer than the best by more than a twentieth. First-order polish stops at folds of the boundary; this does not.
The programs use the weights themselves: each is charged as one pass of each kind, though its matrices cost as much as a forward pass of d columns.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import torch
from torch import Tensor, nn

from formulations.cones import ConeProgram
from formulations.errors import InputError
from formulations.norms import INF, Array
from formulations.pieces import CustomPiece
from formulations.solve import Claim
from verification.attack.lanes import Lanes
from verification.attack.state import SearchState
from verification.relu_chain import ReluChain

LARGEST = 20_000  # numbers in the weights of a network that is looked at as a chain
WIDEST = 128  # features of its input
WORTH = 1.05  # regions whose nearest flip is longer than the best by more than this factor lead nowhere
PAST = 1e-7  # how far below 0 the margin is asked to fall, relative to the outputs: a solver's answer lies on the boundary
ACTIVE = 1e-6  # slack, relative to its row, under which a neuron's row is active

Pattern = tuple[bool, ...]


def small_chain(model: nn.Module, shape: tuple[int, ...], d: int, neurons: int) -> ReluChain | None:
    """The network as a chain, where it is one of at most so many neurons; else None."""
    if neurons < 1 or d > WIDEST or sum(p.numel() for p in model.parameters()) > LARGEST:
        return None
    try:
        chain = ReluChain.from_model(model, shape)
    except (InputError, RuntimeError):
        return None
    return chain if 0 < sum(chain.widths) <= neurons else None


class Hopper:
    """The regions of one network, met from the witnesses of one search."""

    def __init__(self, search: SearchState, chain: ReluChain) -> None:
        self.search = search
        self.weights = [W.cpu().numpy() for W in chain.weights]
        self.shifts = [b.cpu().numpy() for b in chain.shifts]

    def hop(self, lanes: Lanes) -> None:
        """From the regions of the best witness and of the flipped `lanes` of every input; better witnesses are recorded as they come."""
        search = self.search
        for i in torch.isfinite(search.length).nonzero()[:, 0].tolist():
            own = lanes.delta[(lanes.who == i) & torch.isfinite(lanes.length)]
            parts = search.steps.parts_of(i)
            at_anchor = float(search.length[i]) <= float(search.norm_of(search.anchor[i : i + 1])[0])
            if not at_anchor and not any(isinstance(p.piece, CustomPiece) for p in parts):
                self._from(i, torch.cat([search.best[i : i + 1], own]).cpu().numpy())

    def _from(self, i: int, starts: Array) -> None:
        search, net = self.search, self.search.net
        x0, parts = net.x0[i].cpu().numpy(), search.steps.parts_of(i)
        program = ConeProgram(search.norm, parts, net.d, sum(len(b) for b in self.shifts[:-1]) + 1)
        count = itertools.count()
        queue: list[tuple[float, float, int, Pattern, int]] = []
        for k, delta in enumerate(starts):
            pattern, outputs = self._pattern(x0 + delta)
            margins = self._margins(i, outputs)
            for row in np.argsort(margins, kind="stable")[:2].tolist():
                if np.isfinite(margins[row]):
                    heapq.heappush(queue, (0.0, float(k), next(count), pattern, row))
        seen: set[tuple[Pattern, int]] = set()
        nearest, me = INF, torch.tensor([i], device=net.device)
        while queue and len(seen) < search.effort.regions and len(search.affordable(me, 2, 1)):
            came_from, _, _, pattern, row = heapq.heappop(queue)
            if came_from > WORTH * min(nearest, float(search.length[i])):
                break
            if (pattern, row) in seen:
                continue
            seen.add((pattern, row))
            net.backward_passes[i] += 1
            search.regions[i] += 1
            A, b = self._rows(i, x0, pattern, row)
            claim, delta, lam, _, _ = program.solve(A, b, parts)
            slack = -(A @ delta + b) if np.isfinite(delta).all() else np.full(len(b), -INF)
            size = np.abs(A).sum(1) * np.abs(delta).max(initial=0.0) + np.abs(b) + 1e-12
            if claim not in (Claim.OPTIMAL, Claim.INACCURATE) or (slack < -1e-5 * size).any():
                continue  # no allowed change of this region flips
            self._look(me, delta)
            length = float(search.norm.value(delta))
            nearest = min(nearest, length)
            if length > WORTH * min(nearest, float(search.length[i])):
                continue
            for j in np.flatnonzero(slack[:-1] <= ACTIVE * size[:-1]).tolist():
                beyond = (*pattern[:j], not pattern[j], *pattern[j + 1 :])
                if (beyond, row) not in seen:
                    heapq.heappush(queue, (length, -float(lam[j]), next(count), beyond, row))

    def _look(self, me: Tensor, delta: Array) -> None:
        """Record δ, pulled into C, and a point a millionth farther, where they flip."""
        search, i = self.search, int(me[0])
        anchor = search.anchor[i].cpu().numpy()
        points = [search.steps.inside(i, anchor + t * (delta - anchor)) for t in (1.0, 1 + 1e-6)]
        point = torch.tensor(np.stack(points), device=me.device)
        who = me.expand(2)
        margins, flipped = search.net.margins(point, who)
        allowed = torch.tensor([search.steps.violation(i, p) <= 1e-9 for p in points], device=me.device)
        search.record(Lanes(who, margins.argmin(1), point, torch.where(flipped & allowed, search.norm_of(point), INF)))

    def _pattern(self, z: Array) -> tuple[Pattern, Array]:
        """(which neurons are on, outputs) at an input z."""
        on: list[bool] = []
        for W, b in zip(self.weights[:-1], self.shifts[:-1], strict=True):
            z = W @ z + b
            on += (z > 0).tolist()
            z = np.maximum(z, 0)
        return tuple(on), self.weights[-1] @ z + self.shifts[-1]

    def _margins(self, i: int, outputs: Array) -> Array:
        net = self.search.net
        index, weight, shift = (v[i].cpu().numpy() for v in (net.index, net.weight, net.shift))
        return np.asarray((outputs[index] * weight).sum(1) + shift)

    def _rows(self, i: int, x0: Array, pattern: Pattern, row: int) -> tuple[Array, Array]:
        """A (K, d), b (K,) of the region's program: a row for every neuron, the margin's last."""
        M, v, signs = np.eye(len(x0)), x0, iter(pattern)
        rows, levels = [], []
        for W, shift in zip(self.weights[:-1], self.shifts[:-1], strict=True):
            M, v = W @ M, W @ v + shift
            on = np.array([next(signs) for _ in shift])
            side = np.where(on, -1.0, 1.0)
            rows.append(side[:, None] * M)
            levels.append(side * v)
            M, v = on[:, None] * M, on * v
        M, v = self.weights[-1] @ M, self.weights[-1] @ v + self.shifts[-1]
        net = self.search.net
        index, weight = net.index[i, row].cpu().numpy(), net.weight[i, row].cpu().numpy()
        level = float(weight @ v[index]) + float(net.shift[i, row]) + PAST * float(np.abs(v).max())
        return np.vstack([*rows, (weight @ M[index])[None]]), np.concatenate([*levels, [level]])
