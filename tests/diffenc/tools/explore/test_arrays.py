"""What a model makes of the images, against the formulas in numpy."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import simpson
from scipy.special import expit

from diffenc.core.model import Draws
from diffenc.core.objective import continuous
from diffenc.data.array_dataset import DatasetSpec
from diffenc.errors import UserError
from diffenc.tools.explore import arrays
from diffenc_plugins.variances import Equal, Fixed
from tests.conftest import Dots, told

TIMES = arrays.midpoint_times(5)


class Closed(NamedTuple):
    """The model of `trained` in float64."""

    x: np.ndarray
    eps: np.ndarray
    start: float
    drop: float
    encoder: dict[str, np.ndarray]
    network: dict[str, np.ndarray]

    def log_snr(self, t):
        return self.start - self.drop * t

    def x_hat(self, x_phi, log_snr):
        """alpha z - sigma v, for v = w z + b."""
        alpha, sigma = np.sqrt(expit(log_snr)), np.sqrt(expit(-log_snr))
        z = alpha * x_phi + sigma * self.eps
        return alpha * z - sigma * (self.network["w"] * z + self.network["b"])

    def encoded(self, log_snr):
        """x_phi and its derivative by lambda, for alpha^2 x + sigma^2 y, y = w x + b."""
        y = self.encoder["w"] * self.x + self.encoder["b"]
        alpha_2, sigma_2 = expit(log_snr), expit(-log_snr)
        return alpha_2 * self.x + sigma_2 * y, alpha_2 * sigma_2 * (self.x - y)


def closed(model, shown) -> Closed:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    schedule = params["schedule"]
    x = 2 * (shown.levels.astype(np.float64) + 0.5) / 5 - 1
    drop = np.log1p(np.exp(schedule["raw_drop"])) + 0.01
    return Closed(
        x,
        shown.eps.astype(np.float64),
        schedule["start"],
        drop,
        params.get("encoder") or {},
        params["network"],
    )


def bits(weight, residual):
    return weight * np.square(residual).sum(axis=(1, 2, 3)) / (16 * np.log(2))


@pytest.fixture(scope="module")
def plain(trained):
    return trained(plain=True)


@pytest.fixture(scope="module")
def shown(plain):
    return arrays.choose_images([plain], 6)


def test_of_vdm_the_encoded_image_is_the_image_and_the_share_that_of_its_error(plain, shown):
    """-1/2 dSNR/dt || x_hat - x ||^2 [VDM, 14]."""
    panels, by_hand = arrays.measure_panels(plain, shown, TIMES), closed(plain, shown)
    for k, t in enumerate(TIMES):
        log_snr = by_hand.log_snr(t)
        np.testing.assert_allclose(panels.x_phi[:, k], by_hand.x, atol=1e-6)
        x_hat = by_hand.x_hat(by_hand.x, log_snr)
        np.testing.assert_allclose(panels.x_hat[:, k], x_hat, atol=1e-5)
        np.testing.assert_allclose(panels.residual[:, k], x_hat - by_hand.x, atol=1e-5)
        expected = bits(0.5 * by_hand.drop * np.exp(log_snr), x_hat - by_hand.x)
        np.testing.assert_allclose(panels.bits[:, k], expected, rtol=1e-4)
        np.testing.assert_allclose(
            [panels.log_snr[k], panels.alpha[k] ** 2, panels.sigma[k] ** 2],
            [log_snr, expit(log_snr), expit(-log_snr)],
            rtol=1e-5,
        )
    np.testing.assert_allclose(panels.time, TIMES, rtol=1e-6)


def test_with_an_encoder_the_slope_is_part_of_the_residual(trained, shown):
    """x_hat - x_phi + sigma^2 x_hat - dx_phi/dlambda [18]."""
    model = trained()
    panels, by_hand = arrays.measure_panels(model, shown, TIMES), closed(model, shown)
    for k, t in enumerate(TIMES):
        log_snr = by_hand.log_snr(t)
        x_phi, slope = by_hand.encoded(log_snr)
        x_hat = by_hand.x_hat(x_phi, log_snr)
        residual = x_hat - x_phi + expit(-log_snr) * x_hat - slope
        np.testing.assert_allclose(panels.x_phi[:, k], x_phi, atol=1e-6)
        np.testing.assert_allclose(panels.residual[:, k], residual, atol=1e-5)
        expected = bits(0.5 * by_hand.drop * np.exp(log_snr), residual)
        np.testing.assert_allclose(panels.bits[:, k], expected, rtol=1e-4)


@pytest.mark.parametrize("w", [1.0, 0.9])
def test_at_t_steps_a_time_stands_for_its_step_from_the_noisier_end(trained, shown, w):
    """T w/2 (SNR_s - SNR_t) || x_hat(z_t) - x ||^2 [VDM, 13], and T d/2 (w - 1 - log w), w = sigma_Q^2 / sigma_P^2."""
    model = trained(plain=True, num_timesteps=4, variance=Fixed(w) if w != 1 else Equal())
    offset = 2 * (w - 1 - np.log(w)) / np.log(2)
    times = np.array([0.1, 0.3, 0.6, 0.9])  # one in each step
    panels, by_hand = arrays.measure_panels(model, shown, times), closed(model, shown)
    np.testing.assert_allclose(panels.time, [0.25, 0.5, 0.75, 1])
    for k in range(4):
        log_snr_s, log_snr_t = by_hand.log_snr(k / 4), by_hand.log_snr((k + 1) / 4)
        x_hat = by_hand.x_hat(by_hand.x, log_snr_t)
        expected = bits(2 * w * (np.exp(log_snr_s) - np.exp(log_snr_t)), x_hat - by_hand.x)
        np.testing.assert_allclose(panels.bits[:, k], expected + offset, rtol=1e-4)
        np.testing.assert_allclose(panels.log_snr[k], log_snr_t, rtol=1e-5)


def test_the_mean_over_t_is_the_diffusion_loss(plain, shown):
    """Of the same noise: the integral over t by Simpson's rule, and the mean of `Model.elbo` over these draws."""
    times = arrays.midpoint_times(200)
    measured = arrays.measure_panels(plain, shown, times).bits
    by_hand, grid = closed(plain, shown), np.linspace(0, 1, 2001)
    curve = []
    for t in grid:
        log_snr = by_hand.log_snr(t)
        residual = by_hand.x_hat(by_hand.x, log_snr) - by_hand.x
        curve.append(bits(0.5 * by_hand.drop * np.exp(log_snr), residual))
    np.testing.assert_allclose(measured.mean(axis=1), simpson(np.array(curve), x=grid, axis=0), rtol=1e-4)

    @jax.jit
    def diffusion(t):
        draws = Draws(jnp.full(6, t), jnp.asarray(shown.eps), jnp.asarray(shown.eps))
        levels = jnp.asarray(shown.levels)
        return plain.model.elbo(plain.params, levels, draws, num_levels=5, step_rule=continuous).diffusion

    for k in (0, 77, 199):
        expected = np.asarray(diffusion(times[k])) / (16 * np.log(2))
        np.testing.assert_allclose(measured[:, k], expected, rtol=1e-5)


