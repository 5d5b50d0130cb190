"""Bounds of denoisers of other code, against closed forms for Gaussian data, DDPM's formulas, and `evaluate`."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffenc
from diffenc.config.settings import Evaluate
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.evaluation.evaluator import Evaluator
from diffenc.parallel.sharding import data_mesh
from diffenc_plugins.encoders import Identity
from diffenc_plugins.generative_means import VDM
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear

ENDS = (9.0, -6.0)


def symmetric_images(count: int, seed: int = 0) -> np.ndarray:
    """Levels near the middle, whose scaled values have mean 0; half of them mirror the others."""
    random = np.random.default_rng(seed)
    half = np.clip(np.round(random.normal(127.5, 40, (count // 2, 6, 6, 1))), 0, 255).astype(np.uint8)
    return np.concatenate([half, 255 - half])


COUNT = 128
IMAGES = symmetric_images(COUNT)
VARIANCE = float(np.mean(np.square(IMAGES / 127.5 - 1)))


def as_images(per_image: np.ndarray) -> np.ndarray:
    return np.asarray(per_image, np.float64).reshape(-1, 1, 1, 1)


def coefficients(process: str, noise_level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of z = a x + b eps, from what a denoiser of this process is given."""
    level = as_images(noise_level)
    if process == "vp":
        return np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))
    return (np.ones_like(level), level) if process == "ve" else (1 - level, level)


def best_linear(process: str, predicts: str, variance: float = VARIANCE):
    """E[x | z] for x ~ N(0, variance), and whatever follows from it, in numpy."""

    def denoiser(z, noise_level):
        a, b = coefficients(process, noise_level)
        x = a * variance * z / (a**2 * variance + b**2)
        eps = (z - a * x) / b
        alpha, sigma = a / np.hypot(a, b), b / np.hypot(a, b)
        v = eps - x if process == "flow" else alpha * eps - sigma * x
        return {"x": x, "eps": eps, "v": v, "score": -eps / b}[predicts].astype(np.float32)

    return denoiser


def nats(bits_per_dim: float) -> float:
    return bits_per_dim * np.log(2)


@pytest.mark.thin
@pytest.mark.parametrize("predicts", ["eps", "x", "v", "score"])
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_gaussian_data_cost_what_the_best_denoiser_must(process, predicts):
    """The diffusion term is 1/2 log((1 + v SNR_max) / (1 + v SNR_min)) a dimension, whatever the convention."""
    result = diffenc.bound(
        best_linear(process, predicts), IMAGES, predicts=predicts, process=process, log_snr=ENDS, passes=12
    )
    expected = 0.5 * (np.log1p(VARIANCE * np.exp(ENDS[0])) - np.log1p(VARIANCE * np.exp(ENDS[1])))
    error = nats(result.metrics["bpd_diffusion_mc_se"])
    assert error < 0.02 * expected
    assert nats(result.terms["diffusion"]) == pytest.approx(expected, abs=4 * error)
    alpha_2 = 1 / (1 + np.exp(-ENDS[1]))
    latent = 0.5 * (alpha_2 * VARIANCE + (1 - alpha_2) - np.log1p(-alpha_2) - 1)
    assert nats(result.terms["latent"]) == pytest.approx(latent, rel=1e-4)
    assert result.warnings == ()


def test_conventions_have_the_same_bound_on_the_same_draws():
    """The processes are one, up to a scale of z."""
    results = [
        diffenc.bound(best_linear(*of), IMAGES, process=of[0], predicts=of[1], log_snr=ENDS, passes=12)
        for of in (("vp", "eps"), ("ve", "score"), ("flow", "v"))
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.per_image, results[0].per_image, rtol=2e-4)


def test_the_ends_of_each_process():
    """EDM's sigma from 0.002 to 80, times from 0.001 to 0.999."""
    seen = {"ve": [], "flow": []}
    for process, levels in seen.items():

        def denoiser(z, noise_level, process=process, levels=levels):
            levels.extend(noise_level)
            return best_linear(process, "x")(z, noise_level)

        diffenc.bound(denoiser, IMAGES, process=process, predicts="x", passes=4, jit=False)
    assert min(seen["ve"]) == pytest.approx(0.002, rel=0.1)
    assert max(seen["ve"]) == pytest.approx(80, rel=0.1)
    assert min(seen["flow"]) == pytest.approx(1e-3, rel=0.1)
    assert max(seen["flow"]) == pytest.approx(1 - 1e-3, rel=1e-3)


