"""The checker: its arithmetic, its theorem against the true optimum, coverage of trees, forged and broken files, and its independence."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from flint import fmpq
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.norms import GroupNorm, Norm
from formulations.programs import min_norm
from formulations.sets import Box, LpBall, Polytope, TotalVariation
from tests.catalogue import DIM, NORMS, SETS, start_for
from tests.certificate_example import document, linear_certificate, rehashed, relu_pieces
from verification.certificate_format import parse
from verification.checker import CheckStatus, check_file, check_record
from verification.checking import parts, rationals, theorem
from verification.checking.document import Split
from verification.checking.text import FormatError, canonical, decode

ROOT = Path(__file__).resolve().parents[1]
PIECED = {k: C for k, C in SETS.items() if "own set" not in k}

# ------------------------------------------------------------------------------------------------------------- exact arithmetic

fractions = st.fractions().filter(lambda q: q.denominator < 10**30) | st.floats(allow_nan=False, allow_infinity=False).map(Fraction)


@given(fractions)
def test_rounding_is_on_the_weak_side_and_tight(q: Fraction) -> None:
    r = fmpq(q.numerator, q.denominator)
    low, high = rationals.float_down(r), rationals.float_up(r)
    assert Fraction(low) <= q <= Fraction(high)
    assert high <= math.nextafter(low, math.inf)
    up = rationals.round_up(r)
    assert 0 <= up - r <= abs(r) / 2**200
    if q >= 0:
        s = rationals.sqrt_up(r)
        assert s * s >= r
        assert s * s - r <= r / 2**200
        assert rationals.sqrt_up(rationals.exact(float(min(q, 10**6))) ** 2) >= rationals.exact(float(min(q, 10**6)))


@given(st.fractions(min_value=0, max_value=10**6, max_denominator=2**20))
def test_square_roots_of_dyadic_squares_are_exact(q: Fraction) -> None:
    r = rationals.exact(float(q))
    assert rationals.sqrt_up(r * r) == r


def test_norms_are_upper_bounds_and_dual_to_each_other() -> None:
    rng = np.random.default_rng(0)
    for norm in NORMS.values():
        spec = document(np.zeros(DIM), norm, (), np.ones((1, DIM)), np.zeros(1), np.ones(1), ()).norm
        for _ in range(20):
            v, w = rng.normal(size=DIM), rng.normal(size=DIM) * (rng.random(DIM) < 0.6)
            value, dual = (f(spec, [rationals.exact(x) for x in u]) for f, u in ((parts.value_up, v), (parts.dual_up, w)))
            assert rationals.float_down(value) == pytest.approx(norm.value(v), rel=1e-13)
            assert rationals.float_down(dual) == pytest.approx(norm.dual_value(w), rel=1e-13)
            omega = parts.weights(spec, DIM)
            assert all(o * abs(rationals.exact(x)) <= value for o, x in zip(omega, v, strict=True))


# ------------------------------------------------------------------------------------------------------------------ the theorem


def bound(doc) -> float:
    return rationals.bound_down(theorem.row_bounds(doc)[0])


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_any_multipliers_stay_below_the_optimum_and_the_solvers_reach_it(norm) -> None:
    """Over every set: random multipliers, w included, never exceed the value of the program; the solver's are within 1e-7."""
    rng = np.random.default_rng(11)
    useful = 0
    for j, C in enumerate(PIECED.values()):
        x0, parts = start_for(C), C.parts(DIM)
        inside = C.relative_to(x0).project(rng.normal(size=DIM))
        A = rng.normal(size=(1 + j % 2, DIM))
        A *= -np.sign(A @ inside)[:, None]
        b = 0.7 * np.abs(A @ inside)
        s = min_norm(A[None], b[None], norm, C, x0)[0]
        doc = document(x0, norm, parts, A, b, s.multipliers["margin"], s.duals)
        assert s.value - 1e-7 * max(1.0, s.value) <= bound(doc) <= s.value + 1e-7, C
        (cell,) = doc.cells[0]
        for trial in range(12):
            noise, fresh = 10.0 ** rng.uniform(-6, 0), trial % 3 == 0
            lam = rng.normal(size=len(b)) if fresh else np.array(cell.lam) * (1 + noise * rng.normal(size=len(b)))
            duals = [None if u is None else (np.array(u) * (not fresh) + noise * rng.normal(size=len(u))).tolist() for u in cell.duals]
            w = None if trial % 2 else ((0.0 if cell.w is None or fresh else np.array(cell.w)) + noise * rng.normal(size=DIM)).tolist()
            radius = math.inf if trial % 5 else s.value * 0.5
            found = bound(replace(doc, cells=[[replace(cell, lam=lam.tolist(), duals=duals, w=w, radius=radius)]]))
            assert found <= min(s.value + 1e-7, radius), (C, trial)
            useful += found > 0.5 * s.value
    assert useful > 20


