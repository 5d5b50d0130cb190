"""Evaluating and sampling a trained run: what is filed, recomputed in numpy from what lies beside it."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffenc.checkpoint import checkpoints
from diffenc.cli import run_mode
from diffenc.config.settings import Evaluate, Sample
from diffenc.errors import UserError
from diffenc.evaluation import commands
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_grid import make_grid
from diffenc.evaluation.restore_params import restore_ema
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.parallel.sharding import data_mesh
from diffenc.training import loop
from diffenc.training.state import abstract_state

TERMS = ("reconstruction", "latent", "diffusion")


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> Path:
    """A trained run, its averaged parameters far from its parameters."""
    folder = tmp_path_factory.mktemp("modes") / "run"
    loop.train(tiny(ema_decay=0.99), folder)
    return folder


@pytest.fixture
def trained(tiny):
    """The experiment of `workdir`, to be evaluated and sampled as told."""

    def make(sample=None, **evaluate):
        return tiny(
            ema_decay=0.99, evaluate=Evaluate(**evaluate), sample=sample or Sample(num_timesteps=6, num=3)
        )

    return make


def _state(experiment, workdir: Path, step: int):
    wanted = abstract_state(experiment, data_mesh())
    return checkpoints.Checkpoints(workdir / "checkpoints").restore(wanted, step).tree


def _everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("passes", "batch_size"), [(1, 5), pytest.param(2, 4, marks=pytest.mark.slow), (3, 13)]
)
def test_all_figures_follow_from_the_terms_beside_them(trained, workdir, passes, batch_size, read_record):
    figures = commands.evaluate(trained(passes=passes, batch_size=batch_size), workdir)
    assert read_record(workdir / "evaluation.json") == figures
    terms = np.load(workdir / "evaluation.npz")
    bits = {f"bpd_{name}": terms[name] / (4 * 4 * 1) / np.log(2) for name in TERMS}
    bits["bpd"] = bits["bpd_reconstruction"] + bits["bpd_latent"] + bits["bpd_diffusion"]
    for key, values in bits.items():
        assert values.shape == (passes, 13)
        total = sum(values[k, i] for k in range(passes) for i in range(13))
        assert figures[key] == pytest.approx(total / passes / 13, rel=1e-9)
        by_image = values.sum(axis=0) / passes
        spread = np.sqrt(np.square(by_image - by_image.mean()).sum() / 12)
        assert figures[f"{key}_se_upper"] == pytest.approx(spread / np.sqrt(13), rel=1e-6)
        if passes == 1:
            assert figures[f"{key}_se"] is None
            assert f"{key}_mc_se" not in figures
            continue
        means = values.mean(axis=1)  # of whole passes, whose images share stratified times
        variance = np.square(means - means.mean()).sum() / (passes - 1)
        assert figures[f"{key}_mc_se"] == pytest.approx(np.sqrt(variance / passes), rel=1e-4, abs=1e-9)


def test_what_the_figures_are_of_is_said(trained, workdir):
    figures = commands.evaluate(trained(split="validation", passes=2, times_per_image=3, seed=7), workdir)
    said = {key: value for key, value in figures.items() if not key.startswith("bpd")}
    config_hash = said.pop("config_hash")
    assert said == {
        "dataset": "dots", "split": "validation", "num_images": 7, "split_images": 7, "fingerprint": "validation of dots",
        "T": "continuous", "passes": 2, "times_per_image": 3, "seed": 7, "step": 12, "num_params": 66,
        "batch_size": 4, "time_sampler": "uniform", "stratified": "over the pass", "precision": "float32", "matmul_precision": "float32", "device": "cpu",
        "prng": "threefry2x32, partitionable",
    }  # fmt: skip
    meta = json.loads((workdir / "checkpoints" / "000000012" / "META.json").read_text())
    assert config_hash == meta["metadata"]["config_hash"], "which tells the runs it may be compared with"


@pytest.mark.parametrize(
    "step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (10, 12)), None]
)
def test_the_average_of_the_chosen_checkpoint_is_measured(trained, workdir, step):
    experiment = trained(step=step)
    state = _state(experiment, workdir, step or 12)
    figures = commands.evaluate(experiment, workdir)
    evaluator = Evaluator(experiment, data_mesh())
    assert figures["step"] == (step or 12)
    assert figures["bpd"] == evaluator.measure(state.ema).metrics()["bpd"]
    assert figures["bpd"] != pytest.approx(evaluator.measure(state.params).metrics()["bpd"], rel=1e-4)


def test_evaluations_are_all_kept_and_the_newest_has_the_name(trained, workdir, tmp_path, read_record):
    run = shutil.copytree(
        workdir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations", "evaluation.*")
    )
    made = [commands.evaluate(trained(seed=seed), run) for seed in (1, 2, 3)]
    kept = [read_record(path) for path in sorted((run / "evaluations").glob("*.json"))]
    assert kept == made
    assert read_record(run / "evaluation.json") == made[-1]
    newest = (run / "evaluation.npz").read_bytes()
    assert newest == (run / "evaluations" / "0003.npz").read_bytes()


def test_the_table_shows_each_term_with_its_errors(trained, workdir, capsys, check_shown):
    figures = commands.evaluate(trained(passes=2), workdir)
    out = capsys.readouterr().out
    for key in ("bpd", *(f"bpd_{term}" for term in TERMS)):
        check_shown(out, figures, key)
    assert "dots test, 13 images, 2 pass(es), T continuous, step 12" in out
    commands.evaluate(trained(passes=1), workdir)
    assert " - " in capsys.readouterr().out, "one pass knows no Monte-Carlo error"


@pytest.mark.parametrize("step", [5, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_samples_are_of_the_average_of_the_chosen_checkpoint(trained, workdir, step):
    experiment = trained(sample=Sample(num_timesteps=6, num=5, seed=2, step=step))
    path = commands.sample(experiment, workdir)
    assert path == workdir / "samples" / f"{step or 12:09d}_T6_n5_seed2.png"
    sampler = ImageSampler(experiment.model, experiment.dataset, experiment.sampling, data_mesh())
    images = sampler.draw(_state(experiment, workdir, step or 12).ema)
    shades = np.array([0, 64, 128, 191, 255], np.uint8)[images]
    np.testing.assert_array_equal(np.asarray(Image.open(path)), make_grid(shades)[..., 0])


@pytest.mark.slow
def test_samples_of_other_settings_lie_side_by_side(trained, workdir):
    paths = {
        commands.sample(trained(sample=Sample(num_timesteps=steps, num=num, seed=seed)), workdir)
        for steps, num, seed in [(6, 3, 0), (2, 3, 0), (6, 2, 0), (6, 3, 1)]
    }
    assert len(paths) == 4
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("mode", [commands.evaluate, commands.sample])
def test_a_folder_without_a_run_is_refused(trained, tmp_path, mode):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(UserError, match=f"{folder} holds no run: train first, or name its --workdir"):
            mode(trained(), folder)
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("mode", [commands.evaluate, commands.sample])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, r"another config \(Experiment.seed: 0 -> 5\)"),
        ({"evaluate": Evaluate(step=7), "sample": Sample(step=7)}, r"no checkpoint of step 7; there are \[5"),
    ],
)
def test_what_cannot_be_measured_changes_nothing(trained, workdir, mode, change, message):
    before = _everything(workdir)
    with pytest.raises(UserError, match=message) as refused:
        mode(dataclasses.replace(trained(), **change), workdir)
    assert "\n" not in str(refused.value)
    assert _everything(workdir) == before


@pytest.mark.parametrize("mode", [commands.evaluate, commands.sample])
def test_a_run_without_a_checkpoint_is_refused(trained, workdir, tmp_path, mode):
    (tmp_path / "config.gin").write_bytes((workdir / "config.gin").read_bytes())
    with pytest.raises(UserError, match="no checkpoint there; train first"):
        mode(trained(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.gin"]


def test_nothing_but_the_average_is_read(trained, workdir):
    """So that a run can be evaluated whose optimizer is no longer known."""
    experiment = trained()
    ema, step = restore_ema(experiment, workdir, data_mesh(), None)
    assert step == 12
    state = _state(experiment, workdir, 12)
    jax.tree.map(np.testing.assert_array_equal, ema, state.ema)
    assert jax.tree.structure(ema) == jax.tree.structure(state.params)


@pytest.fixture
def read_only(workdir, tmp_path):
    """The trained run on a disk that nothing can be written to, not even by root."""
    folder = shutil.copytree(workdir, tmp_path / "theirs")
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk needs root")
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_read_only_run_is_evaluated_and_nothing_is_filed(
    trained, workdir, read_only, capsys, caplog, check_shown
):
    before = _everything(read_only)
    figures = commands.evaluate(trained(passes=2), read_only)
    assert figures["bpd"] == commands.evaluate(trained(passes=2), workdir)["bpd"]
    check_shown(capsys.readouterr().out, figures, "bpd")
    assert f"nothing was written: {read_only} is read-only" in caplog.text
    assert _everything(read_only) == before


def test_a_read_only_run_is_not_sampled_and_the_way_out_is_named(read_only):
    with pytest.raises(UserError) as refused:
        run_mode.check_writable("sample", read_only)
    assert str(refused.value).startswith(
        f"--mode=sample writes to {read_only}, which is read-only: copy the run to"
    )
    assert f"diffenc.load('{read_only}').sample()" in str(refused.value)
    run_mode.check_writable("evaluate", read_only)
    run_mode.check_writable("sample", read_only.parent)


def test_what_a_full_disk_refuses_is_printed_first(trained, workdir, capsys, monkeypatch):
    """The measurement may have taken hours."""

    def full(*_):
        raise UserError("could not write x") from OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "save_measurement", full)
    with pytest.raises(UserError, match="could not write x"):
        commands.evaluate(trained(passes=1), workdir)
    assert "bpd" in capsys.readouterr().out
