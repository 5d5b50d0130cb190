"""What every generative mean keeps."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["generative_mean"])
@pytest.mark.parametrize("name", list(registry.generative_means))
def test_it_keeps_what_a_mean_keeps(name, check):
    check(registry.generative_means[name]())
