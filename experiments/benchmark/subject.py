"""The benchmarked experiment: its compiled step, its state, and images of random levels."""

import dataclasses
import functools
import time
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from diffenc.config.experiment import Experiment
from diffenc.core.rng import root_key
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.interfaces import Images, Params
from diffenc.parallel.sharding import data_mesh, images_to_devices, make_mesh, replicated
from diffenc.runtime.compile_cache import without_compile_cache
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
    """A compiled train step.

    Attributes:
      step: (state, images) -> state.
      seconds: seconds of tracing, lowering and compiling.
    """

    step: Any
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all timings.

    Attributes:
      rounds: number of timings.
      least: minimal seconds of a timing, which repeats short calls.
      sampling_steps: steps of one sampled chain.
      images: size of the synthetic data set.
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
    """Objects shared by the parts of the benchmark, created on first use."""

    def __init__(self, experiment: Experiment, settings: Settings):
        self.experiment = experiment
        self.settings = settings
        self.mesh: Mesh = data_mesh(experiment.mesh)
        check_batch(experiment, self.mesh)

    @functools.cached_property
    def compiled(self) -> Compiled:
        """The compiled train step."""
        return compile_step(self.experiment, self.mesh)

    @functools.cached_property
    def stepper(self) -> "Stepper":
        return Stepper(self.compiled.step, make_initial_state(self.experiment, self.mesh), self.images)

    @functools.cached_property
    def work(self) -> Work:
        """The contractions of one device's share of a step."""
        return count_share_work(self.experiment, self.mesh.devices.size)

    @functools.cached_property
    def images(self) -> Images:
        """A batch on the devices."""
        return batch_of(self.experiment, self.mesh)

    @functools.cached_property
    def source(self) -> ArraySource:
        """The synthetic data set, in memory."""
        return random_images(self.experiment, self.settings.images)


class Stepper:
    """A call takes one train step from the state after the previous one."""

    def __init__(self, step: Any, state: TrainState, images: Images):
        self.step, self.state, self.images = step, state, images

    def __call__(self) -> jax.Array:
        return self.take(self.images)

    def take(self, images: Images) -> jax.Array:
        """Takes a step on a batch; returns the step number, an array to wait for."""
        # the old state was donated, so it must be replaced
        self.state = self.step(self.state, images)
        return self.state.step


def batch_of(experiment: Experiment, mesh: Mesh) -> Images:
    """Returns a batch of random images, with the condition of its model, on the devices."""
    batch = random_images(experiment, experiment.batch_size).__getitems__(np.arange(experiment.batch_size))
    return images_to_devices(batch, experiment.model.conditioning, mesh)


def random_images(experiment: Experiment, count: int) -> ArraySource:
    """Returns images of uniformly distributed levels, all of class 0."""
    shape = (count, *experiment.dataset.image_shape)
    levels = np.random.default_rng(0).integers(0, experiment.dataset.num_levels, shape, dtype=np.uint8)
    return ArraySource(levels, np.zeros(count, np.int32))


def count_share_work(experiment: Experiment, devices: int) -> Work:
    """Counts the contractions of a train step on one of `devices` devices."""
    share, mesh = device_share(experiment, devices), make_mesh()
    step = make_train_step(share, mesh)
    return flops.count_work(step, abstract_state(share, mesh), abstract_images(share, mesh))


def compile_step(experiment: Experiment, mesh: Mesh) -> Compiled:
    """Traces and compiles the train step, without the persistent cache."""
    step = cast(jax.stages.Wrapped, make_train_step(experiment, mesh))
    arguments = abstract_state(experiment, mesh), abstract_images(experiment, mesh)
    logging.info("compiling the train step of batch %d", experiment.batch_size)
    with without_compile_cache():
        at = [time.perf_counter()]
        traced = step.trace(*arguments)
        at.append(time.perf_counter())
        lowered = traced.lower()
        at.append(time.perf_counter())
        compiled = lowered.compile()
        at.append(time.perf_counter())
    return Compiled(compiled, dict(zip(("trace", "lower", "compile"), np.diff(at).tolist(), strict=True)))


def make_initial_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """Returns the initial state, on the devices."""
    placed = shardings(abstract_state(experiment, mesh))
    return jax.jit(lambda: init_state(experiment), out_shardings=placed)()


def make_initial_params(experiment: Experiment, mesh: Mesh) -> Params:
    """Returns the initial parameters, on the devices."""
    key = root_key(experiment.seed, "init")
    return jax.jit(experiment.init_params, out_shardings=replicated(mesh))(key)
