"""`lde audit`: from a configuration to a folder with the report, its data and one certificate per applicant and norm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lde_cvx.cli.common import FAILED, err, fail, out
from lde_cvx.progress import progress_bar

if TYPE_CHECKING:
    from lde_cvx.audit import AuditResult

VERDICTS = {
    "BRACKETED": "bracketed", "CERTIFIED_UNREACHABLE": "[bold]unreachable[/]", "LOWER_ONLY": "[yellow]lower only[/]", "UNKNOWN": "[red]unknown[/]",
}  # fmt: skip

VALIDITY = {"certified": "[green]✓[/]", "refuted": "[red]✗[/]", "unknown": "?"}


def command(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A TOML file, or an embedded name: german_credit.")],
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where everything goes; finished certificates there are used again.")
    ],
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N applicants.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table; only where the report is.")] = False,
) -> None:
    """Certify declined applicants: HTML report, JSON, CSV, certificates, all checked again at the end."""
    from lde_cvx.audit import prepare, run_audit

    with err.status("training the network", spinner="dots") if not quiet else _nothing():
        case = prepare(config, limit)
    with progress_bar(quiet, stays=True) as tell:
        result = run_audit(case, folder, tell)
    if not quiet:
        out.print(table(result))
    say(result)
    if result.failed:
        raise fail(f"{result.failed} certificates did not pass the check; see {result.folder / 'report.html'}.", FAILED)


def table(result: AuditResult) -> Table:
    """One line per applicant and norm, narrow enough for 80 columns."""
    from lde_cvx.report import lower, number, percent, upper

    shown = Table(title=str(result.summary["title"]), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.caption, shown.caption_justify = "✓ certified  ✗ refuted  ? unknown", "left"
    right = ("lower", "upper", "gap", "linearised", "λ")
    for column in ("row", "norm", *right, "verdict", "check"):
        shown.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    last = None
    for r in result.rows:
        name = r.id.removeprefix("applicant-") if r.id != last else ""
        last = r.id
        shown.add_row(
            name, r.norm_label, lower(r.lower), upper(r.upper), percent(r.gap, 0), f"{number(r.linear_radius)} {VALIDITY[r.linear_validity]}",
            number(r.multiplier, 3), VERDICTS[r.verdict] if r.lower > 0 or r.verdict != "BRACKETED" else "witness only",
            "[green]valid[/]" if r.check == "valid" else "[red]FAILED[/]",
        )  # fmt: skip
    return shown


def say(result: AuditResult) -> None:
    """The closing lines: counts, ratios, re-used files, where the report is."""
    s = result.summary
    counts = ", ".join(f"{v} {VERDICTS[k]}" for k, v in s["totals"]["verdicts"].items())
    ratios = "; ".join(f"{n['label']} lower/upper {n['mean_ratio']:.3f} mean, {n['worst_ratio']:.3f} worst" for n in s["norms"])
    out.print(f"{len(s['applicants'])} applicants: {counts}. {ratios}.", soft_wrap=True)
    if s["totals"]["reused"]:
        out.print(
            f"{s['totals']['reused']} certificates of an earlier run of the same audit were re-used (same configuration, data, network and source)."
        )
    c = s["checks"]
    out.print(
        f"{c['checked'] - c['failed']} of {c['checked']} certificates checked again and valid, {c['level_B']} at level B; {s['seconds']:.0f} s."
    )
    out.print(f"report: {result.folder / 'report.html'}", markup=False, soft_wrap=True)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
