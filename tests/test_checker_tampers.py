"""Every number of a certificate, changed alone: what the checker still accepts is true, says a solver of the evidence, and the network's own radius.

Each change is tried as it is and once more with the published bounds raised to the most that the checker would allow.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from formulations.norms import GroupNorm, Norm
from formulations.sets import Box
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.model_files import checker_network
from lde_cvx.models import mlp
from tests.certificate_example import linear_certificate, rehashed, relu_pieces
from tests.checker_example import stored
from tests.judges import follows, nearest_on_a_grid, true_of
from tests.test_certificate_trees import all_pieces, two_layers
from verification.branching import branch
from verification.certificate_format import parse
from verification.checker import CheckStatus, check_file, check_record
from verification.checking.document import Document, Verdict
from verification.checking.rationals import bound_down
from verification.checking.text import FormatError, canonical, input_hash
from verification.checking.theorem import row_bounds

FREE = ("seed", "versions", "notes", "provenance", "command")  # no claim rests on them
REAL = re.compile(r"-?(0x[01]\.[0-9a-f]+p[+-]\d+|inf)")
CODES = re.compile(r"([0-9a-f]{2})+|[-+0]+")  # slopes in 1/255, and turns
Judge = Callable[[Document], bool]


@dataclass(frozen=True, eq=False)
class Source:
    """An honest certificate; with the file of its model, and a judge of claims about it, level B is asked as well."""

    name: str
    record: dict[str, Any]
    model: Path | None = None
    judge: Judge | None = None


def explained(name: str, net: nn.Module, x0: np.ndarray, norm: Any, method: str, folder: Path, judge: Judge) -> Source:
    found = LagrangeDualExplainer(
        net, norm=norm, constraints=Box(0, 1), method=method, time_limit=2.0 if method == "branching" else None
    ).explain(x0, quiet=True)
    return Source(name, found.certificate.record, stored(net, folder, name), judge)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("tampered")
    out = [Source("linear", linear_certificate(norm, seed=seed)[0].record) for norm, seed in
           ((1, 3), (2, 4), ("inf", 3), (Norm(2, np.linspace(0.8, 1.2, 6)), 4), (GroupNorm([[0, 1, 2], [3, 4], [5]]), 3))]  # fmt: skip
    out.append(Source("pieces", relu_pieces()[0].record))
    for norm in (1, 2, "inf"):
        case = all_pieces(norm)
        path = stored(case.model, folder, f"tree-{norm}")
        out.append(Source("tree", case.certificate.record, path, lambda doc, model=case.model: true_of(doc, model)))
    case = two_layers(2)
    case.certify(case.branched())
    out.append(
        Source("deep tree", case.certificate.record, stored(case.model, folder, "deep"), lambda doc, model=case.model: true_of(doc, model))
    )
    case = two_layers("inf")  # on lines over the box of changes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branch, "HARD", np.inf)
        case.certify(case.branched())
    network = checker_network(case.model, (6,))
    assert network is not None
    case.certificate = case.certificate.settled(network)
    out.append(Source("box", case.certificate.record, stored(case.model, folder, "box"), lambda doc, model=case.model: true_of(doc, model)))
    deep = mlp((3, 4, 4, 3), seed=7)
    with torch.no_grad():
        y = deep(torch.full((1, 3), 0.5, dtype=torch.float64))[0]
        deep[-1].bias += 0.9 * (y.max() - y)
    out.append(explained("alpha-crown", deep, np.full(3, 0.5), 2, "alpha-crown", folder, lambda doc: true_of(doc, deep)))
    torch.manual_seed(2)
    bent = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double().requires_grad_(False)
    with torch.no_grad():
        for p in bent.parameters():
            p.mul_(3.0)
        y = bent(torch.full((1, 2), 0.5, dtype=torch.float64))[0]
        bent[-1].bias += 0.8 * (y.max() - y)
    out.append(explained("inputs", bent, np.full(2, 0.5), "inf", "branching", folder, lambda doc: nearest_on_a_grid(doc, bent)))
    return out


def numbers(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of every number, whole or real."""
    if isinstance(node, dict):
        for k, v in node.items():
            if k not in FREE and k not in ("sha256", "architecture", "label"):
                yield from numbers(v, (*path, k))
    elif isinstance(node, list):
        for i, v in enumerate(node):
            yield from numbers(v, (*path, i))
    elif type(node) is int or (isinstance(node, str) and (REAL.fullmatch(node) or ("relaxation" in path and CODES.fullmatch(node)))):
        yield path


def field_of(path: tuple[Any, ...]) -> str:
    return ".".join(k for k in path if isinstance(k, str))


