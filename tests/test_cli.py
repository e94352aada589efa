"""The command line: what each command shows and writes, and that every wrong use costs one line and leaves nothing behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import lde_cvx
from formulations.errors import SoundnessError
from lde_cvx.cli import COMMANDS, app
from lde_cvx.models import mlp, save_model
from verification.lirpa import BoundEngine

DIM = 4
GOOD = "a,b,c,d\n0.5,0.5,0.5,0.5\n0.4,0.6,0.5,0.5\n"


def lde(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def narrow(seed: int = 0) -> nn.Sequential:
    """A network that answers class 0 at the middle of the box, narrowly."""
    net = mlp((DIM, 8, 3), seed=seed)
    with torch.no_grad():
        net[-1].bias += torch.tensor([0.05, 0.0, 0.01]) - net(torch.full((1, DIM), 0.5, dtype=torch.float64))[0]
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, inputs, and a certificate."""
    path = tmp_path_factory.mktemp("cli")
    save_model(narrow(), path / "model.safetensors")
    save_model(nn.Sequential(nn.Linear(DIM, 4), nn.Softmax(0), nn.Linear(4, 2)), path / "mixing.safetensors")
    save_model(nn.Sequential(nn.Linear(DIM, 1)), path / "one.safetensors")
    save_model(nn.Sequential(nn.Linear(DIM, 4), nn.Tanh(), nn.Linear(4, 2)), path / "tanh.safetensors")
    (path / "x.csv").write_text(GOOD)
    np.save(path / "x.npy", np.full((2, DIM), 0.5))
    np.save(path / "complex.npy", np.full((2, DIM), 0.5j))
    done = lde("explain", path / "model.safetensors", "--input", path / "x.csv", "--box", 0, 1, "--out", path / "good.json")
    assert done.exit_code == 0, done.output
    return path


# ---- help, version ----------------------------------------------------------------------------------------------------------


def test_help_says_what_each_command_does() -> None:
    done = lde("--help")
    assert done.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b +\w+,? \w+", done.output), name
        assert lde(name, "--help").exit_code == 0


