"""Spectra of patterns whose frequency is known, and of encoders that brighten early and sharpen late."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.tools.figures import spectra
from diffenc.tools.figures.figure_data import EncodedImages


def wave(height, width, down, across):
    """A pattern with `down` half turns over the height and `across` over the width."""
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    return np.outer(np.cos(np.pi * down * y / height), np.cos(np.pi * across * x / width))


@pytest.mark.parametrize(
    ("down", "across", "frequency"),
    [
        (0, 0, 0.0),
        (3, 0, 3 / 12),
        (0, 4, 4 / 16),
        (3, 4, 0.25 * np.sqrt(2)),
        (5, 7, np.hypot(5 / 12, 7 / 16)),
    ],
)
def test_a_wave_has_its_own_frequency_alone(down, across, frequency):
    """Of 6 by 8 pixels: k half turns over n pixels are k / 2n cycles a pixel."""
    images = wave(6, 8, down, across)[None, None, :, :, None] * np.array([2.0, -1.0])
    power = spectra.power_spectrum(images)
    np.testing.assert_allclose(power.sum(), np.square(images).sum(), rtol=1e-12)
    assert spectra.cycles_per_pixel(6, 8)[down, across] == pytest.approx(frequency, abs=1e-12)
    mean, _ = spectra.mean_frequency(power)
    np.testing.assert_allclose(mean, [frequency], atol=1e-9)
    rings = spectra.ring_indices(6, 8)
    shares = spectra.radial_spectrum(power, rings)[0]
    assert shares.argmax() == round(frequency * 16)
    np.testing.assert_allclose(shares.max(), 1, rtol=1e-9)


def test_the_mean_frequency_weighs_images_by_their_power():
    """Powers 9 at 1/4 and 1 at 0: 9/10 of 1/4. The error by linearising sum(f P) / sum(P) over two images."""
    images = np.stack([3 * wave(6, 8, 3, 0) / np.sqrt(24), wave(6, 8, 0, 0) / np.sqrt(48)])
    mean, shares = spectra.mean_frequency(spectra.power_spectrum(images[:, None, :, :, None]))
    np.testing.assert_allclose(mean, 0.225, rtol=1e-12)
    np.testing.assert_allclose(shares[:, 0], [(2.25 - 0.225 * 9) / 10, -0.225 / 10], rtol=1e-9)


def test_the_error_is_the_spread_of_many_sets():
    """Over 400 sets of 50 images whose powers at two frequencies vary independently."""
    random = np.random.default_rng(0)
    slow, fast = random.exponential(size=(2, 400, 50, 1))
    means, errors = [], []
    for a, b in zip(slow, fast, strict=True):
        value, shares = spectra.ratio_of_sums(0.4 * b, a + b)
        means.append(value[0])
        errors.append(spectra.sum_errors(shares)[0])
    assert np.std(means, ddof=1) == pytest.approx(np.mean(errors), rel=0.1)


def test_an_encoder_that_sharpens_early_and_brightens_late(subject_of, images_of):
    """x_phi = x + early wave + late brightness: its change has the frequency 7/16 early, and 0 late."""
    early, late = (jnp.asarray(wave(6, 8, *turns))[None, :, :, None] for turns in ((0, 7), (0, 0)))

    def encode(x, log_snr):
        return x + jax.nn.sigmoid(-(log_snr - 8)) * early + jax.nn.sigmoid(-20 * (log_snr + 4)) * late

    subject = subject_of(encode, images_of(0, 6), times=(0.3, 0.6, 1.0), gap=0.1)
    got = spectra.measure_spectra(subject).record
    np.testing.assert_allclose(got["change_mean_frequency"], [7 / 16, 7 / 16, 0], atol=1e-3)
    np.testing.assert_allclose(got["change_late_minus_early"], -7 / 16, atol=1e-3)
    assert got["change_late_minus_early_se"] < 1e-9, "it does the same to all images"
    assert np.argmax(got["change_spectrum"], axis=1).tolist() == [7, 7, 0]
    assert np.all(np.array(got["beyond_last"])[:2] > 0.99)
    np.testing.assert_allclose(got["beyond_last"][2], 0, atol=1e-12)
    assert got["frequency"][7] == 7 / 16


def test_an_encoder_that_only_shrinks_has_the_spectrum_of_the_images(subject_of, images_of):
    images = images_of(1, 12)
    got = spectra.measure_spectra(subject_of(lambda x, log_snr: jax.nn.sigmoid(log_snr) * x, images)).record
    x = (2.0 * images[..., 0] + 1) / 256 - 1
    moment = power = 0.0
    for down in range(6):  # the transform by its definition
        for across in range(8):
            unit = wave(6, 8, down, across)
            coefficients = np.einsum("nhw,hw->n", x, unit / np.linalg.norm(unit))
            power += np.square(coefficients).sum()
            moment += np.square(coefficients).sum() * np.hypot(down / 12, across / 16)
    np.testing.assert_allclose(got["change_mean_frequency"], moment / power, rtol=1e-6)
    np.testing.assert_allclose(got["x_mean_frequency"], moment / power, rtol=1e-9)
    np.testing.assert_allclose(got["change_spectrum"], np.tile(got["x_spectrum"], (10, 1)), rtol=1e-5)
    np.testing.assert_allclose([*got["beyond_x"], *got["beyond_last"]], 0, atol=1e-9)
    assert np.isnan(got["learned_mean_frequency"]).all()
    assert np.abs(got["change_late_minus_early"]) < 1e-9


def test_what_is_beyond_a_multiple_of_the_reference():
    """Changes 3 along the image and 4 across it: 16 of 25; another of power 75 along it: 16 of 100."""
    x = np.array([[1.0, 0], [0, 2.0]]).reshape(2, 1, 2, 1)
    change = np.array([[3.0, 4.0], [0, np.sqrt(75)]]).reshape(2, 1, 1, 2, 1)
    value, _ = spectra.unexplained_share(change[:1], x[:1])
    np.testing.assert_allclose(value, [16 / 25])
    value, error = spectra.unexplained_share(change, x)
    np.testing.assert_allclose(value, [0.16])
    shares = np.array([16 - 0.16 * 25, -0.16 * 75]) / 100
    np.testing.assert_allclose(error, [np.sqrt(2 * np.square(shares).sum())])


def test_nothing_is_said_to_be_nothing(subject_of, images_of):
    record = spectra.measure_spectra(subject_of(lambda x, log_snr: x, images_of(2, 4))).record
    assert "changes nothing" in record["note"]


def test_the_figure_has_its_curves(subject_of, images_of):
    numbers = spectra.measure_spectra(
        subject_of(lambda x, log_snr: jax.nn.sigmoid(log_snr) * x**2, images_of(3, 4))
    )
    left, right = spectra.plot_spectra(numbers, "dots test, step 7").axes
    assert [line.get_label() for line in left.lines] == [
        "change, t = 0.1", "change, t = 0.5", "change, t = 1", "images x",
    ]  # fmt: skip
    np.testing.assert_allclose(
        np.asarray(right.lines[0].get_ydata()), numbers.record["change_mean_frequency"]
    )
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (left, right))


def test_one_time_is_enough(subject_of, images_of):
    subject = subject_of(
        lambda x, log_snr: jax.nn.sigmoid(log_snr) * x, images_of(4, 4), times=(0.8,), gap=0.1
    )
    numbers = spectra.measure_spectra(subject)
    assert numbers.record["change_late_minus_early"] == 0
    assert len(spectra.plot_spectra(numbers, "title").axes[0].lines) == 2


def test_encoded_parts_are_what_is_compared(images_of):
    x = images_of(5, 2) / 128.0 - 1
    encoded = EncodedImages(x, x[:, None], -2.0 * x[:, None], np.array([-2.0]))
    assert encoded.parts.keys() == {"change", "learned", "x"}
    np.testing.assert_array_equal(encoded.parts["learned"], 0)
