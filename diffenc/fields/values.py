"""Conversion of values to the types of fields, and their text in a config file."""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

LITERALS = (bool, int, float, complex, str, bytes, type(None), tuple, list, dict, set)


_INT64 = range(-(2**63), 2**63)


def to_python_scalar(value: Any) -> Any:
    """Returns a number of numpy or JAX, or of a subclass such as an enumeration, as a plain Python number; others unchanged."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # neither library is imported for this
        value = value.item()
    if isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    # str.__str__, since str() of a member of an enumeration may return its name instead of its value.
    return str.__str__(value) if isinstance(value, str) else value


def coerce(value: Any, hint: Any) -> Any:
    """Returns `value` converted to the type `hint` of a field.

    An int becomes a float and a list a tuple where the hint requires it; a bool is never a number, and NaN, infinities and
    integers of more than 64 bits are refused. Objects that are not literals (plugins) are returned unchanged.

    Raises:
      TypeError: the value does not fit; the message is `expected HINT`.
    """
    if not isinstance(value, LITERALS):
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _coerce_to_first(value, hint, arguments)
    if hint is float:
        return _finite_float(value)
    if (hint is tuple or origin is tuple) and isinstance(value, list | tuple):
        return _tuple(value, hint, arguments)
    if origin is Sequence and isinstance(value, list | tuple):
        return _tuple(value, hint, (*arguments, ...))
    if origin is list and isinstance(value, list):
        return [coerce(item, arguments[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {coerce(k, arguments[0]): coerce(item, arguments[1]) for k, item in value.items()}
    value = value if hint is Any else to_python_scalar(value)
    if (isinstance(value, bool) and hint is int) or not _is_instance(value, hint):
        raise TypeError(f"expected {format_type(hint)}")
    if hint is int and value not in _INT64:
        raise TypeError("expected an int of 64 bits")
    return value


def format_value(value: Any, format_other: Callable[[Any], str] = repr) -> str:
    """Returns the text of `value` in a config file; `format_other` formats objects that are not literals."""
    if isinstance(value, tuple | list):
        items = [format_value(item, format_other) for item in value]
        return _bracket(items, "[]") if isinstance(value, list) else _bracket(items, "()")
    if isinstance(value, dict):
        pairs = [
            f"{format_value(k, format_other)}: {format_value(v, format_other)}" for k, v in value.items()
        ]
        return _bracket(pairs, "{}")
    return repr(value) if isinstance(value, LITERALS) else format_other(value)


def format_type(hint: Any) -> str:
    """Returns the text of the type `hint` in Python."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def leaf_types(hint: Any) -> Iterator[Any]:
    """Yields the types of which a hint such as `tuple[Network, ...] | None` is composed."""
    arguments = typing.get_args(hint)
    if not arguments or typing.get_origin(hint) is typing.Literal:
        yield hint
    for argument in arguments:
        yield from leaf_types(argument)


def leaf_values(value: Any) -> Iterable[Any]:
    """Yields the values in `value` that are not containers, at any depth."""
    if not isinstance(value, tuple | list | set | dict):
        yield value
        return
    for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
        yield from leaf_values(item)


def nested_objects(item: Any) -> Iterator[Any]:
    """Yields `item` and every dataclass in its fields, at any depth."""
    yield item
    fields = dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()
    for value in leaf_values([getattr(item, field.name) for field in fields]):
        if dataclasses.is_dataclass(value):
            yield from nested_objects(value)


def _is_instance(value: Any, hint: Any) -> bool:
    if hint in LITERALS:
        return isinstance(value, hint)
    from beartype.door import is_bearable  # takes half a second to import, and few fields have other types

    return is_bearable(value, hint)


def _coerce_to_first(value: Any, hint: Any, choices: tuple[Any, ...]) -> Any:
    # The value's own type first: an int stays one in `float | int`.
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):
        try:
            return coerce(value, choice)
        except TypeError:
            continue
    raise TypeError(f"expected {format_type(hint)}")


def _finite_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("expected float")
    # `not <=` instead of `>`: comparisons with NaN are false, so that NaN is refused too.
    if not abs(value) <= sys.float_info.max:
        raise TypeError("expected a finite float")
    return float(value)


def _tuple(value: list | tuple, hint: Any, items: tuple[Any, ...]) -> tuple:
    if hint is tuple:
        items = (Any, ...)
    if items[-1:] == (Ellipsis,):
        items = items[:1] * len(value)
    if len(items) != len(value):
        raise TypeError(f"expected {format_type(hint)}")
    try:
        return tuple(coerce(item, item_hint) for item, item_hint in zip(value, items, strict=True))
    except TypeError:
        raise TypeError(f"expected {format_type(hint)}") from None


def _bracket(items: list[str], brackets: str) -> str:
    comma = "," if brackets == "()" and len(items) == 1 else ""
    return f"{brackets[0]}{', '.join(items)}{comma}{brackets[1]}"
