"""Samples of a trained model, drawn in stretches of one compiled scan, so that progress shows and Ctrl-C works."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from diffenc.config.settings import ResolvedSample
from diffenc.core.compiled_once import compiled_once
from diffenc.core.discretization import EQUAL
from diffenc.core.model import Model
from diffenc.core.rng import root_key
from diffenc.core.unroll import trace_for
from diffenc.interfaces import Condition, Data, Dataset, Key, Params, Variance
from diffenc.parallel.sharding import batch_sharded, platform_of, replicated
from diffenc.registry import variances
from diffenc.runtime.compile_options import brief_options
from diffenc.sampling import sampler
from diffenc.sampling.sampler import ReverseChain
from diffenc.sampling.solvers import ODE_SOLVERS, SDE_SOLVERS, SOLVERS, Solver, slope_is_modelled
from diffenc.workdir import fitted_chains
from diffenc.workdir.fitted_chains import FittedChain

MAX_STRETCHES = 20


def count_stretches(steps: int) -> int:
    """Returns the number of equal stretches that `steps` are divided into: the largest divisor up to MAX_STRETCHES."""
    return max(count for count in range(1, min(steps, MAX_STRETCHES) + 1) if steps % count == 0)


def sample_file_name(settings: ResolvedSample, step: int) -> str:
    """Returns the name of the PNG: the checkpoint's step, T, the settings that differ from the default, number and seed."""
    chosen = "-".join(map(str, settings.classes or ()))
    unusual = {
        settings.sampler: settings.sampler != "ancestral",
        f"{settings.times}-times": settings.times != "equal",
        f"{variances.spell(settings.variance)}-variance": settings.variance != EQUAL,
        f"classes{chosen}": settings.classes is not None,
        f"guidance{settings.guidance:g}": settings.guidance != 0,
    }
    parts = [f"{step:09d}", f"T{settings.num_timesteps}", *(part for part, named in unusual.items() if named)]
    return "_".join([*parts, f"n{settings.num}", f"seed{settings.seed}"]) + ".png"


def settings_metadata(settings: ResolvedSample) -> dict[str, Any]:
    """Returns how samples are drawn from a given checkpoint, for a record."""
    metadata = {**vars(settings), "variance": variances.spell(settings.variance)}
    del metadata["step"]  # records have the step of the checkpoint, also where the settings leave it open
    return metadata


