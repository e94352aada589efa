r"""min ‖Wδ‖  s.t.  q(δ) ≤ 0, δ ∈ C  for the quadratic model q: which method answers.

    s-lemma      p = 2 without C: exact, one scalar equation                         (s_lemma.py)
    shor         p = 2, ∞: the Shor dual by quasi-Newton steps, then along its central path where they stall  (shor.py, barrier.py)
    shor-sdp     every norm, up to 64 features: the same dual as a semidefinite program     (sdp.py)
    restriction  every norm and set: convex restrictions from several starts; a value and no bound      (restriction.py)

The Shor methods take their value from the same restrictions, started at the dual's minimiser too: where the relaxation is tight both sides meet.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import Part, bounding_box
from formulations.programs import MinNormProgram, relative_parts
from formulations.quadratic.barrier import follow
from formulations.quadratic.model import QuadraticModel, QuadraticSolution, by_name, stationarity, violation
from formulations.quadratic.multipliers import pulled, read_multipliers, write_multipliers
from formulations.quadratic.restriction import Restricted, Restriction
from formulations.quadratic.s_lemma import s_lemma
from formulations.quadratic.sdp import LIMIT, shor_sdp
from formulations.quadratic.shor import Point, climb, evaluate, start
from formulations.quadratic.terms import Terms, build
from formulations.sets.base import ConvexSet
from formulations.solution import Residuals
from formulations.solve import DEFAULT_SOLVER
from formulations.status import Status

METHODS = ("s-lemma", "shor", "shor-sdp", "restriction")
CLOSE = 1e-6
DENSE = 900  # features + multipliers up to which the central path (dense Newton systems) is followed
QUICK, LONG = 60, 600  # quasi-Newton steps before the central path takes over, and where it cannot


def min_norm_quadratic(
    model: QuadraticModel,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    x0: ArrayLike | None = None,
    *,
    method: str | None = None,
    solver: str = DEFAULT_SOLVER,
) -> QuadraticSolution:
    """``min ‖Wδ‖  s.t.  m₀ + g·δ + ½δᵀHδ ≤ 0, δ ∈ C``: bracketed, and exact where the relaxation is tight.

    The answer is about the *quadratic model*; it is never a certified number of a network. x0 (d,) places sets over the input. `method` None chooses:
    s-lemma for p=2 without C, shor for p=2 and inf, shor-sdp for other norms up to 64 features, restriction beyond.
    Raises InputError for a method that does not answer this norm, set or size, and on shapes that do not fit.
    """
    begin = time.perf_counter()
    norm = Norm.of(norm)
    norm.scale(model.dim)
    parts = tuple(p.at(0) for p in relative_parts(constraints, model.dim, x0))
    method = _method(method, norm, parts, model.dim)
    if method == "s-lemma":
        return s_lemma(model, norm)
    zero = np.zeros(model.dim)
    if violation(model, parts, zero) <= 0:
        duals = tuple(np.zeros(p.piece.multiplier_shape if p.piece.kind != "custom" else (0,)) for p in parts)
        named, seconds = by_name(parts, 0.0, duals), time.perf_counter() - begin
        return QuadraticSolution(0.0, 0.0, zero, named, duals, Status.OPTIMAL, method, Residuals(0.0, 0.0, 0.0), seconds)
    dual = None if method == "restriction" else _dual(model, norm, parts, method, solver)
    lower = 0.0 if dual is None else dual[1].lower(dual[0])
    if lower > _reach(norm, parts, model.dim):
        lower = INF
    restriction = Restriction(model, norm, parts, solver=solver)
    primal = None if lower == INF else restriction.descend(_starts(model, norm, parts, dual), enough=lower * (1 + CLOSE))
    return _answer(model, norm, parts, method, dual, lower, primal, begin)


def _method(method: str | None, norm: Norm, parts: tuple[Part, ...], d: int) -> str:
    kinked = norm.p == 1.0
    plain = norm.p == 2.0 and not isinstance(norm, GroupNorm)
    if method is None:
        if plain and not parts:
            return "s-lemma"
        return "restriction" if kinked and d > LIMIT else "shor-sdp" if kinked else "shor"
    if method not in METHODS:
        raise InputError(f"min_norm_quadratic: method={method!r} is not one of {', '.join(METHODS)}.")
    if method == "s-lemma" and (parts or not plain):
        raise InputError(
            f"min_norm_quadratic: the S-lemma answers p=2 without constraints; here {norm.label} with {len(parts)} pieces, use 'shor'."
        )
    if method == "shor" and kinked:
        raise InputError(
            f"min_norm_quadratic: method='shor' answers p=2 and 'inf', not {norm.label}; use 'shor-sdp' (up to {LIMIT} features) or 'restriction'."
        )
    return method


def _dual(model: QuadraticModel, norm: Norm, parts: tuple[Part, ...], method: str, solver: str) -> tuple[Terms, Point] | None:
    if method == "shor-sdp":
        return shor_sdp(model, norm, parts, solver=solver)
    t = build(model, norm, parts)
    enough = 0.5 * (_reach(norm, parts, model.dim) / t.unit) ** 2 * 1.01
    enough = min(enough, 1e12)  # no finite box: an infeasible model would climb for ever
    small = len(t.g) + t.count <= DENSE
    first = start(t)
    warm = first if small and not t.nu.stop else _warm(t, first, model, norm, parts)
    point, done = climb(t, warm, steps=QUICK if small else LONG, enough=enough)
    if small and not done and enough >= point.D:  # from the start again: the climb ends too near the edge of P ≻ 0 for a central path
        point = max(point, follow(t, first, enough=enough), key=lambda found: found.lower(t))
    return t, point


def _warm(t: Terms, first: Point, model: QuadraticModel, norm: Norm, parts: tuple[Part, ...]) -> Point:
    """The linear program's multipliers, taken as far from the first point as P ≻ 0 allows; the first point where they do not help."""
    linear = MinNormProgram(norm, parts, model.dim).solve(model.gradient[None], np.array([model.level]), parts)
    if not np.isfinite(linear.delta).all():
        return first
    goal = write_multipliers(t, float(linear.multipliers["margin"][0]), linear.duals, linear.delta, linear.value, model, norm, parts)
    tried = (evaluate(t, first.y + share * (goal - first.y)) for share in 1 - 0.5 ** np.arange(10, 0, -1.0))
    return max((p for p in (*tried, first) if p is not None), key=lambda p: p.lower(t))


