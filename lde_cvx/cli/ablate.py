"""`lde ablate`: a grid of norms, sets, methods and orders over a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lde_cvx.cli.common import out
from lde_cvx.progress import progress_bar


def command(
    grid: Annotated[Path, typer.Argument(metavar="GRID.toml", help="norms, constraints, methods, orders and the data set.")],
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where the table and the plot go; a table begun there is gone on with.")
    ],
    inputs: Annotated[int | None, typer.Option("--inputs", metavar="N", min=1, help="That many inputs instead of the grid's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table; only where the files are.")] = False,
) -> None:
    """Vary norm, constraint set, order and method over a data set: a tidy CSV, the rates at which local radii are true, a plot."""
    from lde_cvx.ablate.grid import load_grid
    from lde_cvx.ablate.run import TABLE, run_grid
    from lde_cvx.ablate.validity import validity_plot, validity_rates

    chosen = load_grid(grid)
    if inputs is not None:
        chosen = chosen.model_copy(update={"inputs": inputs})
    with progress_bar(quiet, stays=True) as tell:
        table = run_grid(chosen, folder, tell)
    rates = validity_rates(table)
    rates.to_csv(folder / "validity.csv", index=False)
    validity_plot(table).savefig(folder / "ablation.png", dpi=150)
    if not quiet:
        out.print(_shown(chosen.title, rates))
    out.print(f"table: {folder / TABLE}\nrates: {folder / 'validity.csv'}\nplot: {folder / 'ablation.png'}", markup=False, soft_wrap=True)


def _shown(title: str, rates: object) -> Table:
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("norm", "set", "method", "order", "certified", "refuted", "unknown", "fraction"):
        shown.add_column(column, justify="left" if column in ("norm", "set", "method") else "right", no_wrap=True)
    for r in rates.itertuples():  # type: ignore[attr-defined]
        shown.add_row(r.norm, r.set, r.method, str(r.order), *(f"{v:.0%}" for v in (r.certified, r.refuted, r.unknown, r.median_fraction)))
    return shown
