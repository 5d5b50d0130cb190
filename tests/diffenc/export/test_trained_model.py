"""A trained model from Python, against what the modes file and against numpy."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from diffenc.config.settings import Evaluate, Sample
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_grid import make_grid
from diffenc.export.loading import load
from diffenc.export.trained_model import TrainedModel
from diffenc_plugins.conditionings import ByClass

TERMS = ("reconstruction", "latent", "diffusion")


@pytest.fixture(scope="module")
def model(workdir) -> TrainedModel:
    return load(workdir, allow_imports=("tests",))


@pytest.fixture(scope="module")
def images(model):
    """All 13 of the test split."""
    return model.experiment.dataset.source("test").__getitems__(np.arange(13))["image"]


@pytest.mark.parametrize(
    "settings",
    [
        {"passes": 3, "seed": 5, "batch_size": 5},
        pytest.param({"passes": 2, "seed": 0, "num_timesteps": 7}, marks=pytest.mark.slow),
    ],
)
def test_bits_per_dim_are_those_of_mode_evaluate(model, images, experiment, workdir, settings):
    said = commands.evaluate(dataclasses.replace(experiment, evaluate=Evaluate(**settings)), workdir)
    bound = model.elbo(images, **settings)
    assert bound.means == {key: value for key, value in said.items() if key.startswith("bpd")}
    terms = np.load(workdir / "evaluation.npz")
    bits = {name: terms[name] / 16 / np.log(2) for name in TERMS}
    for name in TERMS:
        np.testing.assert_allclose(bound.terms[name], bits[name].sum(axis=0) / settings["passes"], rtol=1e-12)
    total = np.sum(list(bits.values()), axis=0)
    np.testing.assert_allclose(bound.bpd, total.mean(axis=0), rtol=1e-12)
    squares = np.square(total - total.mean(axis=0)).sum(axis=0) / (settings["passes"] - 1)
    np.testing.assert_allclose(bound.mc_se, np.sqrt(squares / settings["passes"]), rtol=1e-9)


def test_the_latent_term_is_the_formula(model, images):
    """KL of N(alpha x_phi, sigma^2) and N(0, 1) at t = 1 [51], in numpy from the parameters."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    log_snr = params["schedule"]["start"] - np.log1p(np.exp(params["schedule"]["raw_drop"])) - 0.01
    x_phi = _x_phi(params, images, log_snr)
    nats = 0.5 * (expit(log_snr) * x_phi**2 + expit(-log_snr) - np.log(expit(-log_snr)) - 1).sum(
        axis=(1, 2, 3)
    )
    np.testing.assert_allclose(model.elbo(images).terms["latent"], nats / 16 / np.log(2), rtol=1e-4)


def _x_phi(params, images, log_snr):
    """alpha^2 x + sigma^2 (w x + b)."""
    x = (2 * images.astype(np.float64) + 1) / 5 - 1
    y = params["encoder"]["w"] * x + params["encoder"]["b"]
    log_snr = np.reshape(log_snr, (-1, 1, 1, 1))
    return expit(log_snr) * x + expit(-log_snr) * y


@pytest.mark.parametrize("log_snr", [-3, 2.5, [-4.0, 0.0, 5.0]])
def test_encoding_is_the_formula(model, images, log_snr):
    params = jax.tree.map(np.asarray, model.params)
    got = model.encode(images[:3], log_snr=log_snr)
    np.testing.assert_allclose(got, _x_phi(params, images[:3], log_snr), atol=1e-6)
    assert got.dtype == np.float32


def test_a_time_is_its_log_snr(model, images):
    schedule = jax.tree.map(np.asarray, model.params["schedule"])
    t = np.array([0.0, 0.3, 1.0])
    log_snr = schedule["start"] - (np.log1p(np.exp(schedule["raw_drop"])) + 0.01) * t
    by_log_snr = model.encode(images[:3], log_snr=log_snr)
    np.testing.assert_allclose(model.encode(images[:3], t=t), by_log_snr, atol=1e-6)
    assert np.abs(by_log_snr[0] - by_log_snr[2]).max() > 0.1


@pytest.mark.parametrize("given", [{}, {"t": 0.5, "log_snr": 1.0}])
def test_encoding_needs_one_place(model, images, given):
    with pytest.raises(UserError, match="give either log_snr or t"):
        model.encode(images, **given)


def test_samples_are_those_of_mode_sample(model, experiment, workdir):
    settings = {"num": 3, "num_timesteps": 4, "seed": 2, "sampler": "ddim"}
    chosen = Sample(**settings)
    path = commands.sample(dataclasses.replace(experiment, sample=chosen), workdir)
    images = model.sample(**settings)
    assert (images.shape, images.dtype) == ((chosen.num, 4, 4, 1), np.uint8)
    shades = np.array([0, 64, 128, 191, 255], np.uint8)[images]
    np.testing.assert_array_equal(np.asarray(Image.open(path)), make_grid(shades)[..., 0])


