"""Bounds on -log P(x) of images by the probability-flow ODE: a solve per image, and the noise in z along its path."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from diffenc.config.experiment import Experiment
from diffenc.config.settings import Likelihood
from diffenc.core.dequantization import DEQUANTISATIONS
from diffenc.core.gaussian import alpha_sigma, diffuse, scale, sum_squares
from diffenc.core.interval import EncodeAt, tangent
from diffenc.core.model import Model
from diffenc.core.pixels import scale_pixels
from diffenc.core.reverse import Estimator
from diffenc.core.stochasticity import Increment
from diffenc.evaluation import ode
from diffenc.evaluation.along_q import is_exact
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh, map_batches, resolve_batch_size
from diffenc.evaluation.image_error import ByPass
from diffenc.interfaces import Context, Data, Images, Key, Params, PerExample
from diffenc.runtime.progress import Progress

STOPS = 33  # of log_snr, equally spaced, at which the noise along a trajectory is told
NOISE_STREAM = 2  # folded into a key that is split in two


class Noise(NamedTuple):
    """Mean squares over dimensions of the noise in z, relative to sigma^2: [stops, B], or [passes, stops, images].

    Attributes:
      of_path: z - alpha value along the solved path.
      of_q: the same at z of q(z_t | x).
      from_encoded: z - alpha x_phi along the solved path; 1 on average at z of q(z_t | x).
    """

    of_path: Float[Array | np.ndarray, "*stops b"]
    of_q: Float[Array | np.ndarray, "*stops b"]
    from_encoded: Float[Array | np.ndarray, "*stops b"]


class OdeLikelihoods(NamedTuple):
    """Bounds on -log P(x) of a set of images by the ODE.

    Attributes:
      nats: log q(z_0 | x) - log p_0(z_0) of each image in source order; its mean bounds -log P(x).
      evaluations: number of network evaluations, for each batch of each pass.
      noise: along the trajectories, [passes, STOPS, images].
    """

    nats: ByPass
    evaluations: Int[np.ndarray, "passes batches"]
    noise: Noise


def solve_images(
    experiment: Experiment, model: Model, mesh: Mesh, params: Params, tighter: float = 1.0
) -> OdeLikelihoods:
    """Returns the ODE's bounds of every image in each pass, with new dequantisation noise and probes in each.

    Args:
      model: the model of the ODE.
      tighter: a factor on the tolerances of `likelihood`.

    Raises:
      UserError: the solver did not reach the end, or the batch does not divide over the devices.
    """
    dataset = experiment.dataset
    settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
    batches = EvaluationBatches(dataset, model.conditioning, settings, mesh, "likelihood")
    results = map_batches(
        compile_on_mesh(mesh, batch_nats, model, dataset.num_levels, experiment.likelihood),
        params,
        batches,
        # The factor is an argument, not a constant: both tolerances use one compiled program.
        lambda batch: (batch.images, (batch.key, np.asarray(tighter, jnp.zeros(()).dtype))),
        Progress("likelihood", len(batches)),
    )
    nats, noise, evaluations = [], [], []
    for (bound, squares, stats), batch in results:
        # On the host: compiled code cannot raise.
        ode.require_reached(stats)
        nats.append(batch.without_padding(bound).astype(np.float64))
        noise.append(batch.without_padding(squares))
        evaluations.append(stats.evaluations)
    return OdeLikelihoods(
        batches.stack_passes(nats),
        np.reshape(evaluations, (batches.passes, -1)),
        Noise(*(batches.stack_passes(list(one)) for one in zip(*noise, strict=True))),
    )


def batch_nats(
    model: Model,
    num_levels: int,
    settings: Likelihood,
    params: Params,
    images: Images,
    key_and_tighter: tuple[Key, Float[Array, ""]],
) -> tuple[PerExample, Noise, ode.Stats]:
    """Returns log q(z_0 | x) - log p_0(z_0) in nats [B], from one z_0 of each image, and the noise on its path; no dropout."""
    key, tighter = key_and_tighter
    dequantise_key, probe_key = jax.random.split(key)
    context, increment = Context(images.condition), partial(model.increment, params)
    x = scale_pixels(images.levels, num_levels)
    high, low = model.log_snr(params, jnp.array([0.0, 1.0]))
    stops = jnp.linspace(high, low, STOPS)
    dequantise = DEQUANTISATIONS[settings.dequantisation]
    z_0, log_q = dequantise(dequantise_key, x, jnp.broadcast_to(stops[0], x.shape[:1]), num_levels)
    estimate = partial(model.estimate, params, context=context)
    log_p, path, stats = ode.log_density_and_path(
        z_0,
        stops,
        ode.ode_velocity(estimate, increment),
        make_divergence(settings, probe_key, x.shape),
        tighter * settings.rtol,
        tighter * settings.atol,
    )
    # The noise of q at the stops, independent of dequantisation and probes.
    eps = jax.random.normal(jax.random.fold_in(key, NOISE_STREAM), x.shape)
    return (
        log_q - log_p,
        path_noise(estimate, increment, model.prepare(params, x, context), stops, path, eps),
        stats,
    )


def make_divergence(settings: Likelihood, key: Key, shape: tuple[int, ...]) -> ode.Divergence:
    """Returns the exact divergence for few dimensions, else Hutchinson's estimate by random signs; for a batch of `shape`."""
    if is_exact(settings, shape[1:]):
        return ode.exact_divergence
    # Drawn once for the whole path: new probes in each evaluation would look like errors to the solver.
    probes = jax.random.rademacher(key, (settings.probes, *shape), jnp.zeros(()).dtype)
    return ode.hutchinson_divergence(probes)


def path_noise(
    estimate: Estimator,
    increment: Increment,
    encode: EncodeAt,
    stops: Float[Array, " stops"],
    path: Float[Array, "stops b *d"],
    eps: Data,
) -> Noise:
    """Returns the size of the noise in z at each of `stops`, on a solved `path` and at z = alpha x_phi + sigma eps.

    The residual z - alpha value is a function of z: with exact posterior means its mean square over data is the same on both.
    That of z - alpha x_phi is not, since z on a path depends more on its x than a draw of q(z_t | x) does.
    """

    def at(stop: tuple[Float[Array, ""], Data]) -> Noise:
        log_snr, z = jnp.broadcast_to(stop[0], eps.shape[:1]), stop[1]
        alpha, sigma = alpha_sigma(log_snr)
        x_phi = encode(log_snr)

        def noise(z: Data, value: Data) -> PerExample:
            return sum_squares(scale(1 / sigma, z - scale(alpha, value))) / z[0].size

        def left(z: Data) -> PerExample:
            return noise(z, estimate(z, tangent(increment, log_snr)).value)

        return Noise(left(z), left(diffuse(x_phi, eps, log_snr)), noise(z, x_phi))

    # One stop after the other: memory for two network calls, whatever the number of stops.
    return jax.lax.map(at, (stops, path))
