"""A file is what was written, or what it was before, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from formulations.errors import InputError
from formulations.whole_file import whole_file


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, OSError])
def test_all_or_nothing(tmp_path: Path, before: bytes | None, error: type[BaseException] | None) -> None:
    path = tmp_path / "a.json"
    if before is not None:
        path.write_bytes(before)

    def write() -> None:
        with whole_file(path) as draft:
            draft.write_bytes(b"new")
            assert (path.read_bytes() if path.is_file() else None) == before
            assert not list(tmp_path.glob("*.json")) or before is not None  # a draft is not taken for a file
            if error is not None:
                raise error("no room")

    if error is None:
        write()
    else:
        with pytest.raises(InputError if error is OSError else error, match="no room"):
            write()
    assert (path.read_bytes() if path.is_file() else None) == (b"new" if error is None else before)
    assert [p for p in tmp_path.iterdir() if p != path] == []


@pytest.mark.parametrize("where", ["absent/a.csv", "file/a.csv"])
def test_a_folder_that_is_none_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.csv: cannot be written"), whole_file(tmp_path / where) as draft:
        draft.write_bytes(b"")
