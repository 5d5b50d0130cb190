"""Every class a config can name, and what its fields may hold."""

import dataclasses
import typing
from typing import Any, NamedTuple

from diffenc.config.experiment import Experiment
from diffenc.config.fid_settings import Fid
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import Diagnose, Evaluate, Fit, KSample, Likelihood, MeshConfig, Plan, Sample
from diffenc.core.model import Model
from diffenc.errors import UserError, nearest
from diffenc.fields.values import leaves
from diffenc.registry import REGISTRIES

# Each is read from the field of Experiment that has its name.
SETTINGS: dict[str, type] = {
    "evaluate": Evaluate,
    "sample": Sample,
    "fit": Fit,
    "k_sample": KSample,
    "diagnose": Diagnose,
    "figures": Figures,
    "likelihood": Likelihood,
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
    """One field that can be bound. `hint` is its evaluated annotation."""

    name: str
    hint: Any
    required: bool


def classes() -> dict[str, type]:
    """Classes by selector: `Model`, `encoder.trainable`, ..."""
    plugins = {f"{kind}.{name}": registry[name] for kind, registry in REGISTRIES.items() for name in registry}
    return FIXED | plugins


def selector_of(cls: type) -> str | None:
    """The selector under which `cls` is known, or None."""
    return next((selector for selector, known in classes().items() if known is cls), None)


def fields_of(cls: type) -> dict[str, Field]:
    """The fields that `cls` takes, in their order."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: Field(field.name, hints[field.name], _is_required(field))
        for field in dataclasses.fields(cls)
        if field.init
    }


def resolve(selector: str) -> str:
    """The full selector that `selector`, maybe without its kind, stands for.

    Raises:
      UserError: nothing or more than one thing is called so.
    """
    known = classes()
    if selector in known:
        return selector
    kind, _, name = selector.rpartition(".")
    if kind in RENAMED_KINDS:
        raise UserError(f"{selector} is now called {RENAMED_KINDS[kind]}.{name}: rename it")
    if kind in REGISTRIES:
        REGISTRIES[kind][name]  # has the better message for an unknown name
    matches = sorted(full for full in known if full.endswith(f".{selector}"))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{selector!r} can be {' or '.join(matches)}")
    raise UserError(f"nothing is called {selector!r}; nearest: {nearest(selector, known)}")


def kinds_in(hint: Any) -> list[str]:
    """What a reference may name where `hint` stands: `encoder`, ... or a selector as `Model`."""
    kinds = [kind for kind, registry in REGISTRIES.items() if registry.interface in leaves(hint)]
    return kinds + [selector for selector, cls in classes().items() if cls in leaves(hint)]


def places_for(selector: str) -> list[str]:
    """The bindings, of the parts that every experiment has, by which it uses a plugin."""
    kind = selector.partition(".")[0]
    if kind not in REGISTRIES:
        return [f"Experiment.{selector}"] if selector in SETTINGS else []
    return [
        f"{owner}.{field.name} = {_spelt(selector, field.hint)}"
        for owner, cls in FIXED.items()
        for field in fields_of(cls).values()
        if kind in kinds_in(field.hint)
    ]


def _spelt(selector: str, hint: Any) -> str:
    several = str(hint).startswith("tuple")
    return f"(@{selector}(),)" if several else f"@{selector}()"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
