"""What reaches Weights & Biases: calls of a stand-in, and once a file that the package itself wrote offline."""

import sys

import numpy as np
import pytest

from diffenc.errors import UserError
from diffenc.training import loop
from diffenc_plugins.writers import WeightsAndBiases


def test_rows_images_and_histograms_carry_the_step(runs, tmp_path):
    (tmp_path / "r7").mkdir()
    writer = WeightsAndBiases(project="p", tags=("a",)).open(tmp_path / "r7", None)
    (run,) = runs
    assert run.steps == ("*", "step")
    writer.write_scalars(5, {"bpd": np.float32(2.5)})
    writer.write_images(6, {"grid": np.ones((4, 6, 1), np.uint8), "two": np.ones((2, 3, 3, 3), np.uint8)})
    writer.write_histograms(7, {"h": np.array([0.0, 1.0, 1.0, 4.0]), "none": np.empty(0)}, {"h": 2})
    writer.write_hparams({"seed": 3})
    writer.flush()
    writer.close()
    assert run.rows == [
        {"step": 5, "bpd": 2.5},
        {"step": 6, "grid": [("image", (4, 6), 24)]},
        {"step": 6, "two": [("image", (3, 3, 3), 27)] * 2},
        {"step": 7, "h": ("histogram", [3, 1], [0.0, 2.0, 4.0])},
    ]
    assert run.hparams == {"seed": 3}
    assert run.finished
    assert (run.given["project"], run.given["name"], run.given["tags"]) == ("p", "r7", ("a",))


def test_a_run_that_goes_on_is_the_same_run_there_and_a_new_one_another(runs, tmp_path):
    for resume_step in (None, 40, None):
        WeightsAndBiases().open(tmp_path, resume_step)
    first, again, new = (run.given["id"] for run in runs)
    assert first == again != new
    assert {run.given["resume"] for run in runs} == {"allow"}


def test_without_the_package_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'diffenc\[wandb\]'"):
        WeightsAndBiases().open(tmp_path, None)


def test_a_run_that_cannot_be_made_is_the_users_error(runs, monkeypatch, tmp_path):
    def refuse(**given):
        raise RuntimeError("no key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match=r"no key.*WANDB_MODE=offline"):
        WeightsAndBiases().open(tmp_path, None)


def test_a_training_run_is_written_there_too(runs, tiny, tmp_path):
    loop.train(tiny(writers=(WeightsAndBiases(),), evaluate_every=12), tmp_path / "run")
    (run,) = runs
    assert [row["step"] for row in run.rows if "bpd" in row] == [3, 6, 9, 12]
    assert {"test_bpd", "test_loss_over_log_snr"} <= {name for row in run.rows for name in row}
    assert run.hparams["Experiment.batch_size"] == 4
    assert run.finished
    assert "Experiment.writers = (@writer.wandb(),)" in (tmp_path / "run" / "config.gin").read_text()


@pytest.mark.slow
def test_the_package_itself_takes_it_all(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = WeightsAndBiases().open(tmp_path, None)
    writer.write_hparams({"Experiment.batch_size": 4})
    writer.write_scalars(1, {"bpd": np.float32(2.5)})
    writer.write_scalars(2, {"bpd": float("nan")})
    writer.write_images(2, {"samples": np.zeros((8, 8, 1), np.uint8)})
    writer.write_histograms(2, {"spread": np.arange(10.0)})
    writer.close()
    wandb.teardown()  # which has all on the disk
    (file,) = tmp_path.rglob("*.wandb")
    content = file.read_bytes()
    for word in (b"Experiment.batch_size", b"bpd", b"2.5", b"NaN", b"samples", b"histogram", b"step"):
        assert word in content