def test_a_box_alone_has_a_closed_form() -> None:
    """min ‖δ‖_∞ s.t. δ_1 + δ_2 ≥ 1, 0 ≤ δ_1 ≤ 1/4: δ = (1/4, 3/4). Numbers that floats hold, so the bound is exact."""
    C = Box([0.0, -np.inf], [0.25, np.inf], on="change")
    doc = document(np.zeros(2), "inf", C.parts(2), np.array([[-1.0, -1.0]]), np.array([1.0]), np.array([1.0]), [None], np.array([0.0, 1.0]))
    assert bound(doc) == 0.75


def test_parts_over_the_input_are_not_shifted_in_floats() -> None:
    """The room between x0 and a bound is not the difference in floats, which is larger in one case below and smaller in the other."""
    for x0, hi in ((0.1, 0.7), (0.3, 1.1)):
        room = Fraction(hi) - Fraction(x0)
        assert room != Fraction(hi - x0)
        for C in (Box(-np.inf, hi), Polytope([[1.0]], [hi])):
            doc = document(
                np.array([x0]),
                2,
                C.parts(1),
                np.array([[-1.0]]),
                np.array([0.1]),
                np.ones(1),
                [None if isinstance(C, Box) else np.zeros(1)],
            )
            assert theorem.Hull(doc).hi[0] == fmpq(room.numerator, room.denominator)
        doc = document(np.array([x0]), 2, C.parts(1), np.array([[-1.0]]), np.array([hi - x0 - 1e-12]), np.ones(1), [np.ones(1)])
        assert theorem.combine(doc, doc.cells[0][0])[1] == rationals.exact(hi - x0 - 1e-12) - theorem.Hull(doc).hi[0]


def test_radius_and_reach() -> None:
    """Changes beyond the radius stay open, unless the radius holds all of C; then no flip in the cell means none at all."""
    C, a = Box(-1.0, 1.0, on="change"), np.ones((1, 4))
    far = document(np.zeros(4), 2, C.parts(4), a, np.array([5.0]), np.ones(1), [None])  # margin ≥ 1 on all of C, ‖δ‖ ≤ 2
    (cell,) = far.cells[0]
    at = {r: bound(replace(far, cells=[[replace(cell, radius=r)]])) for r in (0.0, 1.0, math.nextafter(2.0, 0.0), 2.0, math.inf)}
    assert at == {0.0: 0.0, 1.0: 1.0, math.nextafter(2.0, 0.0): math.nextafter(2.0, 0.0), 2.0: math.inf, math.inf: math.inf}
    near = replace(far, cells=[[replace(cell, b=[1.0], radius=2.0)]])
    assert bound(near) == 0.5


def test_a_set_that_is_empty_by_rounding_proves_nothing() -> None:
    """Frozen coordinates and an equality that misses them by one unit in the last place: huge multipliers would exclude everything."""
    x0 = np.array([0.1, 0.2])
    C = Box(x0, x0) & Polytope(None, None, equal=([[1.0, 1.0]], [0.3]))  # 0.1 + 0.2 > 0.3 in floats
    for eta in (-1e18, 1e18):
        doc = document(x0, 2, C.parts(2), np.array([[1.0, 1.0]]), np.array([1e-12]), np.ones(1), [None, np.array([eta])])
        assert bound(doc) < math.inf
    honest = document(x0, 2, C.parts(2), np.array([[1.0, 1.0]]), np.array([0.5]), np.ones(1), [None, np.zeros(1)])
    assert bound(honest) == math.inf


