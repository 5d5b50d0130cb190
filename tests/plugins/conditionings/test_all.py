"""What every conditioning keeps."""

import numpy as np
import pytest

from diffenc import registry

every_conditioning = pytest.mark.parametrize("name", list(registry.conditionings))
LABELS = np.array([2, 0, 9, 2], np.int32)


@every_conditioning
def test_a_condition_is_an_integer_an_image_or_nothing_at_all(name):
    conditioning = registry.conditionings[name]()
    told = conditioning(LABELS)
    assert (told is None) == (conditioning.what is None)
    assert 0 <= conditioning.drop < 1
    if told is not None:
        assert (told.shape, told.dtype) == ((4,), np.int32)
        assert np.all(told > 0)  # 0 tells nothing


@every_conditioning
def test_no_image_is_told_of_by_another(name):
    conditioning, order = registry.conditionings[name](), np.array([3, 1, 0, 2])
    told, moved = conditioning(LABELS), conditioning(LABELS[order])
    np.testing.assert_array_equal(moved, told if told is None else told[order])


@every_conditioning
def test_plugins_are_values(name):
    assert registry.conditionings[name]() == registry.conditionings[name]()
    assert registry.conditionings.name_of(registry.conditionings[name]) == name
