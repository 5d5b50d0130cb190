"""Killed at any moment, the run goes on to the very bits of one that nothing disturbed."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from diffenc.checkpoint import arrays
from diffenc.files import stores

QUICKLY = (
    "Experiment.evaluate_every = 0",
    "Experiment.sample_every = 0",
)  # nothing but steps and checkpoints
TIMINGS = {"steps_per_second", "images_per_second", "data_wait"}


def _rows(workdir: Path) -> list[str]:
    """The rows without timings, as text: floats written out tell every bit."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [json.dumps({key: value for key, value in row.items() if key not in TIMINGS}) for row in rows]


def _leaves(checkpoint: Path) -> dict[str, tuple]:
    """Parameters, averages, optimizer state and sums, by name: dtype, shape, bytes."""
    leaves = json.loads((checkpoint / "META.json").read_text())["leaves"]
    wanted = {
        name: arrays.Wanted(arrays.Box((0,) * len(shape), tuple(shape)), tuple(shape), np.dtype(dtype))
        for name, (shape, dtype) in leaves.items()
    }
    parts = [part.name for part in checkpoint.glob("process_*") if part.is_dir()]
    found = arrays.read_arrays(stores.open_store(checkpoint), parts, wanted)
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in found.items()}


def _steps(workdir: Path) -> list[int]:
    """Of the checkpoints; a step that was saved twice has a number after it."""
    return sorted(int(folder.split("-")[0]) for folder in os.listdir(workdir / "checkpoints"))


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit, each step once."""
    assert _rows(one) == _rows(other)
    assert _steps(one) == _steps(other)
    a, b = (_leaves(run / "checkpoints" / max(os.listdir(run / "checkpoints"))) for run in (one, other))
    assert {name.split("/")[0] for name in a} == {"step", "params", "ema", "opt_state", "sums"}
    assert a == b
    assert _results(one) == _results(other)


def _results(workdir: Path) -> dict[str, bytes]:
    """The config, the newest evaluation with its terms, all pictures."""
    files = [*workdir.glob("*.gin"), *workdir.glob("evaluation.*"), *workdir.glob("samples/*")]
    return {file.name: _members(file) if file.suffix == ".npz" else file.read_bytes() for file in files}


def _members(file: Path) -> bytes:
    """What a zip holds; its own bytes tell the time."""
    with np.load(file) as arrays:
        return b"".join(arrays[name].tobytes() for name in sorted(arrays))


def _step(workdir: Path) -> int:
    """The step of the last whole row."""
    try:
        steps = re.findall(rb'^\{"step": (\d+),.*\}$', (workdir / "metrics.jsonl").read_bytes(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return int(steps[-1]) if steps else 0


def _writing(workdir: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    folders = (workdir / "checkpoints").glob("0*")
    return any(not (folder / "META.json").exists() for folder in folders)


@pytest.fixture(scope="module")
def finish(start, tmp_path_factory):
    """Runs a gin file to its end."""

    def make(gin_file: Path, workdir: Path, *flags: str) -> Path:
        child = start(
            [f"--gin_file={gin_file}", f"--workdir={workdir}", *flags], cwd=tmp_path_factory.getbasetemp()
        )
        assert child.wait() == 0, child.err
        return workdir

    return make


@pytest.fixture(scope="module")
def straight(finish, tiny, tmp_path_factory) -> Path:
    """The workdir of `tiny`, undisturbed."""
    return finish(tiny, tmp_path_factory.mktemp("straight") / "run")


@pytest.fixture(scope="module")
def straight_unet(finish, unet, tmp_path_factory) -> Path:
    """The workdir of `unet`, undisturbed."""
    return finish(unet, tmp_path_factory.mktemp("straight") / "run")


def test_each_step_has_one_row(straight):
    rows = [json.loads(row) for row in _rows(straight)]
    assert [row["step"] for row in rows if "bpd" in row] == list(range(4, 41, 4))
    assert [row["step"] for row in rows if "test_bpd" in row] == [20, 40]


def _killed_again_and_again(begin, workdir: Path, moments) -> list[tuple[int, str]]:
    """Kills a run of its own at each moment (a step, seconds after it; or amid a checkpoint after the step).

    Returns where each kill fell: the step of the last row, and the newest checkpoint.
    """
    fallen = []
    for step, delay in moments:
        child = begin()
        if delay is None:
            hit = child.wait_until(lambda step=step: _step(workdir) >= step and _writing(workdir))
        else:
            hit = child.wait_until(lambda step=step: _step(workdir) >= step)
            hit = hit and child.wait_until(_after(delay)) is not None
        if hit and child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        status = child.wait()
        assert status in (-signal.SIGKILL, 0), child.err
        if status:
            folders = os.listdir(workdir / "checkpoints") if (workdir / "checkpoints").exists() else []
            fallen.append((_step(workdir), max((f for f in folders if f.isdigit()), default="")))
    return fallen


def _after(seconds: float):
    """Something that happens so many seconds from now."""
    then = time.monotonic() + seconds
    return lambda: time.monotonic() >= then


def test_killed_again_and_again_the_run_is_the_undisturbed_one(start, tiny, straight, tmp_path):
    """Before the first row, at random steps, amid checkpoints, amid evaluations and samples."""
    workdir = tmp_path / "run"
    steps = sorted(random.sample(range(1, 37), 3))
    moments = [
        (0, random.uniform(0, 1)),
        *((step, random.uniform(0, 0.1)) for step in steps),
        (8, None),
        (28, None),
    ]
    fallen = _killed_again_and_again(
        lambda: start([f"--gin_file={tiny}", f"--workdir={workdir}"], cwd=tmp_path),
        workdir,
        sorted(moments, key=str),
    )
    assert len(fallen) >= 3, (moments, fallen)
    last = start([f"--gin_file={tiny}", f"--workdir={workdir}"], cwd=tmp_path)
    assert last.wait() == 0, last.err
    assert_same_run(workdir, straight)
    assert not _writing(workdir), "what kills left behind is swept up"


@pytest.mark.slow
def test_killed_after_step_20_a_unet_goes_on_to_the_same_bits(start_python, unet, straight_unet, tmp_path):
    """40 steps straight = 20 + SIGKILL + resume to 40; by the command that a user types."""
    flags = [f"--gin_file={unet}", "--workdir=run"]
    first = start_python(flags, cwd=tmp_path)
    saved = tmp_path / "run" / "checkpoints" / "000000018" / "META.json"  # which commits it
    assert first.wait_until(lambda: _step(tmp_path / "run") >= 20 and saved.exists()), first.err
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = start_python(flags, cwd=tmp_path)
    assert second.wait() == 0, second.err
    assert re.search(r"resuming from step (18|24|30|36) to 40", second.err)
    assert_same_run(tmp_path / "run", straight_unet)


@pytest.mark.slow
def test_many_kills_at_random_seconds(start_python, unet, straight_unet, tmp_path):
    """At moments that know nothing of the run: amid imports, compilation, start, steps, writes."""
    flags, statuses = [f"--gin_file={unet}", "--workdir=run"], []
    for _ in range(30):
        child = start_python(flags, cwd=tmp_path)
        if child.wait_until(_after(random.uniform(1, 12))):
            os.kill(child.pid, signal.SIGKILL)
        statuses.append(child.wait())
    assert set(statuses) <= {-signal.SIGKILL, 0}
    assert statuses[0] == -signal.SIGKILL or len(set(statuses)) == 2, "some were killed"
    last = start_python(flags, cwd=tmp_path)
    assert last.wait() == 0, last.err
    assert_same_run(tmp_path / "run", straight_unet)


def _kill_two(start_two, gin_file: Path, workdir: Path, both: bool, seconds: float, bindings) -> list[int]:
    """Starts two processes and kills one, or both, so many seconds after their first row. Their exit statuses."""
    children = start_two(gin_file, workdir, bindings)
    rows = _step(workdir)
    children[0].wait_until(lambda: _step(workdir) > rows)
    children[0].wait_until(_after(seconds))
    for child in children if both else random.sample(children, 1):
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
    return [child.wait() for child in children]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "bindings"),
    [(2, ()), (30, ("Experiment.steps = 3_000", *QUICKLY))],
)
def test_two_processes_killed_again_and_again_are_the_undisturbed_two(
    start_two, tiny, tmp_path, kills, bindings
):
    """Both at once, or one of them, whose death ends the other."""
    straight, workdir, statuses = tmp_path / "straight", tmp_path / "run", []
    for child in start_two(tiny, straight, bindings):
        assert child.wait() == 0, child.err
    for _ in range(kills):
        both = kills == 2 or random.random() < 0.7
        statuses.append(_kill_two(start_two, tiny, workdir, both, random.uniform(0, 0.4), bindings))
    killed = [-signal.SIGKILL in pair for pair in statuses]
    assert killed[0]
    assert kills == 2 or sum(killed) >= 25, statuses
    for child in start_two(tiny, workdir, bindings):
        assert child.wait() == 0, child.err
    assert_same_run(workdir, straight)
    assert not _writing(workdir), "what kills left behind is swept up"


@pytest.mark.slow
def test_one_process_killed_thirty_times_is_the_undisturbed_one(start, finish, tiny, tmp_path):
    """At moments that know nothing of steps or checkpoints, of which there is one every few milliseconds."""
    flags = [f"--gin_bindings={binding}" for binding in ("Experiment.steps = 6_000", *QUICKLY)]
    straight, workdir = finish(tiny, tmp_path / "straight", *flags), tmp_path / "run"
    killed = 0
    for _ in range(30):
        child = start([f"--gin_file={tiny}", f"--workdir={workdir}", *flags], cwd=tmp_path)
        rows = _step(workdir)
        child.wait_until(lambda rows=rows: _step(workdir) > rows)
        if child.wait_until(_after(random.uniform(0, 1))):
            os.kill(child.pid, signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        torn = [f for f in (workdir / "checkpoints").iterdir() if not (f / "META.json").exists()]
        assert len(torn) <= 1
    assert killed >= 25
    finish(tiny, workdir, *flags)
    assert_same_run(workdir, straight)


@pytest.mark.slow
def test_20_steps_and_then_40_are_40(finish, tiny, straight, tmp_path):
    finish(tiny, tmp_path / "run", "--gin_bindings=Experiment.steps = 20")
    finish(tiny, tmp_path / "run")
    kept = tmp_path / "run" / "evaluations"
    assert sorted(path.name for path in kept.glob("*.json")) == ["0001.json", "0002.json"], (
        "of step 20, of step 40"
    )
    assert_same_run(tmp_path / "run", straight)


@pytest.mark.slow
def test_a_finished_run_says_so(start, tiny, finish, tmp_path):
    finish(tiny, tmp_path / "run", "--gin_bindings=Experiment.steps = 3")
    before = _rows(tmp_path / "run")
    again = start(
        [f"--gin_file={tiny}", "--workdir=run", "--gin_bindings=Experiment.steps = 3"], cwd=tmp_path
    )
    assert again.wait() == 0
    assert "already trained to step 3; bind Experiment.steps to train longer" in again.err
    assert _rows(tmp_path / "run") == before


@pytest.mark.slow
def test_the_saved_config_alone_is_the_same_run(finish, straight_unet, tmp_path):
    """Elsewhere, without the files it came from; with U-Nets, whose every field counts."""
    finish(straight_unet / "config.gin", tmp_path / "run", "--gin_bindings=Experiment.steps = 12")
    rows = _rows(tmp_path / "run")
    assert len(rows) == 3
    assert rows == _rows(straight_unet)[:3]


def test_modes_find_a_run_by_its_own_config(start, straight, tmp_path):
    run, elsewhere, said = tmp_path / "run", tmp_path / "elsewhere", {}
    shutil.copytree(straight, run)
    elsewhere.mkdir()
    for mode in ("evaluate", "sample"):
        flags = [f"--gin_file={run}/config.gin", f"--mode={mode}", "--gin_bindings=evaluate.passes = 3"]
        child = start(flags, cwd=elsewhere)
        assert child.wait() == 0, child.err
        said[mode] = child.out
    figures = json.loads((run / "evaluation.json").read_text())
    assert (figures["step"], figures["passes"], figures["num_images"]) == (40, 3, 299)
    assert f"{figures['bpd']:.4f}" in said["evaluate"]
    assert (run / "samples" / "000000040_T4_n4_seed0.png").is_file()
    assert list(elsewhere.iterdir()) == []
