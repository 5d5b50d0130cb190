"""The fitted path of models whose best path is known, and the bound measured on it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.config.settings import Evaluate, Fit
from diffenc.errors import UserError
from diffenc.evaluation import commands, fit_schedule, fit_variance, k_sample
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.fit_stochasticity import BINS, fit_stochasticity, path_record
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm, TwoHeads
from diffenc_plugins.stochasticities import Constant, Fitted, Learned, Markov
from diffenc_plugins.variances import Fitted as FittedVariance

FIT = Fit(batch_size=8, passes=20)


@pytest.mark.parametrize("path", [None, Constant(1.3)])
@pytest.mark.parametrize(
    ("encoder", "mean", "best"),
    [
        (Identity(), VDM(), lambda log_snr: np.ones_like(log_snr)),
        (Nontrainable(), Counterterm(), lambda log_snr: 1 + 2 / (1 + np.exp(log_snr))),
    ],
)
def test_the_path_of_an_encoder_without_parameters_does_not_depend_on_the_network(
    tiny, path, encoder, mean, best
):
    """The error of its slope is sigma^2 times that of its value, or 0, whatever x_hat is."""
    changes = {} if path is None else {"stochasticity": path}
    model = dataclasses.replace(tiny().model, encoder=encoder, generative_mean=mean, **changes)
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(jax.random.key(0), (4, 4, 1)))
    record = path_record(model, tiny().dataset, resolve_batch_size(FIT, 8), data_mesh(), params)
    edges, eta_2 = np.array(record["log_snr"]), np.array(record["eta_2"])
    assert edges.shape == (BINS + 1,)
    assert np.all(np.diff(edges) > 0)
    ends = np.sort([best(edges[:-1]), best(edges[1:])], axis=0)
    assert np.all((eta_2 > ends[0] - 1e-3) & (eta_2 < ends[1] + 1e-3))
    assert record["bpd_diffusion_fitted"] < record["bpd_diffusion_trained"] * (1 + 1e-4)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    """A run of a trainable encoder, long enough that its path is no longer the best."""
    folder = tmp_path_factory.mktemp("fit_stochasticity") / "run"
    loop.train(tiny(steps=60), folder)
    return folder


@pytest.fixture
def measuring(tiny, workdir):
    def measure(mode, fit=FIT, folder=workdir, steps=60, **evaluate):
        return mode(tiny(steps=steps, fit=fit, evaluate=Evaluate(**evaluate)), folder)

    return measure


def test_what_is_fitted_serves_evaluation_and_its_record_says_so(measuring, workdir):
    fit = measuring(fit_stochasticity, dataclasses.replace(FIT, batch_size=23, passes=200))
    assert json.loads((workdir / "fits" / "path.json").read_text())["eta_2"] == fit["eta_2"]
    assert np.all(np.array(fit["eta_2_se"]) > 0)
    settings = {"split": "train", "batch_size": 23, "passes": 400}
    on = {path: {**settings, "stochasticity": path} for path in (None, Fitted())}
    trained, fitted = (measuring(commands.evaluate, **settings) for settings in on.values())
    for record, predicted in ((trained, "trained"), (fitted, "fitted")):
        error = 4 * record["bpd_mc_se"] + 0.01 * record["bpd_diffusion"]
        assert abs(record["bpd_diffusion"] - fit[f"bpd_diffusion_{predicted}"]) < error
    gain = trained["bpd_diffusion"] - fitted["bpd_diffusion"]
    predicted = fit["bpd_diffusion_trained"] - fit["bpd_diffusion_fitted"]
    assert predicted > 0
    assert gain == pytest.approx(predicted, rel=0.3)
    assert "measured_path" not in trained
    assert fitted["measured_path"] == "fitted"
    assert fitted["path_of"] == fit["path_of"]
    assert (fit["path_of"]["step"], "measured_path" in fit["path_of"]) == (60, False)


def test_a_given_path_is_measured_without_a_fit(measuring, tmp_path):
    record = measuring(commands.evaluate, stochasticity=Constant(0.8))
    assert record["measured_path"] == "constant(eta=0.8)"
    assert "path_of" not in record
    assert record["bpd"] > measuring(commands.evaluate)["bpd"]


@pytest.mark.slow
def test_chains_on_another_path_have_fits_of_their_own(measuring, workdir):
    on_path = {"num_timesteps": 4, "stochasticity": Constant(0.8)}
    plain, other = (
        measuring(fit_variance.fit_variance, **settings) for settings in ({"num_timesteps": 4}, on_path)
    )
    assert np.all(plain["excess"] != other["excess"])
    assert (workdir / "fits" / "T4_on_constant_eta=0.8.json").is_file()
    measured = measuring(commands.evaluate, variance=FittedVariance(), **on_path)
    assert measured["excess_of"]["measured_path"] == "constant(eta=0.8)"
    times = measuring(fit_schedule.fit_schedule, **on_path)
    assert times["measured_path"] == "constant(eta=0.8)"
    chains = measuring(k_sample.k_sample, **on_path)
    assert chains["measured_path"] == "constant(eta=0.8)"


def test_a_path_with_parameters_was_not_trained(measuring):
    with pytest.raises(UserError, match=r"stochasticity\.learned: it has parameters, which this run did not"):
        measuring(commands.evaluate, stochasticity=Learned())


def test_without_a_fit_the_mode_that_makes_one_is_named(tiny, tmp_path):
    loop.train(tiny(steps=2), tmp_path / "run")
    with pytest.raises(UserError, match=r"path\.json is not there; run the same .*--mode=fit_stochasticity"):
        commands.evaluate(tiny(steps=2, evaluate=Evaluate(stochasticity=Fitted())), tmp_path / "run")
    fits = tmp_path / "run" / "fits"
    fits.mkdir()
    for text in ("{", json.dumps({"log_snr": [0, 1], "eta_2": [1, 1], "path_of": {"step": 2}})):
        (fits / "path.json").write_text(text)
        with pytest.raises(UserError, match=r"path\.json is not a fitted path .*delete it and fit again"):
            commands.evaluate(tiny(steps=2, evaluate=Evaluate(stochasticity=Fitted())), tmp_path / "run")


def test_a_model_of_t_steps_has_no_path_in_continuous_time(tiny, tmp_path):
    with pytest.raises(UserError, match=r"trained at T = 3, .*bind Model\.stochasticity in training"):
        fit_stochasticity(tiny(num_timesteps=3), tmp_path)


def test_two_heads_serve_the_path_of_training_alone(tiny, tmp_path):
    model = dataclasses.replace(tiny().model, generative_mean=TwoHeads(tiny().model.network))
    with pytest.raises(
        UserError, match=r"generative_mean\.two_heads takes its slope from the sum that was trained"
    ):
        fit_stochasticity(tiny(model=model), tmp_path)


def test_values_bound_by_hand_need_no_fit(measuring, workdir):
    path = Fitted((-6.0, 0.0, 7.0), (0.9, 1.0))
    record = measuring(commands.evaluate, stochasticity=path)
    assert "path_of" not in record
    assert record["measured_path"].startswith("fitted(log_snr=(-6.0, 0.0, 7.0)")


def test_the_path_of_training_by_its_name_is_no_other_path(measuring):
    named = measuring(commands.evaluate, stochasticity=Markov())
    assert "measured_path" not in named
    assert named["bpd"] == measuring(commands.evaluate)["bpd"]


@pytest.mark.slow
def test_variances_of_a_path_that_was_fitted_again_are_warned_of(measuring, caplog):
    settings = {"num_timesteps": 4, "stochasticity": Fitted(), "variance": FittedVariance()}
    measuring(fit_stochasticity)
    measuring(fit_variance.fit_variance, **settings)
    with caplog.at_level("WARNING", logger="absl"):
        measuring(commands.evaluate, **settings)
        assert "on another path" not in caplog.text
        measuring(fit_stochasticity, dataclasses.replace(FIT, seed=1))
        measuring(commands.evaluate, **settings)
    assert "fitted on another path than fits/path.json now has" in caplog.text


def test_a_fitted_path_is_not_for_evaluations_in_training(tiny, tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.stochasticity: fits need a trained run"):
        loop.train(tiny(evaluate_every=2, evaluate=Evaluate(stochasticity=Fitted())), tmp_path)


def test_it_is_not_trained_with(tiny, tmp_path):
    model = dataclasses.replace(tiny().model, stochasticity=Fitted())
    with pytest.raises(UserError, match=r"bind it to evaluate\.stochasticity, not to the Model"):
        loop.train(tiny(model=model), tmp_path)


def test_the_fitted_clock_is_piecewise_linear(x64):
    plugin = Fitted((-2.0, 0.0, 1.0), (0.5, 3.0))
    low, high = jnp.asarray([-5.0, -1.0, -1.0, 0.5]), jnp.asarray([-1.0, -0.5, 2.0, 4.0])
    np.testing.assert_allclose(plugin.increment({}, low, high), [2.0, 0.25, 6.5, 10.5], rtol=1e-14)


@pytest.mark.parametrize(
    ("log_snr", "eta_2"),
    [((0.0, 1.0), ()), ((0.0,), (1.0,)), ((1.0, 0.0), (1.0,)), ((0.0, 1.0), (0.0,)), ((0.0, 1.0), (-1.0,))],
)
def test_values_that_are_no_clock_are_refused(log_snr, eta_2):
    with pytest.raises(UserError, match="log_snr must rise and have one number more than eta_2"):
        Fitted(log_snr, eta_2)
