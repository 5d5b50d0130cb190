import dataclasses
from collections.abc import Callable

import haiku as hk
import jax.numpy as jnp
from haiku.experimental import name_scope
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, ClassConditional, Context, Data, ImageKeys, Key, LogSNR, Params
from diffenc.registry import networks
from diffenc_plugins.ends import check_ends
from diffenc_plugins.networks import layers
from diffenc_plugins.networks.layers import Embedding, Maps, MapsOut

NAME = "network.encoder_unet"
LAST: dict[str, Callable[[Maps], Maps]] = {"tanh": jnp.tanh, "none": lambda y: y}


@networks.register("encoder_unet")
@dataclasses.dataclass(frozen=True)
class EncoderUNet(ClassConditional):
    """DiffEnc's y_phi: a U-Net that pools by 2 after each level, and starts at zero.

    Attributes:
      blocks: m; 1 is one level of one block, an even m two levels of m / 2 blocks each way.
      channels: of the first level; the second has twice as many.
      groups: of the group norms; None = the largest divisor of `channels` up to min(32, channels / 2).
        The last norm has half as many, and at m = 2 so have the middle blocks (as published).
      dropout: rate, inside the blocks.
      last: the function that the output goes through: "tanh", as published, or "none".
      classes: the number of classes of the condition; 0 = the condition is ignored.
      log_snr_max, log_snr_min: the range that the time embedding spreads over 0 .. 1000.
      remat: keep only the blocks' inputs for the gradient, and compute the rest again; saves nothing on a CPU.
      precision: of the maps; parameters, statistics, the first and the last convolution stay float32.
    """

    blocks: int = 2
    channels: int = 64
    groups: int | None = None
    dropout: float = 0.1
    last: str = "tanh"
    classes: int = 0
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    remat: bool = False
    precision: str = "float32"

    def __post_init__(self):
        if self.blocks != 1 and (not 2 <= self.blocks <= layers.MAX_BLOCKS or self.blocks % 2):
            raise UserError(
                f"{NAME}.blocks = {self.blocks}: must be 1 or an even number up to {layers.MAX_BLOCKS}"
            )
        layers.resolve_groups(NAME, self.channels, self.groups)
        layers.check_dropout(NAME, self.dropout)
        layers.check_precision(NAME, self.precision)
        layers.check_classes(NAME, self.classes)
        if self.last not in LAST:
            raise UserError(f"{NAME}.last = {self.last!r}: must be {' or '.join(LAST)}")
        check_ends(NAME, self.log_snr_max, self.log_snr_min)

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        return hk.transform(self._forward).init(key, z, log_snr, NO_CONTEXT)

    def apply(self, params: Params, z: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        return hk.transform(self._forward).apply(params, None, z, log_snr, context)

    def _forward(self, z: Maps, log_snr: LogSNR, context: Context) -> Maps:
        levels, depth = self._levels()
        unused_keys = iter(layers.split_keys(context.keys, 2 * len(levels) * depth + 1))
        check_pooling(z.shape[1:3], len(levels))
        groups = layers.resolve_groups(NAME, self.channels, self.groups)
        half_groups = max(1, groups // 2)
        embedding = layers.embed_log_snr(
            log_snr, context.condition, self.channels, self.log_snr_max, self.log_snr_min, self.classes
        )

        def blocks(h: Maps, channels: int, name: str) -> MapsOut:
            for i in range(depth):
                with name_scope(f"{name}_{i}"):
                    h = self._block(h, embedding, next(unused_keys), channels, groups)
            return h

        h = layers.stem(z, self.channels, self.precision)
        skips = []
        for level, channels in enumerate(levels):
            h = blocks(h, channels, f"down_{level}")
            skips.append(h)
            h = max_pool(h)
        middle_groups = half_groups if self.blocks == 2 else groups
        h = self._middle(h, embedding, next(unused_keys), groups, middle_groups)
        for level, channels in reversed(list(enumerate(levels))):
            h = layers.unpool(h, channels, f"unpool_{level}")
            h = blocks(jnp.concatenate([h, skips.pop()], axis=-1), channels, f"up_{level}")
        return LAST[self.last](layers.head(h, z.shape[-1], half_groups))

    def _block(
        self, h: Maps, embedding: Embedding, keys: ImageKeys | None, channels: int, groups: int
    ) -> MapsOut:
        def block(h: Maps, embedding: Embedding, keys: ImageKeys | None) -> MapsOut:
            return layers.resnet_block(h, embedding, keys, channels, groups, self.dropout)

        return (hk.remat(block) if self.remat else block)(h, embedding, keys)

    def _middle(
        self, h: Maps, embedding: Embedding, keys: ImageKeys | None, groups: int, block_groups: int
    ) -> Maps:
        def middle(h: Maps, embedding: Embedding, keys: ImageKeys | None) -> Maps:
            return layers.middle_blocks(h, embedding, keys, groups, block_groups, self.dropout)

        return (hk.remat(middle) if self.remat else middle)(h, embedding, keys)

    def _levels(self) -> tuple[tuple[int, ...], int]:
        """The channels of each level, and the number of blocks in one."""
        if self.blocks == 1:
            return (self.channels,), 1
        return (self.channels, 2 * self.channels), self.blocks // 2


def check_pooling(size: tuple[int, ...], levels: int) -> None:
    """Raise UserError unless the image halves exactly `levels` times."""
    unit = 2**levels
    if any(side % unit for side in size):
        once = f"bind {NAME}.blocks = 1, which pools once; " * (
            levels > 1 and not any(side % 2 for side in size)
        )
        fit = max(unit, min(size) // unit * unit)
        raise UserError(
            f"{NAME} pools {levels} times by 2, but the image is {size[0]}x{size[1]}: its sides must be multiples of "
            f"{unit}; {once}bind a network that does not pool in its place, as @network.unet(); or prepare the images "
            f"in another size (python -m diffenc.prepare folder --size={fit})"
        )


def max_pool(h: Maps) -> Float[Array, "b half_h half_w c"]:
    """The largest of every 2x2 positions."""
    b, height, width, c = h.shape
    return h.reshape(b, height // 2, 2, width // 2, 2, c).max(axis=(2, 4))
