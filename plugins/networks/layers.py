"""Layers shared by both U-Nets, to be called inside a haiku transform.

Parameters are stored in the default precision; a layer computes in the precision of its input maps.
"""

from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
from haiku.experimental import name_scope
from jaxtyping import Array, Float, Key, UInt32

from diffenc.core.unroll import on_cpu
from diffenc.errors import UserError
from diffenc.interfaces import Condition, ImageKeys, LogSNR

Maps = Float[Array, "b h w c"]
MapsOut = Float[Array, "b h w c_out"]  # the same positions, a different number of channels
Embedding = Float[Array, "b e"]
Tokens = Float[Array, "b positions c"]

LECUN_NORMAL = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
ZEROS = hk.initializers.Constant(0.0)
NHWC = ("NHWC", "HWIO", "NHWC")

MAX_BLOCKS = 10_000  # refuses absurd depths before tracing them exhausts time and memory

MAX_LOGITS = 2**20  # attention weights of a chunk of queries, of all images of a batch: 4 MB

PRECISIONS = ("float32", "bfloat16")


def possible_groups(channels: int) -> list[int]:
    """Returns the divisors of `channels` up to min(32, channels / 2), rising.

    A group has at least two channels: with one, the norm would cancel the shift by the time embedding.
    """
    limit = max(1, min(32, channels // 2))
    return [groups for groups in range(1, limit + 1) if channels % groups == 0]


def resolve_groups(name: str, channels: int, groups: int | None) -> int:
    """Returns `groups`, or the largest of `possible_groups` if None. Raises UserError if it does not divide `channels`."""
    if channels < 1:
        raise UserError(f"{name}.channels = {channels}: must be at least 1")
    if groups is None:
        return possible_groups(channels)[-1]
    if groups < 1 or channels % groups:
        raise UserError(f"{name}.groups = {groups} does not divide {name}.channels = {channels}")
    return groups


def check_dropout(name: str, dropout: float) -> None:
    """Raises UserError unless `dropout` is a probability below one."""
    if not 0 <= dropout < 1:
        raise UserError(f"{name}.dropout = {dropout}: must be in [0, 1)")


def check_precision(name: str, precision: str) -> None:
    """Raises UserError unless `precision` is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise UserError(f"{name}.precision = {precision!r}: must be {' or '.join(PRECISIONS)}")


def check_classes(name: str, classes: int) -> None:
    """Raises UserError if the number of classes is negative."""
    if classes < 0:
        raise UserError(f"{name}.classes = {classes}: must not be negative")


def get_parameter(name: str, shape: tuple[int, ...], init: hk.initializers.Initializer) -> Array:
    """Returns a parameter in the default precision, independent of the precision of the activations."""
    return hk.get_parameter(name, shape, jnp.result_type(float), init=init)


def conv3x3(h: Maps, channels: int, name: str, w_init: hk.initializers.Initializer = LECUN_NORMAL) -> MapsOut:
    """Applies a 3x3 convolution of stride 1 with bias, in the precision of `h`."""
    with name_scope(name):
        # Cast at use: the parameter stays float32, so small updates are not lost to bfloat16.
        w = get_parameter("w", (3, 3, h.shape[-1], channels), w_init).astype(h.dtype)
        b = get_parameter("b", (channels,), ZEROS)
    return add_bias(jax.lax.conv_general_dilated(h, w, (1, 1), "SAME", dimension_numbers=NHWC), b)


def unpool(h: Maps, channels: int, name: str) -> Float[Array, "b twice_h twice_w c_out"]:
    """Applies a 2x2 transposed convolution of stride 2: each position becomes 2x2, in the precision of `h`."""
    b, height, width, c = h.shape
    with name_scope(name):
        w = get_parameter("w", (2, 2, channels, c), LECUN_NORMAL).astype(h.dtype)
        bias = get_parameter("b", (channels,), ZEROS)
    # Kernel and stride agree, so no outputs overlap and one product suffices. A transposed convolution flips the kernel.
    out = jnp.einsum("bhwc,ijoc->bhiwjo", h, w[::-1, ::-1])
    return add_bias(out.reshape(b, 2 * height, 2 * width, channels), bias)


def dense(h: Array, channels: int, name: str, w_init: hk.initializers.Initializer = LECUN_NORMAL) -> Array:
    """Applies a linear layer with bias to the last axis, in the precision of `h`."""
    with name_scope(name):
        w = get_parameter("w", (h.shape[-1], channels), w_init).astype(h.dtype)
        b = get_parameter("b", (channels,), ZEROS)
    return add_bias(h @ w, b)


def add_bias(
    h: Float[Array, "*positions c"], bias: Float[Array, "#*positions c"]
) -> Float[Array, "*positions c"]:
    """Returns `h` + `bias` in the precision of `h`, rounded once.

    Adds in float32 at least: the gradient of the bias is a sum over all positions, and a bfloat16 sum stops growing
    after a few hundred terms.
    """
    return (at_least_float32(h) + jnp.broadcast_to(bias, h.shape)).astype(h.dtype)


def at_least_float32(h: Array) -> Array:
    """Returns `h` in float32, or in float64 if it already is."""
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def group_norm(h: Maps, groups: int, name: str) -> Maps:
    """Applies group norm, eps 1e-6: statistics by channel first, then one multiply-add over the maps.

    haiku's GroupNorm makes several passes over the maps; under jvp and gradient it costs more than the convolutions.
    Statistics and result are in float32 at least; the caller rounds after the activation.
    """
    return apply_group_norm(h, *norm_parameters(h.shape[-1], name), groups)


def norm_parameters(channels: int, name: str) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Returns gain and offset of a group norm."""
    with name_scope(name):
        gain = get_parameter("scale", (channels,), hk.initializers.Constant(1.0))
        return gain, get_parameter("offset", (channels,), ZEROS)


def apply_group_norm(h: Maps, gain: Float[Array, " c"], offset: Float[Array, " c"], groups: int) -> Maps:
    """Applies `group_norm` under given parameters."""
    channels = h.shape[-1]

    def group_mean(values: Float[Array, "b c"]) -> Float[Array, "b c"]:
        size = channels // groups
        return jnp.repeat(values.reshape(-1, groups, size).mean(axis=-1), size, axis=-1)

    h = at_least_float32(h)
    # Statistics are [b, c]; only this mean, the variance and the last line touch the maps.
    channel_mean = jnp.mean(h, axis=(1, 2))
    channel_variance = jnp.mean(jnp.square(h - channel_mean[:, None, None, :]), axis=(1, 2))
    mean = group_mean(channel_mean)
    # Centred moments: E[h^2] - E[h]^2 loses float32's digits where the mean is large. The variance of a group is that
    # within its channels plus that of the channels' means.
    variance = group_mean(channel_variance + jnp.square(channel_mean - mean))
    # 1e-6 as in the published networks; haiku's default is 1e-5.
    factor = gain[None] * jax.lax.rsqrt(variance + 1e-6)
    # gain (h - mean) / std + offset, with all terms per channel collected into one factor and one offset.
    return h * factor[:, None, None, :] + (offset[None] - mean * factor)[:, None, None, :]


def norm_swish(h: Maps, groups: int, name: str) -> Maps:
    """Applies group norm and swish, rounded once, to the precision of `h`.

    For the gradient a loop over blocks keeps `h` alone, in its own precision: the float32 maps in between, ten for each block,
    are computed again, which costs little beside a convolution. Written out, XLA may merge the two computations.
    """
    gain, offset = norm_parameters(h.shape[-1], name)

    # the barrier that keeps XLA from merging the two computations is of no use in a loop, and costs elsewhere
    @partial(jax.checkpoint, prevent_cse=False)
    def activate(h: Maps, gain: Float[Array, " c"], offset: Float[Array, " c"]) -> Maps:
        return jax.nn.swish(apply_group_norm(h, gain, offset, groups)).astype(h.dtype)

    return activate(h, gain, offset)


def stem(h: Maps, channels: int, precision: str) -> MapsOut:
    """Applies the first convolution; the precision of its output is that of all later layers.

    Computes in true float32 on every device: at low noise, most information lies in digits that bfloat16 lacks, and a
    TPU multiplies float32 in bfloat16 by default.
    """
    with jax.default_matmul_precision("highest"):
        h = conv3x3(h, channels, "conv_in")
    return h.astype(jnp.bfloat16) if precision == "bfloat16" else h


def apply_dropout(h: Maps, rate: float, keys: ImageKeys | None) -> Maps:
    """Applies dropout with a mask from each image's own key; returns `h` unchanged if `keys` is None.

    16 random bits decide for each entry, so that the rate is met to 2^-17; kept entries are divided by 1 - `rate`.
    """
    # At least 1: a rate close to 1 would otherwise drop every entry, and nothing would train.
    kept_of_65536 = max(1, round((1 - rate) * 65536))
    if keys is None or kept_of_65536 == 65536:
        return h
    # vmap over per-image keys: a mask depends on its image's key alone, however the batch is divided.
    kept = jax.vmap(lambda key: random_16_bits(key, h.shape[1:]))(keys) < kept_of_65536
    # In float32: bfloat16 would round 1 - rate itself, a bias common to all entries.
    scaled = (at_least_float32(h) / (1 - rate)).astype(h.dtype)
    return jnp.where(kept, scaled, jnp.zeros_like(h))


def random_16_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns uniform integers below 65,536: two from each random word, the second half of the channels from its upper bits."""
    *positions, channels = shape
    # Half the random words of `bernoulli`: on a TPU drawing a mask
    # by threefry costs more than a bfloat16 convolution of its size.
    words = jax.random.bits(key, (*positions, (channels + 1) // 2), jnp.uint32)
    return jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :channels]


def embed_log_snr(
    log_snr: LogSNR,
    condition: Condition | None,
    channels: int,
    log_snr_max: float,
    log_snr_min: float,
    classes: int = 0,
) -> Embedding:
    """Returns the embedding [B, 4 channels] of the noise level, and of the class if `classes` > 0.

    An MLP of sinusoids of the rescaled log_snr. The published network appends the label as a number to the sinusoids and
    passes 0 there; this one keeps that input at 0, since a number would order the classes. Class embeddings are
    rows of a table instead, added before the last activation.
    """
    # the published network takes times in [0, 1000]
    time = 1000 * (log_snr_max - log_snr) / (log_snr_max - log_snr_min)
    label = jnp.zeros_like(time)
    h = jnp.concatenate([sinusoidal_embedding(time, channels), label[:, None]], axis=-1)
    h = jax.nn.swish(dense(h, 4 * channels, "embed_0"))
    h = dense(h, 4 * channels, "embed_1")
    return jax.nn.swish(h + class_embedding(condition, classes, h) if classes else h)


def class_embedding(condition: Condition | None, classes: int, like: Embedding) -> Embedding:
    """Returns a row of a learned table for each image, shaped like `like`; row 0 stands for no class. Initially zero."""
    with name_scope("classes"):
        table = get_parameter("table", (classes + 1, like.shape[-1]), ZEROS)
    # Row 0 also for a batch without conditions, so that the
    # parameters of the table are the same tree either way.
    return table[jnp.zeros(len(like), int) if condition is None else condition].astype(like.dtype)


def sinusoidal_embedding(time: Float[Array, " b"], channels: int) -> Embedding:
    """Returns [sin, cos] of `time` at frequencies from 1 down to 1e-4; an odd last channel is zero."""
    half = channels // 2
    # max keeps a single frequency from dividing 0 by 0.
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / max(half - 1, 1))
    angles = jnp.multiply.outer(time, frequencies)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(waves, ((0, 0), (0, channels % 2)))


def resnet_block(
    h: Maps, embedding: Embedding, keys: ImageKeys | None, channels: int, groups: int, dropout: float
) -> MapsOut:
    """Applies norm, swish, conv, + embedding, norm, swish, dropout, conv, + shortcut. Initially the shortcut alone."""
    return end_resnet_block(
        begin_resnet_block(h, channels, groups), h, embedding, keys, channels, groups, dropout
    )


def begin_resnet_block(h: Maps, channels: int, groups: int) -> MapsOut:
    """Applies the part of `resnet_block` that the embedding does not enter: norm, swish, conv."""
    return conv3x3(norm_swish(h, groups, "norm_0"), channels, "conv_0")


def end_resnet_block(
    begun: MapsOut,
    h: Maps,
    embedding: Embedding,
    keys: ImageKeys | None,
    channels: int,
    groups: int,
    dropout: float,
) -> MapsOut:
    """Applies the rest of `resnet_block` to `begun`, the output of `begin_resnet_block` on `h`."""
    # A 1x1 convolution, only where channels change; elsewhere the residual path is the identity.
    shortcut = h if h.shape[-1] == channels else dense(h, channels, "shortcut")
    with name_scope("embedding"):
        # [b, channels], no bias: conv_0 has one. Starts at
        # zero, so that a new network ignores the noise level.
        shift = embedding @ get_parameter("w", (embedding.shape[-1], channels), ZEROS)
    h = norm_swish(add_bias(begun, shift[:, None, None, :]), groups, "norm_1")
    # The last convolution starts at zero: a deep stack of blocks is the identity at first.
    return shortcut + conv3x3(apply_dropout(h, dropout, keys), channels, "conv_1", w_init=ZEROS)


def attention_block(h: Maps, groups: int) -> Maps:
    """Applies residual self-attention over all positions, with one head. Initially the identity."""
    b, height, width, c = h.shape
    tokens = group_norm(h, groups, "norm").astype(h.dtype).reshape(b, height * width, c)
    query, key, value = (dense(tokens, c, part) for part in ("query", "key", "value"))
    mixed = softmax_attention(query, key, value).reshape(h.shape)
    return h + dense(mixed, c, "out", w_init=ZEROS)


def softmax_attention(query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    """Returns softmax(query key^T / sqrt(c)) value of each image, the softmax in float32 at least.

    On a CPU in chunks of queries, of about MAX_LOGITS weights each: all [b, positions, positions] of them do not fit in a
    cache, and passing over them took a third of a small network's step. For the gradient, weights are computed again.
    """
    b, positions, c = query.shape
    wide = jnp.promote_types(query.dtype, jnp.float32)
    # Wide between chunks: the gradients of keys and values are sums over them.
    wide_key, wide_value = key.astype(wide), value.astype(wide)

    @partial(jax.checkpoint, prevent_cse=False)
    def sum_weighted(query: Tokens) -> tuple[Tokens, Float[Array, "b positions 1"]]:
        key, value = wide_key.astype(query.dtype), wide_value.astype(query.dtype)
        logits = jnp.einsum("btc,bsc->bts", query, key, preferred_element_type=wide) / c**0.5
        # The softmax does not depend on what is subtracted, so that this has no gradient.
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        mixed = jnp.einsum("bts,bsc->btc", weights.astype(value.dtype), value)
        return mixed, weights.sum(axis=-1, keepdims=True)

    # Chunks of queries, not of images: where the batch is sharded over devices, a chunk of images would be one device's.
    num_chunks = count_chunks(b, positions)
    rows = -(-positions // num_chunks)
    padded = jnp.pad(query, ((0, 0), (0, num_chunks * rows - positions), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(b, num_chunks, rows, c), 1, 0)
    mixed, total = jax.lax.map(sum_weighted, chunks)
    # Divided after the product, a pass over c channels a position and not over all weights; and here, since the
    # gradient would otherwise compute that product twice.
    mixed = jnp.moveaxis(mixed / total, 0, 1).reshape(padded.shape)
    return mixed[:, :positions].astype(query.dtype)


def count_chunks(b: int, positions: int) -> int:
    """Returns the number of chunks of queries that attention is computed in: one, except on a CPU."""
    rows = max(1, MAX_LOGITS // max(1, b * positions)) if on_cpu() else positions
    return -(-positions // rows)


def head(h: Maps, channels: int, groups: int) -> MapsOut:
    """Applies norm, swish and conv in float32 at least; initially zero."""
    return conv3x3(jax.nn.swish(group_norm(h, groups, "norm_out")), channels, "conv_out", w_init=ZEROS)
