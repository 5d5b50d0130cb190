"""Both U-Nets against a second writing of them, in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.interfaces import Context
from diffenc_plugins.networks import EncoderUNet, UNet

LOG_SNR_MAX, LOG_SNR_MIN = 13.3, -5.0
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def swish(h):
    return h / (1 + np.exp(-h))


def dense(h, p):
    return h @ p["w"] + p.get("b", 0)


def conv(h, p):
    """3x3, zeros outside."""
    _, height, width, _ = h.shape
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + height, j : j + width] @ p["w"][i, j] for i in range(3) for j in range(3)]
    return sum(parts) + p["b"]


def norm(h, groups, p):
    parts = []
    for part in np.split(h, groups, axis=-1):
        mean, variance = (f(part, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
        parts.append((part - mean) / np.sqrt(variance + 1e-6))
    return np.concatenate(parts, axis=-1) * p["scale"] + p["offset"]


def embed(log_snr, condition, channels, params):
    time = 1000 * (LOG_SNR_MAX - log_snr) / (LOG_SNR_MAX - LOG_SNR_MIN)
    angles = time[:, None] * np.geomspace(1, 1e-4, channels // 2)
    h = np.column_stack([np.sin(angles), np.cos(angles), np.zeros(len(time))])
    h = dense(swish(dense(h, params["embed_0"])), params["embed_1"])
    return swish(h + params["classes"]["table"][condition] if "classes" in params else h)


def block(h, embedding, groups, name, params):
    p = {key.removeprefix(f"{name}/"): value for key, value in params.items() if key.startswith(f"{name}/")}
    shortcut = dense(h, p["shortcut"]) if "shortcut" in p else h
    h = conv(swish(norm(h, groups, p["norm_0"])), p["conv_0"])
    h = h + dense(embedding, p["embedding"])[:, None, None]
    return shortcut + conv(swish(norm(h, groups, p["norm_1"])), p["conv_1"])


def attention(h, groups, params):
    b, c = h.shape[0], h.shape[-1]
    tokens = norm(h, groups, params["attention/norm"]).reshape(b, -1, c)
    query, key, value = (dense(tokens, params[f"attention/{part}"]) for part in ("query", "key", "value"))
    weights = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(c))
    mixed = weights / weights.sum(axis=2, keepdims=True) @ value
    return h + dense(mixed, params["attention/out"]).reshape(h.shape)


def head(h, groups, params):
    return conv(swish(norm(h, groups, params["norm_out"])), params["conv_out"])


def unet(z, log_snr, condition, params, n, channels, groups, powers):
    waves = [
        f(2 * np.pi * 2**k * z[..., c]) for f in (np.sin, np.cos) for c in range(z.shape[-1]) for k in powers
    ]
    embedding = embed(log_snr, condition, channels, params)
    h = conv(np.concatenate([z, np.stack(waves, axis=-1)], axis=-1), params["conv_in"])
    skips = [h]
    for i in range(n):
        skips.append(block(skips[-1], embedding, groups, f"down_{i}", params))
    h = block(skips[-1], embedding, groups, "middle_0", params)
    h = block(attention(h, groups, params), embedding, groups, "middle_1", params)
    for i in range(n + 1):  # the deepest skip first
        h = block(np.concatenate([h, skips[n - i]], axis=-1), embedding, groups, f"up_{i}", params)
    return z + head(h, groups, params)


def pool(h):
    return np.max([h[:, i::2, j::2] for i in range(2) for j in range(2)], axis=0)


def unpool(h, p):
    """Each pixel becomes 2x2; haiku's kernel is [2, 2, out, in], upside down and back to front."""
    b, height, width, _ = h.shape
    out = np.empty((b, 2 * height, 2 * width, p["w"].shape[2]))
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = h @ p["w"][1 - i, 1 - j].T + p["b"]
    return out


