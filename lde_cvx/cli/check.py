"""`lde check`: verify certificate files again, without the solver and without the bound library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from formulations.errors import InputError
from lde_cvx.cli.common import FAILED, err, out

if TYPE_CHECKING:
    from lde_cvx.checking import Checked


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Certificate files, or folders of them; a folder's manifest is compared too.", show_default=False
        ),
    ],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model file: its hash, and the witness's flip, are then checked too.")
    ] = None,
    level: Annotated[
        str,
        typer.Option(
            "--level", help="A: the bounds; B: the rows too, derived again from the model file; C: also the outputs, without rounding."
        ),
    ] = "A",
    key: Annotated[
        Path | None, typer.Option("--key", metavar="PEM", help="Public key that must have signed the manifests, or else the files.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check certificates again; exit code 1 when any of them fails."""
    from lde_cvx.checking import checker_of, collect

    if level not in ("A", "B", "C") or (level != "A" and model is None):
        raise InputError(f"--level {level}: levels are A, B and C, and B and C need the model file; name it with --model.")
    batch = collect(files, key)
    check = checker_of(model, level)
    results = [batch.judge(check(path)) for path in track(batch.paths, "checking", console=err, transient=True, disable=as_json)]
    if as_json:
        out.print_json(json.dumps([r.to_dict() for r in results]))
    else:
        table = Table(title=f"{sum(r.ok for r in results)} of {len(results)} certificates are valid")
        for column in ("certificate", "norm", "lower", "upper", "result"):
            table.add_column(column, overflow="fold", justify="right" if column in ("lower", "upper") else "left")
        for r in results:
            table.add_row(r.path, r.norm, r.lower, r.upper, _words(r))
        out.print(table)
    if not all(r.ok for r in results):
        raise typer.Exit(FAILED)


def _words(r: Checked) -> Text:
    if r.ok:
        return Text("; ".join(["valid", *r.notes]), "yellow" if r.notes else "green")
    return Text(f"{r.status.replace('_', ' ')}: {'; '.join(r.reasons)}", "yellow" if r.status == "CANNOT_DECIDE" else "red")
