"""The configuration of a comparison: a TOML file with the tables below, every key checked, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lde_cvx import toml_files
from lde_cvx.toml_files import Table, distinct, text_of, validated


class CaseTable(Table):
    """A case that the package builds (`name`), or a `model` file (.safetensors, .onnx) with `inputs` (.npy, (n, *shape)) and the `box` they live in."""

    name: Literal["mnist_cnn", "german_credit", "digits"] | None = None
    model: str | None = None
    inputs: str | None = None
    box: list[float] | None = None
    count: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> CaseTable:
        if (self.name is None) == (self.model is None or self.inputs is None):
            raise ValueError("give either name, or model and inputs")
        if self.box is not None and (len(self.box) != 2 or not self.box[0] < self.box[1]):
            raise ValueError("box must be [low, high]")
        return self


class MetricsTable(Table):
    """Which metrics. fill: what replaces features ("reference": the training mean where the case has one); steps of the curves; noise and repeats of stability."""

    names: list[Literal["deletion", "insertion", "key_size", "ordering", "stability", "seconds", "cpu_seconds", "memory"]] = [
        "deletion", "insertion", "key_size", "stability", "seconds",
    ]  # fmt: skip
    fill: Literal["zero", "mean", "blur", "noise", "reference"] = "zero"
    steps: int = Field(50, ge=1)
    noise: float = Field(0.05, gt=0, allow_inf_nan=False)
    repeats: int = Field(3, ge=1)

    _names = field_validator("names")(distinct)


class MethodTable(Table):
    """`kind` is lde, leg, leg-tv, rate-distortion, or baseline with its `method`; `settings` are the keywords of that explainer; a baseline's

    reference = "case" is what stands for a removed feature in the case (the training mean, or 0), and `reading` of lde is "scores" or "contributions" to that."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9 ._()+×αβε-]+$")
    kind: Literal["lde", "leg", "leg-tv", "rate-distortion", "baseline"]
    method: str | None = None
    settings: dict[str, Any] = {}

    @model_validator(mode="after")
    def _named(self) -> MethodTable:
        if (self.kind == "baseline") != (self.method is not None):
            raise ValueError("method names a baseline: give it for kind = 'baseline' and for no other")
        return self


class CompareConfig(Table):
    title: str = "Explanation methods side by side"
    seed: int = Field(0, ge=0, lt=2**31)
    case: CaseTable
    metrics: MetricsTable = Field(default_factory=lambda: MetricsTable.model_validate({}))
    methods: list[MethodTable] = Field(min_length=1)

    @field_validator("methods")
    @classmethod
    def _distinct(cls, value: list[MethodTable]) -> list[MethodTable]:
        names = [m.name for m in value]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(f"the name {twice!r} is used twice")
        return value

    @property
    def sha256(self) -> str:
        """Hash of what decides a cell's value: everything but the title, how many inputs, and which methods and metrics are asked."""
        kept = self.model_dump(exclude={"title", "methods"})
        kept["case"].pop("count")
        kept["metrics"].pop("names")
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def method_hash(method: MethodTable) -> str:
    """Hash of one method's definition, kept with its cells."""
    return hashlib.sha256(json.dumps(method.model_dump(exclude={"name"}), sort_keys=True).encode()).hexdigest()[:12]


def embedded() -> list[str]:
    """Names of the comparisons that ship with the package."""
    return toml_files.embedded("lde_cvx.compare")


def load_config(source: str | Path) -> CompareConfig:
    """The configuration of a TOML file or an embedded name. Raises InputError, one line, naming the key and its value."""
    return validated(CompareConfig, text_of(source, "lde_cvx.compare", "comparison"), source)
