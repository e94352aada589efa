r"""Certified radii of a batch: lower bounds of  v* = min { ‖Wδ‖ : some m_k(δ) ≤ 0, δ ∈ C }  that hold for the network itself.

    check → linearise (where to start) → search radii in lockstep (verification/radius_search.py) → solve the final rows exactly, for their multipliers

A bound is min(r, lower of the exact program): the rows hold within r, and `Solution.lower` is verified weak duality, not a solver's word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.given import array, whole
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.pieces import CustomPiece
from formulations.programs import check_inside, min_norm, relative_parts
from formulations.sets import Everything
from formulations.sets.base import ConvexSet
from formulations.support import Region
from verification.decision import Decision
from verification.dual_network.search import DualSearch
from verification.evidence import InnerSlopes
from verification.lirpa import BoundEngine, BoundMethod
from verification.model import batch_of, decide, linearise, outputs, stack
from verification.radii import CertifiedRadii, CertifiedRadius, CertifiedRow, SearchStop
from verification.radius_search import FAR, RadiusSearch
from verification.relu_chain import ReluChain

PASSES = 25
TOLERANCE = 1e-3
START = 0.85  # of the linearised radius: where CROWN's radius usually lies
START_INTERVALS = 0.02  # the same where layers are bounded by intervals: convolutional networks end near here, and the way up is short
ASCENT = 40  # steps for sets that are no boxes: on the credit polytope 120 gain .1 % of the radius for 2.5 times the time
DUAL = "dual-network"
METHODS = (*(how.label for how in BoundMethod), DUAL)
AHEAD = 1.02  # times CROWN's radius: where the search with better slopes begins


def certified_radius(
    model: nn.Module | BoundEngine,
    x0: Tensor | ArrayLike,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    decisions: Decision | Sequence[Decision] | None = None,
    method: BoundMethod | str = "crown",
    upper: ArrayLike | None = None,
    per_rival: bool = False,
    max_passes: int = PASSES,
    tolerance: float = TOLERANCE,
    seconds: float | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    jobs: int = 1,
) -> CertifiedRadii:
    """``lower_i ≤ min { ‖Wδ‖ : some margin of decision i ≤ 0 at x0_i + δ, δ ∈ C }`` for a batch x0 (n, *shape); +inf: no allowed change flips it.

    model       a module (n, *shape) → (n, outputs), copied and run in float64; or a `BoundEngine`, to bound one network several times
    decisions   one for all or one per input; by default the predicted class stays ahead of every other class
    method      "crown", "crown-ibp", "ibp" or "alpha-crown" (gradient steps on the slopes of the margin rows, rectifiers and S-shaped activations; the bounds of
                layers under them keep fixed slopes; after a search with CROWN, whose answer stays where it is better: `lower` is never below CROWN's)
                "dual-network": slopes of all layers and the set's multipliers trained together while the radius follows (verification/dual_network), for chains
                of affine layers and ReLUs; after CROWN and never below it likewise
    upper       (n,) distances of known witnesses, only to start from
    per_rival   give every rival its own radius instead of the nearest one's (as many searches as there are margin rows)
    max_passes  bound passes over the batch (steps of training are none); `tolerance` relative width at which a radius counts as found; `seconds` limits the search
    progress    called with (inputs done, inputs in all); an interrupt returns the best bounds so far, see `stop`

    A larger set never has a larger v*. No method promises that of `lower` by itself: slopes are chosen anew for every set (crown, alpha-crown), and each search
    ends within its own tolerance (ibp too). `nested_radii` carries the rows from set to set and has the law, with every method.
    Raises InputError on shapes that do not fit, NaN, an input outside C (which constraint, by how much), an empty set, one output without a decision,
    a decision that does not stand at x0, an unknown method, and a layer that cannot be bounded (by name).
    """
    begun, norm = time.monotonic(), Norm.of(norm)
    how, name = _named(method)
    known = _limits(max_passes, tolerance, seconds, upper)
    engine, x, y = _network(model, x0, device)
    if known is not None and known.shape != (len(x),):
        raise InputError(f"upper: has shape {known.shape} for {len(x)} inputs; give the distance of one witness each.")
    chain = dual_chain(engine, norm, constraints) if how is None else None
    before = engine.passes
    plain = None
    if how in (None, BoundMethod.ALPHA_CROWN):
        plain = certified_radius(
            engine, x, norm, constraints, decisions=decisions, method=BoundMethod.CROWN, upper=upper, per_rival=per_rival,
            max_passes=max_passes, tolerance=tolerance, seconds=seconds, jobs=jobs,
        )  # fmt: skip
        max_passes, seconds = max_passes - plain.passes, None if seconds is None else seconds - plain.seconds
        if np.isinf(plain.lower).all():
            return replace(plain, method=name)  # nothing is left to raise
        if plain.stop is SearchStop.INTERRUPTED or max_passes <= 0 or (seconds is not None and seconds <= 0):
            return replace(plain, method=name, stop=SearchStop.LIMIT if plain.stop is SearchStop.COMPLETE else plain.stop)
    chosen = decide(y, decisions)
    Q, s, real = stack(chosen, y)
    n, flat = len(x), x.flatten(1).cpu().numpy()
    parts = relative_parts(constraints, engine.dim, flat, n)
    check_inside(parts, n)
    region = Region.build(norm, parts, np.zeros(n), engine.dim, count=n, steps=ASCENT, device=x.device)
    linear = torch.where(real, region.distance(*linearise(engine.model, x, Q, s)), INF)
    owner = torch.nonzero(real)[:, 0] if per_rival else torch.arange(n, device=x.device)
    if per_rival:
        Q, s, guess = Q[real][:, None], s[real][:, None], linear[real]
        search_region = region.take(owner)
    else:
        guess, search_region = linear.amin(1), region
    part = START_INTERVALS if how is BoundMethod.CROWN_IBP else START
    start = _start(part, guess, x[owner], None if known is None else known[owner.cpu().numpy()])
    if plain is not None:
        start = _after(plain, torch.nonzero(real).tolist() if per_rival else None, start)
    search: RadiusSearch | DualSearch
    if how is None:
        assert chain is not None
        search = DualSearch(
            chain, x[owner], Q, s, torch.ones_like(s, dtype=torch.bool) if per_rival else real, search_region, norm, parts, start
        )
        stop = search.run(seconds, progress)
    else:
        search = RadiusSearch(engine, x[owner], Q, s, search_region, how, start)
        stop = search.run(tolerance, max_passes, seconds, progress)
    a, b, radius = (_by_input(v, real, per_rival) for v in (search.a, search.b, search.radius[:, None].expand_as(search.b)))
    slopes = [_by_input(v, real, per_rival) for v in search.slopes]
    item = {(int(i), int(k)): j for j, (i, k) in enumerate(torch.nonzero(real).tolist())} if per_rival else {(i, 0): i for i in range(n)}
    inner = {at: search.inner.get(j, ()) for at, j in item.items()}
    rows = _solve(a, b, slopes, inner, radius, real.cpu().numpy(), chosen, norm, constraints, flat, jobs)
    items = tuple(CertifiedRadius(tuple(r), float(v), name) for r, v in zip(rows, linear.amin(1), strict=True))
    if plain is not None:
        items = tuple(max(pair, key=lambda item: item.lower) for pair in zip(plain, items, strict=True))  # the first where they are equal
    return CertifiedRadii(items, norm, name, engine.passes - before, time.monotonic() - begun, stop)


def dual_chain(engine: BoundEngine, norm: Norm, constraints: ConvexSet | None) -> ReluChain:
    """The chain that "dual-network" bounds.

    Raises InputError, before any work, on another network (by its first layer that is neither affine nor a ReLU), a GroupNorm, and a set known only by its
    CVXPY constraints.
    """
    if isinstance(norm, GroupNorm):
        raise InputError(f"norm: method={DUAL!r} has no closed form for a GroupNorm; use method='crown' or 'alpha-crown'.")
    own = next((p.name for p in (constraints or Everything()).parts(engine.dim) if isinstance(p.piece, CustomPiece)), None)
    if own is not None:
        raise InputError(
            f"constraints: {own!r} is known only by its CVXPY constraints, which have no multipliers for method={DUAL!r}; use method='crown', or build it "
            "from the sets of this package."
        )
    return ReluChain.from_model(engine.model, engine.input_shape, device=engine.device)


def _network(
    model: nn.Module | BoundEngine, x0: Tensor | ArrayLike, device: torch.device | str | None
) -> tuple[BoundEngine, Tensor, Tensor]:
    if isinstance(model, BoundEngine):
        x = batch_of(x0, model.input_shape, model.device)
        return model, x, outputs(model.model, x)
    x = batch_of(x0, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
    engine = BoundEngine(model, tuple(x.shape[1:]), device)
    x = x.to(engine.device)
    return engine, x, outputs(engine.model, x)


def _limits(max_passes: int, tolerance: float, seconds: float | None, upper: ArrayLike | None) -> Array | None:
    """`upper` as an array. Raises InputError on limits that no search can keep."""
    if whole("max_passes", max_passes) < 0:
        raise InputError(f"max_passes={max_passes} must not be negative.")
    if not tolerance >= 0:
        raise InputError(f"tolerance={tolerance} must be a number ≥ 0, such as {TOLERANCE}.")
    if seconds is not None and not seconds >= 0:
        raise InputError(f"seconds={seconds} must not be negative; leave it out for no limit.")
    return None if upper is None else np.atleast_1d(array("upper", upper))


def _start(part: float, linear: Tensor, x: Tensor, upper: Array | None) -> Tensor:
    """A first radius per item: a part of the linearised radius or of the witness, whichever is smaller; far out when there is neither."""
    guess = part * linear
    if upper is not None:
        guess = torch.minimum(guess, part * torch.as_tensor(upper, dtype=x.dtype, device=x.device))
    far = FAR * (1 + x.flatten(1).norm(dim=-1))
    return torch.where(torch.isfinite(guess), guess, far).clamp(min=1e-9)


def _after(plain: CertifiedRadii, places: list[list[int]] | None, start: Tensor) -> Tensor:
    """A first radius per item: a little beyond what `plain` certified for the input, or for the (input, row) at `places`."""
    found = [item.lower for item in plain] if places is None else [plain[i].rows[k].lower for i, k in places]
    known = AHEAD * torch.as_tensor(found, dtype=start.dtype, device=start.device)
    return torch.where(torch.isfinite(known) & (known > 0), known, start)


def _named(method: BoundMethod | str) -> tuple[BoundMethod | None, str]:
    """The bound pass, None for the dual network, and the name."""
    name = method.label if isinstance(method, BoundMethod) else str(method).lower()
    if name not in METHODS:
        raise InputError(f"method={method!r} is not known; use one of {', '.join(METHODS)}.")
    return (None if name == DUAL else BoundMethod.of(name)), name


def _by_input(v: Tensor, real: Tensor, per_rival: bool) -> Array:
    """(N, K, …) of the search as (n, K, …) per input."""
    if not per_rival:
        return v.cpu().numpy()
    out = torch.zeros(*real.shape, *v.shape[2:], dtype=v.dtype, device=v.device)
    out[real] = v[:, 0]
    return out.cpu().numpy()


def _solve(
    a: Array, b: Array, slopes: Sequence[Array], inner: Mapping[tuple[int, int], tuple[InnerSlopes, ...]], radius: Array, real: Array,
    decisions: Sequence[Decision], norm: Norm,
    constraints: ConvexSet | None, flat: Array, jobs: int,
) -> list[list[CertifiedRow]]:  # fmt: skip
    """The exact program of every row that is a bound."""
    where = np.argwhere(real & np.isfinite(b))
    at, row = where.T
    solved = min_norm(a[at, row], b[at, row], norm, constraints, flat[at], jobs=jobs) if len(where) else ()
    found = {(int(i), int(k)): solution for (i, k), solution in zip(where, solved, strict=True)}
    out = []
    for i, decision in enumerate(decisions):
        rows = []
        for k, rival in enumerate(decision.rivals):
            solution = found.get((i, k))
            lower = 0.0 if solution is None else max(0.0, min(float(radius[i, k]), solution.lower))
            lines = tuple(v[i, k] for v in slopes)
            rows.append(
                CertifiedRow(int(rival), float(radius[i, k]), a[i, k], float(b[i, k]), solution, lower, lines, inner.get((i, k), ()))
            )
        out.append(rows)
    return out


__all__ = ["CertifiedRadii", "CertifiedRadius", "CertifiedRow", "SearchStop", "certified_radius"]
