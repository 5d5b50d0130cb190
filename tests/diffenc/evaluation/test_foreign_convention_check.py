"""Warnings of conventions that are not those of a denoiser's training."""

import numpy as np
import pytest

import diffenc
from diffenc.evaluation.foreign_convention_check import find_excess
from diffenc.evaluation.loss_over_log_snr import LossDraws

RANDOM = np.random.default_rng(0)
LOG_SNR = RANDOM.uniform(-5, 10, 200)


def test_losses_below_the_constant_are_not_warned_of():
    loss = np.abs(RANDOM.normal(0.5, 0.1, 200))
    assert find_excess(LossDraws(LOG_SNR, loss), np.ones(200)) is None


def test_noise_is_not_warned_of():
    """Loss and constant agree on average."""
    loss = RANDOM.normal(1.0, 0.5, 200)
    assert find_excess(LossDraws(LOG_SNR, loss), np.ones(200)) is None


def test_what_is_too_small_to_matter_is_not_warned_of():
    loss, constant = np.full(200, 100.0), np.full(200, 200.0)
    low = np.sort(LOG_SNR)[50] > LOG_SNR
    loss[low], constant[low] = 1e-3, 1e-5
    assert find_excess(LossDraws(LOG_SNR, loss), constant) is None


def test_the_range_and_the_ratio_are_found():
    loss = np.where(LOG_SNR < 0, 3.0, 0.5)
    found = find_excess(LossDraws(LOG_SNR, loss), np.ones(200))
    assert found is not None
    assert found.log_snr[0] == pytest.approx(LOG_SNR.min())
    assert -2 < found.log_snr[1] < 2.5
    assert 2 < found.ratio <= 3


def test_a_loss_that_is_not_finite_has_its_own_warning():
    assert find_excess(LossDraws(LOG_SNR, np.full(200, np.nan)), np.ones(200)) is None


IMAGES = np.clip(np.round(np.random.default_rng(1).normal(127.5, 50, (64, 6, 6, 1))), 0, 255).astype(np.uint8)
VARIANCE = float(np.var(IMAGES / 127.5 - 1))


def column(level):
    return np.asarray(level, np.float64).reshape(-1, 1, 1, 1)


def edm(z, sigma):
    """The best linear estimate of x in EDM's convention."""
    return (VARIANCE * np.asarray(z) / (VARIANCE + column(sigma) ** 2)).astype(np.float32)


def flow(z, t):
    """The best linear velocity eps - x, where t = 1 is noise."""
    t, z = column(t), np.asarray(z)
    both = (1 - t) ** 2 * VARIANCE + t**2
    return ((t - (1 - t) * VARIANCE) * z / both).astype(np.float32)


def flow_to_data(z, t):
    """x - eps, where t = 1 is data."""
    return -flow(z, 1 - np.asarray(t))


def edm_of_unit_pixels(z, sigma):
    """The best linear estimate where pixels are 0 to 1."""
    variance = VARIANCE / 4
    return (0.5 + variance * (np.asarray(z) - 0.5) / (variance + column(sigma) ** 2)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("denoiser", "given", "right"),
    [
        (edm, {"predicts": "x", "process": "vp"}, "predicts = 'x', process = 've'"),
        (edm, {"predicts": "eps", "process": "ve"}, "predicts = 'x'"),
        (flow, {"predicts": "x", "process": "flow"}, "predicts = 'v'"),
        (flow_to_data, {"predicts": "v", "process": "flow"}, "predicts = 'v' with its sign changed, a time that runs"),
        (lambda z, t: -flow(z, t), {"predicts": "v", "process": "flow"}, "predicts = 'v' with its sign changed"),
        (edm_of_unit_pixels, {"predicts": "x", "process": "ve"}, r"pixel_range = (0.0, 1.0)"),
    ],
)  # fmt: skip
def test_the_convention_that_it_was_trained_in_is_named(denoiser, given, right):
    (warning,) = diffenc.bound(denoiser, IMAGES, passes=8, log_snr=(5.0, -5.0), **given).warnings
    assert f"this looks like {right}" in warning


@pytest.mark.slow
def test_an_untrained_network_is_not_taken_for_one_of_another_convention():
    """An output near 0 is hardly better read as v."""
    (warning,) = diffenc.bound(lambda z, level: 0.01 * z, IMAGES, passes=8).warnings
    assert "no other convention that was tried explains it" in warning


@pytest.mark.slow
def test_a_denoiser_that_is_far_too_large_fits_no_convention():
    (warning,) = diffenc.bound(lambda z, level: 1000 * z**3, IMAGES, passes=4).warnings
    assert "no other convention that was tried explains it" in warning


def test_a_denoiser_that_fails_at_other_noise_levels_keeps_its_bound():
    """Other conventions are tried for a warning's sake alone: what the user's code says to them must not end the measurement."""

    def only_times(z, t):
        if not 0 <= np.min(t) <= np.max(t) <= 1:
            raise ValueError("t is from 0 to 1")
        return 1000 * z**3

    result = diffenc.bound(only_times, IMAGES, predicts="v", process="flow", passes=2)
    assert np.isfinite(result.bits_per_dim)
    assert len(result.warnings) == 1
