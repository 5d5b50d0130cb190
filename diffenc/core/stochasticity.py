"""The noise of the forward path at given marginals: functions of the clock h of `diffenc.interfaces.Stochasticity`.

With H = h(lambda_s) - h(lambda_t) the noise of a step is eps_s = e^(-H/2) eps_t + sqrt(1 - e^(-H)) eps', whatever h:
each eps is standard normal, so that q(z_t | x) [10] does not depend on h, and steps compose because their H add up.
h = lambda is the Markov process of the paper [11].
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffenc.interfaces import Key, LogSNR, Params

# (lambda_t, lambda_s) -> H: an `increment` with bound parameters
Increment = Callable[[LogSNR, LogSNR], LogSNR]


@dataclasses.dataclass(frozen=True)
class Markov:
    """h = lambda: the Markov process of VDM and DiffEnc [11]."""

    def init(self, key: Key) -> Params:
        return {}

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        return log_snr_s - log_snr_t


MARKOV = Markov()


def eta_squared(increment: Increment, log_snr: LogSNR) -> LogSNR:
    """Returns eta^2 = dh / dlambda: the variance of the path's noise per unit of lambda, relative to sigma^2."""
    # By lambda_s at lambda_s = lambda_t: a clock defines differences of h alone, and lambda_t is held fixed.
    return jax.jvp(lambda log_snr_s: increment(log_snr, log_snr_s), (log_snr,), (jnp.ones_like(log_snr),))[1]


def renewed_fraction(clock_rise: LogSNR) -> LogSNR:
    """Returns c_eta = 1 - e^(-H): the part of the variance of eps_s that is independent of eps_t. It is c where h = lambda.

    sigma_Q^2 = c_eta sigma_s^2 is the variance of q(z_s | z_t, x).

    Args:
      clock_rise: H.
    """
    # sigma_Q^2 = c_eta sigma_s^2 <= sigma_s^2 for every H >= 0: admissible
    # for any clock and any step. eta^2 c sigma_s^2 would not be (it exceeds
    # sigma_s^2 at small T where eta > 1), and its steps would not compose.
    return -jnp.expm1(-clock_rise)


def mean_fraction(rise: LogSNR, clock_rise: LogSNR) -> LogSNR:
    """Returns 1 - g, with g = e^(-(rise + H) / 2) = alpha_t sqrt(sigma_s^2 - sigma_Q^2) / (alpha_s sigma_t).

    The mean of q(z_s | z_t, x) is alpha_s (x_s + g (z_t / alpha_t - x_t)), so that 1 - g is the weight of a constant
    x_phi. It is c where h = lambda.

    Args:
      rise: lambda_s - lambda_t.
      clock_rise: H.
    """
    # 1 - exp(...) loses 4 digits at T = 10^5 in float32.
    return -jnp.expm1(-0.5 * (rise + clock_rise))
