import numpy as np
import pytest

from diffenc import registry, testing
from diffenc.core.conditioning import UNCONDITIONAL
from diffenc.errors import UserError
from diffenc_plugins.conditionings import ByClass, Nothing


@pytest.mark.parametrize("check", testing.CHECKS["conditioning"])
@pytest.mark.parametrize("name", list(registry.conditionings))
def test_it_keeps_what_a_conditioning_keeps(name, check):
    check(registry.conditionings[name]())


def test_it_is_the_default_and_says_nothing():
    assert Nothing() == UNCONDITIONAL
    assert Nothing()(np.arange(3)) is None


def test_a_class_is_its_number_and_one():
    np.testing.assert_array_equal(ByClass()(np.array([0, 3, 1], np.int32)), [1, 4, 2])


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(drop):
    with pytest.raises(UserError, match=rf"^conditioning\.by_class\.drop = {drop}: must be in \[0, 1\)$"):
        ByClass(drop=drop)
