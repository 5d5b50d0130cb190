"""What the figures of a trained run are of: its parameters, the images that are shown, and those averaged over."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.figure_settings import Figures
from diffenc.core.objective import Encode
from diffenc.core.pixels import scale_pixels
from diffenc.data.batches import eval_batches
from diffenc.data.sources import Subset, dataset_name, epoch_order, subsample
from diffenc.errors import UserError
from diffenc.evaluation.batches import compile_on_mesh
from diffenc.evaluation.commands import to_default_precision
from diffenc.evaluation.evaluator import image_metadata
from diffenc.interfaces import Condition, Conditioning, Data, Dataset, Images, LogSNR, Params, Source
from diffenc.parallel.sharding import images_to_devices, rows_here
from diffenc.runtime.progress import Progress

BATCH_SIZE = 32  # images at a time
MAX_SHOWN = 10
NEGLIGIBLE = 1e-18  # part of a mean square
CHUNK = 256  # images whose labels are looked at together

Record = dict[str, Any]
Measure = Callable[[Encode, Data, LogSNR], Any]
Grid = Float[np.ndarray, " points"]


class FigureRecord(NamedTuple):
    """What a figure is drawn from, and filed beside it.

    Attributes:
      record: JSON-able: scalars, texts and curves. "note" says why there is nothing to draw.
      arrays: what is too large for that.
    """

    record: Record
    arrays: dict[str, np.ndarray] = {}  # noqa: RUF012 - nobody writes to it


@dataclasses.dataclass(frozen=True)
class FigureInputs:
    """A trained run.

    Attributes:
      params: averaged, as they were restored from the checkpoint of `step`.
    """

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    params: Params
    step: int

    @property
    def settings(self) -> Figures:
        return self.experiment.figures

    @property
    def model_of(self) -> Record:
        """Which parameters these are, and in which precision they are computed with."""
        return {
            "dataset": dataset_name(self.experiment.dataset),
            "step": self.step,
            "config_hash": serialize.config_hash(self.experiment),
            "precision": serialize.network_precision(self.experiment),
        }

    @property
    def images_of(self) -> Record:
        """The same, and all that figures of images depend on."""
        settings = dataclasses.asdict(self.settings)
        del settings["only"]
        images = image_metadata(self.experiment, self.settings, len(self.many))
        return {**images, **self.model_of, **settings, "num_images": len(self.many)}

    @cached_property
    def shown(self) -> Source:
        """The images that are shown.

        Raises:
          UserError: the split has no such image.
        """
        dataset, settings = self.experiment.dataset, self.settings
        return Subset(dataset.source(settings.split), select_shown(dataset, settings))

    @cached_property
    def many(self) -> Source:
        """The images that averages are over."""
        whole = self.experiment.dataset.source(self.settings.split)
        return subsample(whole, self.settings.num_images, self.settings.seed)

    @cached_property
    def shown_encoded(self) -> "EncodedImages":
        return encode_images(self, self.shown, "encoded images")

    @cached_property
    def many_encoded(self) -> "EncodedImages":
        return encode_images(self, self.many, "encoding")

    def log_snr_at(self, t: Grid) -> Grid:
        """The schedule at `t`, in float64."""
        with jax.enable_x64(True):
            params = jax.tree.map(to_default_precision, self.params["schedule"])
            return np.asarray(self.experiment.model.schedule.apply(params, jnp.asarray(t)), np.float64)

    def encode(self, params: Params, x: Data, condition: Condition | None, log_snr: LogSNR) -> Data:
        """x_phi at `log_snr`: the one place where figures call the encoder. `params` are the encoder's."""
        return self.experiment.model.encode({"encoder": params}, x, log_snr, condition=condition)


class EncodedImages(NamedTuple):
    """Images at the figures' times, float64.

    Attributes:
      x: the images themselves, scaled.
      x_phi: encoded, at each t of `figures.times`.
      change: (x_phi(t) - x_phi(s)) / (t - s), per unit of t, s = t - gap.
      factor: by how much alpha^2 changes, likewise: all that an image is multiplied by where x_phi = alpha^2 x.
    """

    x: Float[np.ndarray, "n h w c"]
    x_phi: Float[np.ndarray, "n t h w c"]
    change: Float[np.ndarray, "n t h w c"]
    factor: Grid

    @property
    def parts(self) -> dict[str, Float[np.ndarray, "n t h w c"]]:
        """What is to be compared: the change, its learned part, and the images, at one time that stands for all."""
        return {"change": self.change, "learned": self.learned, "x": self.x[:, None]}

    @property
    def learned(self) -> Float[np.ndarray, "n t h w c"]:
        """The change of x_phi - alpha^2 x, which is sigma^2 y_phi; 0 at a t where it is no more than rounding."""
        result = self.change - self.factor[:, None, None, None] * self.x[:, None]
        part, whole = (np.square(array).sum(axis=(0, 2, 3, 4)) for array in (result, self.change))
        result[:, part <= NEGLIGIBLE * whole] = 0
        return result


