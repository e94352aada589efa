"""Certificates of the benchmark networks, as the explainer makes them, through the checker's levels A and B: twelve here, a thousand in the slow run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from formulations.errors import InputError
from lde_cvx.bench.certificates import RESULTS, bench
from lde_cvx.bench.networks import Case, digits, german_credit
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.manifest import compare, read_manifest, write_manifest
from lde_cvx.model_files import save_model
from verification.checker import check_file

CHUNK = 25


def checked(case: Case, folder: Path) -> int:
    """Certifies the case's inputs in all its norms; every file is valid at levels A and B, and publishes no more than the checker proves."""
    folder.mkdir()
    save_model(case.model, folder / "model.safetensors")
    files = []
    for norm in case.norms:
        explainer = LagrangeDualExplainer(case.model, norm=norm, constraints=case.constraints)
        for start in range(0, len(case.x), CHUNK):
            found = explainer.explain(case.x[start : start + CHUNK], quiet=True)
            for i, e in enumerate(found if isinstance(found, list) else [found]):
                files.append(e.certificate.save(folder / f"{norm}-{start + i}.json"))
    for path in files:
        report = check_file(path, level="B", model=folder / "model.safetensors")
        assert report.ok, (path, report.reasons)
        assert 0 < report.lower <= report.proved
        assert report.premises == ("outputs: as stored (level C)",)
    write_manifest(folder, files, folder / "model.safetensors")
    assert compare(read_manifest(folder / "manifest.json")) == ({}, {})
    return len(files)


def test_certificates_of_the_benchmark_networks(tmp_path: Path) -> None:
    assert checked(digits(2), tmp_path / "digits") + checked(german_credit(3), tmp_path / "credit") == 12


def test_certificates_are_made_on_the_device_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def explainer(*_: object, device: str, **__: object) -> LagrangeDualExplainer:
        asked.append(device)
        raise InputError("no such device here.")

    monkeypatch.setattr("lde_cvx.bench.certificates.LagrangeDualExplainer", explainer)
    assert bench(tmp_path, device="cuda:1", quick=True, console=Console(quiet=True)).empty
    assert asked == ["cuda:1"] * 2  # a network each, left out by name


def test_the_bench_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network once, by CROWN and by branching; a second run makes and checks what is missing only."""
    monkeypatch.setattr("lde_cvx.bench.certificates.PATIENCE", 0.5)
    frame = bench(tmp_path, quick=True, console=Console(quiet=True))
    assert frame["files"].sum() == frame["A valid"].sum() == frame["B valid"].sum() == 10
    assert frame["above"].sum() == 0
    lines = (tmp_path / RESULTS).read_bytes().splitlines(keepends=True)
    gone = json.loads(lines[-1])["file"]
    (tmp_path / gone).unlink()
    (tmp_path / RESULTS).write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote the last answer
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*.json")}
    again = bench(tmp_path, quick=True, console=Console(quiet=True))
    assert again["files"].sum() == 10
    assert (tmp_path / gone).exists()
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert len((tmp_path / RESULTS).read_bytes().splitlines()) == 10


@pytest.mark.slow
def test_a_thousand_certificates(tmp_path: Path) -> None:
    total = checked(digits(300), tmp_path / "digits") + checked(german_credit(60), tmp_path / "credit")
    assert total >= 1000
