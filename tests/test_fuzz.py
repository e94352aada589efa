"""Hostile files: certificates, manifests, configurations, schemas, models and tables, mutated. Never a traceback, never a hang, never "valid" for a false claim.

Every reader may answer or refuse with an InputError of one line (a certificate: INVALID); any other exception, and an answer that takes longer than LIMIT, fails.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from formulations.errors import InputError
from formulations.semantic import Schema
from lde_cvx.audit import open_folder
from lde_cvx.auditing.config import embedded, load_config
from lde_cvx.campaign.run import resumed
from lde_cvx.checking import check_files
from lde_cvx.cli.explain import read_inputs
from lde_cvx.data import read_idx
from lde_cvx.manifest import NAME, compare, read_manifest, write_manifest
from lde_cvx.models import load_model, load_torch_state, save_model
from tests.certificate_example import linear_certificate, rehashed
from tests.judges import follows
from tests.test_certificate_trees import two_layers
from verification.certificate import Certificate
from verification.certificate_format import parse
from verification.checker import CheckStatus, check_file, check_record
from verification.checking.text import FormatError, canonical, decode
from verification.rechecking.network import read_model

LIMIT = 5  # seconds
SCHEMA = """
immutable = ["age"]
relations = ["debt <= 5 * income"]
[[columns]]
name = "age"
kind = "numeric"
mean = 35.5
std = 11.4
low = 18
high = 80
[[columns]]
name = "income"
kind = "numeric"
mean = 1e3
std = 2.0
[[columns]]
name = "debt"
kind = "numeric"
mean = 0
std = 1
[[columns]]
name = "housing"
kind = "categorical"
categories = ["own", "rent"]
"""


class Hang(BaseException):
    """Longer than LIMIT."""


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- mutations ------------------------------------------------------------------------------------------------------------------


TOKENS = [b"null", b"{}", b"[]", b'""', b"-1", b"1e999", b"9" * 400, b"true", b"nan", b"inf", b"\x00", b"\xff\xfe", b'"inf"', b'"0x1p+99999"', b"[[[[[[", b"../../x",
          b"'''", b"= =", b"\n[", b"1979-05-27T07:32:00Z", b"\xe2\x80\xae"]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four edits: bytes, runs, tokens, numbers, cuts, swaps."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, way = rng.randrange(len(out) + 1), rng.randrange(8)
        if way == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del out[at : at + rng.choice([1, 2, 8, 60, 1000])]
        elif way == 2:
            out[at:at] = rng.choice(TOKENS)
        elif way == 3:
            out[at : at + rng.choice([1, 4, 9])] = rng.choice(TOKENS)
        elif way == 4:
            out = out[:at]
        elif way == 5:
            piece = bytes(out[at : at + rng.choice([3, 30, 300])])
            out[at:at] = piece * rng.choice([1, 2, 50])
        elif way == 6:
            out[at : at + 8] = rng.choice([2**63, 2**32, 10**9, 0, 2**64 - 1]).to_bytes(8, "little")
        else:
            digits = [i for i in range(at, min(at + 200, len(out))) if 48 <= out[i] < 58]
            if digits:
                out[rng.choice(digits)] = rng.randrange(48, 58)
    return bytes(out)


def deformed(record: Any, rng: random.Random) -> Any:
    """A copy with one node replaced, dropped, doubled or shaken."""
    out = copy.deepcopy(record)
    node, path = out, []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.85):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    holder, key = path[-1]
    value = holder[key]
    way = rng.randrange(5)
    if way == 0 and isinstance(value, str) and value.startswith(("0x", "-0x")):
        holder[key] = (float.fromhex(value) * rng.choice([0.0, 0.5, 0.999, 1.001, 2.0, -1.0, 1e300]) + rng.choice([0.0, 1e-3, -1e-3])).hex()
    elif way == 1 and isinstance(holder, list):
        del holder[key]
    elif way == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif way == 3 and isinstance(value, list):
        rng.shuffle(value)
    else:
        holder[key] = rng.choice(
            [None, [], {}, "", "inf", "nan", -1, 0, 1, 2**60, True, 1.5, "0x0.0p+0", "0x1.0p+1000", [["0x1.0p+0"]], "../x", "box"]
        )
    return out


# ---- the readers ----------------------------------------------------------------------------------------------------------------

Reader = Callable[[Path], Any]


class Corpus:
    """Honest files, and who reads each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        certificate, model = linear_certificate()
        save_model(model, folder / "model.safetensors")
        certificate.save(folder / "a.json")
        write_manifest(folder, [folder / "a.json"])
        W = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "W", "b"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
            [numpy_helper.from_array(W, "W"), numpy_helper.from_array(np.ones(3, np.float32), "b")],
        )  # fmt: skip
        network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        network.ir_version = 8
        onnx.save(network, folder / "net.onnx")
        np.save(folder / "x.npy", np.ones((2, 3)))
        idx = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + bytes(range(6))
        (folder / "bare.idx").write_bytes(idx)
        (folder / "packed.idx.gz").write_bytes(gzip.compress(idx))
        (folder / "schema.toml").write_text(SCHEMA)
        (folder / "audit.toml").write_text(load_config(embedded()[0])[1])
        (folder / "x.csv").write_text("a,b\n1,2\n3,4\n")
        head = {"format": "lde-campaign/2", "seed": 0, "points": 20, "version": "1"}
        (folder / "campaign.jsonl").write_text(json.dumps(head) + "\n" + json.dumps({"case": 0}) + "\n")
        import torch

        torch.save(nn.Linear(2, 2).state_dict(), folder / "state.pth")
        self.honest = certificate
        tree = two_layers(2)
        self.tree = tree.certify(tree.branched()).certificate
        self.tree.save(folder / "tree.certificate")
        save_model(tree.model, folder / "tree.safetensors")
        self.readers: dict[str, Reader] = {
            "a.json": lambda p: self.certificate(p),
            "tree.certificate": lambda p: self.leaves(p),
            "tree.safetensors": lambda p: self.told(folder / "tree.certificate", p),
            NAME: lambda p: compare(read_manifest(p)),
            "model.safetensors": lambda p: (load_model(p), self.checkers_model(p)),
            "net.onnx": load_model,
            "state.pth": load_torch_state,
            "schema.toml": lambda p: Schema.from_toml(p).polytope(),
            "audit.toml": load_config,
            "x.csv": read_inputs,
            "x.npy": read_inputs,
            "bare.idx": read_idx,
            "packed.idx.gz": read_idx,
            "campaign.jsonl": lambda p: list(resumed(p, head)),
        }
        self.files = {name: (folder / name).read_bytes() for name in self.readers}

    def certificate(self, path: Path) -> None:
        report = check_file(path)
        assert len(report.reasons) == 0 or all("\n" not in r for r in report.reasons)
        if report.ok:
            assert decode(path.read_bytes()) == self.honest.record
        (told,) = check_files([path])
        assert told.ok == report.ok
        Certificate.load(path)

    def leaves(self, path: Path) -> None:
        """A tree at level B, with the honest model."""
        report = check_file(path, level="B", model=self.folder / "tree.safetensors")
        assert all("\n" not in r for r in report.reasons)
        assert not report.ok or decode(path.read_bytes()) == self.tree.record

    def told(self, path: Path, model: Path) -> None:
        """The honest tree at level C, with a model that may be damaged: valid only of the same weights and layers."""
        report = check_file(path, level="C", model=model)
        assert all("\n" not in r for r in report.reasons)
        if report.ok:
            weights, own = (read_model(p).tensors for p in (model, self.folder / "tree.safetensors"))
            assert all((weights[k] == v).all() for k, v in own.items())

    def checkers_model(self, path: Path) -> None:
        try:
            file = read_model(path)
            file.network((6,))
        except (FormatError, ValueError) as error:
            assert "\n" not in str(error)  # noqa: PT017

    def attack(self, name: str, data: bytes) -> None:
        path = self.folder / f"mutant-{name}"
        path.write_bytes(data)
        try:
            with limited():
                self.readers[name](path)
        except InputError as error:
            assert "\n" not in str(error), str(error)  # noqa: PT017
        except Hang:
            pytest.fail(f"{name}: longer than {LIMIT} s")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("fuzz"))


