"""The network as the search sees it: margins and their gradients at changed inputs, in float64, counted.

A lane is one point under search; `who` (lanes,) names the input that each lane belongs to. Lanes are evaluated in blocks of one fixed size, the
last one padded: matrix kernels round differently for different batch sizes, so this is what makes an answer independent of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from formulations.errors import InputError
from verification.attack.kinks import Bends, Kinks
from verification.decision import Decision
from verification.model import check_alone, check_decisions
from verification.model import outputs as checked_outputs

FLIP = 1e-10  # a margin this far below 0, relative to the outputs, stays below 0 in any order of summation


class Network:
    """A float64 `model` at a batch of inputs x0 (n, *shape), counting the passes of each: `forward_passes`, `backward_passes` (n,)."""

    def __init__(self, model: torch.nn.Module, x0: Tensor, block: int) -> None:
        self.model, self.block, self.device, self.shape = model, block, x0.device, tuple(x0.shape[1:])
        self.x0 = x0.flatten(1)
        self.n, self.d = self.x0.shape
        self.forward_passes = torch.zeros(self.n, dtype=torch.long, device=self.device)
        self.backward_passes = torch.zeros_like(self.forward_passes)

    def decide(self, decisions: Sequence[Decision] | Decision | None) -> list[Decision]:
        """One decision per input, and its rows laid out for gathering. None: the predicted class stays ahead of every other."""
        who = torch.arange(self.n, device=self.device)
        self.forward_passes += 1
        blocks = self._blocks(torch.zeros_like(self.x0), who)
        outputs = torch.cat([checked_outputs(self.model, z.view(-1, *self.shape))[:count] for z, _, count in blocks])
        self.m = outputs.shape[1]
        wrong = torch.nonzero(~torch.isfinite(outputs).all(1))
        if len(wrong):
            raise InputError(f"find_witness: the outputs at input {int(wrong[0])} are not finite; there is no decision to flip.")
        check_alone(self.model, self.x0.view(-1, *self.shape))
        if decisions is None:
            chosen = [Decision.classification(int(c), outputs.shape[1]) for c in outputs.argmax(1)]
        else:
            chosen = [decisions] * self.n if isinstance(decisions, Decision) else list(decisions)
        check_decisions(chosen, self.n)
        other = next((c for c in chosen if c.rows.shape[1] != outputs.shape[1]), None)
        if other is not None:
            raise InputError(f"find_witness: a decision over {other.rows.shape[1]} outputs for a model with {outputs.shape[1]}.")
        rows = max(len(c.rows) for c in chosen)
        width = max(int((c.rows != 0).sum(1).max()) for c in chosen)
        index, weight = np.zeros((self.n, rows, width), dtype=np.int64), np.zeros((self.n, rows, width))
        shift = np.full((self.n, rows), np.inf)  # rows that an input does not have never fall
        for i, c in enumerate(chosen):
            order = np.argsort(c.rows == 0, axis=1, kind="stable")[:, :width]
            index[i, : len(order)], weight[i, : len(order)] = order, np.take_along_axis(c.rows, order, axis=1)
            shift[i, : len(order)] = c.shifts
        self.index, self.weight, self.shift = (torch.tensor(v, device=self.device) for v in (index, weight, shift))
        return chosen

    def margins(self, delta: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        """(margins (lanes, K), flipped (lanes,)) at x0 + delta; one forward pass each."""
        self.forward_passes.index_add_(0, who, torch.ones_like(who))
        pieces = [self.x0.new_zeros(0, self.m)]
        with torch.no_grad():
            for z, _, count in self._blocks(delta, who):
                pieces.append(self._outputs(z)[:count])
        return self._read(torch.cat(pieces), who)

    def linearise(self, delta: Tensor, who: Tensor, row: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(margins (lanes, K), flipped (lanes,), gradient (lanes, d)) at x0 + delta, of margin `row` or of the lowest; one pass of each kind."""
        self.forward_passes.index_add_(0, who, torch.ones_like(who))
        self.backward_passes.index_add_(0, who, torch.ones_like(who))
        pieces, slopes = [self.x0.new_zeros(0, self.m)], [self.x0.new_zeros(0, self.d)]
        for z, lanes, count in self._blocks(delta, who):
            z.requires_grad_(True)
            outputs = self._outputs(z)
            at = who[lanes]
            k = self._read(outputs.detach(), at)[0].argmin(1) if row is None else row[lanes]
            picked = outputs.gather(1, self.index[at, k]) * self.weight[at, k]
            if picked.requires_grad:
                (slope,) = torch.autograd.grad(picked.sum(), z, allow_unused=True)
            else:
                slope = None  # a network whose output does not depend on its input
            slopes.append((torch.zeros_like(z) if slope is None else slope)[:count])
            pieces.append(outputs.detach()[:count])
        margins, flipped = self._read(torch.cat(pieces), who)
        return margins, flipped, torch.cat(slopes).nan_to_num(0.0, 0.0, 0.0)

    def bends(self, delta: Tensor, who: Tensor) -> tuple[Tensor, Tensor, Bends]:
        """(margins (lanes, K), flipped (lanes,), the units at which the network bends) at x0 + delta; one forward pass each."""
        self.forward_passes.index_add_(0, who, torch.ones_like(who))
        pieces, found = [], []
        for z, _, count in self._blocks(delta, who):
            with torch.no_grad(), Kinks() as kinks:
                pieces.append(self._outputs(z)[:count])
            found.append([v[:count] for v in kinks.pieces])
        return *self._read(torch.cat(pieces), who), Bends([torch.cat(layer) for layer in zip(*found, strict=True)])

    def bent(self, delta: Tensor, who: Tensor) -> tuple[Tensor, Tensor, Tensor, Bends, Tensor]:
        """`linearise` of the lowest margin, with `bends` and the gradient of that margin in each of their outputs (lanes, units); a pass of each kind."""
        self.forward_passes.index_add_(0, who, torch.ones_like(who))
        self.backward_passes.index_add_(0, who, torch.ones_like(who))
        pieces, slopes, found, weights = [], [], [], []
        for z, lanes, count in self._blocks(delta, who):
            z.requires_grad_(True)
            with Kinks() as kinks:
                outputs = self._outputs(z)
            at = who[lanes]
            k = self._read(outputs.detach(), at)[0].argmin(1)
            picked = outputs.gather(1, self.index[at, k]) * self.weight[at, k]
            about = [z, *kinks.outputs]
            if picked.requires_grad:
                gradients = torch.autograd.grad(picked.sum(), about, allow_unused=True, materialize_grads=True)
            else:  # a network whose output does not depend on its input
                gradients = tuple(torch.zeros_like(v) for v in about)
            pieces.append(outputs.detach()[:count])
            slopes.append(gradients[0][:count])
            weights.append(torch.cat([self.x0.new_zeros(count, 0), *(g.flatten(1)[:count] for g in gradients[1:])], 1))
            found.append([v.detach()[:count] for v in kinks.pieces])
        margins, flipped = self._read(torch.cat(pieces), who)
        slope = torch.cat(slopes).nan_to_num(0.0, 0.0, 0.0)
        return margins, flipped, slope, Bends([torch.cat(layer) for layer in zip(*found, strict=True)]), torch.cat(weights).nan_to_num(0.0)

    def rows(self, delta: Tensor, who: Tensor, unit: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """(values (lanes,), gradients (lanes, d)) of v_above − v_below of one unit for every lane; a pass of each kind."""
        self.forward_passes.index_add_(0, who, torch.ones_like(who))
        self.backward_passes.index_add_(0, who, torch.ones_like(who))
        values, slopes = [self.x0.new_zeros(0)], [self.x0.new_zeros(0, self.d)]
        for z, lanes, count in self._blocks(delta, who):
            z.requires_grad_(True)
            with Kinks() as kinks:
                self._outputs(z)
            gap, first = torch.zeros_like(z[:, 0]), 0
            for v in kinks.pieces:
                here = ((unit[lanes] >= first) & (unit[lanes] < first + v.shape[1])).nonzero()[:, 0]
                at = unit[lanes[here]] - first
                gap = gap.index_add(0, here, v[here, at, above[lanes[here]]] - v[here, at, below[lanes[here]]])
                first += v.shape[1]
            (slope,) = torch.autograd.grad(gap.sum(), z)
            values.append(gap.detach()[:count])
            slopes.append(slope[:count])
        return torch.cat(values), torch.cat(slopes)

    def _blocks(self, delta: Tensor, who: Tensor) -> list[tuple[Tensor, Tensor, int]]:
        """(inputs (block, d), lanes (block,), how many are real) for every block; padding repeats lane 0."""
        out = []
        for i in range(0, len(who), self.block):
            lanes = torch.arange(i, i + self.block, device=self.device)
            lanes = torch.where(lanes < len(who), lanes, 0)
            out.append((self.x0[who[lanes]] + delta[lanes], lanes, min(self.block, len(who) - i)))
        return out

    def _outputs(self, z: Tensor) -> Tensor:
        outputs: Tensor = self.model(z.view(-1, *self.shape))
        return outputs

    def _read(self, outputs: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        margins, size = self.shift[who], self.shift[who].abs()
        for j in range(self.index.shape[2]):
            term = outputs.gather(1, self.index[who, :, j]) * self.weight[who, :, j]
            margins, size = margins + term, size + term.abs()
        room = FLIP * outputs.abs().amax(1, keepdim=True)
        return margins, ((margins <= -room) & (margins < 0) | (size == 0)).any(
            1
        )  # size 0: outputs that are 0 exactly, as a dead ReLU's are
