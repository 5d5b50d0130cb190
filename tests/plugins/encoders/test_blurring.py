from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, ndimage

from diffenc.errors import UserError
from diffenc_plugins.encoders import Blurring, Identity, Nontrainable
from diffenc_plugins.encoders.blurring import blur

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 6, 8, 2))
LOG_SNR = np.array([-7.0, -0.5, 13.3])
SIGMA_2 = 1 / (1 + np.exp(LOG_SNR))


def by_scipy(images, width) -> Any:
    """Each image's cosine modes damped, one by one."""
    modes: Any = fft.dctn(images, axes=(1, 2), norm="ortho")
    for b, i, j in np.ndindex(*modes.shape[:3]):
        squared = (np.pi * i / images.shape[1]) ** 2 + (np.pi * j / images.shape[2]) ** 2
        modes[b, i, j] *= np.exp(-squared * width[b] ** 2 / 2)
    return fft.idctn(modes, axes=(1, 2), norm="ortho")


@pytest.mark.parametrize(
    ("encoder", "factor"), [(Identity(), 1 + 0 * SIGMA_2), (Nontrainable(), 1 - SIGMA_2)]
)
def test_value_and_slope_by_scipy(x64, encoder, factor):
    def encode(log_snr):
        return Blurring(encoder, width=3.0).apply({}, jnp.asarray(IMAGES), log_snr)

    log_snr, h = jnp.asarray(LOG_SNR), 1e-5
    value, slope = jax.jvp(encode, (log_snr,), (jnp.ones(3),))

    def want(shift):
        sigma_2 = 1 / (1 + np.exp(LOG_SNR + shift))
        alpha_2 = np.where(factor == 1, 1, 1 - sigma_2)
        return by_scipy(IMAGES, 3 * sigma_2) * alpha_2[:, None, None, None]

    np.testing.assert_allclose(value, want(0), atol=1e-12)
    np.testing.assert_allclose(slope, (want(h) - want(-h)) / (2 * h), atol=1e-9)


def test_it_is_the_blur_of_image_processing(x64):
    """In pixels: a narrow blur, of a smooth image, by a sampled Gaussian with the edges reflected."""
    image = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(32, 32)), 2, mode="reflect")
    want = ndimage.gaussian_filter(image, 2.5, mode="reflect", truncate=8)
    got = blur(jnp.asarray(image)[None, :, :, None], jnp.asarray([2.5]))[0, :, :, 0]
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(image).max())


def test_detail_only_fades_and_the_mean_stays():
    x = jnp.asarray(np.broadcast_to(IMAGES[:1], (20, 6, 8, 2)), jnp.float32)
    encoded = np.asarray(Blurring(width=3.0).apply({}, x, jnp.linspace(13.3, -5, 20)), np.float64)
    modes: Any = fft.dctn(encoded, axes=(1, 2), norm="ortho")
    power = np.abs(modes)
    assert np.all(np.diff(power, axis=0) <= 1e-5)
    np.testing.assert_allclose(
        encoded.mean(axis=(1, 2)), np.tile(IMAGES[0].mean(axis=(0, 1)), (20, 1)), atol=1e-6
    )
    assert encoded[-1].std(axis=(0, 1)).max() < 0.2 * IMAGES[0].std(axis=(0, 1)).min()


def test_at_t_0_not_a_digit_is_lost_to_a_wide_blur():
    """SNR is 6e5 there: 1e-4 of a pixel would cost the reconstruction."""
    x = jnp.asarray(IMAGES, jnp.float32)
    np.testing.assert_allclose(Blurring(width=20.0).apply({}, x, jnp.full(3, 13.3)), x, atol=2e-7)


def test_a_negative_width_is_refused():
    with pytest.raises(UserError, match=r"^encoder\.blurring\.width = -1\.0: must not be negative$"):
        Blurring(width=-1.0)
