"""Norms of y_phi for encoders whose y_phi is written down."""

import jax
import numpy as np

from diffenc.tools.figures import norms


def numbers_of(subject_of, images, y):
    """Of x_phi = alpha^2 x + sigma^2 y."""
    subject = subject_of(
        lambda x, log_snr: jax.nn.sigmoid(log_snr) * x + jax.nn.sigmoid(-log_snr) * y(x, log_snr), images
    )
    numbers = norms.measure_norms(subject)
    return numbers, {name: np.array(value) for name, value in numbers.record.items()}


def test_norms_of_a_known_y(subject_of, images_of):
    """y = x sin(lambda) has the slope x cos(lambda), also where sigma^2 = 1.7e-6, which leaves float32 no digits."""
    images = images_of(0, 9)
    _, got = numbers_of(subject_of, images, lambda x, log_snr: x * jax.numpy.sin(log_snr))
    log_snr = np.linspace(13.3, -5, norms.POINTS)
    square = np.square((2.0 * images + 1) / 256 - 1).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(got["log_snr"], log_snr, rtol=1e-12)
    for name, factor in (("y", np.sin(log_snr)), ("slope", np.cos(log_snr))):
        rms = np.abs(factor) * np.sqrt(square.mean())
        np.testing.assert_allclose(got[f"{name}_rms"], rms, rtol=1e-7)
        error = square.std(ddof=1) / np.sqrt(9) / (2 * np.sqrt(square.mean()))
        np.testing.assert_allclose(got[f"{name}_rms_se"], np.abs(factor) * error, rtol=1e-6)


def test_without_a_y_both_are_nothing(subject_of, images_of):
    _, got = numbers_of(subject_of, images_of(1, 4), lambda x, log_snr: 0 * x)
    for name in ("y_rms", "slope_rms", "y_rms_se", "slope_rms_se"):
        np.testing.assert_allclose(got[name], 0, atol=1e-9)


def test_of_the_identity_y_is_the_image(subject_of, images_of):
    images = images_of(2, 4)
    subject = subject_of(lambda x, log_snr: x, images)
    got = norms.measure_norms(subject).record
    rms = np.sqrt(np.square((2.0 * images + 1) / 256 - 1).mean())
    np.testing.assert_allclose(got["y_rms"], rms, rtol=1e-9)
    np.testing.assert_allclose(got["slope_rms"], 0, atol=1e-9)


def test_the_figure_has_both_curves(subject_of, images_of):
    numbers, got = numbers_of(subject_of, images_of(3, 4), lambda x, log_snr: x * log_snr)
    (axes,) = norms.plot_norms(numbers, "dots test, step 7").axes
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), got["y_rms"])
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata()), got["slope_rms"])
    assert axes.get_xlabel()
    assert "dots test, step 7" in axes.get_title()
