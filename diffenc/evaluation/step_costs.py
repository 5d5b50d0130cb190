"""The cost of a reverse step from any time to any other, measured once for all inference schedules.

With sigma_P = sigma_Q the step from t to s costs C(t -> s) = 1/2 (SNR_s - SNR_t) Q(t, s) nats, where

    Q(t, s) = c / c_eta E || value_weight (value - x_phi(t)) + slope - (x_phi(s) - x_phi(t)) / c ||^2

(see diffenc.core.objective) is smooth, also across t = s, where the secant becomes the tangent. So Q is measured on a
few knots and log Q interpolated. All knots of an image share its noise, so the estimate of Q is smooth as well.
"""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from scipy.interpolate import RectBivariateSpline

from diffenc.config.settings import Fit
from diffenc.core.discretization import equal_times
from diffenc.core.gaussian import diffuse, scale, sum_squares
from diffenc.core.interval import Chord, EncodeAt, Tangent, chord, tangent
from diffenc.core.model import Model
from diffenc.core.objective import step_error
from diffenc.core.pixels import Levels, scale_pixels
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh, map_batches
from diffenc.evaluation.streaming_stats import StreamingMean
from diffenc.interfaces import (
    Condition,
    Context,
    Data,
    Dataset,
    Estimate,
    Images,
    Interval,
    Key,
    LogSNR,
    Params,
    PerExample,
    Variance,
)
from diffenc.runtime.progress import Progress

PerEdge = Float[np.ndarray, " edges"]
Square = Float[np.ndarray, "knots knots"]

SMALLEST = 1e-30  # of Q, whose logarithm is taken: a perfect model's is 0


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """Estimates of Q(t, s).

    Attributes:
      knots: times, rising from 0 to 1.
      mean: Q(t, s), [t, s], over images.
      standard_error: of each mean, over images.
      num_images: number of images.
    """

    knots: Float[np.ndarray, " knots"]
    mean: Square
    standard_error: Square
    num_images: int

    @functools.cached_property
    def _log_q(self) -> RectBivariateSpline:
        # log Q varies slowly where C spans many orders of magnitude,
        # and the exponential of an interpolated log Q is positive.
        return RectBivariateSpline(self.knots, self.knots, np.log(np.maximum(self.mean, SMALLEST)))

    def edges(self, t: PerEdge, s: PerEdge, log_snr_t: PerEdge, log_snr_s: PerEdge) -> PerEdge:
        """Returns C(t -> s) in nats of each step."""
        return half_snr_rise(log_snr_t, log_snr_s) * np.exp(self._log_q.ev(t, s))

    def all_edges(
        self, times: Float[np.ndarray, " stops"], log_snr: Float[np.ndarray, " stops"]
    ) -> Float[np.ndarray, "stops stops"]:
        """Returns C(t -> s) in nats, [t, s]; meaningless where s >= t."""
        with np.errstate(over="ignore"):  # only where s >= t
            rise = half_snr_rise(log_snr[:, None], log_snr[None, :])
        return rise * np.exp(self._log_q(times, times))


def half_snr_rise(
    log_snr_t: Float[np.ndarray, "*#edges"], log_snr_s: Float[np.ndarray, "*#edges"]
) -> Float[np.ndarray, "..."]:
    """Returns 1/2 (SNR_s - SNR_t), without cancellation as s -> t."""
    # SNR_s (1 - e^(lambda_t - lambda_s)) / 2.
    return -0.5 * np.expm1(log_snr_t - log_snr_s) * np.exp(log_snr_s)


def apply_variance(
    nats: PerEdge, log_snr_t: PerEdge, log_snr_s: PerEdge, variance: Variance, num_dims: int
) -> tuple[PerEdge, PerEdge]:
    """Returns the costs of steps with the sigma_P of `variance`, in nats, and their excess.

    Args:
      nats: the cost of each step with sigma_P = sigma_Q.
    """
    # nats = || mu_P - mu_Q ||^2 / (2 sigma_Q^2), excess = || mu_P - mu_Q ||^2 / (d sigma_Q^2).
    excess = 2 * nats / num_dims
    with jax.enable_x64(True):
        log_w = variance(jnp.asarray(log_snr_t), jnp.asarray(log_snr_s), jnp.asarray(excess))
        log_w = np.asarray(log_w, np.float64)
    # The KL of a step with w = sigma_Q^2 / sigma_P^2 [9, 61].
    return 0.5 * num_dims * (np.expm1(log_w) - log_w) + np.exp(log_w) * nats, excess


