"""The layers both U-Nets are built of. Called inside a haiku transform."""

import haiku as hk
import jax
import jax.numpy as jnp
from haiku.experimental import name_scope
from jaxtyping import Array, Float

from diffenc.errors import UserError
from diffenc.interfaces import Condition, LogSNR

Maps = Float[Array, "b h w c"]
MapsOut = Float[Array, "b h w c_out"]  # the same positions in other channels
Embedding = Float[Array, "b e"]

LECUN_NORMAL = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
ZEROS = hk.initializers.Constant(0.0)


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


def conv3x3(h: Maps, channels: int, name: str, w_init: hk.initializers.Initializer = LECUN_NORMAL) -> MapsOut:
    return hk.Conv2D(channels, 3, w_init=w_init, name=name)(h)


def dense(h: Array, channels: int, name: str, w_init: hk.initializers.Initializer = LECUN_NORMAL) -> Array:
    return hk.Linear(channels, w_init=w_init, name=name)(h)


def norm(h: Maps, groups: int, name: str) -> Maps:
    """Group norm, eps 1e-6: statistics by channel first, then one multiply-add over the maps.

    haiku's own makes several passes over the maps; under jvp and gradient it costs more than the convolutions.
    """
    channels, ones = h.shape[-1], hk.initializers.Constant(1.0)
    with name_scope(name):
        gain = hk.get_parameter("scale", (channels,), h.dtype, init=ones)
        offset = hk.get_parameter("offset", (channels,), h.dtype, init=ZEROS)

    def by_group(values: Float[Array, "b c"]) -> Float[Array, "b c"]:
        size = channels // groups
        return jnp.repeat(values.reshape(-1, groups, size).mean(axis=-1), size, axis=-1)

    channel_mean = jnp.mean(h, axis=(1, 2))
    spread = jnp.mean(jnp.square(h - channel_mean[:, None, None, :]), axis=(1, 2))
    mean = by_group(channel_mean)
    # about the means, not E[h^2] - E[h]^2, which loses float32's digits where the mean is large
    variance = by_group(spread + jnp.square(channel_mean - mean))
    factor = gain[None] * jax.lax.rsqrt(variance + 1e-6)
    return h * factor[:, None, None, :] + (offset[None] - mean * factor)[:, None, None, :]


def drop(h: Maps, rate: float) -> Maps:
    """Dropout under the transform's key; none where the transform has no key."""
    key = hk.maybe_next_rng_key()
    return h if key is None else hk.dropout(key, rate, h)


def embed_log_snr(
    log_snr: LogSNR, condition: Condition | None, channels: int, log_snr_max: float, log_snr_min: float
) -> Embedding:
    """[B, 4 channels]: a sinusoidal embedding of the noise level with the condition appended, through a MLP."""
    time = 1000 * (log_snr_max - log_snr) / (log_snr_max - log_snr_min)
    label = jnp.zeros_like(time) if condition is None else condition.astype(time.dtype)
    h = jnp.concatenate([sinusoids(time, channels), label[:, None]], axis=-1)
    h = jax.nn.swish(dense(h, 4 * channels, "embed_0"))
    return jax.nn.swish(dense(h, 4 * channels, "embed_1"))


def sinusoids(time: Float[Array, " b"], channels: int) -> Embedding:
    """[sin, cos] at frequencies from 1 down to 1e-4; an odd last channel is zero."""
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half) / max(half - 1, 1))
    angles = jnp.multiply.outer(time, frequencies)
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(waves, ((0, 0), (0, channels % 2)))


def resnet_block(
    h: Maps, embedding: Embedding, channels: int, groups: int, dropout: float, name: str
) -> MapsOut:
    """norm swish conv, + embedding, norm swish dropout conv, + shortcut."""
    with name_scope(name):
        shortcut = h if h.shape[-1] == channels else dense(h, channels, "shortcut")
        h = conv3x3(jax.nn.swish(norm(h, groups, "norm_0")), channels, "conv_0")
        shift = hk.Linear(channels, with_bias=False, w_init=ZEROS, name="embedding")(embedding)
        h = jax.nn.swish(norm(h + shift[:, None, None, :], groups, "norm_1"))
        return shortcut + conv3x3(drop(h, dropout), channels, "conv_1", w_init=ZEROS)


def attention(h: Maps, groups: int, name: str) -> Maps:
    """Residual self-attention over all positions, with one head."""
    with name_scope(name):
        b, height, width, c = h.shape
        tokens = norm(h, groups, "norm").reshape(b, height * width, c)
        query, key, value = (dense(tokens, c, part) for part in ("query", "key", "value"))
        # not jax.nn.dot_product_attention: it takes the softmax in float32 whatever its inputs
        weights = jax.nn.softmax(jnp.einsum("bic,bjc->bij", query, key) / c**0.5, axis=-1)
        mixed = jnp.einsum("bij,bjc->bic", weights, value).reshape(h.shape)
        return h + dense(mixed, c, "out", w_init=ZEROS)


def middle(h: Maps, embedding: Embedding, groups: int, block_groups: int, dropout: float) -> Maps:
    """block, attention, block."""
    channels = h.shape[-1]
    h = resnet_block(h, embedding, channels, block_groups, dropout, "middle_0")
    h = attention(h, groups, "attention")
    return resnet_block(h, embedding, channels, block_groups, dropout, "middle_1")


def head(h: Maps, channels: int, groups: int) -> MapsOut:
    """norm swish conv; zero at initialisation."""
    return conv3x3(jax.nn.swish(norm(h, groups, "norm_out")), channels, "conv_out", w_init=ZEROS)
