import functools
import math
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffenc.core.unroll import trace_for
from diffenc_plugins.networks import layers

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(function, params, *arguments):
    """A layer under given parameters."""
    return hk.transform(function).apply(params, None, *arguments)


def group_norm(h, groups, gain, offset):
    """Group by group in numpy float64."""
    out, width = np.empty(h.shape), h.shape[-1] // groups
    for i in range(len(h)):
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            centred = h[i, ..., part] - h[i, ..., part].mean(dtype=np.float64)
            out[i, ..., part] = centred / np.sqrt((centred**2).mean() + 1e-6)
    return out * gain + offset


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("centre", [0.0, 300.0])
def test_norm_is_group_norm(groups, centre):
    rng = np.random.default_rng(0)
    h = (centre + rng.normal(size=(3, 4, 5, 6)) * np.arange(1, 7)).astype(np.float32)
    gain, offset = rng.normal(size=(2, 6)).astype(np.float32)
    params = {"n": {"scale": jnp.asarray(gain), "offset": jnp.asarray(offset)}}
    got = run(lambda h: layers.group_norm(h, groups, "n"), params, jnp.asarray(h))
    np.testing.assert_allclose(got, group_norm(h, groups, gain, offset), atol=2e-3 if centre else 2e-5)


def test_norm_of_a_tiny_signal_is_damped_by_its_epsilon():
    h = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32) * 1e-3  # a variance of 1e-6
    params = {"n": {"scale": jnp.ones(4), "offset": jnp.zeros(4)}}
    got = np.asarray(run(lambda h: layers.group_norm(h, 2, "n"), params, jnp.asarray(h)))
    assert 0.6 < got.std() < 0.8  # 1 / sqrt(2)


def test_norm_of_constant_maps_is_the_offset_with_a_finite_gradient():
    params = {"n": {"scale": jnp.ones(4), "offset": jnp.arange(4.0)}}
    f = lambda h: run(lambda h: layers.group_norm(h, 2, "n"), params, h)  # noqa: E731
    h = jnp.full((1, 3, 3, 4), 0.7)
    np.testing.assert_allclose(f(h), jnp.broadcast_to(jnp.arange(4.0), h.shape), atol=2e-3)
    assert jnp.isfinite(jax.grad(lambda h: jnp.sum(jnp.square(f(h))))(h)).all()


@given(st.integers(1, 600))
@settings(deadline=None, max_examples=200)
def test_the_last_possible_number_of_groups_is_the_largest_divisor_that_leaves_two_channels_a_group(channels):
    divisors = [g for g in range(1, 33) if channels % g == 0 and channels // g >= 2]
    assert layers.possible_groups(channels) == (divisors or [1])


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (128, 32), (256, 32), (32, 16)])
def test_default_groups_at_the_published_widths(channels, groups):
    assert layers.resolve_groups("n", channels, None) == groups


@pytest.mark.parametrize("channels", [8, 9])
def test_sinusoids(channels):
    time, half = np.array([0.0, 0.7, 1000.0]), channels // 2
    want = np.zeros((3, channels))
    for k in range(half):
        frequency = 1e4 ** (-k / (half - 1))
        want[:, k], want[:, half + k] = np.sin(time * frequency), np.cos(time * frequency)
    got = layers.sinusoidal_embedding(jnp.asarray(time, jnp.float32), channels)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.isfinite(layers.sinusoidal_embedding(jnp.ones(2), 2)).all()


def attention_by_numpy(h, params):
    """Position by position in float64."""
    (b, height, width, c), gain = h.shape, params["norm"]
    tokens = group_norm(h, 2, gain["scale"], gain["offset"]).reshape(b, -1, c)
    query, key, value = (tokens @ params[part]["w"] + params[part]["b"] for part in ("query", "key", "value"))
    mixed = np.zeros_like(tokens)
    for i in range(b):
        for j in range(height * width):
            logits = np.array([query[i, j] @ other / np.sqrt(c) for other in key[i]])
            mixed[i, j] = np.exp(logits) @ value[i] / np.exp(logits).sum()
    return h + (mixed @ params["out"]["w"] + params["out"]["b"]).reshape(h.shape)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-10), ("float32", 1e-4), ("bfloat16", 0.05)])
