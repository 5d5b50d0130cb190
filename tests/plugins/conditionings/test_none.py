import numpy as np

from diffenc.core.conditioning import UNCONDITIONAL
from diffenc_plugins.conditionings import Nothing


def test_it_is_the_default_and_says_nothing():
    assert Nothing() == UNCONDITIONAL
    assert Nothing()(np.arange(3)) is None
