"""The campaign: case after case into an append-only file, one JSON object a line; a killed run loses the case it was at, and the next call goes on."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lde_cvx
from formulations.errors import InputError
from lde_cvx import growing_file
from lde_cvx.campaign import laws
from lde_cvx.campaign.attacks import Ground, attack
from lde_cvx.campaign.cases import Case, case, evaluate32
from lde_cvx.campaign.networks import save
from lde_cvx.campaign.rounding import float32_error
from lde_cvx.explainer import LagrangeDualExplainer
from lde_cvx.interrupts import only_finished
from lde_cvx.methods import SEARCHES
from lde_cvx.models import one_thread
from verification.certificate import Certificate, ContradictionError
from verification.certificate_format import parse
from verification.checker import check_file, check_record
from verification.decision import Decision
from verification.radius import certified_radius
from verification.rechecking.network import read_model

RESULTS = "campaign.jsonl"
FORMAT = "lde-campaign/2"
BUDGET = 1.0  # seconds of a witness search, and of one certified radius
PASSES = 5  # of a certified radius without a witness
SEARCHED = (2, 4)  # last digits of the cases in which the witness search runs a second time, from other starts
HOSTILE = (
    "cancelling",
    "forgetful",
)  # built to make float64 wrong: that the explainer notices a contradiction, and claims nothing, is right

Tell = Callable[[int, int], None]


@dataclass
class Summary:
    """What the finished cases say together."""

    cases: int = 0
    certified: int = 0
    points: int = 0
    unsound: int = 0
    rounding: int = 0
    invalid: int = 0
    level: dict[str, dict[str, int]] = field(default_factory=lambda: {"A": {}, "B": {}, "settled": {}})
    laws: dict[str, list[float]] = field(default_factory=dict)
    broken: int = 0
    float32_flips: int = 0
    float32_excess: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    families: dict[str, int] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """No claim was refuted, no certificate refused, no law broken, no float32 output beyond its bound."""
        return not (self.unsound or self.invalid or self.broken or self.float32_excess)

    def add(self, r: dict[str, Any]) -> None:
        self.cases += 1
        self.seconds += r["seconds"]
        self.families[r["family"]] = self.families.get(r["family"], 0) + 1
        if r["refused"] is not None:
            self.refused[r["refused"]] = self.refused.get(r["refused"], 0) + 1
            return
        self.certified += float(r["lower"]) > 0
        self.points += r["points"]
        self.rounding += r["rounding"]
        self.float32_flips += r["float32_flips"]
        answers = [r[level] for level in self.level]
        bad = r["unsound"] > 0 or "INVALID" in answers or r["law_broken"] or r["float32_excess"] > 0
        self.unsound += r["unsound"] > 0
        self.invalid += "INVALID" in answers
        self.broken += bool(r["law_broken"])
        self.float32_excess += r["float32_excess"]
        for level, answer in zip(self.level, answers, strict=True):
            self.level[level][answer] = self.level[level].get(answer, 0) + 1
        if r["law"] != "none":
            self.laws.setdefault(r["law"], []).append(r["law_ratio"])
        if bad:
            self.failures.append(r["case"])


def run(folder: Path, seed: int, cases: int, count: int, tell: Tell = lambda *_: None) -> Summary:
    """Cases 0 … cases−1 of a seed, `count` random points each; those that `folder` holds already are read.

    Raises InputError when the folder cannot be used, or holds another campaign.
    """
    if seed < 0:
        raise InputError(f"campaign: seed={seed} must not be negative.")
    if cases < 1 or count < 8:
        raise InputError(f"campaign: cases={cases} and points={count} must be at least 1 and 8.")
    head = {"format": FORMAT, "seed": seed, "points": count, "version": lde_cvx.__version__}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = {r["case"]: r for r in resumed(folder / RESULTS, head)}
        summary = Summary()
        if not (folder / RESULTS).is_file() or (folder / RESULTS).stat().st_size == 0:
            _append(folder / RESULTS, head)
        with one_thread(), only_finished() as finished:
            for number in range(cases):
                if number not in done:
                    done[number] = finished(one(case(seed, number), seed, count, folder))
                    _append(folder / RESULTS, done[number])
                summary.add(done[number])
                tell(number + 1, cases)
    except OSError as error:
        raise InputError(f"{folder}: cannot be used ({error.strerror or error}); name a folder that is writable.") from None
    return summary


def _append(path: Path, record: dict[str, Any]) -> None:
    growing_file.append(path, [json.dumps(record, sort_keys=True, allow_nan=False) + "\n"])


def resumed(path: Path, head: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The finished cases of a file, after a line of its own for the campaign; [] where it is new. Raises InputError when it is another campaign's."""
    found = growing_file.records(path)
    if found and (found[0] != head or not all("case" in r for r in found[1:])):
        raise InputError(f"{path}: belongs to another campaign ({str(found[0])[:120]}); name another folder, or its seed and points.")
    return found[1:]


