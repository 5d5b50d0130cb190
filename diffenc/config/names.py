"""The classes that a config can name, and the types of their fields."""

import dataclasses
import typing
from typing import Any, NamedTuple

from diffenc.config.experiment import Experiment
from diffenc.config.fid_settings import Fid
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import (
    Compress,
    Diagnose,
    Evaluate,
    Fit,
    KSample,
    Likelihood,
    MeshConfig,
    Plan,
    Sample,
)
from diffenc.core.model import Model
from diffenc.errors import UserError, nearest
from diffenc.fields.values import leaf_types
from diffenc.registry import REGISTRIES

# Classes of settings, by the field of Experiment that holds them.
SETTINGS: dict[str, type] = {
    "evaluate": Evaluate,
    "sample": Sample,
    "fit": Fit,
    "k_sample": KSample,
    "diagnose": Diagnose,
    "figures": Figures,
    "likelihood": Likelihood,
    "compress": Compress,
    "fid": Fid,
    "plan": Plan,
    "mesh": MeshConfig,
}
# Names of earlier versions, for messages: kinds of plugins, and fields.
RENAMED_KINDS = {"mean": "generative_mean", "proposal": "time_sampler"}
RENAMED_FIELDS = {
    ("Model", "mean"): "generative_mean",
    ("evaluate", "proposal"): "time_sampler",
    ("evaluate", "steps"): "num_timesteps",
    ("sample", "steps"): "num_timesteps",
}

FIXED: dict[str, type] = {"Experiment": Experiment, "Model": Model, **SETTINGS}


class Field(NamedTuple):
    """One field of a class that can be bound. `hint` is its evaluated annotation."""

    name: str
    hint: Any
    required: bool


def known_classes() -> dict[str, type]:
    """Returns all classes by selector: `Model`, `encoder.trainable`, ..."""
    plugins = {
        f"{kind}.{name}": cls for kind, registry in REGISTRIES.items() for name, cls in registry.items()
    }
    return FIXED | plugins


def find_selector(cls: type) -> str | None:
    """Returns the selector of `cls`, or None."""
    return next((selector for selector, known in known_classes().items() if known is cls), None)


def bindable_fields(cls: type) -> dict[str, Field]:
    """Returns the fields of `cls` that a config can bind, in order."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: Field(field.name, hints[field.name], _is_required(field))
        for field in dataclasses.fields(cls)
        if field.init
    }


def resolve_selector(selector: str) -> str:
    """Returns the full selector of `selector`, which may lack its kind.

    Raises:
      UserError: no class, or more than one, has this name.
    """
    known = known_classes()
    if selector in known:
        return selector
    kind, _, name = selector.rpartition(".")
    if kind in RENAMED_KINDS:
        raise UserError(f"{selector} is now called {RENAMED_KINDS[kind]}.{name}: rename it")
    if kind in REGISTRIES:
        REGISTRIES[kind][name]  # has the better message for an unknown name
    # "unet" for "network.unet", if only one class has this last name.
    matches = sorted(full for full in known if full.endswith(f".{selector}"))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{selector!r} can be {' or '.join(matches)}")
    raise UserError(f"nothing is called {selector!r}; nearest: {nearest(selector, known)}")


def accepted_kinds(hint: Any) -> list[str]:
    """Returns the admissible references of a field of type `hint`: kinds such as `encoder`, or selectors such as `Model`."""
    types = list(leaf_types(hint))
    kinds = [kind for kind, registry in REGISTRIES.items() if registry.interface in types]
    return kinds + [selector for selector, cls in known_classes().items() if cls in types]


def bindings_that_use(selector: str) -> list[str]:
    """Returns the bindings of fixed classes that make an experiment use `selector`."""
    kind = selector.partition(".")[0]
    if kind not in REGISTRIES:
        return [f"Experiment.{selector}"] if selector in SETTINGS else []
    return [
        f"{owner}.{field.name} = {_format_reference(selector, field.hint)}"
        for owner, cls in FIXED.items()
        for field in bindable_fields(cls).values()
        if kind in accepted_kinds(field.hint)
    ]


def _format_reference(selector: str, hint: Any) -> str:
    several = str(hint).startswith("tuple")
    return f"(@{selector}(),)" if several else f"@{selector}()"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
