"""What a path and a slope head save, of models whose errors are linear in the image and the noise, by numerical minimisation."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from diffenc.config.settings import Diagnose
from diffenc.core.model import Model
from diffenc.evaluation import worth
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.streaming_stats import ImageMeans
from diffenc.evaluation.worth import SAVINGS, worth_record
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel.sharding import data_mesh
from diffenc_plugins.encoders import Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant

BINS, PARAMS = 5, {"encoder": {}, "schedule": {}, "network": {}}
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(12)


@dataclasses.dataclass(frozen=True)
class Linearly:
    """v_hat = 0.6 z; or that of the best linear estimate of x_phi = alpha^2 x, for pixels of mean square `power`."""

    power: float | None = None

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        if self.power is None:
            return 0.6 * z
        alpha, sigma = (1 / jnp.sqrt(1 + jnp.exp(-sign * log_snr))[:, None, None, None] for sign in (1, -1))
        x_hat = alpha**5 * self.power * z / (alpha**6 * self.power + sigma**2)
        return (alpha * z - x_hat) / sigma


def record_of(tiny, model, passes=60, bins=BINS, **settings):
    diagnose = Diagnose(num_images=None, passes=passes, bins=bins, **settings)
    experiment = tiny(model=model, batch_size=23, diagnose=diagnose)
    resolved = resolve_batch_size(experiment.diagnose, experiment.batch_size)
    return worth_record(model, experiment.dataset, resolved, data_mesh(), PARAMS)


def power_of(tiny):
    """Mean square of the pixels of train."""
    images = tiny().dataset.source("train").images.astype(np.float64)
    return float(np.mean(np.square((2 * images + 1) / 5 - 1)))


def losses_of(power, path_of_training):
    """For each bin, the mean loss in bits/dim as a function of eta^2 and c: 0.6 z on nt, slope 0; from the definitions."""
    for low, high in zip(np.linspace(0, 1, BINS + 1)[:-1], np.linspace(0, 1, BINS + 1)[1:], strict=True):
        t = (low + high) / 2 + (high - low) / 2 * NODES
        log_snr = 4 - 7 * t
        alpha, sigma = (1 / np.sqrt(1 + np.exp(-sign * log_snr)) for sign in (1, -1))
        k = alpha - 0.6 * sigma
        of_value, of_slope = (k * alpha**3 - alpha**2, k * sigma), (-(alpha**2) * sigma**2, 0 * sigma)
        value = k * alpha**3, k * sigma

        def loss(eta_2, c, parts=(of_value, of_slope, value), log_snr=log_snr):
            x, eps = (0.5 * (1 + eta_2) * parts[0][i] + parts[1][i] + c * parts[2][i] for i in (0, 1))
            each = 0.5 * 7 * np.exp(log_snr) * (x**2 * power + eps**2) / eta_2
            return NODE_WEIGHTS @ each / 2 / np.log(2)

        yield loss


def least_losses(loss, eta) -> tuple[float, float, float]:
    """With the best eta^2, the best c, and both, by an optimiser."""
    found: list[Any] = [
        optimize.minimize_scalar(lambda x: loss(np.exp(x), 0.0), bounds=(-4, 4), method="bounded"),
        optimize.minimize_scalar(lambda c: loss(eta**2, c)),
        optimize.minimize(lambda x: loss(np.exp(x[0]), x[1]), [0.0, 0.0]),
    ]
    path, slope, both = (float(one.fun) for one in found)
    return path, slope, both


@pytest.mark.parametrize("eta", [1.0, 1.4])
def test_savings_are_the_differences_of_minima(tiny, eta):
    model = Model(Nontrainable(), Linear(4.0, -3.0), V(), VDM(), Linearly(), stochasticity=Constant(eta))
    record = record_of(tiny, model)
    want: dict[str, list[float]] = {name: [] for name in ("diffusion", *SAVINGS)}
    for loss in losses_of(power_of(tiny), eta):
        trained = loss(eta**2, 0.0)
        want["diffusion"].append(trained)
        for name, found in zip(SAVINGS, least_losses(loss, eta), strict=True):
            want[name].append(trained - found)
    rounding = 1e-3 * np.mean(want["diffusion"])
    for name, values in want.items():
        density, error = (np.asarray(record[f"density_{name}{kind}"]) for kind in ("", "_se"))
        expected = np.asarray(values) / 7
        assert np.all(np.abs(density - expected) < 4 * error + rounding), name
        total, error = record[f"bpd_{name}"], record[f"bpd_{name}_se"]
        assert abs(total - np.mean(values)) < 4 * error + rounding
    assert record["bpd_saved_by_both"] > max(record["bpd_saved_by_path"], record["bpd_saved_by_slope"]) > 0.01
    assert record["bpd"] == pytest.approx(
        record["bpd_reconstruction"] + record["bpd_latent"] + record["bpd_diffusion"], rel=1e-9
    )


def test_of_a_calibrated_model_only_the_path_saves(tiny):
    """nt with its own slope: the errors are orthogonal to the value, and eta^2 = 1 + 2 sigma^2 saves what is known."""
    model = Model(Nontrainable(), Linear(4.0, -3.0), V(), Counterterm(), Linearly(power_of(tiny)))
    record = record_of(tiny, model, bins=25)
    assert abs(record["bpd_saved_by_slope"]) < 4 * record["bpd_saved_by_slope_se"] + 1e-3
    sigma_2 = 1 / (1 + np.exp(np.asarray(record["log_snr_centre"])))
    saved = np.asarray(record["density_saved_by_path"]) / np.asarray(record["density_diffusion"])
    np.testing.assert_allclose(saved, 1 - (1 + 2 * sigma_2) / (1 + sigma_2) ** 2, atol=0.02)
    np.testing.assert_allclose(record["eta_2"], 1 + 2 * sigma_2, rtol=0.02)
    assert record["bpd_saved_by_path"] == pytest.approx(record["bpd_saved_by_both"], abs=6e-3)


def test_halves_are_fitted_to_each_other_so_that_noise_saves_nothing(tiny):
    """A few draws of each bin would find a slope in noise: what they find costs on other images."""
    model = Model(Nontrainable(), Linear(4.0, -3.0), V(), Counterterm(), Linearly(power_of(tiny)))
    found = [record_of(tiny, model, passes=3, seed=seed)["bpd_saved_by_slope"] for seed in range(8)]
    assert np.mean(found) < np.std(found) / np.sqrt(8)


def test_a_bin_without_draws_of_a_half_changes_nothing_in_the_other():
    """Its moments are 0: the path of training, and no slope."""
    names: list[str] = ["xx", "xs", "ss", "xv", "sv", "vv", "ev", "vv_on_path"]
    moments = {name: np.zeros(3) for name in names}
    np.testing.assert_array_equal(worth.best_eta_2(moments), 1)
    eta_2, c = worth.best_both(moments)
    np.testing.assert_array_equal([*eta_2, *c], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(worth.best_multiple_on_path(moments), 0)


def test_the_error_of_a_combination_is_that_of_its_values():
    random = np.random.default_rng(0)
    image, index = random.integers(0, 30, 900), random.integers(0, 4, 900)
    one, other, weight = random.normal(size=900), random.normal(size=900), random.normal(size=(30, 4))
    means = [ImageMeans(30, 4) for _ in range(3)]
    for mean, values in zip(means, (one, other, weight[image, index] * one - 2 * other), strict=True):
        mean.add(image, index, values)
    combined = ImageMeans.combine([(weight, means[0]), (np.full((1, 4), -2.0), means[1])])
    for name in ("mean", "standard_error", "count", "by_image"):
        np.testing.assert_allclose(getattr(combined, name), getattr(means[2], name), rtol=1e-12)
    half = np.arange(30) < 15
    some = ImageMeans(15, 4)
    some.add(image[image < 15], index[image < 15], one[image < 15])
    np.testing.assert_allclose(means[0].select(half).mean, some.mean)
