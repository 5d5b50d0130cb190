"""Evaluation against plain loops over models in closed form, and its errors against real spreads."""

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc.config.settings import Diagnose, Evaluate
from diffenc.core import objective
from diffenc.core.discretization import equal_steps
from diffenc.core.model import Draws, Model, Terms
from diffenc.core.objective import discrete
from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.diagnose import loss_record
from diffenc.evaluation.evaluation_record import ElboTerms, evaluation_record
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_error import monte_carlo_error
from diffenc.evaluation.loss_over_log_snr import LossDraws
from diffenc.files import atomic
from diffenc.parallel.sharding import data_mesh
from diffenc.workdir import loss_curves
from diffenc_plugins.encoders import Trainable
from diffenc_plugins.networks import EncoderUNet
from diffenc_plugins.schedules import LearnedEndpoints
from diffenc_plugins.stochasticities import Constant
from diffenc_plugins.time_samplers import Importance
from diffenc_plugins.variances import Fitted

NUM_IMAGES, NUM_DIMS = 13, 16
NO_DRAWS = LossDraws(np.empty(0), np.empty(0))
PARAMS = {"network": {"w": np.float32(3.0)}, "schedule": LearnedEndpoints().init(jax.random.key(0))}


@dataclasses.dataclass(frozen=True)
class Known(Model):
    """Terms that are functions of the image alone."""

    def elbo(self, params, levels, draws, *, keys=None, **_):
        assert keys is None, "evaluation drops nothing out"
        pixels = levels.astype(jnp.float32)
        return Terms(
            reconstruction=pixels.sum(axis=(1, 2, 3)),
            latent=jnp.square(pixels).sum(axis=(1, 2, 3)),
            diffusion=params["network"]["w"] * pixels[:, 0, 0, 0],
        )


@dataclasses.dataclass(frozen=True)
class Drawn(Model):
    """Terms that are what was drawn: a time, noise of its own for each image, noise a pass shares."""

    def elbo(self, params, levels, draws, **_):
        shared = jnp.cos(2 * jnp.pi * NUM_IMAGES * draws.t)  # stratified times: the same for a whole pass
        return Terms(reconstruction=draws.t, latent=5 * draws.eps[:, 0, 0, 0], diffusion=4 * shared)


@pytest.fixture
def measure(tiny):
    """What an evaluation of a stub gives, with other settings than the default where they are named."""

    def make(model: type[Model], batch_size=4, after_batch=lambda: None, params=PARAMS, **settings):
        stub = model(**vars(tiny().model))
        experiment = tiny(model=stub, batch_size=batch_size, evaluate=Evaluate(**settings))
        return Evaluator(experiment, data_mesh()).measure(params, after_batch)

    return make


def _images(tiny) -> np.ndarray:
    return tiny().dataset.source("test").images.astype(np.float64)


def test_a_bound_that_was_measured_before_is_not_traced_again(tiny):
    traced = []

    @dataclasses.dataclass(frozen=True)
    class Seen(Known):
        def elbo(self, params, *args, **options):
            traced.append(None)
            return super().elbo(params, *args, **options)

    def measure(w, **settings):
        experiment = tiny(model=Seen(**vars(tiny().model)), evaluate=Evaluate(**settings))
        params = {**PARAMS, "network": {"w": np.float32(w)}}
        return Evaluator(experiment, data_mesh()).measure(params).terms["diffusion"]

    first, count = measure(3.0, seed=1), len(traced)
    assert count
    np.testing.assert_array_equal(measure(6.0, seed=2, passes=2)[1], 2 * first[0])
    assert len(traced) == count
    measure(3.0, num_timesteps=4)
    assert len(traced) > count


@pytest.mark.parametrize("batch_size", [1, 4, 5, 13, 16])
def test_every_image_counts_once_whatever_the_batch(measure, tiny, batch_size):
    """13 images fill none of these batches evenly, except of 1 and of 13."""
    measured = measure(Known, batch_size, passes=2)
    for number, image in enumerate(_images(tiny)):
        for one_pass in range(2):
            assert measured.terms["reconstruction"][one_pass, number] == image.sum()
            assert measured.terms["latent"][one_pass, number] == (image**2).sum()
            assert measured.terms["diffusion"][one_pass, number] == 3 * image[0, 0, 0]
    assert {terms.shape for terms in measured.terms.values()} == {(2, NUM_IMAGES)}


