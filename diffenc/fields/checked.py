"""Type checks of fields when an object is constructed, in Python or from a config."""

import functools
import inspect
import typing
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from diffenc.errors import UserError
from diffenc.fields.values import LITERALS, coerce, format_type, leaf_types, leaf_values, to_python_scalar

Class = TypeVar("Class", bound=type)

CONTAINERS = (tuple, list, dict, set, Sequence)

_interfaces: dict[type, set[type]] = defaultdict(set)  # by plugin class


def checked(selector: str, interface: type | None = None) -> Callable[[Class], Class]:
    """Returns a class decorator, placed above @dataclass, that checks constructor arguments against their fields' types.

    Values are converted as in configs (see `coerce`): an int to a float, a list to a tuple. For a value of another type the
    constructor raises UserError, which names the field.

    Args:
      selector: the name of the class in messages, as `evaluate` or `encoder.trainable`.
      interface: the protocol that the class implements, if it is a plugin.
    """

    def decorate(cls: Class) -> Class:
        if interface is not None:
            _interfaces[cls].add(interface)
        # Above @dataclass, the decorator wraps the generated
        # __init__, so that __post_init__ sees converted values.
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def construct(self, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            hints = _hints_of(cls)
            for name, value in bound.arguments.items():
                if name in hints:
                    bound.arguments[name] = _coerce_argument(f"{selector}.{name}", value, hints[name])
            init(*bound.args, **bound.kwargs)

        construct.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue] # for gin, too
        cls.__init__ = construct
        return cls

    return decorate


def _coerce_argument(name: str, given: Any, hint: Any) -> Any:
    """Returns `given` converted to the type `hint` of a field. Raises UserError, which names the field, if it does not fit."""
    if hint is Any:
        return given
    try:
        value = to_python_scalar(given)
        if typing.get_origin(hint) in CONTAINERS and not isinstance(value, LITERALS):
            raise TypeError(f"expected {format_type(hint)}")
        for part in leaf_values(value):
            if not isinstance(part, LITERALS) and not any(_fits(leaf, part) for leaf in leaf_types(hint)):
                raise TypeError(f"expected {format_type(hint)}")
        return coerce(value, hint)
    except TypeError as error:
        made = ", and this is a class: make one of it" * isinstance(given, type)
        raise UserError(f"{name} = {given!r}: {error}{made}") from None


def _fits(leaf: Any, value: Any) -> bool:
    """Returns whether `value`, which is not a literal, fits the type `leaf` of a hint.

    Registered plugins declare their interfaces. Of other objects only the methods are checked, since reading a property
    might load a data set.
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
