"""What every generative mean keeps."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["mean"])
@pytest.mark.parametrize("name", list(registry.means))
def test_it_keeps_what_a_mean_keeps(name, check):
    check(registry.means[name]())
