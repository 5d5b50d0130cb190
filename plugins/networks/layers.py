"""The layers both U-Nets are built of. Called inside a haiku transform.

Parameters are kept in the default precision; a layer computes in that of the maps it is given.
"""

import haiku as hk
import jax
import jax.numpy as jnp
from haiku.experimental import name_scope
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import Condition, ImageKeys, LogSNR

Maps = Float[Array, "b h w c"]
MapsOut = Float[Array, "b h w c_out"]  # the same positions in other channels
Embedding = Float[Array, "b e"]
Heads = Float[Array, "b positions heads c"]

LECUN_NORMAL = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
ZEROS = hk.initializers.Constant(0.0)
NHWC = ("NHWC", "HWIO", "NHWC")

MOST_BLOCKS = 10_000  # none is larger than a computer's memory by less than that

PRECISIONS = ("float32", "bfloat16")


def default_groups(channels: int) -> int:
    """The largest divisor of `channels` up to min(32, channels / 2).

    Two channels a group at least: with one, a norm cancels the time embedding's shift.
    """
    most = max(1, min(32, channels // 2))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def resolve_groups(name: str, channels: int, groups: int | None) -> int:
    """`groups`, or the default; raises UserError if it does not divide `channels`."""
    if channels < 1:
        raise UserError(f"{name}.channels = {channels}: must be at least 1")
    if groups is None:
        return default_groups(channels)
    if groups < 1 or channels % groups:
        raise UserError(f"{name}.groups = {groups} does not divide {name}.channels = {channels}")
    return groups


def check_dropout(name: str, dropout: float) -> None:
    """Raise UserError unless `dropout` is a probability below one."""
    if not 0 <= dropout < 1:
        raise UserError(f"{name}.dropout = {dropout}: must be in [0, 1)")


def check_precision(name: str, precision: str) -> None:
    """Raise UserError unless `precision` is one there is."""
    if precision not in PRECISIONS:
        raise UserError(f"{name}.precision = {precision!r}: must be {' or '.join(PRECISIONS)}")


def check_classes(name: str, classes: int) -> None:
    """Raise UserError if `classes` is no number of them."""
    if classes < 0:
        raise UserError(f"{name}.classes = {classes}: must not be negative")


def parameter(name: str, shape: tuple[int, ...], init: hk.initializers.Initializer) -> Array:
    """A parameter in the default precision, whatever the activations are in."""
    return hk.get_parameter(name, shape, jnp.result_type(float), init=init)


def conv3x3(h: Maps, channels: int, name: str, w_init: hk.initializers.Initializer = LECUN_NORMAL) -> MapsOut:
    """In the precision of `h`."""
    with name_scope(name):
        w = parameter("w", (3, 3, h.shape[-1], channels), w_init).astype(h.dtype)
        b = parameter("b", (channels,), ZEROS)
    return add_bias(jax.lax.conv_general_dilated(h, w, (1, 1), "SAME", dimension_numbers=NHWC), b)


def unpool(h: Maps, channels: int, name: str) -> Float[Array, "b twice_h twice_w c_out"]:
    """Each position becomes 2x2: a transposed convolution of stride 2, in the precision of `h`."""
    b, height, width, c = h.shape
    with name_scope(name):
        w = parameter("w", (2, 2, channels, c), LECUN_NORMAL).astype(h.dtype)
        bias = parameter("b", (channels,), ZEROS)
    out = jnp.einsum("bhwc,ijoc->bhiwjo", h, w[::-1, ::-1])
    return add_bias(out.reshape(b, 2 * height, 2 * width, channels), bias)


def dense(h: Array, channels: int, name: str, w_init: hk.initializers.Initializer = LECUN_NORMAL) -> Array:
    """In the precision of `h`."""
    with name_scope(name):
        w = parameter("w", (h.shape[-1], channels), w_init).astype(h.dtype)
        b = parameter("b", (channels,), ZEROS)
    return add_bias(h @ w, b)


def add_bias(
    h: Float[Array, "*positions c"], bias: Float[Array, "#*positions c"]
) -> Float[Array, "*positions c"]:
    """`h` + `bias` in the precision of `h`, the sum rounded once.

    Added in float32 at least: the gradient of the bias is a sum over all positions, which in bfloat16 comes to a
    standstill after a few hundred.
    """
    return (widen(h) + jnp.broadcast_to(bias, h.shape)).astype(h.dtype)


def widen(h: Array) -> Array:
    """`h` in float32 at least."""
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def norm(h: Maps, groups: int, name: str) -> Maps:
    """Group norm, eps 1e-6: statistics by channel first, then one multiply-add over the maps.

    haiku's own makes several passes over the maps; under jvp and gradient it costs more than the convolutions.
    The statistics, and so the result, are in float32 at least; the caller rounds it after the activation.
    """
    channels, ones = h.shape[-1], hk.initializers.Constant(1.0)
    with name_scope(name):
        gain = parameter("scale", (channels,), ones)
        offset = parameter("offset", (channels,), ZEROS)

    def by_group(values: Float[Array, "b c"]) -> Float[Array, "b c"]:
        size = channels // groups
        return jnp.repeat(values.reshape(-1, groups, size).mean(axis=-1), size, axis=-1)

    h = widen(h)
    channel_mean = jnp.mean(h, axis=(1, 2))
    spread = jnp.mean(jnp.square(h - channel_mean[:, None, None, :]), axis=(1, 2))
    mean = by_group(channel_mean)
    # about the means, not E[h^2] - E[h]^2, which loses float32's digits where the mean is large
    variance = by_group(spread + jnp.square(channel_mean - mean))
    factor = gain[None] * jax.lax.rsqrt(variance + 1e-6)
    return h * factor[:, None, None, :] + (offset[None] - mean * factor)[:, None, None, :]


def activate(h: Maps, groups: int, name: str) -> Maps:
    """swish of the norm, rounded once, to the precision of `h`."""
    return jax.nn.swish(norm(h, groups, name)).astype(h.dtype)


def stem(h: Maps, channels: int, precision: str) -> MapsOut:
    """The first convolution, whose output says what precision the layers after it compute in.

    Itself it is in float32 on every device: where the noise is small, most of what there is to see is in digits
    that bfloat16 (a TPU's way with float32, unless told otherwise) does not have.
    """
    with jax.default_matmul_precision("highest"):
        h = conv3x3(h, channels, "conv_in")
    return h.astype(jnp.bfloat16) if precision == "bfloat16" else h


def split_keys(keys: ImageKeys | None, num: int) -> list[ImageKeys | None]:
    """`num` keys of each image's, for as many blocks; None for each where there are none."""
    if keys is None:
        return [None] * num
    return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0))


