"""A run whose path is learned, through training, every measurement, and its export."""

import dataclasses

import jax
import numpy as np
import pytest

import diffenc
from diffenc.config.settings import Evaluate, Fit, KSample
from diffenc.core.parameters import name_leaves
from diffenc.evaluation import commands, diagnose, fit_schedule, fit_variance, k_sample
from diffenc.evaluation.restore_params import restore_ema
from diffenc.export import export
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop
from diffenc_plugins.stochasticities import Learned
from diffenc_plugins.variances import Fitted

PATH = Learned(-4.0, 4.0, 3)
SPELT = "learned(log_snr_min=-4.0, log_snr_max=4.0, knots=3)"


@pytest.fixture(scope="module")
def experiment(tiny):
    model = dataclasses.replace(tiny().model, stochasticity=PATH)
    return tiny(model=model, steps=6, fit=Fit(batch_size=8, passes=4, knots=9), k_sample=KSample(samples=3))


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned_path") / "run"
    loop.train(experiment, folder)
    return folder


def at(experiment, **evaluate):
    return dataclasses.replace(experiment, evaluate=Evaluate(**{"passes": 2, "num_timesteps": 4, **evaluate}))


def test_the_bound_trains_it(experiment, workdir):
    ema, _ = restore_ema(experiment, workdir, data_mesh(), None)
    learned = np.asarray(ema["stochasticity"]["log_eta_2"])
    assert learned.shape == (3,)
    assert np.all(learned != 0)
    assert "stochasticity/log_eta_2" in name_leaves(ema)


@pytest.mark.slow
def test_every_measurement_is_on_it_and_says_so(experiment, workdir):
    continuous = commands.evaluate(at(experiment, num_timesteps=0), workdir)
    many = k_sample.k_sample(at(experiment), workdir)
    for record in (continuous, many, *diagnose.diagnose(experiment, workdir).values()):
        assert record["stochasticity"] == SPELT
    assert np.isfinite([continuous["bpd"], many["bpd_k_sample"]]).all()


@pytest.mark.slow
def test_fits_are_of_its_bound(experiment, workdir):
    """What the table of costs predicts is what is measured; the best variances of its steps cost what is left."""
    fit = fit_schedule.fit_schedule(at(experiment), workdir)
    options = {"split": "train", "passes": 60}
    fitted = commands.evaluate(at(experiment, times="fitted", **options), workdir)
    np.testing.assert_allclose(fitted["bpd_diffusion"], fit["bpd_diffusion_fitted"], rtol=0.05)
    excess = fit_variance.fit_variance(at(experiment), workdir)["excess"]
    best = commands.evaluate(at(experiment, variance=Fitted(), **options), workdir)
    np.testing.assert_allclose(best["bpd_diffusion"], 0.5 * np.log1p(excess).sum() / np.log(2), rtol=0.1)


@pytest.mark.slow
def test_an_export_holds_it_and_samples_by_it(experiment, workdir):
    exported = diffenc.load(export.export(experiment, workdir), allow_imports=("tests",))
    original = diffenc.load(workdir, allow_imports=("tests",))
    jax.tree.map(np.testing.assert_array_equal, exported.params, original.params)
    assert exported.model.stochasticity == PATH
    assert exported.sample(2).shape == (2, 4, 4, 1)
