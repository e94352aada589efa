"""What an audit leaves behind, as plain frozen records that JSON can hold: one `AuditRow` per applicant and norm."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Price:
    """How fast the certified distance falls per unit that a constraint is relaxed; `unit` is the user's unit of that constraint."""

    constraint: str
    price: float
    unit: str


@dataclass(frozen=True)
class Move:
    """A feature that the witness changes, in words and original units."""

    feature: str
    before: str
    after: str


@dataclass(frozen=True)
class AuditRow:
    """One applicant in one norm. Distances are in standardised units; `sensitivities` maps every feature to S_i = λ|a_i|.

    lower, upper    certified lower bound and witnessed upper bound; infinite where none
    multiplier      λ of the binding margin row, NaN where there is none; reading: of which program it is (`lde_cvx.reading.Reading`), by name and in words
    linear_*        the linearised radius (not certified), what is known of it, and the largest certified fraction of it
    check, level    "valid", or what the checker said; the highest level that passed, "B" or "A", "" where none did
    """

    id: str
    data_row: int
    norm: str
    norm_label: str
    score: float
    linear_radius: float
    linear_validity: str
    linear_certified_fraction: float
    lower: float
    upper: float
    gap: float
    multiplier: float
    reading: str
    reading_words: str
    prices: tuple[Price, ...]
    sensitivities: dict[str, float]
    witness: tuple[Move, ...] | None
    verdict: str
    advice: str
    certificate: str
    check: str
    level: str = ""
    reused: bool = False

    @property
    def top_features(self) -> list[tuple[str, float]]:
        """The five largest sensitivities."""
        return sorted(((f, s) for f, s in self.sensitivities.items() if s > 0), key=lambda item: -item[1])[:5]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "top_features": self.top_features}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> AuditRow:
        """The inverse of `to_dict` after a trip through JSON."""
        fields = {k: from_json(v) for k, v in data.items() if k != "top_features"}
        fields["prices"] = tuple(Price(**p) for p in fields["prices"])
        fields["witness"] = None if fields["witness"] is None else tuple(Move(**m) for m in fields["witness"])
        return AuditRow(**fields)


def to_json(value: Any) -> Any:
    """Strict JSON has no infinities: they become the strings "inf", "-inf", "nan"."""
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, dict):
        return {k: from_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_json(v) for v in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
