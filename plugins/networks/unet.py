import dataclasses

import jax
import jax.numpy as jnp

from diffenc.errors import UserError
from diffenc.interfaces import (
    NO_CONTEXT,
    ClassConditional,
    Context,
    Data,
    Key,
    LogSNR,
    Params,
)
from diffenc.registry import networks
from diffenc_plugins.networks import layers, stacks
from diffenc_plugins.networks.layers import Maps, MapsOut
from diffenc_plugins.networks.pieces import Pieces, make_pieces
from diffenc_plugins.networks.stacks import Blocks, BlockShape, Stage
from diffenc_plugins.schedule_ends import check_ends

MOST_POWER = 30  # 2^p pi z has no digits left in float32 beyond it


@networks.register("unet")
@dataclasses.dataclass(frozen=True)
class UNet(ClassConditional):
    """VDM's score network: a U-Net without down-sampling, with z added to the output.

    `scan`, `remat` and `precision` choose an implementation: parameters and dropout masks are the same for all.

    Attributes:
      blocks: n; n blocks down, two in the middle, n + 1 up.
      channels: C, at every depth.
      groups: of every group norm; None = the largest divisor of C up to min(32, C / 2).
      dropout: rate, inside the blocks.
      fourier_powers: k; sin and cos of 2 pi 2^k z are appended to z.
      classes: the number of classes of the condition; 0 = the condition is ignored.
      log_snr_max, log_snr_min: the range that the time embedding maps to 0 .. 1000.
      scan: one compiled block run in a loop, instead of all written out; None = except on a CPU.
      remat: keep only the blocks' inputs for the gradient, and compute the rest again: less memory for about a
        sixth more arithmetic. Written out on a CPU it saves nothing, since XLA merges the two there.
      precision: of the maps; parameters, statistics, the first and the last convolution stay float32.
    """

    blocks: int = 8
    channels: int = 128
    groups: int | None = None
    dropout: float = 0.1
    fourier_powers: tuple[int, ...] = (6, 7)
    classes: int = 0
    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    scan: bool | None = None
    remat: bool = False
    precision: str = "float32"

    def __post_init__(self):
        if not 1 <= self.blocks <= layers.MAX_BLOCKS:
            raise UserError(f"network.unet.blocks = {self.blocks}: must be from 1 to {layers.MAX_BLOCKS}")
        if any(abs(power) > MOST_POWER for power in self.fourier_powers):
            raise UserError(
                f"network.unet.fourier_powers = {self.fourier_powers}: each must be from {-MOST_POWER} to {MOST_POWER}"
            )
        layers.resolve_groups("network.unet", self.channels, self.groups)
        layers.check_dropout("network.unet", self.dropout)
        layers.check_precision("network.unet", self.precision)
        layers.check_classes("network.unet", self.classes)
        check_ends("network.unet", self.log_snr_max, self.log_snr_min)

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        pieces, keys = self._pieces(z.shape[-1]), jax.random.split(key, 5)
        # Only shapes matter; blocks, attention and head see maps of
        # `channels` at the size of z, as nothing is down-sampled.
        h = jnp.zeros((*z.shape[:-1], self.channels))
        return {
            **pieces.embed.init(keys[0], log_snr, None),
            **pieces.stem.init(keys[1], fourier_features(z, self.fourier_powers)),
            **pieces.attention.init(keys[2], h),
            **pieces.head.init(keys[3], h),
            **stacks.init_stacks(keys[4], self._stages(), 4 * self.channels),
        }

    def apply(self, params: Params, z: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        pieces = self._pieces(z.shape[-1])
        stages = stacks.split_stages(params, context.keys, self._stages())
        run_turns = stacks.choose_turns(self.scan)
        saving = jax.checkpoint if self.remat else lambda function: function

        def apply_block(block: Blocks, h: Maps) -> MapsOut:
            return stacks.apply_block(block, h, embedding, self.channels, self._groups, self.dropout)

        @saving
        def down(h: Maps, block: Blocks, _: None) -> tuple[Maps, Maps]:
            # The skip is the block's input: n skips from n
            # blocks, and the last output (`deepest`) is one more.
            return apply_block(block, h), h

        @saving
        def middle(h: Maps, first: Blocks, second: Blocks) -> Maps:
            return apply_block(second, pieces.attention.apply(params, None, apply_block(first, h)))

        @saving
        def up(h: Maps, block: Blocks, skip: Maps) -> tuple[Maps, None]:
            return apply_block(block, jnp.concatenate([h, skip], axis=-1)), None

        embedding = pieces.embed.apply(params, None, log_snr, context.condition)
        h = pieces.stem.apply(params, None, fourier_features(z, self.fourier_powers))
        deepest, skips = run_turns(down, h, stages["down"])
        first, second = stacks.list_blocks(stages["middle"])
        h = middle(deepest, first, second)
        # n + 1 blocks up for n down, as the authors' code has it (App.
        # Q states n): this one takes the last output of the way down.
        h, _ = up(h, stacks.only_block(stages["up_0"]), deepest)
        # The other n take the inputs of the blocks down, the last first.
        h, _ = run_turns(up, h, stages["up"], skips, reverse=True)
        # The head starts at zero: at first the output is z. Under
        # `saving`, its float32 maps are not kept for the gradient.
        return z + saving(pieces.head.apply)(params, None, h)

    def _stages(self) -> list[Stage]:
        # Two stacks: "down" and "middle" share one; the blocks on the way up,
        # with the skip beside their input, share the other.
        same, wide = BlockShape(self.channels, self.channels), BlockShape(2 * self.channels, self.channels)
        return [
            Stage("down", same, self.blocks),
            Stage("middle", same, 2),
            Stage("up_0", wide, 1),
            Stage("up", wide, self.blocks),
        ]

    def _pieces(self, image_channels: int) -> Pieces:
        return make_pieces(
            channels=self.channels,
            image_channels=image_channels,
            groups=self._groups,
            head_groups=self._groups,
            classes=self.classes,
            log_snr_range=(self.log_snr_min, self.log_snr_max),
            precision=self.precision,
        )

    @property
    def _groups(self) -> int:
        return layers.resolve_groups("network.unet", self.channels, self.groups)


def fourier_features(z: Maps, powers: tuple[int, ...]) -> MapsOut:
    """Returns z with sin and cos of 2 pi 2^k z appended, which amplify z by up to 2 pi 2^k."""
    # High frequencies resolve single pixel levels, which the
    # bits/dim of low noise depends on (VDM, arXiv:2107.00630).
    frequencies = 2 * jnp.pi * 2.0 ** jnp.asarray(powers, z.dtype)
    angles = jnp.multiply.outer(z, frequencies).reshape(*z.shape[:-1], z.shape[-1] * len(powers))
    return jnp.concatenate([z, jnp.sin(angles), jnp.cos(angles)], axis=-1)