def encoder_unet(x, log_snr, condition, params, m, channels, groups, last=np.tanh):
    depths = {1: [1], 2: [1, 1], 4: [2, 2]}[m]
    embedding = embed(log_snr, condition, channels, params)
    h, skips = conv(x, params["conv_in"]), []
    for level, depth in enumerate(depths):
        for i in range(depth):
            h = block(h, embedding, groups, f"down_{level}_{i}", params)
        skips.append(h)
        h = pool(h)
    middle_groups = groups // 2 if m == 2 else groups
    h = block(h, embedding, middle_groups, "middle_0", params)
    h = block(attention(h, groups, params), embedding, middle_groups, "middle_1", params)
    for level in reversed(range(len(depths))):
        h = np.concatenate([unpool(h, params[f"unpool_{level}"]), skips[level]], axis=-1)
        for i in range(depths[level]):
            h = block(h, embedding, groups, f"up_{level}_{i}", params)
    return last(head(h, groups // 2, params))


def by_place(params, places):
    """The blocks' parameters, which lie stacked by shape, by the places that the blocks have in the network.

    Args:
      places: (place, channels in, channels out) of all blocks, in the order of computation.
    """
    named = {name: leaves for name, leaves in params.items() if not name.startswith("blocks_")}
    seen = {}
    for place, before, after in places:
        number = seen[before, after] = seen.get((before, after), -1) + 1
        prefix = f"blocks_{before}_{after}/"
        named |= {
            f"{place}/{name.removeprefix(prefix)}": {key: leaf[number] for key, leaf in leaves.items()}
            for name, leaves in params.items()
            if name.startswith(prefix)
        }
    for (before, after), last in seen.items():
        assert len(params[f"blocks_{before}_{after}/conv_0"]["w"]) == last + 1
    return named


def unet_places(n, c):
    down = [(f"down_{i}", c, c) for i in range(n)]
    return [*down, ("middle_0", c, c), ("middle_1", c, c), *[(f"up_{i}", 2 * c, c) for i in range(n + 1)]]


def encoder_unet_places(m, c):
    if m == 1:
        return [("down_0_0", c, c), ("middle_0", c, c), ("middle_1", c, c), ("up_0_0", 2 * c, c)]
    places, before = [], c
    for level, after in enumerate((c, 2 * c)):
        for i in range(m // 2):
            places.append((f"down_{level}_{i}", before, after))
            before = after
    places += [("middle_0", 2 * c, 2 * c), ("middle_1", 2 * c, 2 * c)]
    for level, after in ((1, 2 * c), (0, c)):
        places += [(f"up_{level}_{i}", after if i else 2 * after, after) for i in range(m // 2)]
    return places


def compare(network, image_shape, reference, places, **options):
    """In float64, with random parameters and a condition."""
    rng = np.random.default_rng(0)
    z, log_snr, condition = rng.normal(size=(2, *image_shape)), np.array([-4.0, 9.1]), np.array([0, 3])
    arguments = jnp.asarray(z), jnp.asarray(log_snr)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), shapes)
    compiled = quick(network.apply)
    got = compiled(jax.tree.map(jnp.asarray, params), *arguments, Context(jnp.asarray(condition)))
    want = reference(z, log_snr, condition, by_place(params, places), **options)
    assert np.std(want) > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("scan", "classes"), [(False, 3), (True, 0)])
def test_unet(x64, scan, classes):
    network = UNet(blocks=2, channels=8, fourier_powers=(1, 3), scan=scan, classes=classes)
    compare(network, (4, 6, 2), unet, unet_places(2, 8), n=2, channels=8, groups=4, powers=(1, 3))


@pytest.mark.parametrize(
    ("m", "image_shape", "scan"),
    [(1, (6, 2, 2), None), (2, (8, 4, 2), True), (4, (8, 4, 1), None), (4, (4, 4, 1), True)],
)
def test_encoder_unet(x64, m, image_shape, scan):
    network = EncoderUNet(m, channels=8, classes=3 if m == 1 else 0, scan=scan)
    compare(network, image_shape, encoder_unet, encoder_unet_places(m, 8), m=m, channels=8, groups=4)


def test_encoder_unet_without_its_tanh(x64):
    options = {"m": 1, "channels": 8, "groups": 4, "last": lambda y: y}
    compare(
        EncoderUNet(1, channels=8, last="none"), (6, 2, 2), encoder_unet, encoder_unet_places(1, 8), **options
    )
