r"""The dual of the certified program as a network of layers, trained by Adam: every forward pass is a valid lower bound of the true radius.

rows        the frozen network with free relaxation slopes α, or rows that are given: minorants on the region
layers      dual layer (multipliers), projection layer (into the set where they are valid), dual objective
network     the three put together
training    Adam over α, η, z together, radii that follow, early stop, history
"""

from verification.dual_network.network import DualNetwork
from verification.dual_network.rows import FixedRows, FrozenRows
from verification.dual_network.training import DualTraining, dual_radii, train

__all__ = ["DualNetwork", "DualTraining", "FixedRows", "FrozenRows", "dual_radii", "train"]
