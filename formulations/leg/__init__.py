"""LEG-TV as a convex program on a grid: perturbation schemes, the linear program, a combinatorial solver, certificates and solution paths."""
