r"""A path of LEG-TV, level by level, in one compiled loop (numba, the extra `fast`): pivots until none is left, then both sides."""

from __future__ import annotations

from formulations.leg.pivots import CENTRE, FLOW, carry, improve
from formulations.leg.sides import both_sides, conserved
from formulations.leg.tree import Links, Marks, Table, compiled_with
from formulations.norms import Array

OBJECTIVE, LOWER, VIOLATION = range(3)  # columns of `values` (n, 3)


@compiled_with(nogil=True)
def follow(
    root: int, w: int, pixels: Links, order: Links, edges: Table, limits: Array, g: Array, queue: Links, moved: Marks, radii: Array, tolerances: Array, first: int,
    pivots: int, mean: float, values: Array, maps: Array, flows: Table,
) -> int:  # fmt: skip
    """Radii from the one numbered `first` on, to which the tree was carried, with at most `pivots` pivots; the number of the one to be gone on with.

    Per level both sides, the map and z; of a z that is no circulation the values stay as they are.
    """
    n = len(radii)
    for k in range(first, n):
        pivots = improve(w, pixels, order, edges, limits, g, queue, moved, radii[k], tolerances[k], pivots)
        if pivots < 0:
            return k
        carry(root, pixels, order, edges, limits, radii[k], radii[min(k + 1, n - 1)], maps[k], g)
        flows[k] = edges[FLOW]
        if conserved(w, edges[FLOW]):
            values[k, OBJECTIVE], values[k, LOWER], values[k, VIOLATION] = both_sides(
                w, maps[k], mean, edges[FLOW], limits[CENTRE], radii[k]
            )
    return n
