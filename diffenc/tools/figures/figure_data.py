"""Input of the figures of a trained run: its parameters, the images to show, and the images to average over."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.figure_settings import Figures
from diffenc.config.network_precision import network_precision
from diffenc.core.interval import EncodeAt
from diffenc.core.model import Model
from diffenc.core.pixels import scale_pixels
from diffenc.data.batches import eval_batches
from diffenc.data.sources import Subset, dataset_name, epoch_order, subsample
from diffenc.errors import UserError
from diffenc.evaluation.batches import compile_on_mesh, map_batches
from diffenc.evaluation.evaluation_record import image_metadata, model_metadata
from diffenc.evaluation.fit_schedule import exact_log_snr
from diffenc.evaluation.restore_params import to_default_precision
from diffenc.interfaces import Conditioning, Context, Data, Dataset, Images, LogSNR, Params, Source
from diffenc.parallel.sharding import images_to_devices, rows_here
from diffenc.runtime.progress import Progress

BATCH_SIZE = 32  # images at a time
MAX_SHOWN = 10
NEGLIGIBLE = 1e-18  # share of a mean square that is rounding
CHUNK = 256  # images whose labels are read together

Record = dict[str, Any]
Measure = Callable[[EncodeAt, Data, LogSNR], Any]
Grid = Float[np.ndarray, " points"]


class FigureRecord(NamedTuple):
    """Data of a figure, written next to it.

    Attributes:
      record: JSON-able scalars, texts and curves. "note": why there is nothing to plot.
      arrays: data too large for JSON.
    """

    record: Record
    arrays: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class FigureInputs:
    """A trained run.

    Attributes:
      params: averaged parameters, restored from the checkpoint of `step`.
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
    def model_metadata(self) -> Record:
        """Metadata of the parameters, and the precision of the network."""
        return {
            "dataset": dataset_name(self.experiment.dataset),
            "step": self.step,
            "config_hash": serialize.config_hash(self.experiment),
            **model_metadata(self.experiment),
            "precision": network_precision(self.experiment),
        }

    @property
    def images_metadata(self) -> Record:
        """Metadata of figures of images: all inputs they depend on."""
        settings = dataclasses.asdict(self.settings)
        del settings["only"]
        experiment = self.experiment
        images = image_metadata(experiment.dataset, experiment.model, self.settings.split, len(self.many))
        return {**images, **self.model_metadata, **settings, "num_images": len(self.many)}

    @cached_property
    def shown(self) -> Source:
        """The images to show.

        Raises:
          UserError: the split has no such image.
        """
        dataset, settings = self.experiment.dataset, self.settings
        return Subset(dataset.source(settings.split), select_shown(dataset, settings))

    @cached_property
    def many(self) -> Source:
        """The images to average over."""
        source = self.experiment.dataset.source(self.settings.split)
        return subsample(source, self.settings.num_images, self.settings.seed)

    @cached_property
    def shown_encoded(self) -> "EncodedImages":
        return encode_images(self, self.shown, "encoded images")

    @cached_property
    def many_encoded(self) -> "EncodedImages":
        return encode_images(self, self.many, "encoding")

    def log_snr_at(self, t: Grid) -> Grid:
        """Returns the log-SNR at `t`, in float64."""
        return exact_log_snr(self.experiment.model, self.params)(t)


class EncodedImages(NamedTuple):
    """Images at the figures' times, float64.

    Attributes:
      x: the images themselves, scaled.
      x_phi: encoded, at each t of `figures.times`.
      change: (x_phi(t) - x_phi(s)) / (t - s), per unit of t, s = t - gap.
      factor: the change of alpha^2 per unit of t; where x_phi = alpha^2 x, the change is this times the image.
    """

    x: Float[np.ndarray, "n h w c"]
    x_phi: Float[np.ndarray, "n t h w c"]
    change: Float[np.ndarray, "n t h w c"]
    factor: Grid

    @property
    def parts(self) -> dict[str, Float[np.ndarray, "n t h w c"]]:
        """The arrays to compare: the change, its learned part, and the images, with one time instead of all."""
        return {"change": self.change, "learned": self.learned, "x": self.x[:, None]}

    @property
    def learned(self) -> Float[np.ndarray, "n t h w c"]:
        """The change of x_phi - alpha^2 x = sigma^2 y_phi; 0 at a t where it is within rounding."""
        result = self.change - self.factor[:, None, None, None] * self.x[:, None]
        part, whole = (np.square(array).sum(axis=(0, 2, 3, 4)) for array in (result, self.change))
        # For x_phi = alpha^2 x the difference is rounding,
        # which a spectrum or a ratio would show as structure.
        result[:, part <= NEGLIGIBLE * whole] = 0
        return result


def encode_images(subject: FigureInputs, source: Source, task: str) -> EncodedImages:
    """Returns the images of `source` at the figures' times."""
    times, gap = np.array(subject.settings.times), subject.settings.gap
    before = np.maximum(times - gap, 0)
    # Times and times - gap mostly coincide, and each is encoded once; rounded, so that equal ones compare equal.
    grid, where = np.unique(np.round([*times, *before], 9), return_inverse=True)
    log_snr, x = subject.log_snr_at(grid), read_pixels(subject, source)
    at = map_images(subject, source, log_snr, _encoded, task)[:, where]
    late, early = at[:, : len(times)], at[:, len(times) :]
    alpha_2 = (1 / (1 + np.exp(-log_snr)))[where]
    factor = (alpha_2[: len(times)] - alpha_2[len(times) :]) / gap
    return EncodedImages(x, late, (late - early) / gap, factor)


