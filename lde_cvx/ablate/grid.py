"""The grid of an ablation: a TOML file, every key checked, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from formulations.errors import InputError
from formulations.sets import Box, ConvexSet, LpBall, TotalVariation
from lde_cvx.methods import CHAINS, known
from lde_cvx.toml_files import Table, distinct, file_text, validated


class SetTable(Table):
    """One convex set. `own` is the data set's: the box [0, 1] of images, the schema's polytope of tables. A list of tables is an intersection."""

    kind: Literal["all", "own", "box", "ball", "tv"]
    lower: float | None = None
    upper: float | None = None
    on: Literal["input", "change"] | None = None
    p: Literal[1, 2, "inf"] | None = None
    radius: float | None = Field(None, gt=0)
    budget: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> SetTable:
        needed = {"box": ("lower", "upper"), "ball": ("p", "radius"), "tv": ("budget",)}.get(self.kind, ())
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"a set of kind {self.kind!r} needs {' and '.join(missing)}")
        return self

    def build(self, own: ConvexSet, shape: tuple[int, ...]) -> ConvexSet | None:
        """The set over inputs of this shape. Raises InputError on total variation of anything but an image."""
        if self.kind == "all":
            return None
        if self.kind == "own":
            return own
        if self.kind == "box":
            assert self.lower is not None
            assert self.upper is not None
            return Box(self.lower, self.upper, on=self.on or "input")
        if self.kind == "ball":
            assert self.p is not None
            assert self.radius is not None
            return LpBall(self.p, self.radius)
        assert self.budget is not None
        if len(shape) != 2:
            raise InputError("ablate: a set of kind 'tv' needs images; this data set is a table.")
        return TotalVariation(self.budget, shape=shape)


class Grid(Table):
    """`norms` × `constraints` × `methods` × `orders` on the first `inputs` correctly classified held-out inputs of `data`.

    network      "relu" or "tanh"; temperature: of softened ReLUs for order 2, "auto" for a tenth of the pre-activations
    time_limit   seconds of the witness search of a chunk, and per program
    """

    title: str = "Ablation"
    data: Literal["digits", "german_credit", "mnist"]
    network: Literal["relu", "tanh"] = "relu"
    inputs: int = Field(20, ge=1, le=10_000)
    norms: list[Literal[1, 2, "inf"]] = [1, 2, "inf"]
    orders: list[Literal[1, 2]] = [1, 2]
    methods: list[str] = ["crown"]
    constraints: dict[str, SetTable | list[SetTable]]
    temperature: float | Literal["auto"] | None = None
    time_limit: float | None = Field(None, gt=0)
    chunk: int = Field(10, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)

    _each_once = field_validator("norms", "orders", "methods", "constraints")(distinct)

    @field_validator("methods")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        return [known(method) for method in value]

    @model_validator(mode="after")
    def _bounded(self) -> Grid:
        refused = next((method for method in self.methods if method in CHAINS), None)
        if self.network != "relu" and refused is not None:
            raise ValueError(f"methods: {refused!r} takes networks of affine layers and ReLUs alone, and network = {self.network!r}")
        return self

    @property
    def sha256(self) -> str:
        """Hash of the meaning: the same whatever the order, spacing and comments of the file. More inputs of the same grid are the same grid."""
        meaning = self.model_dump(exclude={"title", "inputs", "chunk"})
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def set_of(self, name: str, own: ConvexSet, shape: tuple[int, ...]) -> ConvexSet | None:
        """The named set, an intersection where it is a list."""
        given = self.constraints[name]
        out: ConvexSet | None = None
        for table in given if isinstance(given, list) else [given]:
            one = table.build(own, shape)
            out = one if out is None else out if one is None else out & one
        return out


def load_grid(path: str | Path) -> Grid:
    """The grid of a TOML file. Raises InputError, one line, naming the key and its value."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: is no file; give the path of a grid.")
    return validated(Grid, file_text(file), file)
