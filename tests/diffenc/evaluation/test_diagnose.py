"""The diagnostics of models in closed form, against numpy; then of a trained run, with its files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffenc import registry
from diffenc.cli import run
from diffenc.config.settings import Diagnose, Evaluate
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.evaluation import diagnose
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.streaming_stats import ImageMeans
from diffenc.files import atomic
from diffenc.interfaces import NO_CONTEXT
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.parameterizations import V
from diffenc_plugins.schedules import Linear
from diffenc_plugins.stochasticities import Constant
from diffenc_plugins.time_samplers import Importance

BINS = 8
EMPTY = {"encoder": {}, "schedule": {}, "network": {}}


@dataclasses.dataclass(frozen=True)
class Wiener:
    """v_hat of the best linear denoiser for data of mean square `power`."""

    power: float

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(s * log_snr))[:, None, None, None] for s in (1, -1))
        x_hat = alpha * self.power * z / (alpha**2 * self.power + sigma**2)
        return (alpha * z - x_hat) / sigma


@dataclasses.dataclass(frozen=True)
class Multiple:
    """0.6 z."""

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return 0.6 * z


def inputs_of(experiment):
    """What a diagnosis takes of an experiment."""
    settings = resolve_batch_size(experiment.diagnose, experiment.batch_size)
    return experiment.model, experiment.dataset, settings, data_mesh()


def power_of(experiment, split="train"):
    """Mean square of the pixels."""
    images = experiment.dataset.source(split).images.astype(np.float64)
    return float(np.mean(np.square((2 * images + 1) / 5 - 1)))


@pytest.fixture(scope="module")
def wiener(tiny):
    """An experiment whose loss is known; every image of train is seen 80 times."""
    model = Model(Identity(), Linear(4.0, -3.0), V(), VDM(), Wiener(power_of(tiny())))
    settings = Diagnose(num_images=None, passes=80, bins=BINS)
    return tiny(model=model, batch_size=23, diagnose=settings)


@pytest.fixture(scope="module")
def loss(wiener):
    return {k: np.asarray(v) for k, v in diagnose.loss_record(*inputs_of(wiener), EMPTY).items()}


def test_the_loss_is_the_known_integrand(wiener, loss):
    """(1/2) SNR times the best mean squared error, power / (1 + power SNR), per dimension; in each bin of lambda
    its integral is half the difference of log(1 + power SNR)."""
    edges = np.linspace(4, -3, BINS + 1)
    np.testing.assert_allclose(loss["log_snr"], edges, rtol=1e-5)
    np.testing.assert_allclose(loss["log_snr_centre"], (edges[1:] + edges[:-1]) / 2, rtol=1e-5)
    area = -0.5 * np.diff(np.log1p(power_of(wiener) * np.exp(edges))) / np.log(2)
    assert np.all(np.abs(loss["density"] - area / (7 / BINS)) < 4 * loss["density_se"])
    assert np.all(np.abs(loss["loss"] - area * BINS) < 4 * loss["loss_se"])
    assert np.all(loss["loss_se"] < 0.05 * loss["loss"]), "else this says little"
    assert abs(loss["bpd_diffusion"] - area.sum()) < 4 * loss["bpd_diffusion_se"]
    np.testing.assert_allclose(loss["density"] @ -np.diff(loss["log_snr"]), loss["bpd_diffusion"], rtol=1e-5)


def test_every_draw_is_in_one_bin(loss):
    assert loss["draws"].sum() == 23 * 80
    assert np.all(np.abs(loss["draws"] - 230) < 40), "stratified times fill them evenly"
    np.testing.assert_allclose(loss["t"], np.linspace(0, 1, BINS + 1))


def test_the_root_mean_square_is_of_the_draws(loss):
    """Of squares of a normal error in 16 dimensions: E[l^2] = (1 + 2/16) E[l]^2, but for what bins and images add."""
    np.testing.assert_allclose(np.square(loss["rms"] / loss["loss"]), 1 + 2 / 16, rtol=0.1)
    np.testing.assert_allclose(
        loss["density_se"] / loss["density"], loss["loss_se"] / loss["loss"], rtol=1e-6
    )


def test_the_error_is_the_spread_over_images_with_all_their_draws(wiener):
    """One image's nats over all passes, from the elbo; its draws taken to be independent, the error is smaller."""
    few = dataclasses.replace(wiener, diagnose=Diagnose(num_images=None, passes=400, bins=1))
    stated = diagnose.loss_record(*inputs_of(few), EMPTY)
    experiment = dataclasses.replace(few, evaluate=Evaluate(split="train", passes=400))
    measured = Evaluator(experiment, data_mesh()).measure(EMPTY)
    bits = measured.terms["diffusion"] / (16 * np.log(2))
    by_image = bits.mean(axis=0).std(ddof=1) / np.sqrt(23)
    np.testing.assert_allclose(stated["bpd_diffusion_se"], by_image, rtol=0.3)
    np.testing.assert_allclose(stated["loss_se"], [stated["bpd_diffusion_se"]], rtol=1e-9)
    assert by_image > 1.3 * bits.std() / np.sqrt(bits.size)


