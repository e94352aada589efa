r"""Support functions of { ‖Wδ‖ ≤ r_i } ∩ C_i for a batch of inputs, as bounds that hold for any multipliers.

With the ball and the boxes together in B (formulations/ball_box.py) and every other piece j of C under multipliers u_j,

    σ(A) = max { A·δ : δ ∈ R }  ≤  σ_B(A − Σ_j y_j) + Σ_j σ_j          y_j·δ ≤ σ_j on piece j, for ANY u_j  (formulations/pieces.py)

so the multipliers only have to be good, never optimal. They come from a few steps of ADMM (formulations/ascent.py), the best value met is
kept row by row, and u = 0 is always among them: the bound over B alone. A primal iterate of that problem is not a bound and is never used as
one. Every bound is affine in ℓ(r) (`affine`), hence valid at other radii too, which `distance` inverts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from formulations.ascent import Problem, ascend
from formulations.ball_box import affine_support, level, nearest_to_zero, radius_at
from formulations.coupling import Ball, Coupling, couple
from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, Part, RowsPiece, bounding_box

ZERO = 1e-9  # a box that misses δ = 0 by no more is widened to hold it: x0 counts as inside C up to this much
CHUNK = 1 << 21  # numbers in one temporary of the dual ascent


@dataclass(frozen=True, eq=False)
class Region:
    """R_i = { ‖Wδ‖ ≤ r_i } ∩ C_i, i < n, where bounds of linear functions are asked for. Build it with `Region.build`.

    Coordinates inside are scaled, Wδ; everything public is in δ itself. `custom` counts the user's sets that were left out (a larger region: bounds stay valid).
    """

    p: float
    scale: Tensor
    lo: Tensor
    hi: Tensor
    radius: Tensor
    limit: Tensor
    coupling: Coupling | None
    steps: int
    custom: int

    @staticmethod
    def build(
        norm: Norm,
        parts: tuple[Part, ...],
        radius: Array | Tensor | float,
        dim: int,
        *,
        count: int | None = None,
        steps: int = 120,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Region:
        """The region of a norm, parts over the change (`Part.relative_to`), and radii (n,) or one number.

        The batch size is `count`, or follows from the radii and the parts' offsets. `steps` bounds the dual ascent for pieces that are no boxes.
        Raises InputError on parts still over the input, an empty box, a radius that is negative or not finite, and a ball that misses the box.
        """
        over_input = [part.name for part in parts if part.on != "change"]
        if over_input:
            raise InputError(f"Region: {over_input[0]!r} is over the input; make it relative to x0 first.")
        like = {"device": torch.device("cpu") if device is None else torch.device(device), "dtype": dtype}
        r = torch.as_tensor(radius, **like).reshape(-1)  # type: ignore[arg-type]
        lo, hi = bounding_box(parts, dim)
        n = count or max([len(r), *(len(v) for v in (lo, hi) if v.ndim == 2), *(len(v) for part in parts for v in _batched(part.piece))])
        bad = np.argwhere(np.atleast_2d(lo) > np.atleast_2d(hi) + ZERO)
        if len(bad):
            i, j = bad[0]
            raise InputError(
                f"Region: the constraints leave coordinate {j} of input {i} no value "
                f"({np.atleast_2d(lo)[i, j]:g} > {np.atleast_2d(hi)[i, j]:g}); the set is empty, widen it."
            )
        lo, hi = np.where((lo > 0) & (lo <= ZERO), 0.0, lo), np.where((hi < 0) & (hi >= -ZERO), 0.0, hi)
        hi = np.maximum(lo, hi)
        if isinstance(
            norm, GroupNorm
        ):  # Σ ω_g‖δ_g‖ ≤ r lies in |δ_i| ω_g ≤ r: that hull is the base, the ball itself a piece of the coupling
            assert norm.omega is not None
            norm.scale(dim)
            p, scale, balls = INF, norm.omega[norm.labels], [(norm, None)]
        else:
            p, scale, balls = norm.p, norm.scale(dim), []
        w = torch.as_tensor(np.array(scale), **like)  # type: ignore[arg-type]
        box = [torch.as_tensor(np.atleast_2d(v * scale), **like).expand(n, dim) for v in (lo, hi)]  # type: ignore[arg-type]
        limit, rest = _fold_balls(norm, parts, dim, n)
        region = Region(
            p, w, box[0], box[1], r, torch.as_tensor(limit, **like), couple(balls, rest, scale, like),  # type: ignore[arg-type]
            steps, sum(part.piece.kind == "custom" for part in parts),
        )  # fmt: skip
        return region.with_radius(r)

    @property
    def count(self) -> int:
        return int(self.lo.shape[0])

    @property
    def dim(self) -> int:
        return int(self.lo.shape[1])

    @property
    def is_box(self) -> bool:
        """Is R_i a box, so that `hull` is all there is to know?"""
        return self.p == INF and self.coupling is None

    def with_radius(self, radius: Tensor) -> Region:
        """The same sets C_i at other radii (n,). Raises InputError on a bad radius, or where ball and box do not meet."""
        r = torch.as_tensor(radius, dtype=self.lo.dtype, device=self.lo.device).expand(self.count)
        wrong = torch.nonzero(~(torch.isfinite(r) & (r >= 0))).flatten()
        if len(wrong):
            raise InputError(f"Region: radius[{int(wrong[0])}]={float(r[wrong[0]])} must be finite and ≥ 0.")
        near = torch.linalg.vector_norm(nearest_to_zero(self.lo, self.hi), self.p, dim=-1)
        missed = torch.nonzero(near > r * (1 + 1e-9) + 1e-9).flatten()
        if len(missed):
            i = int(missed[0])
            raise InputError(
                f"Region: every allowed change of input {i} has norm ≥ {float(near[i]):g} > radius {float(r[i]):g}; is x0 inside the set?"
            )
        return replace(self, radius=torch.minimum(r, self.limit))

    def take(self, index: Any) -> Region:
        """The regions of some inputs, in the given order."""
        i = torch.as_tensor(index, dtype=torch.long, device=self.lo.device)
        coupling = None if self.coupling is None else self.coupling.take(i)
        return replace(self, lo=self.lo[i], hi=self.hi[i], radius=self.radius[i], limit=self.limit[i], coupling=coupling)

    def hull(self) -> tuple[Tensor, Tensor]:
        """A box (lo, hi), each (n, d), that contains R_i: the boxes and the ball's own; exact when the region is a box."""
        r = self.radius[:, None]
        lo, hi = torch.maximum(self.lo, -r), torch.minimum(self.hi, r)
        return torch.minimum(lo, hi) / self.scale, torch.maximum(lo, hi) / self.scale

    def reach(self) -> Tensor:
        """max { ‖Wδ‖ : δ in the boxes of C_i } (n,), beyond which a radius adds nothing; +inf without a bounded box."""
        far = torch.maximum(self.lo.abs(), self.hi.abs())
        own = None if self.coupling is None else self.coupling.blocks[0][1]
        if isinstance(own, Ball) and own.rho is None and own.omega is not None:  # a group norm
            return torch.minimum((own.lengths(far / self.scale) * own.omega).sum(-1), self.limit)
        return torch.minimum(torch.linalg.vector_norm(far, self.p, dim=-1), self.limit)

    def holds_zero(self, tolerance: float = 1e-6) -> Tensor:
        """Does δ = 0 lie in C_i, up to the tolerance? (n,) booleans. A region without it may be empty, and bounds over nothing say nothing."""
        inside = (self.lo <= tolerance).all(-1) & (self.hi >= -tolerance).all(-1)
        if self.coupling is not None:
            zero = self.lo.new_zeros(self.count, 1, 1)
            for where, block in self.coupling.blocks:
                origin = zero.expand(-1, 1, where.stop - where.start)
                nearest, _ = block.project(origin, self.radius[:, None], zero[..., 0])
                inside &= (nearest - origin).abs().amax((-2, -1)) <= tolerance
        return inside

    def support(self, A: Tensor, radius: Tensor | None = None) -> Tensor:
        """An upper bound (n, s) of max { A·δ : δ ∈ R_i } for rows A (n, s, d); exact for a ball and a box. `radius` (n, s) replaces r_i row by row.

        Differentiable in A at fixed multipliers, as slopes of linear relaxations need it.
        """
        constant, slope = self.affine(A, radius)
        r = self._radii(A, radius)
        return constant + slope * level(r, self.p)

    def window_support(self, A: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """An upper bound (n, s) of max { A_i·δ_w(i) : δ ∈ R } for rows A (n, s, k) that see a few coordinates w(i) each: exact for a ball and a box.

        `pick` takes (n, d) to the windows (n, s, k), 0 where one hangs over the edge. Of other pieces of C nothing is used: they are left out, the bound stays valid.
        """
        scale, lo, hi = (pick(v.expand(self.count, self.dim)) for v in (self.scale, self.lo, self.hi))
        scaled = torch.where(scale > 0, A / torch.where(scale > 0, scale, 1.0), 0.0)
        r = self._radii(A, None)
        constant, slope = affine_support(scaled, lo, hi, r, self.p)
        return constant + slope * level(r, self.p)

    def affine(self, A: Tensor, radius: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(c, μ), each (n, s), with max { A·δ : ‖Wδ‖ ≤ t, δ ∈ C_i } ≤ c + μ·ℓ(t) for every t ≤ limit; tight at the given radius. ℓ(t) = t²/2 for p = 2, else t."""
        r = self._radii(A, radius)
        scaled = A / self.scale
        if self.coupling is None:
            return affine_support(scaled, self.lo[:, None], self.hi[:, None], r, self.p)
        owner = torch.arange(self.count, device=A.device).repeat_interleave(A.shape[1])
        flat, radii = scaled.reshape(-1, 1, self.dim), r.reshape(-1, 1)
        width = max(1, CHUNK // (self.dim + self.coupling.K.shape[0]))
        chunks = [self._dual_bound(flat[k : k + width], owner[k : k + width], radii[k : k + width]) for k in range(0, len(flat), width)]
        c, mu = (torch.cat(v).reshape(A.shape[:-1]) for v in zip(*chunks, strict=True))
        return c, mu

    def distance(self, a: Tensor, b: Tensor, rounds: int | None = None) -> Tensor:
        """A lower bound (n, K) of min { ‖Wδ‖ : a·δ + b ≤ 0, δ ∈ C_i }: +inf when no δ ∈ C_i gets there, 0 when b ≤ 0.

        The row falls only where −a·δ ≥ b, and −a·δ ≤ c + μ·ℓ(‖Wδ‖), so ℓ(‖Wδ‖) ≥ (b − c)/μ for every pair (c, μ): Newton's tangents of a concave function,
        each of them valid, which do not depend on the region's radius. They start from b/‖a‖_*, the answer without C.
        """
        with torch.no_grad():
            dual = torch.linalg.vector_norm(a / self.scale, {1.0: INF, 2.0: 2.0, INF: 1.0}[self.p], dim=-1)
            ball = level((b / dual.clamp(min=1e-300)).clamp(min=0), self.p)  # the answer without C
            probe = torch.minimum(ball, level(self.reach()[:, None].expand_as(b).clamp(max=1e100), self.p))
            fine = 1e-12 if self.coupling is None else 1e-4  # the bounds of coupled sets are no closer than that to the truth
            best, ceiling = torch.zeros_like(b), level(self.reach()[:, None].expand_as(b), self.p) * (1 + 1e-12)
            for _ in range(rounds or (14 if self.coupling is None else 6)):
                c, mu = self.affine(-a, radius_at(probe, self.p))
                gain = b - c
                tangent = torch.where(mu > 0, gain / mu.clamp(min=1e-300), torch.where(gain > 0, INF, 0.0))
                tangent = torch.where(tangent > ceiling, INF, tangent)  # no allowed change is that long
                better = tangent > best * (1 + fine)
                best = torch.maximum(best, tangent)
                chord = probe * (b / (c + mu * probe).clamp(min=1e-300)).clamp(0, 1)  # above the root: walk down along the chord to 0
                probe = torch.where(
                    better & torch.isfinite(best), best, torch.where(torch.isfinite(best), torch.maximum(chord, best), probe)
                )
                if not bool((better & torch.isfinite(best)).any()) and bool(
                    ((c + mu * probe) <= b * (1 + 100 * fine)).logical_or(best == INF).all()
                ):
                    break
            return torch.where(b <= 0, 0.0, radius_at(best, self.p))

    def _radii(self, A: Tensor, radius: Tensor | None) -> Tensor:
        if radius is None:
            return self.radius[:, None].expand(A.shape[:-1])
        return torch.minimum(radius, self.limit[:, None]).expand(A.shape[:-1])

    def _dual_bound(self, A: Tensor, owner: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(c, μ), each (R, 1), for rows A (R, 1, d) of the inputs `owner`: found in float32, evaluated in float64, the better of that and u = 0."""
        assert self.coupling is not None
        exact = Problem(A, self.lo[owner][:, None], self.hi[owner][:, None], r, self.p, self.coupling.take(owner))
        with torch.no_grad():
            quick = Problem(A.detach().float(), exact.lo.float(), exact.hi.float(), r.float(), self.p, exact.link.to(torch.float32))
            u = ascend(quick, self.steps).to(A.dtype)
            u = torch.where(torch.isfinite(u).all(-1, keepdim=True), u, 0.0)
            u = torch.where((exact.value(u) < exact.value(torch.zeros_like(u))).unsqueeze(-1), u, 0.0)
        return exact.bound(u)


def _fold_balls(norm: Norm, parts: tuple[Part, ...], dim: int, n: int) -> tuple[Array, list[Any]]:
    """(limit (n,), pieces left): balls around x0 in the region's own norm only lower the radius; boxes, ℓ∞ balls and custom sets are done with."""
    limit, rest = np.full(n, INF), []
    for part in parts:
        piece = part.piece
        if isinstance(piece, BallPiece) and piece.hull() is not None and not isinstance(piece.norm, GroupNorm):
            if piece.norm.p == INF:
                continue  # it is a box, and `bounding_box` has it
            if not isinstance(norm, GroupNorm) and piece.norm.p == norm.p and not np.any(piece.e):
                ratio = piece.norm.scale(dim) / norm.scale(dim)
                if np.all(ratio == ratio[0]):
                    limit = np.minimum(limit, np.asarray(piece.rho) / ratio[0])
                    continue
        if isinstance(piece, RowsPiece | BallPiece):
            rest.append(piece)
    return limit, rest


def _batched(piece: Any) -> list[Array]:
    offsets = (piece.h,) if isinstance(piece, RowsPiece) else (piece.e,) if isinstance(piece, BallPiece) else ()
    return [v for v in offsets if np.ndim(v) == 2]


__all__ = ["Region"]
