"""Comparisons whose failure says what they were of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from diffenc.core.parameters import name_leaves
from diffenc.interfaces import MEASUREMENTS
from diffenc.registry import selector_of


def require(holds: Any, plugin: Any, message: str) -> None:
    """Raise AssertionError, with the plugin's name, unless it holds."""
    if not holds:
        raise AssertionError(f"{selector_of(type(plugin))}: {message}")


def require_hashable(plugin: Any) -> None:
    """Raise AssertionError, with the field that is to blame, unless it can be the key of a dictionary."""
    if _hashable(plugin):
        return
    fields = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
    held = {field.name: getattr(plugin, field.name) for field in fields}
    wrong = [
        f"its field {name} is a {type(value).__name__}"
        for name, value in held.items()
        if not _hashable(value)
    ]
    require(False, plugin, f"it is not hashable: {', '.join(wrong) or 'its class says so'}; use tuples")


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def require_close(got: Any, want: Any, plugin: Any, message: str, rtol: float, atol: float = 0.0) -> None:
    """Raise AssertionError, with the worst of the differences, unless two arrays agree."""
    np.testing.assert_allclose(got, want, rtol, atol, err_msg=f"{selector_of(type(plugin))}: {message}")


def require_equal(got: Any, want: Any, plugin: Any, message: str) -> None:
    """Raise AssertionError unless two arrays are the same to the last bit."""
    np.testing.assert_array_equal(got, want, err_msg=f"{selector_of(type(plugin))}: {message}")


def require_finite(tree: Any, plugin: Any, message: str) -> None:
    """Raise AssertionError if an array of the tree holds NaN or an infinity."""
    for where, leaf in name_leaves(tree).items():
        at = f" at {where}" if where else ""
        require(np.all(np.isfinite(leaf)), plugin, f"{message}: NaN or infinite{at}")


def require_like(got: Any, want: Any, plugin: Any, message: str) -> None:
    """Raise AssertionError unless an array has the shape and the dtype of another."""
    found, wanted = (f"{each.dtype} {each.shape}" for each in (got, want))
    require(found == wanted, plugin, f"{message} is {found}, not {wanted}")


def require_declared(
    plugin: Any, measurement: str, output: str, call: Callable[[], Any], argument: str
) -> None:
    """Raises AssertionError unless `plugin.requires` names known measurements, and `measurement` if `call` fails without.

    Args:
      output: what messages call the result of `call`, which must be finite.
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
    except Exception as error:  # whatever it does with None
        raise AssertionError(
            f"{selector_of(type(plugin))}: without `{argument}` it raises {error!r}: declare that it needs it, "
            f"requires: ClassVar[frozenset[str]] = frozenset({{{measurement.upper()}}})"
        ) from error
    require_finite(result, plugin, output)
