"""The dual network in the search for certified radii: slopes and multipliers trained while the radii follow, in place of passes at one radius after another."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from formulations.norms import INF, Norm
from formulations.pieces import Part
from formulations.support import Region
from verification.dual_network.network import DualNetwork
from verification.dual_network.rows import FrozenRows
from verification.dual_network.training import train
from verification.evidence import InnerSlopes, inner_slopes
from verification.radii import SearchStop
from verification.relu_chain import ReluChain


class DualSearch:
    """N searches that leave what a `RadiusSearch` leaves: rows `a` (N, K, d), `b` (N, K) that hold within `radius` (N,) (inf: on all of C), and their slopes.

    x (N, *shape); Q, s, real: the margin rows and which of them fill up the batch only; `start` (N,) radii to begin with.
    """

    def __init__(
        self, chain: ReluChain, x: Tensor, Q: Tensor, s: Tensor, real: Tensor, region: Region, norm: Norm, parts: tuple[Part, ...], start: Tensor
    ) -> None:  # fmt: skip
        n, K = s.shape
        self.radius = x.new_zeros(n)
        self.a, self.b = x.new_zeros(n, K, region.dim), x.new_full((n, K), -torch.inf)
        self.slopes: tuple[Tensor, ...] = ()
        self.inner: dict[int, tuple[InnerSlopes, ...]] = {}
        self.rows = FrozenRows(chain, x.flatten(1), Q, s, region)
        self.network = DualNetwork(self.rows, norm, parts, region, torch.minimum(start, region.reach() * (1 + 1e-9)), real)

    def run(self, seconds: float | None, progress: Callable[[int, int], None] | None) -> SearchStop:
        """Train, and take the rows of each item's best step."""
        begun = time.monotonic()
        try:
            run = train(self.network, seconds=seconds, progress=progress)
        except KeyboardInterrupt:
            return SearchStop.INTERRUPTED
        region, radius = self.network.region, self.network.get_buffer("radius")
        at = torch.minimum(radius, region.limit)
        self.rows.round_inner()
        with torch.no_grad():
            a, self.b = self.rows(at)
        self.a = a * region.scale  # rows over v = Wδ become rows over δ; their padding is far above the rounding of this product
        self.slopes, inner = self.rows.used(at)
        self.inner = {i: tuple(inner_slopes(*pair, v[i].cpu().numpy()) for pair, v in inner.items()) for i in range(len(radius))}
        self.radius = torch.where(radius >= region.reach() * (1 + 1e-9), INF, radius)
        late = seconds is not None and time.monotonic() - begun > seconds
        return SearchStop.LIMIT if late and not run.stopped else SearchStop.COMPLETE
