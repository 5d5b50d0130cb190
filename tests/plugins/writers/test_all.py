"""What every writer keeps."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["writer"])
@pytest.mark.parametrize("name", list(registry.writers))
def test_it_keeps_what_a_writer_keeps(name, check, runs):
    check(registry.writers[name]())