def test_the_sum_is_the_evaluators_diffusion_loss(wiener, loss):
    experiment = dataclasses.replace(wiener, evaluate=Evaluate(split="train", passes=40))
    figures = Evaluator(experiment, data_mesh()).measure(EMPTY).metrics()
    error = np.hypot(loss["bpd_diffusion_se"], figures["bpd_diffusion_mc_se"])
    assert abs(loss["bpd_diffusion"] - figures["bpd_diffusion"]) < 4 * error


def v_hat_of(parameterization, z, alpha, sigma):
    """v_hat = alpha eps_hat - sigma x_hat of a network whose output is 0.6 z, by its definition."""
    out = 0.6 * z
    if parameterization == "v":
        return out
    if parameterization == "epsilon":
        return alpha * out - sigma * (z - sigma * out) / alpha
    return alpha * (z - alpha * out) / sigma - sigma * out


@pytest.mark.thin(pairs=True)
@pytest.mark.parametrize("parameterization", ["v", "epsilon", "x"])
@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize(
    ("encoder", "mean"), [(Identity(), VDM()), (Identity(), Counterterm()), (Nontrainable(), Counterterm())]
)
def test_v_hat_and_what_is_expected_of_it(x64, tiny, encoder, mean, parameterization, eta):
    """z = alpha x_phi + sigma eps through the definitions, in numpy; `expected` by solving for no residual."""
    chosen = registry.parameterizations[parameterization]()
    path = Constant(eta)
    model = Model(encoder, Linear(4.0, -3.0), chosen, mean, Multiple(), stochasticity=path)
    experiment = tiny(model=model)
    random = np.random.default_rng(0)
    x, eps, t = random.uniform(-1, 1, (5, 4, 4, 1)), random.normal(size=(5, 4, 4, 1)), np.linspace(0, 1, 5)
    got = diagnose.v_and_expectations(experiment.model, EMPTY, *map(jnp.asarray, (x, t, eps)))
    alpha, sigma = (1 / np.sqrt(1 + np.exp(s * (4 - 7 * t)))[:, None, None, None] for s in (-1, 1))
    shrinks = isinstance(encoder, Nontrainable)
    x_phi = alpha**2 * x if shrinks else x
    slope = alpha**2 * sigma**2 * x if shrinks else 0 * x
    kappa = sigma**2 if isinstance(mean, Counterterm) else 0.0
    z = alpha * x_phi + sigma * eps
    v_hat = v_hat_of(parameterization, z, alpha, sigma)
    np.testing.assert_allclose(got["v_hat"], v_hat, rtol=1e-9)
    np.testing.assert_allclose(got["slope"], slope, rtol=1e-9)
    x_hat = alpha * z - sigma * np.asarray(got["expected"])
    value_weight = 0.5 * (1 + eta**2)
    np.testing.assert_allclose(
        (value_weight + kappa) * x_hat, value_weight * x_phi + slope, atol=1e-9
    )  # no residual
    np.testing.assert_allclose(got["v_hat_from_expected"], v_hat - np.asarray(got["expected"]), atol=1e-12)
    np.testing.assert_allclose(got["v_hat_from_minus_slope"], v_hat + slope, atol=1e-12)
    np.testing.assert_allclose(got["v_hat_from_eps"], v_hat - eps, atol=1e-12)


