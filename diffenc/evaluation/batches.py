"""Passes over the images that a measurement names: every image once a pass, each batch with a key of its own."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from diffenc.config.experiment import Experiment
from diffenc.config.settings import Diagnose, Evaluate, Fit
from diffenc.core.model import UNIFORM, Draws, SampleTimes
from diffenc.core.rng import root_key
from diffenc.data.batches import eval_batches
from diffenc.data.sources import subsample
from diffenc.interfaces import Images, Key, Source
from diffenc.parallel.sharding import batch_sharded, check_divisible, images_to_devices, replicated, rows_here


class PassDraws(NamedTuple):
    """What the draws of a batch of images are made from. It does not depend on how images are batched.

    Attributes:
      key: of the pass.
      image: number of each image in the source.
      times: uniform variates that diffusion times are drawn by, stratified over all images of the pass.
    """

    key: Key
    image: Int[Array | np.ndarray, " b"]
    times: Float[Array | np.ndarray, "b times"]


class EvaluationBatch(NamedTuple):
    """One batch of one pass.

    Attributes:
      number: of the pass.
      first: place of its first image in the source.
      images: full; the last batch of a pass is filled up.
      real: which of the images are not filling.
      key: of this batch in this pass alone.
      draws: for `make_draws`.
    """

    number: int
    first: int
    images: Images
    real: Bool[np.ndarray, " b"]
    key: Key
    draws: PassDraws


class EvaluationBatches:
    """`settings.passes` passes over `settings.num_images` images of `settings.split`. To be iterated over."""

    def __init__(
        self,
        experiment: Experiment,
        settings: Evaluate | Fit | Diagnose,
        mesh: Mesh,
        purpose: str,
        passes: int | None = None,
        times_per_image: int = 1,
    ):
        """`purpose` keeps the draws of two measurements apart; `passes` overrides the settings' own.

        Args:
          times_per_image: diffusion times that are drawn for an image in a pass.

        Raises:
          UserError: the batch does not divide over the devices, or there is no such split.
        """
        whole = experiment.dataset.source(settings.split)
        self.source: Source = subsample(whole, settings.num_images, settings.seed)
        self.batch_size = settings.batch_size or experiment.batch_size
        self.passes = settings.passes if passes is None else passes
        check_divisible(f"{type(settings).__name__.lower()}.batch_size", self.batch_size, mesh)
        self._conditioning = experiment.model.conditioning
        self._root, self._times_root = (
            root_key(settings.seed, each) for each in (purpose, f"{purpose} times")
        )
        self._times_per_image = times_per_image
        self._mesh, self._rows = mesh, rows_here(mesh, self.batch_size)

    def __len__(self) -> int:
        """Batches in all passes together."""
        return self.passes * -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for number in range(self.passes):
            key, times = jax.random.fold_in(self._root, number), self.times(number)
            for index, (batch, weight) in enumerate(eval_batches(self.source, self.batch_size, self._rows)):
                images = images_to_devices(batch, self._conditioning, self._mesh)
                first, real = index * self.batch_size, weight > 0
                place = (
                    first + np.arange(self.batch_size) * real
                )  # filling draws as the batch's first image does
                draws = PassDraws(key, place, times[place])
                yield EvaluationBatch(number, first, images, real, jax.random.fold_in(key, index), draws)

    def times(self, number: int) -> Float[np.ndarray, "images times"]:
        """Returns the uniform variates of pass `number`, in source order."""
        key = jax.random.key_data(jax.random.fold_in(self._times_root, number))
        random = np.random.default_rng(np.asarray(key))
        drawn = stratified_over_images(random, len(self.source), self._times_per_image)
        precision = jnp.zeros(()).dtype
        return np.minimum(drawn, np.nextafter(np.ones((), precision), 0)).astype(precision)

    def by_pass(self, rows: list[np.ndarray]) -> list[list[np.ndarray]]:
        """`rows`, one for each visit in turn, cut into passes."""
        size = len(rows) // self.passes
        return [rows[first : first + size] for first in range(0, len(rows), size)]


def stratified_over_images(
    random: np.random.Generator, count: int, times_per_image: int
) -> Float[np.ndarray, "count times"]:
    """Returns uniform variates in [0, 1) of `count` images, one in each of count x times_per_image equal strata.

    Each image has one in each of `times_per_image` parts of [0, 1); which stratum of it is drawn anew each time,
    so that over passes an image's times do not depend on its place.
    """
    strata = np.stack([random.permutation(count) for _ in range(times_per_image)], axis=1)
    within = (strata + random.uniform(size=times_per_image)) / count
    return (within + np.arange(times_per_image)) / times_per_image


def make_draws(
    draws: PassDraws, shape: tuple[int, ...], propose: SampleTimes = UNIFORM, index: int | Array = 0
) -> Draws:
    """Returns the draws of a batch of `shape` [B, ...] by the `index`-th time of each image.

    Each image draws by a key of its own, so that neither batch nor devices change what it draws (but for
    JAX's generator rbg, which under vmap takes the key of a batch's first image).
    """
    t, weight = propose(jnp.asarray(draws.times)[:, index])
    keys = jax.vmap(lambda image: jax.random.fold_in(jax.random.fold_in(draws.key, image), index))(
        draws.image
    )
    both = jax.vmap(lambda key: jax.random.normal(key, (2, *shape[1:])))(keys)
    return Draws(t, both[:, 0], both[:, 1], weight)


def compile_on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function(params, images, draws)` compiled: params as they lie, images split, all else on each device."""
    shardings = (None, batch_sharded(mesh), replicated(mesh))
    return jax.jit(function, in_shardings=shardings, out_shardings=replicated(mesh))
