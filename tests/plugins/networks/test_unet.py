import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.interfaces import Context
from diffenc_plugins.networks import UNet
from diffenc_plugins.networks.unet import fourier_features

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_fourier_features(x64):
    z = np.random.default_rng(0).normal(size=(2, 3, 3, 2))
    waves = [f(2 * np.pi * 2.0**k * z[..., c]) for f in (np.sin, np.cos) for c in (0, 1) for k in (6, 7)]
    want = np.concatenate([z, np.stack(waves, axis=-1)], axis=-1)
    np.testing.assert_allclose(fourier_features(jnp.asarray(z), (6, 7)), want, atol=1e-11)


def test_fourier_features_keep_enough_digits_in_float32():
    z = np.random.default_rng(0).uniform(-4, 4, (1, 8, 8, 1)).astype(np.float32)
    got = np.asarray(fourier_features(jnp.asarray(z), (6, 7)), np.float64)
    angles = 2 * np.pi * np.array([64, 128]) * z.astype(np.float64)
    want = np.concatenate([z, np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(got, want, atol=804 * 4 * 2.0**-23)


def test_at_initialisation_it_returns_z():
    network, z = UNet(blocks=1, channels=4), jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 3)))
    params = quick(network.init)(jax.random.key(0, impl="unsafe_rbg"), z, jnp.zeros(2))
    np.testing.assert_array_equal(quick(network.apply)(params, z, jnp.asarray([-5.0, 13.3])), z)


def shapes(n, **options):
    network = UNet(blocks=n, channels=8, **options)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))


def test_more_blocks_are_more_of_the_same():
    """n blocks down and two in the middle share a stack, n + 1 up another; one more of each, and nothing else."""
    two, three = shapes(2), shapes(3)
    assert two.keys() == three.keys()
    sizes = [
        {name: leaves["w"].shape for name, leaves in params.items() if "w" in leaves}
        for params in (two, three)
    ]
    grown = {name: (sizes[0][name], sizes[1][name]) for name in sizes[0] if sizes[0][name] != sizes[1][name]}
    assert grown["blocks_8_8/conv_0"] == ((4, 3, 3, 8, 8), (5, 3, 3, 8, 8))
    assert grown["blocks_16_8/conv_0"] == ((3, 3, 3, 16, 8), (4, 3, 3, 16, 8))
    assert all(name.startswith("blocks_") for name in grown)


def test_blocks_start_apart():
    network, z = UNet(blocks=2, channels=4), jnp.zeros((1, 4, 4, 1))
    params = quick(network.init)(jax.random.key(0, impl="unsafe_rbg"), z, jnp.zeros(1))
    kernels = [*params["blocks_4_4/conv_0"]["w"], *params["blocks_8_4/conv_0"]["w"][:, :, :, :4]]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 2 + 2 + 3


@pytest.fixture(scope="module")
def shaken():
    """Random parameters of a small network, and what it is given."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes(2))
    return params, jnp.asarray(rng.normal(size=(2, 4, 4, 1)), jnp.float32), jnp.asarray([-3.0, 8.0])


def gradient(params, z, log_snr, **options):
    """Of the mean square of the output, under one dropout mask."""

    def loss(params):
        network = UNet(blocks=2, channels=8, dropout=0.5, **options)
        return jnp.mean(
            jnp.square(
                network.apply(params, z, log_snr, Context(keys=jax.random.split(jax.random.key(0), len(z))))
            )
        )

    return quick(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "options", [{"scan": True, "remat": True}, pytest.param({"remat": True}, marks=pytest.mark.slow)]
)
def test_a_loop_and_recomputing_change_no_number(shaken, options):
    """One tree of parameters and one mask serve all forms: a checkpoint, and a run, move between them."""
    plain, other = gradient(*shaken, scan=False), gradient(*shaken, **options)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(plain))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * largest)


def test_a_loop_compiles_a_block_once():
    """However many blocks: one body down and one up; written out, there are two convolutions for each block."""

    def convolutions(n, scan):
        network, z, log_snr = UNet(blocks=n, channels=8, scan=scan), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
        return jax.jit(network.apply).lower(shapes(n), z, log_snr).as_text().count("stablehlo.convolution")

    # in and out; two middle blocks; n blocks down and n + 1 up, or one of each and the first up
    assert [convolutions(n, scan=False) for n in (2, 4)] == [2 + 2 * (2 + 5), 2 + 2 * (2 + 9)]
    assert [convolutions(n, scan=True) for n in (2, 4)] == [2 + 2 * (2 + 3)] * 2


def test_recomputing_keeps_less():
    """For the gradient, of 4 blocks each way: about the maps that enter each block; attention weights in neither case."""

    def kept(remat):
        network = UNet(blocks=4, channels=8, scan=True, remat=remat)
        z, log_snr, params = jnp.zeros((4, 16, 16, 1)), jnp.zeros(4), shapes(4)
        backward = lambda params: jax.vjp(lambda p: network.apply(p, z, log_snr), params)[1]  # noqa: E731
        return sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(backward, params))
            if 256 in leaf.shape or leaf.shape[-3:-1] == (16, 16)
        )

    maps = 4 * 16 * 16 * 8
    # attention's weights would be as many numbers as 32 maps
    assert 60 * maps < kept(remat=False) < 75 * maps
    assert kept(remat=True) < 25 * maps


def test_a_block_keeps_its_maps_in_their_own_precision():
    """For the gradient, in bfloat16 with dropout: 4 or 5 maps and a mask; none in float32, as norms have in between."""
    n, batch, side, channels = 3, 2, 4, 16
    network = UNet(blocks=n, channels=channels, scan=True, precision="bfloat16")
    z, log_snr = jnp.zeros((batch, side, side, 1)), jnp.zeros(batch)
    params = jax.eval_shape(network.init, jax.random.key(0), z, log_snr)
    context = Context(keys=jax.random.split(jax.random.key(0), batch))
    backward = lambda params: jax.vjp(lambda p: network.apply(p, z, log_snr, context), params)[1]  # noqa: E731
    kept = [
        leaf
        for leaf in jax.tree.leaves(jax.eval_shape(backward, params))
        if leaf.shape[:1] == (n,) and leaf.shape[-3:-1] == (side, side)
    ]
    assert {leaf.dtype for leaf in kept} <= {jnp.dtype(jnp.bfloat16), jnp.dtype(bool)}
    numbers = n * batch * side * side * channels  # of the maps between all blocks one way
    assert (
        sum(leaf.size * leaf.dtype.itemsize for leaf in kept) <= 22 * numbers
    )  # 116 with float32 maps in between
