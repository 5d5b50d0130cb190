"""What a plugin of any kind keeps: it is a value with a name, that a config can say."""

import dataclasses
import pickle
from typing import Any

from diffenc.config import gin_loader, names, serialize
from diffenc.errors import UserError
from diffenc.registry import REGISTRIES, selector_of
from diffenc.testing.assertions import require, require_hashable


def kind_of(plugin: Any) -> str:
    """The kind under which its class is registered."""
    return selector_of(type(plugin)).partition(".")[0]


def is_registered(plugin: Any) -> None:
    """Under a name, so that a config can name it."""
    require(
        kind_of(plugin) in REGISTRIES,
        plugin,
        "its class is not registered: put a decorator on it, as @encoders.register('NAME')",
    )


def has_every_method(plugin: Any) -> None:
    """That its kind asks for."""
    interface = REGISTRIES[kind_of(plugin)].interface
    require(
        isinstance(plugin, interface), plugin, f"it lacks a member of diffenc.interfaces.{interface.__name__}"
    )


def says_what_it_is(plugin: Any) -> None:
    """In the first line of its docstring, which --list shows."""
    doc = (type(plugin).__doc__ or "").strip()
    made_up = doc.startswith(f"{type(plugin).__name__}(")  # by @dataclass
    require(doc and not made_up, plugin, "its class has no docstring; --list shows its first line")


def is_a_value(plugin: Any) -> None:
    """Frozen, equal to its copy, and the same after pickling, as workers of the data pipeline do it."""
    frozen = getattr(type(plugin), "__dataclass_params__").frozen  # noqa: B009  # unknown to type checkers
    require(frozen, plugin, "it can be changed: write @dataclasses.dataclass(frozen=True)")
    require(dataclasses.replace(plugin) == plugin, plugin, "it does not equal its copy")
    try:
        again = pickle.loads(pickle.dumps(plugin))
    except Exception as error:  # whatever a field's own pickling raises
        raise AssertionError(f"{selector_of(type(plugin))}: it does not pickle: {error}") from error
    require(again == plugin, plugin, "it does not equal itself after pickling")


def is_hashable(plugin: Any) -> None:
    """As whatever is compiled for it is kept under it. A list or a dict in a field is not: a tuple is."""
    require_hashable(plugin)


def is_read_back_from_its_config(plugin: Any) -> None:
    """Every field, as config.gin spells it, gives an equal plugin: or a run could not be taken up again."""
    try:
        text = serialize.config_text(plugin)
        again = gin_loader.load_part(text, selector_of(type(plugin)))
    except (UserError, NameError, TypeError) as error:  # NameError: an annotation that nothing imports
        raise AssertionError(f"{selector_of(type(plugin))}: a config cannot say it: {error}") from error
    for field in names.bindable_fields(type(plugin)):
        before, after = getattr(plugin, field), getattr(again, field)
        require(before == after, plugin, f"its field {field} is {before!r}, and {after!r} when read back")
    require(
        again == plugin, plugin, "read back from its config it is not equal: has it fields outside __init__?"
    )


CHECKS = (
    is_registered,
    has_every_method,
    says_what_it_is,
    is_a_value,
    is_hashable,
    is_read_back_from_its_config,
)
