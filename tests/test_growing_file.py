"""Files that grow: killed at any byte, they lose the line that was being written and no other; what they do not hold is named, and left alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formulations.errors import InputError
from lde_cvx.bench.kept import Kept
from lde_cvx.growing_file import add, append, lines, records
from lde_cvx.growing_table import GrowingTable

values = st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none(), max_size=3)


@given(st.lists(values, min_size=1, max_size=5), values, st.data())
def test_a_kill_costs_the_last_line_alone(before: list[dict[str, object]], after: dict[str, object], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "done.jsonl"
        for record in before:
            add(path, record)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        left = whole[:cut].count(b"\n")
        assert records(path) == before[:left]
        add(path, after)
        assert records(path) == [*before[:left], after]


@pytest.mark.parametrize("damage", [b"{\n", b"[1]\n", b"1\n", b"\xff\n", b"nonsense\n"])
def test_what_is_no_record_is_named_and_left(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    path.write_bytes(damage)
    with pytest.raises(InputError, match=r"done\.jsonl: .*another folder") as caught:
        records(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == damage


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    odd = ["a\u2028b\n", "c\x0bd\x1ce\n", "\r\n", "\n"]
    append(tmp_path / "t", odd)
    assert lines(tmp_path / "t") == odd
    assert lines(tmp_path / "absent") == []


def test_a_measurement_is_made_once_a_failure_too(tmp_path: Path) -> None:
    made: list[int] = []

    def measure() -> float | None:
        made.append(1)
        return float("inf") if len(made) == 1 else None

    first = Kept(tmp_path / "done.jsonl")
    assert [first.take("a", measure), first.take("a", measure), first.take("b", measure)] == [float("inf"), float("inf"), None]
    again = Kept(tmp_path / "done.jsonl")
    assert [again.take("a", measure), again.take("b", measure)] == [float("inf"), None]
    assert len(made) == 2


@given(st.lists(st.tuples(st.text("a,\"'é", max_size=4), st.integers()), min_size=1, max_size=4), st.data())
def test_a_table_goes_on_after_its_last_whole_line(rows: list[tuple[str, int]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = GrowingTable(Path(folder) / "t.csv", Path(folder) / "t.json", ("name", "count"), "test")
        table.claim({"seed": 1})
        told = [{"name": name, "count": str(count)} for name, count in rows]
        for row in told:
            table.append([row])
        whole = table.table.read_bytes()
        table.table.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        left = table.kept()
        assert left == told[: len(left)]
        for row in told[len(left) :]:
            table.append([row])
        assert table.table.read_bytes() == whole
        with pytest.raises(InputError, match="another test; name another folder"):
            table.claim({"seed": 2})
