"""Certificates as an attacker would write them: questions that are changed on the way, trees that leave something out, numbers in odd spellings."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lde_cvx.models import save_model
from tests.certificate_example import linear_certificate, rehashed, relu_pieces
from tests.test_certificate_trees import Case, all_pieces
from verification.certificate_format import parse
from verification.checker import CheckStatus, check_file, check_record
from verification.checking.text import canonical, input_hash
from verification.rechecking.network import read_model, to_json

Record = dict[str, Any]
ZERO, ONE = (0.0).hex(), (1.0).hex()


@pytest.fixture(scope="module")
def rich() -> Record:
    return linear_certificate(2)[0].record


@pytest.fixture(scope="module")
def pieces() -> Record:
    return relu_pieces()[0].record


def refused(record: Record, reason: str) -> None:
    report = check_record(rehashed(record))
    assert report.status is CheckStatus.INVALID
    assert re.search(reason, str(report)), report


# ---- trees ---------------------------------------------------------------------------------------------------------------------


def _cells(record: Record) -> list[Any]:
    out: list[Any] = record["rivals"][0]["cells"]
    return out


def no_leaf(record: Record) -> None:
    record["rivals"][0]["cells"] = []


def one_leaf_twice(record: Record) -> None:
    _cells(record)[1] = copy.deepcopy(_cells(record)[0])


def sides_of_two_cuts(record: Record) -> None:
    """z ≤ −1 and z ≥ 1 leave out what is between."""
    for cell in _cells(record):
        cell["path"][0]["cut"] = (float(cell["path"][0]["side"])).hex()


def sides_of_two_cuts_by_minus_zero(record: Record) -> None:
    """−0 and 0 are one number, so that this alone is no forgery; a denormal more is one."""
    for cell in _cells(record):
        cell["path"][0]["cut"] = (5e-324 if cell["path"][0]["side"] > 0 else 0.0).hex()


def sides_of_two_layers(record: Record) -> None:
    for cell in _cells(record):
        if cell["path"][0]["side"] > 0:
            cell["path"][0]["at"] = "1"


def a_layer_called_input(record: Record) -> None:
    """Then the sides are of the input, and no row may state them."""
    for cell in _cells(record):
        cell["path"][0]["at"] = "input"


def a_row_of_a_split_that_is_not_there(record: Record) -> None:
    _cells(record)[0]["row_of"][1] = 17


def a_row_that_is_none_of_the_kinds(record: Record) -> None:
    _cells(record)[0]["row_of"][0] = -3


def deeper_on_one_side_only(record: Record) -> None:
    """A leaf is cut again, and only one half is there."""
    for cell in _cells(record)[:1]:
        cell["path"].append({"at": "0", "index": 1, "cut": (0.25).hex(), "side": 1})


TREES: dict[Callable[[Record], None], str] = {
    no_leaf: "exceeds what the evidence proves",
    one_leaf_twice: "cover",
    sides_of_two_cuts: "cover",
    sides_of_two_cuts_by_minus_zero: "cover",
    sides_of_two_layers: "cover",
    a_layer_called_input: "row_of",
    a_row_of_a_split_that_is_not_there: "row_of",
    a_row_that_is_none_of_the_kinds: "row_of",
    deeper_on_one_side_only: "cover",
}


@pytest.mark.parametrize("forge", TREES, ids=lambda f: f.__name__)
def test_a_tree_that_leaves_something_out_is_refused(pieces: Record, forge: Callable[[Record], None]) -> None:
    record = copy.deepcopy(pieces)
    forge(record)
    refused(record, TREES[forge])


def test_minus_zero_is_zero(pieces: Record) -> None:
    record = copy.deepcopy(pieces)
    for cell in _cells(record):
        cell["path"][0]["cut"] = (-0.0).hex() if cell["path"][0]["side"] > 0 else ZERO
    assert check_record(rehashed(record)).ok


# ---- numbers and spellings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    ["nan", "-nan", "0x1p+5", "0X1.0000000000000P+0", "+0x1.0000000000000p+0", " 0x1.0000000000000p+0", "0x1.0000000000000p+0\n", "1.0", "infinity", "-inf",
     "0x1.0000000000000p+99999999999", "0x0.0000000000000p+0", "0x1.00000000000000p+0", "0x1.0000000000000p+٠", "０x1.0000000000000p+0", "0x1_0.0p+0", 1.0, 1,
     None, True, ["0x0.0p+0"]],
)  # fmt: skip
@pytest.mark.parametrize("path", [("lower",), ("rivals", 0, "cells", 0, "b", 0), ("set", 0, "hi", 1), ("rivals", 0, "cells", 0, "lam", 0)])
def test_odd_spellings_of_numbers_are_refused(rich: Record, path: tuple[Any, ...], spelling: Any) -> None:
    record = copy.deepcopy(rich)
    node: Any = record
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = spelling
    if spelling == "-inf" and path[0] == "lower":
        refused(record, "negative")
    else:
        refused(record, r"format: .*(hex|wrong side)")


def test_a_key_twice_is_refused_wherever_it_stands(rich: Record, tmp_path: Path) -> None:
    text = canonical(rich).decode()
    for key in ("lower", "radius", "rho", "p", "path", "x0", "sha256", "architecture"):
        twice = re.sub(rf'("{key}":)', rf'"{key}":null,\1', text, count=1)
        assert twice != text, key
        escaped = re.sub(rf'("{key}":)', lambda m, key=key: f'"\\u{ord(key[0]):04x}{key[1:]}":null,{m[1]}', text, count=1)
        for forged in (twice, escaped):
            (tmp_path / "c.json").write_text(forged)
            report = check_file(tmp_path / "c.json")
            assert "twice" in str(report), (key, report)


# ---- the question ----------------------------------------------------------------------------------------------------------------


def test_a_rival_left_out_is_another_question(rich: Record) -> None:
    """Rows and rivals must be the decision's: fewer of either are refused; both fewer is another, smaller claim, and its label says so to the reader."""
    for part in ("rows", "shifts", "rivals"):
        record = copy.deepcopy(rich)
        del record["decision"][part][0]
        refused(record, "differ in number")
    record = copy.deepcopy(rich)
    del record["rivals"][0]
    refused(record, "belong to row|rivals for")
    record = copy.deepcopy(rich)
    record["decision"]["rivals"] = record["decision"]["rivals"][::-1]
    refused(record, "belong to row")