def test_honest_files_are_read(corpus: Corpus) -> None:
    for name, reader in corpus.readers.items():
        if name != NAME:
            reader(corpus.folder / name)
    assert compare(read_manifest(corpus.folder / NAME)) == ({}, {})


def campaign(corpus: Corpus, count: int, seed: int, tmp_path: Path) -> None:
    """`count` mutated files, in turn of every kind; afterwards nothing lies outside the folder."""
    rng = random.Random(seed)
    names = list(corpus.readers)
    for k in range(count):
        name = names[k % len(names)]
        corpus.attack(name, damaged(corpus.files[name], rng))
    assert {p.name for p in corpus.folder.iterdir()} <= {*corpus.files, *(f"mutant-{n}" for n in corpus.files)}


def test_damaged_files_are_answered_or_refused(corpus: Corpus, tmp_path: Path) -> None:
    campaign(corpus, 240, 0, tmp_path)


def forgeries(count: int, seed: int) -> tuple[int, int]:
    """Certificates deformed in one place, with an honest hash: (how many, how many passed). What passes is true of its own evidence, says the solver."""
    rng, passed = random.Random(seed), 0
    tree = two_layers(2)
    sources = [*(linear_certificate(norm)[0].record for norm in (1, 2, "inf")), tree.certify(tree.branched()).certificate.record]
    for k in range(count):
        forged = deformed(sources[k % 4], rng)
        try:
            forged = rehashed(forged)
        except FormatError:
            continue
        with limited():
            report = check_record(forged)
        assert all("\n" not in r for r in report.reasons)
        if report.status is CheckStatus.VALID:
            passed += 1
            doc = parse(forged)
            assert doc.lower <= report.proved
            if k % 5 == 0 and all(doc.cells) and doc.x0:
                assert follows(doc)
    return count, passed


