import jax
import numpy as np
import pytest

from diffenc.tools.figures import schedule as figure_schedule
from diffenc.tools.figures.figure_data import FigureRecord
from diffenc_plugins.schedules import Linear, Monotone


def test_a_linear_schedule_by_hand():
    t = np.array([0.0, 0.5, 1.0])
    got = figure_schedule.schedule_curves(Linear(8.0, -4.0), {}, t)
    np.testing.assert_allclose(got["log_snr"], [8, 2, -4], rtol=1e-6)
    np.testing.assert_allclose(got["rate"], 12, rtol=1e-6)
    np.testing.assert_allclose(got["alpha_squared"], [0.99966465, 0.88079708, 0.01798621], rtol=1e-6)
    np.testing.assert_allclose(np.add(got["alpha_squared"], got["sigma_squared"]), 1, rtol=1e-6)


def test_the_rate_of_a_learned_one_is_its_difference_quotient(x64):
    schedule = Monotone()
    params = schedule.init(jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params
    )  # trained
    t, h = np.linspace(0.1, 0.9, 5)[:, None], 1e-5
    got = figure_schedule.schedule_curves(schedule, params, (t + np.array([-h, 0, h])).ravel())
    log_snr, rate = (np.reshape(got[name], (5, 3)) for name in ("log_snr", "rate"))
    np.testing.assert_allclose(rate[:, 1], -(log_snr[:, 2] - log_snr[:, 0]) / (2 * h), rtol=1e-6)
    assert rate.min() > 0 < np.ptp(rate), "it is no line"


def test_the_figure_shows_four_curves(subject_of, images_of):
    numbers = figure_schedule.measure_schedule(subject_of(lambda x, log_snr: x, images_of(0, 3)))
    assert len(numbers.record["t"]) == figure_schedule.POINTS
    np.testing.assert_allclose(numbers.record["log_snr"][100], 13.3 - 18.3 / 2, rtol=1e-12)
    figure = figure_schedule.plot_schedule(numbers, "dots, step 7")
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 1]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert "13.30 to -5.00" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("rate", "scale"),
    [
        (np.full(5, 18.3), "linear"),
        (np.linspace(16, 20, 5), "linear"),
        (np.array([3000.0, 20, 7, 6, 40]), "log"),  # a cosine schedule's, near the data
        (np.array([20.0, 20, 20, 20, 0.1]), "log"),
        (np.array([0.0, 1, 2, 50, 0]), "symlog"),
        (np.array([np.inf, 20, 7, 6, 8]), "linear"),
        (np.zeros(5), "linear"),
    ],
)
def test_a_rate_whose_spike_would_hide_the_rest_is_drawn_on_a_logarithmic_scale(rate, scale):
    t = np.linspace(0, 1, 5).tolist()
    names = ("log_snr", "alpha_squared", "sigma_squared")
    record = {"t": t, "rate": rate.tolist(), **dict.fromkeys(names, t)}
    figure = figure_schedule.plot_schedule(FigureRecord(record), "dots, step 7")
    axes = figure.axes[2]
    figure.draw_without_rendering()
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    finite = rate[np.isfinite(rate)]
    assert low <= finite.min()
    assert finite.max() <= high < 10 * max(finite.max(), 1)
    assert scale != "linear" or low == 0 or not finite.any()
