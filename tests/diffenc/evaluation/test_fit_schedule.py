"""Fitted times against closed forms and against bounds measured without the table they were chosen by."""

import dataclasses
import functools
import logging as std_logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffenc import registry
from diffenc.config.settings import Evaluate, Fit
from diffenc.core import objective
from diffenc.core.discretization import EQUAL, Chain
from diffenc.core.model import Draws, Model
from diffenc.errors import UserError
from diffenc.evaluation import commands, fit_schedule, fit_variance, step_costs
from diffenc.interfaces import NO_CONTEXT
from diffenc.training import loop
from diffenc.workdir import fitted_chains
from diffenc_plugins.schedules import Linear
from diffenc_plugins.variances import Fixed

FITTED = registry.variances["fitted"]()
VARIANCES = [EQUAL, FITTED]
ENCODERS = (
    "identity",
    "nontrainable",
    "trainable",
)  # those that do without an image's shape, and without its class
NUM_LEVELS, TOP, DROP = 5, 6.0, 10.0
PARAMS: Any = {"encoder": {}, "schedule": {}, "network": {}}
LEVELS = np.random.default_rng(0).integers(0, NUM_LEVELS, (400, 3))


def log_snr_of(t):
    return TOP - DROP * np.asarray(t)


def gaussian_table(variance, num_knots=65) -> step_costs.StepCosts:
    """x ~ N(0, variance), identity encoder, best denoiser: Q = variance / (1 + variance SNR_t) for every s."""
    knots = np.linspace(0, 1, num_knots)
    q = np.repeat((variance / (1 + variance * np.exp(log_snr_of(knots))))[:, None], num_knots, axis=1)
    return step_costs.StepCosts(knots, q, 0 * q, 1)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("variance", [0.1, 2.0])
def test_the_best_times_for_gaussian_data_are_geometric(num_steps, variance):
    """With u = 1 + v SNR a step costs 1/2 (u_s / u_t - 1), so that equal ratios of u are best."""
    made = fit_schedule.fit_times(gaussian_table(variance), log_snr_of, EQUAL, num_steps, 1)
    u_0, u_1 = 1 + variance * np.exp(TOP), 1 + variance * np.exp(TOP - DROP)
    u = u_0 * (u_1 / u_0) ** (np.arange(num_steps + 1) / num_steps)
    t = (TOP - np.log((u - 1) / variance)) / DROP
    np.testing.assert_allclose(made.times, t, atol=0.01)  # the optimum is flat, and times lie on a grid
    best = num_steps / 2 * ((u_0 / u_1) ** (1 / num_steps) - 1)
    np.testing.assert_allclose(made.nats, best, rtol=1e-3)
    np.testing.assert_allclose(made.excess.sum() / 2, best, rtol=1e-3)


