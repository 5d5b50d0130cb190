"""What every conditioning keeps."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["conditioning"])
@pytest.mark.parametrize("name", list(registry.conditionings))
def test_it_keeps_what_a_conditioning_keeps(name, check):
    check(registry.conditionings[name]())
