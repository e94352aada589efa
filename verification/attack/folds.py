r"""Folds: where pieces of a piecewise linear network meet, the nearest flip is a corner, and one slope at a time only zigzags towards it.

About a flipped point δ_k every unit y_j = max_q v_jq (kinks.py) holds one of its pieces. With s_j = v_jq − v_jp ≤ 0 the gap to another piece, affine while
no unit before bends, and c_j the margin's gradient in y_j, the margin is m(δ) = a·δ + b + Σ_j c_j max(0, s_j(δ)) + (products of bends). Bends with c_j < 0
are left out: they lower the margin, so what remains bounds it from above, as in the convex–concave procedure (Yuille & Rangarajan 2003), and

    min ‖Wδ‖   s.t.   a·δ + b + Σ_j c_j t_j ≤ 0,   t_j ≥ s_j(δ),   t ≥ 0,   δ ∈ C,   |W(δ − δ_k)|_i ≤ r

is one convex program over the 2^J regions about the fold. Of its rows only those matter that bend before the answer: they are met lazily, where the answer
shows a unit that moved on to another piece, the costliest first, each for one pass of each kind. A row stays while its value at the new point says
that it still holds. An answer that does not flip is followed up to the crossing from δ_k: no step is longer than the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from formulations.cones import ConeProgram
from formulations.norms import INF, Array
from formulations.pieces import BoxPiece, CustomPiece, Part
from formulations.sets.base import FEASIBILITY
from verification.attack.kinks import Bends
from verification.attack.lanes import Lanes
from verification.attack.state import SearchState
from verification.attack.subproblem import lifted

FIRST = 0.25  # trust region, relative to the largest entry of Wδ
GROW, SHRINK = 2.0, 0.3
SETTLED = 1e-6  # a trust region this small ends a lane
USEFUL = 1e-6  # relative gain below which the trust region shrinks
PAST = 1e-8  # how far below 0 the margin is asked to fall, as a length relative to the witness
ERROR = 1e-7  # bends that raise the margin by less than this, as such a length, are left alone
FAST = 1e-6  # how far a kept row's value may be off, as such a length

Key = tuple[int, int, int]  # unit, lower and higher number of its two pieces


@dataclass
class Fold:
    """One input's point, and the rows met about it: by (unit, p, q), p < q, the affine form of v_q − v_p as (gradient, level)."""

    i: int
    delta: Tensor
    length: float
    radius: float
    rows: dict[Key, tuple[Array, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Piece:
    """The margin's affine piece at the points of some folds: slope (n, d), margin (n,), the pieces that hold (n, units), c (n, units)."""

    slope: Tensor
    margin: Tensor
    holds: Tensor
    weight: Tensor
    unit: Tensor  # (n,) lengths in which the margin's errors are measured: ‖W⁻¹a‖_* ‖Wδ‖


def unfold(search: SearchState, starts: Lanes, times: int) -> Lanes:
    """The flipped `starts` (one for each input), no longer than they were."""
    starts = starts.take(torch.isfinite(starts.length).nonzero()[:, 0])
    size = (search.w * (starts.delta - search.anchor[starts.who])).abs().amax(1)
    open_ = [k for k in range(len(starts)) if size[k] > 0 and not _custom(search, int(starts.who[k]))]
    folds = [Fold(int(starts.who[k]), starts.delta[k].clone(), float(starts.length[k]), FIRST * float(size[k])) for k in open_]
    for chunk in (folds[j : j + search.net.block] for j in range(0, len(folds), search.net.block)):
        for _ in range(times):
            going = [f for f in chunk if f.radius > SETTLED * float((search.w * f.delta).abs().amax())]
            going = [
                going[j] for j in search.affordable(_who(search, going), 3 + search.effort.crossing + search.effort.saturated, 1).tolist()
            ]
            if not going or not _step(search, going):
                break
            search.tick()
    who = _who(search, folds)
    delta = torch.stack([f.delta for f in folds]) if folds else starts.delta[:0]
    return Lanes(who, torch.zeros_like(who), delta, torch.tensor([f.length for f in folds], dtype=delta.dtype, device=delta.device))


def _step(search: SearchState, folds: list[Fold]) -> bool:
    """One linearisation of every fold, its programs, and the crossing; False where the network has no kinks."""
    net, who = search.net, _who(search, folds)
    here = torch.stack([f.delta for f in folds])
    margins, _, slope, bends, weight = net.bent(here, who)
    if not bends.layers:
        return False
    length = torch.tensor([f.length for f in folds], dtype=here.dtype, device=here.device)
    piece = Piece(slope, margins.amin(1), bends.highest()[1], weight, search.dual_norm_of(slope) * length)
    for k, f in enumerate(folds):
        _forget(f, k, bends, FAST * float(piece.unit[k]))
    point, lowest, flipped = here.clone(), piece.margin.clone(), torch.zeros_like(who, dtype=torch.bool)
    alive = torch.arange(len(folds), device=here.device)
    for last in range(search.effort.fold_rounds, 0, -1):
        alive = alive[search.affordable(who[alive], 1, 0)]
        if not len(alive):
            break
        point[alive] = torch.stack([_solve(search, folds[k], k, piece) for k in alive.tolist()])
        margins, flips, there = net.bends(point[alive], who[alive])
        lowest[alive], flipped[alive] = margins.amin(1), flips
        search.record(Lanes(who[alive], margins.argmin(1), point[alive], torch.where(flips, search.norm_of(point[alive]), INF)))
        if last > 1:
            alive = alive[_meet(search, folds, alive, piece, there, here)]
    useful = search.norm_of(point) < length
    done = flipped | ~useful
    crossing = search.cross(here, piece.margin, point, lowest, done, who, search.effort.crossing)
    size = torch.where(useful, search.norm_of(crossing), INF)
    for k, f in enumerate(folds):
        gain = f.length - float(size[k])
        f.radius *= GROW if gain > USEFUL * f.length and bool(flipped[k]) else 1.0 if gain > USEFUL * f.length else SHRINK
        if gain > 0:
            f.delta, f.length = crossing[k].clone(), float(size[k])
    search.record(Lanes(who, torch.zeros_like(who), crossing, size))
    return True


def _meet(search: SearchState, folds: list[Fold], alive: Tensor, piece: Piece, there: Bends, here: Tensor) -> Tensor:
    """Add the rows of the bends that raise the margin most at the answers; which of the lanes got one."""
    top, to = there.highest()
    error = piece.weight[alive].clamp(min=0.0) * (top - there.values(piece.holds[alive]))
    lanes, units, above, below = [], [], [], []
    for k, j in enumerate(alive.tolist()):
        costly = error[k].topk(min(2 * search.effort.fold_rows + len(folds[j].rows), error.shape[1]))
        new = 0
        for value, u in zip(costly.values.tolist(), costly.indices.tolist(), strict=True):
            low, high = sorted((int(piece.holds[j, u]), int(to[k, u])))
            if value > ERROR * float(piece.unit[j]) and (u, low, high) not in folds[j].rows and new < search.effort.fold_rows:
                new += 1
                lanes.append(j)
                units.append(u)
                above.append(high)
                below.append(low)
    got = torch.zeros_like(alive, dtype=torch.bool)
    if not lanes:
        return got
    lane, unit, high_, low_ = (torch.tensor(v, device=here.device) for v in (lanes, units, above, below))
    who = _who(search, folds)
    paid = search.affordable(who[lane], 1, 1)
    lane, unit, high_, low_ = lane[paid], unit[paid], high_[paid], low_[paid]
    value, slope = search.net.rows(here[lane], who[lane], unit, high_, low_)
    level = value - (slope * here[lane]).sum(1)
    for n, (j, u, q, p) in enumerate(zip(lane.tolist(), unit.tolist(), high_.tolist(), low_.tolist(), strict=True)):
        folds[j].rows[u, p, q] = slope[n].cpu().numpy(), float(level[n])
        got |= alive == j
    return got


def _forget(fold: Fold, lane: int, bends: Bends, off: float) -> None:
    """Drop the rows whose gap at the new point is not the one that they foresee: a unit before them has bent."""
    at = fold.delta.cpu().numpy()
    for (u, p, q), (row, level) in list(fold.rows.items()):
        if abs(bends.value(lane, u, q) - bends.value(lane, u, p) - float(row @ at) - level) > off:
            del fold.rows[u, p, q]


def _solve(search: SearchState, fold: Fold, lane: int, piece: Piece) -> Tensor:
    """The program's answer, pulled into C; the point itself where there is none."""
    at, w, a = fold.delta.cpu().numpy(), search.w.cpu().numpy(), piece.slope[lane].cpu().numpy()
    holds, weight = piece.holds[lane], piece.weight[lane]
    gaps, levels, costs = [], [], []
    for (u, p, q), (row, level) in fold.rows.items():
        held, cost = int(holds[u]), float(weight[u])
        if cost > 0 and held in (p, q):
            sign = 1.0 if held == p else -1.0
            gaps.append(sign * row)
            levels.append(sign * level)
            costs.append(cost)
    d, J = len(at), len(gaps)
    size = float(search.dual_norm_of(piece.slope[lane : lane + 1])) or 1.0
    margin = float(piece.margin[lane]) - float(a @ at) + PAST * float(piece.unit[lane])
    A = np.block([[a[None] / size, np.array(costs).reshape(1, J) / size], [np.array(gaps).reshape(J, d), -np.eye(J)]])
    parts = _within(search.steps.parts_of(fold.i), at - fold.radius / w, at + fold.radius / w)
    parts = tuple(lifted(part, J, low=0.0) for part in parts)
    program = ConeProgram(search.norm, parts, d + J, J + 1, beside=J)
    _, answer, _, _, _ = program.solve(A, np.array([margin / size, *levels]), parts)
    if not np.isfinite(answer).all():
        return fold.delta
    point = search.steps.inside(fold.i, answer[:d])
    return torch.tensor(point, device=fold.delta.device) if search.steps.violation(fold.i, point) <= FEASIBILITY else fold.delta


def _within(parts: tuple[Part, ...], lo: Array, hi: Array) -> tuple[Part, ...]:
    """The parts, and a trust region, which makes one box with theirs."""
    boxes = [p.piece for p in parts if isinstance(p.piece, BoxPiece)]
    for box in boxes:
        lo, hi = np.maximum(lo, box.lo), np.minimum(hi, box.hi)
    return (*(p for p in parts if not isinstance(p.piece, BoxPiece)), Part("trust", BoxPiece(np.minimum(lo, hi), hi), "change"))


def _custom(search: SearchState, i: int) -> bool:
    return any(isinstance(p.piece, CustomPiece) for p in search.steps.parts_of(i))


def _who(search: SearchState, folds: list[Fold]) -> Tensor:
    return torch.tensor([f.i for f in folds], dtype=torch.long, device=search.net.device)
