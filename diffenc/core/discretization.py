"""A reverse chain of T steps: its times, and the variance of each step."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import EXCESS, LearnedVariance, LogSNR, Params, PerStep, Times, Variance, requires
from diffenc.registry import selector_of

Stops = Float[Array, " steps_plus_one"]


class Chain(NamedTuple):
    """A reverse chain of T steps: the discrete-time bound is a bound for it, and ancestral sampling follows it.

    Attributes:
      times: 0 = t_0 < t_1 < ... < t_T = 1.
      log_w: log(sigma_Q^2 / sigma_P^2) of the step from times[i + 1] to times[i].
    """

    times: Stops
    log_w: PerStep


@dataclasses.dataclass(frozen=True)
class EqualVariance:
    """sigma_P = sigma_Q, as in VDM: w = 1."""

    def __call__(self, log_snr_t: PerStep, log_snr_s: PerStep, excess: PerStep | None) -> PerStep:
        return jnp.zeros_like(log_snr_t)


EQUAL = EqualVariance()


def equal_times(num_steps: int) -> Float[np.ndarray, " steps_plus_one"]:
    """Returns the times of `num_steps` equal steps of t, in float64."""
    # numpy keeps float64 where JAX's default is float32; `make_chain` rounds the times once.
    return np.linspace(0.0, 1.0, num_steps + 1)


def equal_steps(num_steps: int) -> Chain:
    """Returns the chain of T = `num_steps` equal steps of t with sigma_P = sigma_Q."""
    return Chain(jnp.asarray(equal_times(num_steps)), jnp.zeros(num_steps))


def variance_given(variance: Variance, params: Params) -> Variance:
    """Returns `variance` under a model's parameters; a variance that is not learned is returned unchanged."""
    return variance.given(params["variance"]) if isinstance(variance, LearnedVariance) else variance


def make_chain(
    log_snr_at: Callable[[Times], LogSNR],
    times: Float[np.ndarray, " steps_plus_one"],
    variance: Variance,
    excess: Float[np.ndarray, " steps"] | None = None,
) -> Chain:
    """Returns the chain through `times`, with sigma_P^2 by `variance` from the measured `excess` of its steps.

    Raises:
      UserError: `variance` requires `excess`, and it is None.
    """
    # Before anything is computed: a variance that must be fitted cannot be guessed.
    require_excess(variance, excess, len(times) - 1)
    log_snr = log_snr_at(jnp.asarray(times))
    measured = None if excess is None else jnp.asarray(excess)
    # Step i leads from times[i + 1] (noisier, lambda_t) to times[i] (lambda_s), so [1:] is t and [:-1] is s.
    return Chain(jnp.asarray(times), variance(log_snr[1:], log_snr[:-1], measured))


def require_excess(variance: Variance, excess: Float[np.ndarray, " steps"] | None, num_steps: int) -> None:
    """Raises UserError if `variance` requires the measured excess of its steps, and `excess` is None."""
    if excess is None and requires(variance, EXCESS):
        raise UserError(
            f"{selector_of(type(variance))} was not fitted for these {num_steps} steps: run the same command with "
            f"--mode=fit_variance --num_timesteps={num_steps} first"
        )
