"""What every command shares: two consoles, and errors of one line.

An `InputError` (and what amounts to one: a missing package, an unreadable file) is printed as one red line on stderr and ends with exit code 2. A
`SoundnessError`, which no input should cause, ends with exit code 3 and says what to report. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from formulations.errors import DependencyError, InputError, SoundnessError

FAILED, WRONG_INPUT, UNSOUND, INTERRUPTED = 1, 2, 3, 130

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Command = TypeVar("Command", bound=Callable[..., Any])


def one_line(message: object) -> str:
    return " ".join(str(message).split())


def fail(message: object, code: int = WRONG_INPUT) -> typer.Exit:
    """Prints the line; raise what this returns."""
    err.print(Text.assemble(("error: ", "bold red"), (one_line(message), "red")), soft_wrap=True)
    return typer.Exit(code)


def friendly(command: Command, kept: str | None = None) -> Command:
    """Turns errors a user can cause into one line and an exit code; a bug keeps its traceback. `kept`: what an interrupted run leaves for the next."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (InputError, DependencyError) as e:
            raise fail(e) from None
        except SoundnessError as e:
            raise fail(
                f"no bound is given: a guard stopped this run ({one_line(e).rstrip('.')}). That is a fault of lde_cvx or of its bound library, not of your "
                "input: please report it with the model file, the input, this command and the versions of `pip freeze`.",
                UNSOUND,
            ) from None
        except OSError as e:
            raise fail(f"{e.filename or 'file'}: {e.strerror or e}; check the path and its permissions.") from None
        except KeyboardInterrupt:
            rest = "." if kept is None else f"; finished {kept} are kept, and the same command goes on from there."
            raise fail(f"interrupted{rest}", INTERRUPTED) from None

    return run  # type: ignore[return-value]
