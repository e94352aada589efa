"""`lde bench`: every figure beside its rivals' in one run."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from formulations.errors import InputError
from lde_cvx.cli.common import out

BENCHES = {
    "batch": "certified radii of 256 inputs in lockstep against a loop with auto_LiRPA used alone",
    "certificates": "more than a thousand certificates, by every method, through the checker's levels A and B",
    "convex": "the min-norm program against CVXPY rebuilt, CVXPY reused and Clarabel's raw update",
    "dual": "the dual network's batch against Clarabel one program at a time, box and total variation at d = 784",
    "leg": "the LEG-TV program by min cuts and network simplex against sparse HiGHS and Clarabel, and a 50-point solution path",
    "tightness": "certified lower over witnessed upper bound, by method, against auto_LiRPA used alone",
    "witness": "the search for witnesses against foolbox's and torchattacks' attacks, each at its best settings",
}
ON_CPU = ("leg",)  # no torch in it


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="; ".join(f"{k}: {v}" for k, v in BENCHES.items()) + "; all")] = "all",
    to: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the CSV and the plot.")] = Path("bench_out"),
    device: Annotated[str, typer.Option(help="Where torch code runs: cpu, cuda, cuda:1 …")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A small run that shows the shape of the table.")] = False,
) -> None:
    """Measure, side by side in one run; print a table, write a CSV and a plot."""
    if name != "all" and name not in BENCHES:
        raise InputError(f"bench {name!r}: there is {', '.join(BENCHES)} and all.")
    _usable(to, device)
    if name in ON_CPU and device != "cpu":
        raise InputError(f"--device {device}: bench {name} runs on the CPU alone; leave --device out.")
    for each in BENCHES if name == "all" else (name,):
        if each in ON_CPU and device != "cpu":
            out.print(f"{each}: on the CPU, it has nothing that runs on {device}")
        importlib.import_module(f"lde_cvx.bench.{each}").bench(to, device=device, quick=quick, console=out)


def _usable(to: Path, device: str) -> None:
    """Raises InputError now rather than after an hour of measuring."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InputError(f"--device {device}: cannot be used ({str(error).splitlines()[0]:.100}); cpu always can.") from None
    to.mkdir(parents=True, exist_ok=True)
    if not os.access(to, os.W_OK):
        raise InputError(f"--out {to}: cannot be written to; name a folder that is writable.")