def test_with_the_best_variances_gaussian_data_cost_the_same_at_any_times():
    """Each step then costs 1/2 log(u_s / u_t), which telescopes."""
    u_0, u_1 = 1 + 2 * np.exp(TOP), 1 + 2 * np.exp(TOP - DROP)
    for num_steps in (1, 2, 9):
        for make in (fit_schedule.fit_times, fit_schedule.equal_schedule):
            made = make(gaussian_table(2.0), log_snr_of, FITTED, num_steps, 1)
            np.testing.assert_allclose(made.nats, 0.5 * np.log(u_0 / u_1), rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Wave:
    """A network in closed form that depends on all it is given."""

    gain: float = 2.0

    def init(self, key, z, log_snr):
        return {}

    def apply(self, params, z, log_snr, context=NO_CONTEXT):
        return 0.4 * jnp.sin(self.gain * z + log_snr.reshape(-1, *[1] * (z.ndim - 1)) / 3)


def make(encoder):
    needs: Any = {"network": Wave(1.3)} if encoder == "trainable" else {}
    prm, mean = registry.parameterizations["v"](), registry.generative_means["counterterm"]()
    return Model(registry.encoders[encoder](**needs), Linear(TOP, TOP - DROP), prm, mean, Wave())


def table_of(model) -> step_costs.StepCosts:
    knots, eps = np.linspace(0, 1, 65), np.random.default_rng(1).normal(size=LEVELS.shape)

    def mean(levels, eps):
        q = step_costs.weighted_squares(model, PARAMS, levels, eps, jnp.asarray(knots), NUM_LEVELS)
        return q.mean(axis=2)

    q = np.asarray(jax.jit(mean)(jnp.asarray(LEVELS), jnp.asarray(eps)), np.float64)
    return step_costs.StepCosts(knots, q, 0 * q, len(LEVELS))


@functools.partial(jax.jit, static_argnums=0)
def elbo_of(model, chain, draws):
    rule = objective.discrete(chain)
    return model.elbo(PARAMS, jnp.asarray(LEVELS), draws, num_levels=NUM_LEVELS, step_rule=rule)


def actual(model, schedule, variance):
    """The diffusion loss of each image, every one of the T steps in turn, over noise of its own."""
    num_steps = len(schedule.times) - 1
    stops = jnp.asarray(schedule.times)
    log_snr = jnp.asarray(log_snr_of(stops))
    chain = Chain(stops, variance(log_snr[1:], log_snr[:-1], jnp.asarray(schedule.excess)))
    total, rng = np.zeros(len(LEVELS)), np.random.default_rng(2)
    for index in range(num_steps):
        eps = jnp.asarray(rng.normal(size=LEVELS.shape))
        draws = Draws(jnp.full(len(LEVELS), (index + 0.5) / num_steps), eps, jnp.zeros_like(eps))
        total += np.asarray(elbo_of(model, chain, draws).diffusion) / num_steps
    return total


@pytest.mark.thin
@pytest.mark.parametrize("variance", VARIANCES, ids=["equal", "fitted"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_bound_at_fitted_times_is_the_one_predicted_and_the_better_one(x64, encoder, variance):
    model = make(encoder)
    table = table_of(model)
    for num_steps in (2, 12):
        best, equal = (
            make(table, log_snr_of, variance, num_steps, 3)
            for make in (fit_schedule.fit_times, fit_schedule.equal_schedule)
        )
        assert best.nats < equal.nats
        of_best, of_equal = (actual(model, schedule, variance) for schedule in (best, equal))
        for nats, schedule in ((of_best, best), (of_equal, equal)):
            # the prediction has errors of its own, over the same images and as many draws of noise
            assert abs(nats.mean() - schedule.nats) < 4 * np.sqrt(2) * nats.std() / np.sqrt(400)
        gain = of_equal - of_best
        assert gain.mean() > 4 * gain.std() / np.sqrt(400)


def test_no_times_on_the_grid_are_better(x64):
    """The predicted cost as a function of one time in the middle, scanned."""
    table = table_of(make("trainable"))
    best = fit_schedule.fit_times(table, log_snr_of, FITTED, 2, 3)
    middles = np.linspace(0.01, 0.99, 99)

    def predicted(middle):
        t, s = np.array([middle, 1.0]), np.array([0.0, middle])
        nats = table.edges(t, s, log_snr_of(t), log_snr_of(s))
        return 1.5 * np.log(1 + 2 * nats / 3).sum()

    totals = [predicted(middle) for middle in middles]
    assert best.nats <= min(totals) + 1e-9
    assert abs(best.times[1] - middles[np.argmin(totals)]) < 0.011
    assert max(totals) > best.nats + 0.1


def test_equal_times_are_among_the_candidates_at_every_depth():
    """Where equal times are best they are found exactly, also where T does not divide a power of two."""
    knots = np.linspace(0, 1, 65)
    shallow = step_costs.StepCosts(
        knots, np.exp(-log_snr_of(knots))[:, None] * np.ones((1, 65)), np.zeros((65, 65)), 1
    )
    for num_steps in (1, 3, 7, 100):  # 1/2 (e^h - 1) a step of h in log SNR: convex in h
        made = fit_schedule.fit_times(shallow, log_snr_of, EQUAL, num_steps, 1)
        np.testing.assert_allclose(made.times, np.arange(num_steps + 1) / num_steps, atol=1e-12)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit_schedule") / "run"
    loop.train(tiny(steps=3), folder)
    return folder


@pytest.fixture
def fitting(tiny, workdir):
    """Runs the mode on `workdir`; changes of `evaluate` by name, of `fit` as a dict."""

    def fit(fit=None, mode=fit_schedule.fit_schedule, folder=workdir, **evaluate):
        settings = Fit(**{"knots": 9, "batch_size": 8, **(fit or {})})
        return mode(
            tiny(steps=3, fit=settings, evaluate=Evaluate(**{"num_timesteps": 6, **evaluate})), folder
        )

    return fit


@pytest.fixture
def measured(monkeypatch):
    """How often costs are measured."""
    calls, measure = [], fit_schedule.measure_step_costs
    monkeypatch.setattr(
        fit_schedule, "measure_step_costs", lambda *inputs: calls.append(None) or measure(*inputs)
    )
    return calls


@pytest.mark.thin
@pytest.mark.parametrize("variance", VARIANCES, ids=["equal", "fitted"])
@pytest.mark.parametrize("times", ["equal", "fitted"])
def test_what_is_filed_serves_evaluation_at_once(fitting, workdir, variance, times, caplog):
    if times == "equal":
        (workdir / "fits" / f"T6_fitted_{registry.variances.spell(variance)}.json").unlink(missing_ok=True)
    with caplog.at_level(std_logging.INFO, logger="absl"):
        fit = fitting(variance=variance, times=times)
    name = registry.variances.spell(variance)
    file = workdir / "fits" / f"T6_fitted_{name}.json"
    assert {"num_images": 23, "steps": 6}.items() <= fitted_chains.load_fit(file).items()
    of = fitted_chains.load_fit(file)["times_of"]
    assert (of["step"], of["fit"]["split"]) == (3, "train")
    assert of == fitted_chains.load_fit(file)["excess_of"]
    equal, best = fit["bpd_diffusion_equal"], fit["bpd_diffusion_fitted"]
    assert best < equal
    np.testing.assert_allclose(fit["nats_diffusion_fitted"], best * 16 * np.log(2), rtol=1e-12)
    line = f"diffusion loss of 6 steps with variance.{name}: equal {equal:.4f} -> fitted {best:.4f} bits/dim"
    assert line in caplog.text
    assert len(fit["excess"]) == 6
    got = fitting(mode=commands.evaluate, variance=variance, times="fitted", split="train", passes=50)
    np.testing.assert_allclose(got["bpd_diffusion"], best, rtol=0.05)
    assert got["times"] == "fitted"


@pytest.mark.slow
def test_a_run_trained_at_t_steps_is_evaluated_with_the_times_fitted_to_it(tiny, tmp_path):
    """The variance it was trained with belongs to its equal steps: neither the fit nor the evaluation takes it over."""
    evaluate = Evaluate(passes=1)
    experiment = tiny(
        steps=3, num_timesteps=6, variance=Fixed(0.9), fit=Fit(knots=9, batch_size=8), evaluate=evaluate
    )
    loop.train(experiment, tmp_path)
    fit_schedule.fit_schedule(experiment, tmp_path)
    fitted = dataclasses.replace(experiment, evaluate=dataclasses.replace(evaluate, times="fitted"))
    record = commands.evaluate(fitted, tmp_path)
    assert (record["T"], record["times"], record["variance"]) == (6, "fitted", "equal")


def test_the_best_variances_cost_less_than_equal_ones(fitting):
    cost = {
        (name, times): fitting(variance=variance)[f"bpd_diffusion_{times}"]
        for name, variance in (("equal", EQUAL), ("fitted", FITTED))
        for times in ("equal", "fitted")
    }
    assert cost["fitted", "equal"] < cost["equal", "equal"]
    assert cost["fitted", "fitted"] < cost["equal", "fitted"]


@pytest.mark.slow
def test_the_excess_filed_is_what_fit_variance_measures(fitting):
    settings = {"passes": 20, "times_per_image": 16}
    filed = fitting(fit=settings, variance=FITTED)
    fitted = fitting(fit=settings, variance=FITTED, times="fitted", mode=fit_variance.fit_variance)
    np.testing.assert_array_equal(fitted["times"], filed["times"])
    assert np.all(np.abs(fitted["excess"] - filed["excess"]) < 5 * fitted["excess_se"])
    assert np.median(fitted["excess_se"] / fitted["excess"]) < 0.05


@pytest.mark.slow
def test_costs_are_measured_once_for_all_depths_and_variances(fitting, measured, caplog):
    fitting(fit={"seed": 5})
    assert len(measured) == 1
    with caplog.at_level(std_logging.INFO, logger="absl"):
        for steps, variance in ((6, EQUAL), (2, FITTED), (11, EQUAL)):
            fitting(fit={"seed": 5, "times_per_image": 3}, num_timesteps=steps, variance=variance)
    assert len(measured) == 1
    assert "as measured before" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_images": 10},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in ({"split": "test"}, {"knots": 7}, {"passes": 2}, {"batch_size": 4})
        ),
    ],
)
def test_costs_under_other_settings_are_measured_anew(fitting, measured, change):
    fitting()
    before = len(measured)
    fitting(fit=change)
    assert len(measured) == before + 1


