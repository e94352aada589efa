"""The `lde` command. A sub-command is one file `cli/<name>.py` and one line in the table below; heavy imports happen inside it."""

from __future__ import annotations

import importlib
import warnings
from typing import Annotated

import typer

import lde_cvx
from lde_cvx.cli.common import friendly, out

COMMANDS = ("audit", "explain", "check", "sign", "campaign", "compare", "ablate", "data", "bench")
KEPT = {"audit": "certificates", "campaign": "cases", "compare": "cells", "ablate": "rows"}
"""What an interrupted run of a command leaves for the next."""

app = typer.Typer(
    name="lde",
    help="Certified distances to a decision's flip, their prices, and files that others can check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"lde_cvx {lde_cvx.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    pass


for name in COMMANDS:
    app.command(name)(friendly(importlib.import_module(f"lde_cvx.cli.{name}").command, KEPT.get(name)))


def main() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries, about themselves
    app()
