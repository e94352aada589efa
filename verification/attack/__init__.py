"""The witness search: upper bounds of the radius by real inputs.

answers     the records and statuses: found, not found (which proves nothing), and the budget
effort      how the passes of one input are spent
network     margins and gradients of the network in float64, counted, in blocks of one size
subproblem  the convex step: the closed form over a box, the compiled program over any other set
state       what the search knows and may still spend; recording a witness, meeting a crossing
growing     what falls most within a ball that grows until it flips
sampling    random changes no longer than the best witness
feasible    pulling a solver's answer back into the set
leaping, walking   at p = 1: single entries leap, and what was found walks along the boundary
polishing   trust-region steps from flipped points, none of which gets longer
search      the order of all moves; sequential linearisation, random probes
kinks       the units at which a piecewise linear network bends, read from its own run
folds       the convex program over the pieces that meet at a witness, rows met lazily
regions     small ReLU networks: the exact nearest flip of one activation region after another
witness     find_witness
multiplier  witness_multiplier: λ of the boundary at a witness, local
counterfactuals  several witnesses of one input that move different columns, whole where a schema says so
"""

from verification.attack.answers import Budget, Stop, Witness, Witnesses, WitnessStatus
from verification.attack.counterfactuals import Counterfactual, find_counterfactuals
from verification.attack.effort import Effort
from verification.attack.multiplier import WitnessMultiplier, WitnessStanding, witness_multiplier, witness_multipliers
from verification.attack.witness import find_witness

__all__ = [
    "Budget",
    "Counterfactual",
    "Effort",
    "Stop",
    "Witness",
    "WitnessMultiplier",
    "WitnessStanding",
    "WitnessStatus",
    "Witnesses",
    "find_counterfactuals",
    "find_witness",
    "witness_multiplier",
    "witness_multipliers",
]
