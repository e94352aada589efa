r"""The answer about one input.

    lower ≤ v* ≤ upper,   v* = min { ‖Wδ‖ : δ ∈ C, some margin row m_k(δ) ≤ 0 }
    S_i = λ·|a_i|         sensitivity of feature i: λ of the binding rival's margin row in the certified program, a its row

`lower` is certified. `linear_radius` and `quadratic_radius` are values of local models and are not.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from formulations.errors import InputError
from formulations.given import array, whole
from formulations.norms import Array, Norm
from lde_cvx.reading import Reading
from verification.checker import Verdict
from verification.checking.outward import down_words, up_words
from verification.validity import Validity

if TYPE_CHECKING:
    import pandas as pd

    from formulations.kkt import KktDiagnosis, PriceFlag
    from lde_cvx.price_reading import BindingProgram, BoundaryAtWitness
    from lde_cvx.second_order import SecondOrder
    from verification.attack import WitnessMultiplier
    from verification.certificate import Certificate
    from verification.decision import Decision


@dataclass(frozen=True, eq=False)
class Explanation:
    """How far the nearest allowed flip is, on both sides, and why there. Distances in the chosen norm; arrays in the input's shape.

    lower            certified lower bound of v*; +inf: no allowed change flips the decision; 0: nothing is certified
    upper            ‖Wδ‖ of the witness; +inf when none was found
    target           the class (or side) that the binding row flips to
    scores           S_i = λ|a_i|
    multipliers      {"margin": λ (1,), constraint name: array}: of the certified program of the binding rival, of the linearised one for
                     method="linear"; with branching of CROWN's program, since the rows of a tree's leaves speak only of flips nearer than `lower`; a dual
                     ray, of arbitrary size, where that program has no solution. `reading` says which
    prices           {constraint name: …}: how fast the program's value falls per unit of the constraint's level; empty where it has no solution
    witness          x0 + δ, an allowed input that flips the decision in float64; None when none was found
    verdict          what is known; `verdict.sentence(lower)` is the advice. BRACKETED says no more than lower ≤ v* ≤ upper: with `lower` 0, as method="linear"
                     has it, that is the witness alone
    linear_radius    value of the linearised program over C; +inf when it has no solution, NaN when it was not solved. Not certified: see `linear_validity`
    linear_validity  of the linearised radius, less 1e-6 of it (the solver's accuracy)
    linear_certified_fraction   largest fraction of it, at most 1, that the bounds certify
    quadratic_radius    value of the quadratic model over C, with order=2; None when not asked for, NaN when none was found. Not certified: see `quadratic`
    quadratic           that model's record: validity, certified fraction, both sides of its optimum, and whether the Hessian vanishes
    binding             the program that `multipliers` solve; its `diagnosis` says when λ may be read as a price
    boundary            the network about the witness, from which `at_witness` is worked out; None when no witness was found
    """

    x0: Array
    norm: Norm
    decision: Decision
    method: str
    outputs: Array
    lower: float
    upper: float
    target: int
    scores: Array
    multipliers: dict[str, Array]
    prices: dict[str, Any]
    witness: Array | None
    verdict: Verdict
    certificate: Certificate | None
    linear_radius: float
    linear_validity: Validity
    linear_certified_fraction: float
    seconds: float
    quadratic_radius: float | None = None
    quadratic: SecondOrder | None = field(default=None, repr=False)
    binding: BindingProgram | None = field(default=None, repr=False)
    feature_names: Sequence[str] | None = field(default=None, repr=False)
    boundary: BoundaryAtWitness | None = field(default=None, repr=False)

    @property
    def gap(self) -> float:
        """(upper − lower)/upper, in [0, 1]; its limit 1 when only `lower` is known, and 0 when the decision cannot be flipped."""
        if math.isinf(self.lower) or self.upper == 0:
            return 0.0
        return 1.0 if math.isinf(self.upper) else (self.upper - self.lower) / self.upper

    @property
    def margin_multiplier(self) -> float:
        """λ of the margin row: distance per unit of margin; NaN where there is none (see `reading`)."""
        return self.binding.margin_multiplier if self.binding is not None and self.reading.has_lambda else math.nan

    @property
    def reading(self) -> Reading:
        """Of which program λ is, and whether that program's value is what is certified."""
        return Reading.of(None if self.binding is None else self.binding.solution, self.lower, certifies=self.method != "linear")

    @property
    def diagnosis(self) -> KktDiagnosis | None:
        """KKT residuals, active set and flags of the program that `multipliers` solve; None where there is none. Solves a small program on first use."""
        return None if self.binding is None else self.binding.diagnosis

    @property
    def price_flags(self) -> tuple[PriceFlag, ...]:
        """Why λ is not the derivative of that program's value, and notes; every flag's value is the advice. Whatever they say, λ is a slope of a minorant."""
        return () if self.diagnosis is None else self.diagnosis.flags

    @property
    def is_price(self) -> bool:
        """May λ be read as a price: what one more unit of margin adds to the certified program's value, the same on both sides?"""
        return self.diagnosis is not None and self.diagnosis.is_price

    @property
    def at_witness(self) -> WitnessMultiplier | None:
        """λ, KKT residual and active constraints at the witness itself, to be read beside the certified λ: local, not certified. Worked out on first use.

        None without a witness, and where it flips by no more than rounding.
        """
        return None if self.boundary is None else self.boundary.multiplier

    @property
    def change(self) -> Array | None:
        """δ of the witness."""
        return None if self.witness is None else self.witness - self.x0

    def contributions(self, reference: float | Array = 0.0) -> Array:
        """λ a_i (x_i − r_i): how much of the linear reading of the margin, in units of distance, feature i's present value holds up against r.

        Σ_i = λ·(a·δ + b at x0, less that at r); positive speaks for the decision. S_i = λ|a_i| asks what a change of feature i *could* do, this asks what
        its value does, so a feature that already equals its reference has none. The row is a minorant near x0 only: a reading, not a bound, when r is far.
        Zeros where `scores` are. Raises InputError on a reference that does not broadcast to the input's shape.
        """
        given = array("reference", reference)
        if not np.isfinite(given).all():
            raise InputError("reference: holds a value that is not finite; replace it.")
        try:
            step = self.x0 - np.broadcast_to(given, self.x0.shape)
        except ValueError:
            raise InputError(
                f"reference: shape {np.shape(reference)} does not fit the input's {self.x0.shape}; give one input, or a number."
            ) from None
        sign = np.zeros(self.x0.shape) if self.binding is None else np.sign(self.binding.a).reshape(self.x0.shape)
        return np.asarray(self.scores * sign * step)

    def names(self) -> list[str]:
        """A name for every flat feature: `feature_names`, or x[i] / x[i, j] by position."""
        if self.feature_names is not None:
            return [str(n) for n in self.feature_names]
        return [f"x[{', '.join(map(str, np.unravel_index(i, self.x0.shape)))}]" for i in range(self.x0.size)]

    def to_frame(self, top: int | None = None) -> pd.DataFrame:
        """One row per feature, largest score first: feature, value, score, witness (NaN when none was found). Raises InputError on a `top` below 0."""
        import pandas as pd

        if top is not None and whole("top", top) < 0:
            raise InputError(f"top={top} must not be negative; leave it out for all features.")

        witness = np.full(self.x0.size, np.nan) if self.witness is None else self.witness.ravel()
        frame = pd.DataFrame({"feature": self.names(), "value": self.x0.ravel(), "score": self.scores.ravel(), "witness": witness})
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True).head(
            len(frame) if top is None else whole("top", top)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings; infinities stay floats."""
        return {
            "norm": self.norm.label, "decision": self.decision.label, "method": self.method, "verdict": self.verdict.name,
            "lower": self.lower, "upper": self.upper, "gap": self.gap, "target": self.target, "outputs": self.outputs.tolist(),
            "linear_radius": self.linear_radius, "linear_validity": self.linear_validity.name.lower(),
            "linear_certified_fraction": self.linear_certified_fraction, "quadratic_radius": self.quadratic_radius,
            "quadratic_validity": None if self.quadratic is None else self.quadratic.validity.name.lower(),
            "quadratic_certified_fraction": None if self.quadratic is None else self.quadratic.certified_fraction,
            "lambda": self.margin_multiplier, "reading": self.reading.name.lower(),
            "multipliers": {k: np.asarray(v).tolist() for k, v in self.multipliers.items()},
            "prices": {k: np.asarray(v).tolist() for k, v in self.prices.items()},
            "scores": self.scores.tolist(), "input": self.x0.tolist(), "witness": None if self.witness is None else self.witness.tolist(),
            "feature_names": None if self.feature_names is None else list(self.feature_names), "seconds": self.seconds,
        }  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"Explanation({self.norm.label}: {down_words(self.lower, 4)} ≤ distance ≤ {up_words(self.upper, 4)}, gap {self.gap:.1%}, target {self.target}, "
            f"linearised {self.linear_radius:.4g} ({self.linear_validity.name.lower()}){self._quadratic_words()}, {self.verdict.name})"
        )

    def _quadratic_words(self) -> str:
        return "" if self.quadratic is None else f", quadratic {self.quadratic.radius:.4g} ({self.quadratic.validity.name.lower()})"

    def multiplier_words(self) -> tuple[str, ...]:
        """λ, KKT residual and active constraints of the program behind the scores, and what it certifies; then those of the boundary at the witness."""
        own = math.nan if self.binding is None else self.binding.solution.lower
        words = [self.reading.words(self.margin_multiplier, own, self.lower)]
        if self.reading.has_lambda:
            words[0] += _residual_and_active(self.diagnosis)
        local = self.at_witness
        if local is not None:
            standing = local.standing.name.lower().replace("_", " ")
            words.append(f"local λ at the witness {local.lam:.4g} ({standing}){_residual_and_active(local.kkt)}")
        return tuple(words)

    def rival_words(self) -> str:
        """The class that the binding row flips to; where no row can fall, none binds."""
        if self.reading is Reading.UNREACHABLE:
            return "none: no row can fall"
        return "none: no linearised row can fall" if self.reading is Reading.RAY and self.method == "linear" else str(self.target)

    def _repr_html_(self) -> str:
        score = "{:.4g}" if self.reading.has_lambda else "–"
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(str(r.feature))}</td><td>{r.value:.4g}</td><td>{score.format(r.score)}</td><td>{r.witness:.4g}</td></tr>"
            for r in self.to_frame(8).itertuples()
        )
        return (
            f"<div><b>{html.escape(self.norm.label)}: {down_words(self.lower, 4)} ≤ distance ≤ {up_words(self.upper, 4)}</b> &nbsp; gap {self.gap:.1%}<br>"
            f"{html.escape(self.decision.label)}; binding rival {self.rival_words()}<br>"
            f"linearised radius {self.linear_radius:.4g}: {self.linear_validity.name.lower()}{self._quadratic_words()} (not certified by themselves)<br>"
            f"{html.escape('; '.join(self.multiplier_words()))}<br>"
            f"<i>{html.escape(self.verdict.sentence(self.lower))}</i>"
            f"<table><tr><th style='text-align:left'>feature</th><th>value</th><th>score λ|a|</th><th>witness</th></tr>{rows}</table></div>"
        )


def _residual_and_active(kkt: KktDiagnosis | None) -> str:
    """`, KKT residual 2e-09, active: box 3`: how many levels of each constraint hold with equality."""
    if kkt is None or not math.isfinite(kkt.stationarity):
        return ""
    active = ", ".join(f"{name} {len(at)}" for name, at in kkt.active.items() if name != "margin" and len(at))
    return f", KKT residual {kkt.stationarity:.1e}, active: {active or 'none'}"