def test_pixels_from_0_to_1_are_half_as_large():
    """x / 2 + 1/2 at four times the SNR is the same diffusion of the same data, and so is its decoder."""
    shift = 2 * np.log(2.0)

    def halved(z, noise_level):
        """The estimate of x / 2 + 1/2: z less the part of the mean, doubled, has the noise level of x."""
        a, _ = coefficients("ve", noise_level)
        return 0.5 * best_linear("ve", "x")(2 * (z - 0.5 * a), 2 * noise_level) + 0.5

    given = {"predicts": "x", "process": "ve", "passes": 2}
    ours = diffenc.bound(best_linear("ve", "x"), IMAGES, log_snr=ENDS, **given)
    ends = (ENDS[0] + shift, ENDS[1] + shift)
    theirs = diffenc.bound(halved, IMAGES, log_snr=ends, pixel_range=(0.0, 1.0), **given)
    for term in ("reconstruction", "diffusion"):
        assert theirs.terms[term] == pytest.approx(ours.terms[term], rel=1e-4)


@pytest.fixture(scope="module")
def own(tiny):
    """A VDM of this code, its parameters, and what `evaluate` measures of it."""
    base = tiny()
    model = Model(Identity(), Linear(6.0, -5.0), V(), VDM(), base.model.network)
    experiment = tiny(model=model, evaluate=Evaluate(passes=3, batch_size=4, seed=7))
    params = jax.jit(model.init, static_argnums=1)(jax.random.key(1), (4, 4, 1))
    terms = Evaluator(experiment, data_mesh()).measure(params)
    return model, params, experiment.dataset.source("test").images, terms


@pytest.mark.parametrize("jit", [None, False])
def test_our_own_models_measure_as_evaluate_measures_them(own, jit):
    model, params, images, terms = own

    def denoiser(z, log_snr):
        return model.predict(params, jnp.asarray(z), jnp.asarray(log_snr))

    result = diffenc.bound(
        denoiser, images, predicts="v", log_snr=(6.0, -5.0), pixel_range=(-0.8, 0.8), num_levels=5, passes=3,
        batch_size=4, seed=7, jit=jit,
    )  # fmt: skip
    expected = terms.metrics()
    assert set(result.metrics) == set(expected)
    for key, value in expected.items():
        found = result.metrics[key]
        assert found is value if value is None else found == pytest.approx(value, rel=5e-4, abs=1e-6), key
    np.testing.assert_allclose(result.per_image, terms.bits_per_dim()["bpd"].mean(axis=0), rtol=1e-4)


BETAS = np.array([0.02, 0.1, 0.3, 0.5, 0.8])
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)


def ddpm_excess(mean_square_error: np.ndarray) -> np.ndarray:
    """E || mu - mu~ ||^2 / (d beta~) of the steps t = 2 ... T, from [6, 7] of DDPM."""
    before, after = ALPHAS_CUMPROD[:-1], ALPHAS_CUMPROD[1:]
    weight_of_x = np.sqrt(before) * BETAS[1:] / (1 - after)
    posterior_variance = (1 - before) / (1 - after) * BETAS[1:]
    return weight_of_x**2 * mean_square_error / posterior_variance


def indexed(estimate):
    """A denoiser of x that knows its T noise levels by their index."""

    def denoiser(z, index):
        assert index.dtype == np.int32
        abar = as_images(ALPHAS_CUMPROD[index])
        return estimate(z, abar).astype(np.float32)

    return denoiser


def linear_estimate(z, abar):
    return np.sqrt(abar) * VARIANCE * z / (abar * VARIANCE + 1 - abar)


def test_a_chain_of_its_own_T_steps_is_that_of_DDPM():  # noqa: N802
    result = diffenc.bound(
        indexed(linear_estimate), IMAGES, predicts="x", alphas_cumprod=ALPHAS_CUMPROD, passes=24
    )
    snr = ALPHAS_CUMPROD[1:] / (1 - ALPHAS_CUMPROD[1:])
    expected = 0.5 * ddpm_excess(VARIANCE / (1 + VARIANCE * snr)).sum()
    error = nats(result.metrics["bpd_diffusion_mc_se"])
    assert error < 0.02 * expected
    assert nats(result.terms["diffusion"]) == pytest.approx(expected, abs=4 * error)
    abar = ALPHAS_CUMPROD[-1]
    latent = 0.5 * (abar * VARIANCE + (1 - abar) - np.log1p(-abar) - 1)
    assert nats(result.terms["latent"]) == pytest.approx(latent, rel=1e-4)
    assert nats(result.terms["reconstruction"]) == pytest.approx(ddpm_decoder(), rel=0.02)
    assert (result.num_timesteps, result.likelihood) == (5, "ELBO of T = 5 steps")
    assert (result.decoder, result.variance) == ("normal", "equal")


