"""From the summary of an audit to one HTML file that needs nothing else: figures and style are inside it, and it may load nothing.

The page carries a content security policy that forbids every request, so a browser itself enforces the promise.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lde_cvx import fixed_words, plots
from verification.checking.outward import down, up

VERDICT_WORDS = {
    "BRACKETED": "bracketed",
    "CERTIFIED_UNREACHABLE": "unreachable, certified",
    "LOWER_ONLY": "lower bound only",
    "UNKNOWN": "unknown",
}


@dataclass(frozen=True)
class Bracket:
    """Percentages of the small interval drawing of one row."""

    lower: float
    open: float
    upper: float | None
    linear: float | None


def render(summary: Mapping[str, Any]) -> str:
    """The HTML of an audit's summary (see `lde_cvx.audit.AuditResult.summary`)."""
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters.update(num=number, pct=percent, low=lower, high=upper, part=share, words=verdict_words)
    folder = files("lde_cvx.templates")
    template = env.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    rows = [r for a in summary["applicants"] for r in a["rows"]]
    figures = {
        "intervals": data_uri(plots.svg(plots.interval_plot(rows))),
        "gaps": data_uri(plots.svg(plots.gap_histogram(rows))),
        "sensitivities": data_uri(plots.svg(plots.sensitivity_bars(rows))),
    }
    return template.render(
        s=summary, figures=figures, bracket=bracket, css=Markup((folder / "report.css").read_text(encoding="utf-8")),
        certified=fixed_words.CERTIFIED, not_certified=fixed_words.NOT_CERTIFIED, reasons=fixed_words.REASONS, signing=fixed_words.SIGNING,
    )  # fmt: skip


def verdict_words(row: Mapping[str, Any]) -> str:
    """The verdict in two words; a bracket from 0 is its witness alone."""
    if row["verdict"] == "BRACKETED" and not row["lower"] > 0:
        return "witness only"
    return VERDICT_WORDS.get(row["verdict"], str(row["verdict"]))


def data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits; infinities and missing values in words."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{value:.{digits - 1}e}" if decimals > digits + 3 or decimals < -3 else f"{value:.{max(decimals, 0)}f}"
    return text.replace("-", "−")


def lower(value: float, digits: int = 4) -> str:
    """A lower bound in figures, cut off: what is printed is certified too."""
    return number(down(value, digits), digits)


def upper(value: float, digits: int = 4) -> str:
    """An upper bound in figures, raised."""
    return number(up(value, digits), digits)


def share(value: float) -> str:
    """A certified share as a whole percentage, cut off."""
    return f"{math.floor(100 * value)} %"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def bracket(row: Mapping[str, Any]) -> Bracket:
    """The largest finite number of the row fills 94 % of the drawing."""
    finite = [v for v in (row["lower"], row["upper"], row["linear_radius"]) if math.isfinite(v)]
    full = max(finite, default=1.0) / 94 or 1.0
    low = min(row["lower"] / full, 100.0)
    high = min(row["upper"] / full, 100.0)
    linear = row["linear_radius"] / full
    return Bracket(low, max(high - low, 0.0), high if math.isfinite(row["upper"]) else None, linear if math.isfinite(linear) else None)