@pytest.mark.parametrize(
    "norm", [1, 2, "inf", Norm(2, np.linspace(0.5, 2, DIM)), GroupNorm([[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10, 11]])], ids=str
)
def test_reachable_is_never_called_unreachable(norm) -> None:
    """Rows that some member of C just fulfils, with multipliers of programs that nothing fulfils."""
    rng = np.random.default_rng(5)
    for C in (
        Box(0, 1),
        Box(0, 1) & TotalVariation(3.0, (3, 4)),
        Box(0, 1) & Polytope(np.ones((1, DIM)), [1.0], on="change"),
        Box(0, 1) & LpBall(2, 0.5),
    ):
        for _ in range(4):
            x0, a = rng.uniform(size=DIM), rng.normal(size=DIM)
            most = C.relative_to(x0).support(-a)
            ray = min_norm(a, 1.2 * most, norm, C, x0)[0]
            doc = document(x0, norm, C.parts(DIM), a[None], np.array([1.2 * most]), ray.multipliers["margin"], ray.duals)
            assert bound(doc) == math.inf
            (cell,) = doc.cells[0]
            assert bound(replace(doc, cells=[[replace(cell, b=[most * (1 - 1e-6)])]])) < math.inf


# --------------------------------------------------------------------------------------------------------------- trees of splits


@st.composite
def trees(draw, depth: int = 5):
    """The leaves of a random binary tree, as paths."""
    if depth == 0 or draw(st.booleans()):
        return [[]]
    at, index, cut = draw(st.sampled_from(["input", "3", "relu"])), draw(st.integers(0, 3)), draw(st.sampled_from([-1.0, 0.0, 0.5]))
    return [[Split(at, index, cut, side), *leaf] for side in (-1, 1) for leaf in draw(trees(depth - 1))]


@given(trees(), st.randoms())
def test_all_leaves_cover_and_fewer_do_not(leaves, random) -> None:
    random.shuffle(leaves)
    assert theorem.covers(leaves)
    gone = random.randrange(len(leaves))
    assert not theorem.covers(leaves[:gone] + leaves[gone + 1 :])
    if leaves[gone]:
        at = random.randrange(len(leaves[gone]))
        s = leaves[gone][at]
        for other in (replace(s, side=-s.side), replace(s, cut=s.cut + 1), replace(s, index=s.index + 1), replace(s, at="other")):
            assert not theorem.covers([*leaves[:gone], [*leaves[gone][:at], other, *leaves[gone][at + 1 :]], *leaves[gone + 1 :]])


@pytest.mark.parametrize("norm", [1, 2, "inf"])
def test_a_network_split_into_its_pieces_is_exact(norm) -> None:
    """lower is below every flip that sampling finds, and within reach of the nearest."""
    cert, model, _C = relu_pieces(norm)
    assert cert.check(model).ok, cert.check(model)
    assert cert.lower > 0
    import torch

    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 2, size=(40_000, 4))
    row = cert.record["decision"]
    margin = model(torch.as_tensor(z)).detach().numpy()[:, 0] + float.fromhex(row["shifts"][0])
    distances = Norm.of(norm).value(z - 0.5)[margin <= 0]
    assert len(distances)
    assert distances.min() >= cert.lower
    nearest = z[margin <= 0][distances.argmin()] - 0.5
    for _ in range(4000):  # a crude descent
        trial = nearest * 0.999 + 0.02 * rng.normal(size=4) * rng.random()
        if (np.abs(trial - 0.5) <= 1.5).all() and Norm.of(norm).value(trial) < Norm.of(norm).value(nearest):
            out = float(model(torch.as_tensor(0.5 + trial)[None])[0, 0].detach()) + float.fromhex(row["shifts"][0])
            nearest = trial if out <= 0 else nearest
    assert cert.lower <= Norm.of(norm).value(nearest) <= 1.15 * cert.lower


