"""What every conditioning keeps."""

from typing import Any

import numpy as np

from diffenc.testing.assertions import require, require_equal

LABELS = np.array([2, 0, 9, 2], np.int32)


def a_condition_is_an_integer_an_image(plugin: Any) -> None:
    """int32 above 0, which tells nothing; None exactly where `label` is None."""
    told = plugin(LABELS)
    require(
        (told is None) == (plugin.label is None), plugin, "`label` and the condition: one is None, one is not"
    )
    if told is not None:
        shape_and_type = (np.shape(told), np.asarray(told).dtype)
        require(shape_and_type == ((4,), np.int32), plugin, f"the condition of 4 images is {shape_and_type}")
        require(np.all(told > 0), plugin, "a class is told as 0, which tells nothing")


def the_share_dropped_is_one(plugin: Any) -> None:
    """In [0, 1)."""
    require(0 <= plugin.drop < 1, plugin, f"drop = {plugin.drop}: must be in [0, 1)")


def no_image_is_told_of_by_another(plugin: Any) -> None:
    """In another order each is told the same."""
    order = np.array([3, 1, 0, 2])
    told, moved = plugin(LABELS), plugin(LABELS[order])
    want = told if told is None else told[order]
    require_equal(moved, want, plugin, "the order of labels changes what an image is told")


CHECKS = (a_condition_is_an_integer_an_image, the_share_dropped_is_one, no_image_is_told_of_by_another)
