"""Solvers of the reverse process: one step from z at lambda_t to z at lambda_s, h = lambda_s - lambda_t > 0.

They take estimates of x_phi and its slope from the model's generative mean (`diffenc.core.reverse`). With G = (1 + eta^2) / 2,
1 on the paper's path (`diffenc.core.stochasticity`), the diffusion loss determines the sum G value + slope, which is all that
the steps of the generative SDE use on the same path: they are consistent for every encoder. The steps of the
probability-flow ODE need the two apart. A mean with one head, value x_hat and slope kappa x_hat, has
x_hat = E[G x_phi + d x_phi / d lambda | z] / (G + kappa), which gives both only where d x_phi / d lambda = kappa x_phi
(`slope_is_modelled`). For any other encoder, in particular a trained one, ODE solvers then sample from a different model than
that of the trained bound. They do not depend on the path, since all paths have the same marginals.

A model trained at T steps has another minimiser, of those steps alone: with g the fraction of the residual that stays,
E[(1 - g) x_t + (x_s - x_t) | z] / (1 - g + (lambda_s - lambda_t) kappa). It is E[x_phi | z], which serves any step of any
solver, only where x_phi does not depend on lambda, as for the identity encoder. For any other encoder only steps of
`ancestral` as long as those of training are consistent with the trained bound.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.core.compiled_once import compiled_once
from diffenc.core.conditioning import conditioned_modules
from diffenc.core.gaussian import alpha_sigma, alpha_squared, scale
from diffenc.core.interval import Chord, chord, tangent
from diffenc.core.model import Model
from diffenc.core.reverse import Estimator
from diffenc.core.stochasticity import Increment
from diffenc.interfaces import Condition, Context, Data, Estimate, Key, LogSNR, Params, PerExample

# (z, log_snr_t, log_snr_s, log_w, estimate, increment, noise) -> z_s; the noise is standard normal, shaped like z
Solver = Callable[[Data, LogSNR, LogSNR, PerExample, Estimator, Increment, Data], Data]


def reverse_step(z: Data, estimate: Estimate, step: Chord) -> tuple[Data, LogSNR]:
    """Returns mean and standard deviation of p(z_s | z_t) [17], with sigma_P = sigma_Q.

    The mean is that of q(z_s | z_t, x), with the estimates for x_t and (x_s - x_t) / c: alpha_s (x_s + g (z / alpha_t - x_t)),
    g and sigma_Q those of `diffenc.core.stochasticity`.
    """
    # mu = alpha_s (x_s + g (z / alpha_t - x_t)): the residual
    # of z shrinks by g, and the mean moves from x_t to x_s.
    alpha_t, _ = alpha_sigma(step.log_snr)
    alpha_s, sigma_s = alpha_sigma(step.log_snr_s)
    # x_s - g x_t with x_t = value and x_s = value + c slope is (1 - g) value + c slope.
    not_kept = step.fraction * step.value_weight  # 1 - g
    moved = scale(not_kept, estimate.value) + scale(step.fraction, estimate.slope)
    mu = scale(alpha_s / alpha_t * (1 - not_kept), z) + scale(alpha_s, moved)
    return mu, sigma_s * jnp.sqrt(step.renewed)


def ancestral(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    estimate: Estimator,
    increment: Increment,
    noise: Data,
) -> Data:
    """Draws from p(z_s | z_t) = N(mu_P, sigma_P^2) [17], sigma_P^2 = sigma_Q^2 / w [9]. Valid for any encoder.

    The only solver that samples from the model of the discrete-time bound.
    """
    step = chord(increment, log_snr_t, log_snr_s)
    mu, sigma = reverse_step(z, estimate(z, step), step)
    # sigma_P = sigma_Q w^(-1/2).
    return mu + scale(sigma * jnp.exp(-0.5 * log_w), noise)


def euler_maruyama(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    estimate: Estimator,
    increment: Increment,
    noise: Data,
) -> Data:
    """Weak first-order step of the generative SDE [App. H] in lambda. Valid for any encoder.

    dz = (-1/2 (alpha^2 + eta^2) z + alpha (1/2 (1 + eta^2) value + slope)) dlambda + eta sigma dW.
    """
    alpha, sigma = alpha_sigma(log_snr_t)
    # Coefficients and estimates are those at the start of the step, as Euler-Maruyama has it: lambda rises
    # along the reverse process, so rise > 0 is its time step.
    at, rise = tangent(increment, log_snr_t), log_snr_s - log_snr_t
    value, slope = estimate(z, at)
    # In lambda the SDE does not contain the schedule's rate: steps depend on the stops alone.
    to_z = -0.5 * rise * (alpha_squared(log_snr_t) + at.eta_2)
    drift = scale(to_z, z) + scale(rise * alpha, scale(at.value_weight, value) + slope)
    return z + drift + scale(sigma * jnp.sqrt(rise * at.eta_2), noise)


def ddim(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    estimate: Estimator,
    increment: Increment,
    noise: Data,
) -> Data:
    """Keeps eps_hat and moves the value along its slope. Valid only where `slope_is_modelled`.

    z_s = alpha_s (value + c slope) + sigma_s eps_hat, eps_hat = (z - alpha_t value) / sigma_t. Deterministic,
    first order for dz/dlambda = -1/2 alpha^2 z + alpha (1/2 value + slope); exact if the value is x and the slope 0.
    """
    # The slope over the whole step, not the tangent: with a mean that is exact over a step, the step is exact.
    step = chord(increment, log_snr_t, log_snr_s)
    # eps_hat = (z - alpha_t value) / sigma_t is kept:
    # z_s = (sigma_s / sigma_t) z + alpha_s ((1 - e^(-h/2)) value + c slope).
    value, slope = estimate(z, step)
    # alpha_s - alpha_t sigma_s / sigma_t = alpha_s (1 - e^(-h/2)), without cancellation
    moved = scale(-jnp.expm1(-0.5 * step.rise), value) + scale(step.fraction, slope)
    return _exponential_step(z, log_snr_t, log_snr_s, moved)


def exponential_midpoint(
    z: Data,
    log_snr_t: LogSNR,
    log_snr_s: LogSNR,
    log_w: PerExample,
    estimate: Estimator,
    increment: Increment,
    noise: Data,
) -> Data:
    """Second-order step of the probability-flow ODE. Valid only where `slope_is_modelled`. Calls the network twice.

    y = z / sigma obeys dy/dlambda = e^(lambda/2) (1/2 value + slope). The factor e^(lambda/2) is integrated exactly,
    the rest evaluated at the midpoint in lambda, which a first-order step of the same form reaches.
    """
    # Both stages start from z at lambda_t; the second uses the
    # estimates at the midpoint that the first one reached.
    middle = 0.5 * (log_snr_t + log_snr_s)

    def step(end: LogSNR, at: LogSNR, z_at: Data) -> Data:
        value, slope = estimate(z_at, tangent(increment, at))
        # sigma_s 2 (e^(lambda_s/2) - e^(lambda_t/2)) = 2 alpha_s (1 - e^(-h/2)), which cannot overflow at any lambda
        gain = -2 * jnp.expm1(0.5 * (log_snr_t - end))
        return _exponential_step(z, log_snr_t, end, scale(gain, 0.5 * value + slope))

    return step(log_snr_s, middle, step(middle, log_snr_t, z))


def _exponential_step(z: Data, log_snr_t: LogSNR, log_snr_s: LogSNR, moved: Data) -> Data:
    """Returns (sigma_s / sigma_t) z + alpha_s moved."""
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(log_snr_t), alpha_sigma(log_snr_s)
    return scale(sigma_s / sigma_t, z) + scale(alpha_s, moved)


SDE_SOLVERS: dict[str, Solver] = {"ancestral": ancestral, "euler_maruyama": euler_maruyama}
ODE_SOLVERS: dict[str, Solver] = {"ddim": ddim, "exponential_midpoint": exponential_midpoint}
SOLVERS: dict[str, Solver] = SDE_SOLVERS | ODE_SOLVERS


# ODE solvers and the ODE likelihood ask this first: an
# inconsistent ODE raises no error and shows in the numbers alone.
def slope_is_modelled(
    model: Model, params: Params, image_shape: tuple[int, ...], trained_at: int = 0
) -> bool:
    """Returns whether the generative mean gives E[x_phi | z] and E[d x_phi / d lambda | z], as ODE solvers and likelihood assume.

    A mean that learns the value by itself does. Any other mean must, given the mean of the x_phi of two images for x_hat, return
    the means of their values and slopes, to 1e-4 of their norm: d x_phi / d lambda = kappa x_phi for one head. For a model
    trained at T = `trained_at` > 0 the slopes must also be 0, since x_hat otherwise serves the T steps alone.

    Tests random images at each of three values of log_snr, and of each class that the encoder knows, by a jvp of
    the encoder for each class. Compiles once for a model and a shape.
    """
    # Its value is E[x_phi | z] by its own loss; at T the slope is that of a step, not the derivative.
    if model.generative_mean.learns_value and not trained_at:
        return True
    error, slope = _compiled_slope_error(model, image_shape)(params)
    # Far above float32's rounding of the jvp. A comparison with NaN is False.
    return bool(error <= 1e-4) and (trained_at == 0 or bool(slope <= 1e-4))


@compiled_once
def _compiled_slope_error(
    model: Model, image_shape: tuple[int, ...]
) -> Callable[[Params], tuple[Float[Array, ""], Float[Array, ""]]]:
    return jax.jit(partial(_slope_error, model, image_shape=image_shape))


def _slope_error(
    model: Model, params: Params, image_shape: tuple[int, ...]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the largest error of value or slope and the largest slope over |x_phi|, norms over an image."""
    # 1. Noise levels, classes and two random images for each.
    count = max((count for _, count in conditioned_modules(model.encoder)), default=1)
    # No larger values: at low noise x_phi approaches x whatever the encoder, and its slope vanishes.
    log_snr = jnp.array([-4.0, -1.0, 2.0])
    # Each class the encoder knows: it may fulfil the condition for one alone.
    # One after the other, as there may be a thousand.
    labels = np.repeat(np.arange(count, dtype=np.int32), len(log_snr))
    conditions = jax.tree.map(
        lambda leaf: jnp.reshape(jnp.asarray(leaf), (count, len(log_snr), *jnp.shape(leaf)[1:])),
        model.conditioning(labels),
    )
    keys = jax.random.split(jax.random.key(0), count)

    def of_class(drawn: tuple[Key, Condition | None]) -> tuple[Float[Array, "2 b"], PerExample]:
        return _slope_errors(model, params, log_snr, *drawn, image_shape)

    errors, slopes = jax.lax.map(of_class, (keys, conditions))
    return jnp.max(errors), jnp.max(slopes)


