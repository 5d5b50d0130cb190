"""A sweep of real runs, killed and called again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = ("table.md", "table.tex", "table.csv", "differences.csv", "tests.csv")


@pytest.fixture
def sweep(tiny, environment, tmp_path):
    """Starts a sweep of three sizes of batch with two seeds into a folder: 6 runs."""
    paths = os.pathsep.join([str(ROOT), environment["PYTHONPATH"]])
    quick = ("Experiment.steps = 12", "Experiment.evaluate_every = 0", "Experiment.sample_every = 0", "evaluate.batch_size = 64")  # fmt: skip
    flags = [f"--gin_file={tiny}", *(f"--gin_bindings={text}" for text in quick)]
    grid = ["--grid=optimizer.adamw.learning_rate = [1e-2, 1e-3, 1e-4]", "--seeds=2"]

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "diffenc.sweep", *flags, *grid, f"--output={folder}"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment | {"PYTHONPATH": paths})

    return start


@pytest.mark.slow
def test_killed_twice_and_called_again_a_sweep_ends_with_the_same_tables(sweep, tmp_path):
    assert sweep("whole").wait() == 0
    for done, signum in ((1, signal.SIGKILL), (3, signal.SIGTERM)):
        program = sweep("killed")
        while len([*tmp_path.glob("killed/*/*/evaluation.json")]) < done:
            assert program.poll() is None
            time.sleep(0.05)
        time.sleep(random.uniform(0, 8))
        assert program.poll() is None
        program.send_signal(signum)
        assert program.wait() in (-signum, 128 + signum)
        assert len([*tmp_path.glob("killed/*/*/evaluation.json")]) < 6
        assert not (tmp_path / "killed/table.md").exists()
    assert sweep("killed").wait() == 0
    for name in TABLES:
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert "| 2 |" in (tmp_path / "killed/table.md").read_text()
