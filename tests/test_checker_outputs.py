"""Level C of the checker: the outputs, and that it runs alone."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checker_example import CANNOT_DECIDE, INVALID, ROOT, VALID, Honest, forge, honest_case, stored, verdict
from verification.certificate import Certificate, RivalEvidence, WitnessEvidence, evaluate
from verification.checker import CheckStatus
from verification.decision import Decision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def honest(folder: Path) -> Honest:
    return honest_case(folder)


def witnessed(margin: float, folder: Path) -> tuple[dict[str, Any], Path]:
    """f = (x₁, 0) from x₁ = 1, with a witness at which the margin is `margin`."""
    net = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        net[0].bias.zero_()
    x0, delta = np.array([1.0, 0.0]), np.array([-1.0, margin])
    outputs = evaluate(net, (x0 + delta)[None])[0]
    outputs[0] = min(outputs[0], 0.0)
    cert = Certificate.build(
        model=net, x0=x0, outputs=evaluate(net, x0[None])[0], decision=Decision.classification(0, 2), norm=2, parts=(), evidence=[RivalEvidence()],
        witness=WitnessEvidence(delta, outputs, 1), command="",
    )  # fmt: skip
    return cert.record, stored(net, folder, "line2")


@pytest.mark.parametrize(
    ("margin", "status"),
    [(0.0, VALID), (-1e-3, VALID), (-(2.0**-60), VALID), (2.0**-60, CANNOT_DECIDE), (1e-12, CANNOT_DECIDE), (1e-6, INVALID)],
)
def test_the_witness_flips_for_certain(margin: float, status: CheckStatus, folder: Path) -> None:
    record, path = witnessed(margin, folder)
    report = verdict(record, folder, path, "C")
    assert report.status is status, report.reasons
    if status is not VALID:
        assert "outputs" in report.reasons[0]


def test_stored_outputs_are_the_networks(honest: Any, folder: Path) -> None:
    record, _, path, _ = honest
    assert verdict(record, folder, path, "C").ok
    forged = copy.deepcopy(record)
    forged["outputs"][0] = (float.fromhex(forged["outputs"][0]) + 1e-6).hex()
    report = verdict(forge(forged, lambda r: None), folder, path, "C")
    assert report.status is INVALID
    assert "outputs at x0" in report.reasons[0]


BLOCKER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'cvxpy', 'clarabel', 'scs', 'auto_LiRPA', 'scipy', 'safetensors', 'formulations', 'lde_cvx'}:
            raise ImportError('refused: ' + name)
sys.meta_path.insert(0, Refuse())
from verification.checker import main
sys.exit(main(sys.argv[1:]))
"""


def test_level_c_runs_without_torch_solver_and_bound_library(honest: Any, folder: Path) -> None:
    (folder / "case.json").write_text(json.dumps(honest[0]))
    command = [sys.executable, "-c", BLOCKER, "--level", "C", "--model", str(honest[2]), str(folder / "case.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": valid" in done.stdout
