"""The bounds of one run side by side: on a run that trains in seconds."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffenc.config.settings import Evaluate
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.restore_params import restore_ema
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop
from diffenc.workdir import fitted_chains
from experiments.bounds import __main__ as bounds

SMALL = ["--num_timesteps=2,9", "--num_images=8", "--passes=3", "--few=5", "--k=4", "--k_steps=3"]
SMALL += ["--gin_bindings=likelihood.rtol = 1e-3", "--gin_bindings=likelihood.atol = 1e-3"]
SMALL += ["--allow_imports=tests"]  # which its config imports


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds") / "run"
    loop.train(tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def found(workdir):
    """What bounds.json says."""
    assert bounds.main([f"--workdir={workdir}", *SMALL]) == 0
    return json.loads((workdir / "bounds" / "bounds.json").read_text())


@pytest.mark.slow
def test_every_bound_is_there_with_both_errors(found):
    assert set(found["by_steps"]) == {"equal", "fitted", "fitted, times too", "w = 0.9"}
    cells = [cell for column in found["by_steps"].values() for cell in column.values()]
    assert all(set(column) == {"2", "9"} for column in found["by_steps"].values())
    beside = list(found["beside"].values())
    assert [*found["beside"]][:2] == ["ELBO, T = 3, fitted", "4 samples, T = 3, fitted"]
    assert all(
        np.isfinite(cell[key]) for cell in cells + beside for key in ("bpd", "bpd_se_upper", "bpd_mc_se")
    )
    assert {key: found[key] for key in ("dataset", "split", "num_images", "passes", "step")} == {
        "dataset": "dots", "split": "test", "num_images": 8, "passes": 3, "step": 12,
    }  # fmt: skip


@pytest.mark.slow
def test_the_limit_is_what_evaluation_gives(found, tiny, workdir):
    experiment = tiny(evaluate=Evaluate(num_images=8, passes=3))
    ema, step = restore_ema(experiment, workdir, data_mesh(), None)
    measured = Evaluator(experiment, data_mesh(), workdir, step).measure(ema).metrics()
    for key in ("bpd", "bpd_se_upper", "bpd_mc_se"):
        assert found["continuous"][key] == pytest.approx(measured[key], rel=1e-6)


@pytest.mark.slow
def test_fitting_helps_and_a_wrong_variance_costs_more_with_every_step(found, tiny, workdir):
    columns, ema = found["by_steps"], restore_ema(tiny(), workdir, data_mesh(), None)[0]
    assert columns["fitted"]["2"]["bpd"] < columns["equal"]["2"]["bpd"]
    assert columns["fitted, times too"]["2"]["bpd"] < columns["fitted"]["2"]["bpd"]
    w, dims = 0.9, 16
    for steps in (2, 9):  # w C + T d/2 (w - 1 - log w), C the diffusion loss with equal variances
        experiment = tiny(evaluate=Evaluate(num_images=8, passes=3, num_timesteps=steps))
        equal = Evaluator(experiment, data_mesh()).measure(ema).metrics()
        assert columns["equal"][str(steps)]["bpd"] == pytest.approx(equal["bpd"], rel=1e-6)
        offset = steps * dims / 2 * (w - 1 - np.log(w)) / (dims * np.log(2))
        want = equal["bpd"] + (w - 1) * equal["bpd_diffusion"] + offset
        assert columns["w = 0.9"][str(steps)]["bpd"] == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(found, workdir, monkeypatch, capsys):
    for name in ("Evaluator", "fit_variance", "fit_schedule"):
        monkeypatch.setattr(bounds, name, None)
    assert bounds.main([f"--workdir={workdir}", *SMALL]) == 0
    printed = capsys.readouterr().out
    cell = found["by_steps"]["equal"]["9"]
    assert str(round_to_error(cell["bpd"], cell["bpd_mc_se"])) in printed
    assert "ODE" in printed


@pytest.mark.slow
def test_the_plot_shows_every_column(found, workdir):
    picture = np.asarray(Image.open(workdir / "bounds" / "bounds.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_a_subset_is_found_in_the_larger_one(found, tiny, workdir):
    few = bounds.Bounds(tiny(evaluate=Evaluate(num_images=8)), workdir).indices_of(5)
    assert len(few) == 5
    bits = PassValues(np.arange(16.0).reshape(2, 8))
    np.testing.assert_array_equal(bits.select(few).values[0], few)


@pytest.mark.slow
def test_under_other_settings_all_is_measured_anew(workdir, tmp_path, found):
    shutil.copytree(workdir, tmp_path / "run")
    other = [*SMALL[1:], "--num_timesteps=2", "--gin_bindings=evaluate.split = 'train'"]
    other += ["--gin_bindings=fit.num_images = 20"]
    assert bounds.main([f"--workdir={tmp_path / 'run'}", *other]) == 0
    again = json.loads((tmp_path / "run" / "bounds" / "bounds.json").read_text())
    assert (again["split"], found["split"]) == ("train", "test")
    for name, cells in again["by_steps"].items():
        assert all(cells[steps]["bpd"] != found["by_steps"][name][steps]["bpd"] for steps in cells)
    assert all(again["beside"][name]["bpd"] != found["beside"][name]["bpd"] for name in found["beside"])
    fit = fitted_chains.load_fit(tmp_path / "run" / "fits" / "T2.json")
    assert fit["num_images"] == 20


@pytest.mark.slow
def test_images_replaced_meanwhile_are_not_put_beside_those_of_before(
    found, workdir, tmp_path, tiny, monkeypatch, capsys
):
    shutil.copytree(workdir, tmp_path / "run")
    dots, ode = type(tiny().dataset), bounds.Bounds.ode

    def after_another(*given):
        monkeypatch.setattr(dots, "fingerprint", lambda dataset, split: "other dots")
        return ode(*given)

    monkeypatch.setattr(bounds.Bounds, "ode", after_another)
    assert bounds.main([f"--workdir={tmp_path / 'run'}", *SMALL]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: these figures are of different images")
    assert "test of dots" in told
    assert "other dots" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=nowhere"], "nowhere holds no run"),
        (["--passes=1"], "takes at least 2"),
        (["--few=9", "--num_images=8"], "--few=9: must not be more than --num_images=8"),
    ],
)
def test_mistakes_are_told_in_a_line(workdir, capsys, flags, message):
    assert bounds.main([f"--workdir={workdir}", *flags]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("error: ")
    assert message in told[-1]


def test_a_damaged_cell_is_measured_again_and_said_to_be(tmp_path, caplog):
    cell = tmp_path / "cell.npz"
    assert bounds._read_cell(cell) is None
    np.savez(cell, nats=np.arange(3.0))
    found = bounds._read_cell(cell)
    assert found is not None
    assert found["nats"].tolist() == [0, 1, 2]
    assert caplog.text == ""
    cell.write_bytes(cell.read_bytes()[:100])
    assert bounds._read_cell(cell) is None
    assert f"{cell}" in caplog.text
    assert "measuring again" in caplog.text