def one(c: Case, seed: int, count: int, folder: Path) -> dict[str, Any]:
    """A case: certify, attack, check at levels A and B, one law, float32. The files stay only where something is wrong."""
    begun, rng = time.monotonic(), np.random.default_rng([seed, c.number, 1])
    record: dict[str, Any] = {**c.words, "refused": None, "lower": "0", "upper": "inf", "points": 0, "unsound": 0, "rounding": 0, "A": "", "B": "",
                              "settled": "", "reasons": [], "law": "none", "law_broken": False, "law_ratio": 1.0, "float32_flips": 0, "float32_excess": 0}  # fmt: skip
    files = [folder / f"case-{c.number}{suffix}" for suffix in (".safetensors", ".json")]
    try:
        record |= _answered(c, count, rng, files)
    except ContradictionError as error:
        if c.family in HOSTILE:
            record["refused"] = "ContradictionError"
        else:
            record |= {"unsound": 1, "reasons": [str(error)[:300]], "A": "INVALID"}
    except (InputError, RuntimeError) as error:  # an honest refusal: nothing is claimed
        record["refused"] = type(error).__name__ + ": " + str(error).splitlines()[0][:120]
    if not (
        record["unsound"] or "INVALID" in (record["A"], record["B"], record["settled"]) or record["law_broken"] or record["float32_excess"]
    ):
        for path in files:
            path.unlink(missing_ok=True)
    return {**record, "seconds": round(time.monotonic() - begun, 2)}


def _answered(c: Case, count: int, rng: np.random.Generator, files: list[Path]) -> dict[str, Any]:
    double = copy.deepcopy(c.net).double()
    certificate, decision = _explained(c) if c.number % 3 == 0 or c.method in SEARCHES else _certified(c, double)
    model, path = save(c.net, files[0]), certificate.save(files[1])
    a, b = check_file(path), check_file(path, level="B", model=model)
    doc, network = parse(certificate.record), read_model(model).network(c.x0.shape)
    settled = certificate if b.ok else certificate.settled(network)
    last = b if settled is certificate else check_record(settled.record, level="B", model=model)
    ground = Ground(c.x0, c.norm, c.constraints, certificate.lower)
    found = attack(double, network, doc, ground, c.constraints, decision, count, rng, search=c.number % 10 in SEARCHED)
    law = laws.check(laws.in_turn(c.number), c, decision, certificate.lower, certificate.upper, rng)
    flips, excess = _float32(c, double, network, decision, found.tried)
    return {
        "lower": repr(certificate.lower), "upper": repr(certificate.upper), "points": len(found.tried), "least": _finite(found.least),
        "unsound": len(found.unsound), "rounding": found.rounding, "A": a.status.name, "B": b.status.name,
        "settled": last.status.name, "reasons": [r[:200] for r in (*a.reasons, *b.reasons, *last.reasons)[:4]],
        "law": law.name, "law_broken": law.broken, "law_ratio": round(law.ratio, 6),
        "float32_flips": flips, "float32_excess": excess,
    }  # fmt: skip


def _explained(c: Case) -> tuple[Certificate, Decision]:
    """Every third case, and every search: the explainer's certificate, with a witness where one is found."""
    explainer = LagrangeDualExplainer(c.net, norm=c.norm, constraints=c.constraints, method=c.method, time_limit=BUDGET)
    explanation = explainer.explain(c.x0[None], quiet=True)
    explanation = explanation[0] if isinstance(explanation, list) else explanation
    return explanation.certificate, explanation.decision


def _certified(c: Case, double: torch.nn.Module) -> tuple[Certificate, Decision]:
    """The others: a certified radius after a few passes, and no witness."""
    radius = certified_radius(double, c.x0[None], c.norm, c.constraints, method=c.method, max_passes=PASSES, seconds=BUDGET)[0]
    with torch.no_grad():
        outputs = double(torch.as_tensor(c.x0)[None])[0].numpy()
    decision = Decision.classification(int(outputs.argmax()), outputs.size)
    parts = () if c.constraints is None else c.constraints.parts(c.x0.size)
    certificate = Certificate.build(
        model=c.net, x0=c.x0, outputs=outputs, decision=decision, norm=c.norm, parts=parts, evidence=radius.evidence(), method=c.method, command="lde campaign"
    )  # fmt: skip
    return certificate, decision


def _float32(c: Case, double: torch.nn.Module, network: Any, decision: Decision, deltas: np.ndarray) -> tuple[int, int]:
    """(points inside the region at which the float32 evaluation flips, points at which it is farther from float64 than its error bound)."""
    if not len(deltas):
        return 0, 0
    z = c.x0[None] + deltas.reshape(-1, *c.x0.shape)
    with torch.no_grad():
        exact = double(torch.as_tensor(z)).numpy()
    single, bound = evaluate32(c.net, z), float32_error(network, z)
    with np.errstate(invalid="ignore"):
        far = ~(np.abs(single - exact) <= bound * 1.001 + 1e-12 * np.abs(exact)) & np.isfinite(single)
    return int((decision.margins(single) <= 0).any(1).sum()), int(far.any(1).sum())


def _finite(v: float) -> float | None:
    return float(v) if math.isfinite(v) else None
