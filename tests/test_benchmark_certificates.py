"""Certificates of the benchmark networks, as the explainer makes them, through the checker's levels A and B: twelve here, a thousand in the slow run."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_thousand_certificates(tmp_path: Path) -> None:
    total = checked(digits(300), tmp_path / "digits") + checked(german_credit(60), tmp_path / "credit")
    assert total >= 1000