def test_deformed_certificates_never_pass_for_a_false_claim() -> None:
    count, passed = forgeries(150, 0)
    assert 0 < passed < count


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.json", NAME, "schema.toml", "audit.toml", "campaign.jsonl", "x.csv"]),
    st.binary(max_size=300) | st.text(max_size=200).map(str.encode),
)
def test_arbitrary_bytes(corpus: Corpus, name: str, data: bytes) -> None:
    corpus.attack(name, data)


def test_bombs_are_refused_before_they_cost_memory(corpus: Corpus) -> None:
    """Sizes that a file claims and does not have; gzip that unpacks to more than the header says."""
    for name, data in {
        "packed.idx.gz": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(50_000_000)),
        "bare.idx": bytes([0, 0, 8, 4]) + b"\xff" * 16,
        "model.safetensors": (2**62).to_bytes(8, "little") + b"{}",
        "schema.toml": b"a = " + b"[" * 20_000,
        "audit.toml": b"a = " + b"[" * 20_000,
        "a.json": b'{"x":' * 100_000,
    }.items():
        corpus.attack(name, data)
    import tracemalloc

    bomb = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(50_000_000))
    tracemalloc.start()
    corpus.attack("packed.idx.gz", bomb)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_nothing_is_written_outside_the_output_folder(tmp_path: Path) -> None:
    """An audit's files are named by row numbers; a certificate's own words never name a file."""
    certificates = open_folder(tmp_path / "out")
    assert certificates == tmp_path / "out" / "certificates"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    record = linear_certificate()[0].record
    for evil in ("../../evil", "/tmp/evil", "a\0b"):
        forged = rehashed({**record, "notes": {"path": evil}, "provenance": {"applicant": evil}, "command": evil})
        (tmp_path / "out" / "c.json").write_bytes(canonical(forged))
        check_files([tmp_path / "out" / "c.json"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_ten_thousand_files(corpus: Corpus, tmp_path: Path) -> None:
    campaign(corpus, 9_000, 1, tmp_path)
    count, _ = forgeries(1_500, 1)
    assert count == 1_500
