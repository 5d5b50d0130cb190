import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc_plugins.networks import EncoderUNet, UNet
from diffenc_plugins.networks.encoder_unet import max_pool

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(blocks, side, **settings):
    network = EncoderUNet(blocks, **{"channels": 8, **settings})
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 1)), jnp.zeros(1))


@pytest.mark.parametrize("channels", [3, 7, 14, 15, 18, 50, 100])
def test_without_a_number_of_groups_every_width_works(channels):
    """Of 14 channels the largest divisor is 7, and its half, 3, divides neither 14 nor the middle's 28."""
    assert shapes(2, 8, channels=channels)["conv_out"]["b"].shape == (1,)


def test_groups_stay_the_largest_divisor_where_its_half_divides_too():
    for channels, groups in ((8, 4), (16, 8), (32, 16), (64, 32), (12, 6), (6, 3)):
        explicit, default = (shapes(2, 8, channels=channels, groups=given) for given in (groups, None))
        assert default == explicit
        assert EncoderUNet(channels=channels)._groups == groups


def test_groups_whose_half_does_not_divide_are_refused():
    with pytest.raises(
        UserError, match=r"groups = 7: the last norm has 3 groups, which does not divide .*channels = 14"
    ):
        EncoderUNet(channels=14, groups=7)


def test_max_pool():
    h = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    want = np.empty((2, 2, 3, 3), np.float32)
    for i in range(2):
        for j in range(3):
            want[:, i, j] = h[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(h)), want)


@pytest.mark.thin
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("side", [8, 28, 32])
def test_it_fits_every_image_of_the_data_sets_with_the_same_parameters(blocks, side):
    assert shapes(blocks, side) == shapes(blocks, 16)


@pytest.mark.parametrize(("blocks", "side"), [(2, 6), (4, 6), (1, 7), (2, 30)])
def test_an_image_that_cannot_be_halved_is_refused(blocks, side):
    multiple = 2 if blocks == 1 else 4
    with pytest.raises(UserError, match=f"{side}x{side}.*multiples of {multiple}") as caught:
        shapes(blocks, side)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("blocks", [0, -2, 3, 5])
def test_the_number_of_blocks_is_one_or_even(blocks):
    with pytest.raises(UserError, match=rf"^network\.encoder_unet\.blocks = {blocks}: ") as caught:
        EncoderUNet(blocks)
    assert "\n" not in str(caught.value)


def test_the_last_function_is_one_there_is():
    with pytest.raises(UserError, match=r"^network\.encoder_unet\.last = 'relu': must be tanh or none$"):
        EncoderUNet(last="relu")


def test_its_output_starts_at_zero_and_stays_below_one():
    network, x = EncoderUNet(1, channels=4), jnp.ones((2, 4, 4, 2))
    params = quick(network.init)(jax.random.key(0, impl="unsafe_rbg"), x, jnp.zeros(2))
    apply, log_snr = quick(network.apply), jnp.asarray([-5.0, 13.3])
    np.testing.assert_array_equal(apply(params, x, log_snr), jnp.zeros_like(x))
    large = {**params, "conv_out": {"w": params["conv_out"]["w"], "b": jnp.asarray([30.0, -0.5])}}
    want = np.broadcast_to(np.tanh([30.0, -0.5]), x.shape)
    np.testing.assert_allclose(apply(large, x, log_snr), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "size", "ways_out"),
    [
        (1, (7, 9), ("@network.unet()", "--size=6")),
        (2, (7, 9), ("@network.unet()", "--size=4")),
        (4, (6, 6), ("network.encoder_unet.blocks = 1", "@network.unet()", "--size=4")),
        (1, (1, 1), ("@network.unet()", "--size=2")),
    ],
)
def test_the_ways_out_of_a_size_that_cannot_be_halved_work(blocks, size, ways_out):
    network = EncoderUNet(blocks, channels=8)
    with pytest.raises(UserError) as caught:
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *size, 3)), jnp.zeros(1))
    assert all(way in str(caught.value) for way in ways_out)
    assert ("blocks = 1" in str(caught.value)) == ("network.encoder_unet.blocks = 1" in ways_out)
    jax.eval_shape(UNet(1, channels=8).init, jax.random.key(0), jnp.zeros((1, *size, 3)), jnp.zeros(1))
    side = int(ways_out[-1].partition("=")[2])
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros(1))
