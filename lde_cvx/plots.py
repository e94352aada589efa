"""Figures of audits and explanations: each function takes plain records and returns a matplotlib `Figure`; nothing is shown or written here.

A row of an audit is a mapping with the keys of `lde_cvx.auditing.record.AuditRow`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from verification.checking.outward import down_words, up_words

if TYPE_CHECKING:
    from lde_cvx.explanation import Explanation

INK, MUTED, GRID = "#1d2733", "#5d6b7a", "#e3e8ee"
LOWER, UPPER, RANGE = "#0b6e6e", "#b4532a", "#c9d6df"
PANEL = ("#0b6e6e", "#3d5a98", "#8a5a1f")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold",
    "axes.titlesize": 10, "axes.titlelocation": "left", "svg.hashsalt": "lde", "svg.fonttype": "path",
}  # fmt: skip

Row = Mapping[str, Any]


def interval_plot(rows: Sequence[Row]) -> Figure:
    """One line per applicant, one panel per norm: certified lower bound to witness, with the linearised radius marked by its validity."""
    norms = _norms(rows)
    ids = list(dict.fromkeys(r["id"] for r in rows))
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(10.5, 0.9 + 0.235 * max(len(ids), 3)), layout="constrained")
        axes = fig.subplots(1, len(norms), sharey=True, squeeze=False)[0]
        for ax, label in zip(axes, norms, strict=True):
            part = {r["id"]: r for r in rows if r["norm_label"] == label}
            finite = [r[k] for r in part.values() for k in ("lower", "upper", "linear_radius") if _finite(r[k])]
            right = 1.04 * max(finite, default=1.0)
            for y, key in enumerate(ids):
                if key in part:
                    _interval(ax, y, part[key], right)
            ax.set_xlim(0, right)
            ax.set_yticks(range(len(ids)), ids)
            ax.set_ylim(len(ids) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x", color=GRID)
            ax.set_axisbelow(True)
            ax.set_title(label)
            ax.set_xlabel("distance to a flip, standardised units")
        _legend(fig)
        return fig


def _interval(ax: Any, y: int, r: Row, right: float) -> None:
    low = r["lower"] if _finite(r["lower"]) else right
    if r.get("check", "valid") != "valid":  # a certificate that failed its check certifies nothing
        low = 0.0
    high = r["upper"] if _finite(r["upper"]) else right
    ax.plot([0, low], [y, y], color=LOWER, lw=5.5, solid_capstyle="butt", alpha=0.9)
    ax.plot([low, high], [y, y], color=RANGE, lw=5.5, solid_capstyle="butt")
    if _finite(r["upper"]):
        ax.plot([high], [y], marker="|", ms=9, mew=2, color=UPPER)
    elif r["verdict"] == "CERTIFIED_UNREACHABLE" and low > 0:
        ax.plot([right * 0.985], [y], marker=">", ms=6, color=LOWER, clip_on=False)
    if _finite(r["linear_radius"]):
        face = {"certified": INK, "refuted": "white"}.get(r["linear_validity"], "#a9b4bf")
        ax.plot([r["linear_radius"]], [y], marker="D", ms=4, mfc=face, mec=INK, mew=0.8, lw=0)


def _legend(fig: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=LOWER, label="certified: no allowed flip"),
        Patch(color=RANGE, label="open gap"),
        Line2D([], [], color=UPPER, marker="|", ms=9, mew=2, lw=0, label="witness"),
        Line2D([], [], color=INK, marker="D", ms=4, mfc=INK, lw=0, label="linearised: certified"),
        Line2D([], [], color=INK, marker="D", ms=4, mfc="#a9b4bf", lw=0, label="unknown"),
        Line2D([], [], color=INK, marker="D", ms=4, mfc="white", lw=0, label="refuted"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)


def gap_histogram(rows: Sequence[Row]) -> Figure:
    """How far apart the two sides are: counts of (upper − lower)/upper per norm, bracketed rows only."""
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(5.1, 2.7), layout="constrained")
        ax = fig.subplots()
        norms = _norms(rows)
        gaps = [[r["gap"] for r in rows if r["norm_label"] == n and _finite(r["upper"])] for n in norms]
        top = max([g for part in gaps for g in part], default=0.0)
        width = max(0.005, 0.005 * np.ceil(top * 1.0001 / 12 / 0.005))  # bins of a round width that reach the largest gap
        edges = width * np.arange(0, int(np.floor(top / width)) + 2)
        ax.hist(gaps, bins=edges, color=PANEL[: len(norms)], label=norms, rwidth=0.86)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if width >= 0.01 else 1))
        ax.set_xlabel("gap = (upper − lower) / upper")
        ax.set_ylabel("rows")
        ax.set_title("Gap between certificate and witness")
        if any(gaps):
            ax.legend(frameon=False)
        ax.grid(axis="y", color=GRID)
        ax.set_axisbelow(True)
        return fig


def sensitivity_bars(rows: Sequence[Row], top: int = 10) -> Figure:
    """Mean share of the sensitivity S_i = λ|a_i| over the audited applicants, largest features first, one bar per norm."""
    norms = _norms(rows)
    shares: dict[str, dict[str, float]] = {n: {} for n in norms}
    for n in norms:
        part = [r for r in rows if r["norm_label"] == n and r["sensitivities"]]
        for r in part:
            total = sum(r["sensitivities"].values()) or 1.0
            for f, s in r["sensitivities"].items():
                shares[n][f] = shares[n].get(f, 0.0) + s / total / len(part)
    features = {f for n in norms for f in shares[n]}
    names = sorted(features, key=lambda f: -sum(shares[n].get(f, 0.0) for n in norms))[:top]
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(5.1, 0.8 + 0.26 * max(len(names), 4)), layout="constrained")
        ax = fig.subplots()
        height = 0.8 / max(len(norms), 1)
        for k, n in enumerate(norms):
            y = np.arange(len(names)) + (k - (len(norms) - 1) / 2) * height
            ax.barh(y, [shares[n].get(f, 0.0) for f in names], height=height * 0.92, color=PANEL[k % len(PANEL)], label=n)
        ax.set_yticks(range(len(names)), [_short(f) for f in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel("mean share of sensitivity")
        ax.set_title("Most sensitive features")
        ax.grid(axis="x", color=GRID)
        ax.set_axisbelow(True)
        if names:
            ax.legend(frameon=False, loc="lower right")
        return fig


def plot_scores(explanation: Explanation, top: int = 10) -> Figure:
    """Bars of the largest S_i = λ|a_i| of one explanation. The scores do not add up to the output, so they are never stacked."""
    frame = explanation.to_frame(top)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(6.0, 0.9 + 0.27 * max(len(frame), 3)), layout="constrained")
        ax = fig.subplots()
        ax.barh(range(len(frame)), list(frame["score"]), color=LOWER, height=0.72)
        ax.set_yticks(range(len(frame)), [_short(str(f)) for f in frame["feature"]])
        ax.set_ylim(len(frame) - 0.4, -0.6)
        ax.set_xlabel("sensitivity  λ·|a|")
        ax.set_title(f"{explanation.norm.label}: {down_words(explanation.lower, 4)} ≤ distance ≤ {up_words(explanation.upper, 4)}")
        ax.grid(axis="x", color=GRID)
        ax.set_axisbelow(True)
        return fig


def svg(fig: Figure) -> bytes:
    """The figure as SVG bytes, the same for the same data."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def png(fig: Figure, dpi: int = 144) -> bytes:
    """The figure as PNG bytes."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def _norms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(r["norm_label"] for r in rows))


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _short(name: str, width: int = 34) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
