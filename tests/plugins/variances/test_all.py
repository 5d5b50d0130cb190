"""Every variance: log w of each step on its own, compiled or not."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["variance"])
@pytest.mark.parametrize("name", list(registry.variances))
def test_it_keeps_what_a_variance_keeps(name, check):
    check(registry.variances[name]())
