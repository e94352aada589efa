r"""What every convex set can do.

A set is closed and convex, over the *input* z = x0 + δ (`on="input"`) or over the *change* δ (`on="change"`); it says which.
A new set gives only `constraints(z)`; a set that also gives `parts(dim)` gets verified bounds and in-place solver updates; a set that knows
closed forms overrides `support` and `project`. Everything else follows here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.given import array
from formulations.norms import INF, Array
from formulations.pieces import CustomPiece, Part, bounding_box

if TYPE_CHECKING:
    from formulations.sets.intersection import Intersection

FEASIBILITY = 1e-9  # how far outside a point may lie and still count as inside, in the units of each constraint


class ConvexSet:
    """A closed convex set; subclass it with `constraints(z)` to bring your own.

    Attributes: `on` ("input" or "change"), `name` (key of its multipliers; default: its kind), `dim` (int, or None when it fits any dimension).
    """

    on: str = "change"
    name: str = "set"
    dim: int | None = None

    def constraints(self, z: Any) -> list[Any]:
        """CVXPY constraints that say z ∈ C, for a CVXPY expression z of shape (d,)."""
        size = int(z.shape[0])
        out: list[Any] = []
        for part in self.parts(size):
            out += part.piece.model(z, part.piece.offsets()).constraints
        return out

    def parts(self, dim: int) -> tuple[Part, ...]:
        """The set as named pieces in dimension `dim`."""
        self.check_dim(dim)
        return (Part(self.name, CustomPiece(self.constraints, dim), self.on),)

    def check_dim(self, dim: int) -> None:
        if self.dim is not None and self.dim != dim:
            raise InputError(f"{self}: is a set in {self.dim} dimensions, the data has {dim}; give it the model's (flattened) input size.")

    def support(self, a: ArrayLike) -> float:
        """σ_C(a) = max { a·z : z ∈ C }; +inf when unbounded. Raises InputError on an empty set."""
        from formulations.solve import maximise_linear

        return maximise_linear(self, np.asarray(a, dtype=float))[0]

    def project(self, v: ArrayLike) -> Array:
        """argmin { ‖z − v‖₂ : z ∈ C }. Raises InputError on an empty set."""
        from formulations.solve import project_euclidean

        return project_euclidean(self, np.asarray(v, dtype=float))

    def violation(self, z: ArrayLike) -> float:
        """Largest violation of any constraint at z (≤ 0 inside), in each constraint's own units."""
        v = np.asarray(z, dtype=float).ravel()
        return max((part.piece.violation(v) for part in self.parts(len(v))), default=-INF)

    def contains(self, z: ArrayLike, tolerance: float = FEASIBILITY) -> bool:
        return self.violation(z) <= tolerance

    def bounding_box(self, dim: int | None = None) -> tuple[Array, Array]:
        """A box (lo, hi) that contains C, each (d,), ±inf where none is known. `dim` is needed when the set fits any dimension."""
        size = self.dim if dim is None else dim
        if size is None:
            raise InputError(f"{self}: fits any dimension; call bounding_box(dim).")
        return bounding_box(self.parts(size), size)

    def relative_to(self, x0: ArrayLike) -> ConvexSet:
        """The set {δ : x0 + δ ∈ C} over the change. A set that is over the change already is returned as it is."""
        if self.on == "change":
            return self
        return Shifted(self, np.asarray(x0, dtype=float).ravel())

    def members(self) -> tuple[ConvexSet, ...]:
        """The sets whose intersection this is."""
        return (self,)

    def describe(self) -> str:
        """One line in words, for reports."""
        return f"{self!r} over the {self.on}"

    def __and__(self, other: ConvexSet) -> Intersection:
        from formulations.sets.intersection import Intersection

        if not isinstance(other, ConvexSet):
            return NotImplemented
        return Intersection(self, other)

    def __repr__(self) -> str:
        return type(self).__name__


class Everything(ConvexSet):
    """All of R^d: no constraint."""

    name = "everything"

    def parts(self, dim: int) -> tuple[Part, ...]:
        return ()

    def constraints(self, z: Any) -> list[Any]:
        return []

    def members(self) -> tuple[ConvexSet, ...]:
        return ()

    def support(self, a: ArrayLike) -> float:
        return 0.0 if not np.any(a) else INF

    def project(self, v: ArrayLike) -> Array:
        return np.array(v, dtype=float)


class Shifted(ConvexSet):
    """{δ : x0 + δ ∈ C}."""

    def __init__(self, base: ConvexSet, x0: Array) -> None:
        self.base, self.x0, self.on, self.name, self.dim = base, x0, "change", base.name, base.dim

    def constraints(self, z: Any) -> list[Any]:
        return self.base.constraints(z + self.x0)

    def parts(self, dim: int) -> tuple[Part, ...]:
        return tuple(p.relative_to(self.x0) for p in self.base.parts(dim))

    def support(self, a: ArrayLike) -> float:
        return self.base.support(a) - float(np.dot(self.x0, a))

    def project(self, v: ArrayLike) -> Array:
        return self.base.project(np.asarray(v, dtype=float) + self.x0) - self.x0

    def violation(self, z: ArrayLike) -> float:
        return self.base.violation(np.asarray(z, dtype=float).ravel() + self.x0)

    def __repr__(self) -> str:
        return f"{self.base!r} relative to x0"


def on_input(on: str) -> str:
    """Validates the `on=` of a set."""
    if on not in ("input", "change"):
        raise InputError(f"on={on!r}: a set is over the 'input' (x0 + δ) or over the 'change' (δ).")
    return on


def vector(name: str, values: ArrayLike, *, allow_infinite: bool = False) -> Array:
    """A read-only float array (d,) or 0-d; raises InputError that names the first NaN (or infinite) entry."""
    v = array(name, values)
    bad = np.flatnonzero(np.isnan(v.ravel()) if allow_infinite else ~np.isfinite(v.ravel()))
    if len(bad):
        raise InputError(f"{name}[{bad[0]}]={v.ravel()[bad[0]]} is not {'a number' if allow_infinite else 'finite'}; replace it.")
    v.flags.writeable = False
    return v


def level(name: str, value: float) -> float:
    """A finite, non-negative number such as a radius or a budget."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number >= 0):
        raise InputError(f"{name}={value!r:.60} must be finite and ≥ 0; to allow everything, leave the constraint out.")
    return number
