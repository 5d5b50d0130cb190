import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import Key, LogSNR, Params, Times
from diffenc.registry import schedules
from diffenc_plugins.schedule_ends import check_ends
from diffenc_plugins.schedules.builtin import LearnedEndpoints

LEAST_LINEAR = 0.05  # of the fall, at least this part is linear (but for what 1 / (1 + 0.05) takes off)
LEAST_SLOPE = 1e-3  # of the line, beside that
FIRST_BUMPS = 0.2  # how much of the fall comes from the sigmoids at first


@schedules.register("monotone")
@dataclasses.dataclass(frozen=True)
class Monotone:
    """Learned ends, and between them a learned monotone network trained for a loss of low variance (VDM, App. I.2).

    log_snr = start - drop * (g(t) - g(0)) / (g(1) - g(0)), start and drop as in schedule.learned_endpoints, and
    g(t) = l t + sum_k w_k sigmoid(a_k t + b_k) with l, w_k, a_k > 0: log_snr falls strictly for all parameters (in
    float32, over a hundred steps, while |start| <= 32). The initial parameters, all zero, give nearly a line.

    The bound trains the ends alone: in continuous time its mean does not depend on the values between them.
    `interior` is for diffenc.training.schedule_objective, which trains these values to lower the variance, and at finite
    T for diffenc.training.trained_bound, which trains them by the bound.

    Attributes:
      log_snr_max: the first value at t = 0.
      log_snr_min: the first value at t = 1.
      units: number of sigmoids.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    units: int = 32

    def __post_init__(self):
        check_ends("schedule.monotone", self.log_snr_max, self.log_snr_min)
        if self.units < 1:
            raise UserError(f"schedule.monotone.units = {self.units}: must be at least 1")

    @property
    def _ends(self) -> LearnedEndpoints:
        return LearnedEndpoints(self.log_snr_max, self.log_snr_min)

    def init(self, key: Key) -> Params:
        zeros = jnp.zeros(self.units)
        interior = {"linear": jnp.zeros(()), "weight": zeros, "steepness": zeros, "offset": zeros}
        return {"ends": self._ends.init(key), "interior": interior}

    def apply(self, params: Params, t: Times) -> LogSNR:
        # `apply` and `interior` are equal in value and differ in their
        # stop-gradients: each set of parameters gets exactly one objective.
        return self._log_snr(params["ends"], jax.lax.stop_gradient(params["interior"]), t)

    def interior(self, params: Params, t: Times) -> LogSNR:
        return self._log_snr(jax.lax.stop_gradient(params["ends"]), params["interior"], t)

    def _log_snr(self, ends: Params, interior: Params, t: Times) -> LogSNR:
        return self._ends.apply(ends, self._fallen(interior, t))

    def _fallen(self, params: Params, t: Times) -> Float[Array, " b"]:
        """Returns (g(t) - g(0)) / (g(1) - g(0)): 0 at t = 0 and 1 at t = 1."""
        # At parameters of zero: equal sigmoids with centres
        # spread evenly over [0, 1], nearly a line in sum.
        weight = positive(params["weight"], FIRST_BUMPS / self.units)
        steepness = positive(params["steepness"], first_steepness(self.units))
        # a (t - centre): the centre stays where it is while the steepness changes.
        offset = params["offset"] - steepness * centres(self.units)

        def risen(t: Float[Array, ""]) -> Float[Array, ""]:
            """Returns sum_k w_k (sigmoid(a_k t + b_k) - sigmoid(b_k)), by sigmoid(x) - sigmoid(y) =
            sigmoid(x) sigmoid(-y) (1 - exp(y - x)), which has no cancellation and is 0 at t = 0."""
            # t is a scalar here, and everything else [units]; vmap adds the batch.
            reach = steepness * t
            steps = jax.nn.sigmoid(reach + offset) * jax.nn.sigmoid(-offset) * -jnp.expm1(-reach)
            return jnp.sum(weight * steps)

        # g(1) - g(0) of the sigmoids. Normalising by the whole rise fixes both ends for all parameters of the
        # interior, so that training the interior moves no end.
        whole = risen(jnp.ones((), t.dtype))
        # Relative to `whole`: if the linear part could vanish beside the sigmoids, lambda would be flat
        # between them and its rate 0, by which the interior's objective divides.
        linear = positive(params["linear"], 1 - FIRST_BUMPS) + LEAST_SLOPE + LEAST_LINEAR * whole
        return (linear * t + jax.vmap(risen)(t)) / (linear + whole)


def first_steepness(units: int) -> float:
    """Returns the initial a_k, small enough for neighbouring sigmoids to overlap."""
    return 0.5 * units + 2


def centres(units: int) -> np.ndarray:
    """Returns the times at which the sigmoids are steepest when offset = 0, evenly spaced."""
    return (np.arange(units) + 0.5) / units


def positive(raw: Any, first: float) -> Float[Array, "..."]:
    """Returns softplus of `raw`, shifted so that raw = 0 gives `first`."""
    # The shift is the inverse of softplus at `first`.
    return jax.nn.softplus(raw + float(_raw(first)))


def invert_positive(value: Any, first: float) -> Any:
    """Returns the `raw` at which `positive` gives `value` > 0."""
    return _raw(value) - _raw(first)


def _raw(value: Any) -> Any:
    """Returns the inverse of softplus."""
    return value + np.log(-np.expm1(-value))
