r"""LEG-TV: the piecewise constant map that explains the moments of a function within L.

    min_g ‖Dg‖₁   s.t.   ‖D⁺ᵀ(ȳ − Σg)‖_∞ ≤ L,        ȳ = (1/n) Σ_i (f(x0 + z_i) − f(x0)) z_i

With the edge scheme D⁺ᵀΣ = σ²D, so on the edge differences t = Dg it is  min Σ|t_e|  s.t.  lo_e ≤ t_e ≤ hi_e,  lo = (b − L)/σ², hi = (b + L)/σ², b = D⁺ᵀȳ:
the dual of a min-cost circulation. g is determined up to a constant; it is given the mean of the empirical LEG Σ⁻¹ȳ. t is the paper's α, and "t is Dg for
some g" its U₂ᵀα = 0: the alternative form of its appendix, which the min cuts solve (there U₂ᵀα = 0 is: no curl around any face of the grid).

Weak duality, in each scheme A = D⁺ᵀΣ: for |u| ≤ 1 and any y with Dᵀu = Aᵀy the optimum is at least b·y − L‖y‖₁. For a circulation z (Dᵀz = 0), of the
edge scheme, the best split of z = u − σ²y gives −Σ φ_e*(z_e), where φ_e(t) = |t| on [lo_e, hi_e] and φ_e*(z) = max over {lo_e, hi_e, nearest to 0} of z t − |t|.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError
from formulations.leg.grid import Grid, Perturbation
from formulations.leg.network import Circulation, circulation_value, solve_circulation
from formulations.norms import Array

if TYPE_CHECKING:
    from formulations.leg.tree import Table

SOLVERS = ("flow", "cuts", "pivots", "highs", "clarabel")
_NETWORK = ("cuts", "pivots")
_LARGE = 5000  # pixels from which one solve by pivots gains more than the half second that loading the compiled loops takes
# pivots are not believed to have ended above this relative gap, or this violation as a share of the largest bound
_CLOSED, _TIGHT = 1e-9, 1e-12


@dataclass(frozen=True, eq=False)
class Circulating:
    """A circulation z (2p,) of an h × w grid, its edges in two lines, and the program that its multipliers are of."""

    program: LegProgram
    flow: Table

    def multipliers(self, level: float) -> Array:
        """y (m,) of the best split z = u − σ²y at a level."""
        from formulations.leg.simplex import from_lines

        return self.program.split(from_lines(*self.program.grid.shape, self.flow), *self.program.bounds(level))


@dataclass(frozen=True, eq=False)
class LegSolution:
    """One LEG-TV program solved, with both sides of its optimum.

    map         g (h, w), feasible up to `violation`
    objective   ‖Dg‖₁: an upper bound of the optimum
    lower       dual value of the multipliers: a lower bound of the optimum (of an integral circulation with "cuts" and "pivots", so exactly feasible)
    solver      what solved it: "cuts", "pivots", "highs" or "clarabel"
    dual        what the multipliers are made of when they are first asked for: themselves, or a circulation (a path's take half the memory)
    level       L;  maximal_level: the least L at which the map is constant
    violation   max over edges of the distance of t = Dg from [lo, hi] (edge scheme), or of |A g − b| from L
    """

    map: Array
    objective: float
    lower: float
    dual: Array | Circulating
    level: float
    maximal_level: float
    violation: float
    solver: str
    seconds: float

    @cached_property
    def multipliers(self) -> Array:
        """y (m,) of |A g − b| ≤ L: the optimum at any other level L' is at least lower − ‖y‖₁(L' − L)."""
        return self.dual.multipliers(self.level) if isinstance(self.dual, Circulating) else self.dual

    @property
    def dual_gap(self) -> float:
        """objective − lower ≥ 0."""
        return max(self.objective - self.lower, 0.0)

    @property
    def relative_gap(self) -> float:
        """dual_gap / objective; 0 where the objective is 0."""
        return self.dual_gap / self.objective if self.objective > 0 else 0.0


@dataclass(frozen=True, eq=False)
class LegProgram:
    """The data of LEG-TV on one channel: the perturbation that was drawn and the moments ȳ (p,) that came back.

    Raises InputError on moments of another size or that are not finite.
    """

    perturbation: Perturbation
    moments: Array

    def __post_init__(self) -> None:
        y = np.asarray(self.moments, dtype=float).ravel()
        if len(y) != self.grid.pixels:
            raise InputError(f"moments: {len(y)} values for a grid of {self.grid.shape}; give one per pixel.")
        if not np.isfinite(y).all():
            raise InputError("moments: hold a value that is not finite; check the model's scores.")
        object.__setattr__(self, "moments", y)

    @property
    def grid(self) -> Grid:
        return self.perturbation.grid

    @cached_property
    def edge_moments(self) -> Array:
        """b = D⁺ᵀȳ (m,)."""
        return self.grid.potential_differences(self.moments)

    @cached_property
    def empirical(self) -> Array:
        """Σ⁻¹ȳ (h, w): the empirical LEG, the solution at L = 0 up to a constant."""
        return self.perturbation.solve(self.moments).reshape(self.grid.shape)

    @cached_property
    def _centre(self) -> Array:
        """b/σ² (m,): what the edge differences of the edge scheme are at L = 0."""
        return self.edge_moments / self.perturbation.variance

    @cached_property
    def _mean(self) -> float:
        return float(self.empirical.mean())

    @cached_property
    def maximal_level(self) -> float:
        """L_max = ‖b‖_∞: from there on a constant map is optimal (of the padded scheme, the zero map)."""
        return float(np.abs(self.edge_moments).max())

    def apply(self, g: ArrayLike) -> Array:
        """A g = D⁺ᵀΣ g (m,), without forming D⁺ or Σ."""
        v = np.asarray(g, dtype=float).ravel()
        s2 = self.perturbation.variance
        if self.perturbation.scheme == "edge":
            return np.asarray(s2 * (self.grid.D @ v))
        if self.perturbation.scheme == "independent":
            return s2 * self.grid.potential_differences(v)
        return np.asarray(s2 * (self.grid.D @ v + self.grid.potential_differences(np.ones_like(v)) * v.mean()))

    def adjoint(self, y: ArrayLike) -> Array:
        """Aᵀy (p,)."""
        v, s2 = np.asarray(y, dtype=float), self.perturbation.variance
        if self.perturbation.scheme == "edge":
            return np.asarray(s2 * (self.grid.D.T @ v))
        if self.perturbation.scheme == "independent":
            return s2 * self.grid.pseudo_inverse(self.grid.D.T @ v)
        ones = np.ones(self.grid.pixels)
        return np.asarray(s2 * (self.grid.D.T @ v + ones * (self.grid.potential_differences(ones) @ v / len(ones))))

    def bounds(self, level: float) -> tuple[Array, Array]:
        """(lo, hi) of the edge differences, for the edge scheme."""
        radius = level / self.perturbation.variance
        return self._centre - radius, self._centre + radius

    def split(self, z: NDArray[Any], lo: Array, hi: Array) -> Array:
        """The multipliers y of the best split z = u − σ²y of a circulation of the edge scheme."""
        u = np.where(lo > 0, 1.0, np.where(hi < 0, -1.0, np.clip(z, -1.0, 1.0)))
        return np.asarray((u - z) / self.perturbation.variance)

    # ---- solving --------------------------------------------------------------------------------------------------------------

    def solve(self, level: float, *, solver: str | None = None, time_limit: float | None = None) -> LegSolution:
        """The program at L = `level`.

        solver: of the edge scheme, exact, "cuts" (min cuts on the faces) or "pivots" (network simplex on the pixels, needs numba), and "flow" for the
        likelier of them to be fast; of every scheme "highs" or "clarabel" (the sparse linear program). None picks "flow" where it applies, else "highs".
        Raises InputError on a negative level, on a network solver with another scheme, and on "pivots" without numba.
        """
        level, chosen = _level(level), self._solver(solver, fast=self.grid.pixels >= _LARGE)
        if level >= self.maximal_level:
            return self._constant(level, chosen, time.perf_counter())
        if chosen in _NETWORK:
            found = self._by_pivots(np.array([level]), time_limit)[0] if chosen == "pivots" else None
            return found or self._by_cuts(level, None, time_limit)[0]
        begun = time.perf_counter()
        from formulations.leg.linear import solve_linear

        return self._certified(*solve_linear(self, level, chosen, time_limit), level, chosen, begun)

    def solve_path(
        self, levels: Sequence[float] | Array, *, solver: str | None = None, time_limit: float | None = None
    ) -> tuple[LegSolution, ...]:
        """Solutions at every level, in the order given. Of the edge scheme each starts from its neighbour, from the largest level down: "pivots" (where numba
        is) go on from the last tree, so that a whole path costs a few single solves, of which each level is given an equal part as its seconds; "cuts" start
        from the last heights. The time limit is for one level. Raises as `solve`.
        """
        wanted = np.array([_level(v) for v in levels])
        chosen = self._solver(solver, fast=True)
        falling = np.argsort(-wanted, kind="stable")
        inner = falling[wanted[falling] < self.maximal_level] if chosen in _NETWORK else falling[:0]
        pivoted = self._by_pivots(wanted[inner], time_limit) if chosen == "pivots" else [None] * len(inner)
        found, state = {}, None
        for k, solution in zip(inner.tolist(), pivoted, strict=True):
            if solution is None:
                solution, state = self._by_cuts(float(wanted[k]), state, time_limit)
            found[k] = solution
        return tuple(found.get(k) or self.solve(level, solver=chosen, time_limit=time_limit) for k, level in enumerate(wanted.tolist()))

    def _by_cuts(self, level: float, state: Circulation | None, time_limit: float | None) -> tuple[LegSolution, Circulation]:
        begun = time.perf_counter()
        lo, hi = self.bounds(level)
        found = solve_circulation(self.grid.shape, lo, hi, start=state, time_limit=time_limit)
        return self._from_circulation(found, lo, hi, level, begun), found

    def _by_pivots(self, levels: Array, time_limit: float | None) -> list[LegSolution | None]:
        """At falling levels below L_max, their seconds in equal parts; None where z is no circulation, the gap is open or the map not feasible."""
        if not len(levels) or min(self.grid.shape) < 2:
            return [None] * len(levels)
        from formulations.leg.simplex import NetworkSimplex

        begun, variance = time.perf_counter(), self.perturbation.variance
        tree = NetworkSimplex(*self.grid.shape, self._centre)
        values, maps, flows = tree.follow(levels / variance, self._mean, time_limit)
        objective, lower, violation = values.T  # what is not a number compares as false
        believed = (objective - lower <= _CLOSED * objective) & (violation <= _TIGHT * (self.maximal_level + levels) / variance)
        images, seconds = maps.reshape(-1, *self.grid.shape), (time.perf_counter() - begun) / len(levels)
        rows = zip(believed.tolist(), values.tolist(), levels.tolist(), images, flows, strict=True)
        return [
            LegSolution(image, upper, below, Circulating(self, z), level, self.maximal_level, amiss, "pivots", seconds) if good else None
            for good, (upper, below, amiss), level, image, z in rows
        ]

    def _solver(self, solver: str | None, *, fast: bool) -> str:
        """What is meant by `solver`; `fast`: the compiled loops are worth loading."""
        if solver is not None and solver not in SOLVERS:
            raise InputError(f"solver={solver!r} is not known; use one of {', '.join(SOLVERS)}.")
        if solver in ("flow", *_NETWORK) and self.perturbation.scheme != "edge":
            raise InputError(f"solver={solver!r} needs the edge scheme, not {self.perturbation.scheme!r}; leave solver out.")
        if solver == "pivots" and not available():
            raise InputError("solver='pivots' needs numba; install the extra 'fast', or leave solver out.")
        if solver not in (None, "flow"):
            return str(solver)
        if self.perturbation.scheme != "edge":
            return "highs"
        return "pivots" if fast and available() else "cuts"

    def _centred(self, g: Array) -> Array:
        """g (p,) moved to the mean of the empirical LEG; of the padded scheme, where the mean is determined, g itself."""
        if self.perturbation.scheme != "padded":
            # plateaus stay exactly flat: one constant is added to equal numbers
            g = g + (self._mean - float(g.mean()))
        return g.reshape(self.grid.shape)

    def _constant(self, level: float, solver: str, begun: float) -> LegSolution:
        g = np.zeros(self.grid.pixels)
        return LegSolution(
            self._centred(g), 0.0, 0.0, np.zeros(self.grid.edges), level, self.maximal_level, 0.0, solver, time.perf_counter() - begun
        )

    def _from_circulation(self, c: Circulation, lo: Array, hi: Array, level: float, begun: float) -> LegSolution:
        g = self._centred(c.potentials)
        t = self.grid.D @ g.ravel()
        violation = float(np.maximum(np.maximum(lo - t, t - hi), 0.0).max())
        lower = circulation_value(c.flow, lo, hi)
        y = self.split(c.flow, lo, hi)
        return LegSolution(g, c.objective, lower, y, level, self.maximal_level, violation, "cuts", time.perf_counter() - begun)

    def _certified(self, g: Array, u: Array, y: Array, level: float, solver: str, begun: float) -> LegSolution:
        """Both values from a solver's (g, u, y), made feasible by us: g is drawn towards the empirical LEG, (u, y) repaired and scaled into |u| ≤ 1."""
        b, centre = self.edge_moments, self.empirical.ravel()
        excess = float(np.abs(self.apply(g) - b).max()) - level
        if excess > 0:  # A Σ⁻¹ȳ = b, so a share excess/(excess + L) of the way there suffices
            g = g + min(1.0, 1.0000001 * excess / (excess + level)) * (centre - g)
        u = u + self.grid.D @ self.grid.pseudo_inverse(self.adjoint(y) - self.grid.D.T @ u)  # now Dᵀu = Aᵀy
        scale = 1.0 / max(1.0, float(np.abs(u).max(initial=0.0)))
        lower = max(0.0, scale * float(b @ y - level * np.abs(y).sum()))
        violation = max(0.0, float(np.abs(self.apply(g) - b).max()) - level)
        return LegSolution(
            self._centred(g), float(np.abs(self.grid.D @ g).sum()), lower, scale * y, level, self.maximal_level, violation, solver,
            time.perf_counter() - begun,
        )  # fmt: skip


@cache
def available() -> bool:
    """Whether numba, which compiles the pivots, can be imported: one that is too old for this numpy says so only then."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


def theorem_level(shape: tuple[int, int], n: int, epsilon: float = 0.05) -> float:
    """L = sqrt(2 ‖D⁺‖₁ log(p/ε)/n) of Theorem 1, for scores in [0, 1] and inputs of size at most 1. Conservative; raises InputError on n < 1 or ε ∉ (0, 1)."""
    grid = Grid(*shape)
    if n < 1 or not 0 < epsilon < 1:
        raise InputError(f"theorem_level: n={n} must be at least 1 and epsilon={epsilon} lie between 0 and 1.")
    return math.sqrt(2 * grid.widest_row() * math.log(grid.pixels / epsilon) / n)


def _level(level: float) -> float:
    if not (np.isfinite(level) and level >= 0):
        raise InputError(f"level={level} must be a number ≥ 0.")
    return float(level)
