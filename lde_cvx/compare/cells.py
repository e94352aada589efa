"""The cells of a comparison: one line of `cells.csv` per method, input and metric, appended whole; a run that was cut goes on after the last whole line.

Inputs come first: every method and metric of input 0, then of input 1, so that a run cut at any time compares all methods on the same inputs.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from formulations.errors import InputError
from formulations.norms import Array
from formulations.whole_file import whole_file
from lde_cvx import metrics as measures
from lde_cvx.attribution import Explainer
from lde_cvx.compare.cases import Case, build, load_case
from lde_cvx.compare.config import CompareConfig, MethodTable, method_hash
from lde_cvx.growing_table import GrowingTable
from lde_cvx.interrupts import Finished, only_finished

STAMP = "comparison.json"
COSTS = ("seconds", "cpu_seconds", "memory")
HEADER = ("method", "definition", "input", "metric", "value")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Cell:
    method: str
    definition: str
    input: int
    metric: str
    value: float


class CellStore:
    """`cells.csv` in a folder, with `comparison.json` that says which configuration its cells belong to. Raises InputError where they are another's."""

    def __init__(self, folder: Path, config: CompareConfig) -> None:
        self.folder = folder
        self.table = GrowingTable(folder / "cells.csv", folder / STAMP, HEADER, "comparison")
        self.table.claim(config.model_dump(), config.sha256)
        (folder / "maps").mkdir(exist_ok=True)
        self.cells: dict[tuple[str, int, str], Cell] = {}
        for row in self.table.kept():
            self._know(Cell(row["method"], row["definition"], int(row["input"]), row["metric"], float(row["value"])))

    def has(self, method: MethodTable, i: int, metric: str) -> bool:
        return (method_hash(method) + method.name, i, metric) in self.cells

    def value(self, method: MethodTable, i: int, metric: str) -> float | None:
        cell = self.cells.get((method_hash(method) + method.name, i, metric))
        return None if cell is None else cell.value

    def add(self, method: MethodTable, i: int, metric: str, value: float) -> None:
        cell = Cell(method.name, method_hash(method), i, metric, float(value))
        self.table.append([{**asdict(cell), "value": repr(cell.value)}])
        self._know(cell)

    def _know(self, cell: Cell) -> None:
        self.cells[(cell.definition + cell.method, cell.input, cell.metric)] = cell

    def map_path(self, method: MethodTable, i: int) -> Path:
        return self.folder / "maps" / f"{method_hash(method)}-{i}.npy"

    def map_of(self, method: MethodTable, i: int) -> Array | None:
        path = self.map_path(method, i)
        return np.load(path, allow_pickle=False) if path.is_file() else None


def write_atomically(path: Path, data: bytes) -> None:
    """All or nothing: a temporary neighbour, then a rename."""
    with whole_file(path) as draft:
        draft.write_bytes(data)


@dataclass(frozen=True, eq=False)
class _Finishing:
    """The explainer, for whom an interrupt that a search has answered is an interrupt still: no map or stability of a search cut short is kept."""

    explainer: Explainer
    finished: Finished

    def attribute(self, inputs: Tensor, target: Any = None) -> Tensor:
        return self.finished(self.explainer.attribute(inputs, target))

    def explain(self, x0: Any) -> Any:
        return self.finished(self.explainer.explain(x0))


def run(config: CompareConfig, folder: Path, tell: Progress = lambda *_: None) -> tuple[Case, CellStore]:
    """Every cell that is not there yet. Raises InputError before anything is written when a method or metric cannot be asked about the first input."""
    case = load_case(config.case)
    explainers = [build(m, case, config.seed) for m in config.methods]
    warm: set[str] = set()
    if not (folder / STAMP).is_file():
        _try_all(config, case, explainers)
        warm = {m.name for m in config.methods}
    store = CellStore(folder, config)
    done, total = 0, len(case.x) * len(config.methods)
    with only_finished() as finished:
        for i in range(len(case.x)):
            for method, explainer in zip(config.methods, explainers, strict=True):
                missing: list[str] = [k for k in config.metrics.names if not store.has(method, i, k)]
                if missing:
                    if method.name not in warm:  # what is loaded and prepared once is no part of an explanation's time
                        explainer.attribute(case.x[i : i + 1])
                        warm.add(method.name)
                    _fill(config, case, store, method, _Finishing(explainer, finished), i, missing)
                done += 1
                tell(f"input {i}: {method.name}", done, total)
    return case, store


def _try_all(config: CompareConfig, case: Case, explainers: list[Explainer]) -> None:
    """The first input's map by every method, and every metric of the last of them."""
    x = case.x[:1]
    for method, explainer in zip(config.methods, explainers, strict=True):
        try:
            maps = explainer.attribute(x)
        except InputError as error:
            raise InputError(f"methods.{method.name}: {error}") from None
    for name in config.metrics.names:
        if name not in (*COSTS, "stability"):  # which asks for more maps, and nothing else
            _metric(name, config, case, explainers[-1], x, maps)


def _fill(
    config: CompareConfig, case: Case, store: CellStore, method: MethodTable, explainer: Explainer, i: int, missing: list[str]
) -> None:
    x, stored = case.x[i : i + 1], store.map_of(method, i)
    if stored is None or set(COSTS) & set(missing):
        cost = measures.measure(lambda: explainer.attribute(x))
        stored = np.asarray(cost.result.detach().cpu().numpy())
        buffer = io.BytesIO()
        np.save(buffer, stored)
        write_atomically(store.map_path(method, i), buffer.getvalue())
        for name, value in zip(COSTS, (cost.seconds, cost.cpu_seconds, cost.peak_bytes / 2**20), strict=True):
            if name in missing:
                store.add(method, i, name, value)
    maps = torch.as_tensor(stored)
    for name in missing:
        if name not in COSTS:
            store.add(method, i, name, _metric(name, config, case, explainer, x, maps))


def _metric(name: str, config: CompareConfig, case: Case, explainer: Explainer, x: Tensor, maps: Tensor) -> float:
    asked, seed = config.metrics, config.seed
    fill = asked.fill if asked.fill != "reference" else case.reference
    if fill is None:
        raise InputError("metrics.fill: this case has no reference; use zero, mean, blur or noise.")
    if name == "deletion":
        return float(measures.deletion(case.model, x, maps, fill=fill, steps=asked.steps, seed=seed).area[0])
    if name == "insertion":
        return float(measures.insertion(case.model, x, maps, fill=fill, steps=asked.steps, seed=seed).area[0])
    if name == "key_size":
        return float(measures.key_size(case.model, x, maps, fill=fill, steps=max(asked.steps, 100), seed=seed)[0])
    if name == "ordering":
        group = max(1, x[0].numel() // asked.steps)
        return float(measures.ordering_test(case.model, x, maps, group=group, samples=16, seed=seed).area[0])
    found = measures.stability_under_noise(
        explainer, case.model, x, sigma=asked.noise, repeats=asked.repeats, box=case.box,
        allowed=None if case.box is not None else case.constraints, maps=maps, seed=seed,
    )  # fmt: skip
    return float(found.rank[0])
