"""Jobs as real processes: submitit's own executor for one machine in Slurm's place, stand-ins for the run and Slurm's commands."""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import submitit

from diffenc.cli import sweep
from diffenc.config import gin_loader
from diffenc.errors import UserError
from diffenc.runtime.signals import Interrupted
from diffenc.tools.sweep import execution, slurm
from diffenc.tools.sweep.slurm import FirstSignal, SlurmJob, executor_factory, parse_options, query_queue
from diffenc.tools.sweep.sweep import select_executor
from diffenc.tools.sweep.variants import Variant

# A module that jobs import too: a run whose program leaves MODE.done behind; with seed 0 it fails, with seed 1 it hangs
# once if the file `hang` is there.
STAND_IN = '''
import sys
from diffenc.tools.sweep.runs import Run, Task

PROGRAM = """
import os, signal, sys, time
mode, workdir = sys.argv[1:]
os.makedirs(workdir, exist_ok=True)
if signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
    sys.exit("error: a second SIGTERM would end it")
came = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: came.append(number.__index__()))
print(mode, "started", flush=True)
if "hang" in os.listdir() and workdir.endswith("seed_1"):
    while not came or "hang" in os.listdir():
        time.sleep(0.01)
    print("saved after", came, flush=True)
    sys.exit(143)
if workdir.endswith("seed_0"):
    sys.exit("error: the disk is full")
open(f"{workdir}/{mode}.done", "w").close()
"""


class StandIn(Run):
    def command(self, mode):
        return [sys.executable, "-S", "-c", PROGRAM, mode, str(self.workdir)]


def trained(run):
    return (run.workdir / "train.done").exists()


def evaluated(run):
    return (run.workdir / "evaluate.done").exists()


TASKS = (Task("train", trained), Task("evaluate", evaluated))
'''

# All processes of the machine are jobs that run. The file `squeue`, where it is, says what comes out instead.
SQUEUE = """#!/bin/bash
[[ $* == "--me --noheader --array --format=%i %T" ]] || exit 9
[[ -f squeue ]] && { cat squeue; exit; }
[[ -f refuse_squeue ]] && { echo slurm_load_jobs error: no contact >&2; exit 1; }
ps -e -o pid=,stat= | awk '$2 !~ /Z/ { print $1, "RUNNING" }'
"""


# Keeps what it was given, and answers as sbatch does.
SBATCH = '#!/bin/bash\n[[ -f no ]] && { echo "sbatch: error: invalid partition" >&2; exit 1; }\ncp "$1" script\necho Submitted batch job 12\n'


