"""Bits/dim by the ODE: of known data, of a linear model by scipy, and the mode on a trained run."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffenc.config.settings import Evaluate, Likelihood
from diffenc.core.dequantization import DEQUANTISATIONS
from diffenc.core.model import Model
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.evaluation import commands, likelihood, ode_likelihood
from diffenc.evaluation.ode import Stats
from diffenc.evaluation.ode_likelihood import Noise
from diffenc.evaluation.restore_params import restore_ema
from diffenc.interfaces import NO_CONTEXT, Images
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop
from diffenc_plugins.encoders import Identity, Nontrainable
from diffenc_plugins.generative_means import VDM, Counterterm
from diffenc_plugins.networks import UNet
from diffenc_plugins.parameterizations import X
from diffenc_plugins.schedules import Linear

FEW = Likelihood(times_per_image=3)
SHARES = (0.1, 0.2, 0.3, 0.4)
VALUES = ((-0.75,), (-0.25,), (0.25,), (0.75,))


@dataclasses.dataclass(frozen=True)
class Best:
    """The best denoiser of one-pixel images, as a network."""

    data: object

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        assert context.keys is None, "nothing is dropped out"
        return self.data.x_hat(z.reshape(-1, 1), log_snr).reshape(z.shape)  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Every level once, as an image of one pixel."""

    image_shape = (1, 1, 1)
    num_levels = 4
    num_classes = 1

    def source(self, split):
        return ArraySource(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), np.zeros(4, np.int32))

    def fingerprint(self, split):
        return "pixels"


@pytest.mark.parametrize("encoder", [pytest.param("identity", marks=pytest.mark.slow), "nontrainable"])
def test_of_known_data_each_image_is_given_its_probability(tiny, mixture, encoder):
    """The bound of a truncated normal is tight at every draw if the data lie on the levels."""
    data = mixture(weights=SHARES, means=VALUES, variances=(0.0,) * 4, encoder=encoder)
    parts = {"identity": (Identity(), VDM()), "nontrainable": (Nontrainable(), Counterterm())}[encoder]
    model = Model(parts[0], Linear(13.3, -12.0), X(), parts[1], Best(data))
    experiment = tiny(model=model, dataset=Pixels(), evaluate=Evaluate(passes=8, batch_size=3))
    params = {"encoder": {}, "schedule": {}, "network": {}}
    solved = ode_likelihood.solve_images(experiment, experiment.model, data_mesh(), params)
    np.testing.assert_allclose(solved.nats, np.broadcast_to(-np.log(SHARES), (8, 4)), atol=1e-2)


def linear_density(z_0, params, ends):
    """log p_0 of z_0 [H, W, C] for out = w z + b, v: each pixel a linear ODE, solved by scipy with its divergence."""
    w, b = (np.asarray(params["network"][name], np.float64).ravel() for name in ("w", "b"))

    def field(log_snr, state):
        z = state[: w.size]
        alpha_2 = 1 / (1 + np.exp(-log_snr))
        alpha, sigma = np.sqrt(alpha_2), np.sqrt(1 - alpha_2)
        gain = alpha - sigma * w  # of x_hat = alpha z - sigma out
        pull = alpha * (1 - alpha_2 + 0.5)  # kappa = sigma^2
        dz = pull * (gain * z - sigma * b) - 0.5 * alpha_2 * z
        return np.append(dz, np.sum(pull * gain - 0.5 * alpha_2))

    start = np.append(np.asarray(z_0, np.float64).ravel(), 0.0)
    end = integrate.solve_ivp(field, ends, start, rtol=1e-9, atol=1e-9).y[:, -1]
    return stats.norm.logpdf(end[:-1]).sum() + end[-1]


