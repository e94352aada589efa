"""Every command that reads a configuration answers damaged text in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from formulations.errors import InputError
from lde_cvx.ablate.grid import load_grid
from lde_cvx.auditing import config as audit_config
from lde_cvx.compare import config as compare_config
from lde_cvx.toml_files import DEEPEST, parsed

READERS = {"audit": audit_config.load_config, "compare": compare_config.load_config, "ablate": load_grid}


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"x = " + b"[" * 20000 + b"]" * 20000, "deep"), (b"x = = 1", "is not TOML"), (b"x = '\xff'", "is not UTF-8 text")],
    ids=["deep", "syntax", "encoding"],
)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_damaged_text_is_one_line(read: Callable[[Path], object], data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("limit", [1000, 100_000])  # some libraries raise the limit of the process that imports them
def test_depth_is_refused_whatever_the_recursion_limit(limit: int) -> None:
    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(limit)
        with pytest.raises(InputError, match="deep"):
            parsed("x = " + "[" * 20000 + "]" * 20000, "c.toml")
        with pytest.raises(InputError, match="deep"):
            parsed("x = " + "[" * DEEPEST + "]" * DEEPEST, "c.toml")
        assert "x" in parsed("x = " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1), "c.toml")
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_an_absent_file_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml"):
        read(tmp_path / "absent.toml")
