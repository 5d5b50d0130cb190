"""The program for a real accelerator, tried on a CPU at tiny sizes."""

import json

import jax
import numpy as np
import pytest

from diffenc.runtime import accelerators
from experiments.benchmark.subject import Settings
from experiments.on_device import __main__ as on_device
from experiments.on_device import golden, schedule, stages
from experiments.on_device.schedule import Record, Stage, run_stages
from experiments.timing import Times


@pytest.fixture
def quick(monkeypatch):
    """Nothing is measured for as long as it would be on a device."""
    monkeypatch.setattr(accelerators, "measure_flops", lambda dtype: 1e12)
    monkeypatch.setattr(stages, "Settings", lambda **_: Settings(rounds=2, least=0.0))


def test_the_dry_run_writes_its_table_and_its_profile(quick, subject, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        on_device,
        "load_benchmarks",
        lambda small: {"first": subject.experiment, "second": subject.experiment},
    )
    monkeypatch.setattr(on_device.gin_loader, "load_experiment", lambda files, bindings: tiny(steps=3))
    out = tmp_path / "out"
    assert on_device.main([f"--output={out}", "--small", "--minutes=60"]) == 0
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    figures = json.loads((out / "figures.json").read_text())
    assert list(figures["results"]) == ["device", "first", "quickstart", "second"]
    assert (figures["failed"], figures["left_out"]) == ([], [])
    assert f"1 x {jax.devices()[0].device_kind}" in table
    assert "| first | share of peak | " in table
    assert "3 steps" in figures["results"]["quickstart"]["to train"]
    assert "bits/dim" in figures["results"]["quickstart"]
    assert list((out / "profile").rglob("*.xplane.pb"))
    assert (out / "quickstart" / "evaluation.json").is_file()


def test_a_share_of_the_peak_is_flops_over_seconds_and_peak(quick, subject, monkeypatch):
    """Two products with a 16 x 16 matrix, and their gradients, for 4 images."""
    took = {"step": Times(np.array([0.5, 0.5, 0.5]))}
    monkeypatch.setattr(stages, "time_interleaved", lambda *_: took)
    rows = stages.time_step(subject.experiment, None)
    share = 4 * 6 * 2 * 16 * 16 / 1e12 / 0.5
    assert rows["share of peak"].startswith(f"{share:.3f} (measured")
    assert rows["images/s"] == "8"
    assert rows["a step"].startswith("500 ms")


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_stages_without_time_are_left_out_and_errors_end_theirs_alone(monkeypatch):
    clock, saved = Clock(), []
    monkeypatch.setattr(schedule, "time", clock)

    def take(seconds):
        def run():
            clock.now += seconds
            return {"done": "yes"}

        return run

    def fail():
        raise RuntimeError("broken |\npipe")

    record = Record("command", "today")
    made = [Stage("a", 5, take(30)), Stage("b", 31, take(1)), Stage("c", 5, fail), Stage("d", 30, take(30))]
    run_stages(made, 60, record, lambda record: saved.append(record.table()))
    assert record.results == {
        "a": {"done": "yes"},
        "c": {"failed": "RuntimeError: broken / pipe"},
        "d": {"done": "yes"},
    }
    assert (record.failed, record.left_out) == (["c"], ["b"])
    assert len(saved) == 4
    assert "| a | seconds in all | 30 |" in saved[0]
    assert "| b | left out: no time | |" in saved[3]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--minutes=0", "--minutes=0.0: must be above 0"),
        ("--golden=nowhere", "--golden=nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(flag, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert on_device.main([flag]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "table.md").write_text("years")
    assert on_device.main([f"--output={tmp_path}"]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_the_benchmarks_are_those_of_the_paper_in_bfloat16():
    found = on_device.load_benchmarks(small=False)
    networks = {name: vars(one.model.network) for name, one in found.items()}
    sizes = {name: (found[name].batch_size, one["blocks"], one["channels"]) for name, one in networks.items()}
    assert sizes == {"DiffEnc-32-8": (256, 32, 256), "DiffEnc-32-4": (128, 32, 128)}
    assert {one["precision"] for one in networks.values()} == {"bfloat16"}
    assert all(one.batch_size % one.microbatches == 0 for one in found.values())


@pytest.mark.slow
def test_recorded_losses_come_out(shared):
    """Tolerances of the arrays' own page."""
    differences = golden.compare(
        shared / "golden" / "vdm_eps_learnable_nnet_cifar.npz", "vdm_eps_learnable_nnet_cifar"
    )
    assert differences["diffusion"] < 1e-4
    assert differences["latent"] < 1e-3
    assert differences["reconstruction"] < 1e-4