@pytest.mark.parametrize("settings", [Likelihood(), Likelihood("uniform", exact_up_to=15, probes=2)])
def test_a_linear_model_by_scipy(tiny, settings):
    """Its Jacobian is diagonal, so that Hutchinson's estimate by signs is exact as well."""
    model, levels = tiny().model, tiny().dataset.source("test").images[:2]
    params = jax.jit(lambda key: model.init(key, (4, 4, 1)))(jax.random.key(3))
    params["network"]["b"] += 0.2
    key = jax.random.key(4)
    batch_nats = jax.jit(ode_likelihood.batch_nats, static_argnums=(0, 1, 2))
    got, _, result = batch_nats(model, 5, settings, params, Images(jnp.asarray(levels)), (key, jnp.ones(())))
    assert result.reached
    x = jnp.asarray(2 * (levels + 0.5) / 5 - 1, jnp.float32)
    dequantise = DEQUANTISATIONS[settings.dequantisation]
    z_0, log_q = dequantise(jax.random.split(key)[0], x, jnp.full(2, 6.0), 5)
    want = [float(log_q[i]) - linear_density(z_0[i], params, (6.0, -5.0)) for i in range(2)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=5e-3)


@pytest.fixture
def measured(tiny, monkeypatch):
    """What is measured where an image's nats are its first pixel, and noise of the batch's key."""

    def make(noise=0.0, **settings):
        def batch_nats(model, num_levels, settings, params, images, key_and_tighter):
            levels = images.levels
            drawn = noise * jax.random.normal(key_and_tighter[0], levels.shape[:1])
            reached = Stats(len(levels) + jnp.zeros((), jnp.int32), jnp.ones((), bool))
            first = levels[:, 0, 0, 0].astype(jnp.float32)
            return first + drawn, Noise(*[jnp.stack([first] * 2)] * 3), reached

        monkeypatch.setattr(ode_likelihood, "batch_nats", batch_nats)
        experiment = tiny(evaluate=Evaluate(**settings))
        return ode_likelihood.solve_images(experiment, experiment.model, data_mesh(), {})

    return make


