"""The configuration of an audit: a TOML file with the tables below, every key checked, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from lde_cvx import toml_files
from lde_cvx.methods import certifying
from lde_cvx.toml_files import Table, distinct, text_of, validated


class DataTable(Table):
    """`name`: a data set that ships with the package; or `path`: a CSV file with its label column and the label that means declined."""

    name: str | None = None
    path: str | None = None
    label: str = "class"
    declined: str = "bad"
    drop: list[str] = []
    test_fraction: float = Field(0.25, gt=0, lt=1)


class ModelTable(Table):
    """A multilayer perceptron trained here, deterministically."""

    hidden: list[int] = [32, 32]
    epochs: int = Field(60, ge=1, le=10_000)
    learning_rate: float = Field(1e-2, gt=0)
    weight_decay: float = Field(1e-2, ge=0)

    @field_validator("hidden")
    @classmethod
    def _sizes(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 1:
            raise ValueError("give at least one positive layer size")
        return value


class ChangesTable(Table):
    """What may change: the keywords of `Schema.from_frame`, in original units."""

    immutable: list[str] = []
    increasing: list[str] = []
    decreasing: list[str] = []
    categorical: list[str] = []
    relations: list[str] = []
    permitted_range: dict[str, list[Any]] = {}
    units: dict[str, str] = {}
    features_to_vary: list[str] | None = None
    budget: float | None = Field(None, ge=0)


class QuestionTable(Table):
    """Which applicants, measured how. `norms` in standardised units; `method` certifies, `seconds` is what branching may take for each of them."""

    applicants: int = Field(30, ge=1)
    norms: list[Literal[1, 2, "inf"]] = [1, 2]
    method: str = "crown"
    seconds: float | None = Field(None, gt=0)

    _norms = field_validator("norms")(distinct)
    _method = field_validator("method")(certifying)


class AuditConfig(Table):
    title: str = "Certified audit of declined applications"
    subtitle: str = "How far is each declined applicant from approval, which features decide it, and what may change?"
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataTable
    model: ModelTable = Field(default_factory=lambda: ModelTable.model_validate({}))
    changes: ChangesTable = Field(default_factory=lambda: ChangesTable.model_validate({}))
    question: QuestionTable = Field(default_factory=lambda: QuestionTable.model_validate({}))

    @property
    def sha256(self) -> str:
        """Hash of the meaning: the same whatever the order, spacing and comments of the file."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def embedded() -> list[str]:
    """Names of the configurations that ship with the package."""
    return toml_files.embedded("lde_cvx.configs")


def load_config(source: str | Path) -> tuple[AuditConfig, str]:
    """(configuration, its text) from a TOML file or an embedded name. Raises InputError, one line, naming the key and its value."""
    text = text_of(source, "lde_cvx.configs", "configuration")
    return validated(AuditConfig, text, source), text
