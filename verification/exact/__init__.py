r"""The radius itself:  v* = min ‖Wδ‖  s.t.  some margin m_k(δ) ≤ 0,  δ ∈ C,  for chains of affine maps and ReLUs.

Two engines. `Engine.REGIONS` enumerates activation regions outward, for every norm and set, and verifies each bound by weak duality: its `lower` is a certified
bound and meets the witness to 1e-6 when it closes. `Engine.MILP` asks HiGHS, for ℓ1 and ℓ∞ over polyhedra: an independent reference, exact up to
the solver's tolerances, which are taken off its `lower`; it is not what a certificate reports.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Norm
from formulations.pieces import bounding_box
from formulations.sets.base import FEASIBILITY, ConvexSet
from verification.attack.feasible import violation
from verification.decision import Decision
from verification.exact.answers import Engine, Evidence, ExactResult, ExactStatus, Leaf
from verification.exact.bounds import everywhere
from verification.exact.milp_search import MilpSearch
from verification.exact.mixed_integer import MARGIN, is_polyhedral
from verification.exact.question import Question, Witness
from verification.exact.regions import RegionSearch
from verification.exact.search import Search
from verification.relu_chain import ReluChain

__all__ = ["MARGIN", "Engine", "Evidence", "ExactResult", "ExactStatus", "Leaf", "exact_radius"]


def exact_radius(
    model: torch.nn.Module | ReluChain,
    x0: ArrayLike,
    decision: Decision | None = None,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    upper: float | None = None,
    engine: Engine = Engine.REGIONS,
    time_limit: float | None = None,
    node_limit: int | None = None,
    device: torch.device | str | None = None,
) -> ExactResult:
    """``v* = min ‖Wδ‖  s.t.  m_k(δ) ≤ 0 for some row k,  δ ∈ C``  for one input, bracketed until the bracket closes.

    x0 has the shape that the model takes without its batch axis ((d,) for a chain); `decision` None is classification by the predicted class. `upper` is the
    value of a witness that the caller has: only shorter ones are looked for. `time_limit` in seconds; `node_limit` in regions, or in the solver's branches. Every
    answer is a valid bracket, whatever stopped the search. The statement is about the chain's float weights in real arithmetic, the
    witness about the network's float64 outputs.

    Engine.REGIONS: `lower` is verified, with rounding counted; cost grows with the number of ReLUs whose sign is open below the radius.
    Engine.MILP: `lower` is HiGHS's dual bound less ``MARGIN·max(1, bound)``: exact up to tolerances (rows and integrality 1e-9), not certified.

    Raises InputError on a model that is no ReLU chain, sets known only by CVXPY constraints, shapes that do not fit, a negative or NaN `upper` or limit,
    an empty box, and ℓ2 or round sets with Engine.MILP.
    """
    start = time.perf_counter()
    top = INF if upper is None else float(upper)
    for name, value in (("upper", top), ("time_limit", time_limit), ("node_limit", node_limit)):
        if value is not None and not value >= 0:
            raise InputError(f"exact_radius: {name}={value} must be ≥ 0.")
    question = Question.build(model, x0, decision, norm, constraints)
    if engine is Engine.MILP and not is_polyhedral(question.norm, question.parts):
        raise InputError(
            f"exact_radius: Engine.MILP takes ℓ1 and ℓ∞ over polyhedra, not {question.norm.label} over these sets; use Engine.REGIONS."
        )

    evidence = Evidence.VERIFIED if engine is Engine.REGIONS else Evidence.SOLVER
    here = _already(question)
    if here is not None:
        return _result(question, ExactStatus.CLOSED, 0.0, 0.0, here, engine, Evidence.VERIFIED, 0, start)
    rows = _open_rows(question)
    if not rows:
        return _result(question, ExactStatus.UNREACHABLE, INF, INF, None, engine, Evidence.VERIFIED, 0, start)
    kind: type[Search] = RegionSearch if engine is Engine.REGIONS else MilpSearch
    search = kind(question, rows, top, time_limit, node_limit, device)
    status = search.run()
    return _result(question, status, search.lower, search.upper, search.witness, engine, evidence, search.nodes, start, search.leaves)


def _already(question: Question) -> Witness | None:
    """δ = 0, where x0 is allowed and some margin is not positive to begin with."""
    zero = np.zeros(question.dim)
    margins = question.margins(zero)[0]
    if margins.min() > 0 or violation(zero, question.parts) > FEASIBILITY:
        return None
    row = int(np.argmin(margins))
    return Witness(zero, 0.0, row, float(margins[row]))


def _open_rows(question: Question) -> list[int]:
    """Margin rows that interval arithmetic over the whole box of C leaves open, nearest to falling first."""
    lo, hi = bounding_box(question.parts, question.dim)
    decision = question.decision
    weights = (*question.weights[:-1], decision.rows @ question.weights[-1])
    shifts = (*question.shifts[:-1], decision.rows @ question.shifts[-1] + decision.shifts)
    _, lowest, _ = everywhere(weights, shifts, lo, hi)
    order = np.argsort(question.margins(np.zeros(question.dim))[0], kind="stable")
    return [int(k) for k in order if not lowest[k] > 0]


def _result(
    q: Question, status: ExactStatus, lower: float, upper: float, w: Witness | None, engine: Engine, evidence: Evidence, nodes: int, start: float,
    leaves: tuple[Leaf, ...] = (),
) -> ExactResult:  # fmt: skip
    delta, row, margin = (np.full(q.dim, np.nan), -1, float("nan")) if w is None else (w.delta, w.row, w.margin)
    rival = -1 if w is None else q.decision.rivals[row]
    return ExactResult(status, lower, upper, delta, row, rival, margin, engine, evidence, nodes, time.perf_counter() - start, leaves)
