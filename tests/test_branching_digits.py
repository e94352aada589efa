"""Branching on a real network: between the witness and what single rows certify."""

import pytest

from formulations.sets import Box
from tests.digits_net import correct_digits
from verification.attack import find_witness
from verification.branching import branch_radius
from verification.radius import certified_radius


@pytest.mark.parametrize("norm", [1, "inf"])
def test_branching_lies_between_rows_and_witness(norm):
    net, x, _ = correct_digits(2)
    upper = find_witness(net, x, norm, Box(0, 1)).upper
    plain = certified_radius(net, x, norm, Box(0, 1)).lower
    for i in range(2):
        found = branch_radius(net, x[i], norm=norm, constraints=Box(0, 1), upper=float(upper[i]), node_limit=400)
        assert plain[i] - 1e-9 <= found.lower <= upper[i]
        assert found.lower >= 0.9 * upper[i]
