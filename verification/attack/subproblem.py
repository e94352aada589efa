r"""The convex step of the search: for every lane,

    min ‖W(δ − origin)‖   s.t.   a·δ + b ≤ 0,   δ ∈ C,   |W(δ − around)|_i ≤ radius

and where no allowed δ meets the row, a δ that comes as near to it as the set lets it. Over a box this is the closed form, all lanes at once; over any
other set it is the compiled program, lane by lane, whose answer is pulled back into the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from formulations.closed_form import min_norm_box
from formulations.cones import ConeProgram
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import BallPiece, BoxPiece, CustomPiece, Part, RowsPiece, bounding_box
from formulations.programs import ModelledProgram
from formulations.sets.base import FEASIBILITY
from verification.attack.feasible import PullBack, violation
from verification.attack.lanes import Lanes
from verification.attack.sampling import mixed, spread

PENALTY = {1.0: 1e4, 2.0: 1e3, INF: 1e4}  # price of the slack that lets a row stay up, per unit of distance to it


class Subproblem(Protocol):
    """Steps within the sets C_i of a batch of inputs. `anchor` (n, d) is a shortest point of each set: 0 where x0 is allowed.

    `boxes` says that the sets are boxes, `clips` that the norm's balls are boxes too.
    """

    anchor: Tensor
    boxes: bool
    clips: bool

    def step(
        self, who: Tensor, a: Tensor, b: Tensor, origin: Tensor | None = None, around: Tensor | None = None, radius: Tensor | None = None
    ) -> Tensor:
        """(lanes, d) points of the sets; a (lanes, d), b (lanes,), origin and around (lanes, d), radius (lanes,). `around` must lie in C."""

    def distance(self, who: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """(lanes,) distance to the row within a box around C: a guess at which rows are near, +inf where the box does not reach."""

    def box(self, who: Tensor) -> tuple[Tensor, Tensor]:
        """(lo, hi), (lanes, d) each: a box around C."""

    def outward(self, who: Tensor, point: Tensor, factor: Tensor) -> Tensor:
        """(lanes, d) points of C (lanes, d) moved from the anchor by `factor`, as far as the set is known to allow."""

    def sample(self, who: Tensor, noise: Tensor, length: Tensor, lanes: Lanes) -> Tensor:
        """(lanes, d) changes in C, about as long as `length`, from normal `noise`; `lanes` are points in C to mix them from. `who` is sorted."""

    def parts_of(self, i: int) -> tuple[Part, ...]:
        """C_i over the change."""

    def inside(self, i: int, delta: Array) -> Array:
        """A point of C_i near δ, which lies outside by no more than a solver's tolerance."""

    def violation(self, i: int, delta: Array) -> float:
        """Largest violation of C_i at δ."""


def subproblem(norm: Norm, parts: Sequence[Part], n: int, d: int, device: torch.device) -> Subproblem:
    """The closed form where C is a box (balls of p = ∞ are boxes), the compiled program otherwise."""
    if all(_is_box(p.piece) for p in parts) and not isinstance(norm, GroupNorm):
        return BoxStep(norm, tuple(parts), n, d, device)
    return ProgramStep(norm, tuple(parts), n, d, device)


