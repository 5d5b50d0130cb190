"""What a reverse step costs, from any time to any other, measured once for all schedules of inference.

With sigma_P = sigma_Q the step from t to s costs C(t -> s) = 1/2 (SNR_s - SNR_t) Q(t, s) nats, where

    Q(t, s) = E || (1 + stretch kappa) x_hat - x_phi(t) - (x_phi(s) - x_phi(t)) / c ||^2

(see diffenc.core.objective) is smooth, also across t = s, where the secant becomes the tangent. So Q is measured on a
few knots and log Q interpolated. All knots of an image share its noise: what noise there is, is smooth too.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from scipy.interpolate import RectBivariateSpline

from diffenc.config.experiment import Experiment
from diffenc.config.settings import Fit
from diffenc.core.gaussian import scale, step_fraction, sum_squares
from diffenc.core.model import Model
from diffenc.core.objective import Step, network_error, step_error
from diffenc.core.pixels import Levels, scale_pixels
from diffenc.core.rng import root_key
from diffenc.data.batches import eval_batches
from diffenc.data.sources import subsample
from diffenc.evaluation.batches import compile_on_mesh
from diffenc.evaluation.streaming_stats import StreamingMean
from diffenc.interfaces import Condition, Data, Images, Key, LogSNR, Params, PerExample, Source, Variance
from diffenc.parallel.sharding import check_divisible, images_to_devices, rows_here
from diffenc.runtime.progress import Progress

PerEdge = Float[np.ndarray, " edges"]
Square = Float[np.ndarray, "knots knots"]

SMALLEST = 1e-30  # of Q, whose logarithm is taken: a perfect model's is 0


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """Q measured.

    Attributes:
      knots: times, rising from 0 to 1.
      mean: Q(t, s), [t, s], over images.
      standard_error: of each mean, over images.
      num_images: of how many.
    """

    knots: Float[np.ndarray, " knots"]
    mean: Square
    standard_error: Square
    num_images: int

    @functools.cached_property
    def _log_q(self) -> RectBivariateSpline:
        return RectBivariateSpline(self.knots, self.knots, np.log(np.maximum(self.mean, SMALLEST)))

    def edges(self, t: PerEdge, s: PerEdge, log_snr_t: PerEdge, log_snr_s: PerEdge) -> PerEdge:
        """C(t -> s) in nats of each step."""
        return half_snr_rise(log_snr_t, log_snr_s) * np.exp(self._log_q.ev(t, s))

    def all_edges(
        self, times: Float[np.ndarray, " stops"], log_snr: Float[np.ndarray, " stops"]
    ) -> Float[np.ndarray, "stops stops"]:
        """C(t -> s) in nats, [t, s]; of no meaning where s >= t."""
        with np.errstate(over="ignore"):  # there alone
            rise = half_snr_rise(log_snr[:, None], log_snr[None, :])
        return rise * np.exp(self._log_q(times, times))


def half_snr_rise(
    log_snr_t: Float[np.ndarray, "*#edges"], log_snr_s: Float[np.ndarray, "*#edges"]
) -> Float[np.ndarray, "..."]:
    """1/2 (SNR_s - SNR_t), without cancellation as s -> t."""
    return -0.5 * np.expm1(log_snr_t - log_snr_s) * np.exp(log_snr_s)


def apply_variance(
    nats: PerEdge, log_snr_t: PerEdge, log_snr_s: PerEdge, variance: Variance, num_dims: int
) -> tuple[PerEdge, PerEdge]:
    """What steps cost with the sigma_P that `variance` gives them, in nats, and their excess.

    Args:
      nats: what each costs with sigma_P = sigma_Q.
    """
    excess = 2 * nats / num_dims
    with jax.enable_x64(True):
        log_w = variance(jnp.asarray(log_snr_t), jnp.asarray(log_snr_s), jnp.asarray(excess))
        log_w = np.asarray(log_w, np.float64)
    return 0.5 * num_dims * (np.expm1(log_w) - log_w) + np.exp(log_w) * nats, excess


def squared_errors(
    model: Model,
    params: Params,
    levels: Levels,
    eps: Data,
    knots: Float[Array, " knots"],
    num_levels: int,
    condition: Condition | None = None,
) -> Float[Array, "knots knots b"]:
    """|| (1 + stretch kappa) x_hat - x_phi(t) - secant ||^2, [t, s, B]; one network evaluation a knot."""
    x = scale_pixels(levels, num_levels)
    log_snrs = model.schedule.apply(params["schedule"], knots)

    def encode(log_snr: LogSNR) -> Data:
        return model.encode(params, x, log_snr, condition=condition)

    def network(z: Data, log_snr: LogSNR) -> Data:
        return model.predict(params, z, log_snr, condition=condition)

    def at(log_snr: Float[Array, ""]) -> tuple[Data, Data, Data]:
        each = jnp.broadcast_to(log_snr, x.shape[:1])
        x_phi, slope = jax.jvp(encode, (each,), (jnp.ones_like(each),))
        return x_phi, slope, network_error(each, x_phi, eps, network, model.parameterization)

    x_phi, slope, error = jax.lax.map(at, log_snrs)

    def pair(i: Array, j: Array) -> PerExample:
        log_snr_t, log_snr_s = (jnp.broadcast_to(log_snrs[k], x.shape[:1]) for k in (i, j))
        same = jnp.broadcast_to(i == j, x.shape[:1])
        fraction = jnp.where(same, 1.0, step_fraction(log_snr_t, log_snr_s))
        stretch = jnp.where(same, 1.0, (log_snr_s - log_snr_t) / fraction)
        secant = jnp.where(i == j, slope[i], scale(1 / fraction, x_phi[j] - x_phi[i]))
        unused = jnp.zeros_like(stretch)
        step = Step(log_snr_t, unused, unused, stretch, x_phi[i], secant)
        return sum_squares(step_error(step, error[i], model.generative_mean))

    index = jnp.arange(len(knots))
    return jax.lax.map(lambda i: jax.lax.map(lambda j: pair(i, j), index), index)


def images_of(experiment: Experiment) -> Source:
    """The images that `experiment.fit` names."""
    settings = experiment.fit
    return subsample(experiment.dataset.source(settings.split), settings.num_images, settings.seed)


def measure_step_costs(experiment: Experiment, mesh: Mesh, params: Params) -> StepCosts:
    """Q over the images and passes of `experiment.fit`, summed in float64.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    settings, source = experiment.fit, images_of(experiment)
    batch_size = settings.batch_size or experiment.batch_size
    check_divisible("fit.batch_size", batch_size, mesh)
    knots, size = np.linspace(0.0, 1.0, settings.knots), settings.knots**2
    compiled = _compiled(experiment, mesh, knots)
    result, index = StreamingMean(size), np.arange(size)
    progress: Callable[[], None] = Progress("costs", settings.passes * -(-len(source) // batch_size))
    for number, (batch, weight) in enumerate(eval_batches(source, batch_size, rows_here(mesh, batch_size))):
        images = images_to_devices(batch, experiment.model.conditioning, mesh)
        total = np.zeros((size, batch_size))
        for visit in range(settings.passes):
            squares = compiled(params, images, _key(settings, visit, number))
            total += np.asarray(jax.device_get(squares), np.float64).reshape(size, batch_size)
            progress()
        each = total[:, weight > 0] / settings.passes
        result.add(np.repeat(index, each.shape[1]), each.ravel())
    shape = (settings.knots, settings.knots)
    return StepCosts(knots, result.mean.reshape(shape), result.standard_error.reshape(shape), len(source))


def _key(settings: Fit, visit: int, number: int) -> Key:
    return jax.random.fold_in(jax.random.fold_in(root_key(settings.seed, "costs"), visit), number)


def _compiled(
    experiment: Experiment, mesh: Mesh, knots: Float[np.ndarray, " knots"]
) -> Callable[[Params, Images, Key], Float[Array, "knots knots b"]]:
    def squares(params: Params, images: Images, key: Key) -> Float[Array, "knots knots b"]:
        levels, condition = images
        eps = jax.random.normal(key, levels.shape)
        num_levels = experiment.dataset.num_levels
        return squared_errors(
            experiment.model, params, levels, eps, jnp.asarray(knots), num_levels, condition
        )

    return compile_on_mesh(mesh, squares)
