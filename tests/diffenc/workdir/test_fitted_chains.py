"""Files of fits: what is read is what was filed, and nothing that is not a fit is taken for one."""

import json
import logging as std_logging
import math
from typing import Any

import jax
import numpy as np
import pytest

from diffenc import registry
from diffenc.config.settings import ResolvedEvaluate, ResolvedSample
from diffenc.core.discretization import EQUAL
from diffenc.errors import UserError
from diffenc.workdir import fitted_chains
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant
from diffenc_plugins.variances import Fixed

FITTED = registry.variances["fitted"]()
TIMES = np.array([0.0, 0.1, 0.6, 1.0])
OF = {"times_of": {"step": 7}, "excess_of": {"step": 7}}
EXCESS = [0.5, 0.1 + 0.2, 1e-300]
NO_PARAMS = {"schedule": {}}


def path_of(workdir, steps, times, variance, **more):
    settings = ResolvedEvaluate(num_timesteps=steps, times=times, variance=variance, **more)
    return fitted_chains.fit_path(workdir, settings)


@pytest.fixture
def file(tmp_path):
    """A fit of three steps with fitted times and variances."""
    file = path_of(tmp_path, 3, "fitted", FITTED)
    fitted_chains.save_fit(
        file, TIMES, {"excess": EXCESS, "excess_se": [0.1, 0.2, 0.3], "split": "train", **OF}
    )
    return file


@pytest.mark.parametrize(
    ("times", "variance", "name"),
    [
        ("equal", EQUAL, "T12.json"),
        ("equal", FITTED, "T12.json"),
        ("fitted", EQUAL, "T12_fitted_equal.json"),
        ("fitted", FITTED, "T12_fitted_fitted.json"),
        ("fitted", Fixed(0.9), "T12_fitted_fixed_w=0.9.json"),
        ("fitted", Fixed(0.5), "T12_fitted_fixed_w=0.5.json"),
    ],
)
def test_fits_of_other_chains_have_other_names(tmp_path, times, variance, name):
    assert path_of(tmp_path, 12, times, variance) == tmp_path / "fits" / name


def test_fits_on_another_path_have_other_names(tmp_path):
    assert (
        path_of(tmp_path, 12, "equal", FITTED, stochasticity=Constant(0.5)).name
        == "T12_on_constant_eta=0.5.json"
    )
    sampled = ResolvedSample(num_timesteps=12, variance=FITTED)
    assert fitted_chains.fit_path(tmp_path, sampled).name == "T12.json"


def test_a_variance_that_is_not_registered_goes_by_its_class(tmp_path):
    class Mine:
        def __call__(self, log_snr_t, log_snr_s, excess):
            return log_snr_t

    assert path_of(tmp_path, 2, "fitted", Mine()).name == "T2_fitted_Mine.json"


def test_a_changed_digit_is_no_fit(file):
    text = file.read_text()
    assert "0.6" in text
    file.write_text(text.replace("0.6", "0.7"))
    with pytest.raises(
        UserError, match=r"is not a fit \(.*does not match its sha256.*\): delete it and fit again"
    ):
        fitted_chains.load_fit(file)


def test_a_fit_from_before_has_no_checksum(file, read_record):
    file.write_text(json.dumps(read_record(file)))
    np.testing.assert_array_equal(fitted_chains.load_fit(file)["times"], TIMES)


def test_what_is_read_is_what_was_filed_to_the_last_bit(file):
    fit = fitted_chains.load_fit(file)
    np.testing.assert_array_equal(fit["times"], TIMES)
    np.testing.assert_array_equal(fit["excess"], EXCESS)
    np.testing.assert_array_equal(fit["excess_se"], [0.1, 0.2, 0.3])
    assert (fit["times"].dtype, fit["excess"].dtype) == (np.float64, np.float64)
    assert {"split": "train", "steps": 3, **OF}.items() <= fit.items()
    assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing half-written is left"