def weighted_squares(
    model: Model,
    params: Params,
    levels: Levels,
    eps: Data,
    knots: Float[Array, " knots"],
    num_levels: int,
    condition: Condition | None = None,
) -> Float[Array, "knots knots b"]:
    """Returns the values that Q(t, s) is the mean of over images and noise, [t, s, B]; one network evaluation per knot."""
    x = scale_pixels(levels, num_levels)
    log_snrs = model.log_snr(params, knots)
    increment = partial(model.increment, params)

    context = Context(condition)
    # 1. At every knot: value, slope and the network's error, with common noise.
    encode = model.prepare(params, x, context)

    mean = model.bind_mean(params, context)

    def at(log_snr: Float[Array, ""]) -> tuple[Estimate, Data]:
        each = jnp.broadcast_to(log_snr, x.shape[:1])
        truth = tangent(increment, each).follow(encode)
        return truth, model.x_hat_error(params, truth.value, eps, each, context)

    # Once per knot, not per pair: K network calls serve K^2 steps,
    # as x_hat at lambda_t does not depend on where a step leads.
    truths, errors = jax.lax.map(at, log_snrs)

    # All pairs, also s > t: the spline needs both sides of the diagonal to be smooth across it.
    def cost(i: Array, j: Array) -> PerExample:
        log_snr_t, log_snr_s = (jnp.broadcast_to(log_snrs[k], x.shape[:1]) for k in (i, j))
        # [knots, B, ...] at knot i.
        x_t, slope = (array[i] for array in truths)
        # Where both knots are the same, the chord would divide by 0: another step stands in for it, and
        # `either` discards its values.
        apart = jnp.where(i == j, log_snr_t + 1, log_snr_s)
        between = KnotPair(i == j, tangent(increment, log_snr_t), chord(increment, log_snr_t, apart))
        truth = Estimate(x_t, between.either(slope, between.secant(truths.value[j] - x_t)))
        z = diffuse(x_t, eps, log_snr_t)
        error = step_error(between, mean.error(errors[i], truth, z, between))
        return between.weight * sum_squares(error)

    # 2. All pairs of knots, in loops: memory for one pair at a time.
    index = jnp.arange(len(knots))
    return jax.lax.map(lambda i: jax.lax.map(lambda j: cost(i, j), index), index)


@dataclasses.dataclass(frozen=True, eq=False)
class KnotPair(Interval):
    """The step between two knots, or its limit where both knots are the same (`diffenc.interfaces.Interval`)."""

    same: Bool[Array, ""]
    tangent: Tangent
    chord: Chord

    def either(self, of_tangent: Array, of_chord: Array) -> Array:
        """Returns `of_tangent` where both knots are the same, else `of_chord`."""
        return jnp.where(self.same, of_tangent, of_chord)

    @property
    def log_snr(self) -> LogSNR:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.tangent.log_snr

    @property
    def log_snr_s(self) -> LogSNR:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.either(self.tangent.log_snr_s, self.chord.log_snr_s)

    @property
    def weight(self) -> PerExample:
        """c / c_eta, or 1 / eta^2."""
        return self.either(1 / self.tangent.eta_2, self.chord.fraction / self.chord.renewed)

    @property
    def value_weight(self) -> PerExample:
        return self.either(self.tangent.value_weight, self.chord.value_weight)

    @property
    def stretch(self) -> PerExample:
        return self.either(self.tangent.stretch, self.chord.stretch)

    def secant(self, difference: Data) -> Data:
        """Returns x_phi(lambda_s) - x_phi(lambda_t) over c."""
        return scale(1 / self.chord.fraction, difference)

    def follow(self, encode: EncodeAt) -> Estimate:
        """Returns x_phi and its slope over the step."""
        # As in `Chord.follow`: the secant of neighbouring knots is a small difference.
        with jax.default_matmul_precision("highest"):
            (x_t, slope), x_s = self.tangent.follow(encode), encode(self.log_snr_s)
        return Estimate(x_t, self.either(slope, self.secant(x_s - x_t)))


def measure_step_costs(
    model: Model, dataset: Dataset, settings: Fit, mesh: Mesh, params: Params
) -> StepCosts:
    """Returns Q over the images and passes of `settings`, summed in float64.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    knots, num_pairs = equal_times(settings.knots - 1), settings.knots**2
    batches = EvaluationBatches(dataset, model.conditioning, settings, mesh, "costs")
    results = map_batches(
        compile_on_mesh(mesh, batch_squares, model, dataset.num_levels, settings.knots),
        params,
        batches.image_by_image(),
        # The noise of a batch and pass, common to all knots; it depends on the batch size.
        lambda batch: (batch.images, batch.key),
        Progress("costs", len(batches)),
    )
    # Errors are over images: passes of an image are averaged before they are added.
    q, index = StreamingMean(num_pairs), np.arange(num_pairs)
    total = np.zeros((num_pairs, batches.batch_size))
    for squares, batch in results:
        total += np.asarray(squares, np.float64).reshape(num_pairs, -1)
        if (
            batch.pass_index == batches.passes - 1
        ):  # an image's passes are not independent: their mean is one value
            per_image = batch.without_padding(total) / batches.passes
            q.add(np.repeat(index, per_image.shape[1]), per_image.ravel())
            total = np.zeros_like(total)
    shape, count = (settings.knots, settings.knots), len(batches.source)
    return StepCosts(knots, q.mean.reshape(shape), q.standard_error.reshape(shape), count)


def batch_squares(
    model: Model, num_levels: int, num_knots: int, params: Params, images: Images, key: Key
) -> Float[Array, "knots knots b"]:
    """Returns `weighted_squares` of a batch at equally spaced knots."""
    levels, condition = images
    eps, knots = jax.random.normal(key, levels.shape), jnp.asarray(equal_times(num_knots - 1))
    return weighted_squares(model, params, levels, eps, knots, num_levels, condition)
