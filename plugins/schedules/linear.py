import dataclasses

from diffenc.interfaces import Key, LogSNR, Params, Times
from diffenc.registry import schedules
from diffenc_plugins.ends import check_ends


@schedules.register("linear")
@dataclasses.dataclass(frozen=True)
class Linear:
    """log_snr linear in t, from log_snr_max at t = 0 to log_snr_min at t = 1."""

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self):
        check_ends("schedule.linear", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key) -> Params:
        return {}

    def apply(self, params: Params, t: Times) -> LogSNR:
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * t