def _slope_errors(
    model: Model,
    params: Params,
    log_snr: LogSNR,
    key: Key,
    condition: Condition | None,
    image_shape: tuple[int, ...],
) -> tuple[Float[Array, "2 b"], PerExample]:
    """Returns the errors of value and slope, and the slope, of two random images of one class at each log_snr."""
    pair = jax.random.uniform(key, (2, len(log_snr), *image_shape), minval=-1.0)
    context = Context(condition)
    at = tangent(partial(model.increment, params), log_snr)

    def mean_of_pair(one: Data, other: Data) -> Data:
        return 0.5 * (one + other)

    # Two equally likely images: E[x_phi | z] at the z between them is the mean of both x_phi, and likewise
    # for the slope. A single image would not tell E[x_phi | z] from x_phi(E[x | z]).
    truth = jax.tree.map(mean_of_pair, *(at.follow(model.prepare(params, x, context)) for x in pair))
    # The output of an ideal network: E[x | z] for means
    # that encode it themselves, E[x_phi | z] for all others.
    x_hat = mean_of_pair(*pair) if model.generative_mean.needs_encoder else truth.value
    # 2. The mean's value and slope for an ideal x_hat;
    # z without noise, for means that depend on z.
    z = scale(alpha_sigma(log_snr)[0], truth.value)
    made = model.bind_mean(params, context).estimate(x_hat, z, at)

    # 3. Errors relative to |x_phi|.
    def norm(x: Data) -> PerExample:
        return jnp.sqrt(jnp.sum(jnp.square(x), tuple(range(1, x.ndim))))

    size = norm(truth.value)
    errors = [norm(one - other) / size for one, other in zip(made, truth, strict=True)]
    return jnp.stack(errors), norm(made.slope) / size