def ddpm_decoder() -> float:
    """-E log of DDPM's decoder [13] in float64, with noise of its own; nats a dimension."""
    x = np.repeat(IMAGES, 20, axis=0) / 127.5 - 1
    eps = np.random.default_rng(1).normal(size=x.shape)
    abar = np.array(ALPHAS_CUMPROD[0])
    mean = linear_estimate(np.sqrt(abar) * x + np.sqrt(1 - abar) * eps, abar)
    std = np.sqrt(BETAS[0])
    lower = np.where(x == -1, -np.inf, x - 1 / 255)
    upper = np.where(x == 1, np.inf, x + 1 / 255)
    return float(-np.log(norm.cdf(upper, mean, std) - norm.cdf(lower, mean, std)).mean())


def test_fitted_variances_are_the_best_ones():
    """sigma_P^2 = beta~ (1 + excess) costs 1/2 log(1 + excess) a step; here the estimate is the constant 0."""
    given = {"predicts": "x", "alphas_cumprod": ALPHAS_CUMPROD, "passes": 8}
    constant = indexed(lambda z, abar: 0 * z)
    fitted = diffenc.bound(
        constant, IMAGES, variance="fitted", fit_images=np.roll(IMAGES, 1, axis=1), **given
    )
    excess = ddpm_excess(np.full(4, VARIANCE))
    expected = 0.5 * np.log1p(excess).sum()
    assert nats(fitted.terms["diffusion"]) == pytest.approx(expected, rel=0.02)
    equal = diffenc.bound(constant, IMAGES, **given)
    assert nats(equal.terms["diffusion"]) == pytest.approx(0.5 * excess.sum(), rel=0.02)
    assert fitted.terms["reconstruction"] < equal.terms["reconstruction"], "its width is fitted as well"
    assert (fitted.variance, fitted.warnings) == ("fitted", ())


@pytest.mark.slow
def test_fitting_on_measured_images_is_warned_of():
    result = diffenc.bound(
        indexed(linear_estimate), IMAGES[:8], predicts="x", alphas_cumprod=ALPHAS_CUMPROD, variance="fitted",
        fit_images=IMAGES[4:], passes=2,
    )  # fmt: skip
    (warning,) = [text for text in result.warnings if "fit_images" in text]
    assert warning.startswith("4 of the 8 measured images are among fit_images")


@pytest.mark.slow
def test_clipping_lowers_the_bound_and_is_not_refused():
    """A fixed function like any other; the data lie in the range."""
    given = {"predicts": "x", "process": "ve", "passes": 2}
    plain = diffenc.bound(lambda z, sigma: z, IMAGES, **given)
    clipped = diffenc.bound(lambda z, sigma: z.clip(-1, 1), IMAGES, **given)
    assert clipped.bits_per_dim < plain.bits_per_dim


@pytest.mark.slow
def test_labels_reach_the_denoiser_with_their_images():
    labels = np.arange(COUNT) % 3

    def denoiser(z, log_snr, label):
        known = {int(one): (IMAGES[labels == one].astype(np.float64) / 127.5 - 1) for one in set(label)}
        return np.stack([known[int(one)].mean(axis=0) for one in label]).astype(np.float32)

    result = diffenc.bound(denoiser, IMAGES, predicts="x", labels=labels, passes=1, batch_size=5)
    shuffled = diffenc.bound(denoiser, IMAGES, predicts="x", labels=labels[::-1], passes=1, batch_size=5)
    assert result.condition == "label"
    assert result.terms["diffusion"] < shuffled.terms["diffusion"]
    assert " | label" in str(result)


@pytest.fixture(scope="module")
def result():
    return diffenc.bound(best_linear("vp", "eps"), IMAGES, log_snr=ENDS, passes=12)


def test_the_result_states_what_was_measured(result):
    assert (result.num_images, result.passes, result.num_levels) == (COUNT, 12, 256)
    assert result.num_timesteps is None
    assert (result.dequantisation, result.decoder, result.log_snr) == ("none", "levels", ENDS)
    assert result.bits_per_dim == pytest.approx(sum(result.terms.values()))
    assert result.per_image.mean() == pytest.approx(result.bits_per_dim)
    record = json.loads(json.dumps(result.record()))
    assert record["T"] == "continuous"
    assert record["bpd"] == result.bits_per_dim
    assert record["fingerprint"] == result.fingerprint