def test_rows_of_another_width_and_foreign_witnesses_are_refused(rich: Record) -> None:
    for change in (
        lambda r: r["decision"]["rows"][0].append(ONE),
        lambda r: r["outputs"].append(ONE),
        lambda r: r["witness"]["outputs"].pop(),
    ):
        record = copy.deepcopy(rich)
        change(record)
        refused(record, "numbers long")
    record = copy.deepcopy(rich)
    record["witness"]["rival"] = 99
    refused(record, "witness.rival")


def test_an_input_that_was_moved_needs_its_own_evidence(rich: Record) -> None:
    record = copy.deepcopy(rich)
    x0 = [float.fromhex(v) for v in record["input"]["x0"]]
    x0[0] += 1e-3
    record["input"]["x0"] = [v.hex() for v in x0]
    refused(record, "input.sha256")
    record["input"]["sha256"] = input_hash(x0)
    refused(record, ".")


def test_a_smaller_set_does_not_pass_for_the_larger_one(rich: Record) -> None:
    """A constraint slipped in makes bounds larger and truly so, of that smaller set: the parts are in the file by name, and the witness tells on it."""
    record = copy.deepcopy(rich)
    d = len(record["input"]["x0"])
    slipped = {"kind": "box", "name": "slipped", "on": "change", "lo": [(-1e-6).hex()] * d, "hi": [(1e-6).hex()] * d}
    record["set"].append(slipped)
    refused(record, "duals")
    for rival in record["rivals"]:
        for cell in rival["cells"]:
            cell["duals"].append(None)
    refused(record, "the witness violates part 'slipped'")


