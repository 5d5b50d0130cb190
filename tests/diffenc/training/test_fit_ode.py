"""The second head fitted to a trained run: its loss by its definition, the bound left alone, and likelihood that takes it up."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.config.settings import Evaluate, Fit, Likelihood
from diffenc.core.model import draw_noise
from diffenc.core.parameters import name_leaves
from diffenc.errors import UserError
from diffenc.evaluation import likelihood
from diffenc.evaluation.second_head import abstract_head, with_head_params, with_value_head
from diffenc.interfaces import Images
from diffenc.training import loop
from diffenc.training.fit_ode import fit_ode, value_losses
from diffenc.workdir.second_heads import load_head
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM, TwoHeads
from diffenc_plugins.stochasticities import Constant, Learned

FIT = Fit(head_steps=60)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    """A trained run of one head, with a second fitted to it."""
    folder = tmp_path_factory.mktemp("fit_ode") / "run"
    loop.train(tiny(), folder)
    fit_ode(tiny(fit=FIT), folder)
    return folder


@pytest.fixture
def measuring(tiny, workdir):
    def measure(value=None, **evaluate):
        few = Evaluate(**{"num_images": 5, "batch_size": 5, **evaluate})
        solver = Likelihood(rtol=1e-3, atol=1e-3, times_per_image=2, value=value)
        return likelihood.likelihood(tiny(evaluate=few, likelihood=solver), workdir)

    return measure


def test_the_loss_is_plain_denoising_of_the_moved_value(x64, tiny):
    """By the definitions, in numpy: value = x_hat + sigma r."""
    model, key = dataclasses.replace(tiny().model, stochasticity=Learned()), jax.random.key(1)
    params = model.init(jax.random.key(0), (4, 4, 1))
    head = jax.tree.map(
        lambda leaf: leaf + 0.1, model.network.init(jax.random.key(2), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
    )
    levels = tiny().dataset.source("train").images[:6]
    _, losses = value_losses(model, 5, params, Images(jnp.asarray(levels)), key, head)
    draws = draw_noise(key, levels.shape)
    log_snr = np.asarray(model.log_snr(params, draws.t))[:, None, None, None]
    alpha, sigma = (1 / np.sqrt(1 + np.exp(-sign * log_snr)) for sign in (1, -1))
    x_phi = np.asarray(
        model.encode(params, jnp.asarray(2 * (levels + 0.5) / 5 - 1), jnp.asarray(log_snr.ravel()))
    )
    z = alpha * x_phi + sigma * np.asarray(draws.eps)
    of = lambda one: np.asarray(one["w"]) * z + np.asarray(one["b"])  # noqa: E731
    x_hat = alpha * z - sigma * of(params["network"])
    for value, got in ((x_hat, losses.one_head), (x_hat + sigma * of(head), losses.head)):
        np.testing.assert_allclose(got, np.mean(((value - x_phi) / sigma) ** 2), rtol=1e-9)


@pytest.mark.parametrize("path", [None, Constant(1.3)])
def test_the_bound_is_that_of_one_head_and_the_value_moves(x64, tiny, path):
    model = tiny().model if path is None else dataclasses.replace(tiny().model, stochasticity=path)
    params = model.init(jax.random.key(0), (4, 4, 1))
    head = jax.tree.map(lambda leaf: leaf + 0.3, params["network"])
    levels = jnp.asarray(tiny().dataset.source("train").images[:6])
    draws = draw_noise(jax.random.key(1), levels.shape)
    one = model.elbo(params, levels, draws, num_levels=5)
    two = with_value_head(model).elbo(with_head_params(params, head), levels, draws, num_levels=5)
    for got, want in zip(two, one, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_fit_lowers_its_loss_and_repeats(tiny, workdir):
    record = json.loads((workdir / "fits" / "second_head.json").read_text())
    assert record["value_loss"] < 0.98 * record["value_loss_one_head"]
    assert record["num_params"] == 32
    assert (record["second_head_of"]["step"], record["second_head_of"]["head_steps"]) == (12, 60)
    before = (workdir / "fits" / "second_head.npz").read_bytes()
    assert fit_ode(tiny(fit=FIT), workdir)["value_loss"] == record["value_loss"]
    held = np.load(workdir / "fits" / "second_head.npz")
    assert sorted(held.files) == ["b", "w"]
    assert held["w"].shape == (4, 4, 1)
    assert (workdir / "fits" / "second_head.npz").read_bytes() == before


def test_likelihood_takes_it_up_and_its_record_says_so(measuring, workdir):
    two, one = measuring(), measuring(value="model")
    assert two["model"] == likelihood.MODELLED
    assert one["model"] == likelihood.UNMODELLED
    assert two["second_head_of"]["step"] == 12
    assert "second_head_of" not in one
    assert two["bpd_elbo"] == pytest.approx(one["bpd_elbo"], rel=1e-5)
    assert two["bpd_ode"] != pytest.approx(one["bpd_ode"], rel=1e-3)
    assert two["config_hash"] == one["config_hash"]
    assert measuring(value="fitted")["bpd_ode"] == two["bpd_ode"]


def test_fitted_in_float64_it_is_stored_in_float32(tiny, workdir, tmp_path, x64):
    shutil.copytree(workdir, tmp_path / "run")
    fit_ode(tiny(fit=Fit(head_steps=2)), tmp_path / "run")
    found = load_head(tmp_path / "run", name_leaves(abstract_head(tiny().model, (4, 4, 1))))
    assert found is not None
    assert {array.dtype for array in found[0].values()} == {np.dtype(np.float32)}


def test_it_serves_the_path_of_training_alone(measuring):
    with pytest.raises(UserError, match=r'one path; unbind it, or bind likelihood\.value = "model"'):
        measuring(stochasticity=Constant(0.8))
    assert measuring(stochasticity=Constant(0.8), value="model")["measured_path"] == "constant(eta=0.8)"


def test_one_of_another_checkpoint_is_left_aside(measuring, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        record = measuring(step=5)
    assert "second_head.json was fitted at step 12, not 5, and is left aside" in caplog.text
    assert record["model"] == likelihood.UNMODELLED
    assert measuring(step=5, value="fitted")["second_head_of"]["step"] == 12


@pytest.mark.parametrize("change", ["json", "digest", "other", "large"])
def test_files_that_are_no_head_are_refused(tiny, tmp_path, change, write_record):
    loop.train(tiny(steps=2), tmp_path / "run")
    fit_ode(tiny(steps=2, fit=Fit(head_steps=2)), tmp_path / "run")
    file = tmp_path / "run" / "fits" / "second_head.json"
    arrays = file.with_suffix(".npz")
    if change == "json":
        file.write_text("{")
    elif change == "digest":
        arrays.write_bytes(arrays.read_bytes() + b"0")
    elif change == "large":
        arrays.write_bytes(bytes(10**6))
    else:
        record = json.loads(file.read_text())
        np.savez(arrays, w=np.zeros((2, 2, 1), np.float32), b=np.zeros((4, 4, 1), np.float32))
        write_record(file, {**record, "npz": hashlib.sha256(arrays.read_bytes()).hexdigest()})
    with pytest.raises(
        UserError, match=r"second_head\.json is not a second head of this run .*--mode=fit_ode again"
    ):
        likelihood.likelihood(tiny(steps=2), tmp_path / "run")


def test_what_has_no_head_to_fit_is_refused(tiny, tmp_path, measuring):
    two = dataclasses.replace(tiny().model, generative_mean=TwoHeads(tiny().model.network))
    with pytest.raises(UserError, match=r"generative_mean\.two_heads has learned the value in training"):
        fit_ode(tiny(model=two), tmp_path)
    with pytest.raises(UserError, match=r"trained at T = 3, .*one trained in continuous time"):
        fit_ode(tiny(num_timesteps=3), tmp_path)
    plain = dataclasses.replace(tiny().model, encoder=Identity(), generative_mean=VDM())
    loop.train(tiny(model=plain, steps=2), tmp_path / "vdm")
    with pytest.raises(UserError, match="its ODE needs no second head"):
        fit_ode(tiny(model=plain, steps=2), tmp_path / "vdm")
    loop.train(tiny(steps=2), tmp_path / "run")
    with pytest.raises(
        UserError, match=r'value = "fitted": .*is not there; run the same .*--mode=fit_ode first'
    ):
        likelihood.likelihood(tiny(steps=2, likelihood=Likelihood(value="fitted")), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"likelihood\.value = 'other': must be one of fitted, model, or None"
    ):
        Likelihood(value="other")
