r"""Minorants with free slopes:  a_k(α)·v + b_k(α) ≤ m_k(v)  for v = Wδ in the ball ‖v‖_p ≤ r and the box of C, differentiable in α and in nothing else.

On l ≤ z ≤ u a ReLU lies above α z for every α in [0, 1] and below ū(z − l), ū = u/(u − l). From the last layer back to v each row takes the lower line where
its coefficient is positive and the upper line where it is negative, so whatever α is, the row is a minorant (Wong & Kolter 2018; Xu et al. 2021). The bounds
l, u of every layer are such rows themselves, with α of their own, less or plus the support function of ball ∩ box, which contains the region.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from formulations.ball_box import affine_support, level
from formulations.errors import InputError
from formulations.support import Region
from verification.evidence import STEPS
from verification.relu_chain import ReluChain

PAD = 1e-11  # of the terms of a bound, taken off it: float64 rounding of the pass stays far below
PAIRS = 1 << 14  # pairs of neurons up to which every bounded neuron has slopes of its own; beyond, a layer shares one set
TOLD = 1 << 18  # pairs up to which they are handed on


class FixedRows(nn.Module):
    """Rows that hold on all of C (or are taken to): a (n, K, d), b (n, K), over v = Wδ."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        if a.ndim != 3 or b.shape != a.shape[:2]:
            raise InputError(f"FixedRows: a has shape {tuple(a.shape)} and b {tuple(b.shape)}; give (n, K, d) and (n, K).")
        self.register_buffer("a", a.double())
        self.register_buffer("b", b.double())

    def forward(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.get_buffer("a"), self.get_buffer("b")
        return a, b


class FrozenRows(nn.Module):
    """The margins Q f(x0 + δ) + s of a ReLU chain, frozen, for n inputs; parameters are slopes α alone, one per row and open ReLU.

    x0 (n, d), Q (n, K, m), s (n, K); `region` brings scale, box and exponent (its coupling is left to the multipliers: a larger region is sound).
    """

    def __init__(self, chain: ReluChain, x0: Tensor, Q: Tensor, s: Tensor, region: Region) -> None:
        super().__init__()
        n, K = s.shape
        self.depth, self.p = len(chain.weights) - 1, region.p
        for l, (W, shift) in enumerate(zip(chain.weights, chain.shifts, strict=True)):
            self.register_buffer(f"W{l}", (W / region.scale if l == 0 else W).detach())
            self.register_buffer(f"c{l}", shift.detach())
        with torch.no_grad():
            start = x0 @ chain.weights[0].T + chain.shifts[0]
            size = x0.abs() @ chain.weights[0].abs().T + chain.shifts[0].abs()
        for name, value in {"start": start, "start_size": size, "Q": Q, "s": s, "lo": region.lo, "hi": region.hi}.items():
            self.register_buffer(name, value.detach())
        widths = chain.widths
        self.slopes = nn.ParameterList([nn.Parameter(torch.full((n, K, h), torch.nan, dtype=s.dtype, device=s.device)) for h in widths])
        self.inner = nn.ModuleList()
        for t in range(1, self.depth):
            own = [h * widths[t] <= PAIRS for h in widths[:t]]
            shape = [(n, 2 * widths[t] if mine else 1, h) for h, mine in zip(widths[:t], own, strict=True)]
            self.inner.append(nn.ParameterList([nn.Parameter(torch.full(v, torch.nan, dtype=s.dtype, device=s.device)) for v in shape]))

    def forward(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        """(a (n, K, d), b (n, K)), minorants on ‖v‖ ≤ radius (n,) and the box."""
        Q, s, lines = self.get_buffer("Q"), self.get_buffer("s"), self._lines(radius)
        head, shift = self.get_buffer(f"W{self.depth}"), self._shift(self.depth)
        a, b = self._back(Q @ head, torch.einsum("nkm,nm->nk", Q, shift.expand(len(Q), -1)) + s, lines, self.slopes)
        return a, b - PAD * (1 + b.abs() + (Q @ head).abs().sum(-1))

    @torch.no_grad()
    def used(self, radius: Tensor) -> tuple[tuple[Tensor, ...], dict[tuple[int, int], Tensor]]:
        """(slopes, inner) of the rows at this radius, as a `Minorant` has them; inner, as `round_inner` leaves it."""
        lines, n = self._lines(radius), len(self.get_buffer("s"))
        inner = {}
        for t, sets in enumerate(self.inner, start=1):
            width = self.get_buffer(f"W{t}").shape[0]
            for l, slope in enumerate(cast("nn.ParameterList", sets)):
                if width * slope.shape[2] <= TOLD:
                    open_ = (lines[l].up > 0) & (lines[l].up < 1)
                    code = (slope * STEPS).round().to(torch.int16).expand(n, 2 * width, -1).reshape(n, 2, width, -1)
                    inner[t, l] = torch.where(open_[:, None, None], code, -1)
        A, slopes = self.get_buffer("Q") @ self.get_buffer(f"W{self.depth}"), list[Tensor]()
        for l in reversed(range(self.depth)):
            slopes.insert(0, torch.where(A > 0, lines[l].low(self.slopes[l]), torch.where(A < 0, lines[l].up[:, None], 0.0)))
            A = (A * slopes[0]) @ self.get_buffer(f"W{l}")
        return tuple(slopes), inner

    @torch.no_grad()
    def round_inner(self) -> None:
        """The α of the bounds under the rows as a certificate writes them, multiples of 1/255; any are sound."""
        for slope in self.inner.parameters():
            slope.copy_((slope.clamp(0.0, 1.0) * STEPS).round() / STEPS)

    @torch.no_grad()
    def project(self) -> None:
        """α into [0, 1]: the only condition under which a row is a minorant."""
        for value in self.parameters():
            value.clamp_(0.0, 1.0)

    def _lines(self, radius: Tensor) -> list[_Lines]:
        """The lines of every layer's ReLUs on the bounds of what enters them."""
        lines: list[_Lines] = []
        for t in range(self.depth):
            W = self.get_buffer(f"W{t}")
            both = torch.cat([W, -W]).expand(len(self.get_buffer("s")), -1, -1)
            shifts = self._shift(t)
            slopes: Any = [] if t == 0 else self.inner[t - 1]
            least = self._least(*self._back(both, torch.cat([shifts, -shifts], -1), lines, slopes), radius)
            size = 1 + least.abs() + (torch.cat([self.get_buffer("start_size")] * 2, 1) if t == 0 else 0.0)
            least = least - PAD * size
            lower, negative = least.chunk(2, 1)
            lines.append(_Lines(lower, torch.maximum(-negative, lower)))
        return lines

    def _shift(self, layer: int) -> Tensor:
        return self.get_buffer("start") if layer == 0 else self.get_buffer(f"c{layer}").expand(len(self.get_buffer("s")), -1)

    def _back(self, A: Tensor, const: Tensor, lines: list[_Lines], slopes: Any) -> tuple[Tensor, Tensor]:
        """Minorants over v of A·z + const, z what comes out of the layers of `lines`; A (n, s, h), const (n, s)."""
        if len(lines) and A.shape[-1] == self.get_buffer(f"W{len(lines) - 1}").shape[0]:
            for l in reversed(range(len(lines))):
                line, slope = lines[l], slopes[l]
                if bool(torch.isnan(slope).any()):  # the first pass: CROWN's choice, the smaller triangle
                    with torch.no_grad():
                        slope.copy_((line.up > 0.5).to(A.dtype)[:, None].expand_as(slope))
                positive, negative = A.clamp(min=0), A.clamp(max=0)
                const = const + (negative * line.cut[:, None]).sum(-1)
                A = positive * line.low(slope) + negative * line.up[:, None]
                const = const + (A * self._shift(l)[:, None]).sum(-1)
                A = A @ self.get_buffer(f"W{l}")
        return A, const

    def _least(self, a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
        """A lower bound (n, s) of the rows over ball ∩ box."""
        lo, hi = self.get_buffer("lo")[:, None], self.get_buffer("hi")[:, None]
        r = radius[:, None].expand(b.shape)
        c, mu = affine_support(-a, lo, hi, r, self.p)
        return b - (c + mu * level(r, self.p))


class _Lines:
    """Upper line ū z + cut of every ReLU of a layer, and the range of its lower slope; (n, h)."""

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        below, above = lower.clamp(max=0), upper.clamp(min=0)
        self.up = above / (above - below).clamp(min=1e-300)
        self.cut = -self.up * below
        self.least, self.most = (lower >= 0).to(lower.dtype), (upper > 0).to(lower.dtype)
        self.most = torch.maximum(self.most, self.least)

    def low(self, slope: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(slope.clamp(0, 1), self.least[:, None]), self.most[:, None])