def test_one_line_says_it_all(result):
    text = str(result)
    assert "\n" not in text
    for part in (
        "bits/dim ±", "over images ±", "Monte Carlo: ELBO in continuous time", "log_snr 9 to -6", "256 levels",
        "128 images", f"pixels {result.fingerprint[:16]}", "12 passes", "no dequantisation (decoder: levels)",
    ):  # fmt: skip
        assert part in text


def test_the_fingerprint_is_that_of_a_data_set(own):
    _, _, images, _ = own
    import hashlib

    from diffenc.evaluation.bound_arguments import given_dataset

    expected = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
    assert given_dataset("images", images, None, 5).fingerprint("test") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, "images are of float32"),
        ({"images": IMAGES[0]}, r"images are of shape \[6, 6, 1\]: they must be uint8 levels of shape \[N, H, W, C\]"),
        ({"num_levels": 17}, "images have the level"),
        ({"num_levels": 1}, "num_levels = 1: must be from 2 to 256"),
        ({"predicts": "noise"}, "predicts = 'noise': there is no such one; nearest: .*'eps', 'x', 'v', 'score'"),
        ({"process": "edm"}, "process = 'edm': there is no such one; .*'vp', 've', 'flow'"),
        ({"log_snr": (-5.0, 13.3)}, "log_snr = .*the larger first"),
        ({"alphas_cumprod": [0.5]}, "alphas_cumprod must be at least two numbers"),
        ({"alphas_cumprod": [0.1, 0.5, 0.9]}, "alphas_cumprod must be .* fall"),
        ({"alphas_cumprod": [0.9, 0.1], "log_snr": (5.0, -5.0)}, "log_snr and alphas_cumprod are both given"),
        ({"variance": "fitted"}, "variance = 'fitted' needs discrete time"),
        ({"variance": "fitted", "alphas_cumprod": [0.9, 0.1]}, "variance = 'fitted' is fitted: give fit_images"),
        ({"variance": "learned", "alphas_cumprod": [0.9, 0.1]}, "variance = 'learned'"),
        ({"variance": "nothing", "alphas_cumprod": [0.9, 0.1]}, "no variance is called 'nothing'"),
        ({"fit_images": IMAGES}, "nothing is fitted on them"),
        ({"decoder": "pixel"}, "decoder = 'pixel': must be one of 'levels', 'normal'"),
        ({"pixel_range": (1.0, -1.0)}, "pixel_range = "),
        ({"labels": [0, 1]}, "labels are .*not one integer for each of 128 images"),
        ({"decoder": "normal", "fit_images": IMAGES, "fit_labels": [0] * COUNT}, "fit_labels: give them together"),
        ({"passes": 0}, "passes = 0: must be an integer from 1"),
        ({"tolerance": 0.0}, "tolerance = 0.0: must be a positive number"),
        ({"alphas_cumprod": 0.5}, "alphas_cumprod must be at least two numbers"),
        ({"batch_size": 0}, "batch_size = 0: must be an integer from 1"),
        ({"seed": -1}, "seed = -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_does_not_fit_is_named(changes, message):
    given = {"images": IMAGES, **changes}
    with pytest.raises(UserError, match=message) as refused:
        diffenc.bound(lambda z, level: z, given.pop("images"), **given)
    assert "\n" not in str(refused.value)


def test_dropout_that_is_on_is_refused():
    random = np.random.default_rng(0)
    with pytest.raises(UserError, match="not deterministic"):
        diffenc.bound(lambda z, level: np.where(random.uniform(size=z.shape) < 0.5, z, 0), IMAGES)


def test_statistics_of_the_batch_are_refused():
    with pytest.raises(UserError, match="mixes the images of a batch"):
        diffenc.bound(lambda z, level: z - z.mean(axis=0, keepdims=True), IMAGES)


def test_a_wrong_estimate_is_warned_of_and_the_likely_one_named(caplog):
    with caplog.at_level(logging.WARNING):
        result = diffenc.bound(best_linear("vp", "v"), IMAGES, log_snr=(5.0, -5.0), passes=8)
    (warning,) = result.warnings
    assert "times that of the best constant" in warning
    assert "this looks like predicts = 'v'" in warning
    assert warning in caplog.text


def test_a_bound_that_is_not_finite_is_warned_of():
    result = diffenc.bound(lambda z, level: np.full_like(z, np.nan), IMAGES, passes=1)
    assert np.isnan(result.bits_per_dim)
    (warning,) = result.warnings
    assert warning.startswith("the bound of 128 images is not finite")