def test_a_missing_leaf_is_named() -> None:
    record = copy.deepcopy(relu_pieces()[0].record)
    del record["rivals"][0]["cells"][3]
    report = check_record(rehashed(record))
    assert report.status is CheckStatus.INVALID
    assert "do not cover" in report.reasons[0]


def test_input_splits_narrow_the_hull() -> None:
    """m(δ) = 1 − |δ_1|: no affine minorant does better than radius 1, and each side of δ_1 = 0 has an exact one. On [0, ½] × R: unreachable."""
    x0, parts = np.array([0.5, 0.0]), Box([0.0, -5.0], [1.0, 5.0]).parts(2)
    doc = document(x0, "inf", parts, np.array([[1.0, 0.0]]), np.array([1.0]), np.ones(1), [None])
    (cell,) = doc.cells[0]
    left = replace(cell, path=[Split("input", 0, 0.5, -1)])
    right = replace(cell, path=[Split("input", 0, 0.5, 1)], a=[[-1.0, 0.0]])
    assert bound(replace(doc, cells=[[left, right]])) == math.inf
    wider = replace(doc, parts=[replace(doc.parts[0], lo=[-2.0, -5.0], hi=[3.0, 5.0])], cells=[[left, right]])
    assert bound(wider) == 1.0
    assert bound(replace(wider, cells=[[left]])) == 0.0


# -------------------------------------------------------------------------------------------------------------------- forgeries


def up(value: str) -> str:
    return math.nextafter(float.fromhex(value), math.inf).hex()


def scaled(factor: float):
    return lambda value: (float.fromhex(value) * factor).hex()


def binding(record) -> int:
    return int(np.argmin([float.fromhex(r["lower"]) for r in record["rivals"]]))


def largest(values: list[str]) -> int:
    return int(np.argmax([abs(float.fromhex(v)) for v in values]))


def edit(record, path, change):
    out = copy.deepcopy(record)
    node = out
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = change(node[path[-1]]) if callable(change) else change
    return out