def test_bits_per_dim_weigh_the_short_last_batch_by_its_images(measure, tiny):
    summary = measure(Known, batch_size=5).metrics()
    expected = np.mean([image.sum() for image in _images(tiny)]) / NUM_DIMS / np.log(2)
    np.testing.assert_allclose(summary["bpd_reconstruction"], expected, rtol=1e-12)
    parts = sum(summary[f"bpd_{part}"] for part in ("reconstruction", "latent", "diffusion"))
    np.testing.assert_allclose(summary["bpd"], parts, rtol=1e-12)


def test_the_error_over_images_is_that_of_their_means(measure, tiny):
    images = _images(tiny)
    total = images.sum(axis=(1, 2, 3)) + (images**2).sum(axis=(1, 2, 3)) + 3 * images[:, 0, 0, 0]
    bits = total / NUM_DIMS / np.log(2)
    expected = np.sqrt(((bits - bits.mean()) ** 2).sum() / (NUM_IMAGES - 1)) / np.sqrt(NUM_IMAGES)
    summary = measure(Known, passes=3).metrics()  # passes that say the same do not make more images
    np.testing.assert_allclose(summary["bpd_se"], expected, rtol=1e-9)
    for passes in (1, 3):
        np.testing.assert_allclose(
            measure(Known, passes=passes).metrics()["bpd_se_upper"], expected, rtol=1e-9
        )


def test_a_single_pass_leaves_the_error_over_images_open(measure):
    """What it cannot tell from Monte-Carlo noise is only bounded."""
    summary = measure(Drawn).metrics()
    assert summary["bpd_se"] is summary["bpd_se_uncertainty"] is None
    assert summary["bpd_se_upper"] > 0


def test_which_figures_there_are(measure):
    keys = {"bpd", "bpd_reconstruction", "bpd_latent", "bpd_diffusion"}
    errors = {f"{key}_{kind}" for key in keys for kind in ("se", "se_uncertainty", "se_upper")}
    assert set(measure(Known).metrics()) == keys | errors
    assert set(measure(Known, passes=2).metrics()) == keys | errors | {f"{key}_mc_se" for key in keys}
    one = ElboTerms(
        {term: np.ones((1, 1)) for term in Terms._fields}, np.zeros((1, 1, 1)), NUM_DIMS, NO_DRAWS
    )
    assert set(one.metrics()) == keys, "one image has no spread"


def test_no_draws_no_monte_carlo_error(measure):
    assert measure(Known, passes=3).metrics()["bpd_mc_se"] < 1e-12


def test_passes_batches_and_images_are_drawn_afresh(measure):
    measured = measure(Drawn, passes=3)
    noise = measured.terms["latent"].ravel()
    assert len(set(noise)) == noise.size == 3 * NUM_IMAGES
    shared = np.unique(measured.terms["diffusion"].round(3))
    assert len(shared) == 3, "each pass has times of its own"


def test_the_same_seed_draws_the_same_for_every_model(measure):
    one = measure(Drawn, seed=5, passes=2)
    again = measure(Drawn, seed=5, passes=2, params={**PARAMS, "network": {"w": np.float32(9.0)}})
    other = measure(Drawn, seed=6, passes=2)
    for term in Terms._fields:
        np.testing.assert_array_equal(one.terms[term], again.terms[term])
        assert (one.terms[term] != other.terms[term]).all()


@pytest.mark.parametrize("batch_size", [3, 4, 12, 13])
def test_few_images_in_a_large_batch_have_times_all_over(measure, batch_size):
    """Three of them, in order of time: each at one place of its third of [0, 1)."""
    t = measure(Drawn, batch_size, num_images=3, passes=20).terms["reconstruction"]
    first, second, third = np.sort(t, axis=1).T
    gaps = np.stack([second - first, third - second])
    np.testing.assert_allclose(gaps, 1 / 3, atol=1e-6)


