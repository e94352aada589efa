"""Data sets: what ships is what its citation says, and files of any kind are read or refused in one line."""

from __future__ import annotations

import gzip
import os
import struct
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.semantic import Schema
from lde_cvx.data import LOADERS, adult, available, digits, fashion_mnist, german_credit, load_dataset, mnist, read_idx

HERE = os.environ.get("LDE_DATA")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def put(folder: Path, name: str, payload: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(payload)
    return path


def test_german_credit_is_the_cited_data():
    ds = german_credit()
    assert ds.X.shape == (1000, 20)
    assert (ds.y == 1).sum() == 700
    assert ds.classes == ("bad", "good")
    assert "age_cat" not in ds.X
    assert not ds.X.isna().any().any()
    citation = (files("lde_cvx.datasets") / "DATA.md").read_text(encoding="utf-8")
    assert ds.sha256 in citation
    assert "CC BY 4.0" in citation
    assert "10.24432/C5NC77" in citation
    assert "10.24432/C5NC77" in ds.source


def test_german_credit_encodes_and_every_row_satisfies_its_schema():
    ds = german_credit()
    s = Schema.from_frame(ds.X, immutable=["age", "foreign_worker"], relations=["credit_amount >= 100 * installment_commitment - 200"])
    z = s.encode(ds.X)
    assert z.shape == (1000, 61)
    assert sum(len(g) == 1 for g in s.groups) == 7
    assert len(s.groups) == 20
    back = s.decode(z)
    assert all(back[c].tolist() == ds.X[c].tolist() for c in ds.X)
    s.polytope(z)  # raises on the first row that violates anything
    assert s.polytope(ds.X) is s.polytope()


def test_digits():
    ds = digits()
    assert ds.X.shape == (1797, 64)
    assert ds.X.min() == 0
    assert ds.X.max() == 1
    assert set(ds.y) == set(range(10))


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_records_are_complete(name):
    if name in ("mnist", "fashion_mnist", "adult") and not HERE:
        pytest.skip("LDE_DATA is not set")
    ds = load_dataset(name)
    assert len(ds.X) == len(ds.y) == len(ds)
    assert ds.y.dtype == np.int64
    assert len(ds.sha256) == 64
    assert all((ds.description, ds.licence, ds.source))
    with pytest.raises(ValueError):
        ds.y[0] = 1


# ---- IDX -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans(), st.integers(0, 6))
def test_idx_is_read_back(tmp_path_factory, shape, zipped, limit):
    array = np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)
    raw = idx(array)
    path = put(tmp_path_factory.mktemp("idx"), "a", gzip.compress(raw) if zipped else raw)
    assert np.array_equal(read_idx(path), array)
    assert np.array_equal(read_idx(path, limit), array[:limit])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "ends after 0 of 4 bytes"),
        (b"PK\x03\x04rest", "starts with 504b0304"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "starts with 00000d01"),
        (b"\x00\x00\x08\x09", "starts with 00000809"),
        (b"\x00\x00\x08\x02\x00\x00", "ends after 2 of 8 bytes"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, r"promises \(4294967295, 4294967295, 4294967295\)"),
        (idx(np.zeros((3, 2)))[:-1], "ends after 5 of 6 bytes"),
        (idx(np.zeros((3, 2))) + b"x", "holds more bytes than its header"),
        (gzip.compress(idx(np.zeros((50, 2))), mtime=0)[:-9], "damaged gzip"),
    ],
    ids=range(9),
)
def test_damaged_idx_files(tmp_path, payload, message):
    with pytest.raises(InputError, match=message) as caught:
        read_idx(put(tmp_path, "a", payload))
    assert "\n" not in str(caught.value)


def test_a_small_bomb_is_not_unpacked(tmp_path):
    """The header decides how much is read: 50 MB of zeros behind a 6-byte array are refused after 7 bytes."""
    bomb = put(tmp_path, "a.gz", gzip.compress(idx(np.zeros((3, 2))) + b"\x00" * 50_000_000))
    with pytest.raises(InputError, match="more bytes than its header"):
        read_idx(bomb)
    with pytest.raises(InputError, match="limit=-1"):
        read_idx(bomb, -1)


# ---- folders -------------------------------------------------------------------------------------------------------