def _encoded(encode: EncodeAt, x: Data, log_snr: LogSNR) -> Data:
    return encode(log_snr)


def read_pixels(subject: FigureInputs, source: Source) -> Float[np.ndarray, "n h w c"]:
    """Returns the images of `source`, scaled, on the host in float64."""
    images = source.__getitems__(np.arange(len(source)))["image"]
    with jax.enable_x64(True):
        return np.asarray(scale_pixels(jnp.asarray(images), subject.experiment.dataset.num_levels))


def read_labels(source: Source) -> Int[np.ndarray, " n"]:
    """Returns the classes of the images of `source`."""
    return source.__getitems__(np.arange(len(source)))["label"]


class _BatchAtLogSNR(NamedTuple):
    """One batch of images at one log-SNR; `mask` is False for padding."""

    images: Images
    mask: Bool[np.ndarray, " b"]
    log_snr: np.float64


def map_images(subject: FigureInputs, source: Source, log_snrs: Grid, measure: Measure, task: str) -> Any:
    """Returns the arrays of `measure(encode, x, log_snr)` for all images at each of `log_snrs`, [N, len(log_snrs), ...].

    Computes in float64: (x_phi - alpha^2 x) / sigma^2 has no digits left in float32 where sigma^2 is small.
    """
    model, mesh = subject.experiment.model, subject.mesh
    num_levels = subject.experiment.dataset.num_levels
    batch_size = _padded_batch_size(len(source), mesh.devices.size)
    num_batches = -(-len(source) // batch_size)
    rows, row = [], []
    with jax.enable_x64(True):
        results = map_batches(
            compile_on_mesh(mesh, measure_batch, model, num_levels, measure),
            # Within enable_x64: the same parameters, computed with in float64.
            {"encoder": jax.tree.map(to_default_precision, subject.params["encoder"])},
            _batches_at(source, model.conditioning, mesh, batch_size, log_snrs),
            lambda batch: (batch.images, jnp.asarray(batch.log_snr)),
            Progress(task, num_batches * len(log_snrs)),
        )
        for result, batch in results:
            row.append(jax.tree.map(lambda array, mask=batch.mask: array[mask], result))
            if len(row) == len(log_snrs):
                rows.append(jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *row))
                row = []
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


def measure_batch(
    model: Model, num_levels: int, measure: Measure, params: Params, images: Images, log_snr: Float[Array, ""]
) -> Any:
    """Returns `measure` of a batch of images at one log-SNR."""
    x = scale_pixels(images.levels, num_levels)
    encode = model.prepare(params, x, Context(images.condition))
    return measure(encode, x, jnp.full(len(x), log_snr))


def _padded_batch_size(num_images: int, num_devices: int) -> int:
    """Returns a batch size divisible by the number of devices, and no larger than `num_images` needs."""
    return -(-min(BATCH_SIZE, num_images) // num_devices) * num_devices


def _batches_at(
    source: Source, conditioning: Conditioning, mesh: Mesh, batch_size: int, log_snrs: Grid
) -> Iterator[_BatchAtLogSNR]:
    """Yields each batch of images, split over the devices, at each log-SNR in turn."""
    for batch, weight in eval_batches(source, batch_size, rows_here(mesh, batch_size)):
        images = images_to_devices(batch, conditioning, mesh)
        for log_snr in log_snrs:
            yield _BatchAtLogSNR(images, weight > 0, log_snr)


def select_shown(dataset: Dataset, settings: Figures) -> Int[np.ndarray, " n"]:
    """Returns the indices in the split of the images to show.

    Raises:
      UserError: the split has no such image.
    """
    source = dataset.source(settings.split)
    if settings.images:
        absent = [index for index in settings.images if not 0 <= index < len(source)]
        if absent:
            raise UserError(
                f"figures.images: there is no image {absent[0]} in {settings.split}: it has {len(source)}, from 0 on"
            )
        return np.array(settings.images)
    order = epoch_order(len(source), settings.seed, 0)
    return order[:MAX_SHOWN] if dataset.num_classes < 2 else _one_of_each(source, order, dataset.num_classes)


def _one_of_each(source: Source, order: Int[np.ndarray, " n"], num_classes: int) -> Int[np.ndarray, " m"]:
    """Returns the first image in `order` of each of at most MAX_SHOWN classes, except classes without images."""
    wanted = spread_evenly(np.arange(num_classes))
    found: dict[int, int] = {}
    for first in range(0, len(order), CHUNK):
        chunk = order[first : first + CHUNK]
        for index, label in zip(chunk, source.__getitems__(chunk)["label"], strict=True):
            found.setdefault(int(label), int(index))
        if found.keys() >= set(wanted.tolist()):
            break
    return np.array([found[label] for label in wanted.tolist() if label in found])


def spread_evenly(classes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Returns at most MAX_SHOWN of `classes`, evenly spread."""
    count = min(MAX_SHOWN, len(classes))
    return classes[np.round(np.linspace(0, len(classes) - 1, count)).astype(int)]
