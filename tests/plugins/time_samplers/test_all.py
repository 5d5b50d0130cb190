"""Every time sampler: times and weights that keep any mean over t as it is."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["time_sampler"])
@pytest.mark.parametrize("name", list(registry.time_samplers))
def test_it_keeps_what_a_proposal_keeps(name, check):
    check(registry.time_samplers[name]())