class BoxStep:
    boxes = True

    def __init__(self, norm: Norm, parts: tuple[Part, ...], n: int, d: int, device: torch.device) -> None:
        lo, hi = (torch.tensor(np.broadcast_to(v, (n, d)).copy(), device=device) for v in bounding_box(parts, d))
        self.norm, self.parts, self.lo, self.hi = norm, parts, lo, hi
        self.w = torch.tensor(norm.scale(d).copy(), device=device)
        self.anchor = torch.zeros_like(lo).clamp(lo, hi)
        self.clips = norm.p == INF

    def step(
        self, who: Tensor, a: Tensor, b: Tensor, origin: Tensor | None = None, around: Tensor | None = None, radius: Tensor | None = None
    ) -> Tensor:
        lo, hi = self.lo[who], self.hi[who]
        if around is not None and radius is not None:
            reach = radius[:, None] / self.w
            lo, hi = torch.maximum(lo, around - reach), torch.minimum(hi, around + reach)
        if origin is None:
            answer = min_norm_box(a, b, lo, hi, self.norm).delta
        else:
            answer = origin + min_norm_box(a, b + (a * origin).sum(1), lo - origin, hi - origin, self.norm).delta
        rest = self.anchor[who] if around is None else around
        far = torch.where(a > 0, lo, torch.where(a < 0, hi, rest))  # nothing meets the row: the farthest fall
        answer = torch.where(torch.isfinite(answer), answer, far)
        return torch.where(torch.isfinite(answer), answer, rest).clamp(lo, hi)

    def distance(self, who: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return min_norm_box(a, b, self.lo[who], self.hi[who], self.norm).value

    def box(self, who: Tensor) -> tuple[Tensor, Tensor]:
        return self.lo[who], self.hi[who]

    def outward(self, who: Tensor, point: Tensor, factor: Tensor) -> Tensor:
        base = self.anchor[who]
        return (base + factor[:, None] * (point - base)).clamp(self.lo[who], self.hi[who])

    def sample(self, who: Tensor, noise: Tensor, length: Tensor, lanes: Lanes) -> Tensor:
        lo, hi, base = self.lo[who], self.hi[who], self.anchor[who]
        point = base + length[:, None] * spread(noise, self.norm.p) / self.w
        anywhere = base + torch.where(noise > 0, hi - base, base - lo).nan_to_num(posinf=1e3) * torch.erf(noise)
        return torch.where(torch.isfinite(length)[:, None], point, anywhere).clamp(lo, hi)

    def parts_of(self, i: int) -> tuple[Part, ...]:
        return tuple(p.at(i) for p in self.parts)

    def inside(self, i: int, delta: Array) -> Array:
        return np.clip(delta, self.lo[i].cpu().numpy(), self.hi[i].cpu().numpy())

    def violation(self, i: int, delta: Array) -> float:
        return violation(delta, self.parts_of(i))


class ProgramStep:
    """One more coordinate s, free in C and dear in the norm, lets the row a·δ − s + b ≤ 0 be met always: the program is never infeasible."""

    boxes = clips = False

    def __init__(self, norm: Norm, parts: tuple[Part, ...], n: int, d: int, device: torch.device) -> None:
        self.norm, self.parts, self.d, self.device = norm, parts, d, device
        self.dear = _with_slack_norm(norm, d)
        own = tuple(lifted(p) for p in parts)
        trust = Part("trust", BoxPiece(np.r_[-np.ones(d), -INF], np.r_[np.ones(d), INF]), "change")
        self._wide, self._narrow = self._compiled(own, d), self._compiled((*own, trust), d)
        self._lifted = own
        self._pull = PullBack(parts)
        self._w = norm.scale(d)
        self._lo, self._hi = (torch.tensor(np.broadcast_to(v, (n, d)).copy(), device=device) for v in bounding_box(parts, d))
        self._at = [tuple(p.at(i) for p in parts) for i in range(n)]
        anchors = np.zeros((n, d))
        for i in range(n):
            if violation(anchors[i], self._at[i]) > FEASIBILITY:
                anchors[i] = self._one(i, np.zeros(d), -1.0, np.zeros(d), None, 0.0, anchors[i])
        self.anchor = torch.tensor(anchors, device=device)

    def step(
        self, who: Tensor, a: Tensor, b: Tensor, origin: Tensor | None = None, around: Tensor | None = None, radius: Tensor | None = None
    ) -> Tensor:
        rows, levels, lanes = a.cpu().numpy(), b.cpu().numpy(), who.cpu().numpy()
        origins = np.zeros_like(rows) if origin is None else origin.cpu().numpy()
        arounds = None if around is None else around.cpu().numpy()
        radii = np.zeros(len(rows)) if radius is None else radius.cpu().numpy()
        anchors = self.anchor.cpu().numpy()
        out = np.empty_like(rows)
        for k, i in enumerate(lanes):
            rest = anchors[i] if arounds is None else arounds[k]
            out[k] = self._one(int(i), rows[k], levels[k], origins[k], None if arounds is None else arounds[k], radii[k], rest)
        return torch.tensor(out, device=self.device)

    def _one(self, i: int, a: Array, b: float, origin: Array, around: Array | None, radius: float, rest: Array) -> Array:
        length = float(self.norm.dual_value(a)) or 1.0  # after scaling, s is measured in the norm's own units
        row = np.concatenate([a / length, [-1.0]])[None]
        shift = np.concatenate([origin, [0.0]])
        parts = [Part(p.name, p.piece.shifted(shift), p.on) for p in (q.at(i) for q in self._lifted)]
        program = self._wide if around is None else self._narrow
        if around is not None:
            reach = max(radius, 1e-9) / self._w
            lo, hi = np.r_[around - origin - reach, -INF], np.r_[around - origin + reach, INF]
            parts.append(Part("trust", BoxPiece(lo, hi), "change"))
        _, answer, _, _, _ = program.solve(row, np.array([(b + float(a @ origin)) / length]), parts)
        if not np.isfinite(answer).all():
            return rest
        point, outside = self._pull(origin + answer[: self.d], self._at[i], rest)
        return point if outside <= FEASIBILITY else rest

    def _compiled(self, parts: tuple[Part, ...], d: int) -> ConeProgram | ModelledProgram:
        """The program over (δ, s). A solver scales its data once, by the first row it sees: one fixed row, so that no answer depends on the batch."""
        custom = any(isinstance(p.piece, CustomPiece) for p in parts)
        program = ModelledProgram(self.dear, parts, d + 1, 1) if custom else ConeProgram(self.dear, parts, d + 1, 1)
        ones = np.ones(d)
        program.solve(np.r_[ones / self.norm.dual_value(ones), -1.0][None], -np.ones(1), tuple(p.at(0) for p in parts))
        return program

    def distance(self, who: Tensor, a: Tensor, b: Tensor) -> Tensor:
        norm = Norm(2) if isinstance(self.norm, GroupNorm) else self.norm
        return min_norm_box(a, b, self._lo[who], self._hi[who], norm).value

    def box(self, who: Tensor) -> tuple[Tensor, Tensor]:
        return self._lo[who], self._hi[who]

    def outward(self, who: Tensor, point: Tensor, factor: Tensor) -> Tensor:
        base = self.anchor[who]
        return base + factor.clamp(max=1.0)[:, None] * (point - base)

    def sample(self, who: Tensor, noise: Tensor, length: Tensor, lanes: Lanes) -> Tensor:
        return mixed(who, noise, lanes, self.anchor)

    def parts_of(self, i: int) -> tuple[Part, ...]:
        return self._at[i]

    def inside(self, i: int, delta: Array) -> Array:
        return self._pull(delta, self._at[i], self.anchor[i].cpu().numpy())[0]

    def violation(self, i: int, delta: Array) -> float:
        return violation(delta, self._at[i])


def _is_box(piece: Any) -> bool:
    """A box, or a ball of p = ∞ around a point."""
    return isinstance(piece, BoxPiece) or (isinstance(piece, BallPiece) and piece.norm.p == INF and piece.hull() is not None)


def _with_slack_norm(norm: Norm, d: int) -> Norm:
    if isinstance(norm, GroupNorm):
        assert norm.omega is not None
        return GroupNorm([*(g.tolist() for g in norm.groups), [d]], [*norm.omega, PENALTY[1.0]])
    return Norm(norm.p, [*norm.scale(d), PENALTY[norm.p]])


def lifted(part: Part, extra: int = 1, low: float = -INF) -> Part:
    """The same part over (δ, s), with `extra` more coordinates s: where it is a box, s ≥ low; otherwise s is free."""
    piece: Any = part.piece
    if isinstance(piece, BoxPiece):
        lo, hi = np.asarray(piece.lo), np.asarray(piece.hi)
        edge = (*lo.shape[:-1], extra)
        return replace(part, piece=BoxPiece(np.concatenate([lo, np.full(edge, low)], -1), np.concatenate([hi, np.full(edge, INF)], -1)))
    if isinstance(piece, RowsPiece):
        return replace(part, piece=replace(piece, G=sp.hstack([piece.G, sp.csr_matrix((piece.G.shape[0], extra))], format="csr")))
    if isinstance(piece, BallPiece):
        return replace(part, piece=replace(piece, M=sp.hstack([piece.M, sp.csr_matrix((piece.M.shape[0], extra))], format="csr")))
    d, build = piece.dim, piece.build
    origin = np.broadcast_to(piece.origin, (*np.shape(piece.origin)[:-1], d))
    origin = np.concatenate([origin, np.zeros((*origin.shape[:-1], extra))], -1)

    def on_delta(z: Any) -> list[Any]:
        return list(build(z[:d]))

    return replace(part, piece=CustomPiece(on_delta, d + extra, origin))
