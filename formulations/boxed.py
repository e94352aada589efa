r"""One row and a box: the closed form as a batch record, its box multipliers made when somebody asks.

With w a subgradient of ‖Wδ‖ at the answer, stationarity reads w + λa + μ⁺ − μ⁻ = 0, so the box carries r = μ⁻ − μ⁺ = w + λa:

    p = 1   w_i = W_i sgn δ_i where δ_i ≠ 0, else clip(−λa_i, −W_i, W_i)
    p = 2   w = W²δ/‖Wδ‖
    p = ∞   w_i = −λa_i on the longest coordinates (they carry the norm), 0 elsewhere
"""

from __future__ import annotations

import numpy as np

from formulations.closed_form import min_norm_box
from formulations.norms import INF, Array, Norm
from formulations.pieces import BoxPiece, Part, bounding_box
from formulations.solution import Residuals, Solution, Solutions


class BoxedSolutions(Solutions):
    """``min ‖Wδ‖ s.t. a·δ + b ≤ 0, lo ≤ δ ≤ hi`` for n instances, exactly; `lower` is verified with outward rounding (`closed_form`)."""

    def __init__(self, a: Array, b: Array, norm: Norm, parts: tuple[Part, ...]) -> None:
        self._a, self._b, self._norm, self._parts = a, b, norm, parts
        self._lo, self._hi = bounding_box(parts, a.shape[1])
        answer = min_norm_box(a, b, self._lo, self._hi, norm)
        self.value, self.lower, self.delta = answer.value.numpy(), answer.lower.numpy(), answer.delta.numpy()
        # where the row is out of reach, λ = 1 with the box absorbing all of a is the ray that proves it
        self.status, self._lam = answer.status, np.where(answer.infeasible.numpy(), 1.0, answer.lam.numpy())

    def __getitem__(self, i: int) -> Solution:
        lam, duals = self._lam[i : i + 1], tuple(d[0] for d in self._duals(slice(i, i + 1) if i != -1 else slice(-1, None)))
        named = {"margin": lam} | dict(zip((p.name for p in self._parts), duals, strict=True))
        row = float(self._a[i] @ np.nan_to_num(self.delta[i]) + self._b[i])
        value, lower = float(self.value[i]), float(self.lower[i])
        gap = value - lower if value < INF else float("nan")
        residuals = Residuals(max(row, 0.0), 0.0, gap)
        return Solution(self.status[i], value, lower, self.delta[i], named, dict(named), duals, residuals, "closed form", 0.0)

    @property
    def multipliers(self) -> dict[str, Array]:
        return {"margin": self._lam[:, None]} | dict(zip((p.name for p in self._parts), self._duals(slice(None)), strict=True))

    def _duals(self, which: slice) -> list[Array]:
        """Box multipliers (n, 2, d) of every part; where several boxes share a bound, the first tight one carries it."""
        a, lam, delta, value = self._a[which], self._lam[which, None], np.nan_to_num(self.delta[which]), self.value[which, None]
        W, c = self._norm.scale(a.shape[1]), lam * a
        if self._norm.p == 1.0:
            w = np.where(delta != 0, W * np.sign(delta), np.clip(-c, -W, W))
        elif self._norm.p == 2.0:
            w = W * W * delta / np.where((value > 0) & np.isfinite(value), value, 1.0)
        else:
            w = np.where(np.abs(W * delta) >= value * (1 - 1e-12), -c, 0.0)
        r = np.where(np.isfinite(value), np.where(lam > 0, w + c, 0.0), c)
        r[np.abs(r) <= 1e-13 * (np.abs(w) + np.abs(c))] = 0.0  # cancellation of w and λa on a free coordinate
        lower, upper = np.maximum(r, 0.0), np.maximum(-r, 0.0)
        out = []
        for part in self._parts:
            piece = part.piece
            assert isinstance(piece, BoxPiece)
            own = []
            for rest, bound, tightest in ((lower, piece.lo, self._lo), (upper, piece.hi, self._hi)):
                mine = np.where(_some(bound, which) == _some(tightest, which), rest, 0.0)
                rest -= mine
                own.append(mine)
            out.append(np.stack(own, axis=1))
        return out


def _some(bound: Array, which: slice) -> Array:
    """The chosen instances of a bound that is a number, (d,) for all, or (n, d)."""
    return bound[which] if np.ndim(bound) == 2 else np.asarray(bound)
