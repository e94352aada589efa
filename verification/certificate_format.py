r"""The certificate file: its fields, its hashes, and how it is read. It needs numpy and nothing of this project.

A certificate is one JSON object in canonical form: keys sorted, no spaces, ASCII. Real numbers are strings, `float.hex()` of a float64, so that nothing
is rounded on the way ("inf" where a field allows it; never NaN). `certificate_schema.json` beside this file says the same for other languages.

    format, version         "lde-certificate", 1
    sha256                  of the canonical form of everything else
    model                   sha256 (see `weights_hash`), architecture
    input                   x0, shape, sha256 of its little-endian float64 values
    outputs                 f(x0) in float64
    decision                kind, label, rows q_k, shifts s_k, rivals (who wins when row k falls)
    norm                    p = "1" | "2" | "inf" with weights or null; p = "group" with groups and one weight each
    set                     the parts of C: kind, name, on = "input" | "change", and
                            box: lo, hi;  rows, equalities: matrix, h;  ball: matrix, e, rho, norm;  custom: nothing more
    rivals                  row by row: rival, method, lower, cells
      cells                 leaves of the split tree: path, radius, a (K, d), b, row_of, lam, duals (one list or null per part), w (or null)
        path                list of splits: at ("input" or a layer's name), index, cut, side (−1: ≤ cut, +1: ≥ cut)
        row_of              −1 for a margin row, −2 for a row that only the cell's flips obey, else the place in the path of the neuron split that the
                            row states
        relaxation          optional: slopes[row][layer] of the rows of margins and flips, in their order: one number per neuron of every activation, in the
                            network's order: the slope of the line that stands for it; for a row of the flips, of the line below it. splits[row]: one
                            multiplier β ≥ 0 per split of the path, of −side (z − cut) in the row. facets[row]: lines over the box of changes above the first
                            rectifiers (verification/rechecking/facets.py), share κ in [0, 1] and turn e, one of "+", "0", "-" per input. inner: slopes of
                            the lines below activation "by" in the lower (low) and upper (up) bounds of what enters activation "of": per one of its
                            "neurons" the "inputs" (one list where all have the same) and a string of two hexadecimal digits each, in
                            units of 1/255; elsewhere the checker chooses. One cell's serve all cells of its radius and path. For the
                            re-derivation of the rows from the weights; no claim rests on them
    lower, upper, verdict   the claim
    witness                 null, or the flipping input, the outputs there, and the rival that wins
    tolerances              feasibility of the witness (≤ 1e-9), relative reproducibility of the outputs
    method, versions, seed, command, provenance, notes      where it comes from; no claim rests on them

A matrix is {"shape", "indptr", "indices", "data"}, compressed sparse rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "lde-certificate", 1
MAX_BYTES, MAX_DEPTH = 512 * 2**20, 32
MARGIN_ROW, FLIP_ROW = -1, -2  # entries of row_of: a·δ + b ≤ m_k(δ) on the cell; a·δ + b ≤ 0 where m_k(δ) ≤ 0 on it

Rows = list[list[tuple[int, float]]]  # a sparse matrix: (column, value) pairs, row by row


class FormatError(ValueError):
    """The document is not a certificate of a known version; the message is one line."""


class Verdict(Enum):
    """What is known of the decision; the value is the sentence for reports."""

    BRACKETED = "A flipping change is known, and none is nearer than the lower bound."
    CERTIFIED_UNREACHABLE = "No allowed change flips the decision."
    LOWER_ONLY = "No allowed change nearer than the lower bound flips the decision; whether a farther one does is open."
    UNKNOWN = "Neither a positive lower bound nor a flipping change is known."

    @staticmethod
    def of(lower: float, upper: float) -> Verdict:
        if upper < math.inf:
            return Verdict.BRACKETED
        if lower == math.inf:
            return Verdict.CERTIFIED_UNREACHABLE
        return Verdict.LOWER_ONLY if lower > 0 else Verdict.UNKNOWN


@dataclass(frozen=True)
class NormSpec:
    """p = "1", "2", "inf": ‖diag(weights)·‖_p; p = "group": Σ_g weights_g ‖·_g‖₂."""

    p: str
    weights: list[float] | None
    groups: list[list[int]]


@dataclass(frozen=True)
class PartSpec:
    """One part of C; `right` is h for rows and equalities, e for a ball."""

    name: str
    on: str
    kind: str
    lo: list[float] = field(default_factory=list)
    hi: list[float] = field(default_factory=list)
    matrix: Rows = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    rho: float = 0.0
    norm: NormSpec | None = None


@dataclass(frozen=True)
class Split:
    """side −1: quantity ≤ cut, side +1: quantity ≥ cut, of coordinate `index` of the input (at = "input") or of a layer's pre-activation."""

    at: str
    index: int
    cut: float
    side: int

    @property
    def question(self) -> tuple[str, int, float]:
        return self.at, self.index, self.cut


