"""--mode=k_sample: the importance-weighted bound of K samples, in discrete time.

log p(x) >= E log 1/K sum_k w_k, where w = p(x, z_0, ..., z_1) / q(z_0, ..., z_1 | x) of a whole chain drawn from q.
K = 1 is the ELBO; the bound rises with K to log p(x).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from rich.table import Table
from scipy.special import logsumexp

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.core.discretization import Chain
from diffenc.core.gaussian import diffuse, scale, sum_data, sum_squares
from diffenc.core.model import Model
from diffenc.core.objective import Step, diffused_pixels, reconstruction_loss, secant, step_error
from diffenc.core.pixels import Levels, scale_pixels
from diffenc.core.stochasticity import renewed_fraction
from diffenc.data.sources import describe_images
from diffenc.errors import UserError
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh, map_batches, resolve_batch_size
from diffenc.evaluation.commands import publish_record
from diffenc.evaluation.evaluated_bound import bound_metadata, evaluated_bound
from diffenc.evaluation.evaluation_record import (
    errors_table,
    image_metadata,
    mean_and_errors,
    pass_metadata,
    run_metadata,
)
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.measured_path import measured_model, warn_if_fitted_on_another
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.interfaces import NO_CONTEXT, Condition, Context, Data, Images, Key, LogSNR, Params, PerExample
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir.fitted_chains import measured_path
from diffenc.workdir.mirror import on_local_copy

KEYS = ("bpd_k_sample", "bpd_1_sample", "bpd_gain")

WalkState = tuple[Float[Array, "samples b *d"], Float[Array, "samples b"]]


@dataclasses.dataclass(frozen=True)
class ChainWeights:
    """Log weights of K chains of each image in each pass.

    Attributes:
      log_w: nats [passes, K, N], images in source order.
      num_dims: H * W * C.
      fitted_on: origin of fitted times and variances; entries of the record.
    """

    log_w: Float[np.ndarray, "passes samples images"]
    num_dims: int
    fitted_on: dict[str, Any] = dataclasses.field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Returns bits/dim and their errors (`diffenc.evaluation.evaluation_record.mean_and_errors`); images have independent chains.

        `bpd_1_sample` is the -ELBO of the same chains; `bpd_gain`, its difference from `bpd_k_sample`.
        """
        to_bits = -1 / (self.num_dims * np.log(2))
        # Both from the same chains, so that the gain is a paired difference.
        many, one = to_bits * k_sample_bound(self.log_w), to_bits * self.log_w.mean(axis=1)
        bits = dict(zip(KEYS, (many, one, one - many), strict=True))
        return {
            name: value for key in KEYS for name, value in mean_and_errors(key, PassValues(bits[key])).items()
        }


def k_sample_bound(log_w: Float[np.ndarray, "*passes samples images"]) -> Float[np.ndarray, "*passes images"]:
    """Returns log 1/K sum_k w_k, nats."""
    # Weights span hundreds of nats: their exponentials overflow, their logsumexp does not.
    return logsumexp(log_w, axis=-2) - np.log(log_w.shape[-2])


