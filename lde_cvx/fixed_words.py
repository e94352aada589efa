"""The sentences that reports use about what is certified. They change only with the mathematics."""

from __future__ import annotations

CERTIFIED: tuple[tuple[str, str], ...] = (
    (
        "Lower bound",
        "No allowed change smaller than the lower bound flips the decision of this network. The margin rows behind it come from a float64 bound pass "
        "over the stated set; the bound itself is evaluated again from the certificate's rows and multipliers by weak duality, without a solver. Where the "
        "check says level B, the rows too were derived again from the weights of the model file, in outward-rounded arithmetic.",
    ),
    (
        "Upper bound",
        "The witness is a concrete changed input. It satisfies every stated constraint to within 1e-9 and the network, evaluated in float64, decides otherwise on it.",
    ),
    (
        "Unreachable",
        "Where the verdict says so, no allowed change of any size flips the decision. Where no witness was found without that verdict, nothing is claimed.",
    ),
    (
        "Prices",
        "The multipliers are slopes of a lower bound on the distance that stays valid when the constraints' levels are shifted, "
        "as long as the rows hold on the shifted set. That bound is the value of the multipliers' own program; where the published lower bound is another "
        "number (the radius within which the rows hold, what the checker derives, or what a tree of programs proves), or there is no λ, the report says so beside it.",
    ),
)

NOT_CERTIFIED: tuple[tuple[str, str], ...] = (
    (
        "Dual variables beyond solver tolerance",
        "λ, prices and sensitivities are those of the certified convex program, to the tolerance of the solver. They may not be unique "
        "and they are not derivatives of the network.",
    ),
    (
        "Rounding inside the bound pass",
        "The bound pass that produces the margin rows runs in float64 and is not outward rounded. The weak-duality evaluation is. "
        "Certificates checked at level B do not rest on that pass; certificates checked at level A alone do.",
    ),
    (
        "Integers and one-hot choices",
        "Whole numbers and one-hot groups are relaxed: they may move continuously. The lower bound also holds for whole choices, of which there are fewer; "
        "a witness with fractional values is a flip of the relaxed question only.",
    ),
    (
        "The linearised radius",
        "It is the value of a local linear model, to a relative accuracy of 1e-6. “Validity” says whether the bounds certify it to that accuracy, "
        "a witness refutes it, or neither.",
    ),
    ("Causality", "A change of a feature in the table is not an intervention in the world."),
    ("Fairness", "Nothing here compares groups, and nothing here says that a decision is fair or lawful."),
    ("Drift", "The statements are about the weights with this hash and these inputs, not about a retrained model or later data."),
    ("Plausibility", "An allowed change satisfies the stated constraints; it need not be likely or feasible for a person."),
)

REASONS = (
    "Sensitivities rank every feature, immutable ones included: they are reasons. Witnesses move only what may move: they are recourse. The two are not "
    "the same list. Inside a one-hot group a common constant of all categories is immaterial: read the differences between its categories."
)

SIGNING = (
    "EU AI Act, Annex IV, point 2(g) asks for test logs and all test reports dated and signed by the responsible persons. "
    "The fields below are left blank for those persons; this software fills in none of them."
)
