"""Batches: manifests and what they notice, signatures, and an interruption that leaves whole files only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from formulations.errors import DependencyError, InputError
from lde_cvx.cli import app
from lde_cvx.manifest import NAME, compare, read_manifest, write_manifest
from lde_cvx.signing import is_signed_by, new_key, sign
from tests.certificate_example import linear_certificate
from verification.checker import check_file
from verification.checking.text import self_hash

ROOT = Path(__file__).resolve().parents[1]


def lde(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Three certificates of one model in a sub-folder, and their manifest."""
    (tmp_path / "certificates").mkdir()
    certificate, _ = linear_certificate()
    files = [certificate.save(tmp_path / "certificates" / f"{name}.json") for name in "abc"]
    write_manifest(tmp_path, files, command="test")
    return tmp_path


def rewritten(path: Path, **changes: object) -> None:
    """A change of top-level fields with an honest self-hash."""
    record = {**json.loads(path.read_text()), **changes}
    record["sha256"] = self_hash(record)
    path.write_text(json.dumps(record))


def test_a_whole_batch_is_valid(batch: Path) -> None:
    assert compare(read_manifest(batch / NAME)) == ({}, {})
    for target in (batch, batch / NAME):
        done = lde("check", target)
        assert done.exit_code == 0, done.output
        assert "3 of 3 certificates are valid" in done.output
    told = json.loads((batch / NAME).read_text())
    assert told["count"] == 3
    assert told["verdicts"] == {"BRACKETED": 3}
    assert [p.name for p in batch.iterdir() if p.name.startswith(".")] == []


def test_a_change_of_words_is_reported_as_harmless(batch: Path) -> None:
    rewritten(batch / "certificates" / "b.json", versions={"numpy": "0.0"})
    wrong, harmless = compare(read_manifest(batch / NAME))
    assert wrong == {}
    assert [p.name for p in harmless] == ["b.json"]
    done = lde("check", batch, "--json")
    assert done.exit_code == 0
    assert done.output.count("only in words on which no claim rests") == 1


@pytest.mark.parametrize("way", ["claim", "missing", "extra", "damaged"])
def test_any_other_change_is_refused(batch: Path, way: str) -> None:
    path = batch / "certificates" / "b.json"
    if way == "claim":
        rewritten(path, lower="0x0.0p+0")  # weaker, and so valid by itself
        assert check_file(path).ok
    elif way == "missing":
        path.unlink()
    elif way == "extra":
        (path.parent / "d.json").write_bytes(path.read_bytes())
    else:
        path.write_bytes(path.read_bytes()[:-30])
    done = lde("check", batch)
    assert done.exit_code == 1
    assert "manifest:" in done.output


def test_a_manifest_that_was_changed_or_leads_elsewhere_is_refused(batch: Path) -> None:
    whole = json.loads((batch / NAME).read_text())
    outside = batch.parent / "secret.json"
    outside.write_bytes((batch / "certificates" / "a.json").read_bytes())
    for name in ("../secret.json", str(outside), "certificates/../../secret.json", "", "a\\b", "C:/x", "a\0b", 3, None, ["x"]):
        record = {**whole, "files": [{**whole["files"][0], "name": name}], "count": 1}
        record["sha256"] = self_hash(record)
        (batch / NAME).write_text(json.dumps(record))
        with pytest.raises(InputError, match="not a manifest"):
            read_manifest(batch / NAME)
    for broken in (
        {},
        [],
        {**whole, "count": 2},
        {**whole, "files": []},
        {**whole, "model": None},
        {**whole, "version": 2},
        {**whole, "format": "x"},
    ):
        record = {**broken, "sha256": self_hash(broken)} if isinstance(broken, dict) else broken
        (batch / NAME).write_text(json.dumps(record))
        assert lde("check", batch).exit_code == 2
    (batch / NAME).write_text(json.dumps({**whole, "command": "another"}))
    with pytest.raises(InputError, match="own hash"):
        read_manifest(batch / NAME)


def test_links_that_lead_out_of_the_folder_are_refused(batch: Path) -> None:
    path = batch / "certificates" / "b.json"
    outside = batch.parent / "outside.json"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    assert [p.name for p in compare(read_manifest(batch / NAME))[0]] == ["b.json"]


def test_a_manifest_lists_certificates_of_one_model_below_its_folder(batch: Path) -> None:
    other = batch.parent / "other.json"
    other.write_bytes((batch / "certificates" / "a.json").read_bytes())
    (batch / "no.json").write_text("{}")
    for files in ([], [other], [batch / "no.json"], [batch / "nowhere.json"]):
        with pytest.raises(InputError):
            write_manifest(batch, files)


# ---- signatures --------------------------------------------------------------------------------------------------------------


def test_signatures_of_a_batch_and_of_a_file(batch: Path) -> None:
    pytest.importorskip("cryptography")
    secret, other = batch.parent / "key.pem", batch.parent / "other.pem"
    assert lde("sign", "--new-key", secret).exit_code == 0
    assert secret.stat().st_mode & 0o077 == 0
    new_key(other)
    assert lde("sign", batch, "--key", secret).exit_code == 0
    assert lde("check", batch, "--key", f"{secret}.pub").exit_code == 0
    assert lde("check", batch, "--key", f"{other}.pub").exit_code == 2
    file = batch / "certificates" / "a.json"
    assert lde("check", file, "--key", f"{secret}.pub").exit_code == 2  # no signature beside it
    sign(file, secret)
    assert lde("check", file, "--key", f"{secret}.pub").exit_code == 0
    assert lde("check", file, "--key", f"{other}.pub").exit_code == 1
    rewritten(file, seed=7)
    assert not is_signed_by(file, f"{secret}.pub")
    for wrong in (lde("sign", batch), lde("sign", batch, "--key", f"{secret}.pub"), lde("sign", "--new-key", secret), lde("sign", "--key", secret),
                  lde("check", file, "--key", secret), lde("check", file, "--key", file), lde("sign", batch.parent, "--key", secret)):  # fmt: skip
        assert wrong.exit_code == 2
        assert "Traceback" not in wrong.output


def test_the_missing_package_is_named(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(DependencyError, match=r"lde-cvx\[sign\]"):
        sign(batch / NAME, batch / "key.pem")
    done = lde("sign", batch, "--key", batch / "key.pem")
    assert done.exit_code == 2
    assert "lde-cvx[sign]" in " ".join(done.stderr.split())


# ---- interruption ------------------------------------------------------------------------------------------------------------

BATCH = """
import sys
from pathlib import Path
from lde_cvx.manifest import write_manifest
from verification.certificate import Certificate
folder, certificate = Path(sys.argv[1]), Certificate.load(sys.argv[2])
print("ready", flush=True)
files = [certificate.save(folder / f"{k % 40}.json") for k in range(10**6)]
write_manifest(folder, files)
"""


def test_a_killed_batch_leaves_whole_files_only(tmp_path: Path) -> None:
    """kill -9 at a random moment, several times: every .json file is a valid certificate, and there is no manifest."""
    one = linear_certificate()[0].save(tmp_path / "one.json")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for trial in range(3):
        folder = tmp_path / str(trial)
        folder.mkdir()
        run = subprocess.Popen([sys.executable, "-c", BATCH, str(folder), str(one)], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.15 + 0.037 * trial)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        run.stdout.close()
        whole = sorted(folder.glob("*.json"))
        assert whole
        assert all(check_file(p).ok for p in whole)
        assert not (folder / NAME).exists()