def forgeries(record):
    """name: (path, change, what the reason says). Each makes the claim stronger than its evidence, or breaks a statement of the record."""
    k = binding(record)
    cell = record["rivals"][k]["cells"][0]
    at = ("rivals", k, "cells", 0)
    row = largest(cell["a"][0])
    kinds = {p["kind"]: j for j, p in enumerate(record["set"])}
    box, tv, rows, equalities = kinds["box"], 1, kinds["rows"], kinds["equalities"]
    i = largest(record["witness"]["input"])
    table = {
        "lower": (("lower",), up, "lower=.* exceeds what the evidence proves"),
        "lower inf": (("lower",), "inf", "lower=inf exceeds"),
        "rival's lower": (("rivals", k, "lower"), up, rf"rivals\[{k}\].lower"),
        "margin multiplier": ((*at, "lam", 0), scaled(1.01), "exceeds what the evidence proves"),
        "margin multiplier, negative": ((*at, "lam", 0), scaled(-1), "exceeds what the evidence proves"),
        "row entry": ((*at, "a", 0, row), scaled(1.05), "exceeds what the evidence proves"),
        "row constant, lower": ((*at, "b", 0), scaled(0.99), "exceeds what the evidence proves"),
        "row constant, higher": ((*at, "b", 0), scaled(1.01), "exceeds the margin that is stored for x0"),
        "radius": ((*at, "radius"), lambda _: (float.fromhex(record["lower"]) * 0.99).hex(), "exceeds what the evidence proves"),
        "dual of tv": ((*at, "duals", tv, largest(cell["duals"][tv])), scaled(1.3), "exceeds what the evidence proves"),
        "dual of rows": ((*at, "duals", rows, 0), scaled(0.5), "exceeds what the evidence proves"),
        "dual of equalities": ((*at, "duals", equalities, 0), scaled(1.2), "exceeds what the evidence proves"),
        "tv budget": (("set", tv, "rho"), scaled(1.02), "exceeds what the evidence proves"),
        "tv budget, too small": (("set", tv, "rho"), scaled(0.02), "the witness violates part 'tv'"),
        "box": (("set", box, "hi", i), scaled(0.5), "violates part 'box'"),
        "row of the set": (("set", rows, "h", 0), scaled(1.02), "exceeds what the evidence proves"),
        "matrix of the set": (("set", rows, "matrix", "data", 0), scaled(0.9), "exceeds what the evidence proves"),
        "equality": (("set", equalities, "h", 0), scaled(1.001), "x0 violates part 'polytope'"),
        "norm weight": (("norm", "weights", largest(cell["w"])), scaled(0.5), "exceeds what the evidence proves"),
        "norm weight, larger": (("norm", "weights", largest(cell["w"])), scaled(2.0), "is not the witness's distance"),
        "x0": (("input", "x0", 2), scaled(1.01), "input.sha256"),
        "input hash": (("input", "sha256"), "0" * 64, "input.sha256"),
        "upper": (("upper",), lambda v: math.nextafter(float.fromhex(v), 0).hex(), "is not the witness's distance"),
        "upper below lower": (("upper",), (0.0).hex(), "exceeds upper"),
        "upper inf": (("upper",), "inf", "is not the witness's distance"),
        "witness": (("witness", "input", i), scaled(3), "the witness violates part"),
        "witness moved": (("witness", "input", i), lambda v: (float.fromhex(v) + 1e-3).hex(), "the witness violates part 'polytope'|distance|part 'tv'"),
        "witness outputs": (("witness", "outputs"), record["outputs"], "do not flip"),
        "no witness": (("witness",), None, "has no witness"),
        "outputs": (("outputs", 0), lambda _: (-1e6).hex(), "does not stand"),
        "decision row": (("decision", "rows", k, k + 1), scaled(0.1), "stored for x0|does not stand"),
        "threshold": (("decision", "shifts", k), lambda _: (-0.3).hex(), "stored for x0|does not stand"),
        "verdict": (("verdict",), "CERTIFIED_UNREACHABLE", "verdict=CERTIFIED_UNREACHABLE does not follow"),
        "tolerance": (("tolerances", "feasibility"), (1e-3).hex(), "looser than"),
        "outputs' tolerance": (("tolerances", "outputs"), (1.0).hex(), "looser than"),
        "no cells": (("rivals", k, "cells"), [], "exceeds what the evidence proves"),
        "row_of": ((*at, "row_of", 0), 0, "row_of"),
        "format": (("format",), "other", "format='other'"),
        "version": (("version",), 2, "version=2 is not known"),
        "version true": (("version",), True, "version"),
        "model hash of another length": (("model", "sha256"), "ab", "model.sha256"),
        "rival's name": (("rivals", k, "rival"), 7, "does not belong to row"),
        "unknown field": (("extra",), 1, "unknown field 'extra'"),
    }  # fmt: skip
    return table


@pytest.fixture(scope="module")
def rich():
    cert, _ = linear_certificate(Norm(2, np.linspace(0.8, 1.2, 6)))
    assert check_record(cert.record).ok
    return cert.record


def test_every_forgery_is_refused_with_its_reason(rich) -> None:
    for name, (path, change, reason) in forgeries(rich).items():
        forged = edit({**rich, "extra": None} if name == "unknown field" else rich, path, change)
        plain = check_record(forged)
        assert plain.status is CheckStatus.INVALID, name
        assert plain.reasons == ("sha256: the file's own hash does not match its content",), name
        clever = check_record(rehashed(forged))
        assert clever.status is CheckStatus.INVALID, name
        assert re.search(reason, "; ".join(clever.reasons)), (name, clever.reasons)
        assert all("\n" not in r for r in clever.reasons)


def test_missing_fields_are_named(rich) -> None:
    for key in rich:
        if key == "sha256":
            continue
        forged = rehashed({k: v for k, v in rich.items() if k != key})
        report = check_record(forged)
        assert report.status is CheckStatus.INVALID
        assert key in report.reasons[0]