def put(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder: of the sweep, the stand-ins and their orders."""
    put(tmp_path / "bin", "squeue", SQUEUE)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), os.pathsep)
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "TERM")
    monkeypatch.setattr(slurm, "QUERY_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def experiment():
    return gin_loader.load_experiment(["gin/quickstart.gin"], [])


@pytest.fixture
def stand_in(folder, monkeypatch, experiment):
    """(runs of the given seeds, their tasks)"""
    name = "stand_in_for_runs"
    (folder / f"{name}.py").write_text(STAND_IN)
    root = str(Path(__file__).parents[4])
    paths = [str(folder), root, *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module(name)

    def make(*seeds):
        variant = Variant("v", ())
        return [module.StandIn(variant, seed, Path("s"), experiment) for seed in seeds], module.TASKS

    yield make
    del sys.modules[name]


def noted() -> dict[str, str]:
    return json.loads(Path("s/slurm/jobs.json").read_text())


def refused(folder: Path):
    raise AssertionError("nothing should be submitted")


@pytest.fixture
def job(stand_in):
    """A process that is noted as the job of the run of seed 0."""
    process = subprocess.Popen(["sleep", "60"])
    Path("s/slurm").mkdir(parents=True)
    Path("s/slurm/jobs.json").write_text(json.dumps({"v/seed_0": str(process.pid), "v/seed_9": "1"}))
    yield process
    process.kill()
    process.wait()


def soon(action, *arguments, after=0.5):
    timer = threading.Timer(after, action, arguments)
    timer.start()
    return timer


def started(log: Path, lines: int = 1):
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        time.sleep(0.02)


@pytest.mark.slow
def test_jobs_follow_their_runs_tasks_one_that_fails_stops_no_other_one_that_is_preempted_starts_again(
    stand_in, caplog
):
    caplog.set_level(logging.INFO, logger="absl")
    Path("hang").touch()
    runs, tasks = stand_in(0, 1)

    def preempt():
        started(Path("s/v/seed_1.log"))
        os.kill(int(noted()["v/seed_1"]), signal.SIGTERM)
        Path("hang").unlink()

    timer = soon(preempt)
    slurm.run_on_slurm(submitit.LocalExecutor, Path("s"), runs, tasks)
    timer.join()
    assert Path("s/v/seed_0.log").read_text() == "train started\nerror: the disk is full\n"
    assert Path("s/v/seed_1.log").read_text().splitlines() == [
        *("train started", f"saved after [{int(signal.SIGINT)}]"),
        *("train started", "evaluate started"),
    ]
    said = " ".join(record.getMessage() for record in caplog.records)
    its_job = f"s/slurm/{noted()['v/seed_0']}_0_log.out"
    assert f"v/seed_0 failed: the disk is full (log of its job: {its_job}), " in said
    assert "v/seed_1 done, " in said
    assert Path(its_job).exists()


def test_only_what_has_no_job_that_lives_is_submitted_and_the_note_keeps_the_rest(stand_in, job, folder):
    put(folder / "bin", "sbatch", SBATCH)
    put(folder / "bin", "srun", "")
    Path("squeue").write_text(f"{job.pid} PENDING\n")
    runs, tasks = stand_in(9, 0, 1)
    timer = soon(Path("squeue").write_text, "")
    slurm.run_on_slurm(executor_factory({}, None), Path("s"), runs, tasks)
    timer.join()
    assert noted() == {"v/seed_0": str(job.pid), "v/seed_9": "12_0", "v/seed_1": "12_1"}


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", 1), ("COMPLETING", 0)])
def test_a_job_that_was_cancelled_does_not(stand_in, monkeypatch, state, requeued):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "77")
    Path("squeue").write_text(f"76 PENDING\n77 {state}\n")
    Path("hang").touch()
    (run,), tasks = stand_in(1)

    def cancel():
        started(run.log)
        for _ in range(3):  # from slurmd, from srun, when the grace is over
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        Path("hang").unlink()

    submitits = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: submitits.append(number))
    try:
        timer = soon(cancel, after=0)
        with pytest.raises(SystemExit) as status:
            SlurmJob(run, tasks)()
        timer.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status.value.code == 143
    assert len(submitits) == requeued
    assert run.log.read_text().endswith(f"saved after [{int(signal.SIGINT)}]\n")


def test_a_job_with_nothing_left_to_do_ends_well(stand_in):
    (run,), tasks = stand_in(0)
    run.workdir.mkdir(parents=True)
    for task in tasks:
        (run.workdir / f"{task.mode}.done").touch()
    with pytest.raises(SystemExit) as status:
        SlurmJob(run, tasks)()
    assert status.value.code == 0
    assert not run.log.exists()


def test_what_submitit_runs_when_a_job_starts_again_is_the_same(stand_in):
    (run,), tasks = stand_in(0)
    assert SlurmJob(run, tasks).checkpoint().function == SlurmJob(run, tasks)


def test_a_run_whose_job_lives_is_waited_for_and_not_submitted_again(stand_in, job):
    runs, tasks = stand_in(0)
    ended = soon(job.kill)
    slurm.run_on_slurm(refused, Path("s"), runs, tasks)
    ended.join()
    assert job.poll() == -signal.SIGKILL


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_jobs_go_on_when_the_program_is_stopped_and_it_says_how_to_end_them(stand_in, job, caplog, signum):
    caplog.set_level(logging.INFO, logger="absl")
    runs, tasks = stand_in(0)
    timer = soon(os.kill, os.getpid(), signum, after=0.3)
    with pytest.raises(Interrupted) as interrupted:
        slurm.run_on_slurm(refused, Path("s"), runs, tasks)
    timer.join()
    assert interrupted.value.signum == signum
    assert job.poll() is None
    assert caplog.records[-1].getMessage().endswith(f"or end them: scancel {job.pid}")


def test_a_slurm_that_does_not_answer_for_a_while_ends_no_job(stand_in, job, caplog):
    runs, tasks = stand_in(0)

    def fail_for_a_while():
        Path("refuse_squeue").touch()
        while "no contact" not in caplog.text:
            time.sleep(0.02)
        job.kill()
        time.sleep(0.5)
        back.append(time.monotonic())
        Path("refuse_squeue").unlink()

    back, thread = [], soon(fail_for_a_while, after=0.2)
    slurm.run_on_slurm(refused, Path("s"), runs, tasks)
    assert back
    assert time.monotonic() > back[0]
    thread.join()
    Path("refuse_squeue").touch()
    with pytest.raises(UserError, match="squeue: slurm_load_jobs error: no contact"):
        slurm.run_on_slurm(refused, Path("s"), runs, tasks)


def test_now_and_then_it_is_told_what_the_jobs_do(stand_in, job, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="absl")
    monkeypatch.setattr(slurm, "PROGRESS_SECONDS", 0.3)
    runs, tasks = stand_in(0)
    runs[0].log.parent.mkdir(parents=True)
    runs[0].log.write_text("step 1\nstep 2\n\n")
    timer = soon(job.kill, after=1.2)
    slurm.run_on_slurm(refused, Path("s"), runs, tasks)
    timer.join()
    said = [record.getMessage() for record in caplog.records]
    assert "jobs: 1 running" in said
    assert "v/seed_0: step 2" in said


def test_a_damaged_note_is_named(stand_in, job):
    Path("s/slurm/jobs.json").write_text("{")
    runs, tasks = stand_in(0)
    with pytest.raises(UserError, match=r"s/slurm/jobs\.json is not valid JSON"):
        slurm.run_on_slurm(refused, Path("s"), runs, tasks)


def test_the_queue_by_job():
    Path("squeue").write_text("12_0 RUNNING\n12_1 PENDING\n15 COMPLETING\n")
    assert query_queue() == {"12_0": "RUNNING", "12_1": "PENDING", "15": "COMPLETING"}
    Path("squeue").write_text("")
    assert query_queue() == {}


def test_without_squeue_it_is_said_where_to_go(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="on a login node"):
        query_queue()


def test_a_run_is_told_once_and_by_sigint():
    with FirstSignal() as told:
        assert told.take() == []
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert told.take() == [signal.SIGINT]
        signal.raise_signal(signal.SIGTERM)
        assert told.take() == []


def test_what_slurm_is_asked_for(folder, stand_in):
    put(folder / "bin", "sbatch", SBATCH)
    put(folder / "bin", "srun", "")
    make = executor_factory(
        parse_options("--partition=gpu --time=0:30:00 --exclusive --comment='two  words'"), 3
    )
    runs, tasks = stand_in(0, 1, 2, 3)
    jobs = make(folder / "s").submit_array([SlurmJob(run, tasks) for run in runs])
    assert [job.job_id for job in jobs] == ["12_0", "12_1", "12_2", "12_3"]
    lines = Path("script").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert {"array=0-3%3", "partition=gpu", "time=0:30:00", "exclusive", "comment='two  words'"} <= {*asked}
    assert {"requeue", "signal=TERM@120", "nodes=1", "open-mode=append"} <= {*asked}
    assert len({line.partition("=")[0] for line in asked}) == len(asked)
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_a_job_alone_may_take_a_day_and_all_cores_it_was_given(folder, stand_in):
    put(folder / "bin", "sbatch", SBATCH)
    put(
        folder / "bin", "srun", '#!/bin/bash\necho "$SRUN_CPUS_PER_TASK" "$SUBMITIT_PREEMPT_SIGNAL" >> told\n'
    )
    runs, tasks = stand_in(0)
    (job,) = executor_factory({}, None)(folder / "s").submit_array([SlurmJob(run, tasks) for run in runs])
    assert job.job_id == "12"
    text = Path("script").read_text()
    assert "#SBATCH --time=1440\n" in text
    assert "--array" not in text
    for cores in ({"SLURM_CPUS_PER_TASK": "3"}, {}):
        subprocess.run(["bash", "script"], check=True, env={"PATH": os.environ["PATH"], **cores})
    assert Path("told").read_text() == "3 TERM\n TERM\n"


def test_what_sbatch_says_against_it_is_passed_on(folder, stand_in):
    put(folder / "bin", "sbatch", SBATCH)
    put(folder / "bin", "srun", "")
    Path("no").touch()
    Path("s").mkdir()
    runs, tasks = stand_in(0, 1)
    with pytest.raises(UserError, match="--slurm: sbatch: error: invalid partition"):
        slurm.run_on_slurm(executor_factory({}, None), Path("s"), runs, tasks)
    assert not Path("s/slurm/jobs.json").exists()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("--partition=gpu", {"partition": "gpu"}),
        ("--gres=gpu:a100:2  --exclusive", {"gres": "gpu:a100:2", "exclusive": True}),
        ("--comment='a b' --mem=32G", {"comment": "a b", "mem": "32G"}),
        ("--export=ALL,A=b", {"export": "ALL,A=b"}),
    ],
)
def test_options(text, options):
    assert parse_options(text) == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-p gpu", "-p: use the long form of sbatch options"),
        ("--partition gpu", "gpu: use the long form"),
        ("partition=gpu", "partition=gpu: use the long form"),
        ("--comment='a", "No closing quotation"),
        ("--partition=", "--partition=: use the long form"),
        *(
            (f"--{name}=2", f"--{name} is set by the sweep")
            for name in ("nodes", "ntasks", "array", "signal")
        ),
        ("--no-requeue", "--no-requeue is set by the sweep"),
    ],
)
def test_options_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_options(text)


def test_without_submitit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'diffenc\[slurm\]'"):
        executor_factory({}, None)


def test_away_from_a_cluster_it_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="srun not found"):
        executor_factory({}, None)


def test_the_sweeps_flag(folder):
    put(folder / "bin", "srun", "")
    own = ["--gin_file=gin/quickstart.gin"]
    for flags, function, first in (
        ([], execution.run_locally, 1),
        (["--jobs=2"], execution.run_locally, 2),
        (["--slurm", "--jobs=2"], slurm.run_on_slurm, None),
    ):
        place: Any = select_executor(sweep.parse_args([*own, *flags]), Path("s"))
        assert place.func is function
        assert first is None or place.args == (first,)
    with pytest.raises(UserError, match="use the long form of sbatch options"):
        select_executor(sweep.parse_args([*own, "--slurm=-p gpu"]), Path("s"))
