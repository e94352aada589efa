"""Running a grid: a tidy CSV that grows chunk by chunk, and goes on where it stopped.

One line is one input under one norm, set, method and order; `radius`, `validity` and `certified_fraction` are those of the local model of that order (1 the
linearised, 2 the quadratic one); `lower` and `upper` are the network's own and do not depend on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lde_cvx.ablate.cases import Case, build_case
from lde_cvx.ablate.grid import Grid
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.explanation import Explanation
from lde_cvx.growing_table import GrowingTable
from lde_cvx.interrupts import only_finished, until_interrupted
from lde_cvx.progress import silent
from lde_cvx.second_order import suggested_temperature

if TYPE_CHECKING:
    import pandas as pd

TABLE, KEY = "ablation.csv", "grid.json"
COLUMNS = (
    "data", "network", "norm", "set", "method", "order", "input", "lower", "upper", "gap", "radius", "validity", "certified_fraction", "flat",
    "target", "multiplier", "verdict", "seconds",
)  # fmt: skip

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Cell:
    """One norm, set and method; orders share the work."""

    norm: Any
    set: str
    method: str

    @property
    def label(self) -> str:
        return f"{_norm_name(self.norm)}, {self.set}, {self.method}"


def run_grid(grid: Grid, folder: Path, tell: Tell = lambda *_: None) -> pd.DataFrame:
    """Every line of the grid, those of an earlier run of the same grid included. Interrupt it at any time: whole chunks are kept.

    Raises InputError when the folder holds another grid's table, on anything wrong in the grid (before the first line), and where the data is not here.
    """

    folder.mkdir(parents=True, exist_ok=True)
    lines = GrowingTable(folder / TABLE, folder / KEY, COLUMNS, "grid")
    lines.claim(grid.model_dump(), grid.sha256)
    case = build_case(grid, folder)
    temperature = suggested_temperature(case.model, case.x) if grid.temperature == "auto" else grid.temperature
    cells = [Cell(p, name, method) for p in grid.norms for name in grid.constraints for method in grid.methods]
    explainers = {cell: _explainer(grid, cell, case, temperature) for cell in cells}
    done = {(r["norm"], r["set"], r["method"], int(r["order"]), int(r["input"])) for r in lines.kept()}
    with only_finished() as finished:
        for at, cell in enumerate(cells):
            name = _norm_name(cell.norm)
            missing = [i for i in range(len(case.x)) if any((name, cell.set, cell.method, o, i) not in done for o in grid.orders)]
            for start in range(0, len(missing), grid.chunk):
                tell(f"{at + 1}/{len(cells)} {cell.label}", len(case.x) - len(missing) + start, len(case.x))
                index = missing[start : start + grid.chunk]
                found = finished(explainers[cell].explain(case.x[index], progress=until_interrupted(silent, finished)))
                each = zip(index, found if isinstance(found, list) else [found], strict=True)
                rows = [row for i, e in each for row in _rows(grid, cell, i, e)]
                lines.append([r for r in rows if (name, cell.set, cell.method, r["order"], r["input"]) not in done])
            tell(f"{at + 1}/{len(cells)} {cell.label}", len(case.x), len(case.x))
    return read_table(folder / TABLE)


def read_table(path: Path) -> pd.DataFrame:
    """The table of a run. Numbers stay numbers where a line has none: `nan`, or nothing; names such as "none" stay names."""
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])


def _explainer(grid: Grid, cell: Cell, case: Case, temperature: float | None) -> LagrangeDualExplainer:
    order = max(grid.orders)
    return LagrangeDualExplainer(
        case.model, norm=cell.norm, constraints=grid.set_of(cell.set, case.own, case.image), method=cell.method, order=order, seed=grid.seed,
        time_limit=grid.time_limit, temperature=temperature if order == 2 else None,
    )  # fmt: skip


def _rows(grid: Grid, cell: Cell, i: int, e: Explanation) -> Iterator[dict[str, Any]]:
    for order in grid.orders:
        q = e.quadratic if order == 2 else None
        yield {
            "data": grid.data, "network": grid.network, "norm": _norm_name(cell.norm), "set": cell.set, "method": cell.method, "order": order, "input": i,
            "lower": e.lower, "upper": e.upper, "gap": e.gap, "radius": e.linear_radius if q is None else q.radius,
            "validity": (e.linear_validity if q is None else q.validity).name.lower(),
            "certified_fraction": e.linear_certified_fraction if q is None else q.certified_fraction, "flat": "" if q is None else q.flat,
            "target": e.target, "multiplier": e.margin_multiplier, "verdict": e.verdict.name, "seconds": e.seconds,
        }  # fmt: skip


def _norm_name(p: Any) -> str:
    return f"l{p}"