def test_harmless_changes_need_only_an_honest_hash(rich) -> None:
    for path, change in ((("notes",), {"told": "nothing"}), (("versions", "numpy"), "9"), (("command",), "x"), (("seed",), None), (("lower",), scaled(0.5)),
                         (("upper",), scaled(2)), (("model", "sha256"), "a" * 64)):  # fmt: skip
        forged = edit(rich, path, change)
        plain = check_record(forged)
        assert plain.status is CheckStatus.INVALID
        assert "still follows from its evidence" in plain.reasons[0]
        assert check_record(rehashed(forged)).ok, path


def test_another_model_is_refused(rich) -> None:
    assert check_record(rich, model_sha256=rich["model"]["sha256"]).ok
    assert "model.sha256" in check_record(rich, model_sha256="f" * 64).reasons[0]


def test_levels_beyond_this_version_are_not_claimed(rich) -> None:
    for level in ("B", "C", "Z"):
        report = check_record(rich, level=level)
        assert report.status is CheckStatus.CANNOT_DECIDE
        assert not report.ok
        assert f"level {level}" in report.reasons[0]
    assert check_record(edit(rich, ("lower",), up), level="B").status is CheckStatus.INVALID


# ----------------------------------------------------------------------------------------------------------------- broken files


def write(tmp_path, data: bytes) -> Path:
    path = tmp_path / "c.json"
    path.write_bytes(data)
    return path


def test_broken_files_have_a_one_line_reason(tmp_path, rich) -> None:
    whole = canonical(rich)
    deep = b'{"notes":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    cases = {
        "empty": b"", "truncated": whole[:-1], "half": whole[: len(whole) // 2], "binary": bytes(range(256)), "a list": b"[]", "a number": b"1",
        "deep": deep, "deep, open": b"[" * 1_000_000, "NaN": whole.replace(b'"seed":3', b'"seed":NaN'), "infinity": whole.replace(b'"seed":3', b'"seed":1e999'),
        "twice": b'{"format":"lde-certificate",' + whole[1:], "huge integer": whole.replace(b'"seed":3', b'"seed":' + b"9" * 5000),
        "surrogate": whole.replace(b'"test"', b'"\\ud800"'), "pickle": b"\x80\x04\x95.", "nul": whole.replace(b"test", b"te\x00t"),
    }  # fmt: skip
    for name, data in cases.items():
        assert data != whole, name
        report = check_file(write(tmp_path, data))
        assert report.status is CheckStatus.INVALID, name
        assert len(report.reasons) == 1, name
        assert "\n" not in report.reasons[0], name
        assert len(report.reasons[0]) < 300, name
    assert "deeper" in check_file(write(tmp_path, deep)).reasons[0]
    assert check_file(write(tmp_path, whole)).ok
    assert "larger than 100 bytes" in check_file(write(tmp_path, whole), max_bytes=100).reasons[0]
    for missing in (tmp_path / "none.json", tmp_path):
        assert check_file(missing).status is CheckStatus.INVALID


def test_every_truncation_is_refused(tmp_path, rich) -> None:
    whole = canonical(rich)
    for cut in range(0, len(whole), 97):
        with pytest.raises(FormatError):
            decode(whole[:cut])


JUNK = [None, [], {}, "", "x", "nan", "inf", 7, -1, True, 1.5, "0x1p99999", "0x1.8p+1", ["0x0.0p+0"], [[]], {"p": "2"}, 10**400]


def nodes(node, path=()):
    """Paths of every node; of a list only its ends."""
    if path:
        yield path
    items = (
        node.items()
        if isinstance(node, dict)
        else [(i, node[i]) for i in sorted({0, len(node) - 1})]
        if isinstance(node, list) and node
        else []
    )
    for k, v in items:
        yield from nodes(v, (*path, k))