def test_an_image_keeps_its_noise_whatever_the_others_are():
    some = arrays.draw_eps(np.array([3, 7, 11]), (4, 4, 1))
    np.testing.assert_array_equal(some[1], arrays.draw_eps(np.array([7]), (4, 4, 1))[0])
    many = arrays.draw_eps(np.arange(2000), (4, 4, 1))
    np.testing.assert_allclose([many.mean(), many.std()], [0, 1], atol=0.02)
    assert not np.array_equal(some[0], some[1])


def test_images_are_of_the_split_and_more_contain_fewer(plain):
    split = Dots().source("test")
    for count in (5, 13, 100):
        shown = arrays.choose_images([plain], count)
        assert len(shown.indices) == min(count, 13)
        np.testing.assert_array_equal(shown.levels, split.images[shown.indices])  # pyright: ignore[reportAttributeAccessIssue]
        np.testing.assert_array_equal(shown.labels, shown.indices % 3)
    few, more = (set(arrays.choose_images([plain], count).indices) for count in (3, 7))
    assert few < more
    assert (shown.split, shown.fingerprint) == ("test", "test of dots")


def test_a_conditional_model_is_given_the_classes(trained, tiny):
    experiment = told()
    params = jax.jit(experiment.init_params)(jax.random.key(0))
    params["network"]["b"] = params["network"]["b"] + np.arange(4.0).reshape(4, 1, 1, 1)
    model = dataclasses.replace(trained(), experiment=experiment, params=params)
    shown = arrays.choose_images([model], 6)
    panels = arrays.measure_panels(model, shown, TIMES)
    unconditional = {**params, "network": {**params["network"], "b": params["network"]["b"][:1].repeat(4, 0)}}
    without = arrays.measure_panels(dataclasses.replace(model, params=unconditional), shown, TIMES)
    # b enters x_hat as -sigma b, and b of class k is that of no class plus k + 1.
    difference = (without.x_hat - panels.x_hat) / panels.sigma[:, None, None, None]
    expected = np.broadcast_to((shown.labels + 1.0)[:, None, None, None, None], difference.shape)
    np.testing.assert_allclose(difference, expected, rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Others(Dots):
    """Dots of other pixels."""

    def fingerprint(self, split: str) -> str:
        return f"{split} of others"


@dataclasses.dataclass(frozen=True)
class Wider(Dots):
    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 4, 8, 1


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (
            Others(),
            r"runs/b: its images are others \(Others test, pixels test of others\) than those of runs/a",
        ),
        (Wider(), r"runs/b: its images are \[4, 8, 1\] in 5 levels, those of runs/a \[4, 4, 1\] in 5 levels"),
    ],
)
def test_two_models_of_different_images_are_refused(trained, dataset, said):
    models = [trained("runs/a"), trained("runs/b", dataset=dataset)]
    with pytest.raises(UserError, match=rf"{said}.*name one WORKDIR"):
        arrays.choose_images(models, 3)


def test_a_model_without_images_is_refused(trained):
    model = trained("exports/a")
    experiment = dataclasses.replace(model.experiment, dataset=DatasetSpec("dots", (4, 4, 1), 5, 3))
    with pytest.raises(UserError, match="exports/a: an export comes without images; name the workdir"):
        arrays.choose_images([dataclasses.replace(model, experiment=experiment)], 3)