def test_a_norm_with_other_weights_needs_its_own_evidence(rich: Record) -> None:
    d = len(rich["input"]["x0"])
    for factor in (0.5, 2.0):
        record = copy.deepcopy(rich)
        record["norm"]["weights"] = [factor.hex()] * d
        refused(record, "exceeds what the evidence proves|is not the witness's distance")
    for weights in ([ZERO] * d, [(-1.0).hex()] * d, [ONE] * (d - 1)):
        record = copy.deepcopy(rich)
        record["norm"]["weights"] = weights
        refused(record, "weights")


# ---- the model -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> Case:
    return all_pieces(2)


def checked(record: Record, folder: Path, model: Path, level: str = "B") -> Any:
    (folder / "c.json").write_bytes(canonical(rehashed(record)))
    return check_file(folder / "c.json", level=level, model=model)


def test_radii_beyond_the_root_and_rows_of_one_cell_in_another_prove_nothing(tree: Case, tmp_path: Path) -> None:
    save_model(tree.model, tmp_path / "model.safetensors")
    honest = tree.certificate.record
    assert checked(honest, tmp_path, tmp_path / "model.safetensors").ok
    k, i = tree.deep()
    cells = honest["rivals"][k]["cells"]
    for j in range(len(cells)):
        record = copy.deepcopy(honest)
        record["rivals"][k]["cells"][j]["a"], record["rivals"][k]["cells"][j]["b"] = cells[i]["a"], cells[i]["b"]
        record["rivals"][k]["cells"][j]["lam"], record["rivals"][k]["cells"][j]["row_of"] = cells[i]["lam"], cells[i]["row_of"]
        report = checked(record, tmp_path, tmp_path / "model.safetensors")
        if report.ok:  # then the row holds in that cell as well, and the claim is the honest one
            assert parse(record).lower == parse(honest).lower
    record = copy.deepcopy(honest)
    record["witness"], record["upper"], record["verdict"] = None, "inf", "LOWER_ONLY"
    for cell in record["rivals"][k]["cells"]:
        cell["radius"] = (1.5 * tree.witness.upper).hex()
    record["lower"] = record["rivals"][k]["lower"] = (1.4 * tree.witness.upper).hex()
    assert not checked(record, tmp_path, tmp_path / "model.safetensors").ok


def test_a_model_file_with_a_layer_slipped_in_is_another_model(tree: Case, tmp_path: Path) -> None:
    """The same weights, told in other layers: the certificate's words do not fit."""
    from safetensors.numpy import save_file

    save_model(tree.model, tmp_path / "model.safetensors")
    file = read_model(tmp_path / "model.safetensors")
    spec = json.loads(to_json(file.layers))["model"]
    tensors = {k: np.array(v) for k, v in file.tensors.items()}
    slipped = {"kind": "Normalize", "shape": [1]}
    for layers, more in (
        ([*spec["layers"][:1], {"kind": "Flatten", "start_dim": 1, "end_dim": -1}, *spec["layers"][1:]], {}),
        ([*spec["layers"], {"kind": "Tanh"}], {}),
        (spec["layers"][::-1], {}),
        ([*spec["layers"], slipped], {"3.mean": np.array([-100.0]), "3.std": np.array([1.0])}),
    ):
        save_file({**tensors, **more}, tmp_path / "other.safetensors", {"architecture": to_json({"kind": "Sequential", "layers": layers})})
        for level in ("A", "B", "C"):
            report = checked(tree.certificate.record, tmp_path, tmp_path / "other.safetensors", level)
            assert report.status is not CheckStatus.VALID or (level == "A" and not more)
            assert more == {} or report.status is CheckStatus.INVALID
