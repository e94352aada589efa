"""`lde compare`: explanation methods side by side, as a table with intervals and a gallery of maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lde_cvx.cli.common import err, out


def command(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A TOML file, or an embedded name: mnist, german_credit, digits.")],
    folder: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where everything goes; finished cells there are used again.")],
    count: Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N inputs.")] = None,
    table_only: Annotated[bool, typer.Option("--table", help="Compute nothing: the table of the cells that are there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
) -> None:
    """Compare methods by metrics on inputs: a table with bootstrap intervals, its best groups by paired tests, and a gallery."""
    from formulations.errors import InputError
    from lde_cvx.compare.cells import STAMP, CellStore, run, write_atomically
    from lde_cvx.compare.config import load_config
    from lde_cvx.compare.gallery import gallery
    from lde_cvx.compare.summary import entries, frame, grid, markdown

    asked = load_config(config)
    if count is not None:
        if count < 1:
            raise InputError(f"--limit {count}: must be at least 1.")
        asked = asked.model_copy(update={"case": asked.case.model_copy(update={"count": count})})
    if table_only:
        if not (folder / STAMP).is_file():
            raise InputError(f"--table: {folder} holds no comparison; leave --table out to compute one.")
        from lde_cvx.compare.cases import load_case

        case, store = load_case(asked.case), CellStore(folder, asked)
    else:
        columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, disable=quiet) as progress:
            bar = progress.add_task("starting", total=None)
            case, store = run(asked, folder, lambda what, done, total: progress.update(bar, description=what, completed=done, total=total))
    found, n = entries(asked, store)
    from lde_cvx.plots import png

    write_atomically(folder / "table.csv", frame(found).to_csv(index=False).encode())
    write_atomically(folder / "table.md", f"{case.title}; over {n} inputs.\n\n{markdown(found)}".encode())
    write_atomically(folder / "gallery.png", png(gallery(asked, case, store)))
    if not quiet:
        headings, rows = grid(found)
        shown = Table(title=f"{asked.title} ({case.title}; {n} inputs)", title_justify="left", box=SIMPLE_HEAD)
        for k, heading in enumerate(headings):
            shown.add_column(heading, justify="left" if k == 0 else "right")
        for row in rows:
            shown.add_row(*(f"[bold green]{text}[/]".replace("[.", r"\[.") if best else text.replace("[", r"\[") for text, best in row))
        shown.caption, shown.caption_justify = "bold: not significantly worse than the best (paired Wilcoxon, 5 %)", "left"
        wide(shown).print(shown)
    out.print(f"table and gallery: {folder}", markup=False, soft_wrap=True)


def wide(table: Table) -> Console:
    """The terminal; into a file or a pipe, a console as wide as the table needs."""
    if out.is_terminal:
        return out
    return Console(
        file=out.file, highlight=False, width=max(out.width, Measurement.get(out, out.options.update(max_width=1000), table).maximum)
    )