def test_the_ends_of_a_known_model(wiener):
    """v_hat = k z, with k = alpha sigma (1 - power) / (alpha^2 power + sigma^2) of the best linear denoiser."""
    ends = {k: np.asarray(v) for k, v in diagnose.ends_record(*inputs_of(wiener), EMPTY).items()}
    power, log_snr = power_of(wiener), np.linspace(4, -3, BINS + 1)
    alpha_2, sigma_2 = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    z_2 = alpha_2 * power + sigma_2
    k = np.sqrt(alpha_2 * sigma_2) * (1 - power) / z_2
    want = {
        "v_hat": k**2 * z_2,
        "expected": alpha_2 + sigma_2 * power,
        "eps": np.ones(BINS + 1),
        "v_hat_from_eps": k**2 * z_2 - 2 * k * np.sqrt(sigma_2) + 1,
        "v_hat_from_expected": power / z_2,  # (x - x_hat) / sigma
    }
    np.testing.assert_allclose(ends["log_snr"], log_snr, rtol=1e-5)
    np.testing.assert_array_equal(ends["slope_rms"], 0)
    for name, squares in want.items():
        assert np.all(np.abs(ends[f"{name}_rms"] - np.sqrt(squares)) < 4 * ends[f"{name}_rms_se"]), name
    assert ends["draws"].sum() == 23 * 80
    for end, name, value in (
        ("at_0", "v_hat_from_eps", want["v_hat_from_eps"][0]),
        ("at_1", "v_hat_from_expected", want["v_hat_from_expected"][-1] / want["expected"][-1]),
    ):
        stated = ends[end].item()[name]
        assert abs(stated["distance"] - value) < 4 * stated["distance_se"] < 0.5 * value
    assert np.isnan(ends["at_1"].item()["v_hat_from_minus_slope"]["distance"]), "there is no slope"


