"""The experiment that is benchmarked: its compiled step, its state, and images of random levels."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from absl import logging
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.core.rng import root_key
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.interfaces import Images, Params
from diffenc.parallel.sharding import data_mesh, images_to_devices, make_mesh, replicated
from diffenc.tools.planning import flops
from diffenc.tools.planning.flops import Work
from diffenc.tools.planning.plan import device_share
from diffenc.training.gradient import check_batch
from diffenc.training.state import (
    TrainState,
    abstract_images,
    abstract_state,
    init_state,
    make_train_step,
    shardings,
)


class Compiled(NamedTuple):
    """A train step ready to run.

    Attributes:
      step: (state, images) -> state.
      seconds: that tracing, lowering and compiling took.
    """

    step: Any
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How everything is timed.

    Attributes:
      rounds: how often.
      least: seconds that one timing should last.
      sampling_steps: in one walk.
      images: of the synthetic data set.
    """

    rounds: int = 10
    least: float = 0.2
    sampling_steps: int = 10
    images: int = 8192

    def __post_init__(self):
        for name in ("rounds", "sampling_steps", "images"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 1")
        if self.least < 0:
            raise UserError(f"--least={self.least}: must not be negative")


class Subject:
    """What the parts of the benchmark share; each thing is made when it is first asked for."""

    def __init__(self, experiment: Experiment, settings: Settings):
        self.experiment = experiment
        self.settings = settings
        self.mesh: Mesh = data_mesh(experiment.mesh)
        check_batch(experiment, self.mesh)

    @functools.cached_property
    def compiled(self) -> Compiled:
        """The train step."""
        return compile_step(self.experiment, self.mesh)

    @functools.cached_property
    def stepper(self) -> "Stepper":
        return Stepper(self.compiled.step, first_state(self.experiment, self.mesh), self.images)

    @functools.cached_property
    def work(self) -> Work:
        """The contractions of one device's share of a step."""
        return work_of_share(self.experiment, self.mesh.devices.size)

    @functools.cached_property
    def images(self) -> Images:
        """A batch, on the devices."""
        batch = random_images(self.experiment, self.experiment.batch_size).__getitems__(
            np.arange(self.experiment.batch_size)
        )
        return images_to_devices(batch, self.experiment.model.conditioning, self.mesh)

    @functools.cached_property
    def source(self) -> ArraySource:
        """A data set in memory."""
        return random_images(self.experiment, self.settings.images)


class Stepper:
    """Calling it takes one train step, from the state that the last one left."""

    def __init__(self, step: Any, state: TrainState, images: Images):
        self.step, self.state, self.images = step, state, images

    def __call__(self) -> jax.Array:
        return self.take(self.images)

    def take(self, images: Images) -> jax.Array:
        """A step on a batch; returns its number, to wait for."""
        self.state = self.step(self.state, images)
        return self.state.step


def random_images(experiment: Experiment, count: int) -> ArraySource:
    """Images in which every level is as likely as any other, all of class 0."""
    shape = (count, *experiment.dataset.image_shape)
    levels = np.random.default_rng(0).integers(0, experiment.dataset.num_levels, shape, dtype=np.uint8)
    return ArraySource(levels, np.zeros(count, np.int32))


def work_of_share(experiment: Experiment, devices: int) -> Work:
    """The contractions of a train step on one of so many devices."""
    share, mesh = device_share(experiment, devices), make_mesh()
    step = make_train_step(share, mesh)
    return flops.count_work(step, abstract_state(share, mesh), abstract_images(share, mesh))


def compile_step(experiment: Experiment, mesh: Mesh) -> Compiled:
    """Trace and compile the train step, without the persistent cache."""
    step = cast(jax.stages.Wrapped, make_train_step(experiment, mesh))
    arguments = abstract_state(experiment, mesh), abstract_images(experiment, mesh)
    logging.info("compiling the train step of batch %d", experiment.batch_size)
    with uncached():
        at = [time.perf_counter()]
        traced = step.trace(*arguments)
        at.append(time.perf_counter())
        lowered = traced.lower()
        at.append(time.perf_counter())
        compiled = lowered.compile()
        at.append(time.perf_counter())
    return Compiled(compiled, dict(zip(("trace", "lower", "compile"), np.diff(at).tolist(), strict=True)))


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Nothing that is compiled inside comes from the persistent cache, or goes there."""
    before: bool = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(before)


def _enable_cache(enable: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enable)
    compilation_cache.reset_cache()  # JAX looks at that setting once, until it is told to look again


def first_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """The state before the first step, on the devices."""
    placed = shardings(abstract_state(experiment, mesh))
    return jax.jit(lambda: init_state(experiment), out_shardings=placed)()


def first_params(experiment: Experiment, mesh: Mesh) -> Params:
    """Its parameters alone."""
    model, shape = experiment.model, experiment.dataset.image_shape
    make = jax.jit(
        lambda: model.init(root_key(experiment.seed, "init"), shape), out_shardings=replicated(mesh)
    )
    return make()
