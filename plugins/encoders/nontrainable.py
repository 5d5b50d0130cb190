import dataclasses
from typing import ClassVar

from diffenc.core.gaussian import alpha_squared, scale
from diffenc.interfaces import NO_CONTEXT, Context, Data, Key, LogSNR, Params
from diffenc.registry import encoders


@encoders.register("nontrainable")
@dataclasses.dataclass(frozen=True)
class Nontrainable:
    """x_nt = alpha^2 x [16], whose slope is exactly sigma^2 x_nt. Its mean is generative_mean.counterterm."""

    generative_mean: ClassVar[str] = "generative_mean.counterterm"

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return {}

    def apply(self, params: Params, x: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        return scale(alpha_squared(log_snr), x)
