"""The ODE's likelihood averaged along q, and its difference to the ELBO: integrals over q(z_t | x), without solving a path.

With the estimates' errors e_x of x_phi and e_s of its slope, and lambda' = d lambda / dt < 0, the ODE's velocity along q(z_t | x)
averages, by parts in z, to

    -log p_0(z_0) = latent + entropy of the noise at t = 0 + E_t[-lambda' div alpha (1/2 value + slope)]
                  = latent + entropy of the noise at t = 0 + E_t[-lambda' (alpha / sigma) <1/2 e_x + e_s, eps>].

The ELBO has the diffusion loss in place of the last term. With alpha eps = alpha (z - alpha value) / sigma + (alpha^2 / sigma) e_x
their difference is, for the path of any noise eta,

    diffusion + looseness + miscalibration,
    looseness      = -1/2 E_t[-lambda' (e^lambda / eta^2) || 1/2 (1 - eta^2) e_x + e_s ||^2],
    miscalibration = E_t[-lambda' (alpha / sigma^2) <1/2 e_x + e_s, z - alpha value>].

Looseness is never positive, and 0 for an encoder with slope sigma^2 x_phi on its own path, or with slope 0 on the Markov path.
Miscalibration is 0 for exact posterior means, since their errors have mean 0 at each z.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffenc.config.experiment import Experiment
from diffenc.config.settings import Likelihood
from diffenc.core.gaussian import diffuse, scale, sum_data, sum_squares
from diffenc.core.model import Draws, Model
from diffenc.core.objective import continuous
from diffenc.core.pixels import scale_pixels
from diffenc.evaluation import ode
from diffenc.evaluation.batches import (
    EvaluationBatches,
    PassDraws,
    compile_on_mesh,
    make_draws,
    map_batches,
    resolve_batch_size,
)
from diffenc.evaluation.image_error import ByPass, DrawnTimes
from diffenc.interfaces import Context, ImageKeys, Images, Params, PerExample
from diffenc.runtime.progress import Progress

PROBE_STREAM = 2**32 - 5  # folded into the key of a pass, as the indices of images are: no image has it


class AlongQ(NamedTuple):
    """Integrals along q, in nats: [B] of one draw, or [passes, images].

    Attributes:
      reconstruction, latent, diffusion: the terms of the continuous-time -ELBO.
      divergence: of the ODE's velocity but for its decay -1/2 alpha^2 z; with `latent` and the entropy that dequantisation loses,
        -log p_0 averaged along q.
      looseness: minus the excess of `diffusion` over E_t[-lambda' e^lambda <1/2 e_x + e_s, e_x>]; never positive.
      miscalibration: the errors' inner product with z - alpha value; its mean is 0 for exact posterior means.
    """

    reconstruction: PerExample
    latent: PerExample
    diffusion: PerExample
    divergence: PerExample
    looseness: PerExample
    miscalibration: PerExample


class AveragedAlongQ(NamedTuple):
    """The integrals of a set of images.

    Attributes:
      nats: by the fields of `AlongQ`, in source order.
      times: the uniform variates of the diffusion times.
    """

    nats: dict[str, ByPass]
    times: DrawnTimes


def measure_along_q(experiment: Experiment, model: Model, mesh: Mesh, params: Params) -> AveragedAlongQ:
    """Returns the integrals of every image in each pass, each by `likelihood.times_per_image` stratified times.

    Args:
      model: the experiment's model, on the path of the ELBO that is compared.
    """
    settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
    times_per_image = experiment.likelihood.times_per_image
    batches = EvaluationBatches(
        *(experiment.dataset, model.conditioning, settings, mesh, "along q"), times_per_image=times_per_image
    )
    results = map_batches(
        compile_on_mesh(mesh, batch_along_q, model, experiment.dataset.num_levels, experiment.likelihood),
        params,
        batches,
        lambda batch: (batch.images, batch.draws),
        Progress("average along q", len(batches)),
    )
    # Fetched in the device's precision; means over images and passes are taken in float64.
    rows = [batch.without_padding(result._asdict()) for result, batch in results]
    nats = {
        name: batches.stack_passes([row[name].astype(np.float64) for row in rows]) for name in AlongQ._fields
    }
    return AveragedAlongQ(nats, np.stack([batches.times(number) for number in range(batches.passes)]))


def batch_along_q(
    model: Model, num_levels: int, settings: Likelihood, params: Params, images: Images, draws: PassDraws
) -> AlongQ:
    """Returns the integrals of a batch [B], each the mean over the times of an image; no dropout."""
    # Probes have a stream of their own within the pass: the noise
    # of `make_draws` is folded from the same key by image.
    of_image = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(draws.key, PROBE_STREAM)))(draws.image)

    def estimate(index: Int[Array, ""]) -> AlongQ:
        drawn = make_draws(draws, images.levels.shape, index=index)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(of_image)
        divergence = draw_divergence(settings, keys, images.levels.shape[1:])
        return integrals(model, num_levels, divergence, params, images, drawn)

    # one time after the other: memory for one draw, whatever the number
    each = jax.lax.map(estimate, jnp.arange(draws.times.shape[1]))
    return jax.tree.map(lambda nats: nats.mean(axis=0), each)


def integrals(
    model: Model,
    num_levels: int,
    divergence: ode.Divergence,
    params: Params,
    images: Images,
    draws: Draws,
) -> AlongQ:
    """Returns one draw of each integral in nats [B]."""
    levels, condition = images
    context = Context(condition)
    terms = model.elbo(params, levels, draws, num_levels=num_levels, condition=condition)
    encode = model.prepare(params, scale_pixels(levels, num_levels), context)
    increment = partial(model.increment, params)
    step = continuous(encode, partial(model.log_snr, params), increment, draws.t)
    # Errors come from the network's own error, exact in float32, not from the difference of two estimates.
    error, _ = model.estimate_error(params, step, draws.eps, context)
    # In the limit of short steps value_weight = (1 + eta^2) / 2, and step.weight = -1/2 lambda'
    # e^lambda / eta^2; draws.weight makes the mean over the drawn times an integral over t.
    eta_2, root_snr = 2 * step.interval.value_weight - 1, jnp.exp(0.5 * step.log_snr)
    fall = draws.weight * 2 * step.weight * eta_2 * jnp.exp(-step.log_snr)  # -lambda'
    # The decay -1/2 alpha^2 z is left out: its divergence is
    # known, and integrates to the entropies and the latent term.
    pull = ode.ode_pull(partial(model.estimate, params, context=context), increment)
    z = diffuse(step.x_phi, draws.eps, step.log_snr)
    _, of_pull = divergence(lambda z: pull(z, step.log_snr), z)
    loose = scale(0.5 * (1 - eta_2), error.value) + error.slope
    noise_left = draws.eps - scale(root_snr, error.value)  # (z - alpha value) / sigma
    product = sum_data((0.5 * error.value + error.slope) * noise_left)
    return AlongQ(
        *terms,
        divergence=fall * of_pull,
        looseness=-draws.weight * step.weight * sum_squares(loose),
        miscalibration=fall * root_snr * product,
    )


def draw_divergence(settings: Likelihood, keys: ImageKeys, image_shape: tuple[int, ...]) -> ode.Divergence:
    """Returns the exact divergence for few dimensions, else Hutchinson's estimate by random signs, a key for each image."""
    if is_exact(settings, image_shape):
        return ode.exact_divergence
    draw = partial(jax.random.rademacher, shape=(settings.probes, *image_shape), dtype=jnp.zeros(()).dtype)
    return ode.hutchinson_divergence(jax.vmap(draw, out_axes=1)(keys))


def is_exact(settings: Likelihood, image_shape: tuple[int, ...]) -> bool:
    """Returns whether the divergence is computed exactly for images of this shape."""
    return int(np.prod(image_shape)) <= settings.exact_up_to
