"""SIGTERM and Ctrl-C: saved, said how to go on, and gone on without a trace."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIMINGS = {"steps_per_second", "images_per_second", "data_wait"}

# Evaluation and sampling that last long enough to be hit.
SLOW = [
    "--gin_bindings=evaluate.passes = 30",
    "--gin_bindings=evaluate.batch_size = 16",
    "--gin_bindings=sample.num_timesteps = 5_000",
    "--gin_bindings=Experiment.sample_every = 20",
    "--gin_bindings=Experiment.steps = 22",
]


def _rows(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def _has_row(workdir: Path, step: int, key: str) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and any(row["step"] == step and key in row for row in _rows(workdir))


def _owed(workdir: Path) -> tuple[int, list[str]]:
    """The newest checkpoint's step, and what it says is still to be done."""
    newest = max(path for path in (workdir / "checkpoints").iterdir() if path.name[0].isdigit())
    return int(newest.name.split("-")[0]), json.loads((newest / "META.json").read_text())["metadata"]["owed"]


@pytest.fixture(scope="module")
def begin(start, tiny):
    """Starts the run in a folder."""
    return lambda folder, *flags: start([f"--gin_file={tiny}", "--workdir=run", *SLOW, *flags], cwd=folder)


@pytest.fixture(scope="module")
def undisturbed(begin, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    child = begin(folder)
    assert child.wait() == 0, child.err
    return folder / "run"


def _stop(child, signum: signal.Signals) -> None:
    """Interrupt a run; it must leave as programs do, and say how to go on."""
    os.kill(child.pid, signum)
    assert child.wait() == {signal.SIGTERM: 143, signal.SIGINT: 130}[signum], child.err
    assert "stopping after this step, and saving; a second time stops at once, without saving\n" in child.err
    last = child.err.splitlines()[-1]
    assert "saved: run the same command again to go on" in last
    assert "Traceback" not in child.err


def _assert_goes_on_to(undisturbed: Path, begin, folder: Path, step: int) -> None:
    child = begin(folder)
    assert child.wait() == 0, child.err
    assert f"resuming from step {step} to 22" in child.err
    assert _rows(folder / "run") == _rows(undisturbed)
    for name in ("samples/000000020.png", "samples/000000022.png", "evaluation.json"):
        assert (folder / "run" / name).read_bytes() == (undisturbed / name).read_bytes()
    assert _owed(folder / "run") == (22, [])
    assert len(list((folder / "run" / "evaluations").glob("*.json"))) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_amid_an_evaluation(begin, undisturbed, tmp_path, signum):
    child = begin(tmp_path)
    assert child.wait_until(lambda: _has_row(tmp_path / "run", 20, "bpd")), child.err
    _stop(child, signum)
    assert _owed(tmp_path / "run") == (20, ["evaluation", "samples"])
    _assert_goes_on_to(undisturbed, begin, tmp_path, 20)


@pytest.mark.slow
def test_amid_sampling(begin, undisturbed, tmp_path):
    child = begin(tmp_path)
    assert child.wait_until(lambda: _has_row(tmp_path / "run", 20, "test_bpd")), child.err
    _stop(child, signal.SIGINT)
    assert _owed(tmp_path / "run") == (20, ["samples"])
    _assert_goes_on_to(undisturbed, begin, tmp_path, 20)


@pytest.mark.slow
def test_amid_the_last_evaluation(begin, undisturbed, tmp_path):
    """Stopped twice: then in what was made up for, too."""
    child = begin(tmp_path)
    assert child.wait_until(lambda: _has_row(tmp_path / "run", 22, "bpd")), child.err
    _stop(child, signal.SIGTERM)
    assert _owed(tmp_path / "run") == (22, ["evaluation", "samples"])
    child = begin(tmp_path)
    assert child.wait_until(lambda: _has_row(tmp_path / "run", 22, "test_bpd")), child.err
    _stop(child, signal.SIGTERM)
    assert _owed(tmp_path / "run") == (22, ["samples"])
    _assert_goes_on_to(undisturbed, begin, tmp_path, 22)


@pytest.mark.slow
def test_before_the_first_step(begin, undisturbed, tmp_path):
    """While it initialises, or compiles the step: then that step is taken."""
    child = begin(tmp_path)
    assert child.wait_until((tmp_path / "run" / "config.gin").exists), child.err
    _stop(child, signal.SIGTERM)
    step, owed = _owed(tmp_path / "run")
    assert step in (0, 1)
    assert not owed
    _assert_goes_on_to(undisturbed, begin, tmp_path, step)


@pytest.mark.slow
def test_amid_steps_by_the_command_a_user_types(start_python, tiny, begin, undisturbed, tmp_path):
    child = start_python([f"--gin_file={tiny}", "--workdir=run", *SLOW], cwd=tmp_path)
    assert child.wait_until(lambda: _has_row(tmp_path / "run", 4, "bpd")), child.err
    _stop(child, signal.SIGTERM)
    step, _ = _owed(tmp_path / "run")
    assert f"stopped at step {step}, and saved" in child.err
    assert 4 <= step <= 20
    _assert_goes_on_to(undisturbed, begin, tmp_path, step)


@pytest.mark.slow
def test_a_terminal_that_closes(environment, tiny, tmp_path):
    """As with an ssh: everything written to it fails from then on, and the run saves all the same."""
    master, slave = pty.openpty()
    run = [sys.executable, "-m", "diffenc.run", f"--gin_file={tiny}", "--workdir=run", *SLOW]
    # the first terminal that the leader of a session opens is its own, whose closing it is told
    on_terminal = ["sh", "-c", 'tty=$1; shift; exec "$@" <"$tty" >"$tty" 2>&1', "sh", os.ttyname(slave), *run]
    process = subprocess.Popen(on_terminal, cwd=tmp_path, env=environment, start_new_session=True)
    os.set_blocking(master, False)
    while not _has_row(tmp_path / "run", 4, "bpd"):
        assert process.poll() is None
        with contextlib.suppress(BlockingIOError):
            os.read(master, 1 << 16)
        time.sleep(0.01)
    os.close(slave)
    os.close(master)
    assert process.wait() == 128 + signal.SIGHUP
    step, owed = _owed(tmp_path / "run")
    assert step >= 4
    assert not owed or step == 20


def test_ctrl_c_ends_an_evaluation_by_hand_and_files_nothing(begin, undisturbed, tmp_path):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    flags = ["--mode=evaluate", f"--workdir={undisturbed}", "--gin_bindings=evaluate.passes = 100_000"]
    child = begin(tmp_path, *flags)
    time.sleep(3)  # there is nothing to see of an evaluation before its first line of progress
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130
    assert "Traceback" not in child.err
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before