def test_junk_in_any_place_never_crashes_the_checker(rich) -> None:
    free = ("notes", "provenance", "versions", "command", "seed", "method", "model", "sha256")
    for path, junk in itertools.product(nodes(rich), JUNK):
        forged = edit(rich, path, lambda _, junk=junk: copy.deepcopy(junk))
        try:
            forged = rehashed(forged)
        except FormatError:
            continue
        report = check_record(forged)
        if report.ok and path[0] not in free:
            assert report.lower <= report.proved, (path, junk)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_bytes_never_crash_and_never_pass(tmp_path_factory, rich, data) -> None:
    whole = bytearray(canonical(rich))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        action = data.draw(st.sampled_from(["flip", "delete", "insert", "repeat"]))
        if action == "flip":
            whole[at] = data.draw(st.integers(0, 255))
        elif action == "delete":
            del whole[at : at + data.draw(st.integers(1, 50))]
        else:
            piece = data.draw(st.binary(max_size=4)) if action == "insert" else bytes(whole[at : at + 40])
            whole[at:at] = piece
    path = tmp_path_factory.mktemp("fuzz") / "c.json"
    path.write_bytes(bytes(whole))
    report = check_file(path)
    assert report.status is CheckStatus.INVALID or decode(bytes(whole)) == rich


def test_hostile_sizes_do_not_cost_memory_or_time(rich) -> None:
    """Shapes that the data does not have, numbers at the ends of the range, and matrices with nothing in them."""
    for path, change in (
        (("set", 1, "matrix", "shape"), [10**15, 6]), (("set", 1, "matrix", "shape"), [7, 10**15]), (("input", "shape"), [10**15, 10**15]),
        (("set", 1, "matrix", "indptr"), [0] * 8), (("set", 1, "matrix", "indices", 0), 10**15), (("decision", "rows"), [[]] * 3),
    ):  # fmt: skip
        assert check_record(rehashed(edit(rich, path, change))).status is CheckStatus.INVALID, path
    extreme = copy.deepcopy(rich)
    tiny, huge = (5e-324).hex(), sys.float_info.max.hex()
    for cell in (c for r in extreme["rivals"] for c in r["cells"]):
        cell["a"] = [[(huge if i % 2 else tiny) for i in range(6)]]
        cell["lam"], cell["w"] = [huge], [tiny] * 6
    assert check_record(rehashed(extreme)).status is CheckStatus.INVALID


# ----------------------------------------------------------------------------------------------------------------- independence

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "cvxpy", "clarabel", "scs", "scipy", "auto_LiRPA", "formulations", "lde_cvx", "sklearn", "pandas"}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Refuse())
"""


def test_the_checker_needs_numpy_and_flint_only(tmp_path, rich) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(canonical(rich))
    bad.write_bytes(canonical(rehashed(edit(rich, ("lower",), up))))
    code = BLOCKED + "from verification.checker import main; sys.exit(main(sys.argv[1:]))"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)

    done = run(str(good))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{good}: valid")
    assert run(str(good), str(bad)).returncode == 1
    assert run("--level", "B", str(good)).returncode == 2
    assert run("--model-sha256", "0" * 64, str(good)).returncode == 1


def test_the_module_runs_alone(tmp_path, rich) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(rich, indent=1))  # any spelling of the same record
    done = subprocess.run([sys.executable, "-m", "verification.checker", str(good)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "BRACKETED" in done.stdout


# ------------------------------------------------------------------------------------------------------------------- the schema


def test_the_published_schema_and_the_checker_agree(rich) -> None:
    """Every certificate fits the schema, and what does not fit it is not read. The converse is the checker's: shapes are more than a schema can say."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "verification" / "certificate_schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for record in (rich, relu_pieces()[0].record, linear_certificate(GroupNorm([[0, 1, 2], [3, 4], [5]]))[0].record):
        assert list(validator.iter_errors(record)) == []
    refused = 0
    for path, junk in itertools.product([p for p in nodes(rich) if p[0] not in ("notes", "provenance", "versions")], JUNK):
        forged = edit(rich, path, lambda _, junk=junk: copy.deepcopy(junk))
        try:
            parse(forged)
        except FormatError:
            refused += 1
            continue
        assert validator.is_valid(forged), (path, junk)
    assert refused > 1000
    assert not validator.is_valid(edit(rich, ("lower",), 0.5))