def drop(h: Maps, rate: float, keys: ImageKeys | None) -> Maps:
    """Dropout, each image's mask drawn by its own key; none where there are no keys."""
    if keys is None:
        return h
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, h.shape[1:]))(keys)
    return jnp.where(kept, h / (1 - rate), jnp.zeros_like(h))


def embed_log_snr(
    log_snr: LogSNR,
    condition: Condition | None,
    channels: int,
    log_snr_max: float,
    log_snr_min: float,
    classes: int = 0,
) -> Embedding:
    """[B, 4 channels]: a sinusoidal embedding of the noise level, and of the class where there are any, by a MLP.

    The published network reads a label's number beside the sinusoids, and is given 0: so is this one, since a
    number puts classes in an order. They have a table, which is added before the last activation.
    """
    time = 1000 * (log_snr_max - log_snr) / (log_snr_max - log_snr_min)
    label = jnp.zeros_like(time)
    h = jnp.concatenate([sinusoids(time, channels), label[:, None]], axis=-1)
    h = jax.nn.swish(dense(h, 4 * channels, "embed_0"))
    h = dense(h, 4 * channels, "embed_1")
    return jax.nn.swish(h + of_class(condition, classes, h) if classes else h)


def of_class(condition: Condition | None, classes: int, like: Embedding) -> Embedding:
    """A row of a table for each image, shaped like `like`: the first row for no class. Zero at initialisation."""
    with name_scope("classes"):
        table = parameter("table", (classes + 1, like.shape[-1]), ZEROS)
    return table[jnp.zeros(len(like), int) if condition is None else condition].astype(like.dtype)


def sinusoids(time: Float[Array, " b"], channels: int) -> Embedding:
    """[sin, cos] at frequencies from 1 down to 1e-4; an odd last channel is zero."""
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / max(half - 1, 1))
    angles = jnp.multiply.outer(time, frequencies)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(waves, ((0, 0), (0, channels % 2)))


def resnet_block(
    h: Maps, embedding: Embedding, keys: ImageKeys | None, channels: int, groups: int, dropout: float
) -> MapsOut:
    """norm swish conv, + embedding, norm swish dropout conv, + shortcut."""
    shortcut = h if h.shape[-1] == channels else dense(h, channels, "shortcut")
    h = conv3x3(activate(h, groups, "norm_0"), channels, "conv_0")
    with name_scope("embedding"):
        shift = embedding @ parameter("w", (embedding.shape[-1], channels), ZEROS)
    h = activate(add_bias(h, shift[:, None, None, :]), groups, "norm_1")
    return shortcut + conv3x3(drop(h, dropout, keys), channels, "conv_1", w_init=ZEROS)


def attention(h: Maps, groups: int) -> Maps:
    """Residual self-attention over all positions, with one head."""
    b, height, width, c = h.shape
    tokens = norm(h, groups, "norm").astype(h.dtype).reshape(b, height * width, 1, c)
    query, key, value = (dense(tokens, c, part) for part in ("query", "key", "value"))
    mixed = attend(query, key, value).reshape(h.shape)
    return h + dense(mixed, c, "out", w_init=ZEROS)


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """Softmax attention. JAX's own takes the softmax in float32 even of float64, which is then written out."""
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value)
    logits = jnp.einsum("btnc,bsnc->bnts", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("bnts,bsnc->btnc", jax.nn.softmax(logits, axis=-1), value)


def middle(
    h: Maps, embedding: Embedding, keys: ImageKeys | None, groups: int, block_groups: int, dropout: float
) -> Maps:
    """block, attention, block."""
    channels, (first, second) = h.shape[-1], split_keys(keys, 2)
    with name_scope("middle_0"):
        h = resnet_block(h, embedding, first, channels, block_groups, dropout)
    with name_scope("attention"):
        h = attention(h, groups)
    with name_scope("middle_1"):
        return resnet_block(h, embedding, second, channels, block_groups, dropout)


def head(h: Maps, channels: int, groups: int) -> MapsOut:
    """norm swish conv, in float32 at least; zero at initialisation."""
    return conv3x3(jax.nn.swish(norm(h, groups, "norm_out")), channels, "conv_out", w_init=ZEROS)