@pytest.mark.parametrize("times_per_image", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_neither_batch_nor_filling_changes_what_is_drawn(measure, times_per_image):
    one = measure(Drawn, 13, passes=2, times_per_image=times_per_image)
    for batch_size in (1, 4, 5, 16):
        other = measure(Drawn, batch_size, passes=2, times_per_image=times_per_image)
        np.testing.assert_array_equal(one.times, other.times)
        for term in ("reconstruction", "latent"):
            np.testing.assert_allclose(one.terms[term], other.terms[term], rtol=1e-6)


def test_times_per_image_are_averaged(measure):
    """A uniform time has variance 1/12; the mean of k, one in each k-th part of [0, 1), 1 / (12 k^3)."""
    for times in (1, 16):
        t = measure(Drawn, passes=60, times_per_image=times).terms["reconstruction"]
        assert t.shape == (60, NUM_IMAGES)
        np.testing.assert_allclose(t.mean(), 0.5, atol=0.05)
        np.testing.assert_allclose(t.var(), 1 / 12 / times**3, rtol=0.3)


def test_the_batch_is_its_own_where_bound_and_else_that_of_training(tiny):
    bound = tiny(batch_size=4, evaluate=Evaluate(batch_size=6, passes=3))
    assert Evaluator(bound, data_mesh()).batches.batch_size == 6
    assert Evaluator(bound, data_mesh()).num_batches == 3 * 3
    assert Evaluator(tiny(batch_size=4), data_mesh()).batches.batch_size == 4


@pytest.mark.parametrize(("split", "count"), [("train", 23), ("validation", 7), ("test", 13)])
def test_the_split_is_measured_whole(measure, split, count):
    assert measure(Known, split=split).terms["latent"].shape == (1, count)


def test_between_batches_one_may_stop(measure):
    calls = []

    def stop_at_the_fifth():
        calls.append(None)
        if len(calls) == 5:
            raise KeyError("stop")

    measure(Known, passes=1, after_batch=lambda: calls.append(None))
    assert len(calls) == 4
    calls.clear()
    with pytest.raises(KeyError, match="stop"):
        measure(Known, passes=2, after_batch=stop_at_the_fifth)


def test_monte_carlo_error_meets_the_spread_of_many_evaluations(tiny):
    """The figure's real spread over seeds, against the error that each single evaluation states.

    The images of a pass share this noise, so an error that took them to be independent would be far too small.
    """
    experiment = tiny(model=Drawn(**vars(tiny().model)), batch_size=13, evaluate=Evaluate(passes=4))
    evaluator = Evaluator(experiment, data_mesh())
    figures, variances = [], []
    for seed in range(150):
        settings = dataclasses.replace(experiment.evaluate, seed=seed, batch_size=13)
        summary = evaluator.with_images(experiment.dataset, settings).measure(PARAMS).metrics()
        figures.append(summary["bpd_diffusion"])
        variances.append(summary["bpd_diffusion_mc_se"] ** 2)
    np.testing.assert_allclose(np.mean(variances), np.var(figures, ddof=1), rtol=0.3)
    # in closed form: cos of a uniform phase has variance 1/2, and there are 4 passes
    exact = 16 * 0.5 / 4 / (NUM_DIMS * np.log(2)) ** 2
    np.testing.assert_allclose(np.mean(variances), exact, rtol=0.15)


@pytest.mark.parametrize("passes", [2, 5])
def test_monte_carlo_error_is_unbiased_also_from_few_passes(passes):
    random = np.random.default_rng(passes)
    trials = []
    for _ in range(4000):
        bits = 7 + np.arange(10) + random.normal(size=(passes, 10))
        trials.append((bits.mean(), monte_carlo_error(bits) ** 2))
    means, variances = np.array(trials).T
    np.testing.assert_allclose(variances.mean(), means.var(ddof=1), rtol=0.1)


def test_the_record_says_what_was_measured(tiny, measure):
    experiment = tiny(evaluate=Evaluate(split="validation", passes=2, times_per_image=3, seed=4))
    measured = measure(Drawn, split="validation", passes=2, times_per_image=3, seed=4)
    figures = evaluation_record(
        experiment, measured, step=70, num_params=66, fitted_on={"curve_of": {"step": 9}}
    )
    expected = {
        "dataset": "dots", "split": "validation", "num_images": 7, "fingerprint": "validation of dots",
        "T": "continuous", "passes": 2, "times_per_image": 3, "seed": 4, "step": 70, "num_params": 66,
        "curve_of": {"step": 9}, "time_sampler": "uniform", "stratified": "over the pass", "precision": "float32", "matmul_precision": "float32",
    }  # fmt: skip
    assert {key: figures[key] for key in expected} == expected
    assert {key: figures[key] for key in measured.metrics()} == measured.metrics()
    assert json.loads(json.dumps(figures)) == figures
    assert len(figures["config_hash"]) == 64


def test_the_record_says_on_which_path_unless_it_is_the_papers(tiny, measure):
    def said(experiment):
        return evaluation_record(experiment, measure(Known), 1, 1, {}).get("stochasticity")

    on_another = dataclasses.replace(tiny().model, stochasticity=Constant(0.5))
    assert said(tiny()) is None
    assert said(tiny(model=on_another)) == "constant(eta=0.5)"


def test_the_configs_hash_tells_models_apart_and_not_settings(tiny, measure):
    def hash_of(**changes):
        return evaluation_record(tiny(**changes), measure(Known), 1, 1, {})["config_hash"]

    assert hash_of(evaluate=Evaluate(passes=7)) == hash_of(steps=99) == hash_of()
    assert hash_of(seed=9) != hash_of()


def test_a_model_that_trains_has_terms_per_image(tiny):
    """The real model, through the real thing: finite, positive, another figure for other parameters."""
    experiment = tiny()
    evaluator = Evaluator(experiment, data_mesh())
    params = [
        jax.jit(lambda seed=seed: experiment.model.init(jax.random.key(seed), (4, 4, 1)))() for seed in (0, 1)
    ]
    summaries = [evaluator.measure(p).metrics() for p in params]
    assert all(np.isfinite([v for v in s.values() if v is not None]).all() for s in summaries)
    assert summaries[0]["bpd"] > 0.1
    assert summaries[0]["bpd"] != summaries[1]["bpd"]


def real(tiny, **settings):
    """An evaluator of the tiny model, and parameters for it."""
    experiment = tiny(evaluate=Evaluate(**settings))
    params = experiment.model.init(jax.random.key(0), experiment.dataset.image_shape)
    return Evaluator(experiment, data_mesh()), params, experiment


def test_in_discrete_time_the_bound_is_the_sum_over_all_steps(tiny):
    """Every step enumerated, with many noises; the evaluator draws one step at a time."""
    evaluator, params, experiment = real(tiny, num_timesteps=3, passes=300, batch_size=13)
    got = evaluator.measure(params).terms["diffusion"].mean(axis=1)  # by pass
    levels = jnp.asarray(experiment.dataset.source("test").images)
    rule = discrete(equal_steps(3))

    @jax.jit
    def one_step(t, key):
        eps = jax.random.normal(key, levels.shape)
        draws = Draws(jnp.full(13, t), eps, eps)
        return experiment.model.elbo(params, levels, draws, num_levels=5, step_rule=rule).diffusion.mean()

    keys = jax.random.split(jax.random.key(9), 200)
    steps = [jax.lax.map(lambda key, t=t: one_step(t, key), keys) for t in (0.1, 0.5, 0.9)]
    sums = np.mean(steps, axis=0)
    error = np.hypot(got.std() / np.sqrt(300), sums.std() / np.sqrt(200))
    assert abs(got.mean() - sums.mean()) < 4 * error
    assert error < 0.02 * got.mean()
    limit, *_ = real(tiny, passes=30, batch_size=13)
    assert limit.measure(params).terms["diffusion"].mean() < 0.9 * got.mean()


def test_losses_lie_at_the_log_snrs_of_the_chains_stops(tiny):
    """Not at those of the drawn t, which only say which step was drawn."""
    evaluator, params, experiment = real(tiny, num_timesteps=3, passes=8, batch_size=13)
    schedule = experiment.model.schedule
    low, high = schedule.log_snr_min, schedule.log_snr_max
    found = np.unique(evaluator.measure(params).draws.log_snr)
    assert found == pytest.approx([low, low + (high - low) / 3, low + 2 * (high - low) / 3], rel=1e-5)


@pytest.mark.parametrize("num_images", [1, 5, 13, 99])
def test_some_of_the_images_are_drawn_once_each_by_the_seed(measure, tiny, num_images):
    pixel_sums = np.sort(_images(tiny).sum(axis=(1, 2, 3)))
    some = measure(Known, num_images=num_images).terms["reconstruction"][0]
    assert len(some) == min(num_images, 13)
    assert all(np.sum(some == value) <= np.sum(pixel_sums == value) for value in some)
    np.testing.assert_array_equal(some, measure(Known, num_images=num_images).terms["reconstruction"][0])
    if num_images == 5:
        others = measure(Known, num_images=5, seed=1).terms["reconstruction"][0]
        assert np.any(np.sort(some) != np.sort(others))


@pytest.mark.slow
def test_deeper_than_float32_can_bear_is_refused(tiny):
    real(tiny, num_timesteps=10_000)
    with pytest.raises(UserError, match=r"^T = 10001: in float32 .* add --x64$"):
        real(tiny, num_timesteps=10_001)
    with jax.enable_x64(True):
        evaluator, params, _ = real(tiny, num_timesteps=10_001)
        assert evaluator.measure(params).metrics()["bpd"] > 0


@pytest.mark.slow
def test_a_bfloat16_secant_is_good_to_a_thousandth_at_its_depth_and_not_much_deeper():
    """What rounding adds to the bound, in bits/dim: the mean over steps of the weighted square of the slope's error.

    Of encoders as large as tanh lets them be, the mean over eight draws of the weights: of one draw it is 0.0001 to 0.0011 at
    T = 300.
    """
    network = EncoderUNet(1, channels=8)

    @partial(jax.jit, static_argnums=0)
    def slope(precision, params, x, log_snr_t, log_snr_s):
        encoder = Trainable(dataclasses.replace(network, precision=precision))
        step = objective.secant(
            lambda at: encoder.apply(params, x, at), partial(MARKOV.increment, {}), log_snr_t, log_snr_s
        )
        return step.truth.slope, step.weight

    def excess(steps, seed):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.uniform(-1, 1, (64, 4, 4, 1)), jnp.float32)
        shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(64))
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32), shapes)
        stops = 13.3 - 18.3 * (np.arange(64) + rng.uniform(size=64)) / 64
        ends = jnp.asarray(stops, jnp.float32), jnp.asarray(stops + 18.3 / steps, jnp.float32)
        (exact, weight), (rounded, _) = (slope(each, params, x, *ends) for each in ("float32", "bfloat16"))
        nats = steps * weight * np.mean(np.square(rounded - exact), axis=(1, 2, 3))
        return float(np.mean(nats)) / np.log(2)

    at_depth, deeper = (np.mean([excess(steps, seed) for seed in range(8)]) for steps in (300, 3_000))
    assert at_depth < 1e-3 < deeper


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variance": Fitted()}, "evaluate.variance needs discrete time: bind evaluate.num_timesteps = T"),
        ({"times": "fitted"}, "evaluate.times needs discrete time: bind evaluate.num_timesteps = T"),
        ({"times": "even"}, "evaluate.times = 'even': must be one of equal, fitted"),
        ({"num_timesteps": -1}, "evaluate.num_timesteps = -1: must not be negative"),
        ({"num_images": 0}, "evaluate.num_images = 0: must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        tiny(evaluate=Evaluate(**settings))


@pytest.mark.parametrize(
    ("settings", "mode"),
    [({"variance": Fitted()}, "fit_variance"), ({"times": "fitted"}, "fit_schedule")],
)
def test_what_is_not_fitted_is_asked_for_before_anything_runs(tiny, tmp_path, settings, mode):
    experiment = tiny(evaluate=Evaluate(num_timesteps=7, **settings))
    with pytest.raises(UserError, match=f"--mode={mode} --num_timesteps=7 first"):
        Evaluator(experiment, data_mesh(), tmp_path)


@pytest.mark.parametrize("steps", [0, pytest.param(6, marks=pytest.mark.slow)])
def test_importance_sampling_lowers_the_error_and_not_the_figure(tiny, tmp_path, steps):
    """To about 0.78 of the error of uniform times, which are stratified too."""

    def measure(**settings):
        experiment = tiny(evaluate=Evaluate(passes=200, batch_size=13, num_timesteps=steps, **settings))
        params = experiment.model.init(jax.random.key(0), experiment.dataset.image_shape)
        return Evaluator(experiment, data_mesh(), tmp_path).measure(params).metrics()

    experiment = tiny(diagnose=Diagnose(passes=40, bins=16))
    params = experiment.model.init(jax.random.key(0), experiment.dataset.image_shape)
    loss_curves.curve_path(tmp_path).parent.mkdir()
    settings = resolve_batch_size(experiment.diagnose, experiment.batch_size)
    record = loss_record(experiment.model, experiment.dataset, settings, data_mesh(), params)
    atomic.write_json(loss_curves.curve_path(tmp_path), record)
    plain, aimed = measure(), measure(time_sampler=Importance())
    error = np.hypot(plain["bpd_diffusion_mc_se"], aimed["bpd_diffusion_mc_se"])
    assert abs(plain["bpd_diffusion"] - aimed["bpd_diffusion"]) < 4 * error
    assert aimed["bpd_diffusion_mc_se"] < 0.92 * plain["bpd_diffusion_mc_se"]
