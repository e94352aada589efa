"""How far a long call is: a bar per stage on stderr, or the caller's own function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[str, int, int], None]  # (stage, done, in all)


def silent(what: str, done: int, total: int) -> None:
    pass


@contextmanager
def progress_bar(quiet: bool, *, stays: bool = False) -> Iterator[Progress]:
    """A line per stage on stderr; `stays`: they are left there at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), disable=quiet, transient=not stays) as bars:
        lines: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in lines:
                lines[what] = bars.add_task(what, total=total)
            bars.update(lines[what], completed=done, total=total)

        yield tell