def test_the_error_of_a_root_is_the_spread_of_many_roots():
    trials, draws = 2000, 400
    squares = np.random.default_rng(0).exponential(3.0, size=trials * draws)
    means = ImageMeans(draws, trials)
    means.add(np.tile(np.arange(draws), trials), np.repeat(np.arange(trials), draws), squares)
    roots = np.sqrt(squares.reshape(trials, draws).mean(axis=1))
    np.testing.assert_allclose(diagnose.root_error(means).mean(), roots.std(ddof=1), rtol=0.1)
    nothing = ImageMeans(3, 1)
    nothing.add(np.arange(3), np.zeros(3, int), np.zeros(3))
    assert diagnose.root_error(nothing) == 0


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A trained run, to be diagnosed."""
    experiment = tiny(ema_decay=0.99, diagnose=Diagnose(num_images=20, passes=8, bins=6))
    workdir = tmp_path_factory.mktemp("diagnose") / "run"
    loop.train(experiment, workdir)
    return experiment, workdir


def test_the_mode_files_figures_and_plots_and_overwrites_them(trained, capsys, check_shown, read_record):
    experiment, workdir = trained
    folder = workdir / "diagnostics"
    first = run.MODES["diagnose"].perform(experiment, workdir)
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"ends.{kind}" for kind in ("json", "pdf", "png")),
        *(f"loss.{kind}" for kind in ("json", "pdf", "png")),
        *(f"worth.{kind}" for kind in ("json", "pdf", "png")),
    ]
    out = capsys.readouterr().out
    for key in ("bpd_diffusion", "bpd_saved_by_path", "bpd_saved_by_both"):
        check_shown(out, first["worth"], key)
    assert first["worth"]["bpd_diffusion"] == pytest.approx(first["loss"]["bpd_diffusion"], rel=1e-6)
    for name in ("loss", "ends", "worth"):
        said = read_record(folder / f"{name}.json")
        assert said == json.loads(atomic.to_json(first[name]))
        assert (said["dataset"], said["split"], said["num_images"], said["step"], said["passes"]) == (
            "dots", "train", 20, 12, 8,
        )  # fmt: skip
        assert said["fingerprint"] == "train of dots"
        picture = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
        assert picture.std() > 5
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = dataclasses.replace(experiment, diagnose=dataclasses.replace(experiment.diagnose, seed=1))
    diagnose.diagnose(other, workdir)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    assert diagnose.diagnose(experiment, workdir)["loss"] == first["loss"], "the same seed, the same figures"


@pytest.mark.slow
def test_a_disk_that_refuses_leaves_the_old_files(trained, monkeypatch):
    experiment, workdir = trained
    diagnose.diagnose(experiment, workdir)
    before = {path.name: path.read_bytes() for path in (workdir / "diagnostics").iterdir()}

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        diagnose.diagnose(
            dataclasses.replace(experiment, diagnose=Diagnose(seed=2, passes=8, bins=6)), workdir
        )
    assert {path.name: path.read_bytes() for path in (workdir / "diagnostics").iterdir()} == before


@pytest.mark.slow
def test_importance_sampling_reads_the_curve_and_leaves_the_bound(trained, tmp_path):
    experiment, workdir = trained
    settings = Evaluate(split="train", passes=60, batch_size=23, time_sampler=Importance())
    bound = dataclasses.replace(experiment, evaluate=settings)
    with pytest.raises(UserError, match="--mode=diagnose first"):
        Evaluator(bound, data_mesh(), tmp_path)
    diagnose.diagnose(experiment, workdir)
    params = diagnose.restore_for_bound(experiment, workdir, data_mesh(), None)[0]
    uniform = dataclasses.replace(experiment, evaluate=Evaluate(split="train", passes=60, batch_size=23))
    one, other = (Evaluator(e, data_mesh(), workdir).measure(params).metrics() for e in (bound, uniform))
    error = np.hypot(one["bpd_diffusion_mc_se"], other["bpd_diffusion_mc_se"])
    assert one["bpd_diffusion"] != other["bpd_diffusion"]
    assert abs(one["bpd_diffusion"] - other["bpd_diffusion"]) < 4 * error


def test_too_few_draws_are_refused(trained):
    experiment, workdir = trained
    few = dataclasses.replace(experiment, diagnose=Diagnose(num_images=4, passes=1, bins=64))
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=r"drawn 0 time.*diagnose\.passes") as caught:
        diagnose.diagnose(few, workdir)
    assert "\n" not in str(caught.value)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [({"bins": 0}, "bins"), ({"passes": 0}, "passes"), ({"batch_size": -1}, "batch_size"),
     ({"split": "all"}, "split"), ({"num_images": 0}, "num_images"), ({"seed": -1}, "seed")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change, key):
    with pytest.raises(UserError, match=rf"^diagnose\.{key} = "):
        Diagnose(**change)


def test_the_labels_of_the_plots_are_mathematics(trained):
    experiment, workdir = trained
    records = diagnose.diagnose(experiment, workdir)
    ends, loss = diagnose.plot_ends(records["ends"]), diagnose.plot_loss(records["loss"])
    (legend,) = ends.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert all(label.startswith("$") for label in labels)
    shown = [ends.axes[0].get_title(), *labels, *(f.axes[0].get_xlabel() for f in (ends, loss))]
    assert not any(ascii_name in text for text in shown for ascii_name in ("v_hat", "phi /", "dlambda"))
    for figure in (ends, loss):
        figure.draw_without_rendering()
        label, whole = figure.axes[0].yaxis.label.get_window_extent(), figure.bbox
        assert whole.y0 <= label.y0 < label.y1 <= whole.y1, "it is cut off"
