"""slurm.sbatch as it stands, run by bash; srun, scancel, scontrol and python are stand-ins on PATH."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "experiments" / "launch" / "slurm.sbatch"

# Starts two tasks of what follows its own options, and ends as the worse of them.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> "$LOG/srun"; shift; done
pids=()
for k in 0 1; do SLURM_PROCID=$k "$@" & pids+=($!); done
status=0
for pid in "${pids[@]}"; do wait "$pid"; one=$?; (( one > status )) && status=$one; done
exit $status
"""
# A task: notes what it was called with; waits to be told its exit status.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" > "$LOG/task$SLURM_PROCID"
for _ in {1..1000}; do [[ -f $LOG/status ]] && break; sleep 0.02; done
exit "$(cat "$LOG/status")"
"""
# --signal=TERM of a job goes to its tasks: they save, and end as told.
SCANCEL = """#!/bin/bash
echo "$@" >> "$LOG/scancel"
sleep 0.3
echo 143 > "$LOG/status"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$LOG/scontrol"
"""


class Job:
    """The script under way."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        programs = {"srun": SRUN, "python": PYTHON, "scancel": SCANCEL, "scontrol": SCONTROL}
        (folder / "bin").mkdir()
        for name, text in programs.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        env = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(folder), "SLURM_JOB_ID": "77"}
        env["SLURM_CPUS_PER_TASK"] = "3"
        self.process = subprocess.Popen(["bash", SCRIPT, *arguments], env=env)
        while not all((folder / f"task{k}").exists() for k in range(2)):
            time.sleep(0.01)

    def end_tasks(self, status):
        (self.folder / "status").write_text(f"{status}\n")

    def wait(self):
        return self.process.wait(timeout=20)

    def said(self, program):
        file = self.folder / program
        return file.read_text().splitlines() if file.exists() else []


def test_every_task_runs_the_command_as_it_was_given(tmp_path):
    given = ["--gin_file=gin/quickstart.gin", "--gin_bindings=a.b = 'two  words'", "--workdir=/x y"]
    job = Job(tmp_path, *given)
    job.end_tasks(0)
    assert job.wait() == 0
    for k in range(2):
        assert job.said(f"task{k}") == ["-m", "diffenc.run", *given]
    assert set(job.said("srun")) == {"--cpus-per-task=3", "--kill-on-bad-exit=0", "--wait=90"}
    assert job.said("scontrol") == job.said("scancel") == []


def test_when_time_is_nearly_up_the_run_saves_and_the_job_is_requeued(tmp_path):
    job = Job(tmp_path)
    job.process.send_signal(signal.SIGUSR1)
    assert job.wait() == 143
    assert job.said("scancel") == ["--signal=TERM 77"]
    assert job.said("scontrol") == ["requeue 77"]


@pytest.mark.parametrize("status", [143, 138])
def test_a_preempted_run_is_requeued(tmp_path, status):
    """Slurm tells the tasks alone: by SIGTERM, or as with --signal=USR1 on the command line."""
    job = Job(tmp_path)
    job.end_tasks(status)
    assert job.wait() == status
    assert job.said("scontrol") == ["requeue 77"]


def test_a_cancelled_run_is_not(tmp_path):
    """Slurm tells the script too. It waits until the run has saved."""
    job = Job(tmp_path)
    for _ in range(3):
        job.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert job.process.poll() is None
    job.end_tasks(143)
    assert job.wait() == 143
    assert job.said("scontrol") == []


@pytest.mark.parametrize("status", [1, 134])
def test_a_run_that_failed_is_not_either(tmp_path, status):
    job = Job(tmp_path)
    job.end_tasks(status)
    assert job.wait() == status
    assert job.said("scontrol") == []


def test_what_slurm_reads_of_it():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    assert options["signal"] == "B:USR1@120"
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # a process has the GPU of its own number
    assert {"nodes", "time", "output"} <= set(options)


def test_slurm_stops_reading_options_at_the_first_command():
    lines = SCRIPT.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
