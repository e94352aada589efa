"""Laws of a schema: encoding has a way back, the set in model space is the rules in original units, contradictions come with a proof."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from formulations.errors import InputError
from formulations.norms import GroupNorm
from formulations.programs import min_norm
from formulations.semantic import Categorical, Numeric, Schema, find_contradiction, parse_relation
from formulations.semantic.contradictions import LinearRow

FRAME = pd.DataFrame(
    {
        "age": [19, 25, 33, 47, 61, 75],
        "housing": ["own", "rent", "own", "for free", "rent", "own"],
        "income": [900.5, 1800.25, 2500.1, 3300.0, 1200.75, 5100.3],
        "debt": [100, 4000, 250, 12000, 0, 900],
        "phone": [True, False, True, True, False, False],
        "level": [1, 2, 3, 1, 2, 3],
    },
    index=list("uvwxyz"),
)


def schema(**rules):
    return Schema.from_frame(FRAME, **rules)


# ---- encoding ------------------------------------------------------------------------------------------------------


def test_layout():
    s = schema(categorical=["level"])
    assert s.feature_names == (
        "age", "housing=for free", "housing=own", "housing=rent", "income", "debt", "phone=False", "phone=True", "level=1", "level=2", "level=3",
    )  # fmt: skip
    assert s.groups == ((0,), (1, 2, 3), (4,), (5,), (6, 7), (8, 9, 10))
    assert GroupNorm(s.groups).dim == s.dim == 11
    assert s.relaxed == ("age", "housing", "debt", "phone", "level")
    z = s.encode(FRAME)
    numeric = z[:, [0, 4, 5]]
    assert np.allclose(numeric.mean(0), 0, atol=1e-12)
    assert np.allclose(numeric.std(0), 1)
    assert np.array_equal(s.scale[[1, 2, 3, 6, 7]], np.ones(5))
    assert np.allclose(s.scale[[0, 4, 5]], FRAME[["age", "income", "debt"]].std(ddof=0))


@pytest.mark.parametrize("rules", [{}, {"categorical": ["level", "age"]}, {"immutable": ["age"], "permitted_range": {"debt": (0, None)}}])
def test_encode_then_decode_is_the_identity_on_rows(rules):
    s = schema(**rules)
    z = s.encode(FRAME)
    back = s.decode(z)
    pd.testing.assert_frame_equal(back, FRAME.reset_index(drop=True), rtol=1e-14, check_dtype=False)
    for column in ("age", "debt", "level"):  # whole numbers come back exactly, with their type
        assert back[column].tolist() == FRAME[column].tolist()
        assert back[column].dtype == np.int64
    assert np.allclose(s.encode(back), z, atol=1e-14)
    assert not s.fractional(z).to_numpy().any()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-(10**12), 10**12), min_size=2, max_size=8, unique=True), st.booleans())
def test_whole_numbers_survive_the_way_there_and_back(values, shifted):
    df = pd.DataFrame({"x": values})
    s = Schema.from_frame(df, units={"x": "DM"} if shifted else {})
    assert s.decode(s.encode(df))["x"].tolist() == values
    assert s.violations(s.encode(df)[0]) == []


def test_rows_may_be_a_series_or_a_mapping():
    s = schema()
    expected = s.encode(FRAME)[1:2]
    assert np.array_equal(s.encode(FRAME.iloc[1]), expected)
    assert np.array_equal(s.encode(FRAME.iloc[1].to_dict()), expected)
    assert np.array_equal(s.encode(FRAME.iloc[[1]].assign(extra=3)), expected)


def test_fractions_are_flagged_and_said_in_words():
    s = schema()
    x0 = s.encode(FRAME)[0]
    x1 = x0.copy()
    x1[s.places["age"]] += 0.3
    x1[s.places["housing"]] = [0.1, 0.6, 0.3]
    x1[s.places["income"]] += 1.0
    flags = s.fractional(x1)
    assert flags.loc[0].to_dict() == {"age": True, "housing": True, "debt": False, "phone": False, "level": False}
    assert s.decode(x1)["housing"].tolist() == ["own"]
    by = {c.column: c for c in s.changes(x0, x1)}
    assert set(by) == {"age", "housing", "income"}
    assert by["age"].relaxed
    assert by["housing"].relaxed
    assert not by["income"].relaxed
    assert by["age"].amount == pytest.approx(0.3 * FRAME["age"].std(ddof=0))
    assert by["housing"].amount == pytest.approx(0.4)
    assert str(by["housing"]) == "housing: own → 0.6 own + 0.3 rent + 0.1 for free (relaxed)"
    assert by["housing"].after == "0.6 own + 0.3 rent + 0.1 for free"
    assert np.allclose(s.to_units(x1 - x0)[s.places["income"]], FRAME["income"].std(ddof=0))


# ---- the set -------------------------------------------------------------------------------------------------------

RULES = {
    "immutable": ["phone"],
    "increasing": ["age"],
    "decreasing": ["debt"],
    "relations": ["debt <= 5 * income", "age + level >= 19.5", "income == income + level - 2 * (level / 2)"],
    "permitted_range": {"income": (500, 8000), "housing": ["own", "rent"]},
    "budget": 3.0,
}


def named_parts(convex_set, dim):
    return {part.name: part for part in convex_set.parts(dim)}


def test_names_of_the_sets():
    rules = {**RULES, "relations": RULES["relations"][:2]}
    s = schema(**rules)
    assert [m.name for m in s.polytope().members()] == ["ranges", "one_hot", "fixed", "direction", "relations", "budget"]
    assert [m.name for m in schema().polytope().members()] == ["ranges", "one_hot"]
    assert s.polytope() is s.polytope(FRAME.iloc[0])  # one object, so that a compiled program serves every row


def test_an_empty_relation_is_refused():
    with pytest.raises(InputError, match="no column is left"):
        schema(relations=RULES["relations"][2:])


def satisfies(row, x0, budget, s, slack=0.0):
    """The rules of RULES (its first two relations) in original units, by hand; `slack` > 0 loosens, < 0 tightens."""
    scale = {c.name: c.scale for c in s.columns}
    e = slack
    ok = 19 - e * scale["age"] <= row["age"] <= 75 + e * scale["age"]
    ok &= 500 - e * scale["income"] <= row["income"] <= 8000 + e * scale["income"]
    ok &= -e * scale["debt"] <= row["debt"] <= 12000 + e * scale["debt"]
    ok &= 1 - e <= row["level"] <= 3 + e
    ok &= row["age"] >= x0["age"] - e * scale["age"]
    ok &= row["debt"] <= x0["debt"] + e * scale["debt"]
    ok &= row["debt"] <= 5 * row["income"] + e * 5 * scale["income"]
    ok &= row["age"] + row["level"] >= 19.5 - e
    return bool(ok & (budget <= 3.0 + e))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 5), st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 2**31))
def test_the_set_is_the_rules_in_original_units(i, moves, switch, seed):
    s = schema(**{**RULES, "relations": RULES["relations"][:2]})
    row = FRAME.iloc[i]
    x0 = s.encode(row)[0]
    if row["housing"] == "for free":
        with pytest.raises(InputError, match="housing=for free is outside"):
            s.polytope(row)
        return
    allowed = s.polytope(row).relative_to(x0)
    delta = np.zeros(s.dim)
    for name, move in zip(("age", "income", "debt", "level"), moves, strict=True):
        delta[s.places[name]] = move
    shares = np.zeros(3)
    if switch:
        shares = np.random.default_rng(seed).dirichlet(np.ones(3)) * [0 if switch == 1 else 1, 1, 1]
        shares = shares / shares.sum() - x0[s.places["housing"]]
        delta[s.places["housing"]] = shares
    point = {n: float(row[n]) + delta[s.places[n]][0] * s.column(n).scale for n in ("age", "income", "debt", "level")}
    excluded = x0[s.places["housing"]][0] + shares[0]
    if satisfies(point, row, np.abs(delta).sum(), s, -1e-6) and excluded <= 0:
        assert allowed.contains(delta)
        assert s.violations(x0 + delta) == []
    if not satisfies(point, row, np.abs(delta).sum(), s, 1e-6) or excluded > 1e-6:
        assert not allowed.contains(delta)
    delta[s.places["phone"]] += [1e-6, -1e-6]  # immutable
    assert not allowed.contains(delta)


def test_no_change_is_always_allowed():
    s = schema(
        **{
            **RULES,
            "permitted_range": {},
            "relations": ["debt <= 5 * income", "1e3 * level >= 0.1 * age", "level == level + 0 * age + age - age + 0"][:2],
        }
    )
    for i in range(len(FRAME)):
        x0 = s.encode(FRAME.iloc[i])[0]
        assert s.polytope(x0).relative_to(x0).violation(np.zeros(s.dim)) <= 1e-15


def test_features_to_vary_fixes_the_rest():
    s = schema(features_to_vary=["income", "housing"])
    free = {f for f, fixed in zip(s.feature_names, s.fixed, strict=True) if not fixed}
    assert free == {"income", "housing=for free", "housing=own", "housing=rent"}
    assert s.polytope().relative_to(s.encode(FRAME)[0]).support(np.eye(s.dim)[s.places["housing"].start + 1]) == pytest.approx(0, abs=1e-7)
    lo, hi = s.polytope().relative_to(s.encode(FRAME)[0]).bounding_box(s.dim)
    assert np.array_equal((lo == 0) & (hi == 0), s.fixed)
    assert np.isfinite(lo).all()
    assert np.isfinite(hi).all()
    assert not schema().varying(None).fixed.any()
    assert schema().varying(["age"]).fixed.sum() == s.dim - 1
    assert np.array_equal(schema(features_to_vary="all").fixed, schema().fixed)


def test_rules_on_fixed_columns_are_checked_then_left_out():
    s = schema(immutable=["age", "level"], relations=["age <= 30 * level"])
    assert [m.name for m in s.polytope().members()] == ["ranges", "one_hot", "fixed"]
    with pytest.raises(InputError, match=r"relation 'age <= 30 \* level' fails with age=47, level=1"):
        s.polytope(FRAME.loc["x"])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.fractions(-5, 5, max_denominator=20), min_size=3, max_size=3), st.fractions(-1000, 1000, max_denominator=7))
def test_relations_are_moved_to_model_space_exactly(c, r):
    if not any(c):
        return
    text = f"({c[0]}) * age + ({c[1]}) * income + ({c[2]}) * debt <= {r}".replace("(-", "(-1 * ")
    try:
        s = schema(relations=[text])
    except InputError:  # r lies beyond what the ranges can reach
        assume(False)
    part = named_parts(s.polytope(), s.dim)["relations"].piece
    row, h = part.G.toarray()[0], part.h[0]
    k = float(np.abs(row).max())
    assert 1 <= k < 2
    # evaluated in rationals at an exact point of model space, the row is the relation up to the last rounding of its entries
    z = {n: Fraction(1, 3) for n in ("age", "income", "debt")}
    true = sum((ci * (Fraction(s.column(n).mean) + Fraction(s.column(n).std) * z[n]) for ci, n in zip(c, z, strict=True)), Fraction(0)) - r
    got = sum((Fraction(row[s.places[n].start]) * z[n] for n in z), Fraction(0)) - Fraction(h)
    exact_row = [float(ci * Fraction(s.column(n).std)) for ci, n in zip(c, z, strict=True)]
    scale = Fraction(2) ** int(np.floor(np.log2(np.abs(exact_row).max())))
    assert abs(float(got - true / scale)) <= 2**-52 * (3 + abs(h))


# ---- prices --------------------------------------------------------------------------------------------------------


def test_prices_are_per_original_unit():
    """A price times a shift of the level in original units equals the multiplier times the shift of the level in model space."""
    units = {"age": "year", "income": "DM"}
    base = schema(permitted_range={"age": (10, 80)}, relations=["debt <= 5 * income", "age == 10 + 20 * level"], units=units)
    later = schema(permitted_range={"age": (10, 81)}, relations=["debt <= 5 * income + 1", "age == 11 + 20 * level"], units=units)
    rng = np.random.default_rng(0)
    old, new = (named_parts(s.polytope(), s.dim) for s in (base, later))
    mu = rng.uniform(size=(2, base.dim))
    by = {p.item: p for p in base.unit_price("ranges", mu)}
    moved = new["ranges"].piece.hi - old["ranges"].piece.hi
    assert by["age <= 80"].price == pytest.approx(float(mu[1] @ moved))
    assert by["age <= 80"].unit == "year of age"
    assert by["housing=own >= 0"].unit == "share of housing"
    inequality = [p.piece for p in base.polytope().parts(base.dim) if p.name == "relations"]
    shifted = [p.piece for p in later.polytope().parts(base.dim) if p.name == "relations"]
    eta = np.array([0.7, -0.4])
    prices = base.unit_price("relations", eta)
    for k in range(2):
        assert prices[k].price == pytest.approx(float(eta[k] * (shifted[k].h[0] - inequality[k].h[0])))
    assert [p.item for p in prices] == ["debt <= 5 * income", "age == 10 + 20 * level"]
    assert base.unit_price("ranges", np.zeros((2, base.dim))) == ()


@pytest.mark.parametrize("rule", ["range", "relation", "budget"])
def test_prices_are_the_slopes_of_the_distance(rule):
    """The solved program gets nearer by price·t when the rule is loosened by t years, marks or standardised units."""

    def at(t):
        ranges = {"age": (19, 60 + t)} if rule == "range" else {}
        relations = [f"debt + 100 * age <= {9000 + t}"] if rule == "relation" else []
        s = schema(permitted_range=ranges, relations=relations, budget=2.0 + t if rule == "budget" else None, immutable=["housing"])
        x0 = s.encode(FRAME.loc["v"])[0]
        a = np.zeros(s.dim)
        a[[s.places[n].start for n in ("age", "debt", "income")]] = [-1.0, -0.9, -0.4]
        return s, min_norm(a, np.array([3.8 if rule == "range" else 1.9]), 2, s.polytope(FRAME.loc["v"]), x0)[0]

    s, solved = at(0.0)
    step = {"range": 0.01, "relation": 1.0, "budget": 1e-4}[rule]
    slope = (at(-step)[1].value - at(step)[1].value) / (2 * step)
    name = {"range": "ranges", "relation": "relations", "budget": "budget"}[rule]
    item = {"range": "age <= 60", "relation": "debt + 100 * age <= 9000.0", "budget": "budget of 2"}[rule]
    price = next(p for p in s.unit_price(name, solved.multipliers[name]) if p.item == item)
    assert slope > 0
    assert price.price == pytest.approx(slope, rel=0.01)
    if rule != "budget":  # nothing pulls at `phone`, and no ray of multipliers lets its prices drift
        assert all(p.price < 1e-3 for p in s.unit_price("ranges", solved.multipliers["ranges"]) if "phone" in p.item)


def test_prices_of_the_other_sets():
    s = schema(immutable=["age"], increasing=["income"], budget=2.0, units={"age": "year"})
    mu = np.zeros((2, s.dim))
    mu[0, s.places["age"]] = 0.5
    (price,) = s.unit_price("fixed", mu)
    assert price.price == pytest.approx(0.5 / FRAME["age"].std(ddof=0))
    assert str(price).startswith("age (held fixed), if it may fall: ")
    assert str(price).endswith(" per year of age")
    mu = np.zeros((2, s.dim))
    mu[0, s.places["income"]] = 0.25
    assert s.unit_price("direction", mu)[0].item == "income (one-way), if it may fall"
    assert [p.price for p in s.unit_price("one_hot", [-2.0, 0.0])] == [-2.0]
    assert s.unit_price("budget", [0.0] * (s.dim - 1) + [-0.3])[0].price == 0.3
    assert np.allclose(s.per_unit(np.ones(s.dim)) * s.scale, 1)
    assert s.units_of("age") == "year of age"
    assert s.units_of("housing=own") == "share of housing"
    with pytest.raises(InputError, match="no set 'box'"):
        s.unit_price("box", mu)
    with pytest.raises(InputError, match=r"shape \(2, "):
        s.unit_price("ranges", [1.0])
    with pytest.raises(InputError, match="no feature 'agee'"):
        s.units_of("agee")


# ---- relations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "coefficients", "bound", "equality"),
    [
        ("a <= b", {"a": 1, "b": -1}, 0, False),
        ("a>=b", {"a": -1, "b": 1}, 0, False),
        ("a ≤ 10 * b", {"a": 1, "b": -10}, 0, False),
        ("0.1*a - (b - 2) / 4 <= 1e-1", {"a": Fraction(1, 10), "b": Fraction(-1, 4)}, Fraction(-4, 10), False),
        ("-a == --b + 3", {"a": -1, "b": -1}, 3, True),
        ("2 * (3 * (a + 1)) >= 5 + a", {"a": -5}, 1, False),
        ("`hours per-week` <= .5 * a", {"hours per-week": 1, "a": Fraction(-1, 2)}, 0, False),
    ],
)
def test_relations_are_read(text, coefficients, bound, equality):
    r = parse_relation(text, ["a", "b", "hours per-week"])
    assert dict(r.coefficients) == coefficients
    assert (r.bound, r.equality) == (bound, equality)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a < b", r"position 3: found '<', expected .*write <= or >="),
        ("a = b", "position 3: found '='"),
        ("a <= ", "position 6: found the end, expected a number, a column or"),
        ("a <= b <= 3", "position 8: .*one comparison per relation"),
        ("a * b <= 3", "position 3: .*product of columns is not linear"),
        ("a ** 2 <= 3", r"position 4: found '\*'"),
        ("3 / a <= 1", "position 3: .*a number other than 0"),
        ("a / 0 <= 1", "position 3: .*a number other than 0"),
        ("(a <= b", r"position 4: found '<=', expected '\)'"),
        ("a b <= 1", "position 3: found 'b'"),
        ("a <= $", r"position 6: found '\$'"),
        ("agee <= 3", "position 1: no numeric column 'agee'; did you mean 'age'"),
        ("a <= a", "no column is left"),
        ("a <= 1e999999999", "an exponent of at most 300"),
        ("a * 1e300 * 1e300 <= 1", "exceeds 1e"),
        ("(" * 300 + "a" + ")" * 300 + "<= 1", "at most 40 nested"),
        ("-" * 1500 + "a <= 1", "at most 40 nested"),
        ("a" * 3000, "at most 2000 characters"),
        ("", "position 1: found the end"),
    ],
)
def test_typos_in_relations(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_relation(text, ["a", "b", "age"])
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab12.e+-*/()<=> `", max_size=25))
def test_the_parser_reads_or_refuses(text):
    try:
        r = parse_relation(text, ["a", "b"])
    except InputError:
        return
    assert set(r.columns) <= {"a", "b"}
    assert r.columns


# ---- contradictions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            {"relations": ["age >= level + 80"]},
            ["age >= level + 80 (relation)", "age <= 75 (range of the data)", "level >= 1 (range of the data)", "0 <= -6"],
        ),
        ({"relations": ["age <= debt - 1", "debt <= age"]}, ["age <= debt - 1 (relation); debt <= age (relation)", "0 <= -1"]),
        (
            {"relations": ["income == 3 * level"], "permitted_range": {"income": (1000, None)}},
            ["income >= 1000 (permitted_range)", "level <= 3 (range of the data)", "weights 1, 3, 1"],
        ),
    ],
)
def test_contradictory_schemas_name_what_contradicts(rules, words):
    with pytest.raises(InputError, match="cannot hold together") as caught:
        schema(**rules)
    for word in words:
        assert word in str(caught.value)
    if "debt <= age" in str(rules):
        assert "range of the data" not in str(caught.value)  # minimal: ranges play no part


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 8))
def test_contradictions_are_proved_minimal_and_complete(seed, columns, rows):
    """Agreement with an LP solver on small whole-number systems; every proof holds in rationals, and no row of it is idle."""
    rng = np.random.default_rng(seed)
    G, h = rng.integers(-3, 4, (rows, columns)), rng.integers(-4, 5, rows)
    system = [
        LinearRow(f"row {k}", tuple((f"x{j}", Fraction(int(v))) for j, v in enumerate(g) if v), Fraction(int(b)))
        for k, (g, b) in enumerate(zip(G, h, strict=True))
    ]
    feasible = linprog(np.zeros(columns), A_ub=G, b_ub=h, bounds=[(None, None)] * columns).status == 0
    found = find_contradiction(system)
    assert (found is None) == feasible
    if found:
        assert found.holds()
        for k in range(len(found.rows)):
            rest = [r for i, r in enumerate(found.rows) if i != k]
            assert find_contradiction(rest) is None


def test_a_contradiction_by_a_hair_is_found():
    hair = Fraction(1, 10**10)
    rows = [LinearRow("x <= 1", (("x", Fraction(1)),), Fraction(1)), LinearRow("x >= 1 + hair", (("x", Fraction(-1)),), -1 - hair)]
    found = find_contradiction(rows)
    assert found is not None
    assert found.excess == hair
    rows[1] = LinearRow("x >= 1", (("x", Fraction(-1)),), Fraction(-1))
    assert find_contradiction(rows) is None


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"immutable": ["agee"]}, "immutable: no column 'agee'; did you mean 'age'"),
        ({"immutable": "age"}, r"immutable='age': give a list"),
        ({"increasing": ["income"], "decreasing": ["income"]}, "both increasing and decreasing; say immutable"),
        ({"immutable": ["age"], "increasing": ["age"]}, "'age' is both immutable and increasing"),
        ({"increasing": ["housing"]}, "'housing' is categorical and has no direction"),
        ({"categorical": ["nope"]}, "categorical: no column 'nope'"),
        ({"permitted_range": {"nope": (0, 1)}}, "permitted_range: no column 'nope'"),
        ({"permitted_range": {"age": (50, 20)}}, "permitted_range: 'age' from 50 to 20 is empty"),
        ({"permitted_range": {"age": (200, 300)}}, r"holds no row of the data \(19 … 75\)"),
        ({"permitted_range": {"age": (float("nan"), 300)}}, r"must be \(low, high\)"),
        ({"permitted_range": {"age": 3}}, r"must be \(low, high\)"),
        ({"permitted_range": {"housing": ["tent"]}}, "'housing' has no category 'tent'"),
        ({"permitted_range": {"housing": []}}, "permits no category"),
        ({"units": {"housing": "DM"}}, "'housing' is categorical and has no unit"),
        ({"units": {"agee": "year"}}, "units: no column 'agee'"),
        ({"relations": ["housing <= 3"]}, "no numeric column 'housing'"),
        ({"relations": "age <= 3"}, "give a list"),
        ({"relations": [3]}, "relation 3: must be a text"),
        ({"immutable": 3}, "immutable=3: give a list"),
        ({"permitted_range": 3}, "permitted_range=3: give a table"),
        ({"units": ["year"]}, "give a table"),
        ({"budget": -1.0}, "budget=-1.0 must be finite"),
        ({"budget": "x"}, "budget='x' is not a number"),
        ({"features_to_vary": []}, "features_to_vary: is empty"),
        ({"features_to_vary": ["income", "rent"]}, "features_to_vary: no column 'rent'"),
        ({"features_to_vary": ["income"], "immutable": ["income"]}, "'income' is immutable and in features_to_vary"),
    ],
)
def test_contradictory_or_unknown_rules(rules, message):
    with pytest.raises(InputError, match=message) as caught:
        schema(**rules)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": [1, 2, np.nan, 4, 5, 6]}, "column 'age', row w: nan is not a finite number"),
        ({"age": [1, 2, np.inf, 4, 5, 6]}, "column 'age', row w: inf is not a finite number"),
        ({"housing": ["own", None, "own", "rent", "own", "own"]}, "column 'housing', row v: is empty"),
        ({"age": [7] * 6}, "column 'age': every row holds 7; drop a constant column"),
        ({"housing": ["own"] * 6}, "column 'housing': .*drop a constant column"),
        ({"age": pd.date_range("2020-01-01", periods=6)}, "column 'age': datetime64.*derive a number"),
        ({"age": [(1,), (2,), (3,), (4,), (5,), (6,)]}, r"column 'age', row u: \(1,\) is no category"),
        ({"age": [1, "1", 1, "1", 1, "1"]}, "feature 'age=1' occurs twice"),
        ({"bad`name": range(6)}, "column name 'bad`name'"),
    ],
)
def test_unusable_frames(change, message):
    with pytest.raises(InputError, match=message):
        Schema.from_frame(FRAME.assign(**change))


def test_more_unusable_frames():
    with pytest.raises(InputError, match="give a pandas DataFrame"):
        Schema.from_frame([[1, 2]])
    with pytest.raises(InputError, match="1 rows"):
        Schema.from_frame(FRAME.iloc[:1])
    with pytest.raises(InputError, match="column 'age' occurs 2 times"):
        Schema.from_frame(pd.concat([FRAME, FRAME[["age"]]], axis=1))
    with pytest.raises(InputError, match="column name 3"):
        Schema.from_frame(FRAME.rename(columns={"age": 3}))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"housing": "tent"}, "column 'housing', row w: holds the unseen category 'tent'; known: 'for free', 'own', 'rent'"),
        ({"housing": None}, "column 'housing', row w: is empty"),
        ({"age": np.nan}, "column 'age', row w: nan is not a finite number"),
        ({"age": "old"}, "column 'age', row w: 'old' is not a number"),
    ],
)
def test_unusable_rows(cell, message):
    row = FRAME.loc["w"].copy()
    for name, value in cell.items():
        row[name] = value
    with pytest.raises(InputError, match=message):
        schema().encode(row)


def test_rows_outside_their_own_schema_are_named():
    s = schema(relations=["debt <= 5 * income"], units={"age": "year"})
    row = FRAME.loc["w"].to_dict()
    with pytest.raises(InputError, match="age=80 is outside age between 19 and 75 year"):
        s.polytope({**row, "age": 80})
    with pytest.raises(InputError, match=r"relation 'debt <= 5 \* income' fails with debt=12000, income=1000"):
        s.polytope({**row, "debt": 12000, "income": 1000})
    with pytest.raises(InputError, match="one-hot features sum to"):
        s.polytope(s.encode(row)[0] + np.eye(s.dim)[s.places["housing"].start])
    with pytest.raises(InputError, match="column 'age' is missing"):
        s.encode(FRAME.drop(columns="age"))
    with pytest.raises(InputError, match="expected \\(n, "):
        s.decode(np.zeros(3))
    with pytest.raises(InputError, match="outside its own schema"):
        s.polytope(np.full(s.dim, np.nan))


# ---- storage and words ---------------------------------------------------------------------------------------------


def test_storage_keeps_everything(tmp_path):
    rules = {**RULES, "relations": RULES["relations"][:2], "permitted_range": {"income": (500, float("inf")), "housing": ["own", "rent"]}}
    s = schema(**rules, units={"age": "year"}, categorical=["level"][:0])
    back = Schema.from_dict(json.loads(json.dumps(s.to_dict(), allow_nan=False)))
    assert back == s
    assert np.array_equal(back.encode(FRAME), s.encode(FRAME))


TOML = """
immutable = ["phone"]
increasing = ["age"]
relations = ["debt <= 5 * income"]
budget = 4
[permitted_range]
income = [500, 8000]
[units]
age = "year"
"""
STANDALONE = """
relations = ["debt <= 5 * income"]
[[columns]]
name = "income"
kind = "numeric"
mean = 1000
std = 500.0
low = 0
[[columns]]
name = "debt"
kind = "numeric"
mean = 300
std = 100
[[columns]]
name = "housing"
kind = "categorical"
categories = ["own", "rent"]
"""


def test_toml(tmp_path):
    path = tmp_path / "schema.toml"
    path.write_text(TOML)
    expected = schema(
        immutable=["phone"],
        increasing=["age"],
        relations=["debt <= 5 * income"],
        budget=4,
        permitted_range={"income": [500, 8000]},
        units={"age": "year"},
    )
    assert Schema.from_toml(path, FRAME) == expected
    path.write_text(STANDALONE)
    alone = Schema.from_toml(path)
    assert isinstance(alone.column("income"), Numeric)
    assert alone.column("income").high == float("inf")
    assert isinstance(alone.column("housing"), Categorical)
    assert np.allclose(alone.encode({"income": 2000, "debt": 100, "housing": "rent"}), [[2, -2, 0, 1]])


@pytest.mark.parametrize(
    ("text", "with_frame", "message"),
    [
        (None, True, "cannot be read"),
        ("a = ", True, "is not TOML"),
        ("imutable = ['age']", True, "unknown key 'imutable'; did you mean 'immutable'"),
        (TOML, False, r"has no \[\[columns\]\]"),
        (STANDALONE, True, "use one of the two"),
        (STANDALONE.replace("std = 500.0", "std = 0"), False, "std=0.0 must be positive"),
        (STANDALONE.replace("std = 500.0", "std = 'x'"), False, "std='x' must be a number"),
        (STANDALONE.replace("std = 500.0", ""), False, "std=None must be a number"),
        (STANDALONE.replace("low = 0", "low = 9\nhigh = 1"), False, "range from 9.0 to 1.0 is empty"),
        (STANDALONE.replace('"categorical"', '"category"'), False, "kind='category' must be"),
        (STANDALONE.replace('["own", "rent"]', '["own", "own"]'), False, "drop a constant column"),
        ("budget = 'x'\n" + STANDALONE, False, "budget='x' is not a number"),
    ],
)
def test_toml_errors(tmp_path, text, with_frame, message):
    path = tmp_path / "schema.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        Schema.from_toml(path, FRAME if with_frame else None)


def test_description_is_in_words_with_units():
    s = schema(**{**RULES, "relations": ["debt <= 5 * income"]}, units={"income": "DM"})
    text = s.describe()
    for words in (
        "6 columns, 9 features: 4 numeric (standardised), 2 categorical (one-hot)",
        "income between 500 and 8000 DM (stated)",
        "debt between 0 and 12000 (from the data, whole numbers relaxed)",
        "immutable: phone", "may only increase: age", "may only decrease: debt", "relation: debt <= 5 * income", "at most 3 standardised units",
    ):  # fmt: skip
        assert words in text
    assert "phone: one of" not in text
    assert (
        "held fixed (not in features_to_vary): housing" in schema(features_to_vary=["age", "income", "debt", "phone", "level"]).describe()
    )
