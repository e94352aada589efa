r"""Bounds of every pre-activation over { ‖Wδ‖ ≤ r } ∩ C, with some neurons held to one sign.

For the rows of a layer the network is walked back: wherever a ReLU's input lies in [l, u] with l < 0 < u,

    α z ≤ relu(z) ≤ s (z − l),      s = u/(u − l),  α = 1 where u > −l, else 0          (CROWN, Zhang et al. 2018)

until an affine function of δ is left, whose maximum is the support function of the region itself. A neuron held active (inactive) is the
identity (zero). The interval bound from the layer before is taken where it is tighter. Every bound is widened by far more than its rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formulations.norms import INF, Array
from formulations.support import Region

SLACK = 1e-9  # relative widening of every bound: a million times the rounding errors of the passes below
EMPTY = 1e-7  # bounds that cross by more (relatively) leave a region without points


@dataclass(frozen=True, eq=False)
class Bounds:
    """lower, upper: one array (n_l,) per ReLU layer."""

    lower: tuple[Array, ...]
    upper: tuple[Array, ...]

    @property
    def empty(self) -> bool:
        """Do two bounds contradict each other? Then the region has no point."""
        return any(bool((l > u + EMPTY * (1 + np.abs(l) + np.abs(u))).any()) for l, u in zip(self.lower, self.upper, strict=True))

    def within(self, other: Bounds) -> Bounds:
        """The tighter of two bounds, neuron by neuron."""
        return Bounds(
            tuple(np.maximum(a, b) for a, b in zip(self.lower, other.lower, strict=True)),
            tuple(np.minimum(a, b) for a, b in zip(self.upper, other.upper, strict=True)),
        )

    def held(self, layer: int, neuron: int, active: bool) -> Bounds:
        """The same region with one neuron's sign fixed."""
        lower, upper = list(self.lower), list(self.upper)
        if active:
            lower[layer] = lower[layer].copy()
            lower[layer][neuron] = max(lower[layer][neuron], 0.0)
        else:
            upper[layer] = upper[layer].copy()
            upper[layer][neuron] = min(upper[layer][neuron], 0.0)
        return Bounds(tuple(lower), tuple(upper))

    def unstable(self) -> list[NDArray[np.bool_]]:
        """Per layer, which neurons may have either sign."""
        return [(l < 0) & (u > 0) for l, u in zip(self.lower, self.upper, strict=True)]


