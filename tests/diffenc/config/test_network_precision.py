"""How deep a bound can be measured, and trained."""

import pytest

from diffenc.config.network_precision import check_num_timesteps
from diffenc.errors import UserError


@pytest.mark.parametrize(("precision", "deepest"), [("bfloat16", 300), ("float32", 10_000)])
def test_each_precision_has_its_depth(precision, deepest):
    check_num_timesteps(precision, deepest)
    with pytest.raises(UserError, match=rf"^T = {deepest + 1}: in {precision} .*; "):
        check_num_timesteps(precision, deepest + 1)
    check_num_timesteps("float64", 10**6)
