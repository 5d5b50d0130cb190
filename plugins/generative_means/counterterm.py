import dataclasses

from diffenc.core.gaussian import sigma_squared
from diffenc.interfaces import LogSNR
from diffenc.registry import generative_means


@generative_means.register("counterterm")
@dataclasses.dataclass(frozen=True)
class Counterterm:
    """kappa = sigma^2: the slope of the non-trainable encoder [17]."""

    def __call__(self, log_snr: LogSNR) -> LogSNR:
        return sigma_squared(log_snr)
