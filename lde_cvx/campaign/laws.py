r"""Metamorphic laws of certified radii. One question, asked in another way, must have an answer that fits the first:

    scaled      f → t f, t > 0              the same distance
    permuted    features in another order, weights, set and norm with them      the same distance
    redundant   C ∩ {a box that holds C}    the same distance
    refined     C ∩ {a smaller box}         not nearer: lower(C) ≤ upper(C'), and C' is certified at least as far, up to the search's tolerance
    doubled     a rival's output twice      the same distance

Every answer is a bracket, so what is *proved wrong* by a law is only a lower bound above the other question's witness: `broken`. `ratio` is the smaller
certified radius over the larger one where the distances are equal: a figure on how steady the search is, no matter of soundness. What branching certified
is held against CROWN's answer to the other question, and has no ratio.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from formulations.sets import Box
from lde_cvx.campaign.cases import Case
from lde_cvx.campaign.networks import Random
from lde_cvx.methods import SEARCHES
from verification.attack import Budget, find_witness
from verification.decision import Decision
from verification.radius import certified_radius

SECONDS = 1.0  # of a search for a certified radius, and of one for a witness
ROUNDING = 1e-6  # relative: what the witness's feasibility tolerance may explain


@dataclass(frozen=True)
class Law:
    """Which law, is it broken?, and the ratio of the radii (1 where both are infinite or the law says nothing of them)."""

    name: str
    broken: bool
    ratio: float


@dataclass(frozen=True, eq=False)
class Asked:
    """Another question: the case, the decision there, and does it have the same distance?"""

    case: Case
    decision: Decision
    same: bool = True


def in_turn(number: int) -> str | None:
    """The law of a case: every third case has one, each law in turn."""
    turn, rest = divmod(number, 3)
    return None if rest else list(LAWS)[(turn + turn // 10) % len(LAWS)]


def check(name: str | None, case: Case, decision: Decision, lower: float, upper: float, rng: Random) -> Law:
    """One law of a case and its bracket; "none" where there is none, or it does not apply."""
    if name is None:
        return Law("none", False, 1.0)
    asked = LAWS[name](case, decision, rng)
    if asked is None:
        return Law("none", False, 1.0)
    other, x = asked.case, asked.case.x0[None]
    net, searched = copy.deepcopy(other.net).double(), other.method in SEARCHES
    radii = certified_radius(
        net,
        x,
        other.norm,
        other.constraints,
        decisions=asked.decision,
        method="crown" if searched else other.method,
        max_passes=15,
        seconds=SECONDS,
    )
    found = find_witness(net, x, other.norm, other.constraints, decisions=asked.decision, budget=Budget(seconds=SECONDS))
    second, reached = float(radii.lower[0]), float(found.upper[0])
    broken = lower > reached * (1 + ROUNDING) + 1e-9 or (asked.same and second > upper * (1 + ROUNDING) + 1e-9)
    if not asked.same or searched or lower == second:
        return Law(name, broken, 1.0)
    ends = sorted((lower, second))
    return Law(name, broken, 0.0 if math.isinf(ends[1]) else ends[0] / ends[1])


def _scaled(case: Case, decision: Decision, rng: Random) -> Asked:
    net, t = copy.deepcopy(case.net), float(2.0 ** rng.integers(-20, 21))
    last = _last(net)
    with torch.no_grad():
        last.weight.mul_(t)
        last.bias.mul_(t)
    return Asked(replace(case, net=net), replace(decision, shifts=decision.shifts * t))


def _permuted(case: Case, decision: Decision, rng: Random) -> Asked | None:
    """Needs features in a line, and a set without an order of its own."""
    first = case.net[0]
    if not isinstance(first, nn.Linear) or case.set_name not in ("none", "box", "equal", "ball") or case.norm.weights is not None:
        return None
    order, net = rng.permutation(case.x0.size), copy.deepcopy(case.net)
    with torch.no_grad():
        inner = net[0]
        assert isinstance(inner, nn.Linear)
        inner.weight.copy_(first.weight[:, torch.as_tensor(order)])
    return Asked(replace(case, net=net, x0=case.x0[order]), decision)


def _redundant(case: Case, decision: Decision, rng: Random) -> Asked:
    if case.constraints is None:
        return Asked(replace(case, constraints=Box(-1e6, 1e6)), decision)
    wide = Box(-1 - rng.random(case.x0.size), 1 + rng.random(case.x0.size), on="change")
    return Asked(replace(case, constraints=case.constraints & wide), decision)


def _refined(case: Case, decision: Decision, rng: Random) -> Asked:
    half = Box(-rng.uniform(0.01, 0.3, case.x0.size), rng.uniform(0.01, 0.3, case.x0.size), on="change")
    return Asked(replace(case, constraints=half if case.constraints is None else case.constraints & half), decision, same=False)


def _doubled(case: Case, decision: Decision, rng: Random) -> Asked:
    net, m = copy.deepcopy(case.net), decision.rows.shape[1]
    last, rival = _last(net), decision.rivals[int(rng.integers(len(decision.rivals)))]
    wider = nn.Linear(last.in_features, m + 1, dtype=last.weight.dtype)
    with torch.no_grad():
        wider.weight.copy_(torch.cat([last.weight, last.weight[rival : rival + 1]]))
        wider.bias.copy_(torch.cat([last.bias, last.bias[rival : rival + 1]]))
    net[len(net) - 1] = wider.requires_grad_(False)
    winner = next(c for c in range(m) if c not in decision.rivals)
    return Asked(replace(case, net=net), Decision.classification(winner, m + 1))


def _last(net: nn.Sequential) -> nn.Linear:
    layer = net[len(net) - 1]
    assert isinstance(layer, nn.Linear)
    return layer


LAWS: dict[str, Callable[[Case, Decision, Random], Asked | None]] = {
    "scaled": _scaled, "permuted": _permuted, "redundant": _redundant, "refined": _refined, "doubled": _doubled,
}  # fmt: skip


__all__ = ["LAWS", "Law", "check", "in_turn"]