def small_mnist(folder: Path, labels: int = 3) -> None:
    put(folder, "t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.arange(3 * 784).reshape(3, 28, 28) % 256)))
    put(folder, "t10k-labels-idx1-ubyte", idx(np.array([7, 2, 1, 0][:labels])))


@pytest.mark.parametrize("inside", ["mnist", "."])
def test_files_are_found_under_the_variable_or_the_path(tmp_path, monkeypatch, inside):
    small_mnist(tmp_path / inside)
    monkeypatch.setenv("LDE_DATA", str(tmp_path))
    a = mnist("test")
    monkeypatch.delenv("LDE_DATA")
    b = mnist("test", path=tmp_path, limit=2)
    assert a.X.shape == (3, 1, 28, 28)
    assert a.X.max() == 1.0
    assert a.y.tolist() == [7, 2, 1]
    assert np.array_equal(a.X[:2], b.X)
    assert a.sha256 == b.sha256


@pytest.mark.parametrize("loader", [mnist, fashion_mnist, adult])
def test_missing_files_name_the_variable(tmp_path, monkeypatch, loader):
    monkeypatch.delenv("LDE_DATA", raising=False)
    with pytest.raises(InputError, match=r"set LDE_DATA to the folder that holds .*\.gz, or pass path="):
        loader()
    with pytest.raises(InputError, match=r"path=.* holds no .*\.gz; set LDE_DATA"):
        loader(path=tmp_path)
    monkeypatch.setenv("LDE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"LDE_DATA=.*nowhere holds no"):
        loader()
    with pytest.raises(InputError, match="split='valid'"):
        loader("valid")


def test_files_that_do_not_belong_together(tmp_path):
    small_mnist(tmp_path, labels=4)
    with pytest.raises(InputError, match="3 rows and 4 labels"):
        mnist(path=tmp_path)
    put(tmp_path, "t10k-labels-idx1-ubyte", idx(np.array([1, 2, 77])))
    with pytest.raises(InputError, match="label 77 is beyond mnist's 10 classes"):
        mnist(path=tmp_path)
    put(tmp_path, "t10k-labels-idx1-ubyte", idx(np.zeros((3, 1))))
    with pytest.raises(InputError, match="expected"):
        mnist(path=tmp_path)


def test_adult_tables(tmp_path):
    put(tmp_path, "adult.csv", b"age,work,income-per-year\n39, State-gov, <=50K\n50,?,>50K.\n")
    ds = adult(path=tmp_path)
    assert ds.X.to_dict("list") == {"age": [39, 50], "work": ["State-gov", "?"]}
    assert ds.y.tolist() == [0, 1]
    put(tmp_path, "adult.csv", b"age,work,income-per-year\n39,x,rich\n")
    with pytest.raises(InputError, match="label 'rich'"):
        adult(path=tmp_path)
    put(tmp_path, "adult.csv", b"age,work\n39,x\n")
    with pytest.raises(InputError, match="no column 'income-per-year'"):
        adult(path=tmp_path)
    put(tmp_path, "adult.csv", b"")
    with pytest.raises(InputError, match="is not a CSV table"):
        adult(path=tmp_path)


def test_available_says_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("LDE_DATA", str(tmp_path))
    small_mnist(tmp_path / "mnist")
    found = {f.name: f for f in available()}
    assert {n for n, f in found.items() if f.found} == {"german_credit", "digits", "mnist test"}
    assert found["mnist test"].where == str(tmp_path / "mnist")
    assert "LDE_DATA" in found["adult train"].where
    with pytest.raises(InputError, match="data set 'mnsit': unknown"):
        load_dataset("mnsit")


@pytest.mark.skipif(not HERE, reason="LDE_DATA is not set")
def test_the_real_files():
    names = {f.name for f in available() if f.found}
    if "mnist test" in names:
        ds = mnist(limit=100)
        assert ds.X.shape == (100, 1, 28, 28)
        assert ds.y[:5].tolist() == [7, 2, 1, 0, 4]
    if "fashion-mnist test" in names:
        assert np.bincount(fashion_mnist().y).tolist() == [1000] * 10
    if "adult train" in names:
        ds = adult()
        assert ds.X.shape == (32561, 14)
        assert ds.y.sum() == 7841
        assert Schema.from_frame(ds.X.head(500), relations=["`education-num` <= 16"]).dim > 50


def test_every_listed_name_can_be_asked_for(tmp_path, monkeypatch):
    """What `lde data` lists is loaded by that name, or missing by it: never unknown."""
    monkeypatch.setenv("LDE_DATA", str(tmp_path))
    for found in available():
        if found.found:
            assert len(load_dataset(found.name))
        else:
            with pytest.raises(InputError, match="set LDE_DATA"):
                load_dataset(found.name)
    with pytest.raises(InputError, match="split='tran'"):
        load_dataset("mnist tran")
