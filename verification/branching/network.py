r"""The network of one question, in torch: affine maps over v = Wδ, ReLUs between them, and linear lower bounds through them.

On l ≤ z ≤ u an open ReLU lies between lines:   α z ≤ relu(z) ≤ ū z − ū l,   ū = u/(u − l),   any α in [0, 1].
A row A·relu(z) is bounded below by A⁺·(α z) + A⁻·(ū z − ū l); so from the last layer back to v every row gets an affine minorant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verification.exact.question import Question

TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Lines:
    """The lines of one layer, each (n, h): upper slope ū and offset −ū l; the range that the lower slope may take (0, 1, or fixed where the sign is known)."""

    up: Tensor
    cut: Tensor
    least: Tensor
    most: Tensor

    @staticmethod
    def of(lower: Tensor, upper: Tensor) -> Lines:
        below, above = lower.clamp(max=0), upper.clamp(min=0)
        up = above / (above - below).clamp(min=TINY)
        least = (lower >= 0).to(lower.dtype)
        return Lines(up, -up * below, least, torch.maximum((upper > 0).to(lower.dtype), least))

    def low(self, slope: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(slope, self.least), self.most)

    def clip(self, slopes: Tensor) -> Tensor:
        """Slopes (n, s, h) of s rows in their range."""
        return torch.minimum(torch.maximum(slopes, self.least.unsqueeze(1)), self.most.unsqueeze(1))

    def steeper(self) -> Tensor:
        """The lower slope of the smaller triangle: 1 where u > −l, else 0."""
        return self.low((self.up > 0.5).to(self.up.dtype))


@dataclass(frozen=True, eq=False)
class Network:
    """Maps W_l (h_l, h_{l−1}), shifts; z_1 = W_1 v + β_1 with x0 folded in. margins: rows r_k, c_k with m_k = r_k·relu(z_L) + c_k (r_k·v + c_k without a ReLU)."""

    weights: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    rows: Tensor
    offsets: Tensor

    @staticmethod
    def of(question: Question, scale: Tensor) -> Network:
        def tensor(v: object) -> Tensor:
            return torch.as_tensor(v, dtype=scale.dtype, device=scale.device)

        pairs = [question.margin_row(k) for k in range(question.rows)]
        rows, offsets = torch.stack([tensor(r) for r, _ in pairs]), tensor([c for _, c in pairs])
        weights = [tensor(W) for W in question.weights[:-1]]
        if weights:
            weights[0] = weights[0] / scale
        else:
            rows = rows / scale
        return Network(tuple(weights), tuple(tensor(b) for b in question.shifts[:-1]), rows, offsets)

    @property
    def depth(self) -> int:
        return len(self.weights)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(len(b) for b in self.shifts)

    def places(self, at: Tensor) -> list[tuple[int, int]]:
        """(layer, neuron) of neurons counted over all layers."""
        out = []
        for j in at.tolist():
            layer = 0
            while j >= self.widths[layer]:
                j -= self.widths[layer]
                layer += 1
            out.append((layer, j))
        return out

    @property
    def dim(self) -> int:
        return int(self.weights[0].shape[1]) if self.weights else int(self.rows.shape[1])

    def margins(self, v: Tensor) -> Tensor:
        """m_k (n, K) of the network itself at v (n, d)."""
        for W, shift in zip(self.weights, self.shifts, strict=True):
            v = (v @ W.T + shift).relu()
        return v @ self.rows.T + self.offsets

    def to_input(self, A: Tensor, const: Tensor, lines: list[Lines], slopes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Minorants (n, s, d), (n, s) over v of the rows A·relu(z) + const, A (n, s, h), z the inputs of the layer after the last of `lines`."""
        for l in reversed(range(len(lines))):
            positive = A.clamp(min=0)
            negative = A - positive
            const = const + (negative @ lines[l].cut.unsqueeze(-1)).squeeze(-1)
            A = positive * slopes[l].unsqueeze(1) + negative * lines[l].up.unsqueeze(1)
            const = const + A @ self.shifts[l]
            A = A @ self.weights[l]
        return A, const