def test_attention_is_softmax_over_all_positions(dtype, rtol):
    """JAX's own takes the softmax of float64 in float32: ours must not."""
    rng = np.random.default_rng(2)
    h = rng.normal(size=(2, 3, 2, 4))
    with jax.enable_x64(dtype == "float64"):
        maps = jnp.asarray(h, dtype)
        shapes = jax.eval_shape(
            hk.transform(lambda h: layers.attention_block(h, 2)).init, jax.random.key(0), maps
        )
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
        got = run(lambda h: layers.attention_block(h, 2), jax.tree.map(jnp.asarray, params), maps)
        assert got.dtype == dtype
        want = attention_by_numpy(h, params)
        np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=rtol * np.abs(want).max())


def plain_attention(query, key, value):
    weights = jax.nn.softmax(jnp.einsum("btc,bsc->bts", query, key) / query.shape[-1] ** 0.5)
    return jnp.einsum("bts,bsc->btc", weights, value)


def attention_and_derivatives(attention, tokens, moves):
    """Values, their derivative along `moves`, and the gradient of that derivative, as a DiffEnc step takes it."""
    mixed, moved = jax.jvp(attention, tokens, moves)
    gradient = jax.grad(lambda tokens: jnp.vdot(jax.jvp(attention, tokens, moves)[1], moved))(tokens)
    return mixed, moved, gradient


@pytest.mark.parametrize(("images", "positions", "chunks"), [(2, 10, 4), (1, 13, 13), (3, 16, 1), (0, 4, 1)])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 0.03)])
def test_attention_in_chunks_is_that_of_all_queries(images, positions, chunks, dtype, rtol, monkeypatch):
    """In float64 beside it, also where the last chunk is not full."""
    monkeypatch.setattr(layers, "MAX_LOGITS", {4: 60, 13: 13, 1: 10**6}[chunks])
    assert layers.count_chunks(images, positions) == chunks
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        tokens, moves = (
            tuple(jnp.asarray(rng.normal(size=(images, positions, 8)), dtype) for _ in range(3))
            for _ in range(2)
        )
        exact = [tuple(each.astype("float64") for each in given) for given in (tokens, moves)]
        got = quick(functools.partial(attention_and_derivatives, layers.softmax_attention))(tokens, moves)
        want = attention_and_derivatives(plain_attention, *exact)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.dtype == dtype
            scale = float(jnp.abs(b).max(initial=0))
            np.testing.assert_allclose(a.astype("float64"), b, rtol=0, atol=rtol * scale)


def test_gradients_of_many_chunks_are_not_sums_in_bfloat16(monkeypatch):
    """With equal weights 1/512 each value's gradient is 512 times 1/512; in bfloat16 such a sum stops at 1/2."""
    monkeypatch.setattr(layers, "MAX_LOGITS", 512)
    assert layers.count_chunks(1, 512) == 512
    query = key = value = jnp.zeros((1, 512, 2), jnp.bfloat16)
    total = lambda value: layers.softmax_attention(query, key, value).sum(dtype=jnp.float32)  # noqa: E731
    np.testing.assert_allclose(quick(jax.grad(total))(value).astype("float32"), 1, rtol=0.01)


def test_attention_in_chunks_keeps_no_array_of_all_weights():
    tokens = tuple(jnp.zeros((3, 1024, 8)) for _ in range(3))

    def largest_array(attention):
        evaluate = functools.partial(attention_and_derivatives, attention)
        shapes = re.findall(r"f32\[([\d,]+)\]", str(jax.make_jaxpr(evaluate)(tokens, tokens)))
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert largest_array(plain_attention) == 3 * 1024 * 1024
    assert largest_array(layers.softmax_attention) <= layers.MAX_LOGITS