MALFORMED: dict[str, Any] = {
    "no JSON": "{",
    "not an object": "[1, 2]",
    "binary": b"\xff\xfe\x00",
    "no times": {"times": None},
    "no steps": {"steps": None},
    "another T": {"steps": 4},
    "times that fall": {"times": [0, 0.6, 0.1, 1]},
    "a time twice": {"times": [0, 0.6, 0.6, 1]},
    "not from 0": {"times": [0.01, 0.1, 0.6, 1]},
    "not to 1": {"times": [0, 0.1, 0.6, 0.99]},
    "a word": {"times": [0, "x", 0.6, 1]},
    "a hole": {"times": [0, None, 0.6, 1]},
    "a table of times": {"times": [[0, 0.1, 0.6, 1]]},
    "a ragged table": {"times": [[0, 0.1], [0.6]]},
    "too few figures": {"excess": [0.5, 0.1]},
    "a figure that is none": {"excess": [0.5, "x", 0.1]},
    "a missing figure": {"excess": [0.5, None, 0.1]},
    "a negative figure": {"excess": [0.5, -0.1, 0.1]},
    "too many errors": {"excess_se": [1, 2, 3, 4]},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_not_a_fit_is_refused_by_name(file, kind):
    bad = MALFORMED[kind]
    if isinstance(bad, dict):
        content = json.loads(file.read_text()) | bad
        bad = json.dumps({key: value for key, value in content.items() if value is not None})
    file.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.raises(UserError, match=r"is not a fit .*: delete it and fit again") as refused:
        fitted_chains.load_fit(file)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("make", [ResolvedEvaluate, ResolvedSample])
def test_without_a_fit_times_are_equal_and_excess_unknown(tmp_path, make):
    plan = fitted_chains.find_chain(tmp_path, make(num_timesteps=5, variance=FITTED))
    np.testing.assert_allclose(plan.times, np.arange(6) / 5)
    assert plan.excess is None
    with pytest.raises(UserError, match=r"variance\.fitted was not fitted for these 5 steps"):
        plan.chain(Linear(4.0, -5.0), NO_PARAMS)


@pytest.mark.parametrize("make", [ResolvedEvaluate, ResolvedSample])
@pytest.mark.parametrize("fitted", [{"times": "fitted"}, {"variance": FITTED}])
def test_without_a_workdir_no_mode_is_recommended(make, fitted):
    assert fitted_chains.find_chain(None, make(num_timesteps=5)).excess is None
    with pytest.raises(UserError, match="fits and curves stay in the run's workdir: load that") as refused:
        fitted_chains.find_chain(None, make(num_timesteps=5, **fitted))
    assert "--mode" not in str(refused.value)


@pytest.mark.parametrize("make", [ResolvedEvaluate, ResolvedSample])
@pytest.mark.parametrize(("variance", "name"), [(EQUAL, "equal"), (FITTED, "fitted")])
def test_times_that_are_not_fitted_are_refused_with_the_way_out(tmp_path, make, variance, name):
    message = rf"no times are fitted for T = 5 and variance\.{name} .*--mode=fit_schedule --num_timesteps=5 first, with"
    with pytest.raises(UserError, match=message) as refused:
        fitted_chains.find_chain(tmp_path, make(num_timesteps=5, times="fitted", variance=variance))
    assert str(path_of(tmp_path, 5, "fitted", variance)) in str(refused.value)


@pytest.mark.usefixtures("x64", "file")
def test_a_plan_has_the_times_and_variances_filed(tmp_path):
    plan = fitted_chains.find_chain(
        tmp_path, ResolvedEvaluate(num_timesteps=3, times="fitted", variance=FITTED)
    )
    np.testing.assert_array_equal(plan.times, TIMES)
    chain = plan.chain(Linear(4.0, -5.0), NO_PARAMS)
    np.testing.assert_allclose(chain.times, TIMES, rtol=1e-12)
    np.testing.assert_allclose(chain.log_w, -np.log1p(EXCESS), rtol=1e-12)
    compiled = jax.jit(lambda params: plan.chain(Linear(4.0, -5.0), params))(NO_PARAMS)
    np.testing.assert_allclose(compiled.log_w, chain.log_w, rtol=1e-12)


def test_a_fit_of_another_chain_is_left_alone(tmp_path, file):
    for settings in (
        ResolvedEvaluate(num_timesteps=3),
        ResolvedEvaluate(num_timesteps=3, variance=FITTED),
        ResolvedSample(num_timesteps=4),
    ):
        assert fitted_chains.find_chain(tmp_path, settings).excess is None
    for settings in (
        ResolvedEvaluate(num_timesteps=3, times="fitted"),
        ResolvedEvaluate(num_timesteps=2, times="fitted", variance=FITTED),
    ):
        with pytest.raises(UserError, match="no times are fitted"):
            fitted_chains.find_chain(tmp_path, settings)


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(("step", "warned"), [(8, True), (7, False), (None, False)])
def test_a_fit_to_another_checkpoint_is_used_and_said_to_be_one(tmp_path, caplog, step, warned):
    with caplog.at_level(std_logging.WARNING, logger="absl"):
        plan = fitted_chains.find_chain(
            tmp_path, ResolvedEvaluate(num_timesteps=3, times="fitted", variance=FITTED), step
        )
    np.testing.assert_array_equal(plan.times, TIMES)
    assert ("was fitted at step 7, not 8" in caplog.text) == warned


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "fits").mkdir()
    (tmp_path / "fits" / "T1.json").mkdir()  # a folder where the file should be
    with pytest.raises(UserError, match=r"could not write .*T1\.json"):
        fitted_chains.save_fit(tmp_path / "fits" / "T1.json", np.array([0.0, 1.0]), {})