def _reach(norm: Norm, parts: tuple[Part, ...], d: int) -> float:
    """The largest ‖Wδ‖ in the box around C, slightly more; +inf without such a box."""
    lo, hi = bounding_box(parts, d)
    if (lo > hi).any():
        return -1.0
    far = np.maximum(np.abs(lo), np.abs(hi))
    return float(norm.value(far)) * (1 + 1e-9) if np.isfinite(far).all() else INF


def _starts(model: QuadraticModel, norm: Norm, parts: tuple[Part, ...], dual: tuple[Terms, Point] | None) -> Iterator[Array]:
    """Where to put the first tangent: the dual's minimiser, 0 (the plain restriction), and the unconstrained ℓ2 answer clipped to the box."""
    lo, hi = bounding_box(parts, model.dim)
    if dual is not None:
        t, point = dual
        yield t.p + np.asarray(t.N @ point.z).ravel()
    yield np.clip(np.zeros(model.dim), lo, hi)
    free = s_lemma(model, Norm(2) if isinstance(norm, GroupNorm) else Norm(2, norm.weights))
    if free.value is not None:
        yield np.clip(free.delta, lo, hi)
        yield np.clip(-free.delta, lo, hi)


def _answer(
    model: QuadraticModel, norm: Norm, parts: Sequence[Part], method: str, dual: tuple[Terms, Point] | None, lower: float, primal: Restricted | None, begin: float
) -> QuadraticSolution:  # fmt: skip
    delta = np.full(model.dim, np.nan) if primal is None else primal.delta
    value = None if primal is None else primal.value
    if dual is not None and lower > 0:
        t, point = dual
        lam, duals = read_multipliers(
            t, point.y, point.z, model, norm, parts, lower if lower < INF else t.unit * float(np.sqrt(2 * max(point.D, 0.0)))
        )
    elif primal is not None:
        lam, duals = primal.lam, primal.duals
    else:
        lam, duals = 0.0, tuple(np.zeros(0) for _ in parts)
    gap = float("nan") if value is None else value - lower
    if value is None:
        status = Status.INFEASIBLE if lower == INF else Status.UNKNOWN
        residuals = Residuals(INF, float("nan"), gap)
    else:
        closed = lower > 0 and gap <= CLOSE * max(value, 1e-300)
        status = Status.OPTIMAL if closed else Status.UNKNOWN
        pull = lam * model.slope(delta)
        for part, u in zip(parts, duals, strict=True):
            pull = pull + (pulled(part.piece, u) if u.size else 0.0)
        residuals = Residuals(violation(model, parts, delta), stationarity(norm, pull, delta), gap)
    return QuadraticSolution(value, lower, delta, by_name(parts, lam, duals), duals, status, method, residuals, time.perf_counter() - begin)
