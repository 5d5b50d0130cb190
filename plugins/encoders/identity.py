import dataclasses
from typing import ClassVar

from diffenc.interfaces import NO_CONTEXT, Context, Data, Key, LogSNR, Params
from diffenc.registry import encoders


@encoders.register("identity")
@dataclasses.dataclass(frozen=True)
class Identity:
    """x_phi = x: VDM. Its mean is generative_mean.vdm."""

    generative_mean: ClassVar[str] = "generative_mean.vdm"

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return {}

    def apply(self, params: Params, x: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        return x
