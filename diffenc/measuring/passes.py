"""Passes over the images that a measurement names: every image once a pass, each batch with a key of its own."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from diffenc.data.batches import eval_batches
from diffenc.data.sources import some_of
from diffenc.devices.sharding import check_divisible, images_to_devices, on_each, rows_here, split_over
from diffenc.experiment import Experiment
from diffenc.interfaces import Images, Key, Source
from diffenc.randomness import root_key
from diffenc.settings import Diagnose, Evaluate, Fit


class Visit(NamedTuple):
    """One batch of one pass.

    Attributes:
      number: of the pass.
      first: place of its first image in the source.
      images: full; the last batch of a pass is filled up.
      real: which of the images are not filling.
      key: of this batch in this pass alone.
    """

    number: int
    first: int
    images: Images
    real: Bool[np.ndarray, " b"]
    key: Key


class Passes:
    """`settings.passes` passes over `settings.num_images` images of `settings.split`. To be iterated over."""

    def __init__(
        self,
        experiment: Experiment,
        settings: Evaluate | Fit | Diagnose,
        mesh: Mesh,
        purpose: str,
        passes: int | None = None,
    ):
        """`purpose` keeps the draws of two measurements apart; `passes` overrides the settings' own.

        Raises:
          UserError: the batch does not divide over the devices, or there is no such split.
        """
        whole = experiment.dataset.source(settings.split)
        self.source: Source = some_of(whole, settings.num_images, settings.seed)
        self.batch_size = settings.batch_size or experiment.batch_size
        self.passes = settings.passes if passes is None else passes
        check_divisible(f"{type(settings).__name__.lower()}.batch_size", self.batch_size, mesh)
        self._conditioning = experiment.model.conditioning
        self._root = root_key(settings.seed, purpose)
        self._mesh, self._rows = mesh, rows_here(mesh, self.batch_size)

    def __len__(self) -> int:
        """Batches in all passes together."""
        return self.passes * -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Visit]:
        for number in range(self.passes):
            key = jax.random.fold_in(self._root, number)
            for index, (batch, weight) in enumerate(eval_batches(self.source, self.batch_size, self._rows)):
                images = images_to_devices(batch, self._conditioning, self._mesh)
                first, real = index * self.batch_size, weight > 0
                yield Visit(number, first, images, real, jax.random.fold_in(key, index))

    def by_pass(self, rows: list[np.ndarray]) -> list[list[np.ndarray]]:
        """`rows`, one for each visit in turn, cut into passes."""
        size = len(rows) // self.passes
        return [rows[first : first + size] for first in range(0, len(rows), size)]


def compile_over(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(params, images, key)` compiled: params as they lie, images split, all else on each device."""
    shardings = (None, split_over(mesh), on_each(mesh))
    return jax.jit(function, in_shardings=shardings, out_shardings=on_each(mesh))