@pytest.mark.parametrize(("platform", "chunks"), [("cpu", 4), ("tpu", 1), ("cuda", 1)])
def test_attention_is_in_chunks_on_a_cpu(platform, chunks):
    assert trace_for(platform, layers.count_chunks)(3, 1024) == chunks


@pytest.mark.parametrize("layer", ["conv3x3", "dense", "unpool", "norm", "activate", "resnet_block"])
def test_parameters_are_float32_whatever_the_maps_are(layer):
    """And all layers but the norm, whose statistics and output are float32, answer in the maps' precision."""
    embedding = jnp.ones((1, 8))
    given = {
        "conv3x3": lambda h: layers.conv3x3(h, 6, "x"),
        "dense": lambda h: layers.dense(h, 6, "x"),
        "unpool": lambda h: layers.unpool(h, 6, "x"),
        "norm": lambda h: layers.group_norm(h, 2, "x"),
        "activate": lambda h: layers.norm_swish(h, 2, "x"),
        "resnet_block": lambda h: layers.resnet_block(h, embedding, None, 6, 2, 0.0),
    }[layer]
    transform, h = hk.transform(given), jnp.ones((1, 4, 4, 4), jnp.bfloat16)
    params = jax.eval_shape(transform.init, jax.random.key(0), h)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out = jax.eval_shape(transform.apply, params, None, h)
    assert out.dtype == ("float32" if layer == "norm" else "bfloat16")


@pytest.mark.parametrize("layer", ["conv3x3", "dense", "unpool"])
def test_the_gradient_of_a_bias_is_summed_in_float32(layer):
    """One for each of 65,536 positions; in bfloat16, where 256 + 1 = 256, the sum would stop there."""
    h = jnp.zeros((16, 64, 64, 1), jnp.bfloat16)
    transform = hk.transform(lambda h: getattr(layers, layer)(h, 1, "x"))
    params = quick(transform.init)(jax.random.key(0), h[:1, :2, :2])
    total = lambda params: jnp.sum(transform.apply(params, None, h).astype(jnp.float32))  # noqa: E731
    gradient = quick(jax.grad(total))(params)["x"]["b"]
    np.testing.assert_allclose(gradient, 65536 * (4 if layer == "unpool" else 1), rtol=1e-6)


def test_the_first_convolution_is_rounded_after_it_and_the_last_not_at_all():
    h = jnp.asarray(np.random.default_rng(6).normal(size=(1, 6, 6, 2)), jnp.float32)
    params = {"conv_in": {"w": jnp.ones((3, 3, 2, 4)) / 3, "b": jnp.full(4, 0.1)}}
    exact, rounded = (run(lambda h, p=p: layers.stem(h, 4, p), params, h) for p in ("float32", "bfloat16"))
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
    params = {"conv_out": {"w": jnp.ones((3, 3, 4, 1)) / 7, "b": jnp.zeros(1)}}
    params["norm_out"] = {"scale": jnp.ones(4), "offset": jnp.zeros(4)}
    out = run(lambda h: layers.head(h, 1, 2), params, rounded)
    assert np.mean(np.asarray(out.astype(jnp.bfloat16), np.float32) == out) < 0.1


def test_a_bias_is_added_before_the_sum_is_rounded():
    """Numbers next to 1 are 2^-7 apart: a little more than half of that rounds up, but not once it is rounded itself."""
    bias = jnp.full(1, 2.0**-8 + 2.0**-18)
    out = layers.add_bias(jnp.ones((1, 2, 2, 1), jnp.bfloat16), bias)
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1 + 2.0**-7)


