"""The encoders of VDM and DiffEnc: identity, non-trainable and trainable."""

import dataclasses
from typing import Any, ClassVar

from diffenc.core.gaussian import alpha_squared, scale, sigma_squared
from diffenc.interfaces import (
    NO_CONTEXT,
    Context,
    Data,
    Key,
    LogSNR,
    Network,
    Params,
    PreparedOnce,
    apply_prepared,
    prepare_once,
)
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


@encoders.register("nontrainable")
@dataclasses.dataclass(frozen=True)
class Nontrainable:
    """x_nt = alpha^2 x [16], with a slope of exactly sigma^2 x_nt. Its mean is generative_mean.counterterm."""

    generative_mean: ClassVar[str] = "generative_mean.counterterm"

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return {}

    def apply(self, params: Params, x: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        return scale(alpha_squared(log_snr), x)


@encoders.register("trainable")
@dataclasses.dataclass(frozen=True)
class Trainable(PreparedOnce):
    """x_phi = alpha^2 x + sigma^2 y_phi(x, lambda) [15]: DiffEnc. Its mean is generative_mean.counterterm.

    Attributes:
      network: y_phi. If its last layer starts at zero, this encoder equals the non-trainable one
        at initialisation.
    """

    generative_mean: ClassVar[str] = "generative_mean.counterterm"

    network: Network

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return self.network.init(key, x, log_snr)

    def prepare(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> tuple[Data, Any]:
        return x, prepare_once(self.network, params, x, context)

    def at(self, params: Params, prepared: tuple[Data, Any], log_snr: LogSNR) -> Data:
        x, prepared_by_network = prepared
        y = apply_prepared(self.network, params, prepared_by_network, log_snr)
        return blend(x, y, log_snr)


def blend(x: Data, y: Data, log_snr: LogSNR) -> Data:
    """Returns alpha^2 x + sigma^2 y [15]."""
    # sigma^2 y vanishes as t -> 0, so that x_phi(lambda_0) is close to x: the decoder assumes the
    # levels of x. d x_phi / d lambda = sigma^2 (alpha^2 x - alpha^2 y + dy / d lambda) [153]
    # follows by jvp, through the rules of alpha_squared.
    return scale(alpha_squared(log_snr), x) + scale(sigma_squared(log_snr), y)
