"""Objective of the interior of a learned schedule: a low variance of the estimated loss.

In continuous time the mean of the diffusion loss l(t) depends on the schedule only through its ends; its interior
determines how much l(t) varies over uniformly drawn t, hence how noisy gradients are. Let m2(lambda) be the mean square
of the loss per unit of lambda and r_eta(lambda) = |d lambda / dt| the rate at which a schedule with parameters eta passes
lambda. Then l is r times the loss per unit of lambda, and dt = d lambda / r, so

    V = E_t[l^2] = integral of r_eta m2 d lambda,
    dV / d eta = integral of m2 d r_eta / d eta d lambda = E_t[(l^2 / r) d r_eta(lambda_t) / d eta],

where lambda_t is held fixed while eta changes: lambda is the variable of integration, and its limits are the ends, which
do not depend on eta. V is least where 1 / r, the density of lambda, is proportional to sqrt(m2).

VDM (arXiv:2107.00630, App. I.2) has the same objective, and computes the gradient of l^2 through the network, by a second
backward pass or by sharing the first. Here only the values of l are needed, at negligible cost. The gradient of V is
unbiased; the gradient used is that of V over the squared mean of l, both estimated on one batch, a ratio whose bias falls
like 1 / batch size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffenc.interfaces import LearnedInterior, LogSNR, Params, PerExample, Schedule, Times

Scalar = Float[Array, ""]


def interior_objective(
    schedule: Schedule, params: Params, t: Times, loss: PerExample, weight: PerExample | float = 1.0
) -> Scalar:
    """Returns zero in value, with the gradient of the interior's objective; without a learned interior the gradient is zero too.

    Args:
      params: of the schedule.
      t: drawn uniformly, or with the density 1 / `weight`.
      loss: the diffusion losses at t, without the weight; only the values are used.
      weight: of the draws.
    """
    if not isinstance(schedule, LearnedInterior):
        return jnp.zeros(())
    value = surrogate(schedule, params, t, loss, weight)
    # Zero in value, so that it may be added to a reported loss without changing it.
    return value - jax.lax.stop_gradient(value)


def surrogate(
    schedule: LearnedInterior, params: Params, t: Times, loss: PerExample, weight: PerExample | float = 1.0
) -> Scalar:
    """Returns the mean square of the loss over its squared mean, as the mean of (l^2 / r) r_eta(lambda_t).

    The quotient is about 1 for any data; only the numerator has a gradient.
    """
    # The form of dV / d eta above: only r_eta is differentiated, with constant weights. Dividing by the squared
    # mean of l makes the gradient's scale independent of the data and of the progress of training.
    rate = rate_at_fixed_log_snr(schedule, params, t)
    squares = jax.lax.stop_gradient(weight * jnp.square(loss / jnp.mean(weight * loss)) / rate)
    return jnp.mean(squares * rate)


def rate_at_fixed_log_snr(schedule: LearnedInterior, params: Params, t: Times) -> PerExample:
    """Returns |d lambda / dt| at t, differentiable in the interior's parameters with lambda(t) held fixed.

    When eta changes, lambda is reached at another time, by d t / d eta = -(d lambda / d eta) / lambda'. The Newton step
    below has the value t and that derivative.
    """

    def value_and_rate(t: Times) -> tuple[LogSNR, LogSNR]:
        return jax.jvp(lambda t: schedule.interior(params, t), (t,), (jnp.ones_like(t),))

    log_snr, rate = value_and_rate(t)
    # By the implicit function theorem one Newton step from the solution has its exact first derivative.
    moved = t - (log_snr - jax.lax.stop_gradient(log_snr)) / jax.lax.stop_gradient(rate)
    return jnp.abs(value_and_rate(moved)[1])
