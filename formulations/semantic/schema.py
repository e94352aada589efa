r"""A schema: what the columns of a table are, and what may change in a row.

Encoding is affine on numeric columns and one-hot on categorical ones, so every rule becomes a convex set in model space:

    ranges      lo ≤ z ≤ hi                                  over the input; only features that may vary
    one_hot     Σ_{k in group} z_k = 1                       over the input
    fixed       δ_i = 0                                      over the change: immutable columns, and all outside `features_to_vary`
    direction   δ_i ≥ 0 (increasing),  δ_i ≤ 0 (decreasing)  over the change
    relations   Σ c_i x_i ≤ r with x_i = mean_i + std_i z_i  over the input:  Σ (c_i std_i) z_i ≤ r − Σ c_i mean_i
    budget      ‖δ‖₁ ≤ budget                                over the change, in standardised units

δ = 0 satisfies all of them at a row that satisfies its ranges and relations, so the set is never empty there; `polytope(x0)` checks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from formulations.errors import InputError
from formulations.norms import Array
from formulations.semantic.allowed import Rules, linear_rows
from formulations.semantic.build import columns_from_frame, known_names, names_of
from formulations.semantic.columns import Categorical, Column, Numeric
from formulations.semantic.contradictions import find_contradiction
from formulations.semantic.relations import Relation, parse_relation
from formulations.semantic.units import Change, Price, change_of, unit_name
from formulations.sets import ConvexSet
from formulations.sets.base import FEASIBILITY, level

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Schema:
    """Columns and rules of a table; `encode` and `decode` go between rows and model space (d features), `polytope` gives the allowed set.

    Build it with `from_frame` or `from_toml`. Raises InputError on contradictory rules, naming those that contradict.
    """

    columns: tuple[Column, ...]
    immutable: tuple[str, ...] = ()
    increasing: tuple[str, ...] = ()
    decreasing: tuple[str, ...] = ()
    relations: tuple[Relation, ...] = ()
    features_to_vary: tuple[str, ...] | None = None
    budget: float | None = None

    @classmethod
    def from_frame(
        cls,
        df: pd.DataFrame,
        *,
        immutable: Iterable[str] = (),
        increasing: Iterable[str] = (),
        decreasing: Iterable[str] = (),
        categorical: Iterable[str] = (),
        relations: Iterable[str] = (),
        permitted_range: Mapping[str, Any] | None = None,
        units: Mapping[str, str] | None = None,
        features_to_vary: Iterable[str] | str | None = None,
        budget: float | None = None,
    ) -> Schema:
        """The schema of `df`: numeric columns standardised by mean and (population) standard deviation, the rest one-hot, ranges from the data.

        immutable         columns that may not change; increasing, decreasing: numeric columns that may change one way only
        categorical       numeric columns to treat as categories; text, booleans and pandas categories always are
        relations         linear relations between numeric columns, such as ``"credit_amount <= 10 * income"`` (backticks around odd names)
        permitted_range   {numeric: (low, high)} (None: the data's end) or {categorical: [categories]}
        units             {numeric: name of one unit}, for reports: {"age": "year"}
        features_to_vary  the only columns that may change; None or "all" for no such limit
        budget            limit of ‖δ‖₁ in model space: standard deviations, and 2 for a full switch of category
        """
        columns = columns_from_frame(df, categorical, {} if permitted_range is None else permitted_range, {} if units is None else units)
        vary = None if features_to_vary is None or features_to_vary == "all" else names_of("features_to_vary", features_to_vary)
        return cls(
            columns,
            names_of("immutable", immutable),
            names_of("increasing", increasing),
            names_of("decreasing", decreasing),
            tuple(parse_relation(text, _numeric_names(columns)) for text in names_of("relations", relations)),
            vary,
            budget,
        )

    @classmethod
    def from_toml(cls, path: str | Path, df: pd.DataFrame | None = None) -> Schema:
        """The schema of a TOML file: the keywords of `from_frame` as keys, with `df` for the columns, or a full table ``[[columns]]`` without it."""
        from formulations.semantic.storage import schema_from_toml

        return schema_from_toml(Path(path), df)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` wrote. Raises InputError on unknown or missing keys."""
        from formulations.semantic.storage import schema_from_dict

        return schema_from_dict(record)

    def to_dict(self) -> dict[str, Any]:
        """A record of plain values (fit for strict JSON) from which `from_dict` builds an equal schema."""
        from formulations.semantic.storage import schema_to_dict

        return schema_to_dict(self)

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) < len(names) or len(set(self.feature_names)) < len(self.feature_names):
            repeated = next(f for f in self.feature_names if self.feature_names.count(f) > 1)
            raise InputError(f"schema: feature {repeated!r} occurs twice; rename a column or category.")
        for argument, given in (("immutable", self.immutable), ("increasing", self.increasing), ("decreasing", self.decreasing)):
            known_names(argument, given, names)
        known_names("features_to_vary", self.features_to_vary or (), names)
        for argument, given in (("increasing", self.increasing), ("decreasing", self.decreasing)):
            for name in given:
                if isinstance(self.column(name), Categorical):
                    raise InputError(
                        f"{argument}: {name!r} is categorical and has no direction; use permitted_range to exclude categories."
                    )
                if name in self.immutable:
                    raise InputError(f"schema: {name!r} is both immutable and {argument}; keep one of the two.")
        for name in self.increasing:
            if name in self.decreasing:
                raise InputError(f"schema: {name!r} is both increasing and decreasing; say immutable instead.")
        for name in self.features_to_vary or ():
            if name in self.immutable:
                raise InputError(f"schema: {name!r} is immutable and in features_to_vary; remove it from one of the two.")
        if self.features_to_vary == ():
            raise InputError("features_to_vary: is empty, so nothing may change; name at least one column, or leave it out.")
        if self.budget is not None:
            if isinstance(self.budget, bool) or not isinstance(self.budget, (int, float, np.integer, np.floating)):
                raise InputError(f"schema: budget={self.budget!r} is not a number; give standard deviations, 3.0 say.")
            level("schema: budget", self.budget)
        contradiction = find_contradiction(linear_rows(self))
        if contradiction:
            raise InputError(f"schema: these cannot hold together: {contradiction.words()}.")

    # ---- features -------------------------------------------------------------------------------------------------

    def column(self, name: str) -> Column:
        return next(c for c in self.columns if c.name == name)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the d features: ``age``, ``housing=own``, …"""
        return tuple(f for c in self.columns for f in c.feature_names)

    @property
    def dim(self) -> int:
        return len(self.feature_names)

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each column's features lie."""
        ends = np.cumsum([0, *(c.width for c in self.columns)])
        return {c.name: slice(int(a), int(b)) for c, a, b in zip(self.columns, ends, ends[1:], strict=False)}

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Feature indices of each column: what `GroupNorm` takes, so that a category counts as one feature."""
        return tuple(tuple(range(p.start, p.stop)) for p in self.places.values())

    @cached_property
    def scale(self) -> Array:
        """(d,) original units per unit of each feature: std, and 1 for one-hot features."""
        return np.concatenate([np.full(c.width, c.scale) for c in self.columns])

    @property
    def relaxed(self) -> tuple[str, ...]:
        """Columns whose answers may be fractions although the data are whole: integers and categories."""
        return tuple(c.name for c in self.columns if isinstance(c, Categorical) or c.integer)

    def is_fixed(self, name: str) -> bool:
        return name in self.immutable or (self.features_to_vary is not None and name not in self.features_to_vary)

    def varying(self, features_to_vary: Iterable[str] | None) -> Schema:
        """The same schema with another `features_to_vary`."""
        return replace(self, features_to_vary=None if features_to_vary is None else names_of("features_to_vary", features_to_vary))

    # ---- rows and model space -------------------------------------------------------------------------------------

    def encode(self, rows: Any) -> Array:
        """(n, d) features of a DataFrame, of one Series, or of one mapping {column: value} (n = 1). Other columns are ignored.

        Raises InputError naming column and row: missing column, empty cell, no number, unseen category.
        """
        cells, labels = _cells(rows, [c.name for c in self.columns])
        return np.concatenate([c.encode(cells[c.name], labels) for c in self.columns], axis=1)

    def decode(self, z: ArrayLike) -> pd.DataFrame:
        """Rows in original units from (n, d) or (d,): the way back of `encode`. Mixtures become their largest category: see `fractional`."""
        import pandas as pd

        v = self._features(z)
        out: dict[str, Any] = {}
        for c in self.columns:
            values = c.decode(v[:, self.places[c.name]])
            whole = isinstance(c, Numeric) and c.integer and np.all(values == np.rint(values)) and np.all(np.abs(values) < 2**53)
            out[c.name] = np.asarray(values).astype(np.int64) if whole else values
        return pd.DataFrame(out)

    def fractional(self, z: ArrayLike) -> pd.DataFrame:
        """The flag of `decode`: (n, relaxed columns) booleans, True where a whole number or a single category became a fraction or mixture."""
        import pandas as pd

        v = self._features(z)
        out: dict[str, Any] = {}
        for name in self.relaxed:
            c, part = self.column(name), v[:, self.places[name]]
            out[name] = c.fractional(part) if isinstance(c, Categorical) else c.decode(part) != np.rint(c.decode(part))
        return pd.DataFrame(out, index=range(len(v)))

    # ---- the set --------------------------------------------------------------------------------------------------

    def polytope(self, x0: Any = None) -> ConvexSet:
        """The allowed set, an intersection of the sets named at the top of this module (those that apply).

        x0, when given, is a row (mapping, Series, DataFrame) or features (d,), (n, d); InputError says which range or relation it violates.
        Ranges and relations of fixed columns are checked on x0 and then left out: they hold of every allowed change, and multipliers stay unique.
        The same object is returned for every row, so that compiled programs are reused.
        """
        if x0 is not None:
            points = self.encode(x0) if isinstance(x0, Mapping) or hasattr(x0, "iloc") else self._features(x0)
            for i, point in enumerate(points):
                found = self.violations(point)
                if found:
                    raise InputError(f"schema: row {i} is outside its own schema: {'; '.join(found)}.")
        return self._rules.convex_set

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self)

    def violations(self, z: ArrayLike, tolerance: float = FEASIBILITY) -> list[str]:
        """Which ranges, one-hot groups and relations the point (d,) violates by more than `tolerance` (model space), in words with values."""
        return self._rules.violations(self._features(z)[0], tolerance)

    @property
    def fixed(self) -> Any:
        """(d,) booleans: features that may not change."""
        return self._rules.fixed

    # ---- words and units ------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """The schema in words, one rule per line."""
        kinds = [isinstance(c, Categorical) for c in self.columns]
        lines = [
            f"{len(kinds)} columns, {self.dim} features: {kinds.count(False)} numeric (standardised), {kinds.count(True)} categorical (one-hot)"
        ]
        lines += [f"range: {c.range_words()}" for c in self.columns if not self.is_fixed(c.name)]
        if self.immutable:
            lines.append(f"immutable: {', '.join(self.immutable)}")
        other = [c.name for c in self.columns if self.is_fixed(c.name) and c.name not in self.immutable]
        if other:
            lines.append(f"held fixed (not in features_to_vary): {', '.join(other)}")
        lines += [f"may only increase: {', '.join(self.increasing)}"] if self.increasing else []
        lines += [f"may only decrease: {', '.join(self.decreasing)}"] if self.decreasing else []
        lines += [f"relation: {r.text}" for r in self.relations]
        if self.budget is not None:
            lines.append(f"budget: the changes add up to at most {self.budget:g} standardised units (a full switch of category counts 2)")
        return "\n".join(lines)

    def units_of(self, feature: str) -> str:
        """The name of one original unit of a feature or column: ``year of age``, ``share of housing``."""
        for c in self.columns:
            if feature == c.name or feature in c.feature_names:
                return unit_name(c)
        raise InputError(f"units_of: no feature {feature!r}; see Schema.feature_names.")

    def to_units(self, delta: ArrayLike) -> Array:
        """A change (…, d) of features in original units: δ·std (years, marks; shares for one-hot features)."""
        return np.asarray(np.asarray(delta, dtype=float) * self.scale)

    def per_unit(self, slopes: ArrayLike) -> Array:
        """Slopes per feature (…, d), such as sensitivities λ|a_i|, per original unit: slope/std."""
        return np.asarray(np.asarray(slopes, dtype=float) / self.scale)

    def unit_price(self, name: str, multipliers: ArrayLike, at_least: float = 1e-6) -> tuple[Price, ...]:
        """Multipliers of the set `name` of `polytope` as prices per original unit ("0.02 per year of age").

        Multipliers of size up to `at_least` (in model space, where features are of order 1) are a solver's zeros and left out.

        ranges, fixed, direction: (2, d) lower and upper; one_hot, relations: one per row; budget: (d,), whose price is ‖·‖_∞.
        """
        return self._rules.prices(name, np.asarray(multipliers, dtype=float), at_least)

    def changes(self, x0: ArrayLike, x1: ArrayLike, at_least: float = 1e-9) -> tuple[Change, ...]:
        """What differs between two points (d,) of model space by more than `at_least`, column by column, in words and original units."""
        a, b = self._features(x0)[0], self._features(x1)[0]
        moved = [c for c in self.columns if np.abs(b[self.places[c.name]] - a[self.places[c.name]]).max() > at_least]
        return tuple(change_of(c, a[self.places[c.name]], b[self.places[c.name]]) for c in moved)

    def _features(self, z: ArrayLike) -> Array:
        v = np.atleast_2d(np.asarray(z, dtype=float))
        if v.ndim != 2 or v.shape[1] != self.dim:
            raise InputError(f"schema: got features of shape {np.shape(z)}; expected (n, {self.dim}) or ({self.dim},).")
        return v


def _numeric_names(columns: tuple[Column, ...]) -> list[str]:
    return [c.name for c in columns if isinstance(c, Numeric)]


def _cells(rows: Any, names: list[str]) -> tuple[dict[str, Any], list[Any]]:
    """({column: (n,) cells}, row labels) of a DataFrame, a Series or a mapping."""
    one = isinstance(rows, Mapping) or (hasattr(rows, "iloc") and getattr(rows, "ndim", 0) == 1)
    if not one and not (hasattr(rows, "columns") and hasattr(rows, "iloc")):
        raise InputError(f"encode: got {type(rows).__name__}; give a DataFrame, a Series or a mapping {{column: value}}.")
    held = list(rows.keys()) if one else list(rows.columns)
    missing = [n for n in names if n not in held]
    if missing:
        raise InputError(f"encode: column {missing[0]!r} is missing ({len(missing)} in all); the row needs {', '.join(names[:30])}.")
    if one:
        return {n: [rows[n]] for n in names}, [getattr(rows, "name", None) if hasattr(rows, "iloc") else 0]
    return {n: list(rows[n]) for n in names}, list(rows.index)
