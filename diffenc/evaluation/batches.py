"""Passes over the images of a measurement: each image once in every pass, each batch with its own random key."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from diffenc.config.settings import Diagnose, Evaluate, Fit, ResolvedEvaluate, settings_name
from diffenc.core.compiled_once import compiled_once
from diffenc.core.model import UNIFORM, Draws, SampleTimes
from diffenc.core.rng import fold_in, root_key
from diffenc.core.unroll import trace_for
from diffenc.data.batches import eval_batches
from diffenc.data.sources import subsample
from diffenc.interfaces import Conditioning, Dataset, Images, Key, Source
from diffenc.parallel.sharding import (
    batch_sharded,
    check_divisible,
    images_to_devices,
    platform_of,
    replicated,
    rows_here,
)
from diffenc.runtime.compile_options import brief_options

Settings = TypeVar("Settings", ResolvedEvaluate, Evaluate, Fit, Diagnose)
B = TypeVar("B")


class PassDraws(NamedTuple):
    """Keys and variates that the random draws of a batch of images come from. Draws do not depend on how images are batched.

    Attributes:
      key: of the pass.
      image: index of each image in the source.
      times: uniform variates for the diffusion times, stratified over all images of the pass.
    """

    key: Key
    image: Int[Array | np.ndarray, " b"]
    times: Float[Array | np.ndarray, "b times"]


class EvaluationBatch(NamedTuple):
    """One batch of one pass.

    Attributes:
      pass_index: the pass, from 0.
      first: index of its first image in the source.
      images: a full batch; the last one of a pass is padded.
      mask: False for padding.
      key: of this batch in this pass alone.
      draws: input of `make_draws`.
    """

    pass_index: int
    first: int
    images: Images
    mask: Bool[np.ndarray, " b"]
    key: Key
    draws: PassDraws

    def without_padding(self, tree: Any) -> Any:
        """Returns a pytree of host arrays [..., b] without the columns of padding."""
        return jax.tree.map(lambda array: array[..., self.mask], tree)


class EvaluationBatches:
    """`settings.passes` passes over `settings.num_images` images of `settings.split`, as an iterable of batches."""

    def __init__(
        self,
        dataset: Dataset,
        conditioning: Conditioning,
        settings: Evaluate | Fit | Diagnose,
        mesh: Mesh,
        purpose: str,
        passes: int | None = None,
        times_per_image: int = 1,
    ):
        """Selects the images; reads none yet.

        Args:
          settings: with a batch size (see `resolve_batch_size`).
          purpose: separates the random draws of different measurements.
          passes: overrides `settings.passes`.
          times_per_image: diffusion times drawn for an image in a pass.

        Raises:
          UserError: the batch does not divide over the devices, or there is no such split.
        """
        self.source = select_images(dataset, settings)
        self.batch_size = settings.batch_size
        self.passes = settings.passes if passes is None else passes
        check_divisible(f"{settings_name(settings)}.batch_size", self.batch_size, mesh)
        self._conditioning = conditioning
        # Times have a stream of their own: they are drawn on the host
        # for a whole pass, the noise on the devices for each image.
        self._root, self._times_root = (
            root_key(settings.seed, name) for name in (purpose, f"{purpose} times")
        )
        self._times_per_image = times_per_image
        self._mesh, self._rows = mesh, rows_here(mesh, self.batch_size)

    def __len__(self) -> int:
        """Returns the number of batches in all passes together."""
        # ceil division: the last batch of each pass is padded.
        return self.passes * -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yields all batches of the first pass, then those of the second, ..."""
        for number in range(self.passes):
            one_pass = self._pass(number)
            for batch in self._image_batches():
                yield one_pass.draw_for(*batch)

    def image_by_image(self) -> Iterator[EvaluationBatch]:
        """Yields all passes over the first batch of images, then those over the second, ...

        Sums over passes then need memory for one batch, not for the whole source.
        """
        # The draws are those of `__iter__`: they follow from pass and image, not from the order of calls.
        every_pass = [self._pass(number) for number in range(self.passes)]
        for batch in self._image_batches():
            for one_pass in every_pass:
                yield one_pass.draw_for(*batch)

    def times(self, pass_index: int) -> Float[np.ndarray, "images times"]:
        """Returns the uniform variates of a pass, in source order."""
        # numpy's generator, seeded by a JAX key: strata must be
        # permuted over all images of a pass at once, on the host.
        key = jax.random.key_data(fold_in(self._times_root, pass_index))
        random = np.random.default_rng(np.asarray(key))
        variates = stratified_over_images(random, len(self.source), self._times_per_image)
        precision = jnp.result_type(float)
        # rounding to float32 may reach 1, which is no time of [0, 1)
        return np.minimum(variates, np.nextafter(np.ones((), precision), 0)).astype(precision)

    def stack_passes(
        self, batches: list[Shaped[np.ndarray, "..."]]
    ) -> Shaped[np.ndarray, "passes ... images"]:
        """Returns per-image results of all batches, [..., b] without padding each and in order, by pass and image."""
        size = len(batches) // self.passes
        by_pass = [batches[first : first + size] for first in range(0, len(batches), size)]
        return np.stack([np.concatenate(one_pass, axis=-1) for one_pass in by_pass])

    def _pass(self, number: int) -> "_Pass":
        return _Pass(number, fold_in(self._root, number), self.times(number))

    def _image_batches(self) -> Iterator[tuple[int, int, Images, Bool[np.ndarray, " b"]]]:
        """Yields each batch's index, the index of its first image, the images on the devices, and the mask."""
        for index, (batch, weight) in enumerate(eval_batches(self.source, self.batch_size, self._rows)):
            images = images_to_devices(batch, self._conditioning, self._mesh)
            yield index, index * self.batch_size, images, weight > 0


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Random draws of one pass."""

    number: int
    key: Key
    times: Float[np.ndarray, "images times"]

    def draw_for(
        self, index: int, first: int, images: Images, mask: Bool[np.ndarray, " b"]
    ) -> EvaluationBatch:
        image = first + np.arange(len(mask)) * mask  # padding draws as the first image of the batch
        draws = PassDraws(self.key, image, self.times[image])
        return EvaluationBatch(self.number, first, images, mask, fold_in(self.key, index), draws)


def resolve_batch_size(settings: Settings, default: int) -> Settings:
    """Returns `settings` with the batch size `default` where they leave it open (0)."""
    return dataclasses.replace(settings, batch_size=settings.batch_size or default)


def select_images(dataset: Dataset, settings: Evaluate | Fit | Diagnose) -> Source:
    """Returns the `num_images` images of `settings.split`, drawn by the seed.

    Raises:
      UserError: there is no such split.
    """
    return subsample(dataset.source(settings.split), settings.num_images, settings.seed)


def stratified_over_images(
    random: np.random.Generator, count: int, times_per_image: int
) -> Float[np.ndarray, "count times"]:
    """Returns uniform variates in [0, 1) of `count` images, one in each of count x times_per_image equal strata.

    Each image has one in each of `times_per_image` parts of [0, 1). Strata are assigned to images anew in each call,
    so that over passes an image's times do not depend on its index.
    """
    # Permuted anew in each pass: with a fixed order an image's times would be alike in all passes, and their
    # effect on its mean would count as a difference between images.
    strata = np.stack([random.permutation(count) for _ in range(times_per_image)], axis=1)
    # One common offset for all strata, as in VDM's low-discrepancy times; each single time is uniform.
    within = (strata + random.uniform(size=times_per_image)) / count
    return (within + np.arange(times_per_image)) / times_per_image


def make_draws(
    draws: PassDraws, shape: tuple[int, ...], sample_times: SampleTimes = UNIFORM, index: int | Array = 0
) -> Draws:
    """Returns the draws of a batch of `shape` [B, ...] by the `index`-th time of each image.

    Each image has its own key, so that neither batch nor devices change its draws (except with JAX's generator
    rbg, which under vmap uses the key of the first image of a batch).
    """
    t, weight = sample_times(jnp.asarray(draws.times)[:, index])
    # Pass, then image, then the number of its time: three levels, so that no two draws share a key.
    keys = jax.vmap(lambda image: jax.random.fold_in(jax.random.fold_in(draws.key, image), index))(
        draws.image
    )
    both = jax.vmap(lambda key: jax.random.normal(key, (2, *shape[1:])))(keys)
    return Draws(t, both[:, 0], both[:, 1], weight)


@compiled_once
def compile_on_mesh(mesh: Mesh, function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
    """Returns `function(*fixed, params, images, draws)` compiled: images split over the devices, results replicated.

    Parameters keep their sharding; draws are replicated. Compiles once per module-level `function` and equal `fixed`.
    """
    # None leaves parameters as they lie, sharded or not. Results
    # are replicated, so that every process can fetch them.
    shardings, platform = (None, batch_sharded(mesh), replicated(mesh)), platform_of(mesh)
    traced, options = trace_for(platform, partial(function, *fixed)), brief_options(platform)
    return jax.jit(traced, in_shardings=shardings, out_shardings=replicated(mesh), compiler_options=options)


def map_batches(
    compiled: Callable[..., Any],
    params: Any,
    batches: Iterable[B],
    inputs: Callable[[B], tuple[Any, ...]],
    progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Any, B]]:
    """Yields `compiled(params, *inputs(batch))`, fetched to the host, and the batch, one batch at a time.

    Args:
      compiled: of `compile_on_mesh`.
      inputs: of a batch, its images and draws.
      progress: called when the caller is done with a batch; it may raise to stop.
    """
    for batch in batches:
        # Fetched at once: results on the host need no device memory, however many batches there are.
        yield jax.device_get(compiled(params, *inputs(batch))), batch
        progress()
