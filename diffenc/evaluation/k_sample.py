"""The K-sample importance-weighted bound in discrete time, by --mode=k_sample.

log p(x) >= E log 1/K sum_k w_k, where w = p(x, z_0, ..., z_1) / q(z_0, ..., z_1 | x) of a whole chain drawn from q.
K = 1 is the ELBO; the bound rises with K to log p(x).
"""

import dataclasses
from collections.abc import Callable
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
from diffenc.core.discretization import Chain
from diffenc.core.gaussian import diffuse, scale, step_fraction, sum_data, sum_squares
from diffenc.core.model import Model
from diffenc.core.objective import Step, diffused_pixels, reconstruction_loss, residual, secant
from diffenc.core.pixels import Levels, scale_pixels
from diffenc.data.sources import describe_images
from diffenc.errors import UserError
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh
from diffenc.evaluation.commands import publish_record, restore_for_bound
from diffenc.evaluation.evaluated_bound import bound_metadata, evaluated_bound
from diffenc.evaluation.evaluator import circumstances, errors_table, image_metadata, mean_and_errors
from diffenc.evaluation.image_error import PassValues
from diffenc.interfaces import Condition, Data, Images, Key, LogSNR, Params, PerExample
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir.mirror import on_local_copy

KEYS = ("bpd_k_sample", "bpd_1_sample", "bpd_gain")

Walking = tuple[Float[Array, "samples b *d"], Float[Array, "samples b"]]