def other(value: Any, rng: np.random.Generator) -> Any:
    if type(value) is int:
        return int(rng.choice([value + 1, value - 1, -value, 0, 1, 2 * value + 1, 2**52]))
    if not REAL.fullmatch(value):
        at, signs = int(rng.integers(len(value))), "+-0" if set(value) <= set("+-0") else "0f7"
        return value[:at] + str(rng.choice([c for c in signs if c != value[at]])) + value[at + 1 :]
    v = float.fromhex(value)
    ways = [v * f for f in (0.0, -0.0, 0.5, 0.99, 1.01, 1.5, 2.0, -1.0, 1e6)] + [v + s for s in (1e-3, -1e-3, 0.1, -0.1)]
    ways += [math.nextafter(v, math.inf), math.nextafter(v, -math.inf), math.inf, -math.inf, 5e-324, 1e308]
    return float(rng.choice(np.nan_to_num(ways, nan=0.0, posinf=math.inf, neginf=-math.inf))).hex()


def changed(record: dict[str, Any], path: tuple[Any, ...], rng: np.random.Generator) -> dict[str, Any]:
    out = copy.deepcopy(record)
    node = out
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = other(node[path[-1]], rng)
    if path[0] == "input":
        out["input"]["sha256"] = input_hash([float.fromhex(v) for v in out["input"]["x0"]])
    return rehashed(out)


def bold(record: dict[str, Any]) -> dict[str, Any] | None:
    """The same with all the checker would allow it to publish; None where the evidence cannot be read."""
    try:
        doc = parse(record)
    except FormatError:
        return None
    out, bounds = copy.deepcopy(record), [bound_down(b) for b in row_bounds(doc)]
    for rival, bound in zip(out["rivals"], bounds, strict=True):
        rival["lower"] = bound.hex()
    lower = min(*bounds, doc.upper) if doc.upper < math.inf else min(bounds)
    out["lower"], out["verdict"] = lower.hex(), Verdict.of(lower, doc.upper).name
    return rehashed(out)


def accepted(source: Source, record: dict[str, Any], folder: Path) -> list[str]:
    """Levels that say "valid"; each such claim is judged."""
    report = check_record(record)
    assert all("\n" not in r for r in report.reasons)
    if report.status is not CheckStatus.VALID:
        return []
    doc, levels = parse(record), ["A"]
    assert follows(doc), "level A accepts what does not follow from the evidence"
    if source.model is not None and source.judge is not None:
        (folder / "c.json").write_bytes(canonical(record))
        if check_file(folder / "c.json", level="B", model=source.model).ok:
            levels.append("B")
            assert source.judge(doc), "level B accepts what is false of the network"
    return levels


def campaign(sources: list[Source], each: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """`each` changes of every field of every source, both ways; what was refused and accepted, by field."""
    rng, told = np.random.default_rng(seed), dict[str, Counter[str]]()
    for source in sources:
        for level in ("A", "B") if source.model is not None else ("A",):
            assert level in accepted(source, source.record, folder), (source.name, "the honest file itself")
        fields: dict[str, list[tuple[Any, ...]]] = {}
        for path in numbers(source.record):
            fields.setdefault(field_of(path), []).append(path)
        for name, paths in fields.items():
            count = told.setdefault(name, Counter())
            for _ in range(each):
                path = paths[int(rng.integers(len(paths)))]
                one = changed(source.record, path, rng)
                for record in (one, bold(one)):
                    if record is None or record == source.record:
                        continue
                    try:
                        levels = accepted(source, record, folder)
                    except AssertionError as error:
                        raise AssertionError(f"{source.name}, {path}: {error}") from None
                    count.update(["tampers", *(f"accepted at {level}, and true" for level in levels)] + ["refused"] * (not levels))
    return told


def test_single_numbers_changed_never_pass_for_a_false_claim(sources: list[Source], tmp_path: Path) -> None:
    told = campaign([sources[1], sources[7], sources[-1]], 1, 0, tmp_path)
    assert sum(c["refused"] for c in told.values()) > 50
    assert sum(c["accepted at A, and true"] for c in told.values()) > 20
    assert sum(c["accepted at B, and true"] for c in told.values()) > 10


@pytest.mark.slow
def test_five_thousand_tampers(sources: list[Source], tmp_path: Path) -> None:
    told = campaign(sources, 10, 1, tmp_path)
    for name, count in sorted(told.items()):
        print(f"{name:45} {dict(count)}")
    total = sum((c for c in told.values()), Counter[str]())
    print(f"{len(told)} fields, {dict(total)}, false: 0")
    assert total["tampers"] >= 5000
    assert len(told) >= 40
