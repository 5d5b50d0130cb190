"""--mode=k_sample on a trained run: what is filed, recomputed from the weights beside it."""

import dataclasses

import numpy as np
import pytest

from diffenc import registry
from diffenc.config.settings import Evaluate, KSample
from diffenc.errors import UserError
from diffenc.evaluation import commands, k_sample
from diffenc.evaluation.restore_params import restore_ema
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop


def settings(tiny, samples=4, **evaluate):
    evaluate = {"num_timesteps": 5, "passes": 2, **evaluate}
    return tiny(ema_decay=0.99, evaluate=Evaluate(**evaluate), k_sample=KSample(samples=samples))


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("k_sample") / "run"
    loop.train(tiny(ema_decay=0.99, steps=3), folder)
    return folder


def run(tiny, workdir, **changes):
    return k_sample.k_sample(dataclasses.replace(settings(tiny, **changes), steps=3), workdir)


@pytest.mark.parametrize(("passes", "batch_size"), [pytest.param(1, 5, marks=pytest.mark.slow), (3, 4)])
def test_all_figures_follow_from_the_weights_beside_them(
    tiny, workdir, passes, batch_size, capsys, read_record, check_shown
):
    figures = run(tiny, workdir, passes=passes, batch_size=batch_size)
    assert read_record(workdir / "k_sample.json") == figures
    with np.load(workdir / "k_sample.npz", allow_pickle=False) as file:
        log_w = file["log_w"]
    assert log_w.shape == (passes, 4, 13)
    unit = 16 * np.log(2)
    bits = {
        "bpd_k_sample": -np.log(np.exp(log_w).mean(axis=1)) / unit,
        "bpd_1_sample": -log_w.mean(axis=1) / unit,
    }
    bits["bpd_gain"] = bits["bpd_1_sample"] - bits["bpd_k_sample"]
    out = capsys.readouterr().out
    for key, values in bits.items():
        assert figures[key] == pytest.approx(values.mean(), rel=1e-9)
        assert figures[f"{key}_se_upper"] == pytest.approx(
            values.mean(axis=0).std(ddof=1) / np.sqrt(13), rel=1e-9
        )
        if passes > 1:
            error = np.sqrt(values.var(axis=0, ddof=1).sum() / passes) / 13
            assert figures[f"{key}_mc_se"] == pytest.approx(error, rel=1e-9)
        check_shown(out, figures, key)
    assert figures["bpd_gain"] > 0
    said = {"dataset": "dots", "split": "test", "num_images": 13, "fingerprint": "test of dots", "T": 5}
    said |= {
        "times": "equal",
        "variance": "equal",
        "K": 4,
        "passes": passes,
        "step": 3,
        "batch_size": batch_size,
    }
    assert said.items() <= figures.items()
    assert ("bpd_gain_mc_se" in figures) == (passes > 1)


def test_one_sample_is_what_evaluation_measures(tiny, workdir):
    figures = run(tiny, workdir, samples=16, passes=20)
    experiment = dataclasses.replace(settings(tiny, passes=60), steps=3)
    assert not (workdir / "evaluation.json").exists()
    elbo = commands.evaluate(experiment, workdir)
    error = np.hypot(figures["bpd_1_sample_mc_se"], elbo["bpd_mc_se"])
    assert abs(figures["bpd_1_sample"] - elbo["bpd"]) < 4 * error
    assert error < 0.03 * elbo["bpd"]


def test_one_chain_gains_nothing(tiny, workdir):
    figures = run(tiny, workdir, samples=1)
    assert figures["bpd_gain"] == figures["bpd_gain_se"] == 0


def test_the_error_over_chains_is_their_spread_over_seeds(tiny, workdir):
    experiment, mesh = dataclasses.replace(settings(tiny, samples=2, batch_size=13), steps=3), data_mesh()
    ema, step = restore_ema(experiment, workdir, mesh, None)
    many = dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, passes=200))
    log_w = k_sample.measure_log_weights(many, mesh, ema, workdir, step).log_w
    pairs = [k_sample.ChainWeights(log_w[k : k + 2], 16).metrics() for k in range(0, 200, 2)]
    for key in k_sample.KEYS:
        spread = np.var([figures[key] for figures in pairs], ddof=1)
        stated = np.mean([figures[f"{key}_mc_se"] ** 2 for figures in pairs])
        np.testing.assert_allclose(stated, spread, rtol=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_timesteps": 0}, "--mode=k_sample needs T: give --num_timesteps=T"),
        ({"num_timesteps": 20_000}, "T = 20000: in float32 .*; add --x64"),
        ({"variance": registry.variances["fitted"]()}, "variance.fitted was not fitted for these 5 steps"),
        ({"times": "fitted"}, "no times are fitted for T = 5 .*--mode=fit_schedule --num_timesteps=5"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_leaves_nothing(tiny, workdir, changes, message):
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=message) as refused:
        run(tiny, workdir, **changes)
    assert "\n" not in str(refused.value)
    assert sorted(workdir.rglob("*")) == before


def test_no_chains_are_refused():
    with pytest.raises(UserError, match=r"k_sample\.samples = 0: must be at least 1"):
        KSample(samples=0)
