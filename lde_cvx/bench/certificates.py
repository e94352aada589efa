"""`lde bench certificates`: certificates of the benchmark networks, by every method and in every norm, made as the explainer makes them and checked at levels A and B.

A certificate is kept as soon as it is made, an answer of the checker as soon as it is given (one JSON object a line), so that a killed run goes on where it
was. The table counts, per network, norm and method, what the checker answers; `above` counts files that publish more than it proves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from formulations.errors import InputError
from formulations.norms import Norm
from lde_cvx.bench.networks import Case, digits, german_credit, mnist_cnn, mnist_conv, mnist_mlp, verix
from lde_cvx.bench.table import show, write_whole
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.growing_file import add, records
from lde_cvx.interrupts import Finished, only_finished
from lde_cvx.model_files import save_model
from verification.checker import CheckStatus, check_file

RESULTS, MODEL = "certificates.jsonl", "model.safetensors"
CHUNK = 20  # inputs that are explained together
PATIENCE = 3.0  # seconds of branching an input


@dataclass(frozen=True, eq=False)
class Plan:
    """How many inputs of a network each method is asked about, in each of its norms."""

    folder: str
    build: Callable[[int], Case]
    inputs: Mapping[str, int]


def plans(cache: Path, *, quick: bool) -> list[Plan]:
    """More than a thousand files (twelve when quick), of all layers and methods that there are."""
    small = [
        Plan("digits", digits, {"crown": 60, "crown-ibp": 40, "ibp": 40, "alpha-crown": 20, "branching": 50, "exact": 10}),
        Plan("credit", german_credit, {"crown": 60, "crown-ibp": 30, "ibp": 20, "alpha-crown": 20, "branching": 50, "exact": 10}),
    ]
    if quick:
        return [Plan(p.folder, p.build, {"crown": 1, "branching": 1}) for p in small]
    return [
        *small,
        Plan("mnist-mlp", lambda n: mnist_mlp(n, cache), {"crown": 20, "crown-ibp": 5, "alpha-crown": 3, "branching": 3}),
        Plan("mnist-mlp-linf", lambda n: replace(mnist_mlp(n, cache), norms=("inf",)), {"branching": 20}),  # lines over the box of changes
        Plan("mnist-conv", lambda n: mnist_conv(n, cache), {"crown": 8, "crown-ibp": 4, "alpha-crown": 2, "branching": 2}),
        Plan("verix", verix, {"crown": 20, "crown-ibp": 10, "alpha-crown": 5, "branching": 20}),
        Plan("mnist-cnn", mnist_cnn, {"crown": 3, "crown-ibp": 3}),
    ]


def make(plan: Plan, out: Path, device: str, tell: Callable[[str], object], finished: Finished) -> Iterator[tuple[Path, str, str, str]]:
    """(file, network, norm, method) of every certificate of a plan; those that are not there yet are made, on the device."""
    case, folder = plan.build(max(plan.inputs.values())), out / plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    save_model(case.model, folder / MODEL)
    for method, count in plan.inputs.items():
        for norm in case.norms:
            files = [folder / f"{method}-{norm}-{i}.json" for i in range(min(count, len(case.x)))]
            missing = [i for i, path in enumerate(files) if not path.exists()]
            if missing:
                tell(f"{case.name}, {Norm.of(norm).label}, {method}: {len(missing)} certificates …")
                limit = PATIENCE if method == "branching" else None
                explainer = LagrangeDualExplainer(
                    case.model, norm=norm, constraints=case.constraints, method=method, time_limit=limit, device=device, rederive=True
                )
                for part in (missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)):
                    explained = finished(explainer.explain(case.x[part], quiet=True))
                    for i, found in zip(part, explained if isinstance(explained, list) else [explained], strict=True):
                        found.certificate.save(files[i])
            yield from ((path, case.name, Norm.of(norm).label, method) for path in files)


def check(path: Path, model: Path) -> dict[str, Any]:
    """What the checker says of one file at levels A and B, and in how many seconds of the processor."""
    answers: dict[str, Any] = {"bytes": path.stat().st_size}
    for level in ("A", "B"):
        begun = time.process_time()
        report = check_file(path, level=level, model=model)
        answers |= {level: report.status.name, f"seconds {level}": time.process_time() - begun}
    return {
        **answers,
        "lower": repr(report.lower),
        "above": not report.lower <= report.proved,
        "reasons": [r[:300] for r in report.reasons[:3]],
    }


def answers(out: Path) -> dict[str, dict[str, Any]]:
    """Finished checks by file, from an earlier run."""
    try:
        return {r["file"]: r for r in records(out / RESULTS)}
    except KeyError:
        raise InputError(f"{out / RESULTS}: is no record of checks; name another folder.") from None


def table(found: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per network, norm and method."""
    rows = []
    for (network, norm, method), part in pd.DataFrame(found).groupby(["network", "norm", "method"], sort=False):
        row: dict[str, object] = {"network": network, "norm": norm, "method": method, "files": len(part)}
        for level in ("A", "B"):
            row |= {f"{level} {s.name.lower().replace('_', ' ')}": int((part[level] == s.name).sum()) for s in CheckStatus}
        row |= {"above": int(part["above"].sum()), "kB": float(part["bytes"].mean() / 1e3)}
        row |= {
            f"s {level}, {name}": float(f(part[f"seconds {level}"]))
            for level in "AB"
            for name, f in (("mean", pd.Series.mean), ("worst", max))
        }
        rows.append(row)
    return pd.DataFrame(rows)


def bench(out: Path, *, device: str = "cpu", quick: bool = False, console: Console | None = None) -> pd.DataFrame:
    """Make and check them all; prints the table and every answer that is not "valid", writes `certificates.csv`. An interrupt keeps what is done."""
    console = console or Console()
    tell: Callable[[str], object] = console.print
    found: list[dict[str, Any]] = []
    done = answers(out)
    try:
        for plan in plans(out, quick=quick):
            try:
                with only_finished() as finished:
                    made = list(make(plan, out, device, tell, finished))
            except InputError as reason:
                tell(f"{plan.folder}: left out: {reason}")
                continue
            for path, network, norm, method in made:
                name = f"{plan.folder}/{path.name}"
                if name not in done:
                    done[name] = {"file": name, "network": network, "norm": norm, "method": method, **check(path, path.parent / MODEL)}
                    add(out / RESULTS, done[name])
                found.append(done[name])
                if found[-1]["reasons"]:
                    console.print(f"{name}: {found[-1]['A']}, {found[-1]['B']}: {found[-1]['reasons'][0]}", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("interrupted: the table holds what was checked; the same command goes on from there")
    if not found:
        return pd.DataFrame()
    frame = table(found)
    show(frame, f"{len(found)} certificates, as the checker answers", console)
    console.print(str(write_whole(out / "certificates.csv", lambda path: frame.to_csv(path, index=False))))
    return frame
