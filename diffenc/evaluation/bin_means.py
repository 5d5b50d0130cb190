"""Means in bins of t of quantities measured at drawn times, with errors over images."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.config.settings import Diagnose, Fit, settings_name
from diffenc.core.model import Draws, Model
from diffenc.errors import UserError
from diffenc.evaluation.batches import (
    EvaluationBatches,
    PassDraws,
    compile_on_mesh,
    make_draws,
    map_batches,
)
from diffenc.evaluation.streaming_stats import ImageMeans
from diffenc.interfaces import Dataset, Images, Params, PerExample
from diffenc.runtime.progress import Progress

BinIndex = Int[Array, " b"]
Metrics = dict[str, PerExample]
Measure = Callable[[Model, int, int, Params, Images, Draws], tuple[BinIndex, Metrics]]
BinMeans = dict[str, ImageMeans]


def measure_bins(
    model: Model,
    dataset: Dataset,
    settings: Diagnose | Fit,
    mesh: Mesh,
    params: Params,
    num_bins: int,
    measure: Measure,
) -> BinMeans:
    """Returns the means in bins of all metrics of `measure`, over the images and passes of `settings`.

    Raises:
      UserError: the batch does not divide over the devices, or a bin has fewer than two draws.
    """
    # One purpose for every measurement in bins: with equal settings all of them have the same draws.
    batches = EvaluationBatches(dataset, model.conditioning, settings, mesh, "diagnose")
    results = map_batches(
        # `measure` must be a module-level function: compiled functions are looked up by it.
        compile_on_mesh(mesh, measure_batch, measure, model, dataset.num_levels, num_bins),
        params,
        batches,
        lambda batch: (batch.images, batch.draws),
        Progress("diagnosis", len(batches)),
    )
    means: BinMeans = {}
    for result, batch in results:
        index, metrics = batch.without_padding(result)
        # Float32 results are summed in float64, per image: draws of one image are not independent.
        image = batch.first + np.arange(len(index))
        for name, values in metrics.items():
            mean = means.setdefault(name, ImageMeans(len(batches.source), num_bins))
            mean.add(image, index, values.astype(np.float64))
    fewest = min(mean.count.min() for mean in means.values())
    # A single draw has no standard error.
    if fewest < 2:
        name = settings_name(settings)
        fewer_bins = ", or diagnose.bins lower" if isinstance(settings, Diagnose) else ""
        raise UserError(
            f"a bin of t was drawn {fewest} time(s): bind {name}.passes or {name}.num_images higher{fewer_bins}"
        )
    return means


def measure_batch(
    measure: Measure,
    model: Model,
    num_levels: int,
    num_bins: int,
    params: Params,
    images: Images,
    draws: PassDraws,
) -> tuple[BinIndex, Metrics]:
    """Returns `measure` of a batch, with the batch's own draws."""
    return measure(model, num_levels, num_bins, params, images, make_draws(draws, images.levels.shape))


def log_snr_at(model: Model, params: Params, t: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the log-SNR at `t`, on the host as float64."""
    return np.asarray(model.log_snr(params, jnp.asarray(t)), np.float64)