def test_costs_of_another_checkpoint_are_measured_anew(tiny, tmp_path, fitting, measured):
    loop.train(tiny(steps=3, checkpoint_every=2, keep_last=2), tmp_path)
    one, two = (fitting(folder=tmp_path, step=step) for step in (2, 3))
    assert len(measured) == 2
    assert (one["times_of"]["step"], two["times_of"]["step"]) == (2, 3)
    assert one["bpd_diffusion_equal"] != two["bpd_diffusion_equal"]


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(bytes_, marks=pytest.mark.slow) for bytes_ in (b"", b"\x93NUMPY")),
        b"PK\x03\x04 nonsense",
        None,
    ],
)
def test_a_damaged_table_is_measured_anew_and_said_to_be(fitting, measured, workdir, damage, caplog):
    fitting()
    before, file = len(measured), workdir / "fits" / "costs.npz"
    whole = file.read_bytes()
    if damage is None:
        # Pickles, which are not opened.
        np.savez(file, **dict.fromkeys(("origin", "knots", "mean"), np.array(object())))
    else:
        file.write_bytes(damage)
    with caplog.at_level(std_logging.INFO, logger="absl"):
        fitting()
    assert len(measured) == before + 1
    assert f"{file} cannot be read" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_timesteps": 0}, r"--mode=fit_schedule needs T: give --num_timesteps=T"),
        ({"num_timesteps": 1025}, r"T = 1025: times are fitted up to T = 1024"),
        ({"step": 2}, r"no checkpoint of step 2"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_leaves_nothing(fitting, workdir, changes, message):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message) as refused:
        fitting(**changes)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_run_is_refused(fitting, tmp_path):
    with pytest.raises(UserError, match="holds no run: train first"):
        fitting(folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_log_snr_has_the_digits_of_float64(tiny):
    """Neighbours on a fine grid differ in the fifth digit."""
    experiment = tiny()
    params = {"schedule": experiment.model.schedule.init(jax.random.key(0))}
    t = np.linspace(0, 1, 2001)
    got = fit_schedule.exact_log_snr(experiment.model, params)(t)
    assert got.dtype == np.float64
    np.testing.assert_allclose(np.diff(got), (got[-1] - got[0]) / 2000, rtol=1e-9)
