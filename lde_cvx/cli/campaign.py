"""`lde campaign`: certified claims about random networks, attacked; resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lde_cvx.cli.common import FAILED, err, fail, out

if TYPE_CHECKING:
    from lde_cvx.campaign.run import Summary


def command(
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where finished cases are kept; the same call goes on from there.")
    ],
    cases: Annotated[int, typer.Option("--cases", metavar="N", help="How many random networks.")] = 500,
    points: Annotated[int, typer.Option("--points", metavar="N", help="Random points per claim; gradient attacks try more.")] = 150,
    seed: Annotated[int, typer.Option("--seed", help="Everything random comes from it.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Certify random networks and attack every claim; exit code 1 when one is wrong."""
    from lde_cvx.campaign.run import RESULTS, run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=quiet) as progress:
        bar = progress.add_task("campaign", total=cases)
        summary = run(folder, seed, cases, points, lambda done, _: progress.update(bar, completed=done))
    out.print(table(summary))
    out.print(f"every case: {folder / RESULTS}", markup=False, soft_wrap=True)
    if not summary.ok:
        raise fail(f"claims that do not hold, or checks that failed: cases {summary.failures[:20]}; their files are in {folder}.", FAILED)


def table(s: Summary) -> Table:
    shown = Table(title="Soundness campaign", title_justify="left", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")

    def counts(found: dict[str, int]) -> str:
        return ", ".join(f"{v} {k.lower().replace('_', ' ')}" for k, v in sorted(found.items())) or "none"

    rows = [
        ("networks", str(s.cases)), ("of them", counts(s.families)), ("claims with lower > 0", str(s.certified)), ("attacked points", str(s.points)),
        ("claims refuted", str(s.unsound)), ("certificates, level A", counts(s.level["A"])), ("certificates, level B", counts(s.level["B"])),
        ("the same, settled", counts(s.level["settled"])),
        ("honest refusals", str(sum(s.refused.values()))), ("flips that float64 alone sees", str(s.rounding)),
        ("points where float32 flips", str(s.float32_flips)), ("float32 outputs beyond their bound", str(s.float32_excess)),
        ("laws broken", str(s.broken)),
    ]  # fmt: skip
    rows += [(f"law “{name}”", f"{len(r)} cases, radii agree to {min(r):.3f} or better") for name, r in sorted(s.laws.items())]
    for row in [*rows, ("seconds", f"{s.seconds:.0f}")]:
        shown.add_row(*row)
    return shown
