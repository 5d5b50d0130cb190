"""A model trained at T is measured and sampled at T, and every record says so."""

import dataclasses
import json

import numpy as np
import pytest

import diffenc
from diffenc.config import serialize
from diffenc.config.experiment import ADDED_LATER
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import Evaluate, KSample, Sample
from diffenc.errors import UserError
from diffenc.evaluation import commands, fit_schedule, fit_variance, k_sample, likelihood
from diffenc.evaluation.evaluation_record import model_metadata
from diffenc.evaluation.saved_records import list_differences, stored_value
from diffenc.export.export import export
from diffenc.tools.figures.figures import figures
from diffenc.training.loop import train
from diffenc_plugins.stochasticities import Constant
from diffenc_plugins.variances import Equal, Fitted, Fixed, Learned

DEEP = {"num_timesteps": 5, "variance": Fixed(1.2), "steps": 3}


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "deep"
    train(tiny(**DEEP, evaluate=Evaluate(), sample=Sample()), folder)
    return folder


@pytest.fixture
def deep(tiny):
    def make(evaluate=None, sample=None, **changes):
        return tiny(**DEEP, evaluate=Evaluate(**evaluate or {}), sample=Sample(**sample or {}), **changes)

    return make


def test_it_is_measured_at_its_depth(deep, workdir):
    own, named, unequal, shallow = (
        commands.evaluate(deep(evaluate), workdir)
        for evaluate in (
            {},
            {"num_timesteps": 5, "variance": Fixed(1.2)},
            {"variance": Equal()},
            {"num_timesteps": 0},
        )
    )
    assert own == named
    assert (own["T"], own["variance"], own["trained_at"]) == (5, "fixed(w=1.2)", 5)
    assert (unequal["variance"], unequal["trained_at"]) == ("equal", 5)
    assert unequal["bpd"] != own["bpd"]
    assert (shallow["T"], shallow["trained_at"]) == ("continuous", 5)
    assert "variance" not in shallow
    assert json.loads((workdir / "evaluation.json").read_text())["trained_at"] == 5


@pytest.mark.slow
def test_every_other_record_says_what_it_was_trained_at(deep, workdir):
    settings = deep({"num_images": 3}, k_sample=KSample(samples=2))
    chains = k_sample.k_sample(settings, workdir)
    assert (chains["T"], chains["variance"], chains["trained_at"]) == (5, "fixed(w=1.2)", 5)
    assert likelihood.likelihood(settings, workdir)["trained_at"] == 5
    assert fit_schedule.fit_schedule(settings, workdir)["trained_at"] == 5
    fit = fit_variance.fit_variance(settings, workdir)
    assert (fit["trained_at"], "stochasticity" in fit) == (5, False)
    (schedule,) = figures(deep(figures=Figures(only=("schedule",))), workdir).values()
    assert schedule["of"]["trained_at"] == 5


def test_a_record_states_the_path_of_its_model(tiny):
    model = dataclasses.replace(tiny().model, stochasticity=Constant(0.5))
    stated = model_metadata(tiny(**DEEP, model=model))
    assert stated == {"stochasticity": "constant(eta=0.5)", "trained_at": 5}
    assert model_metadata(tiny()) == {}
    assert list_differences({}, stated, ("stochasticity",)) == ["stochasticity markov and constant(eta=0.5)"]


def test_it_is_sampled_at_its_depth(deep, workdir):
    own, other = (
        commands.sample(deep(sample=s), workdir) for s in ({"num": 2}, {"num": 2, "num_timesteps": 3})
    )
    assert [path.name for path in (own, other)] == [
        "000000003_T5_fixed(w=1.2)-variance_n2_seed0.png",
        "000000003_T3_n2_seed0.png",
    ]
    loaded = diffenc.load(workdir, allow_imports=("tests",))
    named = loaded.sample(2, num_timesteps=5, variance=Fixed(1.2))
    np.testing.assert_array_equal(loaded.sample(2), named)
    assert (loaded.sample(2, num_timesteps=3) != named).any()


