"""One table of measurements: printed, written as CSV and as a plot, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from formulations.whole_file import whole_file


def show(frame: pd.DataFrame, title: str, console: Console) -> None:
    """Print a frame as a rich table; floats with four figures. Into a file or a pipe the table is as wide as it needs to be."""
    table = Table(title=title)
    for column in frame.columns:
        table.add_column(str(column), justify="left" if frame[column].dtype == object else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    if not console.is_terminal:
        console = Console(
            file=console.file, width=max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
        )
    console.print(table)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        write(draft)
    return path
