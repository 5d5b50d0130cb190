import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from diffenc.core.unroll import stored, unrolls
from diffenc.errors import UserError
from diffenc.interfaces import (
    NO_CONTEXT,
    ClassConditional,
    Condition,
    Context,
    Data,
    ImageKeys,
    Key,
    LogSNR,
    Params,
)
from diffenc.registry import networks
from diffenc_plugins.ends import check_ends
from diffenc_plugins.networks import layers
from diffenc_plugins.networks.layers import Embedding, Maps, MapsOut

Block = tuple[Params, ImageKeys | None]
Body = Callable[[Maps, Block, Any], tuple[Maps, Any]]


class Pieces(NamedTuple):
    """What the network is put together from; `block` serves all blocks down, and all up."""

    stem: hk.Transformed
    block: hk.Transformed
    middle: hk.Transformed
    head: hk.Transformed


MOST_POWER = 30  # 2^p pi z has no digits left in float32 beyond it


@networks.register("unet")
@dataclasses.dataclass(frozen=True)
class UNet(ClassConditional):
    """VDM's score network: a U-Net without down-sampling, whose output adds z.

    `scan`, `remat` and `precision` say how it is computed, not what: they share parameters and dropout masks.

    Attributes:
      blocks: n; n blocks down, two in the middle, n + 1 up.
      channels: C, at every depth.
      groups: of every group norm; None = the largest divisor of C up to min(32, C / 2).
      dropout: rate, inside the blocks.
      fourier_powers: k; sin and cos of 2 pi 2^k z are appended to z.
      classes: the number of classes of the condition; 0 = the condition is ignored.
      log_snr_max, log_snr_min: the range that the time embedding spreads over 0 .. 1000.
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
        pieces, keys = self._pieces(z.shape[-1]), jax.random.split(key, 2 * self.blocks + 4)
        h, embedding = jnp.zeros((*z.shape[:-1], self.channels)), jnp.zeros((len(z), 4 * self.channels))
        wide, (stem, middle, head, *blocks) = jnp.concatenate([h, h], axis=-1), keys
        params = {
            **pieces.stem.init(stem, z, log_snr, None),
            **pieces.middle.init(middle, h, embedding, None),
            **pieces.head.init(head, h),
        }
        names = [(f"down_{i}", h) for i in range(self.blocks)] + [
            (f"up_{i}", wide) for i in range(self.blocks + 1)
        ]
        for key, (name, h) in zip(blocks, names, strict=True):
            params |= add_prefix(name, pieces.block.init(key, h, embedding, None))
        return params

    def apply(self, params: Params, z: Data, log_snr: LogSNR, context: Context = NO_CONTEXT) -> Data:
        n, pieces = self.blocks, self._pieces(z.shape[-1])
        loop = written_out if (unrolls() if self.scan is None else not self.scan) else looped
        saving = jax.checkpoint if self.remat else lambda function: function
        block_keys = layers.split_keys(context.keys, 2 * n + 2)

        def blocks(way: str, block_keys: list[ImageKeys | None]) -> list[Block]:
            return [(without_prefix(f"{way}_{i}", params), keys) for i, keys in enumerate(block_keys)]

        @saving
        def down(h: Maps, block: Block, _: None) -> tuple[Maps, Maps]:
            own, keys = block
            return pieces.block.apply(own, None, h, embedding, keys), h

        @saving
        def up(h: Maps, block: Block, skip: Maps) -> tuple[Maps, None]:
            own, keys = block
            return pieces.block.apply(own, None, jnp.concatenate([h, skip], axis=-1), embedding, keys), None

        h, embedding = pieces.stem.apply(params, None, z, log_snr, context.condition)
        deepest, skips = loop(down, h, blocks("down", block_keys[:n]), None)
        h = saving(pieces.middle.apply)(params, None, deepest, embedding, block_keys[n])
        first, *others = blocks("up", block_keys[n + 1 :])
        h, _ = up(h, first, deepest)
        h, _ = loop(up, h, others[::-1], skips, reverse=True)
        return z + saving(pieces.head.apply)(params, None, h)

    def _pieces(self, image_channels: int) -> Pieces:
        groups = layers.resolve_groups("network.unet", self.channels, self.groups)

        def stem(z: Maps, log_snr: LogSNR, condition: Condition | None) -> tuple[MapsOut, Embedding]:
            embedding = layers.embed_log_snr(
                log_snr, condition, self.channels, self.log_snr_max, self.log_snr_min, self.classes
            )
            features = fourier_features(z, self.fourier_powers)
            return layers.stem(features, self.channels, self.precision), embedding

        def block(h: Maps, embedding: Embedding, keys: ImageKeys | None) -> MapsOut:
            return layers.resnet_block(h, embedding, keys, self.channels, groups, self.dropout)

        def middle(h: Maps, embedding: Embedding, keys: ImageKeys | None) -> Maps:
            return layers.middle_blocks(h, embedding, keys, groups, groups, self.dropout)

        def head(h: Maps) -> MapsOut:
            return layers.head(h, image_channels, groups)

        return Pieces(*map(hk.transform, (stem, block, middle, head)))


def looped(body: Body, h: Maps, blocks: list[Block], xs: Any, reverse: bool = False) -> tuple[Maps, Any]:
    """`body` compiled once, and run over the blocks in a loop.

    Args:
      body: (h, block, x) -> (h, y).
      xs: what an earlier loop returned as its ys, or None.
      reverse: begin with the last block and x.

    Returns:
      h after the last block, and the ys.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return jax.lax.scan(lambda h, at: body(h, *at), h, (stacked, xs), reverse=reverse)


def written_out(body: Body, h: Maps, blocks: list[Block], xs: Any, reverse: bool = False) -> tuple[Maps, Any]:
    """The same, compiled block by block."""
    ys, steps = [], list(zip(blocks, xs or [None] * len(blocks), strict=True))
    for block, x in reversed(steps) if reverse else steps:
        h, y = body(stored(h), block, x)
        ys.append(y)
    return h, ys[::-1] if reverse else ys


def add_prefix(name: str, params: Params) -> Params:
    return {f"{name}/{module}": leaves for module, leaves in params.items()}


def without_prefix(name: str, params: Params) -> Params:
    """The modules called NAME/..., without it."""
    start = f"{name}/"
    return {module.removeprefix(start): params[module] for module in params if module.startswith(start)}


def fourier_features(z: Maps, powers: tuple[int, ...]) -> MapsOut:
    """z with sin and cos of 2 pi 2^k z appended; they amplify z by up to 2 pi 2^k."""
    frequencies = 2 * jnp.pi * 2.0 ** jnp.asarray(powers, z.dtype)
    angles = jnp.multiply.outer(z, frequencies).reshape(*z.shape[:-1], z.shape[-1] * len(powers))
    return jnp.concatenate([z, jnp.sin(angles), jnp.cos(angles)], axis=-1)
