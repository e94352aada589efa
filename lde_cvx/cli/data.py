"""`lde data`: which data sets are here, where they come from, and one of them as a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from formulations.errors import InputError
from formulations.whole_file import whole_file
from lde_cvx.cli.common import out

if TYPE_CHECKING:
    from lde_cvx.data import Dataset


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A data set; without it, all are listed.", show_default=False)
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE.csv", help="Write the table, labels last, to this file.")] = None,
) -> None:
    """List data sets with their licences; show one, or write it as CSV."""
    from lde_cvx.data import load_dataset

    if name is None:
        if to is not None:
            raise InputError(f"--to {to}: name the data set to write, e.g. lde data german_credit --to {to}.")
        _list()
        return
    data = load_dataset(name)
    out.print(f"[bold]{data.name}[/]: {data.description}; {len(data)} rows")
    counts = ", ".join(f"{c} {int((data.y == k).sum())}" for k, c in enumerate(data.classes))
    for key, words in (("classes", counts), ("licence", data.licence), ("source", data.source), ("sha256", data.sha256)):
        out.print(f"  {key:<8} {words}", markup=False, soft_wrap=True)
    if to is not None:
        _write(data, to)
        out.print(f"written to {to}", markup=False, soft_wrap=True)


def _list() -> None:
    from lde_cvx.data import available

    table = Table()
    for column in ("data set", "content", "licence", "where"):
        table.add_column(column, overflow="fold")
    for found in available():
        table.add_row(
            found.name,
            found.content,
            found.licence,
            found.where if found.found else f"[yellow]not here; lde data '{found.name}' says what to do[/]",
        )
    out.print(table)


def _write(data: Dataset, to: Path) -> None:
    """The file appears whole or not at all."""
    if not hasattr(data.X, "to_csv"):
        raise InputError(f"--to {to}: {data.name} holds images, not a table; load it with lde_cvx.data in Python.")
    table = data.X.assign(**{"class": [data.classes[k] for k in data.y]})
    with whole_file(to) as draft:
        table.to_csv(draft, index=False)