@pytest.mark.parametrize("variance", [EQUAL, Fixed(0.9)])
def test_what_needs_no_fit_reads_none(tmp_path, variance):
    """Nor warns of one, nor is stopped by one that is damaged."""
    path_of(tmp_path, 3, "equal", variance).parent.mkdir()
    path_of(tmp_path, 3, "equal", variance).write_text("damaged")
    plan = fitted_chains.find_chain(tmp_path, ResolvedEvaluate(num_timesteps=3, variance=variance))
    assert (plan.excess, plan.of) == (None, {})


@pytest.mark.usefixtures("file")
def test_a_plan_says_what_it_was_fitted_on(tmp_path):
    assert (
        fitted_chains.find_chain(
            tmp_path, ResolvedEvaluate(num_timesteps=3, times="fitted", variance=FITTED)
        ).of
        == OF
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (ResolvedEvaluate(num_timesteps=3, variance=FITTED), "evaluate.variance"),
        (ResolvedEvaluate(num_timesteps=3, times="fitted"), "evaluate.times"),
        (ResolvedSample(variance=FITTED), "sample.variance"),
        (ResolvedSample(times="fitted"), "sample.times"),
    ],
)
def test_training_is_not_begun_with_what_only_a_trained_run_can_have(settings, key):
    every = f"Experiment.{key.split('.')[0]}_every = 0"
    with pytest.raises(UserError, match=rf"^{key}: fits need a trained run.*{every}"):
        fitted_chains.refuse_fits(settings)
    fitted_chains.refuse_fits(ResolvedEvaluate(num_timesteps=3, variance=Fixed(0.9)))
    fitted_chains.refuse_fits(ResolvedSample())


@pytest.mark.parametrize("values", [{"excess": [0.1, math.nan]}, {"times": np.array([0.0, math.nan, 1.0])}])
def test_a_fit_of_a_loss_that_is_not_finite_is_not_written(tmp_path, values):
    given = {"times": np.array([0.0, 0.5, 1.0]), "excess": [0.1, 0.2], **values}
    with pytest.raises(UserError, match="nothing was fitted: the loss of this model is not finite"):
        fitted_chains.save_fit(tmp_path / "fits" / "T2.json", given.pop("times"), given)
    assert list(tmp_path.iterdir()) == []
