"""What every optimizer keeps."""

import pytest

from diffenc import registry, testing


@pytest.mark.parametrize("check", testing.CHECKS["optimizer"])
@pytest.mark.parametrize("name", list(registry.optimizers))
def test_it_keeps_what_an_optimizer_keeps(name, check):
    check(registry.optimizers[name]())