def test_statistics_of_bfloat16_maps_are_taken_in_float32():
    """Of 64 x 64 positions about 10: their sum in bfloat16 would be good to a few digits in a thousand."""
    h = jnp.asarray(10 + np.random.default_rng(5).normal(size=(1, 64, 64, 2)), jnp.bfloat16)
    params = {"n": {"scale": jnp.ones(2), "offset": jnp.zeros(2)}}
    got = run(lambda h: layers.group_norm(h, 1, "n"), params, h)
    want = group_norm(np.asarray(h, np.float64), 1, np.ones(2), np.zeros(2))
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_drop_silences_its_share_and_lifts_the_rest():
    h = jnp.ones((1, 100, 100, 1))
    dropped = np.asarray(
        run(lambda h: layers.apply_dropout(h, 0.3, jax.random.split(jax.random.key(0), 1)), {}, h)
    ).ravel()
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.7, rtol=1e-6)
    assert abs(np.mean(dropped == 0) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / dropped.size)


def test_without_a_key_nothing_is_dropped():
    h = jnp.ones((1, 4, 4, 1))
    np.testing.assert_array_equal(run(lambda h: layers.apply_dropout(h, 0.3, None), {}, h), h)


def test_at_initialisation_a_block_and_an_attention_are_their_shortcut():
    h, embedding = (
        jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 4, 4)), jnp.float32),
        jnp.ones((1, 8)),
    )

    def both(h):
        return layers.resnet_block(h, embedding, None, 4, 2, 0.0), layers.attention_block(h, 2)

    params = hk.transform(both).init(jax.random.key(0, impl="unsafe_rbg"), h)
    for out in run(both, params, h):
        np.testing.assert_array_equal(out, h)


@pytest.mark.parametrize(("rate", "channels"), [(0.1, 8), (0.5, 7), (0.9, 1), (0.001, 8)])
def test_dropout_keeps_its_rate_and_its_numbers_apart(rate, channels):
    """Two numbers share a random word: they must be as independent as any."""
    h = jnp.ones((64, 32, 32, channels))
    out = np.asarray(layers.apply_dropout(h, rate, jax.random.split(jax.random.key(3), 64)), np.float64)
    kept = out > 0
    np.testing.assert_allclose(out[kept], 1 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    half = (channels + 1) // 2
    if channels > 1:
        pairs = kept[..., : channels - half] & kept[..., half:]
        assert abs(pairs.mean() - (1 - rate) ** 2) < 5 * np.sqrt((1 - rate) ** 2 / pairs.size)
    assert len({mask.tobytes() for mask in kept}) == 64 or rate == 0.001


def test_the_scale_of_dropout_is_not_rounded_to_bfloat16():
    h = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (1, 64, 64, 8)), jnp.bfloat16)
    out = layers.apply_dropout(h, 0.1, jax.random.split(jax.random.key(3), 1))
    kept = np.asarray(out, np.float64) > 0
    ratio = np.asarray(out, np.float64)[kept] / np.asarray(h, np.float64)[kept]
    assert abs(ratio.mean() - 1 / 0.9) < 3e-4  # bfloat16(1 / 0.9) is 1.109


def test_dropout_draws_half_a_word_for_a_number():
    h, keys = jnp.ones((2, 4, 4, 6)), jax.random.split(jax.random.key(0), 2)
    traced = jax.make_jaxpr(lambda h, keys: layers.apply_dropout(h, 0.1, keys))(h, keys)
    drawn = [each.outvars[0].aval for each in traced.eqns if each.primitive.name == "random_bits"]
    assert sum(aval.size * aval.dtype.itemsize for aval in drawn) == h.size * 2


@pytest.mark.parametrize("rate", [0.0, 1e-6])
def test_a_rate_below_the_resolution_is_none(rate):
    h = jnp.ones((1, 2, 2, 2))
    np.testing.assert_array_equal(layers.apply_dropout(h, rate, jax.random.split(jax.random.key(0), 1)), h)
