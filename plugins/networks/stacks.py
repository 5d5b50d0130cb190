"""Residual blocks of one shape as one tree of parameters: each leaf is [n, ...], however the blocks are computed.

Few large arrays cost less than many small ones wherever parameters are handled one by one: arguments of a step, the
optimizer, the average, checkpoints. A network lists its blocks as *stages*, in the order of computation; blocks
with the same numbers of channels share a stack, in that order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from diffenc.core.unroll import stored, unrolls
from diffenc.interfaces import ImageKeys, Params
from diffenc.interfaces import Key as InitKey
from diffenc_plugins.networks import layers
from diffenc_plugins.networks.layers import Embedding, Maps, MapsOut

T = TypeVar("T")
BlockKeys = Key[Array, "*n b"]


class BlockShape(NamedTuple):
    """The channels of the maps that enter a block, and of those that leave it."""

    channels_in: int
    channels_out: int

    @property
    def stack(self) -> str:
        """The name of all blocks of this shape among the parameters."""
        return f"blocks_{self.channels_in}_{self.channels_out}"


class Stage(NamedTuple):
    """`num_blocks` blocks of one shape that follow each other."""

    name: str
    shape: BlockShape
    num_blocks: int


class Blocks(NamedTuple):
    """One block, or several with a leading axis [n, ...] in every leaf.

    Attributes:
      params: {LAYER: {NAME: array}}.
      keys: of the images' dropout masks, or None.
    """

    params: Params
    keys: BlockKeys | None


Turn = Callable[[Maps, Blocks, Any], tuple[MapsOut, Any]]


def init_stacks(key: InitKey, stages: Sequence[Stage], embedding_channels: int) -> Params:
    """Returns the parameters of all stages, stacked by shape: {"blocks_IN_OUT/LAYER": {NAME: [n, ...]}}."""
    # A key per block in the order of computation, independent of the stack it belongs to.
    keys = jax.random.split(key, sum(stage.num_blocks for stage in stages))
    shapes = [stage.shape for stage in stages for _ in range(stage.num_blocks)]
    params = {}
    for shape in dict.fromkeys(shapes):
        own_keys = keys[jnp.asarray([i for i, other in enumerate(shapes) if other == shape])]
        # One traced initialisation for all blocks of a shape, in place of n.
        stacked = jax.vmap(lambda key, shape=shape: _init_block(key, shape, embedding_channels))(own_keys)
        params |= {f"{shape.stack}/{layer}": leaves for layer, leaves in stacked.items()}
    return params


def split_stages(params: Params, keys: ImageKeys | None, stages: Sequence[Stage]) -> dict[str, Blocks]:
    """Returns each stage's blocks by the stage's name.

    The gradient of a stack is one concatenation of those of its stages.

    Args:
      params: the network's parameters.
      keys: [B], to be split into keys for each block; None = no dropout.
    """
    # Keys are split over the blocks of all stages in their order, before blocks are sorted into stacks: a
    # block's mask does not depend on which others have its shape.
    counts = [stage.num_blocks for stage in stages]
    keys_of_stage = _split_keys(keys, counts)
    found = {}
    for shape in dict.fromkeys(stage.shape for stage in stages):
        prefix = f"{shape.stack}/"
        stack = {
            name.removeprefix(prefix): leaves for name, leaves in params.items() if name.startswith(prefix)
        }
        sharing = [i for i, stage in enumerate(stages) if stage.shape == shape]
        # All stages of a stack are split off in one operation, and not by one slice each: the transpose of a
        # slice pads to the whole stack, so that their gradients would cost a full-size array per stage.
        for i, part in zip(sharing, split_leaves(stack, [counts[i] for i in sharing]), strict=True):
            found[stages[i].name] = Blocks(part, keys_of_stage[i])
    return found


def apply_block(
    block: Blocks, h: Maps, embedding: Embedding, channels: int, groups: int, dropout: float
) -> MapsOut:
    """Applies one residual block with its own parameters and keys."""
    return _block(channels, groups, dropout).apply(block.params, None, h, embedding, block.keys)


def begin_block(block: Blocks, h: Maps, channels: int, groups: int) -> MapsOut:
    """Applies the part of a block that does not depend on the noise level."""
    begin = hk.transform(lambda h: layers.begin_resnet_block(h, channels, groups))
    return begin.apply(block.params, None, h)


def end_block(
    block: Blocks, begun: MapsOut, h: Maps, embedding: Embedding, channels: int, groups: int, dropout: float
) -> MapsOut:
    """Applies the rest of a block to `begun`, the output of `begin_block` on `h`."""

    def end(begun: MapsOut, h: Maps) -> MapsOut:
        return layers.end_resnet_block(begun, h, embedding, block.keys, channels, groups, dropout)

    return hk.transform(end).apply(block.params, None, begun, h)


def list_blocks(blocks: Blocks) -> list[Blocks]:
    """Returns stacked blocks one by one."""
    count = len(jax.tree.leaves(blocks.params)[0])
    parts = split_leaves(blocks.params, [1] * count)
    keys = [None] * count if blocks.keys is None else list(blocks.keys)
    return [
        Blocks(jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), part), own)
        for part, own in zip(parts, keys, strict=True)
    ]


def only_block(blocks: Blocks) -> Blocks:
    """Returns the only block of a stage of one."""
    (block,) = list_blocks(blocks)
    return block


def loop_turns(
    turn: Turn, h: Maps, blocks: Blocks, xs: Any = None, *, reverse: bool = False
) -> tuple[MapsOut, Any]:
    """Runs `turn` over stacked blocks, compiled once.

    Args:
      turn: (h, block, x) -> (h, y).
      xs: the ys of an earlier loop, or None.
      reverse: the first block takes the last x.

    Returns:
      h after the last block, and the ys in the order of the xs.
    """
    if reverse:  # the blocks are turned around, since they are smaller than the maps among the xs
        blocks = jax.tree.map(lambda leaf: leaf[::-1], blocks)
    # reverse walks the xs backwards, for skips are used last in, first out.
    return jax.lax.scan(lambda h, at: turn(h, *at), h, (blocks, xs), reverse=reverse)


def write_out_turns(
    turn: Turn, h: Maps, blocks: Blocks, xs: Any = None, *, reverse: bool = False
) -> tuple[MapsOut, Any]:
    """Runs `turn` over stacked blocks, compiled block by block. Takes the arguments of `loop_turns`; the ys are a list."""
    ys, listed = [], list_blocks(blocks)
    xs = [None] * len(listed) if xs is None else xs[::-1] if reverse else xs
    for block, x in zip(listed, xs, strict=True):
        # Residual sums would otherwise be fused into every reader
        # and added up anew (`diffenc.core.unroll.stored`).
        h, y = turn(stored(h), block, x)
        ys.append(y)
    return h, ys[::-1] if reverse else ys


def choose_turns(scan: bool | None) -> Callable[..., tuple[MapsOut, Any]]:
    """Returns `loop_turns` or, unless `scan`, `write_out_turns`; None = written out on a CPU."""
    return write_out_turns if (unrolls() if scan is None else not scan) else loop_turns


def split_leaves(tree: T, counts: Sequence[int]) -> list[T]:
    """Splits leaves [n, ...] into consecutive parts of `counts` items; the gradient is one concatenation."""
    # jax.lax.split has several results and one transpose, a concatenation.
    leaves, structure = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, counts) for leaf in leaves]
    return [jax.tree.unflatten(structure, part) for part in zip(*parts, strict=True)]


def _split_keys(keys: ImageKeys | None, counts: Sequence[int]) -> list[BlockKeys | None]:
    """Returns keys [count, B] for each of `counts`, or None for each."""
    if keys is None:
        return [None] * len(counts)
    # [B] keys to [blocks, B]: a key for each image and block, so that no two blocks share a mask.
    split = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, sum(counts)))(keys), 1, 0)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [split[start : start + count] for start, count in zip(starts, counts, strict=True)]


def _init_block(key: InitKey, shape: BlockShape, embedding_channels: int) -> Params:
    h, embedding = jnp.zeros((1, 1, 1, shape.channels_in)), jnp.zeros((1, embedding_channels))
    return _block(shape.channels_out, 1, 0.0).init(key, h, embedding, None)  # groups do not change the shapes


def _block(channels: int, groups: int, dropout: float) -> hk.Transformed:
    def block(h: Maps, embedding: Embedding, keys: ImageKeys | None) -> MapsOut:
        return layers.resnet_block(h, embedding, keys, channels, groups, dropout)

    return hk.transform(block)