class ImageSampler:
    """Draws `settings.num` images by the chain and solver of the settings. It compiles once."""

    def __init__(
        self,
        model: Model,
        dataset: Dataset,
        settings: ResolvedSample,
        mesh: Mesh,
        workdir: Path | None = None,
        step: int | None = None,
        *,
        trained_at: int = 0,
    ):
        """Reads fitted times and variances from `workdir`, for the checkpoint of `step`.

        Args:
          trained_at: T of the bound that the model was trained by; 0 = in continuous time.

        Raises:
          UserError: times or variances that must be fitted are missing.
        """
        self.settings = settings
        self.num_stretches = count_stretches(self.settings.num_timesteps)
        self._model = model
        self._num_levels = dataset.num_levels
        self._shape = (self.settings.num, *dataset.image_shape)
        self._labels = cycle_labels(dataset, self.settings.classes, self.settings.num)
        # a number that does not divide over the devices is drawn whole on each
        self._sharding = replicated(mesh) if self.settings.num % mesh.devices.size else batch_sharded(mesh)
        self._solver = SOLVERS[self.settings.sampler]
        self._trained_at = trained_at
        # ODE solvers need a modelled slope; a model trained at T
        # serves other steps and solvers only under the same condition.
        as_trained = ("ancestral", trained_at, "equal")
        other_steps = (settings.sampler, settings.num_timesteps, settings.times) != as_trained
        self._must_check_slope = settings.sampler in ODE_SOLVERS or (trained_at > 0 and other_steps)
        self._stretch = compile_stretch(
            model, self._solver, settings.guidance, self._sharding, platform_of(mesh)
        )
        self._spread = _compiled_copy(self._sharding)
        # until then each process holds only the images of its own devices
        self._collect = _compiled_copy(replicated(mesh))
        fit = fitted_chains.find_chain(workdir, self.settings, step)
        fit.check()
        self.fitted_on = fit.of
        # Tuples, for `compiled_once` looks arguments up by their hash.
        excess = None if fit.excess is None else tuple(fit.excess.tolist())
        self._reverse_chain = _compiled_chain(model, tuple(fit.times.tolist()), excess, fit.variance)

    def draw(
        self,
        params: Params,
        after_stretch: Callable[[], None] = lambda: None,
        key: Key | None = None,
        labels: Int[np.ndarray, " n"] | None = None,
    ) -> Int[np.ndarray, "n h w c"]:
        """Returns images as integer levels.

        Args:
          after_stretch: called after each stretch, to show progress, or to stop by raising.
          key: of the noise; None = by the seed.
          labels: class of each image, for a class-conditional model; None = `sample.classes` in turn.
        """
        condition = self._model.conditioning(self._labels if labels is None else labels)
        self._warn_if_inconsistent(params)

        def walk_down(key: Key, z: Data, down: ReverseChain) -> Data:
            z, length = self._spread(z), self.settings.num_timesteps // self.num_stretches
            for first in range(0, self.settings.num_timesteps, length):
                # One stop more than steps: the last stop of a stretch is the first of the next. All stretches
                # have one shape, and so one compiled program.
                stretch = ReverseChain(
                    down.log_snrs[first : first + length + 1], down.log_w[first : first + length]
                )
                # `first` numbers the noise: images do not depend on how many stretches there are.
                z = self._stretch(params, z, stretch, key, jnp.asarray(first), condition)
                # Without waiting, all stretches would be dispatched at once:
                # progress would be wrong, and a stop would come too late.
                jax.block_until_ready(z)
                after_stretch()
            return self._collect(z)

        key = root_key(self.settings.seed, "sample") if key is None else key
        return np.asarray(
            sampler.sample_along(self._reverse_chain(params), key, self._shape, self._num_levels, walk_down)
        )

    def _warn_if_inconsistent(self, params: Params) -> None:
        """Warns once if an ODE solver, or steps or a solver other than those of training at T, does not sample the trained model.

        Needs the parameters in use: a trainable encoder is initialised to equal the non-trainable one.
        """
        if not self._must_check_slope or slope_is_modelled(
            self._model, params, self._shape[1:], self._trained_at
        ):
            return
        self._must_check_slope = False
        if self._trained_at:
            logging.warning(
                "sample.sampler = %s with sample.num_timesteps = %d, %s times: the encoder depends on the noise level and "
                "the model was trained at T = %d, so that its x_hat serves these equal steps of ancestral sampling alone: these are samples of "
                "another model than the one whose bound was trained; sample.sampler = ancestral with "
                "sample.num_timesteps = %d, equal times, draws from that one",
                self.settings.sampler,
                self.settings.num_timesteps,
                self.settings.times,
                self._trained_at,
                self._trained_at,
            )
            return
        logging.warning(
            "sample.sampler = %s takes the generative mean to know the encoder's slope, and it does not: these are samples of "
            "another model than the one whose bits/dim are measured; %s draw from that one",
            self.settings.sampler,
            " and ".join(SDE_SOLVERS),
        )


@compiled_once
def _compiled_chain(
    model: Model, times: tuple[float, ...], excess: tuple[float, ...] | None, variance: Variance
) -> Callable[[Params], ReverseChain]:
    """Returns the function params -> the chain of a fit."""
    fit = FittedChain(np.array(times), None if excess is None else np.array(excess), variance)
    return jax.jit(lambda params: sampler.reverse_chain(model, params, fit.chain(model.schedule, params)))


@compiled_once
def compile_stretch(
    model: Model, solver: Solver, guidance: float, sharding: NamedSharding, platform: str
) -> Callable[..., Data]:
    """Returns `walk_stretch` compiled for images of this sharding; the buffer of z is donated."""
    walk = trace_for(platform, partial(walk_stretch, model, solver, guidance))
    options = brief_options(platform)
    return jax.jit(walk, out_shardings=sharding, donate_argnums=1, compiler_options=options)


def walk_stretch(
    model: Model,
    solver: Solver,
    guidance: float,
    params: Params,
    z: Data,
    stretch: ReverseChain,
    key: Key,
    first: Int[Array, ""],
    condition: Condition | None,
) -> Data:
    """Returns z at the end of a stretch of the chain; `first` is the number of the stretch's first step."""
    estimate = sampler.estimator_of(model, params, condition, guidance)
    return sampler.walk(key, z, *stretch, estimate, partial(model.increment, params), solver, first)


@compiled_once
def _compiled_copy(sharding: NamedSharding) -> Callable[[Data], Data]:
    return jax.jit(lambda z: z, out_shardings=sharding)


def cycle_labels(dataset: Dataset, classes: tuple[int, ...] | None, count: int) -> Int[np.ndarray, " count"]:
    """Returns labels of `count` images: `classes` in turn; None = all classes."""
    cycle = np.arange(dataset.num_classes) if classes is None else np.asarray(classes)
    return np.resize(cycle, count).astype(np.int32)