def encode_images(subject: FigureInputs, source: Source, task: str) -> EncodedImages:
    """The images of `source` at the figures' times."""
    times, gap = np.array(subject.settings.times), subject.settings.gap
    before = np.maximum(times - gap, 0)
    grid, where = np.unique(np.round([*times, *before], 9), return_inverse=True)
    log_snr, x = subject.log_snr_at(grid), read_pixels(subject, source)
    at = map_images(subject, source, log_snr, lambda encode, x, log_snr: encode(log_snr), task)[:, where]
    late, early = at[:, : len(times)], at[:, len(times) :]
    alpha_2 = (1 / (1 + np.exp(-log_snr)))[where]
    factor = (alpha_2[: len(times)] - alpha_2[len(times) :]) / gap
    return EncodedImages(x, late, (late - early) / gap, factor)


def read_pixels(subject: FigureInputs, source: Source) -> Float[np.ndarray, "n h w c"]:
    """The images of `source`, scaled, on the host in float64."""
    images = source.__getitems__(np.arange(len(source)))["image"]
    with jax.enable_x64(True):
        return np.asarray(scale_pixels(jnp.asarray(images), subject.experiment.dataset.num_levels))


def read_labels(source: Source) -> Int[np.ndarray, " n"]:
    """The classes of the images of `source`."""
    return source.__getitems__(np.arange(len(source)))["label"]


def map_images(subject: FigureInputs, source: Source, log_snrs: Grid, measure: Measure, task: str) -> Any:
    """`measure(encode, x, log_snr)` of all images at each of `log_snrs`: its arrays, [N, len(log_snrs), ...].

    In float64, for (x_phi - alpha^2 x) / sigma^2 has no digits left in float32 where sigma^2 is small.
    """
    mesh, num_levels = subject.mesh, subject.experiment.dataset.num_levels

    def at(params: Params, images: Images, log_snr: Float[Array, ""]) -> Any:
        x = scale_pixels(images.levels, num_levels)
        encode = lambda log_snr: subject.encode(params, x, images.condition, log_snr)  # noqa: E731
        return measure(encode, x, jnp.full(len(x), log_snr))

    compiled = compile_on_mesh(mesh, at)
    rows = []
    with jax.enable_x64(True):
        params = jax.tree.map(to_default_precision, subject.params["encoder"])
        batches = list(_batches(source, subject.experiment.model.conditioning, mesh))
        progress = Progress(task, len(batches) * len(log_snrs))
        for images, real in batches:
            each = []
            for log_snr in log_snrs:
                each.append(jax.device_get(compiled(params, images, jnp.asarray(log_snr))))
                progress()
            rows.append(jax.tree.map(lambda *parts, real=real: np.stack(parts, axis=1)[real], *each))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


def _batches(
    source: Source, conditioning: Conditioning, mesh: Mesh
) -> Iterator[tuple[Images, Bool[np.ndarray, " b"]]]:
    """The images, split over the devices; and which of each batch are not filling."""
    devices = mesh.devices.size
    size = -(-min(BATCH_SIZE, len(source)) // devices) * devices
    for batch, weight in eval_batches(source, size, rows_here(mesh, size)):
        yield images_to_devices(batch, conditioning, mesh), weight > 0


def select_shown(dataset: Dataset, settings: Figures) -> Int[np.ndarray, " n"]:
    """Where in the split the images are that are shown.

    Raises:
      UserError: the split has no such image.
    """
    source = dataset.source(settings.split)
    if settings.images:
        absent = [place for place in settings.images if not 0 <= place < len(source)]
        if absent:
            raise UserError(
                f"figures.images: there is no image {absent[0]} in {settings.split}: it has {len(source)}, from 0 on"
            )
        return np.array(settings.images)
    order = epoch_order(len(source), settings.seed, 0)
    return order[:MAX_SHOWN] if dataset.num_classes < 2 else _one_of_each(source, order, dataset.num_classes)


def _one_of_each(source: Source, order: Int[np.ndarray, " n"], num_classes: int) -> Int[np.ndarray, " m"]:
    """The first image in `order` of each of at most MOST_SHOWN classes; of a class without images, none."""
    wanted = spread_evenly(np.arange(num_classes))
    found: dict[int, int] = {}
    for first in range(0, len(order), CHUNK):
        chunk = order[first : first + CHUNK]
        for place, label in zip(chunk, source.__getitems__(chunk)["label"], strict=True):
            found.setdefault(int(label), int(place))
        if found.keys() >= set(wanted.tolist()):
            break
    return np.array([found[label] for label in wanted.tolist() if label in found])


def spread_evenly(classes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """At most MOST_SHOWN of `classes`, evenly spread."""
    count = min(MAX_SHOWN, len(classes))
    return classes[np.round(np.linspace(0, len(classes) - 1, count)).astype(int)]
