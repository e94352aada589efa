"""The convex question: norms, sets, the min-norm program, exact multipliers and verified dual bounds. Knows no network.

Import names from their modules (`formulations.sets`, `formulations.programs`, …) or from `lde_cvx`; this file stays empty so that importing a part is cheap.
"""
