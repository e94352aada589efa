"""Finished measurements, kept in a growing file by what they depend on, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from formulations.errors import InputError
from lde_cvx.growing_file import add, records


class Kept:
    """Records by key, a line each; `take` measures what is not there yet. Raises InputError on a file that holds anything else; it is never overwritten.

    A key holds what a figure depends on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.records: dict[str, Any] = {r["key"]: r["record"] for r in records(path)}
        except KeyError:
            raise InputError(
                f"{path}: is no record of measurements; name another folder, or delete it to measure everything again."
            ) from None

    def take(self, key: str, measure: Callable[[], Any]) -> Any:
        """The record of `key`; where it is new, what `measure` answers is kept, None too (a failure is not tried again)."""
        if key not in self.records:
            self.records[key] = measure()
            add(self.path, {"key": key, "record": self.records[key]})
        return self.records[key]


def key(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def numbers(model: nn.Module, x: Tensor) -> str:
    """sha256 of a network's layers and weights and of the inputs."""
    h = hashlib.sha256(repr(model).encode())
    for v in (*model.state_dict().values(), x):
        h.update(str((v.dtype, tuple(v.shape))).encode() + v.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def source(*packages: str) -> str:
    """sha256 of the Python files of these folders of the installed code: what is measured again when it changes."""
    h = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            h.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return h.hexdigest()


def version(package: str) -> str:
    """The installed version; of what is no distribution, nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
