"""Where the loss arises, against densities whose quantiles are known."""

import jax
import numpy as np
import pytest

from diffenc.config.settings import Evaluate
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.loss_over_log_snr import LossDraws, concatenate_draws, equal_shares
from diffenc.parallel.sharding import data_mesh
from diffenc.training.state import init_state


def test_points_are_the_quantiles_of_the_loss():
    """The loss e^-lambda on [0, inf), from draws that are uniform on [0, 20]: quantiles -log(1 - q)."""
    log_snr = np.random.default_rng(0).permutation(np.linspace(0, 20, 200_001))
    points = equal_shares(LossDraws(log_snr, np.exp(-log_snr)), 8)
    np.testing.assert_allclose(points, -np.log1p(-(np.arange(8) + 0.5) / 8), atol=2e-4)


def test_a_single_draw_that_costs_has_every_share():
    draws = LossDraws(np.array([3.0, -1.0, 5.0]), np.array([0.0, 2.0, -7.0]))
    assert equal_shares(draws, 4).tolist() == [-1.0] * 4


@pytest.mark.parametrize("loss", [[], [0.0, 0.0], [-1.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_nothing_is_shown_of_no_loss(loss):
    assert equal_shares(LossDraws(np.arange(len(loss), dtype=float), np.array(loss))).size == 0


def test_draws_of_batches_are_put_one_after_the_other():
    rows = [
        LossDraws(np.array([[1, 2], [3, 4]]), np.zeros((2, 2))),
        LossDraws(np.array([[5], [6]]), np.ones((2, 1))),
    ]
    gathered = concatenate_draws(rows)
    assert gathered.log_snr.tolist() == [1, 2, 3, 4, 5, 6]
    assert gathered.diffusion.tolist() == [0, 0, 0, 0, 1, 1]


def test_an_evaluation_keeps_each_draw_of_each_image_and_none_of_the_filling(tiny):
    """13 images in batches of 4: 3 passes of 2 times each are 78 draws, stratified from lambda 6 to -5."""
    experiment = tiny(evaluate=Evaluate(passes=3, times_per_image=2))
    params = jax.jit(lambda: init_state(experiment))().params
    measured = Evaluator(experiment, data_mesh()).measure(params)
    log_snr, diffusion = measured.draws
    assert log_snr.shape == diffusion.shape == (78,)
    np.testing.assert_allclose(diffusion.mean(), measured.terms["diffusion"].mean(), rtol=1e-6)
    t = np.sort((6 - log_snr) / 11)
    np.testing.assert_allclose(t, (np.arange(78) + 0.5) / 78, atol=0.05)
    assert t[0] >= 0 > t[-1] - 1