def test_nothing_is_compiled_twice(workdir, images):
    model = load(workdir, allow_imports=("tests",))
    first = model.elbo(images)
    (evaluator,) = (each for each in model._compiled.values() if isinstance(each, Evaluator))
    compiled = evaluator._terms._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    other = model.elbo(images[::-1], seed=1, passes=2)
    assert not np.array_equal(first.bpd, other.bpd[::-1])
    assert first.mc_se is None
    model.sample(3, seed=1)
    model.sample(3, seed=2)
    model.encode(images, t=0.1)
    model.encode(images, log_snr=0.1)
    assert len(model._compiled) == 3
    assert evaluator._terms._cache_size() == compiled  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"times_per_image": 3}, marks=pytest.mark.slow),
        {"num_timesteps": 7},
        pytest.param({"seed": 5}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_measure_anew(workdir, images, other):
    """The second answer of one model is the first of another."""
    used = load(workdir, allow_imports=("tests",))
    before = used.elbo(images)
    after, fresh = used.elbo(images, **other), load(workdir, allow_imports=("tests",)).elbo(images, **other)
    np.testing.assert_array_equal(after.bpd, fresh.bpd)
    assert not np.array_equal(after.terms["diffusion"], before.terms["diffusion"])
    np.testing.assert_array_equal(used.elbo(images).bpd, before.bpd)


def test_a_batch_size_changes_no_draw(workdir, images):
    used = load(workdir, allow_imports=("tests",))
    np.testing.assert_allclose(used.elbo(images).bpd, used.elbo(images, batch_size=5).bpd, rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"num_timesteps": 7}, marks=pytest.mark.slow),
        {"sampler": "ddim"},
        pytest.param({"seed": 1}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_other_settings_draw_anew(workdir, other):
    used = load(workdir, allow_imports=("tests",))
    before = used.sample(8, num_timesteps=3)
    after = used.sample(8, **({"num_timesteps": 3} | other))
    fresh = load(workdir, allow_imports=("tests",)).sample(8, **({"num_timesteps": 3} | other))
    np.testing.assert_array_equal(after, fresh)
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(used.sample(8, num_timesteps=3), before)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model, images: model.sample(3, stps=5), "sample has no setting 'stps'; nearest: step"),
        (lambda model, images: model.sample(3, guidance="no"), "sample.guidance = 'no': expected float"),
        (
            lambda model, images: model.encode(images, t=[0.1, 0.2]),
            "encode: float64[2] is neither a number nor one",
        ),
        (lambda model, images: model.encode(images, log_snr="1"), "encode: <U1[] is neither"),
        (
            lambda model, images: model.sample(3, step=12),
            "sample takes no step: these are the parameters of step 12; nearest: num_timesteps, which",
        ),
        (
            lambda model, images: model.elbo(images, step=3),
            "elbo takes no step: these are the parameters of step 12; nearest: num_timesteps, which",
        ),
        (
            lambda model, images: model.elbo(images, split="train"),
            "elbo takes no split: it measures the images",
        ),
        (
            lambda model, images: model.elbo(images, num_images=2),
            "elbo takes no num_images: it measures all images",
        ),
        (lambda model, images: model.sample(0), "sample.num = 0: must be at least 1"),
        (
            lambda model, images: model.sample(3, classes=[1]),
            "sample.classes = (1,): the network is unconditional",
        ),
        (
            lambda model, images: model.elbo(images, pases=2),
            "evaluate has no setting 'pases'; nearest: passes",
        ),
        (lambda model, images: model.elbo(images, passes=0), "evaluate.passes = 0: must be at least 1"),
        (lambda model, images: model.elbo(images / 5), "images are of float64"),
        (lambda model, images: model.encode(images[0], t=1), "images are of shape [4, 4, 1]"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(model, images, ask, message):
    with pytest.raises(UserError) as refused:
        ask(model, images)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_told_classes_wants_labels(tiny, images):
    parts = tiny().model
    network = dataclasses.replace(parts.network, classes=3)
    parts = dataclasses.replace(
        parts,
        network=network,
        encoder=dataclasses.replace(parts.encoder, network=network),
        conditioning=ByClass(),
    )
    params = parts.init(jax.random.key(0), (4, 4, 1))
    params["encoder"]["b"] = params["encoder"]["b"] + np.arange(4.0).reshape(4, 1, 1, 1)
    model = TrainedModel(tiny(model=parts), params, 0, "made")
    encoded = model.encode(images[:2], log_snr=-50.0, labels=[0, 2])  # y_phi alone
    same = model.encode(images[:2], log_snr=-50.0, labels=[0, 0])
    np.testing.assert_allclose(
        encoded - same, np.array([0.0, 2.0]).reshape(2, 1, 1, 1) * np.ones((2, 4, 4, 1)), atol=1e-5
    )
    for ask in (lambda: model.encode(images, t=0.5), lambda: model.elbo(images)):
        with pytest.raises(UserError, match="give labels, 13 of them"):
            ask()


def test_it_says_what_it_is(model, workdir):
    assert repr(model) == f"TrainedModel({str(workdir)!r}, step=12)"
    assert model.model == model.experiment.model
