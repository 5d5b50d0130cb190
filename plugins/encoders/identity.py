import dataclasses
from typing import ClassVar

from diffenc.interfaces import Condition, Data, ImageKeys, Key, LogSNR, Params
from diffenc.registry import encoders


@encoders.register("identity")
@dataclasses.dataclass(frozen=True)
class Identity:
    """x_phi = x: VDM. Its mean is generative_mean.vdm."""

    generative_mean: ClassVar[str] = "generative_mean.vdm"

    def init(self, key: Key, x: Data, log_snr: LogSNR, *, condition: Condition | None = None) -> Params:
        return {}

    def apply(
        self,
        params: Params,
        x: Data,
        log_snr: LogSNR,
        *,
        condition: Condition | None = None,
        keys: ImageKeys | None = None,
    ) -> Data:
        return x
