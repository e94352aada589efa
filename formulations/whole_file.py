"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from formulations.errors import InputError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A draft beside `path` to be filled; at the end of the block it is on the disk and renamed. An error or a signal inside leaves `path` as it was.

    The draft's name starts with a dot and ends in `.part`: what a killed process leaves is not taken for a file. Raises InputError where the file cannot be written.
    """
    target = Path(path)
    if not target.name or target.is_dir():
        raise InputError(f"{target}: cannot be written (Is a directory); name a file in it.")
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
        with open(draft, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); name a folder that exists and is writable.") from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
