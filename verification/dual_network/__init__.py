r"""The dual of the certified program as a network of layers, trained by Adam: every forward pass is a valid lower bound of the true radius.

rows        the frozen network with free relaxation slopes α, or rows that are given: minorants on the region
layers      dual layer (multipliers), projection layer (into the set where they are valid), dual objective
network     the three put together
training    Adam over α, η, z together, radii that follow, early stop, history
interior    multipliers of coupled sets on fixed slopes, where training starts: interior points over what inequalities (and small cones) say, by newton steps
            on factors in bands; splitting where they do not suit
search      the network in the search for radii; regulariser  in robust training
"""

from verification.dual_network.network import DualNetwork
from verification.dual_network.rows import FixedRows, FrozenRows
from verification.dual_network.training import DualTraining, dual_radii, train

__all__ = ["DualNetwork", "DualTraining", "FixedRows", "FrozenRows", "dual_radii", "train"]
