"""Arrays of the page: the images and noise that all models share, and what each model makes of them over t."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from diffenc.core.gaussian import alpha_sigma, diffuse
from diffenc.core.model import bits_per_dim
from diffenc.core.objective import step_error, step_index, step_loss
from diffenc.core.pixels import scale_pixels
from diffenc.core.rng import root_key
from diffenc.data.array_dataset import DatasetSpec
from diffenc.data.sources import dataset_name, subsample_indices
from diffenc.errors import UserError
from diffenc.evaluation.precision_check import check_precision
from diffenc.export.trained_model import TrainedModel
from diffenc.interfaces import Context, Data, Images, Params, PerExample
from diffenc.training.trained_bound import TrainedBound, trained_bound

SEED = 0  # of the images that are shown, and of their noise

Times = Float[np.ndarray, " t"]


class ShownImages(NamedTuple):
    """The images of the page, given to every model with the same noise.

    Attributes:
      split: that they are of.
      fingerprint: of the split's pixels.
      indices: their places in the split.
      eps: one standard normal draw for each image, the same at every t.
    """

    split: str
    fingerprint: str
    indices: Int[np.ndarray, " n"]
    levels: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    eps: Float[np.ndarray, "n h w c"]


class Panels(NamedTuple):
    """What one model makes of the images at every t.

    Attributes:
      time: t of z_t; at T steps that of the noisier end of the step that the drawn t stands for.
      log_snr, alpha, sigma: there.
      x_phi, x_hat: the encoded image, and the model's estimate of it from z_t.
      residual: the error of the estimated mean as it enters the bound (`objective.step_error`).
      bits: one draw of the diffusion loss from this t, (offset + weight ||residual||^2) / (d ln 2) bits/dim with the weight and
        offset of the step [9, 14]; its mean over uniform t is the diffusion loss.
    """

    time: Times
    log_snr: Times
    alpha: Times
    sigma: Times
    x_phi: Float[np.ndarray, "n t h w c"]
    x_hat: Float[np.ndarray, "n t h w c"]
    residual: Float[np.ndarray, "n t h w c"]
    bits: Float[np.ndarray, "n t"]


def midpoint_times(count: int) -> Times:
    """Returns the midpoints of `count` equal parts of [0, 1]: the mean over them estimates the integral over t."""
    return (np.arange(count) + 0.5) / count


def choose_images(models: Sequence[TrainedModel], count: int) -> ShownImages:
    """Returns `count` images of the split that `evaluate.split` of the first model names, all if it has fewer.

    Raises:
      UserError: a model comes without images, or two models have different ones.
    """
    split = models[0].experiment.evaluate.split
    for model in models:
        _require_images(model)
        _require_same_images(models[0], model, split)
    dataset = models[0].experiment.dataset
    source = dataset.source(split)
    indices = subsample_indices(len(source), count, SEED)
    batch = source.__getitems__(indices)
    eps = draw_eps(indices, dataset.image_shape)
    return ShownImages(split, dataset.fingerprint(split), indices, batch["image"], batch["label"], eps)


def draw_eps(indices: Int[np.ndarray, " n"], shape: tuple[int, ...]) -> Float[np.ndarray, "n h w c"]:
    """Returns standard normal noise for the images at `indices`; that of an image does not depend on the others."""
    key = root_key(SEED, "explore")
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(indices))
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


def _require_images(model: TrainedModel) -> None:
    if isinstance(model.experiment.dataset, DatasetSpec):
        raise UserError(f"{model.name}: an export comes without images; name the workdir of its run instead")


def _require_same_images(first: TrainedModel, other: TrainedModel, split: str) -> None:
    """Raises UserError unless both models are of images of one shape, and their splits have the same pixels."""
    a, b = first.experiment.dataset, other.experiment.dataset
    hint = "a page shows two models on the same images: name one WORKDIR, or two of runs on the same data"
    shapes = [f"{list(each.image_shape)} in {each.num_levels} levels" for each in (a, b)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{other.name}: its images are {shapes[1]}, those of {first.name} {shapes[0]}; {hint}"
        )
    prints = [each.fingerprint(split) for each in (a, b)]
    if prints[0] != prints[1]:
        images = [f"{dataset_name(d)} {split}, pixels {p[:16]}" for d, p in zip((a, b), prints, strict=True)]
        raise UserError(
            f"{other.name}: its images are others ({images[1]}) than those of {first.name} ({images[0]}); {hint}"
        )


def measure_panels(
    trained: TrainedModel, shown: ShownImages, times: Times, after_time: Callable[[], None] = lambda: None
) -> Panels:
    """Returns what the model makes of the images at each of `times`, by the bound that it was trained on.

    Args:
      times: drawn times in [0, 1); at T steps each stands for one of the steps.
      after_time: called after each time, to show progress, or to stop by raising.

    Raises:
      UserError: float32 is too coarse for the bound.
    """
    experiment, params = trained.experiment, trained.params
    bound = trained_bound(experiment)
    check_precision(bound.model, params["schedule"])
    # Labels as evaluation gives them: a model that does not read the class has the condition None.
    condition = jax.tree.map(jnp.asarray, bound.model.conditioning(shown.labels))
    images = Images(jnp.asarray(shown.levels), condition)
    fixed = bound, experiment.num_timesteps, experiment.dataset.num_levels
    measure = jax.jit(partial(measure_images, *fixed))
    measured = []
    for t in times:
        measured.append(jax.device_get(measure(params, images, jnp.asarray(shown.eps), jnp.asarray(t))))
        after_time()
    scalars, arrays = (list(zip(*part, strict=True)) for part in zip(*measured, strict=True))
    return Panels(
        *(np.stack(values)[:, 0] for values in scalars),
        *(np.stack(values, axis=1) for values in arrays),
    )


def measure_images(
    bound: TrainedBound,
    num_timesteps: int,
    num_levels: int,
    params: Params,
    images: Images,
    eps: Data,
    t: Float[Array, ""],
) -> tuple[tuple[PerExample, ...], tuple[Data | PerExample, ...]]:
    """Returns `Panels` of a batch at one drawn time: time .. sigma [B], and x_phi .. bits."""
    model, context = bound.model, Context(images.condition)
    x = scale_pixels(images.levels, num_levels)
    drawn = jnp.full(len(x), t)
    encode, log_snr_at = model.prepare(params, x, context), partial(model.log_snr, params)
    # The same calls as in `Model.losses`, which returns the loss alone.
    step = bound.rule_of(params)(encode, log_snr_at, partial(model.increment, params), drawn)
    error, _ = model.estimate_error(params, step, eps, context)
    x_hat = model.denoise(params, diffuse(step.x_phi, eps, step.log_snr), step.log_snr, context)
    bits = bits_per_dim(step_loss(step, error), x[0].size)
    # The chain that is trained has equal steps.
    time = (step_index(drawn, num_timesteps) + 1) / num_timesteps if num_timesteps else drawn
    scalars = time, step.log_snr, *alpha_sigma(step.log_snr)
    return scalars, (step.x_phi, x_hat, step_error(step.interval, error), bits)
