r"""Certificates: the record of a claim about one decision, with what is needed to check it again.

    lower ≤ v* ≤ upper,   v* = min { ‖Wδ‖ : δ ∈ C, some margin row m_k(δ) ≤ 0 }

`Certificate.build` takes the rows, radii and multipliers that a search ended with. The number it publishes is not the search's: it is the checker's exact
evaluation of that evidence (verification/checking/theorem.py), rounded down. So a file that was just written checks by construction,
and poor multipliers cost tightness, never truth.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError
from formulations.whole_file import whole_file
from verification import checker
from verification.certificate_format import FORMAT, VERSION, parse
from verification.checker import CheckReport, CheckStatus, Verdict
from verification.checking.claims import FEASIBILITY
from verification.checking.outward import down_words, up_words
from verification.checking.text import FormatError, canonical, input_hash, read
from verification.evidence import (
    CellEvidence,
    RivalEvidence,
    Split,
    WitnessEvidence,
    floats,
    hexes,
    norm_record,
    part_record,
    plain,
    rival_record,
    witness_record,
)  # fmt: skip
from verification.model_record import ModelRecord
from verification.publishing import ContradictionError, published, settled

if TYPE_CHECKING:
    import torch

    from formulations.norms import Norm
    from formulations.pieces import Part
    from verification.decision import Decision
    from verification.rechecking.graph import Network

__all__ = [
    "CellEvidence",
    "Certificate",
    "ContradictionError",
    "ModelRecord",
    "RivalEvidence",
    "Split",
    "Verdict",
    "WitnessEvidence",
    "evaluate",
]

Array = NDArray[np.float64]
OUTPUTS = 1e-9  # relative difference of float64 outputs between machines that counts as the same network
LIBRARIES = ("lde-cvx", "numpy", "torch", "cvxpy", "clarabel", "scs", "auto_LiRPA", "python-flint")


@dataclass(frozen=True)
class Certificate:
    """A claim with its evidence. `record` is the JSON object of certificate_format.py; properties read the common fields."""

    record: dict[str, Any] = field(repr=False)

    @staticmethod
    def build(
        *,
        model: torch.nn.Module | ModelRecord,
        x0: ArrayLike,
        outputs: ArrayLike,
        decision: Decision,
        norm: Norm | float | str,
        parts: Sequence[Part],
        evidence: Sequence[RivalEvidence],
        witness: WitnessEvidence | None = None,
        method: str = "crown",
        seed: int | None = None,
        command: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Certificate:
        """The certificate of this evidence; x0 in the network's input shape, `parts` as C.parts(d) gives them, one `RivalEvidence` per row of the decision.

        Raises InputError when shapes do not fit or a statement of the record does not hold (x0 outside C, a witness that does not flip),
        ContradictionError when the evidence proves more than the witness allows.
        """
        start = np.asarray(x0, dtype=float)
        flat = start.ravel()
        if len(evidence) != len(decision.rivals):
            raise InputError(
                f"Certificate: evidence for {len(evidence)} rows, the decision has {len(decision.rivals)}; give one RivalEvidence per row."
            )
        identity = ModelRecord.of(model)
        record: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "sha256": "0" * 64,
            "model": {"sha256": identity.sha256, "architecture": identity.architecture},
            "input": {"x0": hexes(flat), "shape": list(start.shape) or [1], "sha256": input_hash(flat.tolist())},
            "outputs": hexes(outputs), "decision": decision.to_dict(), "norm": norm_record(norm, flat.size),
            "set": [part_record(p) for p in parts],
            "rivals": [
                rival_record(e, rival, parts, norm, method) for rival, e in zip(decision.rivals, evidence, strict=True)
            ],
            "witness": None if witness is None else witness_record(witness, flat),
            "lower": (0.0).hex(), "upper": float("inf").hex(), "verdict": Verdict.UNKNOWN.name,
            "tolerances": {"feasibility": FEASIBILITY.hex(), "outputs": OUTPUTS.hex()},
            "method": method, "versions": _versions(), "seed": seed, "command": " ".join(sys.argv) if command is None else command,
            "provenance": plain(provenance or {}), "notes": plain(notes or {}),
        }  # fmt: skip
        return Certificate(published(record))

    # ------------------------------------------------------------------------------------------------------------- the claim

    @property
    def lower(self) -> float:
        return float.fromhex(self.record["lower"])

    @property
    def upper(self) -> float:
        return float.fromhex(self.record["upper"])

    @property
    def verdict(self) -> Verdict:
        return Verdict[self.record["verdict"]]

    @property
    def lowers(self) -> dict[int, float]:
        """The certified lower bound of every rival's row."""
        return {int(r["rival"]): float.fromhex(r["lower"]) for r in self.record["rivals"]}

    @property
    def x0(self) -> Array:
        return floats(self.record["input"]["x0"]).reshape(self.record["input"]["shape"])

    @property
    def witness(self) -> Array | None:
        """The flipping input, in the input's shape."""
        w = self.record["witness"]
        return None if w is None else floats(w["input"]).reshape(self.record["input"]["shape"])

    @property
    def model_sha256(self) -> str:
        return str(self.record["model"]["sha256"])

    @property
    def sha256(self) -> str:
        return str(self.record["sha256"])

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Certificate({down_words(self.lower, 6)} ≤ distance ≤ {up_words(self.upper, 6)}, {self.verdict.name}, sha256 {self.sha256[:12]}…)"

    # ------------------------------------------------------------------------------------------------------------- files and checks

    def save(self, path: str | Path) -> Path:
        """Writes canonical JSON; the file appears whole or not at all. Raises InputError when it cannot be written."""
        target = Path(path)
        with whole_file(target) as draft:
            draft.write_bytes(canonical(self.record) + b"\n")
        return target

    @staticmethod
    def load(path: str | Path) -> Certificate:
        """Reads a certificate; it is well-formed then, not yet checked. Raises InputError on a file that is none."""
        try:
            record = read(path)
            parse(record)
        except FormatError as error:
            raise InputError(f"{path}: {error}; this is not a certificate that can be read, get the file again.") from None
        return Certificate(record)

    def check(self, model: torch.nn.Module | None = None, device: str | torch.device | None = None) -> CheckReport:
        """The independent check; with `model` also its hash, and its float64 outputs at x0 and at the witness."""
        if model is None:
            return checker.check_record(self.record)
        report = checker.check_record(self.record, model_sha256=ModelRecord.of(model).sha256)
        if report.status is CheckStatus.INVALID:
            return report
        wrong, open_ = self._recompute(model, device)
        status = CheckStatus.INVALID if wrong else CheckStatus.CANNOT_DECIDE if open_ or not report.ok else CheckStatus.VALID
        reasons = tuple(wrong) or (*report.reasons, *open_)
        return replace(
            report,
            status=status,
            reasons=reasons,
            premises=(report.premises[0], "outputs: evaluated again in float64, not outward rounded"),
        )

    def settled(self, network: Network) -> Certificate:
        """This certificate with every row lowered to what level B of the checker derives of it from the weights, and with what is then proved.

        It claims no more than anyone can derive again, and level B calls it valid wherever its layers are covered; where nothing had to be lowered, it is
        this one. `network`: the model as the checker reads it (`verification.rechecking.network`). It takes as long as the check does, or twice that.
        """
        record = settled(self.record, network)
        return self if record is self.record else Certificate(record)

    def _recompute(self, model: torch.nn.Module, device: str | torch.device | None) -> tuple[list[str], list[str]]:
        """(refutations, open questions) from the network itself."""
        from verification.decision import Decision

        d = self.record["decision"]
        decision = Decision(np.stack([floats(r) for r in d["rows"]]), floats(d["shifts"]), tuple(d["rivals"]), d["label"], d["kind"])
        stored = [("x0", self.x0, floats(self.record["outputs"]))]
        if self.witness is not None:
            stored.append(("the witness", self.witness, floats(self.record["witness"]["outputs"])))
        tolerance = float.fromhex(self.record["tolerances"]["outputs"])
        wrong: list[str] = []
        open_: list[str] = []
        for who, z, told in stored:
            try:
                found = evaluate(model, z[None], device)[0]
            except InputError as error:
                return [f"the model cannot be evaluated at {who}: {error}"], []
            if found.shape != told.shape:
                return [f"the model has {found.size} outputs, the certificate {told.size}"], []
            slack = tolerance * (1 + float(np.abs(told).max()))
            off = float(np.abs(found - told).max())
            if not off <= slack:
                wrong.append(f"outputs: the model's outputs at {who} differ from the stored ones by {off:.3g}")
            elif who != "x0" and decision.stands(found[None])[0]:
                # within rounding of the boundary: the same network on another machine
                open_.append(
                    f"the witness is within rounding of the boundary, and on this machine its margin is {decision.margins(found).min():.3g}"
                )
        return wrong, open_


def evaluate(model: torch.nn.Module, inputs: Array, device: str | torch.device | None = None) -> Array:
    """f in float64: inputs (n, *shape) → outputs (n, m). The model itself is left as it is."""
    import torch

    from verification.model import float64_copy, outputs

    twin = float64_copy(model, device)
    place = next((v.device for v in twin.state_dict().values()), torch.device(device or "cpu"))
    return np.asarray(outputs(twin, torch.tensor(np.asarray(inputs), dtype=torch.float64, device=place)).cpu().numpy(), dtype=np.float64)


@functools.cache
def _library_versions() -> tuple[tuple[str, str], ...]:
    out = [("python", platform.python_version())]
    for name in LIBRARIES:
        try:
            out.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(out)


def _versions() -> dict[str, str]:
    return dict(_library_versions())