class Propagation:
    """Pre-activation bounds of one network around one input (folded into the first shift, whose rounding is relative to `first_size`)."""

    def __init__(self, weights: tuple[Array, ...], shifts: tuple[Array, ...], first_size: Array, device: torch.device | str | None) -> None:
        like = {"dtype": torch.float64, "device": torch.device("cpu") if device is None else torch.device(device)}
        self._first_size = torch.as_tensor(first_size, **like)  # type: ignore[arg-type]
        self._W = [torch.as_tensor(W, **like) for W in weights]  # type: ignore[arg-type]
        self._b = [torch.as_tensor(b, **like) for b in shifts]  # type: ignore[arg-type]

    def bounds(self, region: Region, known: Bounds | None = None, first: int = 0) -> Bounds:
        """Bounds of all ReLU layers; `known` bounds of a larger region (with its held signs) are kept where tighter, and for layers before `first`."""
        lower: list[Tensor] = []
        upper: list[Tensor] = []
        for layer in range(len(self._W) - 1):
            own = None if known is None else (self._tensor(known.lower[layer]), self._tensor(known.upper[layer]))
            if layer < first and own is not None:
                l, u = own
            else:
                l, u = self._layer(layer, lower, upper, region)
                if own is not None:
                    l, u = torch.maximum(l, own[0]), torch.minimum(u, own[1])
            lower.append(l)
            upper.append(u)
        return Bounds(tuple(v.cpu().numpy() for v in lower), tuple(v.cpu().numpy() for v in upper))

    def least(self, region: Region, bounds: Bounds, row: Array, shift: float) -> float:
        """A lower bound of row·relu(z_L) + shift over the region, z_L the inputs of the last ReLUs; row (n_L,), or (d,) without a ReLU."""
        lower, upper = [self._tensor(v) for v in bounds.lower], [self._tensor(v) for v in bounds.upper]
        top, size = self._maximum(self._tensor(-row[None]), len(lower), lower, upper, region)
        return shift - float(top[0]) - SLACK * (1 + abs(shift) + float(size[0]))

    def _tensor(self, v: Array) -> Tensor:
        return torch.as_tensor(v, dtype=self._W[0].dtype, device=self._W[0].device)

    def _layer(self, layer: int, lower: list[Tensor], upper: list[Tensor], region: Region) -> tuple[Tensor, Tensor]:
        W, b = self._W[layer], self._b[layer]
        both = torch.cat([W, -W])
        top, size = self._maximum(both, layer, lower, upper, region)
        if layer:  # intervals: W⁺ relu(u) + W⁻ relu(l)
            high, low = upper[layer - 1].clamp(min=0), lower[layer - 1].clamp(min=0)
            top = torch.minimum(top, both.clamp(min=0) @ high + both.clamp(max=0) @ low)
        top = top + SLACK * (1 + size + torch.cat([b, b]).abs())
        n = len(b)
        return b - top[n:], b + top[:n]

    def _maximum(self, A: Tensor, layer: int, lower: list[Tensor], upper: list[Tensor], region: Region) -> tuple[Tensor, Tensor]:
        """(upper bounds (s,) of A·relu(z_layer) over the region, the same walk over absolute values: what rounding is relative to)."""
        const = torch.zeros(len(A), dtype=A.dtype, device=A.device)
        size, M = torch.zeros_like(const), A.abs()
        for k in range(layer - 1, -1, -1):
            l, u = lower[k], upper[k]
            on, off = l >= 0, u <= 0
            s = torch.where(on, 1.0, torch.where(off, 0.0, u / (u - l).clamp(min=1e-300)))
            alpha = torch.where(on | (~off & (u > -l)), 1.0, 0.0)
            cut = torch.where(on | off, 0.0, -s * l)
            P = A.clamp(min=0)
            A, const, size, M = P * s + A.clamp(max=0) * alpha, const + P @ cut, size + M @ cut, M * torch.maximum(s, alpha)
            const, size = const + A @ self._b[k], size + M @ (self._b[k].abs() if k else self._first_size)
            A, M = A @ self._W[k], M @ self._W[k].abs()
        lo, hi = region.hull()
        reach = torch.maximum(lo.abs(), hi.abs())[0]
        return const + region.support(A[None])[0], size + M @ reach


def everywhere(weights: tuple[Array, ...], shifts: tuple[Array, ...], lo: Array, hi: Array) -> tuple[Bounds, Array, Array]:
    """Interval bounds over a box that may be unbounded: (ReLU layers, lower (m,) and upper (m,) of the outputs); 0·∞ = 0."""
    lower, upper = [], []
    for W, b in zip(weights, shifts, strict=True):
        P, N = np.maximum(W, 0.0), np.minimum(W, 0.0)
        high, low = _product(P, hi) + _product(N, lo), _product(P, lo) + _product(N, hi)
        room = SLACK * (1 + np.abs(b) + np.where(np.isfinite(high), np.abs(high), 0) + np.where(np.isfinite(low), np.abs(low), 0))
        lower.append(b + low - room)
        upper.append(b + high + room)
        lo, hi = np.maximum(lower[-1], 0.0), np.maximum(upper[-1], 0.0)
    return Bounds(tuple(lower[:-1]), tuple(upper[:-1])), lower[-1], upper[-1]


def _product(W: Array, v: Array) -> Array:
    """W @ v where v may hold infinities of the sign that W's entries select; 0·∞ = 0."""
    finite = np.where(np.isfinite(v), v, 0.0)
    out = W @ finite
    for i in np.flatnonzero(~np.isfinite(v)):
        far = INF if v[i] > 0 else -INF
        out = out + np.where(W[:, i] > 0, far, np.where(W[:, i] < 0, -far, 0.0))
    return np.asarray(out)