@dataclasses.dataclass(frozen=True)
class ChainWeights:
    """What chains weigh.

    Attributes:
      log_w: nats [passes, K, N], images in source order.
      num_dims: H * W * C.
      of: what the chain's times and variances were fitted on, where they were.
    """

    log_w: Float[np.ndarray, "passes samples images"]
    num_dims: int
    of: dict[str, Any] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Bits/dim and their errors (`diffenc.evaluation.evaluator.mean_and_errors`); every image has chains of its own.

        `bpd_1_sample` is the -ELBO of the same chains; `bpd_gain`, what it is above `bpd_k_sample`.
        """
        to_bits = -1 / (self.num_dims * np.log(2))
        many, one = to_bits * k_sample_bound(self.log_w), to_bits * self.log_w.mean(axis=1)
        bits = dict(zip(KEYS, (many, one, one - many), strict=True))
        return {
            name: value for key in KEYS for name, value in mean_and_errors(key, PassValues(bits[key])).items()
        }


def k_sample_bound(log_w: Float[np.ndarray, "*passes samples images"]) -> Float[np.ndarray, "*passes images"]:
    """log 1/K sum_k w_k, nats."""
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
    """log w of `samples` chains for each image, nats. The encoder is evaluated once for all chains."""
    x, num_steps = scale_pixels(levels, num_levels), len(chain.log_w)

    def encode(log_snr: LogSNR) -> Data:
        return model.encode(params, x, log_snr, condition=condition)

    def log_snr_at(index: int | Array) -> LogSNR:
        t = jnp.broadcast_to(chain.times[index], x.shape[:1])
        return model.schedule.apply(params["schedule"], t)

    def body(carry: Walking, index: Array) -> tuple[Walking, None]:
        step = secant(encode, log_snr_at(index + 1), log_snr_at(index))
        eps, log_w = carry
        keys = jax.random.split(jax.random.fold_in(step_key, index), samples)
        walk = make_walk(model, params, step, log_snr_at(index), chain.log_w[index], condition)
        eps, gain = jax.lax.map(walk, (eps, keys))
        return (eps, log_w + gain), None

    def reconstruct(eps: Data) -> PerExample:
        return -reconstruction_loss(diffused_pixels(x_phi_0, eps, log_snr_0), levels, log_snr_0, num_levels)

    start_key, step_key = jax.random.split(key)
    eps = jax.random.normal(start_key, (samples, *x.shape), x.dtype)
    log_snr_1, log_snr_0 = log_snr_at(num_steps), log_snr_at(0)
    x_phi_1, x_phi_0 = encode(log_snr_1), encode(log_snr_0)
    log_w = jax.lax.map(lambda eps: prior_log_weight(x_phi_1, eps, log_snr_1), eps)
    (eps, log_w), _ = jax.lax.scan(body, (eps, log_w), jnp.arange(num_steps), reverse=True)
    return log_w + jax.lax.map(reconstruct, eps)


def make_walk(
    model: Model,
    params: Params,
    step: Step,
    log_snr_s: LogSNR,
    log_ratio: Float[Array, ""],
    condition: Condition | None = None,
) -> Callable[[tuple[Data, Key]], tuple[Data, PerExample]]:
    """Makes (the noise in z_t, a key) -> (the noise in z_s, the step's log weight), z_s drawn from q.

    In the noise q walks eps_s = sqrt(1 - c) eps_t + sqrt(c) eps', whatever the encoder: with
    z = alpha x_phi + sigma eps that is q(z_s | z_t, x) [13].

    Args:
      log_ratio: log(sigma_Q^2 / sigma_P^2).
    """

    def network(z: Data, log_snr: LogSNR) -> Data:
        return model.predict(params, z, log_snr, condition=condition)

    def walk(state: tuple[Data, Key]) -> tuple[Data, PerExample]:
        eps, key = state
        fresh = jax.random.normal(key, eps.shape, eps.dtype)
        error = residual(step, eps, network, model.parameterization, model.generative_mean)
        gain = step_log_weight(fresh, scale(jnp.sqrt(2 * step.weight), error), log_ratio)
        kept, renewed = jnp.exp(0.5 * (step.log_snr - log_snr_s)), step_fraction(step.log_snr, log_snr_s)
        return scale(kept, eps) + scale(jnp.sqrt(renewed), fresh), gain

    return walk


def prior_log_weight(x_phi: Data, eps: Data, log_snr: LogSNR) -> PerExample:
    """log p(z_1) - log q(z_1 | x) at z_1 = alpha x_phi + sigma eps."""
    z, num_dims = diffuse(x_phi, eps, log_snr), x_phi[0].size
    return 0.5 * (sum_data((eps - z) * (eps + z)) - num_dims * jax.nn.softplus(log_snr))


def step_log_weight(eps: Data, shift: Data, log_w: Float[Array, ""]) -> PerExample:
    """log p(z_s | z_t) - log q(z_s | z_t, x) at z_s = mu_Q + sigma_Q eps.

    It is 1/2 ||eps||^2 - w/2 ||eps - shift||^2 + d/2 log w, written so that nothing large cancels as w -> 1.

    Args:
      shift: (mu_P - mu_Q) / sigma_Q.
      log_w: log(sigma_Q^2 / sigma_P^2).
    """
    num_dims, w = eps[0].size, jnp.exp(log_w)
    width = -0.5 * (jnp.expm1(log_w) * sum_squares(eps) - num_dims * log_w)
    return width + w * (sum_data(eps * shift) - 0.5 * sum_squares(shift))


@on_local_copy
def k_sample(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measure the K-sample bound of the chain that `evaluate` names, print a table, file it in the workdir.

    Raises:
      UserError: no T is given, there is no run, or what must be fitted is not.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluate
    if settings.num_timesteps == 0:
        raise UserError("--mode=k_sample needs T: give --num_timesteps=T")
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    measured = measure_log_weights(experiment, mesh, ema, workdir, step)
    figures = k_sample_record(experiment, measured, step) | measured.of
    publish_record(workdir, "k_sample", figures, {"log_w": measured.log_w}, k_sample_table(figures))
    return figures


def measure_log_weights(
    experiment: Experiment,
    mesh: Mesh,
    params: Params,
    workdir: Path | None = None,
    step: int | None = None,
) -> ChainWeights:
    """Weights of K chains for each image in each pass of `experiment.evaluate`.

    Args:
      workdir: where fitted times and variances are read from, for the checkpoint of `step`.

    Raises:
      UserError: T is too deep for float32, the batch does not divide over the devices, or what must be
        fitted is not.
    """
    settings, model, num_levels = experiment.evaluate, experiment.model, experiment.dataset.num_levels
    found = evaluated_bound(experiment, workdir, step)
    chain = found.chain_of(params)

    def weights(given: tuple[Params, Chain], images: Images, key: Key) -> Float[Array, "samples b"]:
        (params, chain), (levels, condition) = given, images
        samples = experiment.k_sample.samples
        return log_weights(model, params, levels, chain, key, num_levels, samples, condition)

    passes, compiled = (
        EvaluationBatches(experiment, settings, mesh, "k_sample"),
        compile_on_mesh(mesh, weights),
    )
    progress, rows = Progress("k_sample", len(passes)), []
    for visit in passes:
        log_w = jax.device_get(compiled((params, chain), visit.images, visit.key))
        rows.append(log_w[:, visit.real].astype(np.float64))
        progress()
    log_w = np.stack([np.concatenate(one, axis=1) for one in passes.by_pass(rows)])
    return ChainWeights(log_w, int(np.prod(experiment.dataset.image_shape)), found.of)


def k_sample_record(experiment: Experiment, measured: ChainWeights, step: int) -> dict[str, Any]:
    """What k_sample.json says: the figures, and all that one must know to compare them."""
    settings, (_, samples, num_images) = experiment.evaluate, measured.log_w.shape
    return {
        **measured.summary(),
        **image_metadata(experiment, settings, num_images),
        **bound_metadata(settings),
        "K": samples,
        **circumstances(experiment, settings),
        "step": step,
    }


def k_sample_table(figures: dict[str, Any]) -> Table:
    """The bounds of 1 and of K samples and their difference, with both errors."""
    chain = f"T {figures['T']}, {figures['times']} times, {figures['variance']} variance, K {figures['K']}"
    images = f"{figures['num_images']} images, {figures['passes']} pass(es)"
    title = f"{describe_images(figures)}, {images}, {chain}, step {figures['step']}"
    return errors_table(figures, KEYS, title, f"pixels {figures['fingerprint'][:16]}")
