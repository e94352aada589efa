"""What an audit is about, fixed before anything is written: configuration, data, schema, network, applicants."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import lde_cvx
from formulations.errors import InputError
from formulations.norms import Array, Norm
from formulations.semantic import Schema
from lde_cvx.auditing.config import AuditConfig, load_config
from lde_cvx.auditing.data import read_data
from lde_cvx.data import Dataset
from lde_cvx.models import TrainedModel, train_mlp
from verification.certificate import ModelRecord

SCHEMA = "lde-audit/1"


@dataclass(frozen=True, eq=False)
class Case:
    """`applicants` are the row numbers of declined rows of the test split; `key` identifies configuration, data, network and source code."""

    config: AuditConfig
    config_text: str
    name: str
    data: Dataset
    schema: Schema
    trained: TrainedModel
    features: Array
    declined: int
    applicants: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    limit: int | None
    key: str

    @property
    def norms(self) -> list[Norm]:
        return [Norm(p) for p in self.config.question.norms]


def prepare(source: str | Path, limit: int | None = None) -> Case:
    """Reads the configuration, trains the network and picks applicants. Writes nothing; raises InputError on anything that cannot work."""
    config, text = load_config(source)
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} must be at least 1.")
    data = read_data(config)
    schema = Schema.from_frame(data.X, **config.changes.model_dump())
    features = schema.encode(data.X)
    m = config.model
    trained = train_mlp(
        features, data.y, hidden=m.hidden, seed=config.seed, epochs=m.epochs, learning_rate=m.learning_rate, weight_decay=m.weight_decay,
        test_fraction=config.data.test_fraction,
    )  # fmt: skip
    declined = data.classes.index(config.data.declined)
    with torch.no_grad():
        answers = trained.model(torch.as_tensor(features)).argmax(1).numpy()
    wanted = min(config.question.applicants, limit or config.question.applicants)
    chosen: list[int] = []
    skipped: list[tuple[str, str]] = []
    for row in trained.test_rows:
        if len(chosen) == wanted:
            break
        if answers[row] != declined:
            continue
        outside = schema.violations(features[row])
        if outside:
            skipped.append((applicant_id(row), f"outside its own schema: {'; '.join(outside)}"))
        else:
            chosen.append(int(row))
    if not chosen:
        raise InputError(
            f"{source}: the network declines none of the {len(trained.test_rows)} test rows; check data.declined and the model."
        )
    parts = (SCHEMA, source_sha256(), config.sha256, data.sha256, ModelRecord.of(trained.model).sha256)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Case(config, text, str(source), data, schema, trained, features, declined, tuple(chosen), tuple(skipped), limit, key)


def source_sha256() -> str:
    """Hash of the Python sources of the three packages, paths and contents: what computed the numbers."""
    root = Path(lde_cvx.__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for package in ("formulations", "verification", "lde_cvx") for p in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def applicant_id(row: int) -> str:
    return f"applicant-{row:04d}"


def norm_name(norm: Norm) -> str:
    return "linf" if norm.p == np.inf else f"l{int(norm.p)}"