def test_a_loaded_model_measures_at_its_depth(tiny, workdir):
    images = np.stack([one["image"] for one in map(tiny().dataset.source("test").__getitem__, range(4))])
    loaded = diffenc.load(workdir, allow_imports=("tests",))
    own, named, shallow = (
        loaded.elbo(images, **s).bpd
        for s in ({}, {"num_timesteps": 5, "variance": Fixed(1.2)}, {"num_timesteps": 0})
    )
    np.testing.assert_array_equal(own, named)
    assert (own != shallow).any()


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_measured_as_before(tiny, tmp_path, monkeypatch):
    """Its config and its checkpoint lack the fields; its record says nothing of a depth."""
    experiment = tiny(steps=3)
    with monkeypatch.context() as patch:
        written = serialize.config_text

        def before(experiment):
            lines = written(experiment).splitlines(keepends=True)
            return "".join(line for line in lines if line.rstrip() not in ADDED_LATER)

        patch.setattr(serialize, "config_text", before)
        train(experiment, tmp_path / "old")
        record = commands.evaluate(experiment, tmp_path / "old")
    assert "Experiment.num_timesteps" not in (tmp_path / "old" / "config.gin").read_text()
    again = commands.evaluate(experiment, tmp_path / "old")
    assert again == record
    assert "trained_at" not in again
    assert again["T"] == "continuous"
    assert [stored_value(one, "trained_at") for one in (again, {"trained_at": 5})] == ["continuous", 5]
    longer = train(dataclasses.replace(experiment, steps=4), tmp_path / "old")
    assert longer.step == 4


LEARNED = {"num_timesteps": 5, "variance": Learned()}


@pytest.fixture(scope="module")
def learned(tiny, tmp_path_factory):
    """A run whose w is learned, its workdir, and what it learned."""
    experiment = tiny(**LEARNED, steps=6, ema_decay=0.5, evaluate=Evaluate(), sample=Sample(num=2))
    folder = tmp_path_factory.mktemp("runs") / "learned"
    state = train(experiment, folder).state
    return experiment, folder, np.asarray(state.ema["variance"]["log_w"], np.float64)


def test_a_learned_w_is_that_of_the_averaged_model(learned):
    """Each image costs T d/2 (w - 1 - log w) + w times what it costs with w = 1 at the drawn step."""
    experiment, folder, log_w = learned
    assert np.abs(log_w).max() > 1e-3
    record = commands.evaluate(experiment, folder)
    assert (record["T"], record["variance"], record["trained_at"]) == (5, "learned", 5)
    terms = np.load(folder / "evaluation.npz")
    commands.evaluate(dataclasses.replace(experiment, evaluate=Evaluate(variance=Equal())), folder)
    equal = np.load(folder / "evaluation.npz")
    at = log_w[(terms["times"][..., 0] * 5).astype(int)]
    want = 5 * 8 * (np.expm1(at) - at) + np.exp(at) * equal["diffusion"]
    np.testing.assert_allclose(terms["diffusion"], want, rtol=1e-5)


@pytest.mark.slow
def test_a_learned_w_is_sampled_fitted_and_exported_with_its_model(learned, tmp_path):
    experiment, folder, log_w = learned
    assert "learned-variance" in commands.sample(experiment, folder).name
    fit_variance.fit_variance(experiment, folder)
    fitted = commands.evaluate(dataclasses.replace(experiment, evaluate=Evaluate(variance=Fitted())), folder)
    assert fitted["variance"] == "fitted"
    bound = dataclasses.replace(experiment, evaluate=Evaluate(variance=experiment.variance))
    with pytest.raises(
        UserError, match="--mode=fit_schedule: a learned variance belongs to the T equal steps"
    ):
        fit_schedule.fit_schedule(bound, folder)
    export(experiment, folder)
    of_file = diffenc.load(folder / "export", allow_imports=("tests",))
    np.testing.assert_allclose(of_file.params["variance"]["log_w"], log_w)
    of_workdir = diffenc.load(folder, allow_imports=("tests",))
    np.testing.assert_array_equal(of_file.sample(2), of_workdir.sample(2))
    # log w is small after so few steps: few of many pixels change
    changed = of_file.sample(256) != of_file.sample(256, variance=Equal())
    assert changed.any()
