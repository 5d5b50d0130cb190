"""The parameters of a chain that coding needs besides the networks: a few numbers for each step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.compression.bits_back import Lattice, make_lattice
from diffenc.core.compiled_once import compiled_once
from diffenc.core.discretization import Chain
from diffenc.core.gaussian import alpha_sigma
from diffenc.core.model import Model
from diffenc.core.stochasticity import renewed_fraction
from diffenc.interfaces import LogSNR, Params, PerStep

Stops = Float[np.ndarray, " stops"]
Steps = Float[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True)
class ChainNumbers:
    """A chain on a path, under a model's parameters. Stop 0 is next to the data; step i leads from stop i + 1 to stop i.

    Attributes:
      times: times of the stops, increasing.
      log_snr: lambda at the stops.
      clock_rise: H = h(lambda_s) - h(lambda_t) of each step.
      log_w: log(sigma_Q^2 / sigma_P^2) of each step.
    """

    times: Stops
    log_snr: Stops
    clock_rise: Steps
    log_w: Steps

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.log_w)

    def lattices(self, bins: int) -> tuple[Lattice, ...]:
        """Returns the lattice of z at each stop, with `bins` cells per standard deviation; p at the last stop is N(0, 1).

        Raises:
          UserError: as `make_lattice`.
        """
        std_q = stds(self.log_snr, self.clock_rise)
        # sigma_P^2 = sigma_Q^2 / w.
        std_p = [*(std_q[:-1] * np.exp(-0.5 * self.log_w)), 1.0]
        return tuple(make_lattice(float(q), float(p), bins) for q, p in zip(std_q, std_p, strict=True))

    def first_mean(self, x_phi: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b ..."]:
        """Returns the mean alpha x_phi of z at the noisiest stop, from x_phi there [10]."""
        return x_phi * x_phi.dtype.type(alphas(self.log_snr)[-1])


def stds(log_snr: Stops, clock_rise: Steps) -> Stops:
    """Returns the standard deviations of q: sigma_Q of z_s given z_t at each stop but the last, and sigma at the last."""
    # sigma_Q^2 = sigma_s^2 times the renewed fraction of the step; the last stop has no predecessor: all is new there.
    renewed = np.append(renewed_fraction(jnp.asarray(clock_rise)), 1.0)
    return np.asarray(alpha_sigma(jnp.asarray(log_snr))[1], np.float64) * np.sqrt(renewed)


def alphas(log_snr: Stops) -> Stops:
    """Returns alpha at the stops."""
    return np.asarray(alpha_sigma(jnp.asarray(log_snr))[0], np.float64)


def chain_numbers(model: Model, params: Params, chain: Chain) -> ChainNumbers:
    """Returns the numbers of `chain` on the model's path, with exactly the values that its networks get."""
    log_snr, clock_rise = _compiled_log_snr(model)(params, chain.times)
    times, log_snr, clock_rise, log_w = (
        np.asarray(array, np.float64) for array in (chain.times, log_snr, clock_rise, chain.log_w)
    )
    # float64 holds values of the default precision exactly, and so does their JSON in the header.
    return ChainNumbers(times, log_snr, clock_rise, log_w)


@compiled_once
def _compiled_log_snr(model: Model) -> Callable[..., Any]:
    def at_stops(params: Params, times: Float[Array, " stops"]) -> tuple[LogSNR, PerStep]:
        log_snr = model.log_snr(params, times)
        return log_snr, model.increment(params, log_snr[1:], log_snr[:-1])

    return jax.jit(at_stops)
