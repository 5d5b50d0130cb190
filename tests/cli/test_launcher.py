"""The local launcher with the real program: two processes train, are stopped, and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(environment, tiny, tmp_path):
    """Starts the launcher on two processes of the tiny run, with more flags."""
    env = environment | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{ROOT}",
    }

    def make(*flags):
        run = [f"--gin_file={tiny}", "--workdir=run", *flags]
        command = [sys.executable, "-m", "experiments.launch.local", "--processes=2", "--", *run]
        return subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)

    return make


def steps(folder):
    path = folder / "run" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_two_processes_are_stopped_by_one_signal_and_go_on(launch, tmp_path):
    first = launch("--gin_bindings=Experiment.steps = 100_000")
    while not steps(tmp_path) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=300)[1]
    assert first.returncode == 143, said
    assert "[0] " in said
    saved = int(said.split("stopped at step ")[1].split(",")[0])
    second = launch(f"--gin_bindings=Experiment.steps = {saved + 3}")
    said = second.communicate(timeout=300)[1]
    assert second.returncode == 0, said
    assert f"resuming from step {saved} to {saved + 3}" in said
    assert steps(tmp_path)[-1] == saved + 3
