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

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from verification.checking.document import FLIP_ROW, MARGIN_ROW, Cell, Document, Inner, NormSpec, PartSpec, Rows, Split, Verdict
from verification.checking.fields import Fields, short
from verification.checking.text import MAX_BYTES, FormatError, canonical, decode, input_hash, read, self_hash, weights_hash

__all__ = [
    "FLIP_ROW", "FORMAT", "MARGIN_ROW", "MAX_BYTES", "VERSION", "Cell", "Document", "FormatError", "Inner", "NormSpec", "PartSpec", "Split", "Verdict",
    "canonical", "decode", "input_hash", "parse", "read", "self_hash", "weights_hash",
]  # fmt: skip

FORMAT, VERSION = "lde-certificate", 1


def parse(record: Mapping[str, Any]) -> Document:
    """The record's fields, typed; raises FormatError on a missing, unknown or malformed one."""
    if record.get("format") != FORMAT:
        raise FormatError(f"format={short(record.get('format'))} is not '{FORMAT}'")
    if record.get("version") != VERSION or type(record.get("version")) is not int:
        raise FormatError(f"version={short(record.get('version'))} is not known to this checker (it reads version {VERSION})")
    top = Fields(record, "certificate", "command decision format input lower method model norm notes outputs provenance rivals seed set sha256 "
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
        raise FormatError(f"input.shape={short(shape)} does not hold the {d} values of x0")
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
        f = Fields(entry, f"rivals[{k}]", "rival lower method cells")
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
        raise FormatError(f"verdict={short(record['verdict'])} is not one of {', '.join(Verdict.__members__)}")
    tolerance = top.fields("tolerances", "feasibility outputs")
    feasibility, reproducibility = tolerance.real("feasibility"), tolerance.real("outputs")
    if min(feasibility, reproducibility) < 0:
        raise FormatError("tolerances: a tolerance is negative")
    return Document(
        x0, record["input"]["sha256"], outputs, rows, shifts, norm, parts, cells, lower, row_lowers, upper,
        witness, witness_outputs, Verdict[record["verdict"]], feasibility, reproducibility, tuple(shape),
    )  # fmt: skip


def _norm(value: Any, dim: int, where: str) -> NormSpec:
    f = Fields(value, where, "p weights groups?")
    p = f.text("p")
    if p == "group":
        groups = [Fields({"g": g}, f"{where}.groups", "g").integers("g") for g in (f.items("groups") if "groups" in value else [])]
        if sorted(i for g in groups for i in g) != list(range(dim)) or not all(groups):
            raise FormatError(f"{where}.groups do not hold every index 0 … {dim - 1} exactly once")
        weights: list[float] | None = f.reals("weights", len(groups))
    elif p in ("1", "2", "inf") and "groups" not in value:
        groups, weights = [], None if value["weights"] is None else f.reals("weights", dim)
    else:
        raise FormatError(f"{where}.p={short(p)} is not '1', '2', 'inf' or 'group' (with groups)")
    if weights is not None and min(weights) <= 0:
        raise FormatError(f"{where}.weights are not all positive")
    return NormSpec(p, weights, groups)


def _part(value: Any, dim: int, where: str) -> PartSpec:
    kind = value.get("kind") if isinstance(value, dict) else None
    keys = {"box": "lo hi", "rows": "matrix h", "equalities": "matrix h", "ball": "matrix e rho norm", "custom": ""}
    if not isinstance(kind, str) or kind not in keys:
        raise FormatError(f"{where}.kind={short(kind)} is not one of {', '.join(keys)}")
    f = Fields(value, where, f"kind name on {keys[kind]}")
    name, on = f.text("name"), f.text("on")
    if on not in ("input", "change"):
        raise FormatError(f"{where}.on={short(on)} is not 'input' or 'change'")
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
    f = Fields(value, where, "shape indptr indices data")
    shape, indptr, indices, data = f.integers("shape"), f.integers("indptr"), f.integers("indices"), f.reals("data")
    steps_ok = len(indptr) > 0 and indptr[0] == 0 and indptr[-1] == len(data) and all(a <= b for a, b in pairwise(indptr))
    if shape != [len(indptr) - 1, dim] or not steps_ok or len(indices) != len(data) or not all(0 <= i < dim for i in indices):
        raise FormatError(f"{where} is not a sparse matrix with {dim} columns")
    return [list(zip(indices[a:b], data[a:b], strict=True)) for a, b in pairwise(indptr)]


def _cell(value: Any, dim: int, parts: list[PartSpec], where: str) -> Cell:
    f = Fields(value, where, "path radius a b row_of lam duals w relaxation?")
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
        g = Fields({"dual": dual}, f"{where}.duals[{j}]", "dual")
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
    f = Fields(value, where, "slopes inner? splits? facets?")
    slopes = []
    for r, row in enumerate(f.items("slopes")):
        g = Fields({"row": row}, f"{where}.slopes[{r}]", "row")
        slopes.append([Fields({"layer": v}, f"{g.where}[{i}]", "layer").reals("layer") for i, v in enumerate(g.items("row"))])
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
        g = Fields(entry, f"{where}.facets[{i}]", "share turn")
        share, turn = g.real("share"), g.text("turn")
        if i >= len(slopes) or not 0 <= share <= 1 or len(turn) != dim or set(turn) - set("+0-"):
            raise FormatError(f"{g.where}: share is not in [0, 1], turn is not {dim} signs, or there are more rows than slopes has")
        facets.append((share, ["-0+".index(v) - 1 for v in turn]))
    return slopes, inner, splits, facets


def _inner(value: Any, where: str) -> Inner:
    g = Fields(value, where, "of by neurons inputs low up")
    of, by = (Fields({"n": [value[k]]}, f"{where}.{k}", "n").integers("n")[0] for k in ("of", "by"))
    neurons, shared = g.integers("neurons"), all(type(v) is int for v in g.items("inputs"))
    inputs = (
        [g.integers("inputs")] * len(neurons)
        if shared
        else [Fields({"inputs": v}, where, "inputs").integers("inputs") for v in g.items("inputs")]
    )
    if not 0 <= by < of or len(inputs) != len(neurons) or min([*neurons, *(v for row in inputs for v in row)], default=0) < 0:
        raise FormatError(f"{where}: the inputs do not fit the neurons, or by={by} does not come before of={of}")
    return Inner(of, by, neurons, inputs, *(_shares(g, side, inputs) for side in ("low", "up")))


def _shares(g: Fields, side: str, inputs: list[list[int]]) -> list[list[float]]:
    """Slopes neuron by neuron: two hexadecimal digits each, k/255, or, in earlier files, lists of reals."""
    out = []
    for told, at in zip(g.items(side), inputs, strict=False):
        if isinstance(told, str):
            if len(told) != 2 * len(at) or set(told) - set("0123456789abcdef"):
                raise FormatError(f"{g.where}.{side}: is not a string of {2 * len(at)} hexadecimal digits")
            out.append([k / 255 for k in bytes.fromhex(told)])
        else:
            out.append(Fields({side: told}, g.where, side).reals(side, len(at)))
    if len(out) != len(inputs) or len(g.items(side)) != len(inputs):
        raise FormatError(f"{g.where}.{side}: {len(g.items(side))} rows for {len(inputs)} neurons")
    return out


def _split(value: Any, dim: int, where: str) -> Split:
    f = Fields(value, where, "at index cut side")
    index, side = (Fields({"n": [value[k]]}, f"{where}.{k}", "n").integers("n")[0] for k in ("index", "side"))
    at = f.text("at")
    if side not in (-1, 1) or index < 0 or (at == "input" and index >= dim):
        raise FormatError(f"{where}: side is not ±1, or index={index} does not exist")
    return Split(at, index, f.real("cut"), side)
