r"""One table column and its features in model space.

    Numeric      x ↦ z = (x − mean)/std                      one feature; whole numbers are relaxed to the line, and flagged
    Categorical  category k ↦ the unit vector e_k            one 0/1 feature per category; a mixture decodes to its largest entry, and is flagged

`mean` and `std` (population, ddof = 0) are floats, hence exact rationals: a bound or relation is moved to model space without loss beyond its
last rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from formulations.errors import InputError
from formulations.norms import Array

FRACTIONAL = 1e-9  # how far from 0 or 1 an entry of a one-hot group may lie and still count as whole


@dataclass(frozen=True)
class Numeric:
    """A standardised column: ``z = (x − mean)/std``, allowed between `low` and `high` (original units, may be infinite).

    `integer`: the data hold whole numbers only, so a fractional answer is a relaxation. `given`: the range was stated rather than read from the data.
    `unit` names one unit ("year", "DM").
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    integer: bool = False
    given: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        for label, number in (("mean", self.mean), ("std", self.std)):
            if not np.isfinite(number):
                raise InputError(f"column {self.name!r}: {label}={number} is not finite; replace it.")
        if not self.std > 0:
            raise InputError(f"column {self.name!r}: std={self.std} must be positive; drop a constant column.")
        if not self.low <= self.high:
            raise InputError(f"column {self.name!r}: its range from {self.low} to {self.high} is empty; swap or widen the ends.")

    @property
    def width(self) -> int:
        return 1

    @property
    def feature_names(self) -> tuple[str, ...]:
        return (self.name,)

    def encode(self, values: Sequence[Any], labels: Sequence[Any]) -> Array:
        """(n,) values in original units → (n, 1). Raises InputError, with the row's label, on a cell that is no finite number."""
        x = numbers(self.name, values, labels)
        return ((x - self.mean) / self.std)[:, None]

    def decode(self, z: Array) -> Array:
        """(n, 1) → (n,) in original units. Whole numbers are restored where only the rounding of the two maps stands between."""
        x = self.mean + self.std * z[:, 0]
        if not self.integer:
            return x
        rounding = 8 * np.finfo(float).eps * (np.abs(x) + abs(self.mean))
        return np.where(np.abs(x - np.rint(x)) <= rounding, np.rint(x) + 0.0, x)

    def encoded_range(self) -> tuple[Array, Array]:
        """Allowed range in model space, each (1,); the same float operations as `encode`, so a value at an end is inside."""
        return np.array([(self.low - self.mean) / self.std]), np.array([(self.high - self.mean) / self.std])

    @property
    def scale(self) -> float:
        """Original units per unit of the feature."""
        return self.std

    def range_words(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        source = "stated" if self.given else "from the data"
        whole = ", whole numbers relaxed" if self.integer else ""
        return f"{self.name} between {self.low:g} and {self.high:g}{unit} ({source}{whole})"


@dataclass(frozen=True)
class Categorical:
    """A one-hot group, one feature ``name=category`` per category; those not in `allowed` are held at 0."""

    name: str
    categories: tuple[Any, ...]
    allowed: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(set(self.categories)) < 2:
            raise InputError(
                f"column {self.name!r}: categories {list(self.categories)} leave nothing to tell apart; drop a constant column."
            )
        if len(set(self.categories)) < len(self.categories):
            raise InputError(
                f"column {self.name!r}: categories {list(self.categories)} hold equal values; make them all text or all numbers."
            )
        unknown = [c for c in self.allowed if c not in self.categories]
        if unknown:
            raise InputError(
                f"permitted_range: {self.name!r} has no category {unknown[0]!r}; known: {', '.join(map(repr, self.categories))}."
            )
        if not self.allowed:
            raise InputError(
                f"permitted_range: {self.name!r} permits no category; list at least one of {', '.join(map(repr, self.categories))}."
            )

    @property
    def width(self) -> int:
        return len(self.categories)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}={c}" for c in self.categories)

    def encode(self, values: Sequence[Any], labels: Sequence[Any]) -> Array:
        """(n,) categories → (n, categories). Raises InputError, with the row's label, on an empty cell or an unseen category."""
        place = {c: k for k, c in enumerate(self.categories)}
        out = np.zeros((len(values), self.width))
        for i, value in enumerate(values):
            plain = plain_value(value)
            if plain is None or plain not in place:
                what = "is empty" if plain is None else f"holds the unseen category {plain!r}"
                raise InputError(f"column {self.name!r}, row {labels[i]}: {what}; known: {', '.join(map(repr, self.categories))}.")
            out[i, place[plain]] = 1.0
        return out

    def decode(self, z: Array) -> list[Any]:
        """(n, categories) → the category with the largest entry in each row."""
        return [self.categories[k] for k in np.argmax(z, axis=1)]

    def fractional(self, z: Array) -> Any:
        """(n,) booleans: is the row anything but one category alone?"""
        vertex = np.zeros_like(z)
        vertex[np.arange(len(z)), np.argmax(z, axis=1)] = 1.0
        return np.abs(z - vertex).max(axis=1) > FRACTIONAL

    def mixture(self, z: Array) -> str:
        """One row's group in words: ``own``, or ``0.7 own + 0.3 rent``."""
        if not self.fractional(z[None])[0]:
            return str(self.categories[int(np.argmax(z))])
        order = [k for k in np.argsort(-z, kind="stable") if abs(z[k]) > FRACTIONAL]
        return " + ".join(f"{z[k]:.3g} {self.categories[k]}" for k in order)

    def encoded_range(self) -> tuple[Array, Array]:
        return np.zeros(self.width), np.array([1.0 if c in self.allowed else 0.0 for c in self.categories])

    @property
    def scale(self) -> float:
        return 1.0

    def range_words(self) -> str:
        if len(self.allowed) == len(self.categories):
            return f"{self.name}: one of {self.width} categories, relaxed to mixtures whose shares sum to one"
        return f"{self.name}: one of {', '.join(map(str, self.allowed))} (stated), relaxed to mixtures whose shares sum to one"


Column = Numeric | Categorical


def plain_value(value: Any) -> Any:
    """A category as a Python str, bool, int or float; None for an empty cell."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if value != value:  # NaN is the value that differs from itself
        return None
    return value.item() if isinstance(value, np.generic) else value


def numbers(name: str, values: Sequence[Any], labels: Sequence[Any]) -> Array:
    """(n,) floats; raises InputError naming the first cell that is empty, infinite or no number."""
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        x = np.array([_number(name, v, labels[i]) for i, v in enumerate(values)], dtype=float)
    bad = np.flatnonzero(~np.isfinite(x))
    if len(bad):
        i = int(bad[0])
        raise InputError(f"column {name!r}, row {labels[i]}: {x[i]} is not a finite number; fill or drop the row.")
    return x


def _number(name: str, value: Any, label: Any) -> float:
    if plain_value(value) is None:
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"column {name!r}, row {label}: {value!r} is not a number; correct it or list the column in categorical=[…]."
        ) from None
