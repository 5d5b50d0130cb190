"""One run by two processes, by one, and by one with eight devices: the same run. And what becomes of it when one dies."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# All images at the ends of time: on eight devices each has one, and otherwise one in a few would be taken.
LONGER = [
    "Experiment.ends_stride = 1",
    "Experiment.steps = 50",
    "Experiment.checkpoint_every = 25",
    "Experiment.evaluate_every = 50",
]
SPLIT = ["mesh.fsdp = 2", "mesh.rules = (('*/w', 0), ('*/b', 1))"]
MORE = [*LONGER, "Experiment.steps = 58"]
ENDLESS = ["Experiment.steps = 1_000_000", "Experiment.checkpoint_every = 100", "Experiment.log_every = 50"]
TIMINGS = {"steps_per_second", "images_per_second", "data_wait"}
EIGHT = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}


def _arguments(gin: Path, workdir: Path, bindings: list[str]) -> list[str]:
    return [f"--gin_file={gin}", f"--workdir={workdir}", *(f"--gin_bindings={one}" for one in bindings)]


@pytest.fixture(scope="module")
def one(start, tiny, tmp_path_factory) -> Path:
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("one")
    child = start(_arguments(tiny, folder / "run", LONGER), cwd=folder)
    assert child.wait() == 0, child.err
    return folder / "run"


@pytest.fixture(
    scope="module",
    params=[
        "two processes",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in ("two processes, split", "eight devices", "eight, split")
        ),
    ],
)
def other(request, start, start_two, tiny, tmp_path_factory) -> Path:
    """The same run, done otherwise."""
    folder = tmp_path_factory.mktemp("other")
    bindings = LONGER + (SPLIT if "split" in request.param else [])
    if "two" in request.param:
        children = start_two(tiny, folder / "run", bindings)
    else:
        children = [start(_arguments(tiny, folder / "run", bindings), cwd=folder, env=EIGHT)]
    for child in children:
        assert child.wait() == 0, child.err
    return folder / "run"


def _rows(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def _figure(row, key):
    """The figure that an error is of, or the value itself: an error is a difference of figures, and rounded as they are."""
    return abs(row[re.sub(r"_(mc_se|se|se_upper|se_uncertainty)$", "", key)])


def test_losses_and_evaluations_are_the_same(one, other):
    ours, theirs = _rows(one), _rows(other)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    assert ours[-1]["step"] == 50
    for a, b in zip(ours, theirs, strict=True):
        for key in a:
            assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5 * _figure(a, key)), (key, a["step"])


def test_the_evaluation_is_of_every_image_and_samples_are_the_same(one, other):
    ours, theirs = (np.load(run / "evaluation.npz") for run in (one, other))
    assert ours["diffusion"].shape == theirs["diffusion"].shape == (2, 299)
    np.testing.assert_allclose(ours["diffusion"], theirs["diffusion"], rtol=1e-3)
    name = "samples/000000050.png"
    images = [np.asarray(Image.open(run / name)) for run in (one, other)]
    assert images[0].shape == images[1].shape
    assert np.mean(images[0] != images[1]) < 0.02, "but for a level that rounding tipped over"


def test_the_first_process_alone_writes(one, other):
    ours, theirs = ({path.name for path in run.iterdir()} for run in (one, other))
    events = re.compile(r"events\.out\.tfevents\..*")
    assert {events.sub("events", name) for name in theirs} == {events.sub("events", name) for name in ours}
    assert len(theirs) == len(ours)


@pytest.fixture(scope="module")
def longer(start, tiny, one, tmp_path_factory) -> list[dict]:
    """The rows after step 50 of the run of one process, gone on with."""
    workdir = tmp_path_factory.mktemp("longer") / "run"
    shutil.copytree(one, workdir)
    child = start(_arguments(tiny, workdir, MORE), cwd=workdir)
    assert child.wait() == 0, child.err
    return [row for row in _rows(workdir) if row["step"] > 50]


def test_one_process_goes_on_where_others_stopped(other, longer, start, tiny, tmp_path):
    child = start(_arguments(tiny, other, MORE), cwd=tmp_path)
    assert child.wait() == 0, child.err
    assert "resuming from step 50 to 58" in child.err
    metas = [json.loads(path.read_text()) for path in other.glob("checkpoints/*/META.json")]
    assert {meta["metadata"]["run"] for meta in metas} == {(other / "run_id").read_text().strip()}
    rows = [row for row in _rows(other) if row["step"] > 50]
    assert [row["step"] for row in rows] == [row["step"] for row in longer] == [52, 56, 58, 58]
    for a, b in zip(longer, rows, strict=True):
        for key in a:
            assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5 * _figure(a, key)), (key, a["step"])


@pytest.mark.parametrize(
    ("asked", "signum"), [(1, signal.SIGTERM), pytest.param(0, signal.SIGINT, marks=pytest.mark.slow)]
)
def test_all_stop_at_the_same_step_when_one_is_asked_to(start_two, tiny, tmp_path, asked, signum):
    workdir = tmp_path / "run"
    first, second = children = start_two(tiny, workdir, ENDLESS)
    metrics = workdir / "metrics.jsonl"
    assert first.wait_until(lambda: metrics.exists() and metrics.stat().st_size), first.err
    os.kill(children[asked].pid, signum)
    assert (first.wait(), second.wait()) == (143, 143), first.err + second.err
    (said,) = re.findall(r"stopped at step (\d+), and saved", first.err)
    assert "stopped at step" not in second.err, "the first alone speaks"
    steps = {int(name) for name in os.listdir(workdir / "checkpoints")}
    assert max(steps) == int(said)
    more = [*ENDLESS, f"Experiment.steps = {int(said) + 1}"]
    again = start_two(tiny, workdir, more)
    assert [child.wait() for child in again] == [0, 0], again[0].err + again[1].err
    assert f"resuming from step {said}" in again[0].err


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_ends_within_a_minute_when_one_dies(start_two, tiny, tmp_path, victim):
    workdir = tmp_path / "run"
    children = start_two(tiny, workdir, ENDLESS)
    metrics = workdir / "metrics.jsonl"
    assert children[0].wait_until(lambda: metrics.exists() and metrics.stat().st_size), children[0].err
    os.kill(children[victim].pid, signal.SIGKILL)
    began = time.monotonic()
    assert children[1 - victim].wait() != 0
    assert time.monotonic() - began < 60
    said = children[1 - victim].err
    assert "another process of this run was lost" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_ends_within_a_minute_when_one_is_stopped(start_two, tiny, tmp_path, victim):
    """It does not end, nor close its connections; it just does not answer."""
    workdir = tmp_path / "run"
    children = start_two(tiny, workdir, ENDLESS)
    metrics = workdir / "metrics.jsonl"
    assert children[0].wait_until(lambda: metrics.exists() and metrics.stat().st_size), children[0].err
    os.kill(children[victim].pid, signal.SIGSTOP)
    began = time.monotonic()
    assert children[1 - victim].wait() == 1, children[1 - victim].err
    assert time.monotonic() - began < 60
    last = children[1 - victim].err.splitlines()[-1]
    assert last.startswith(
        "error: another process of this run was lost, or the connection to it (no heartbeat for"
    )
    assert "goes on from its last checkpoint" in last
    os.kill(children[victim].pid, signal.SIGKILL)
    os.kill(children[victim].pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_workdir_that_is_moved_ends_both(start_two, tiny, tmp_path):
    workdir = tmp_path / "run"
    children = start_two(tiny, workdir, ENDLESS)
    checkpoints = workdir / "checkpoints"
    assert children[0].wait_until(lambda: checkpoints.exists() and list(checkpoints.glob("*/META.json")))
    workdir.rename(tmp_path / "moved")
    began = time.monotonic()
    assert [child.wait() for child in children] == [1, 1], children[0].err + children[1].err
    assert time.monotonic() - began < 60
    last = children[0].err.splitlines()[-1]
    assert last.startswith(f"error: {workdir} is no longer the folder")
    assert f"which is at {tmp_path}/moved now" in last
    assert children[1].err.splitlines()[-1].startswith("error: another process of this run")
    assert not list(workdir.rglob("META.json"))


def test_a_part_of_an_address_is_refused(start, tiny, tmp_path):
    child = start([*_arguments(tiny, tmp_path / "run", []), "--num_processes=2"], cwd=tmp_path)
    assert child.wait() == 1
    assert child.err.strip().splitlines()[-1] == (
        "error: --coordinator=HOST:PORT, --num_processes and --process_id go together: give all three"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_in_use_ends_both(start_two, start, tiny, tmp_path):
    workdir = tmp_path / "run"
    owner = start(_arguments(tiny, workdir, ENDLESS), cwd=tmp_path)
    metrics = workdir / "metrics.jsonl"
    assert owner.wait_until(lambda: metrics.exists() and metrics.stat().st_size), owner.err
    children = start_two(tiny, workdir, ENDLESS)
    began = time.monotonic()
    assert all(child.wait() != 0 for child in children)
    assert time.monotonic() - began < 60
    assert f"in use by the training process with pid {owner.pid}" in children[0].err
    os.kill(owner.pid, signal.SIGKILL)


ALL_MODES = {
    "evaluate": (),
    "sample": (),
    "fit_variance": ("--num_timesteps=5",),
    "fit_schedule": ("--num_timesteps=5",),
    "k_sample": ("--num_timesteps=5", "--gin_bindings=k_sample.samples = 2"),
    "diagnose": (),
    "figures": ("--num_timesteps=2",),
    "likelihood": ("--gin_bindings=likelihood.rtol = 1e-2", "--gin_bindings=likelihood.atol = 1e-2"),
    "export": (),
    "plan": ("--gin_bindings=plan.compile = False",),
    "fid": ("--num_timesteps=2", "--gin_bindings=fid.features = @features.corner()"),
}
FEW = [
    "evaluate.num_images = 32",
    "evaluate.batch_size = 16",
    "fit.num_images = 64",
    "fit.batch_size = 16",
    "fit.knots = 5",
    "diagnose.num_images = 64",
    "diagnose.batch_size = 16",
    "diagnose.bins = 4",
    "fid.nums = (8,)",
    "fid.batch_size = 4",
    "fid.num_images = 16",
    "figures.num_images = 20",
]


@pytest.mark.parametrize(
    "mode",
    [
        "fit_variance",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ALL_MODES if mode != "fit_variance"),
    ],
)
def test_two_processes_measure_a_run_that_lies_elsewhere(start_two, tiny, one, tmp_path, mode):
    """The workdir is an address, which each process works on in a folder of its own."""
    shutil.copytree(one, tmp_path / "run")
    url = f"file://{tmp_path}/run"
    children = start_two(tiny, url, [*LONGER, *FEW], f"--mode={mode}", *ALL_MODES[mode])
    assert [child.wait() for child in children] == [0, 0], children[0].err + children[1].err
    assert children[1].out.replace("[Gloo]", "").count("bpd") == 0, "the first alone speaks"
    assert not list((tmp_path / "run").rglob("*.tmp*"))