def log_weights(
    model: Model,
    params: Params,
    levels: Levels,
    chain: Chain,
    key: Key,
    num_levels: int,
    samples: int,
    condition: Condition | None = None,
) -> Float[Array, "samples b"]:
    """Returns log w of `samples` chains for each image, nats. The encoder is evaluated once for all chains."""
    # log w of a chain is a sum: prior at t = 1, one term
    # per step from noise to data, reconstruction at t = 0.
    x, num_steps = scale_pixels(levels, num_levels), len(chain.log_w)

    context = Context(condition)
    encode, increment = model.prepare(params, x, context), partial(model.increment, params)

    def log_snr_at(index: int | Array) -> LogSNR:
        return model.log_snr(params, jnp.broadcast_to(chain.times[index], x.shape[:1]))

    def body(carry: WalkState, index: Array) -> tuple[WalkState, None]:
        step = secant(encode, increment, log_snr_at(index + 1), log_snr_at(index))
        eps, log_w = carry
        # By the number of the step: each step and chain has noise of its own.
        keys = jax.random.split(jax.random.fold_in(step_key, index), samples)
        walk = make_walk(model, params, step, log_snr_at(index), chain.log_w[index], context)
        # One chain after the other: memory for one network call, whatever K.
        eps, gain = jax.lax.map(walk, (eps, keys))
        return (eps, log_w + gain), None

    def reconstruct(eps: Data) -> PerExample:
        return -reconstruction_loss(diffused_pixels(x_phi_0, eps, log_snr_0), levels, log_snr_0, num_levels)

    # 1. z_1 of each chain, and the prior's weight.
    start_key, step_key = jax.random.split(key)
    eps = jax.random.normal(start_key, (samples, *x.shape), x.dtype)
    log_snr_1, log_snr_0 = log_snr_at(num_steps), log_snr_at(0)
    # Outside of the scan: one call of the encoder serves all K chains.
    x_phi_1, x_phi_0 = encode(log_snr_1), encode(log_snr_0)
    log_w = jax.lax.map(lambda eps: prior_log_weight(x_phi_1, eps, log_snr_1), eps)
    # 2. The steps, from t = 1 to t = 0: indices fall.
    (eps, log_w), _ = jax.lax.scan(body, (eps, log_w), jnp.arange(num_steps), reverse=True)
    # 3. The decoder's weight at z_0.
    return log_w + jax.lax.map(reconstruct, eps)


def make_walk(
    model: Model,
    params: Params,
    step: Step,
    log_snr_s: LogSNR,
    log_ratio: Float[Array, ""],
    context: Context = NO_CONTEXT,
) -> Callable[[tuple[Data, Key]], tuple[Data, PerExample]]:
    """Returns the function (noise in z_t, key) -> (noise in z_s, log weight of the step), with z_s drawn from q.

    In terms of the noise, q is eps_s = e^(-H/2) eps_t + sqrt(1 - e^(-H)) eps', whatever the encoder: with
    z = alpha x_phi + sigma eps that is q(z_s | z_t, x) [13] (see `diffenc.core.stochasticity`).

    Args:
      log_ratio: log(sigma_Q^2 / sigma_P^2).
    """

    def walk(state: tuple[Data, Key]) -> tuple[Data, PerExample]:
        eps, key = state
        # z_s is drawn from q, not from p: an importance-weighted bound samples its proposal.
        new_eps = jax.random.normal(key, eps.shape, eps.dtype)
        error = step_error(step.interval, model.estimate_error(params, step, eps, context)[0])
        # step.weight || error ||^2 is || mu_P - mu_Q ||^2 / (2 sigma_Q^2), and mu_P - mu_Q = alpha_s c error:
        # so sqrt(2 weight) error is (mu_P - mu_Q) / sigma_Q.
        gain = step_log_weight(new_eps, scale(jnp.sqrt(2 * step.weight), error), log_ratio)
        clock_rise = model.increment(params, step.log_snr, log_snr_s)
        kept, renewed = jnp.exp(-0.5 * clock_rise), renewed_fraction(clock_rise)
        return scale(kept, eps) + scale(jnp.sqrt(renewed), new_eps), gain

    return walk


def prior_log_weight(x_phi: Data, eps: Data, log_snr: LogSNR) -> PerExample:
    """Returns log p(z_1) - log q(z_1 | x) at z_1 = alpha x_phi + sigma eps."""
    z, num_dims = diffuse(x_phi, eps, log_snr), x_phi[0].size
    # -1/2 ||z||^2 + 1/2 ||eps||^2 + d log sigma: the difference of squares is factored, as z is close to eps
    # at t = 1, and log sigma^2 = -softplus(lambda).
    return 0.5 * (sum_data((eps - z) * (eps + z)) - num_dims * jax.nn.softplus(log_snr))


def step_log_weight(eps: Data, shift: Data, log_w: Float[Array, ""]) -> PerExample:
    """Returns log p(z_s | z_t) - log q(z_s | z_t, x) at z_s = mu_Q + sigma_Q eps.

    It is 1/2 ||eps||^2 - w/2 ||eps - shift||^2 + d/2 log w, written so that nothing large cancels as w -> 1.

    Args:
      shift: (mu_P - mu_Q) / sigma_Q.
      log_w: log(sigma_Q^2 / sigma_P^2).
    """
    num_dims, w = eps[0].size, jnp.exp(log_w)
    # 1/2 (1 - w) ||eps||^2 + d/2 log w.
    width = -0.5 * (jnp.expm1(log_w) * sum_squares(eps) - num_dims * log_w)
    return width + w * (sum_data(eps * shift) - 0.5 * sum_squares(shift))