@dataclass(frozen=True)
class Inner:
    """Slopes of the lines below activation `by` in the bounds of what enters activation `of`: per neuron its inputs, and low and up, one number per input."""

    of: int
    by: int
    neurons: list[int]
    inputs: list[list[int]]
    low: list[list[float]]
    up: list[list[float]]


@dataclass(frozen=True)
class Cell:
    """One leaf of the split tree."""

    path: list[Split]
    radius: float
    a: list[list[float]]
    b: list[float]
    row_of: list[int]
    lam: list[float]
    duals: list[list[float] | None]
    w: list[float] | None
    slopes: list[list[list[float]]] = field(default_factory=list)
    inner: list[Inner] = field(default_factory=list)
    splits: list[list[float]] = field(default_factory=list)
    facets: list[tuple[float, list[int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    """A certificate that has the right form; nothing in it is believed yet."""

    x0: list[float]
    x0_sha256: str
    outputs: list[float]
    rows: list[list[float]]
    shifts: list[float]
    norm: NormSpec
    parts: list[PartSpec]
    cells: list[list[Cell]]
    lower: float
    row_lowers: list[float]
    upper: float
    witness: list[float] | None
    witness_outputs: list[float]
    verdict: Verdict
    feasibility: float
    reproducibility: float
    shape: tuple[int, ...] = ()


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one spelling of a record. Raises FormatError on what JSON cannot hold (NaN, infinities, other types)."""
    try:
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"not canonical JSON ({error})") from None


def self_hash(record: Mapping[str, Any]) -> str:
    """sha256 of the canonical form of everything but "sha256"."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "sha256"})).hexdigest()


def input_hash(x0: Sequence[float]) -> str:
    """sha256 of the little-endian float64 values."""
    return hashlib.sha256(np.asarray(x0, dtype="<f8").tobytes()).hexdigest()


def weights_hash(architecture: str, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over the architecture and, by sorted name, kind, shape and little-endian values of every array.

    Floats are widened to float64 and integers to int64 first (exactly), so that a float32 network and its float64 copy, the same function, share a hash.
    """
    h = hashlib.sha256(architecture.encode())
    for name in sorted(arrays):
        v = np.asarray(arrays[name])
        wide = v.astype("<f8" if v.dtype.kind == "f" else "<i8")
        h.update(f"\0{name}\0{wide.dtype.str}\0{v.shape}\0".encode())
        h.update(wide.tobytes())
    return h.hexdigest()


def read(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises FormatError when it cannot be read, is too large or is not one."""
    if not Path(path).is_file():  # a pipe or a device could keep us waiting
        raise FormatError("there is no such file")
    try:
        with open(path, "rb") as handle:
            data = handle.read(max_bytes + 1)
    except OSError as error:
        raise FormatError(f"the file cannot be read: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise FormatError(f"the file is larger than {max_bytes} bytes")
    return decode(data)


def decode(data: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Bytes to a JSON object, refusing duplicates, NaN, deep nesting and anything that is not JSON. Raises FormatError."""
    raw = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    outside = np.bitwise_xor.accumulate((raw == ord('"')).astype(np.uint8)) == 0
    steps = (np.isin(raw, (ord("["), ord("{"))).astype(np.int8) - np.isin(raw, (ord("]"), ord("}"))))[outside]
    if len(steps) and int(np.cumsum(steps, dtype=np.int32).max()) > max_depth:
        raise FormatError(f"nested deeper than {max_depth} levels")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise FormatError("a key appears twice in one object")
        return out

    def constant(name: str) -> None:
        raise FormatError(f"{name} is not a JSON number")

    try:
        record = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"not a JSON document ({str(error).splitlines()[0][:120]}); the file may be truncated") from None
    if not isinstance(record, dict):
        raise FormatError("the document is not a JSON object")
    return record


def parse(record: Mapping[str, Any]) -> Document:
    """The record's fields, typed; raises FormatError on a missing, unknown or malformed one."""
    if record.get("format") != FORMAT:
        raise FormatError(f"format={_short(record.get('format'))} is not '{FORMAT}'")
    if record.get("version") != VERSION or type(record.get("version")) is not int:
        raise FormatError(f"version={_short(record.get('version'))} is not known to this checker (it reads version {VERSION})")
    top = _Fields(record, "certificate", "command decision format input lower method model norm notes outputs provenance rivals seed set sha256 "
                  "tolerances upper verdict version versions witness")  # fmt: skip
    model = top.fields("model", "sha256 architecture")
    for fields, key in ((model, "sha256"), (top, "sha256")):
        fields.digest(key)
    for fields, key in ((model, "architecture"), (top, "method"), (top, "command")):
        fields.text(key)
    for free in ("versions", "provenance", "notes"):
        if not isinstance(record[free], dict):
            raise FormatError(f"{free} is not an object")
    if record["seed"] is not None and type(record["seed"]) is not int:
        raise FormatError("seed is neither null nor an integer")
    source = top.fields("input", "sha256 shape x0")
    x0 = source.reals("x0")
    d, shape = len(x0), source.integers("shape")
    if d == 0 or math.prod(shape) != d or any(s < 1 for s in shape):
        raise FormatError(f"input.shape={_short(shape)} does not hold the {d} values of x0")
    source.digest("sha256")
    outputs = top.reals("outputs")
    decision = top.fields("decision", "kind label rivals rows shifts")
    for key in ("kind", "label"):
        decision.text(key)
    rows, shifts, rivals = decision.table("rows", len(outputs)), decision.reals("shifts"), decision.integers("rivals")
    if not rows or not len(rows) == len(shifts) == len(rivals):
        raise FormatError("decision: rows, shifts and rivals differ in number, or there are none")
    norm = _norm(record["norm"], d, "norm")
    parts = [_part(p, d, f"set[{j}]") for j, p in enumerate(top.items("set"))]
    cells, row_lowers = [], []
    for k, entry in enumerate(top.items("rivals")):
        f = _Fields(entry, f"rivals[{k}]", "rival lower method cells")
        if k >= len(rivals) or entry["rival"] != rivals[k] or type(entry["rival"]) is not int:
            raise FormatError(f"rivals[{k}] does not belong to row {k} of the decision")
        f.text("method")
        row_lowers.append(f.real("lower", infinite=True))
        cells.append([_cell(c, d, parts, f"rivals[{k}].cells[{i}]") for i, c in enumerate(f.items("cells"))])
    if len(cells) != len(rows):
        raise FormatError(f"{len(cells)} rivals for {len(rows)} rows of the decision")
    witness, witness_outputs = None, []
    if record["witness"] is not None:
        w = top.fields("witness", "input outputs rival")
        witness, witness_outputs = w.reals("input", d), w.reals("outputs", len(outputs))
        if record["witness"]["rival"] not in rivals or type(record["witness"]["rival"]) is not int:
            raise FormatError("witness.rival is not a rival of the decision")
    lower, upper = top.real("lower", infinite=True), top.real("upper", infinite=True)
    if min(lower, upper, *row_lowers) < 0:
        raise FormatError("lower and upper are distances and cannot be negative")
    if top.text("verdict") not in Verdict.__members__:
        raise FormatError(f"verdict={_short(record['verdict'])} is not one of {', '.join(Verdict.__members__)}")
    tolerance = top.fields("tolerances", "feasibility outputs")
    feasibility, reproducibility = tolerance.real("feasibility"), tolerance.real("outputs")
    if min(feasibility, reproducibility) < 0:
        raise FormatError("tolerances: a tolerance is negative")
    return Document(
        x0, record["input"]["sha256"], outputs, rows, shifts, norm, parts, cells, lower, row_lowers, upper,
        witness, witness_outputs, Verdict[record["verdict"]], feasibility, reproducibility, tuple(shape),
    )  # fmt: skip


class _Fields:
    """One JSON object whose keys are exactly `keys` (those with "?" may be missing); reads typed fields or raises FormatError."""

    def __init__(self, value: Any, where: str, keys: str) -> None:
        known = keys.split()
        if not isinstance(value, Mapping):
            raise FormatError(f"{where} is not an object")
        missing = [k for k in known if not k.endswith("?") and k not in value]
        unknown = sorted(set(value) - {k.rstrip("?") for k in known})
        if missing or unknown:
            raise FormatError(f"{where}: {'missing' if missing else 'unknown'} field {_short((missing or unknown)[0])}")
        self.value, self.where = value, where

    def _wrong(self, key: str, what: str) -> FormatError:
        return FormatError(f"{self.where}.{key} is not {what}".removeprefix("certificate."))

    def fields(self, key: str, keys: str) -> _Fields:
        return _Fields(self.value[key], f"{self.where}.{key}".removeprefix("certificate."), keys)

    def items(self, key: str) -> list[Any]:
        if not isinstance(self.value[key], list):
            raise self._wrong(key, "a list")
        return list(self.value[key])

    def text(self, key: str) -> str:
        if not isinstance(self.value[key], str):
            raise self._wrong(key, "a string")
        return str(self.value[key])

    def digest(self, key: str) -> None:
        if len(self.text(key)) != 64 or set(self.text(key)) - set("0123456789abcdef"):
            raise self._wrong(key, "a sha256 in lower-case hexadecimal")

    def integers(self, key: str) -> list[int]:
        values = self.items(key)
        if not all(type(v) is int and abs(v) < 2**53 for v in values):
            raise self._wrong(key, "a list of integers")
        return values

    def real(self, key: str, *, infinite: bool = False) -> float:
        return _real(
            self.value[key], infinite, lambda: self._wrong(key, "a finite float.hex() string" if not infinite else "a float.hex() string")
        )

    def reals(self, key: str, length: int | None = None, *, infinite: bool = False) -> list[float]:
        values = self.items(key)
        out = [_real(v, infinite, lambda: self._wrong(key, "a list of finite float.hex() strings")) for v in values]
        if length is not None and len(out) != length:
            raise self._wrong(key, f"{length} numbers long but {len(out)}")
        return out

    def table(self, key: str, columns: int) -> list[list[float]]:
        return [_Fields({"row": r}, f"{self.where}.{key}", "row").reals("row", columns) for r in self.items(key)]


def _real(value: Any, infinite: bool, error: Callable[[], FormatError]) -> float:
    if not isinstance(value, str) or len(value) > 32:
        raise error()
    try:
        number = float.fromhex(value)
    except (ValueError, OverflowError):
        raise error() from None
    if number != number or (not infinite and math.isinf(number)) or number.hex() != value:
        raise error()
    return number


def _short(value: Any) -> str:
    return repr(value)[:60]


def _norm(value: Any, dim: int, where: str) -> NormSpec:
    f = _Fields(value, where, "p weights groups?")
    p = f.text("p")
    if p == "group":
        groups = [_Fields({"g": g}, f"{where}.groups", "g").integers("g") for g in (f.items("groups") if "groups" in value else [])]
        if sorted(i for g in groups for i in g) != list(range(dim)) or not all(groups):
            raise FormatError(f"{where}.groups do not hold every index 0 … {dim - 1} exactly once")
        weights: list[float] | None = f.reals("weights", len(groups))
    elif p in ("1", "2", "inf") and "groups" not in value:
        groups, weights = [], None if value["weights"] is None else f.reals("weights", dim)
    else:
        raise FormatError(f"{where}.p={_short(p)} is not '1', '2', 'inf' or 'group' (with groups)")
    if weights is not None and min(weights) <= 0:
        raise FormatError(f"{where}.weights are not all positive")
    return NormSpec(p, weights, groups)


def _part(value: Any, dim: int, where: str) -> PartSpec:
    kind = value.get("kind") if isinstance(value, dict) else None
    keys = {"box": "lo hi", "rows": "matrix h", "equalities": "matrix h", "ball": "matrix e rho norm", "custom": ""}
    if not isinstance(kind, str) or kind not in keys:
        raise FormatError(f"{where}.kind={_short(kind)} is not one of {', '.join(keys)}")
    f = _Fields(value, where, f"kind name on {keys[kind]}")
    name, on = f.text("name"), f.text("on")
    if on not in ("input", "change"):
        raise FormatError(f"{where}.on={_short(on)} is not 'input' or 'change'")
    if kind == "box":
        lo, hi = f.reals("lo", dim, infinite=True), f.reals("hi", dim, infinite=True)
        if math.inf in lo or -math.inf in hi:
            raise FormatError(f"{where}: a bound is infinite on the wrong side")
        return PartSpec(name, on, kind, lo, hi)
    if kind == "custom":
        return PartSpec(name, on, kind)
    matrix = _matrix(value["matrix"], dim, f"{where}.matrix")
    right = f.reals("e" if kind == "ball" else "h", len(matrix))
    if kind != "ball":
        return PartSpec(name, on, kind, matrix=matrix, right=right)
    rho = f.real("rho")
    if rho < 0:
        raise FormatError(f"{where}.rho={rho!r} is negative")
    return PartSpec(name, on, kind, matrix=matrix, right=right, rho=rho, norm=_norm(value["norm"], len(matrix), f"{where}.norm"))


def _matrix(value: Any, dim: int, where: str) -> Rows:
    f = _Fields(value, where, "shape indptr indices data")
    shape, indptr, indices, data = f.integers("shape"), f.integers("indptr"), f.integers("indices"), f.reals("data")
    steps_ok = len(indptr) > 0 and indptr[0] == 0 and indptr[-1] == len(data) and all(a <= b for a, b in pairwise(indptr))
    if shape != [len(indptr) - 1, dim] or not steps_ok or len(indices) != len(data) or not all(0 <= i < dim for i in indices):
        raise FormatError(f"{where} is not a sparse matrix with {dim} columns")
    return [list(zip(indices[a:b], data[a:b], strict=True)) for a, b in pairwise(indptr)]


def _cell(value: Any, dim: int, parts: list[PartSpec], where: str) -> Cell:
    f = _Fields(value, where, "path radius a b row_of lam duals w relaxation?")
    path = [_split(s, dim, f"{where}.path[{i}]") for i, s in enumerate(f.items("path"))]
    radius, b = f.real("radius", infinite=True), f.reals("b")
    a, lam, row_of = f.table("a", dim), f.reals("lam", len(b)), f.integers("row_of")
    if not b or len(a) != len(b) or len(row_of) != len(b):
        raise FormatError(f"{where}: a, b, lam and row_of differ in length, or are empty")
    if not all(j in (MARGIN_ROW, FLIP_ROW) or (0 <= j < len(path) and path[j].at != "input") for j in row_of):
        raise FormatError(
            f"{where}.row_of is neither -1 (a margin row) nor -2 (a row of the flips) nor the place of a neuron split in the path"
        )
    if radius < 0:
        raise FormatError(f"{where}.radius={radius!r} is negative")
    duals: list[list[float] | None] = []
    for j, (dual, part) in enumerate(zip(f.items("duals"), parts, strict=False)):
        g = _Fields({"dual": dual}, f"{where}.duals[{j}]", "dual")
        if dual is not None and not part.matrix:
            raise FormatError(f"{where}.duals[{j}] must be null: a {part.kind} takes no stored multipliers")
        duals.append(None if dual is None else g.reals("dual", len(part.matrix)))
    if len(value["duals"]) != len(parts):
        raise FormatError(f"{where}.duals: {len(value['duals'])} entries for {len(parts)} parts")
    w = None if value["w"] is None else f.reals("w", dim)
    proposed = (
        _relaxation(value["relaxation"], sum(j < 0 for j in row_of), len(path), dim, f"{where}.relaxation") if "relaxation" in value else ()
    )
    return Cell(path, radius, a, b, row_of, lam, duals, w, *proposed)


Proposed = tuple[list[list[list[float]]], list[Inner], list[list[float]], list[tuple[float, list[int]]]]


def _relaxation(value: Any, rows: int, depth: int, dim: int, where: str) -> Proposed:
    f = _Fields(value, where, "slopes inner? splits? facets?")
    slopes = []
    for r, row in enumerate(f.items("slopes")):
        g = _Fields({"row": row}, f"{where}.slopes[{r}]", "row")
        slopes.append([_Fields({"layer": v}, f"{g.where}[{i}]", "layer").reals("layer") for i, v in enumerate(g.items("row"))])
    if len(slopes) > rows:
        raise FormatError(f"{where}: slopes for {len(slopes)} of {rows} rows of margins and flips")
    splits = f.table("splits", depth) if "splits" in value else []
    if len(splits) > len(slopes) or min((v for row in splits for v in row), default=0.0) < 0:
        raise FormatError(f"{where}.splits: more rows than slopes has, or a multiplier that is negative")
    inner = []
    for i, entry in enumerate(f.items("inner") if "inner" in value else []):
        inner.append(_inner(entry, f"{where}.inner[{i}]"))
    facets = []
    for i, entry in enumerate(f.items("facets") if "facets" in value else []):
        g = _Fields(entry, f"{where}.facets[{i}]", "share turn")
        share, turn = g.real("share"), g.text("turn")
        if i >= len(slopes) or not 0 <= share <= 1 or len(turn) != dim or set(turn) - set("+0-"):
            raise FormatError(f"{g.where}: share is not in [0, 1], turn is not {dim} signs, or there are more rows than slopes has")
        facets.append((share, ["-0+".index(v) - 1 for v in turn]))
    return slopes, inner, splits, facets


def _inner(value: Any, where: str) -> Inner:
    g = _Fields(value, where, "of by neurons inputs low up")
    of, by = (_Fields({"n": [value[k]]}, f"{where}.{k}", "n").integers("n")[0] for k in ("of", "by"))
    neurons, shared = g.integers("neurons"), all(type(v) is int for v in g.items("inputs"))
    inputs = (
        [g.integers("inputs")] * len(neurons)
        if shared
        else [_Fields({"inputs": v}, where, "inputs").integers("inputs") for v in g.items("inputs")]
    )
    if not 0 <= by < of or len(inputs) != len(neurons) or min([*neurons, *(v for row in inputs for v in row)], default=0) < 0:
        raise FormatError(f"{where}: the inputs do not fit the neurons, or by={by} does not come before of={of}")
    return Inner(of, by, neurons, inputs, *(_shares(g, side, inputs) for side in ("low", "up")))


def _shares(g: _Fields, side: str, inputs: list[list[int]]) -> list[list[float]]:
    """Slopes neuron by neuron: two hexadecimal digits each, k/255, or, in earlier files, lists of reals."""
    out = []
    for told, at in zip(g.items(side), inputs, strict=False):
        if isinstance(told, str):
            if len(told) != 2 * len(at) or set(told) - set("0123456789abcdef"):
                raise FormatError(f"{g.where}.{side}: is not a string of {2 * len(at)} hexadecimal digits")
            out.append([k / 255 for k in bytes.fromhex(told)])
        else:
            out.append(_Fields({side: told}, g.where, side).reals(side, len(at)))
    if len(out) != len(inputs) or len(g.items(side)) != len(inputs):
        raise FormatError(f"{g.where}.{side}: {len(g.items(side))} rows for {len(inputs)} neurons")
    return out


def _split(value: Any, dim: int, where: str) -> Split:
    f = _Fields(value, where, "at index cut side")
    index, side = (_Fields({"n": [value[k]]}, f"{where}.{k}", "n").integers("n")[0] for k in ("index", "side"))
    at = f.text("at")
    if side not in (-1, 1) or index < 0 or (at == "input" and index >= dim):
        raise FormatError(f"{where}: side is not ±1, or index={index} does not exist")
    return Split(at, index, f.real("cut"), side)
