r"""Branch and bound for ReLU chains: the radius itself, or a bracket of it, for every norm and set.

branch      branch_radius: which radii are asked about
tree        one question at one radius: a tree of splits per margin row
narrowing   bounds of neurons over the changes that can still flip
joint       rows of later layers together with the margin row, over slopes and γ
facets      over boxes: lines of the first layer's ReLUs that are tighter than chords
ascent      the row of a cell, over slopes and split multipliers
ball, face  support functions of the region, cut by a half-space; those of a ball and its boxes
coupled     multipliers of the set's pieces that couple coordinates, carried from row to row
choice, schedule   which ReLU to split at, which radius to ask about next
region      one activation region, solved exactly
cells, network, adam, effort, answers   batches of cells, the network in scaled changes, a step rule, where the work goes, the records
"""

from verification.branching.answers import BranchingResult, BranchingStop, Leaf, RowTree
from verification.branching.branch import branch_radii, branch_radius
from verification.branching.effort import Effort

__all__ = ["BranchingResult", "BranchingStop", "Effort", "Leaf", "RowTree", "branch_radii", "branch_radius"]
