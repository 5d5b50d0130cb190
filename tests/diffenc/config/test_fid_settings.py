import pytest

from diffenc.config.fid_settings import Fid
from diffenc.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nums": ()}, r"fid\.nums = \(\): must be of 2 samples or more"),
        ({"nums": (10, 1)}, r"fid\.nums = \(10, 1\): must be of 2 samples or more"),
        ({"splits": ()}, r"fid\.splits is empty"),
        ({"splits": ("train", "tset")}, r"fid\.splits = .*: must be of train, validation, test"),
        ({"num_images": 1}, r"fid\.num_images = 1: must be at least 2"),
        ({"batch_size": 0}, r"fid\.batch_size = 0: must be at least 1"),
        ({"kid_images": 1}, r"fid\.kid_images = 1: must be at least 2"),
        ({"kid_block": 1}, r"fid\.kid_block = 1: must be at least 2"),
        ({"seed": -1}, r"fid\.seed = -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as refused:
        Fid(**settings)
    assert "\n" not in str(refused.value)


def test_the_default_is_the_tables():
    assert Fid().nums == (10_000, 50_000)
    assert Fid().splits == ("train", "test")
