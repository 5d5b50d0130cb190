import dataclasses

from diffenc.core.gaussian import alpha_sigma
from diffenc.interfaces import LogSNR
from diffenc.registry import parameterizations


@parameterizations.register("v")
@dataclasses.dataclass(frozen=True)
class V:
    """The network estimates v = alpha eps - sigma x_phi [19, 20]."""

    def __call__(self, log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        alpha, sigma = alpha_sigma(log_snr)
        return -sigma, alpha