def test_version_and_the_installed_command() -> None:
    assert lde_cvx.__version__ in lde("--version").output
    done = subprocess.run([Path(sys.executable).with_name("lde"), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lde_cvx", lde_cvx.__version__]
    assert done.stderr == ""


# ---- explain -----------------------------------------------------------------------------------------------------------------


def test_explain_writes_a_certificate_and_shows_names(folder: Path) -> None:
    record = json.loads((folder / "good.json").read_text())
    assert record["verdict"] == "BRACKETED"
    done = lde("explain", folder / "model.safetensors", "-i", folder / "x.csv", "--row", 1, "--box", 0, 1, "-o", folder / "row1.json")
    assert done.exit_code == 0, done.output
    assert re.search(r"│ [abcd] +│", done.output), "features carry the names of the header"
    assert float.fromhex(json.loads((folder / "row1.json").read_text())["input"]["x0"][0]) == 0.4


def test_explain_in_json(folder: Path, tmp_path: Path) -> None:
    done = lde(
        "explain",
        folder / "model.safetensors",
        "-i",
        folder / "x.npy",
        "--norm",
        "inf",
        "--max-change",
        0.4,
        "--json",
        "-o",
        tmp_path / "c.json",
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert 0 < told["lower"] <= told["upper"] <= 0.4 + 1e-9
    assert len(told["scores"]) == DIM


@pytest.mark.parametrize("method", ["ibp", "linear"])
def test_explain_reads_no_lambda_off_a_program_without_solution(folder: Path, tmp_path: Path, method: str) -> None:
    """Interval bounds give constant rows; within a tiny box no linearised row falls. Their multipliers are rays."""
    allowed = ("--max-change", 1e-3) if method == "linear" else ()
    done = lde("explain", folder / "model.safetensors", "-i", folder / "x.csv", *allowed, "--method", method, "-o", tmp_path / "c.json")
    assert done.exit_code == 0, done.output
    assert "no λ: no allowed change makes the" in done.output
    assert "certified λ" not in done.output
    assert re.search(r"│ a +│ [^│]+│ +– │", done.output), "no score without a λ"
    assert ("none: no linearised row can fall" in done.output) is (method == "linear")


def test_explain_a_threshold(folder: Path, tmp_path: Path) -> None:
    done = lde("explain", folder / "one.safetensors", "-i", folder / "x.csv", "--threshold", 100, "-o", tmp_path / "c.json", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["decision"] == "output 0 stays below 100"


# ---- check ---------------------------------------------------------------------------------------------------------------------


def test_check_passes_what_explain_wrote(folder: Path) -> None:
    done = lde("check", folder / "good.json", "--model", folder / "model.safetensors")
    assert done.exit_code == 0, done.output
    assert "1 of 1 certificates are valid" in done.output
    assert lde("check", folder / "good.json").exit_code == 0


@pytest.mark.parametrize("way", ["truncated", "empty", "not json", "stronger", "other model"])
def test_check_fails_on_anything_else(folder: Path, tmp_path: Path, way: str) -> None:
    text = (folder / "good.json").read_text()
    record = json.loads(text)
    broken = {
        "truncated": text[: len(text) // 2], "empty": "", "not json": "hello", "other model": text,
        "stronger": text.replace(f'"lower":"{record["lower"]}"', f'"lower":"{(float.fromhex(record["lower"]) * 1.5).hex()}"'),
    }[way]  # fmt: skip
    assert way == "other model" or broken != text
    (tmp_path / "c.json").write_text(broken)
    save_model(narrow(seed=1), tmp_path / "other.safetensors")
    more = ("--model", tmp_path / "other.safetensors") if way == "other model" else ()
    done = lde("check", tmp_path / "c.json", *more)
    assert done.exit_code == 1
    assert "INVALID" in done.output
    told = lde("check", tmp_path / "c.json", "--json", *more)
    assert told.exit_code == 1
    (entry,) = json.loads(told.stdout)
    assert not entry["ok"]
    assert entry["reasons"]


def test_one_bad_file_among_good_ones_fails_the_run(folder: Path, tmp_path: Path) -> None:
    text = (folder / "good.json").read_text()
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.json").write_text(text[:-40])
    done = lde("check", tmp_path)
    assert done.exit_code == 1
    assert "1 of 2 certificates are valid" in done.output


# ---- data ------------------------------------------------------------------------------------------------------------------------


def test_data_lists_shows_and_writes(tmp_path: Path) -> None:
    assert "german_credit" in lde("data").output
    done = lde("data", "german_credit", "--to", tmp_path / "g.csv")
    assert done.exit_code == 0, done.output
    assert "CC BY 4.0" in done.output
    lines = (tmp_path / "g.csv").read_text().splitlines()
    assert len(lines) == 1001
    assert lines[0].endswith(",class")
    assert [p.name for p in tmp_path.iterdir()] == ["g.csv"]


# ---- errors: one red line, exit code 2, nothing written ------------------------------------------------------------------------------

TOML = '[data]\npath = "{csv}"\nlabel = "class"\ndeclined = "bad"\n{more}'
CSV = "age,income,class\n" + "".join(f"{20 + k},{1000 + 37 * k % 500},{'bad' if k % 3 else 'good'}\n" for k in range(30))

EXPLAIN = ("explain", "{model}", "--input", "{csv}", "--out", "{out}")
WRONG = {
    # name: (arguments, csv, what the line says)
    "wrong shape": (EXPLAIN, "0.5,0.5\n", r"shape \(1, 2\).*4 features"),
    "NaN": (EXPLAIN, "0.5,nan,0.5,0.5\n", r"\[0, 1\] is nan"),
    "no number": (EXPLAIN, GOOD + "1,2,x,4\n", r"row 2, column c: 'x'"),
    "missing cell": (EXPLAIN, GOOD + "1,2,3\n", "row 2 has 3 columns, expected 4"),
    "infeasible set": ((*EXPLAIN, "--box", "1", "0"), GOOD, r"lower\[0\]=1\.0 exceeds upper\[0\]=0\.0"),
    "x0 outside the set": ((*EXPLAIN, "--box", "0", "0.25"), GOOD, r"'box' is violated by 0\.25"),
    "flipped already": ((*EXPLAIN, "--target", "0"), GOOD, "already answers class 0"),
    "unsupported layer": (("explain", "{mixing}", "--input", "{csv}", "--out", "{out}"), GOOD, r"Softmax\(dim=0\)"),
    "no such row": ((*EXPLAIN, "--row", "7"), GOOD, "holds 2 inputs"),
    "no such method": ((*EXPLAIN, "--method", "magic"), GOOD, "'magic' is not known"),
    "dual network of another layer": (
        ("explain", "{tanh}", "--input", "{csv}", "--out", "{out}", "--method", "dual-network"), GOOD, r"Tanh.* neither affine nor a ReLU; use",
    ),
    "no such norm": ((*EXPLAIN, "--norm", "3"), GOOD, "p='3'"),
    "one output": (("explain", "{one}", "--input", "{csv}", "--out", "{out}"), GOOD, "one output"),
    "no such model": (("explain", "{out}", "--input", "{csv}", "--out", "{out}"), GOOD, "no such file"),
    "no input": (("explain", "{model}", "--input", "{out}", "--out", "{out}"), GOOD, "no such file"),
    "no such folder": (("explain", "{model}", "--input", "{csv}", "--out", "{out}/deeper/c.json"), GOOD, "does not exist"),
    "the certificate over the model": (("explain", "{model}", "--input", "{csv}", "--out", "{model}"), GOOD, "is the model, which .* overwrite"),
    "the certificate over the inputs": (("explain", "{model}", "--input", "{csv}", "--out", "{csv}"), GOOD, "is the inputs, which .* overwrite"),
    "a folder of inputs": (("explain", "{model}", "--input", "/", "--out", "{out}"), GOOD, "is a folder"),
    "below a file": (("explain", "{model}", "--input", "{csv}", "--out", "{csv}/c.json"), GOOD, "is no folder"),
    "complex inputs": (("explain", "{model}", "--input", "{complex}", "--out", "{out}"), GOOD, "not a .npy file of numbers .*complex128"),
    "a negative seed": (("campaign", "--quiet", "--cases", "1", "--seed", "-1", "--out", "{out}"), GOOD, "seed=-1 must not be negative"),
    "no certificate": (("check", "{out}"), GOOD, "no such file"),
    "no such data": (("data", "boston"), GOOD, "'boston'"),
    "no such configuration": (("audit", "nowhere", "--out", "{out}"), GOOD, "german_credit"),
    "out is a file": (("audit", "{config}", "--out", "{csv}"), CSV, "--out"),
    "zero applicants": (("audit", "{config}", "--out", "{out}", "--limit", "0"), CSV, "limit=0"),
}  # fmt: skip

CONFIGS = {
    # name: (the rest of the configuration, csv, what the line says)
    "not TOML": ("[changes", CSV, "is not TOML"),
    "unknown key": ("[question]\nnorm = 2\n", CSV, r"question\.norm: .*got 2"),
    "wrong type": ("[question]\napplicants = 'many'\n", CSV, r"question\.applicants.*'many'"),
    "no such norm": ("[question]\nnorms = [3]\n", CSV, r"question\.norms"),
    "no such method": (
        "[question]\nmethod = 'CROWN+'\n",
        CSV,
        r"question\.method: method='CROWN\+' is not known; use one of ibp, .*dual-network",
    ),
    "a method without proof": (
        "[question]\nmethod = 'linear'\n",
        CSV,
        r"question\.method: method='linear' certifies nothing; use one of ibp",
    ),
    "no norms": ("[question]\nnorms = []\n", CSV, r"question\.norms: name at least one, each once, got \[\]"),
    "missing column": ("[changes]\nimmutable = ['agee']\n", CSV, r"no column 'agee'.*'age'"),
    "missing label": ("", CSV.replace(",class", ",klass"), r"no column 'class'.*'klass'"),
    "contradiction": ("[changes]\nrelations = ['age <= 10']\n", CSV, "cannot hold together"),
    "empty cell": ("", CSV + ",1000,bad\n", "age"),
    "one class": ("", CSV.replace("good", "bad"), "two classes"),
    "no such class": ("", CSV.replace("bad", "poor"), "'bad' is no label"),
    "no table": ("", "", "not a CSV table"),
}


def refused(done: Result, words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.exit_code == 2, done.output
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert re.search(words, lines[0]), lines[0]
    assert "Traceback" not in done.output


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_costs_one_line_and_writes_nothing(folder: Path, tmp_path: Path, case: str) -> None:
    arguments, table, words = WRONG[case]
    (tmp_path / "in.csv").write_text(table)
    (tmp_path / "audit.toml").write_text(TOML.format(csv=tmp_path / "in.csv", more=""))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    places = {
        "model": folder / "model.safetensors", "mixing": folder / "mixing.safetensors", "one": folder / "one.safetensors", "csv": tmp_path / "in.csv",
        "tanh": folder / "tanh.safetensors", "complex": folder / "complex.npy",
        "config": tmp_path / "audit.toml", "out": tmp_path / "out",
    }  # fmt: skip
    refused(lde(*(a.format(**places) for a in arguments)), words)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration_costs_one_line_and_writes_nothing(tmp_path: Path, case: str) -> None:
    more, table, words = CONFIGS[case]
    (tmp_path / "in.csv").write_text(table)
    (tmp_path / "audit.toml").write_text(TOML.format(csv=tmp_path / "in.csv", more=more))
    refused(lde("audit", tmp_path / "audit.toml", "--out", tmp_path / "out"), words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audit.toml", "in.csv"]


@pytest.mark.parametrize("method", ["crown", "branching"])
def test_a_row_above_the_network_gives_no_bound_and_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A bound library that answers a row above the margin at x0 is caught by the guard: no number is printed, no file is written."""
    honest = BoundEngine._linear_bounds

    def lifted(*given: Any) -> Any:
        a, b, *rest = honest(*given)
        return a, b + 1, *rest

    monkeypatch.setattr(BoundEngine, "_linear_bounds", lifted)
    with pytest.raises(SoundnessError, match="exceeds its margin at x0"):
        lde_cvx.certified_radius(narrow(), torch.full((1, DIM), 0.5))
    done = lde("explain", folder / "model.safetensors", "-i", folder / "x.csv", "--method", method, "-o", tmp_path / "c.json")
    assert done.exit_code == 3
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert re.search(
        r"^error: no bound is given: .*row 0 of input 0 exceeds its margin at x0.*please report it with the model file", lines[0]
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "german_credit", "--to", "."],
        ["bench", "convex", "--quick", "--device", "gpu"],
        ["bench", "leg", "--quick", "--device", "meta"],
        ["bench", "convex", "--quick", "--out", "/proc/x"],
    ],
)
def test_places_that_cannot_be_used_are_told_in_one_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")