@on_local_copy
def k_sample(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measures the K-sample bound of the chain that `evaluate` names; prints a table and writes it to the workdir.

    Raises:
      UserError: no T is given, there is no run, or something that must be fitted first is missing.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluation
    if settings.num_timesteps == 0:
        raise UserError("--mode=k_sample needs T: give --num_timesteps=T")
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    weights = measure_log_weights(experiment, mesh, ema, workdir, step)
    record = k_sample_record(experiment, weights, step)
    publish_record(workdir, "k_sample", record, {"log_w": weights.log_w}, k_sample_table(record))
    return record


def measure_log_weights(
    experiment: Experiment,
    mesh: Mesh,
    params: Params,
    workdir: Path | None = None,
    step: int | None = None,
) -> ChainWeights:
    """Returns the log weights of K chains for each image in each pass of `experiment.evaluate`.

    Args:
      workdir: folder of fitted times and variances, for the checkpoint of `step`.

    Raises:
      UserError: T is too large for the precision, the batch does not divide over the devices, or something that
        must be fitted first is missing.
    """
    dataset, samples = experiment.dataset, experiment.k_sample.samples
    model, path_of = measured_model(experiment, workdir, step)
    settings = resolve_batch_size(experiment.evaluation, experiment.batch_size)
    precision = network_precision(experiment)
    bound = evaluated_bound(settings, model.schedule, precision, workdir, step)
    warn_if_fitted_on_another(bound.fitted_on, path_of)
    batches = EvaluationBatches(dataset, model.conditioning, settings, mesh, "k_sample")
    results = map_batches(
        compile_on_mesh(mesh, batch_log_weights, model, dataset.num_levels, samples),
        (params, bound.chain_of(params)),
        batches,
        # Noise by the key of the batch: unlike draws of `make_draws`, chains depend on the batch size.
        lambda batch: (batch.images, batch.key),
        Progress("k_sample", len(batches)),
    )
    # Fetched per batch; logsumexp and means are taken in float64 on the host.
    log_w = [batch.without_padding(log_w).astype(np.float64) for log_w, batch in results]
    return ChainWeights(
        batches.stack_passes(log_w), int(np.prod(dataset.image_shape)), bound.fitted_on | path_of
    )


def batch_log_weights(
    model: Model, num_levels: int, samples: int, bound_params: tuple[Params, Chain], images: Images, key: Key
) -> Float[Array, "samples b"]:
    """Returns `log_weights` of a batch."""
    (params, chain), (levels, condition) = bound_params, images
    return log_weights(model, params, levels, chain, key, num_levels, samples, condition)


def k_sample_record(experiment: Experiment, weights: ChainWeights, step: int) -> dict[str, Any]:
    """Returns the content of k_sample.json: the metrics, and everything needed to compare them with others."""
    _, samples, num_images = weights.log_w.shape
    settings = resolve_batch_size(experiment.evaluation, experiment.batch_size)
    return {
        **weights.metrics(),
        **image_metadata(experiment.dataset, experiment.model, settings.split, num_images),
        **bound_metadata(settings),
        "K": samples,
        **pass_metadata(settings),
        **run_metadata(experiment),
        **measured_path(experiment),
        "step": step,
        **weights.fitted_on,
    }


def k_sample_table(record: Mapping[str, Any]) -> Table:
    """Returns the bounds of 1 and of K samples and their difference, with both errors."""
    chain = f"T {record['T']}, {record['times']} times, {record['variance']} variance, K {record['K']}"
    images = f"{record['num_images']} images, {record['passes']} pass(es)"
    title = f"{describe_images(record)}, {images}, {chain}, step {record['step']}"
    return errors_table(record, KEYS, title, f"pixels {record['fingerprint'][:16]}")
