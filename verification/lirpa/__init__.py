r"""Sound minorants of a network's margins by auto_LiRPA, which relaxes the layers; regions are bounded by their own support functions.

engine             BoundEngine: rows over a region
perturbation       what the library concretizes over: the region's support function
slopes             the slopes of a pass, read back for certificates
translate, symbols a torch model as the library's graph; which torch functions enter it as operators of ours
nodes              the operators that the library lacks
mended, sigmoids   those of its own that are wrong or miss a case, mended
curves, planes     the lines that they stand between: functions of one variable, and of several
compat             the library on today's torch and numpy; the one file that imports it
alone              the library as it is, for comparison
"""

from verification.lirpa.engine import BoundEngine, BoundMethod

__all__ = ["BoundEngine", "BoundMethod"]
