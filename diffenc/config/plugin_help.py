"""The text of --describe: the documentation and the fields of a class of a config."""

import dataclasses
import inspect
from typing import Any

from diffenc.config import names
from diffenc.fields.values import format_type, format_value

REQUIRED = "must be bound"
MEAN_NOT_DECLARED = "not declared: see its documentation"


def describe(name: str) -> str:
    """Returns the documentation, fields, types and defaults of a plugin (`encoder.trainable`) or a fixed class (`evaluate`).

    Raises:
      UserError: no class has this name; the message names the most similar one.
    """
    selector = names.resolve_selector(name)
    cls = names.known_classes()[selector]
    facts = {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "bound by": " or ".join(names.bindings_that_use(selector)),
    }
    if selector.partition(".")[0] == "encoder":
        mean = getattr(cls, "generative_mean", None)  # a declaration of the plugin
        facts["generative mean"] = (
            f"Model.generative_mean = @{mean}()"
            if mean in names.known_classes()
            else mean or MEAN_NOT_DECLARED
        )
    lines = [f"{label + ':':<17}{fact}" for label, fact in facts.items() if fact]
    return "\n".join(
        [selector, "", inspect.getdoc(cls) or "", "", *lines, "", *_fields(selector, cls)]
    ).rstrip()


def _fields(selector: str, cls: type) -> list[str]:
    """Returns a line for each field: its name, type and default."""
    hints = names.bindable_fields(cls)
    rows = [
        (
            f"{selector}.{name}",
            format_type(hints[name].hint).replace("diffenc.interfaces.", ""),
            _default(field),
        )
        for name, field in ((field.name, field) for field in dataclasses.fields(cls))
        if name in hints
    ]
    if not rows:
        return ["It has no fields."]
    widths = [max(len(row[column]) for row in [*rows, HEADER]) for column in (0, 1)]
    return [
        f"{one:<{widths[0]}}  {two:<{widths[1]}}  {three}".rstrip() for one, two, three in [HEADER, *rows]
    ]


HEADER = ("field", "type", "default")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return format_value(field.default, _spell_object)
    return (
        REQUIRED
        if field.default_factory is dataclasses.MISSING
        else format_value(field.default_factory(), _spell_object)
    )


def _spell_object(value: Any) -> str:
    selector = names.find_selector(type(value))
    return f"@{selector}()" if selector else type(value).__name__
