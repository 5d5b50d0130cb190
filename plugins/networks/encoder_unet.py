import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import NO_CONTEXT, ClassConditional, Context, Data, Key, LogSNR, Params, PreparedOnce
from diffenc.registry import networks
from diffenc_plugins.networks import layers, stacks
from diffenc_plugins.networks.layers import Maps, MapsOut
from diffenc_plugins.networks.pieces import Pieces, make_pieces
from diffenc_plugins.networks.stacks import Blocks, BlockShape, Stage
from diffenc_plugins.schedule_ends import check_ends

NAME = "network.encoder_unet"
LAST: dict[str, Callable[[Maps], Maps]] = {"tanh": jnp.tanh, "none": lambda y: y}


class PreparedMaps(NamedTuple):
    """The intermediate results that do not depend on the noise level.

    Attributes:
      stem: the maps that enter the first block.
      begun: the output of `stacks.begin_block` on them.
      context: the context of the images.
    """

    stem: Maps
    begun: Maps
    context: Context


def halve(groups: int) -> int:
    """Returns the number of groups of the last norm."""
    return max(1, groups // 2)


def resolve_groups(channels: int, groups: int | None) -> int:
    """Returns `groups`, or the default if None.

    Raises:
      UserError: it, or half of it, does not divide `channels`.
    """
    found = layers.resolve_groups(NAME, channels, groups)
    if groups is None:
        found = max(each for each in layers.possible_groups(channels) if channels % halve(each) == 0)
    if channels % halve(found):
        raise UserError(
            f"{NAME}.groups = {found}: the last norm has {halve(found)} groups, which does not divide {NAME}.channels = {channels}"
        )
    return found


@networks.register("encoder_unet")
@dataclasses.dataclass(frozen=True)
class EncoderUNet(PreparedOnce, ClassConditional):
    """DiffEnc's y_phi: a U-Net that pools by 2 after each level, and starts at zero.

    Attributes:
      blocks: m; 1 is one level of one block, an even m two levels of m / 2 blocks each way.
      channels: of the first level; the second has twice as many.
      groups: of the group norms. The last norm has half as many, and at m = 2 so have the middle blocks (as published), which
        has to divide `channels` too. None = the largest divisor up to min(32, channels / 2) of which this holds.
      dropout: rate, inside the blocks.
      last: the function that the output goes through: "tanh", as published, or "none".
      classes: the number of classes of the condition; 0 = the condition is ignored.
      log_snr_max, log_snr_min: the range that the time embedding maps to 0 .. 1000.
      scan: blocks of one shape that follow each other run in a loop, instead of all written out; None = except on a CPU.
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
    scan: bool | None = None
    remat: bool = False
    precision: str = "float32"

    def __post_init__(self):
        if self.blocks != 1 and (not 2 <= self.blocks <= layers.MAX_BLOCKS or self.blocks % 2):
            raise UserError(
                f"{NAME}.blocks = {self.blocks}: must be 1 or an even number up to {layers.MAX_BLOCKS}"
            )
        resolve_groups(self.channels, self.groups)
        layers.check_dropout(NAME, self.dropout)
        layers.check_precision(NAME, self.precision)
        layers.check_classes(NAME, self.classes)
        if self.last not in LAST:
            raise UserError(f"{NAME}.last = {self.last!r}: must be {' or '.join(LAST)}")
        check_ends(NAME, self.log_snr_max, self.log_snr_min)

    def init(self, key: Key, z: Data, log_snr: LogSNR) -> Params:
        levels = self._levels()
        check_pooling(z.shape[1:3], len(levels))
        # embed, stem, attention, head, blocks, and one for each level's unpooling.
        pieces, keys = self._pieces(z.shape[-1]), jax.random.split(key, 5 + len(levels))
        # 1x1 maps: shapes of parameters depend on channels alone, and
        # initialising on whole images would cost a pass over them.
        first, deepest = (jnp.zeros((1, 1, 1, channels)) for channels in (levels[0], levels[-1]))
        params = {
            **pieces.embed.init(keys[0], log_snr, None),
            **pieces.stem.init(keys[1], z),
            **pieces.attention.init(keys[2], deepest),
            **pieces.head.init(keys[3], first),
            **stacks.init_stacks(keys[4], self._stages(), 4 * self.channels),
        }
        for level, key in enumerate(keys[5:]):
            params |= self._unpool(level).init(key, deepest)  # both levels unpool maps of the deepest's width
        return params

    def prepare(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> PreparedMaps:
        """Returns the computation shared by all noise levels: the stem, and the first convolution of the first block."""
        check_pooling(x.shape[1:3], len(self._levels()))
        h = self._pieces(x.shape[-1]).stem.apply(params, None, x)
        first = stacks.only_block(stacks.split_stages(params, None, self._stages())["down_0_0"])
        # The embedding of lambda enters a block after its first
        # convolution: up to there all noise levels share the work.
        begun = stacks.begin_block(first, h, self.channels, self._groups)
        return PreparedMaps(h, begun, context)

    def at(self, params: Params, prepared: PreparedMaps, log_snr: LogSNR) -> Data:
        h, begun, context = prepared
        levels, image_channels = self._levels(), len(params["conv_out"]["b"])
        pieces = self._pieces(image_channels)
        stages = stacks.split_stages(params, context.keys, self._stages())
        run_turns = stacks.choose_turns(self.scan)
        saving = jax.checkpoint if self.remat else lambda function: function
        # As published, so that released weights compute the published function.
        middle_groups = halve(self._groups) if self.blocks == 2 else self._groups

        def apply_block(block: Blocks, h: Maps, channels: int, groups: int) -> MapsOut:
            return stacks.apply_block(block, h, embedding, channels, groups, self.dropout)

        @saving
        def end_first(block: Blocks, begun: Maps, h: Maps) -> Maps:
            return stacks.end_block(block, begun, h, embedding, self.channels, self._groups, self.dropout)

        def turn_at(level: int) -> stacks.Turn:
            def turn(h: Maps, block: Blocks, _: None) -> tuple[MapsOut, None]:
                return apply_block(block, h, levels[level], self._groups), None

            return saving(turn)

        # The first block of a level has its own shape (its input has another number of channels), so it is no
        # turn of the loop over the others, which are alike.
        def apply_first(h: Maps, way: str, level: int) -> MapsOut:
            return turn_at(level)(h, stacks.only_block(stages[f"{way}_{level}_0"]), None)[0]

        def apply_others(h: Maps, way: str, level: int) -> Maps:
            others = stages.get(f"{way}_{level}")
            return h if others is None else run_turns(turn_at(level), h, others)[0]

        @saving
        def middle(h: Maps, first: Blocks, second: Blocks) -> Maps:
            h = apply_block(first, h, levels[-1], middle_groups)
            return apply_block(second, pieces.attention.apply(params, None, h), levels[-1], middle_groups)

        embedding = pieces.embed.apply(params, None, log_snr, context.condition)
        # Down: blocks, then pooling; the output of each level is kept for the way up.
        skips = []
        for level in range(len(levels)):
            if level == 0:
                h = end_first(stacks.only_block(stages["down_0_0"]), begun, h)
            else:
                h = apply_first(max_pool(h), "down", level)
            h = apply_others(h, "down", level)
            skips.append(h)
        # Middle, at the lowest resolution; its attention is over all positions there.
        first, second = stacks.list_blocks(stages["middle"])
        h = middle(max_pool(h), first, second)
        # Up: unpooling, then blocks on the maps and the skip of the same size side by side.
        for level in reversed(range(len(levels))):
            h = self._unpool(level).apply(params, None, h)
            h = apply_first(jnp.concatenate([h, skips.pop()], axis=-1), "up", level)
            h = apply_others(h, "up", level)
        # The head starts at zero and tanh(0) = 0: y_phi = 0 at
        # initialisation, so that the encoder starts as alpha^2 x [15].
        return LAST[self.last](pieces.head.apply(params, None, h))

    def _stages(self) -> list[Stage]:
        """Returns all blocks in the order of computation."""
        levels = range(len(self._levels()))
        down = [stage for level in levels for stage in self._level_stages("down", level)]
        up = [stage for level in reversed(levels) for stage in self._level_stages("up", level)]
        deepest = self._levels()[-1]
        return [*down, Stage("middle", BlockShape(deepest, deepest), 2), *up]

    def _level_stages(self, way: str, level: int) -> list[Stage]:
        """Returns the first block of a level, which may change the number of channels, and the others."""
        channels, others = self._levels()[level], max(1, self.blocks // 2) - 1
        # Up: unpooled maps and the skip. Down: the channels of the
        # level above; for the first level, the channels of the stem.
        channels_in = 2 * channels if way == "up" else (self.channels, *self._levels())[level]
        first = Stage(f"{way}_{level}_0", BlockShape(channels_in, channels), 1)
        return [first, *([Stage(f"{way}_{level}", BlockShape(channels, channels), others)] if others else [])]

    def _pieces(self, image_channels: int) -> Pieces:
        return make_pieces(
            channels=self.channels,
            image_channels=image_channels,
            groups=self._groups,
            head_groups=halve(self._groups),
            classes=self.classes,
            log_snr_range=(self.log_snr_min, self.log_snr_max),
            precision=self.precision,
        )

    @property
    def _groups(self) -> int:
        return resolve_groups(self.channels, self.groups)

    def _unpool(self, level: int) -> hk.Transformed:
        return hk.transform(lambda h: layers.unpool(h, self._levels()[level], f"unpool_{level}"))

    def _levels(self) -> tuple[int, ...]:
        """The channels of each level."""
        return (self.channels,) if self.blocks == 1 else (self.channels, 2 * self.channels)


def check_pooling(size: tuple[int, ...], levels: int) -> None:
    """Raises UserError unless both sides of the image halve exactly `levels` times."""
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
    """Applies 2x2 max pooling of stride 2."""
    b, height, width, c = h.shape
    # Windows do not overlap, so a reshape and a maximum take the place of reduce_window.
    return h.reshape(b, height // 2, 2, width // 2, 2, c).max(axis=(2, 4))