@pytest.mark.parametrize("batch_size", [1, 4, 13, 16])
def test_every_image_counts_once_whatever_the_batch(measured, tiny, batch_size):
    solved = measured(batch_size=batch_size, passes=2)
    first = tiny().dataset.source("test").images[:, 0, 0, 0]
    np.testing.assert_array_equal(solved.nats, np.stack([first, first]))
    np.testing.assert_array_equal(solved.noise.of_path, np.broadcast_to(first, (2, 2, 13)))
    np.testing.assert_array_equal(solved.evaluations, np.full((2, -(-13 // batch_size)), batch_size))


def test_passes_and_batches_draw_afresh_by_the_seed(measured):
    one, again, other = (measured(1.0, batch_size=4, passes=3, seed=seed).nats for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert not np.any(one == other)
    noise = one - measured(batch_size=4, passes=3).nats
    assert len(np.unique(noise.round(5))) == noise.size


def test_some_images_of_another_split(measured):
    assert measured(split="validation").nats.shape == (1, 7)
    assert measured(num_images=5).nats.shape == (1, 5)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> Path:
    """A trained run, its averaged parameters far from its parameters, with an evaluation in it."""
    folder = tmp_path_factory.mktemp("likelihood") / "run"
    loop.train(tiny(ema_decay=0.99), folder)
    commands.evaluate(tiny(ema_decay=0.99), folder)
    return folder


@pytest.fixture
def trained(tiny):
    """The experiment of `workdir`."""

    def make(settings=None, **evaluate):
        return tiny(ema_decay=0.99, evaluate=Evaluate(**evaluate), likelihood=settings or FEW)

    return make


def test_the_mode_files_its_figures_beside_the_bounds(trained, workdir, capsys, read_record, check_shown):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    figures = likelihood.likelihood(trained(passes=3, batch_size=5), workdir)
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    made = {str(path.relative_to(workdir)) for path in after.keys() - before.keys()}
    assert made == {f"likelihood{place}.{kind}" for place in ("", "s/0001") for kind in ("json", "npz")}
    assert {path: after[path] for path in before} == before
    assert read_record(workdir / "likelihood.json") == figures
    arrays = np.load(workdir / "likelihood.npz")
    bits = arrays["nats"] / 16 / np.log(2)
    assert bits.shape == (3, 13)
    assert figures["bpd_ode"] == pytest.approx(bits.mean(), rel=1e-9)
    by_image = bits.mean(axis=0)
    assert figures["bpd_ode_se_upper"] == pytest.approx(by_image.std(ddof=1) / np.sqrt(13), rel=1e-9)
    spread = sum(np.var(bits[:, i], ddof=1) / 3 for i in range(13))  # images draw for themselves
    assert figures["bpd_ode_mc_se"] == pytest.approx(np.sqrt(spread) / 13, rel=1e-9)
    assert figures["evaluations"] == arrays["evaluations"].mean() > 20
    names = ("solver", "leaving", "dequantisation", "looseness", "miscalibration", "remainder")
    parts = [figures[f"bpd_gap_{name}"] for name in names]
    assert figures["bpd_gap"] == pytest.approx(sum(parts), rel=1e-9)
    assert figures["bpd_gap"] == pytest.approx(figures["bpd_ode"] - figures["bpd_elbo"], rel=1e-9)
    assert figures["bpd_gap_solver"] == pytest.approx((bits - arrays["nats_tighter"] / 16 / np.log(2)).mean())
    elbo = sum(arrays[term].mean() for term in ("reconstruction", "latent", "diffusion")) / 16 / np.log(2)
    assert figures["bpd_elbo"] == pytest.approx(elbo, rel=1e-9)
    assert arrays["times"].shape == (3, 13, 3)
    path, q = (arrays[f"noise_{name}"].mean(axis=(0, 2), dtype=np.float64) for name in ("of_path", "of_q"))
    np.testing.assert_allclose(figures["noise"]["ratio"], path / q, rtol=1e-6)
    np.testing.assert_allclose(
        figures["noise"]["log_snr"], np.linspace(6, -5, 33), atol=0.3
    )  # the ends are learned
    assert np.all(np.asarray(figures["noise"]["ratio_se"]) > 0)
    out = capsys.readouterr().out
    for key in ("bpd_ode", "bpd_along_q", "bpd_elbo", "bpd_gap", "bpd_gap_leaving", "bpd_gap_remainder"):
        check_shown(out, figures, key)
    assert "dots test, 13 images, 3 pass(es), ODE with exact divergence" in out
    assert likelihood.UNMODELLED in out, "the encoder is a trained one"


def test_the_record_says_what_the_figure_is_of(trained, workdir):
    record = likelihood.likelihood(trained(split="validation", batch_size=7, seed=3), workdir)
    meta = json.loads((workdir / "checkpoints" / "000000012" / "META.json").read_text())
    for key in ("bpd_ode", "bpd_ode_se_upper", "evaluations"):
        assert record[key] > 0
    assert record["bpd_ode_se"] is None, "one pass does not tell images from noise"
    for key in [key for key in record if key.startswith("bpd_")] + ["evaluations", "noise"]:
        record.pop(key)
    assert record == {
        "dataset": "dots", "split": "validation", "num_images": 7, "split_images": 7, "fingerprint": "validation of dots",
        "dequantisation": "truncated_normal", "divergence": "exact", "rtol": 1e-5, "atol": 1e-5, "tighter": 0.1, "times_per_image": 3, "passes": 1,
        "batch_size": 7, "seed": 3, "config_hash": meta["metadata"]["config_hash"], "precision": "float32", "matmul_precision": "float32",
        "prng": "threefry2x32, partitionable",
        "device": "cpu", "model": likelihood.UNMODELLED, "step": 12, "num_params": 66,
    }  # fmt: skip


@pytest.mark.slow
def test_products_are_in_full_precision_whatever_jax_is_set_to(trained, workdir, monkeypatch):
    seen, batch_nats = set(), ode_likelihood.batch_nats

    def watched(*arguments):
        seen.add(jax.config.values["jax_default_matmul_precision"])
        return batch_nats(*arguments)

    monkeypatch.setattr(ode_likelihood, "batch_nats", watched)
    with jax.default_matmul_precision("bfloat16"):
        likelihood.likelihood(trained(split="validation", batch_size=7), workdir)
        assert jax.config.values["jax_default_matmul_precision"] == "bfloat16"
    assert seen == {"highest"}


@pytest.mark.slow
def test_other_ways_to_estimate_are_told_and_agree(trained, workdir):
    """This model's Jacobian is diagonal; the dequantisations' bounds differ."""
    exact = likelihood.likelihood(trained(), workdir)
    probed = likelihood.likelihood(trained(dataclasses.replace(FEW, exact_up_to=15, probes=3)), workdir)
    assert (probed["divergence"], probed["probes"]) == ("hutchinson", 3)
    assert probed["bpd_ode"] == pytest.approx(exact["bpd_ode"], rel=1e-4)
    uniform = likelihood.likelihood(trained(dataclasses.replace(FEW, dequantisation="uniform")), workdir)
    assert uniform["dequantisation"] == "uniform"
    assert uniform["bpd_ode"] != pytest.approx(exact["bpd_ode"], rel=1e-3)
    assert likelihood.likelihood(trained(), workdir) == exact, "the same seed, the same figures"


@pytest.mark.parametrize("step", [5, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_average_of_the_chosen_checkpoint_is_measured(trained, workdir, step):
    experiment = trained(step=step)
    ema, _ = restore_ema(experiment, workdir, data_mesh(), step)
    nats = ode_likelihood.solve_images(experiment, experiment.model, data_mesh(), ema).nats
    figures = likelihood.likelihood(experiment, workdir)
    assert figures["step"] == (step or 12)
    assert figures["bpd_ode"] == pytest.approx(nats.mean() / 16 / np.log(2), rel=1e-9)


@pytest.mark.slow
def test_an_encoder_whose_slope_is_modelled_is_told_so(tiny, tmp_path, monkeypatch):
    experiment = tiny(model=dataclasses.replace(tiny().model, encoder=Nontrainable()))
    params = jax.jit(lambda key: experiment.model.init(key, (4, 4, 1)))(jax.random.key(0))
    monkeypatch.setattr(likelihood, "restore_for_bound", lambda *_: (params, 0))
    assert likelihood.likelihood(experiment, tmp_path)["model"] == likelihood.MODELLED
    at_steps = dataclasses.replace(experiment, num_timesteps=8)
    assert likelihood.likelihood(at_steps, tmp_path)["model"] == likelihood.UNMODELLED_AT_T


def test_what_cannot_be_solved_files_nothing(trained, workdir, tmp_path, monkeypatch):
    ema, step = restore_ema(trained(), workdir, data_mesh(), None)
    ema["network"]["w"] = np.nan * ema["network"]["w"]
    monkeypatch.setattr(likelihood, "restore_for_bound", lambda *_: (ema, step))
    with pytest.raises(UserError, match="not solved"):
        likelihood.likelihood(trained(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_networks_in_bfloat16_are_refused(tiny, tmp_path):
    experiment = tiny()
    model = dataclasses.replace(experiment.model, network=UNet(precision="bfloat16"))
    with pytest.raises(UserError, match=r"^--mode=likelihood: .*bind the networks' precision to 'float32'$"):
        likelihood.likelihood(dataclasses.replace(experiment, model=model), tmp_path)


def test_a_folder_without_a_run_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} holds no run: train first, or name its --workdir"):
        likelihood.likelihood(trained(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dequantisation": "none"}, "dequantisation = 'none': must be one of truncated_normal, uniform"),
        ({"probes": 0}, "probes = 0: must be at least 1"),
        ({"exact_up_to": -1}, "exact_up_to = -1: must not be negative"),
        ({"rtol": 0.0}, "rtol = 0.0: must be positive"),
        ({"atol": -1.0}, "atol = -1.0: must be positive"),
        ({"tighter": 1.0}, "tighter = 1.0: must be between 0 and 1"),
        ({"times_per_image": 0}, "times_per_image = 0: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=f"^likelihood.{message}$"):
        Likelihood(**change)
