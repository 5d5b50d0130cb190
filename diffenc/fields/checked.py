"""The types of fields, checked where an object is made: in Python as in a config."""

import functools
import inspect
import typing
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from diffenc.errors import UserError
from diffenc.fields.values import LITERALS, coerce, leaves, parts, plain, spell_hint

Class = TypeVar("Class", bound=type)

CONTAINERS = (tuple, list, dict, set, Sequence)

_interfaces: dict[type, set[type]] = defaultdict(set)  # by plugin class: what it is registered as


def checked(selector: str, interface: type | None = None) -> Callable[[Class], Class]:
    """A class decorator, above @dataclass: values have the types of their fields, or a UserError names the field.

    Values are converted as those of a config are (see `coerce`): an int to a float, a list to a tuple.

    Args:
      selector: what messages call the class, as `evaluate` or `encoder.trainable`.
      interface: what the class is a plugin for.
    """

    def decorate(cls: Class) -> Class:
        if interface is not None:
            _interfaces[cls].add(interface)
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def construct(self, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            hints = _hints_of(cls)
            for name, value in bound.arguments.items():
                if name in hints:
                    bound.arguments[name] = _fit(f"{selector}.{name}", value, hints[name])
            init(*bound.args, **bound.kwargs)

        construct.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue] # for gin, too
        cls.__init__ = construct
        return cls

    return decorate


def _fit(name: str, given: Any, hint: Any) -> Any:
    """`given` as a field annotated with `hint` holds it. Raises UserError, which names the field, if it does not fit."""
    if hint is Any:
        return given
    try:
        value = plain(given)
        if typing.get_origin(hint) in CONTAINERS and not isinstance(value, LITERALS):
            raise TypeError(f"expected {spell_hint(hint)}")
        for part in parts(value):
            if not isinstance(part, LITERALS) and not any(_takes(leaf, part) for leaf in leaves(hint)):
                raise TypeError(f"expected {spell_hint(hint)}")
        return coerce(value, hint)
    except TypeError as error:
        made = ", and this is a class: make one of it" * isinstance(given, type)
        raise UserError(f"{name} = {given!r}: {error}{made}") from None


def _takes(leaf: Any, value: Any) -> bool:
    """Whether `value`, no literal, may stand where a hint has the type `leaf`.

    Of a registered plugin it is known what it is one of; of another object only the methods are looked at, for a
    property might read a data set.
    """
    if leaf is Any or not isinstance(leaf, type):
        return leaf not in (None, Ellipsis) and typing.get_origin(leaf) is not typing.Literal
    if leaf in LITERALS or isinstance(value, type):
        return False
    if getattr(leaf, "_is_protocol", False):
        known = _interfaces.get(type(value))
        return leaf in known if known else all(hasattr(value, name) for name in _methods_of(leaf))
    return isinstance(value, leaf)


@functools.cache
def _methods_of(interface: type) -> list[str]:
    bases = [base for base in interface.__mro__ if getattr(base, "_is_protocol", False)]
    members = [member for base in bases for member in vars(base).items()]
    return [name for name, member in members if inspect.isfunction(member) and not name.startswith("_")]


@functools.cache
def _hints_of(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # a class within a function, whose annotations are texts
        return {}
