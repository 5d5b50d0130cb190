"""Plugins by kind and name, and how packages that hold them are found."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from absl import logging

from diffenc.errors import UserError, nearest
from diffenc.fields.checked import checked

if TYPE_CHECKING:
    from diffenc import interfaces

ENTRY_POINT_GROUP = "diffenc.plugins"

T = TypeVar("T")
Plugin = TypeVar("Plugin", bound=type)


class Registry(Generic[T]):
    """The plugins of one kind, by name. `register` is the decorator of a plugin's class."""

    def __init__(self, kind: str, interface: str):
        """`interface` names the protocol in `diffenc.interfaces`, which imports JAX and so is imported when needed."""
        self.kind = kind
        self._interface = interface
        self._classes: dict[str, type[T]] = {}

    @property
    def interface(self) -> type[T]:
        """The protocol that every plugin of the kind implements."""
        return getattr(importlib.import_module("diffenc.interfaces"), self._interface)

    def register(self, name: str) -> Callable[[Plugin], Plugin]:
        """Registers a class as `KIND.NAME`, here and for gin files.

        Raises:
          ValueError: the name is taken (the message names both classes), unless by a class of this name that was
            defined in `__main__`, such as by a notebook's cell that is run again; or it is not an identifier, as
            config files need.
          TypeError: the class is not a dataclass.
        """
        if not name.isidentifier():
            raise ValueError(f"{self.kind} name {name!r} must be a Python identifier")

        def decorate(cls: Plugin) -> Plugin:
            # vars, not hasattr: a subclass without the decorator inherits
            # the attribute, and its own fields would be lost.
            if "__dataclass_params__" not in vars(cls):
                raise TypeError(
                    f"{_full_name(cls)} must be a dataclass: put @dataclass(frozen=True) right above it"
                )
            held = self._classes.get(name)
            redefined = (
                held is not None and cls.__module__ == "__main__" and _full_name(held) == _full_name(cls)
            )
            if held is not None and not redefined:
                raise ValueError(
                    f"{self.kind}.{name} is already {_full_name(held)}; {_full_name(cls)} needs another name"
                )
            self._classes[name] = cast(type[T], cls)
            # `checked` changes the class in place, so the class registered above is the one returned.
            return checked(f"{self.kind}.{name}", self.interface)(cls)

        return decorate

    def __getitem__(self, name: str) -> type[T]:
        """Returns the class registered under `name`.

        Raises:
          UserError: no such name; the message offers the nearest known one.
        """
        if name not in self._classes:
            known = self._classes
            offer = "none is registered: call diffenc.registry.discover() first"
            if known:
                offer = f"nearest: {self.kind}.{nearest(name, known)}"
            raise UserError(f"no {self.kind} is called {name!r}; {offer}")
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def items(self) -> list[tuple[str, type[T]]]:
        """Returns names and classes, by name."""
        return sorted(self._classes.items())

    def spell(self, plugin: T) -> str:
        """Returns `name`, or `name(field=value, ...)` of a plugin with fields, which identifies it; empty tuples are left out."""
        name = self.name_of(type(plugin)) or type(plugin).__name__
        fields = dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()
        given = {field.name: getattr(plugin, field.name) for field in fields}
        values = [f"{field}={value!r}" for field, value in given.items() if value != ()]
        return f"{name}({', '.join(values)})" if values else name

    def name_of(self, cls: type) -> str | None:
        """Returns the name of `cls`, or None."""
        return next((name for name, known in self._classes.items() if known is cls), None)


encoders: Registry[interfaces.Encoder] = Registry("encoder", "Encoder")
schedules: Registry[interfaces.Schedule] = Registry("schedule", "Schedule")
stochasticities: Registry[interfaces.Stochasticity] = Registry("stochasticity", "Stochasticity")
parameterizations: Registry[interfaces.Parameterization] = Registry("parameterization", "Parameterization")
generative_means: Registry[interfaces.GenerativeMean] = Registry("generative_mean", "GenerativeMean")
networks: Registry[interfaces.Network] = Registry("network", "Network")
conditionings: Registry[interfaces.Conditioning] = Registry("conditioning", "Conditioning")
variances: Registry[interfaces.Variance] = Registry("variance", "Variance")
time_samplers: Registry[interfaces.TimeSampler] = Registry("time_sampler", "TimeSampler")
datasets: Registry[interfaces.Dataset] = Registry("dataset", "Dataset")
features: Registry[interfaces.Features] = Registry("features", "Features")
optimizers: Registry[interfaces.Optimizer] = Registry("optimizer", "Optimizer")
writers: Registry[interfaces.Writer] = Registry("writer", "Writer")

REGISTRIES: dict[str, Registry] = {
    registry.kind: registry
    for registry in (
        encoders,
        schedules,
        stochasticities,
        parameterizations,
        generative_means,
        networks,
        conditionings,
        variances,
        time_samplers,
        datasets,
        features,
        optimizers,
        writers,
    )
}


def selector_of(cls: type) -> str:
    """Returns `KIND.NAME` of a registered plugin class, and `__name__` of any other class."""
    found = {kind: registry.name_of(cls) for kind, registry in REGISTRIES.items()}
    return next((f"{kind}.{name}" for kind, name in found.items() if name), cls.__name__)


def plugin_packages() -> set[str]:
    """Returns the top-level packages of the entry points."""
    return {
        entry.module.partition(".")[0] for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    }


def plugin_distributions() -> dict[str, importlib.metadata.Distribution]:
    """Returns the installed distribution of each plugin package by its name, where known."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {entry.module.partition(".")[0]: entry.dist for entry in entries if entry.dist is not None}


@functools.cache  # a package that cannot be imported is tried, and warned of, once
def discover() -> list[str]:
    """Imports every package of the entry-point group, so that its plugins register themselves.

    Returns one line for each package that could not be imported; such a package is skipped with a warning that names
    it, and the others are not affected.
    """
    broken = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=_builtin_first):
        # An import registers one class after the other: an error halfway would leave a part of the package registered.
        before = {kind: dict(registry._classes) for kind, registry in REGISTRIES.items()}
        try:
            entry.load()
        except Exception as error:  # a third party's module may fail in any way
            for kind, registry in REGISTRIES.items():  # half a package is worse than none
                registry._classes = before[kind]
            owner = entry.dist.name if entry.dist else entry.value
            broken.append(f"plugin package {owner} ({entry.value}) skipped: {type(error).__name__}: {error}")
            logging.warning(broken[-1])
    return broken


def _builtin_first(entry: importlib.metadata.EntryPoint) -> tuple[bool, str]:
    """Sorts built-in plugins first, so that a third party's plugin with the same name is the one refused."""
    return entry.dist is None or entry.dist.name != "diffenc", entry.name


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
