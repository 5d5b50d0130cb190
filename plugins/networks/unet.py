import dataclasses

import haiku as hk
import jax.numpy as jnp

from diffenc.errors import UserError
from diffenc.interfaces import Condition, Data, Key, LogSNR, Params
from diffenc.registry import networks
from diffenc_plugins.ends import check_ends
from diffenc_plugins.networks import layers
from diffenc_plugins.networks.layers import Maps, MapsOut


@networks.register("unet")
@dataclasses.dataclass(frozen=True)
class UNet:
    """VDM's score network: a U-Net without down-sampling, whose output adds z.

    Attributes:
      blocks: n; n blocks down, two in the middle, n + 1 up.
      channels: C, at every depth.
      groups: of every group norm; None = the largest divisor of C up to min(32, C / 2).
      dropout: rate, inside the blocks.
      fourier_powers: k; sin and cos of 2 pi 2^k z are appended to z.
      log_snr_max, log_snr_min: the range that the time embedding spreads over 0 .. 1000.
    """

    blocks: int = 8
    channels: int = 128
    groups: int | None = None
    dropout: float = 0.1
    fourier_powers: tuple[int, ...] = (6, 7)
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0

    def __post_init__(self):
        if self.blocks < 1:
            raise UserError(f"network.unet.blocks = {self.blocks}: must be at least 1")
        layers.resolve_groups("network.unet", self.channels, self.groups)
        layers.check_dropout("network.unet", self.dropout)
        check_ends("network.unet", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key, z: Data, log_snr: LogSNR, *, condition: Condition | None = None) -> Params:
        return hk.transform(self._forward).init(key, z, log_snr, condition)

    def apply(
        self,
        params: Params,
        z: Data,
        log_snr: LogSNR,
        *,
        condition: Condition | None = None,
        key: Key | None = None,
    ) -> Data:
        return hk.transform(self._forward).apply(params, key, z, log_snr, condition)

    def _forward(self, z: Maps, log_snr: LogSNR, condition: Condition | None) -> Maps:
        groups = layers.resolve_groups("network.unet", self.channels, self.groups)
        embedding = layers.embed_log_snr(
            log_snr, condition, self.channels, self.log_snr_max, self.log_snr_min
        )

        def block(h: Maps, name: str) -> MapsOut:
            return layers.resnet_block(h, embedding, self.channels, groups, self.dropout, name)

        h = layers.conv3x3(fourier_features(z, self.fourier_powers), self.channels, "conv_in")
        skips = [h]
        for i in range(self.blocks):
            h = block(h, f"down_{i}")
            skips.append(h)
        h = layers.middle(h, embedding, groups, groups, self.dropout)
        for i in range(self.blocks + 1):
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), f"up_{i}")
        return z + layers.head(h, z.shape[-1], groups)


def fourier_features(z: Maps, powers: tuple[int, ...]) -> MapsOut:
    """z with sin and cos of 2 pi 2^k z appended; they amplify z by up to 2 pi 2^k."""
    frequencies = 2 * jnp.pi * 2.0 ** jnp.asarray(powers, z.dtype)
    angles = jnp.multiply.outer(z, frequencies).reshape(*z.shape[:-1], z.shape[-1] * len(powers))
    return jnp.concatenate([z, jnp.sin(angles), jnp.cos(angles)], axis=-1)
