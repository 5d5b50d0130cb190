"""Assertions with messages that name the plugin and the violated property."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from diffenc.core.parameters import name_leaves
from diffenc.interfaces import MEASUREMENTS
from diffenc.registry import selector_of


def require(condition: Any, plugin: Any, message: str) -> None:
    """Raises AssertionError with the plugin's selector unless `condition` is true."""
    if not condition:
        raise AssertionError(f"{selector_of(type(plugin))}: {message}")


def require_hashable(plugin: Any) -> None:
    """Raises AssertionError with the unhashable fields unless the plugin is hashable."""
    if _hashable(plugin):
        return
    fields = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
    values = {field.name: getattr(plugin, field.name) for field in fields}
    unhashable = [
        f"its field {name} is a {type(value).__name__}"
        for name, value in values.items()
        if not _hashable(value)
    ]
    reason = ", ".join(unhashable) or "its class sets __hash__ to None"
    require(False, plugin, f"it is not hashable: {reason}; use tuples")


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def require_close(got: Any, want: Any, plugin: Any, message: str, rtol: float, atol: float = 0.0) -> None:
    """Raises AssertionError with the largest difference unless two arrays agree to the tolerances."""
    np.testing.assert_allclose(got, want, rtol, atol, err_msg=f"{selector_of(type(plugin))}: {message}")


def require_equal(got: Any, want: Any, plugin: Any, message: str) -> None:
    """Raises AssertionError unless all elements of two arrays are equal."""
    np.testing.assert_array_equal(got, want, err_msg=f"{selector_of(type(plugin))}: {message}")


def require_finite(tree: Any, plugin: Any, message: str) -> None:
    """Raises AssertionError if an array of the tree contains NaN or infinity."""
    for name, leaf in name_leaves(tree).items():
        location = f" at {name}" if name else ""
        require(np.all(np.isfinite(leaf)), plugin, f"{message}: NaN or infinite{location}")


def require_like(got: Any, want: Any, plugin: Any, message: str) -> None:
    """Raises AssertionError unless an array has the shape and the dtype of another."""
    actual, expected = (f"{each.dtype} {each.shape}" for each in (got, want))
    require(actual == expected, plugin, f"{message} is {actual}, not {expected}")


def require_declared(
    plugin: Any, measurement: str, output: str, call: Callable[[], Any], argument: str
) -> None:
    """Raises AssertionError unless `plugin.requires` names known measurements, and `measurement` if `call` fails without.

    Args:
      output: name of the result of `call` in messages; it must be finite.
      call: calls the plugin with None for its `argument`, the measurement.
    """
    declared = getattr(plugin, "requires", frozenset())
    require(
        isinstance(declared, frozenset) and declared <= MEASUREMENTS,
        plugin,
        f"requires = {declared!r}: must be a frozenset of {', '.join(sorted(MEASUREMENTS))}",
    )
    if measurement in declared:
        return
    try:
        result = call()
    except Exception as error:  # whatever the plugin does with None
        raise AssertionError(
            f"{selector_of(type(plugin))}: without `{argument}` it raises {error!r}: declare the measurement, "
            f"requires: ClassVar[frozenset[str]] = frozenset({{{measurement.upper()}}})"
        ) from error
    require_finite(result, plugin, output)
