"""A path with noise fitted to a trained model."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from diffenc.errors import UserError
from diffenc.interfaces import Key, LogSNR, Params
from diffenc.registry import stochasticities


@stochasticities.register("fitted")
@dataclasses.dataclass(frozen=True)
class Fitted:
    """The eta^2 that --mode=fit_stochasticity measured, for evaluate.stochasticity; not for training.

    eta^2 is constant between neighbouring `log_snr`, and beyond them as in the outermost interval, so that h is piecewise
    linear. @stochasticity.fitted(), without values, takes those of the run's fit.

    Attributes:
      log_snr: the ends of the intervals, rising; one more than `eta_2`.
      eta_2: eta^2 of each interval, positive.
    """

    log_snr: tuple[float, ...] = ()
    eta_2: tuple[float, ...] = ()

    def __post_init__(self):
        rising = all(low < high for low, high in zip(self.log_snr[:-1], self.log_snr[1:], strict=True))
        fits = len(self.log_snr) == len(self.eta_2) + 1 or not (self.log_snr or self.eta_2)
        if not (fits and rising and all(value > 0 for value in self.eta_2)):
            raise UserError(
                "stochasticity.fitted: log_snr must rise and have one number more than eta_2, which must be positive; leave "
                "both out to take what --mode=fit_stochasticity measured"
            )

    @property
    def is_open(self) -> bool:
        return not self.eta_2

    def given(self, log_snr: Sequence[float], eta_2: Sequence[float]) -> "Fitted":
        """Returns the path with these values."""
        return Fitted(tuple(log_snr), tuple(eta_2))

    def init(self, key: Key) -> Params:
        return {}

    def increment(self, params: Params, log_snr_t: LogSNR, log_snr_s: LogSNR) -> LogSNR:
        if self.is_open:
            raise UserError(
                "stochasticity.fitted is measured on a trained run: bind it to evaluate.stochasticity, not to the Model"
            )
        dtype = log_snr_t.dtype
        # The outermost intervals reach to infinity: lambda may lie beyond the fitted range.
        low = jnp.asarray((-jnp.inf, *self.log_snr[1:-1]), dtype)[None]
        high = jnp.asarray((*self.log_snr[1:-1], jnp.inf), dtype)[None]
        # the part of the step in each interval: exact where both ends lie in one
        part = jnp.clip(log_snr_s[:, None], low, high) - jnp.clip(log_snr_t[:, None], low, high)
        # no matrix product, which accelerators may compute in fewer digits
        return jnp.sum(part * jnp.asarray(self.eta_2, dtype)[None], axis=1)
