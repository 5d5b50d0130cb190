"""Checks of plugins of any kind: each is an immutable, registered value that a config can express."""

import dataclasses
import pickle
from typing import Any

from diffenc.config import gin_loader, names, serialize
from diffenc.errors import UserError
from diffenc.registry import REGISTRIES, selector_of
from diffenc.testing.assertions import require, require_hashable


def kind_of(plugin: Any) -> str:
    """Returns the kind under which the class of a plugin is registered."""
    return selector_of(type(plugin)).partition(".")[0]


def is_registered(plugin: Any) -> None:
    """Requires that the class is registered, so that a config can name it."""
    require(
        kind_of(plugin) in REGISTRIES,
        plugin,
        "its class is not registered: decorate it, e.g. with @encoders.register('NAME')",
    )


def implements_its_interface(plugin: Any) -> None:
    """Requires every member of the interface of its kind."""
    interface = REGISTRIES[kind_of(plugin)].interface
    require(
        isinstance(plugin, interface), plugin, f"it lacks a member of diffenc.interfaces.{interface.__name__}"
    )


def has_a_docstring(plugin: Any) -> None:
    """Requires a docstring; --list shows its first line."""
    doc = (type(plugin).__doc__ or "").strip()
    generated = doc.startswith(f"{type(plugin).__name__}(")  # by @dataclass
    require(doc and not generated, plugin, "its class has no docstring; --list shows its first line")


def is_a_value(plugin: Any) -> None:
    """Requires a frozen dataclass that equals its copy, also after pickling, by which data workers get it."""
    frozen = getattr(type(plugin), "__dataclass_params__").frozen  # noqa: B009  # unknown to type checkers
    require(frozen, plugin, "it is mutable: use @dataclasses.dataclass(frozen=True)")
    require(dataclasses.replace(plugin) == plugin, plugin, "it does not equal its copy: drop eq=False")
    try:
        again = pickle.loads(pickle.dumps(plugin))
    except Exception as error:  # whatever a field's own pickling raises
        raise AssertionError(f"{selector_of(type(plugin))}: it cannot be pickled: {error}") from error
    require(again == plugin, plugin, "it does not equal itself after pickling")


def is_hashable(plugin: Any) -> None:
    """Requires that it is hashable, as the key of caches of compiled functions: tuples in fields, not lists or dicts."""
    require_hashable(plugin)


def round_trips_through_config(plugin: Any) -> None:
    """Requires that its fields, written to config.gin and parsed, give an equal plugin, so that runs can resume."""
    try:
        text = serialize.config_text(plugin)
        again = gin_loader.load_part(text, selector_of(type(plugin)))
    except (UserError, NameError, TypeError) as error:  # NameError: an annotation refers to a missing import
        raise AssertionError(f"{selector_of(type(plugin))}: a config cannot express it: {error}") from error
    for field in names.bindable_fields(type(plugin)):
        before, after = getattr(plugin, field), getattr(again, field)
        require(before == after, plugin, f"its field {field} is {before!r}, parsed from its config {after!r}")
    require(again == plugin, plugin, "it differs from its parsed config: are there fields outside __init__?")


CHECKS = (
    is_registered,
    implements_its_interface,
    has_a_docstring,
    is_a_value,
    is_hashable,
    round_trips_through_config,
)
