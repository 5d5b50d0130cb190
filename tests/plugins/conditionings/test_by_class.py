import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc_plugins.conditionings import ByClass


def test_a_class_is_its_number_and_one():
    np.testing.assert_array_equal(ByClass()(np.array([0, 3, 1], np.int32)), [1, 4, 2])


@pytest.mark.parametrize("drop", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(drop):
    with pytest.raises(UserError, match=rf"^conditioning\.by_class\.drop = {drop}: must be in \[0, 1\)$"):
        ByClass(drop=drop)
