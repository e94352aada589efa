"""Large inputs: nothing of size d × d is ever made."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource
    import numpy as np
    from formulations.programs import min_norm
    from formulations.sets import Box
    d = 150_528
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(0)
    x0, a = rng.uniform(size=d), rng.normal(size=d)
    for norm in (1, 2, "inf"):
        s = min_norm(a, 20.0, norm, Box(0, 1), x0)[0]
        assert s.status.name == "OPTIMAL" and s.gap < 1e-6, s
        assert s.multipliers["box"].shape == (2, d)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_imagenet_size_needs_linear_memory():
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 300  # MiB; one dense d × d array would be 172 GiB, a hundred vectors are 115 MiB


@pytest.mark.parametrize("kind", ["box", "tv"])
def test_cone_data_are_sparse(kind):
    import numpy as np

    from formulations.cones import ConeProgram
    from formulations.norms import Norm
    from formulations.programs import relative_parts
    from formulations.sets import Box, TotalVariation

    side = 56
    d = side * side
    C = Box(0, 1) if kind == "box" else Box(0, 1) & TotalVariation(5.0, (side, side))
    program = ConeProgram(Norm(1), relative_parts(C, d, np.full(d, 0.5)), d, 1)
    assert program._A.nnz < 30 * d
