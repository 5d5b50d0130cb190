"""Conformance checks of conditionings."""

from typing import Any

import numpy as np

from diffenc.testing.assertions import require, require_equal

# neither sorted nor unique, so that a dependence on position or on other labels shows
LABELS = np.array([2, 0, 9, 2], np.int32)


def conditions_are_positive_int32(plugin: Any) -> None:
    """Requires an int32 above 0 for each image (0 = no condition); None if and only if `label` is None."""
    condition = plugin(LABELS)
    both = (condition is None) == (plugin.label is None)
    require(both, plugin, "`label` and the condition: one is None, one is not")
    if condition is not None:
        shape_and_type = (np.shape(condition), np.asarray(condition).dtype)
        require(shape_and_type == ((4,), np.int32), plugin, f"the condition of 4 images is {shape_and_type}")
        require(
            np.all(condition > 0), plugin, "a class has condition 0, which means no condition: start from 1"
        )


def drop_is_a_probability(plugin: Any) -> None:
    """Requires `drop` in [0, 1)."""
    require(0 <= plugin.drop < 1, plugin, f"drop = {plugin.drop}: must be in [0, 1)")


def conditions_ignore_other_labels(plugin: Any) -> None:
    """Requires that permuting the labels permutes the conditions."""
    order = np.array([3, 1, 0, 2])
    condition, permuted = plugin(LABELS), plugin(LABELS[order])
    want = condition if condition is None else condition[order]
    require_equal(permuted, want, plugin, "the order of labels changes the condition of an image")


CHECKS = (conditions_are_positive_int32, drop_is_a_probability, conditions_ignore_other_labels)
