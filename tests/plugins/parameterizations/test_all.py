"""Every parameterization: (p, q) such that the network's p x_phi + q eps, with z, gives x_phi and eps."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["parameterization"])
@pytest.mark.parametrize("name", list(registry.parameterizations))
def test_it_keeps_what_a_parameterization_keeps(name, check):
    check(registry.parameterizations[name]())
