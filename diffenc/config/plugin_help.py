"""What can be bound, for people: one class of a config with its fields."""

import dataclasses
import inspect
from typing import Any

from diffenc.config import names
from diffenc.fields.values import spell, spell_hint

REQUIRED = "must be bound"
UNKNOWN_MEAN = "not declared: its documentation says"


def describe(name: str) -> str:
    """A plugin, as `encoder.trainable`, or a fixed part, as `Experiment` or `evaluate`: fields, types and defaults.

    Raises:
      UserError: nothing is called so; the most similar name is offered.
    """
    selector = names.resolve(name)
    cls = names.classes()[selector]
    facts = {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "bound by": " or ".join(names.places_for(selector)),
    }
    if selector.partition(".")[0] == "encoder":
        mean = getattr(cls, "generative_mean", None)  # a declaration of the plugin
        facts["generative mean"] = (
            f"Model.generative_mean = @{mean}()" if mean in names.classes() else mean or UNKNOWN_MEAN
        )
    lines = [f"{label + ':':<17}{fact}" for label, fact in facts.items() if fact]
    return "\n".join(
        [selector, "", inspect.getdoc(cls) or "", "", *lines, "", *_fields(selector, cls)]
    ).rstrip()


def _fields(selector: str, cls: type) -> list[str]:
    """A line for each field: its name, type and default."""
    hints = names.fields_of(cls)
    rows = [
        (
            f"{selector}.{name}",
            spell_hint(hints[name].hint).replace("diffenc.interfaces.", ""),
            _default(field),
        )
        for name, field in ((field.name, field) for field in dataclasses.fields(cls))
        if name in hints
    ]
    if not rows:
        return ["It has no fields."]
    widths = [max(len(row[column]) for row in [*rows, HEADS]) for column in (0, 1)]
    return [f"{one:<{widths[0]}}  {two:<{widths[1]}}  {three}".rstrip() for one, two, three in [HEADS, *rows]]


HEADS = ("field", "type", "default")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return spell(field.default, _spell_object)
    return (
        REQUIRED
        if field.default_factory is dataclasses.MISSING
        else spell(field.default_factory(), _spell_object)
    )


def _spell_object(value: Any) -> str:
    selector = names.selector_of(type(value))
    return f"@{selector}()" if selector else type(value).__name__
