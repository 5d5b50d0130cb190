"""The picture of learned paths, times and variances."""

import argparse
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffenc
from diffenc.training import loop
from diffenc_plugins.stochasticities import Constant, Nontrainable
from diffenc_plugins.variances import Learned as LearnedVariance
from experiments import learned
from experiments.tighter import __main__ as tighter


@pytest.mark.parametrize(
    ("stochasticity", "expected"),
    [
        (Constant(0.6), lambda log_snr: 0.36 + 0 * log_snr),
        (Nontrainable(), lambda log_snr: 1 + 2 / (1 + np.exp(log_snr))),
    ],
)
def test_eta_squared_is_the_slope_of_the_clock(tiny, stochasticity, expected):
    model = dataclasses.replace(tiny().model, stochasticity=stochasticity)
    params = model.init(jax.random.key(0), (2, 2, 1))
    log_snr = np.linspace(-5, 8, 14, dtype=np.float32)
    assert learned.eta_squared(model, params, log_snr) == pytest.approx(expected(log_snr), abs=2e-5)


def test_the_picture_of_a_run_has_its_schedule(tiny, tmp_path, monkeypatch):
    """After one step of warm-up: the linear log-SNR between its ends, and w = 1."""
    steps = 4
    experiment = dataclasses.replace(tiny(steps=1), num_timesteps=steps, variance=LearnedVariance())
    loop.train(experiment, tmp_path / "run")
    monkeypatch.setattr(diffenc, "load", functools.partial(diffenc.load, allow_imports=("tests",)))
    output = tmp_path / "learned.png"
    assert tighter.main([f"--output={output}", f"some run={tmp_path}/run"]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    found = learned.read_learned(tmp_path / "run")
    ends = experiment.model.schedule.log_snr_max, experiment.model.schedule.log_snr_min
    assert found.chain is not None
    assert found.chain.log_snr == pytest.approx(np.linspace(*ends, steps + 1), abs=1e-3)
    assert found.chain.w == pytest.approx(np.ones(steps), abs=1e-3)
    assert (found.log_snr[0], found.log_snr[-1]) == pytest.approx(ends[::-1], abs=1e-3)


def test_w_is_q_over_p(tiny):
    """As `variance.learned` has it: log_w is log(sigma_Q^2 / sigma_P^2)."""
    experiment = dataclasses.replace(tiny(), num_timesteps=2, variance=LearnedVariance())
    params = experiment.model.init(jax.random.key(0), (2, 2, 1))
    params["variance"] = {"log_w": jnp.log(jnp.array([0.25, 3.0]))}
    chain = learned.learned_chain(experiment, params)
    assert chain is not None
    assert chain.w == pytest.approx([0.25, 3.0], rel=1e-6)
    assert learned.learned_chain(tiny(), params) is None


def test_stops_are_counted_from_0_and_steps_from_1():
    chain = learned.LearnedChain(np.array([6.0, 0.0, -5.0]), np.array([0.5, 2.0]))
    run = learned.Learned(np.linspace(-5, 6, 5), np.ones(5), chain)
    _, stops, steps = learned.plot_learned([("some", run)]).axes
    assert np.array(stops.lines[0].get_xydata()) == pytest.approx(np.array([(0, 6), (1, 0), (2, -5)]))
    assert np.array(steps.lines[0].get_xydata()) == pytest.approx(np.array([(1, 0.5), (2, 2)]))
    (path,) = learned.plot_learned([("some", run._replace(chain=None))]).axes
    drawn = np.array(path.lines[1].get_ydata())
    assert drawn[[0, -1]] == pytest.approx([1 + 2 / (1 + math.exp(each)) for each in (-5, 6)])


@pytest.mark.parametrize("text", ["runs/a", "=runs/a", "label="])
def test_a_run_has_a_label_and_a_workdir(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not LABEL=WORKDIR"):
        tighter.labelled_run(text)
