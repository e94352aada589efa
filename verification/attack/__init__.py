"""The witness search: upper bounds of the radius by real inputs.

answers     the records and statuses: found, not found (which proves nothing), and the budget
network     margins and gradients of the network in float64, counted, in blocks of one size
subproblem  the convex step: the closed form over a box, the compiled program over any other set
feasible    pulling a solver's answer back into the set
search      sequential linearisation, random probes, monotone polish
witness     find_witness
"""

from verification.attack.answers import Budget, Stop, Witness, Witnesses, WitnessStatus
from verification.attack.search import Effort
from verification.attack.witness import find_witness

__all__ = ["Budget", "Effort", "Stop", "Witness", "WitnessStatus", "Witnesses", "find_witness"]
