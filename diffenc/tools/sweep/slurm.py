"""Execution of a sweep's runs as jobs of a Slurm cluster, one each, through submitit.

Jobs continue without the program that submitted them. OUTPUT/slurm/jobs.json maps each run to the id of its job; the
other files there (scripts, pickles, Slurm's logs) are submitit's.
"""

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.runtime.signals import Interrupted, SignalQueue
from diffenc.tools.sweep.job_pool import Job, read_last_line, run_jobs, split_machine
from diffenc.tools.sweep.runs import Run, Task, remaining_modes

if TYPE_CHECKING:
    import submitit

DEFAULT_MINUTES = 24 * 60  # time limit of a job, unless the options set one
SAVE_SECONDS = 120  # before the time limit, when Slurm sends SIGTERM
QUERY_SECONDS = 10.0  # between two queries of the queue
PROGRESS_SECONDS = 60.0  # between two progress reports
POLL_SECONDS = 0.2  # between two checks for Ctrl-C
RESERVED_OPTIONS = (
    *("array", "error", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"),
    *("parsable", "signal", "wrap"),
)  # options of sbatch that this module or submitit sets
SETUP_COMMANDS = (
    "export SUBMITIT_PREEMPT_SIGNAL=TERM",  # the one signal for cancellation, preemption and the time limit
    "if [[ $SLURM_CPUS_PER_TASK ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi",  # not inherited by srun
)

# Slurm sends SIGTERM to all processes of a job, or to the first alone, and again while a run saves. So the run ignores
# SIGTERM, and `SlurmJob` forwards a single SIGINT instead.
IGNORE_SIGTERM = ("sh", "-c", "trap '' TERM; exec \"$@\"", "sh")

Options = Mapping[str, str | bool]
MakeExecutor = Callable[[Path], "submitit.Executor"]  # of the folder that submitit writes to


def parse_options(text: str) -> dict[str, str | bool]:
    """Parses options of sbatch, such as `--partition=gpu --time=24:00:00`; True for an option without a value.

    Raises:
      UserError: an option is not in the long form with "=", or the sweep sets it.
    """
    options: dict[str, str | bool] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--slurm={text}: {error}") from error
    for word in words:
        match = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.+))?", word, re.DOTALL)
        if not match:
            raise UserError(
                f"--slurm: {word}: use the long form of sbatch options, e.g. --slurm='--partition=gpu'"
            )
        if match[1] in RESERVED_OPTIONS:
            raise UserError(f"--slurm: --{match[1]} is set by the sweep: leave it out")
        options[match[1]] = match[2] or True
    return options


def executor_factory(options: Options, max_jobs: int | None) -> MakeExecutor:
    """Returns a function that makes executors which submit to Slurm.

    Args:
      max_jobs: maximal number of jobs of the sweep that run at a time; None for no limit.

    Raises:
      UserError: submitit is not installed, or this machine does not belong to a Slurm cluster.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--slurm needs submitit: pip install 'diffenc[slurm]'") from error
    if submitit.SlurmExecutor.affinity() < 0:
        raise UserError("--slurm: srun not found; run this command on a login node of the cluster")
    own = {"requeue": True, "signal": f"TERM@{SAVE_SECONDS}"}

    def make(folder: Path) -> submitit.Executor:
        # By default submitit requeues a job after a limited number of timeouts; a run may need any number.
        executor = submitit.SlurmExecutor(folder, max_num_timeout=sys.maxsize)
        executor.update_parameters(
            job_name="diffenc", time=DEFAULT_MINUTES, setup=[*SETUP_COMMANDS], stderr_to_stdout=True,
            array_parallelism=max_jobs or sys.maxsize, additional_parameters={**own, **options},
        )  # fmt: skip
        return executor

    return make


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """A job that executes the tasks of one run. On SIGTERM the run saves a checkpoint, and the job is requeued."""

    run: Run
    tasks: Sequence[Task]

    def __call__(self) -> None:
        statuses = [0]
        commands = [
            [*IGNORE_SIGTERM, *self.run.command(mode)] for mode in remaining_modes(self.run, self.tasks)
        ]
        jobs = [Job(str(self.run), commands, self.run.log)] if commands else []
        try:
            run_jobs(
                jobs, split_machine(1), lambda name, status, seconds: statuses.append(status), FirstSignal()
            )
        except Interrupted:
            _requeue()
        sys.exit(statuses[-1])

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Returns the call that submitit makes when the job is requeued."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class FirstSignal(SignalQueue):
    """Passes on the first signal alone, as SIGINT: Slurm may send several for one preemption, and the run needs one."""

    def __init__(self):
        super().__init__()
        self._taken = False

    def take(self) -> list[int]:
        first = super().take()[:1] if not self._taken else []
        self._taken |= bool(first)
        return [signal.SIGINT for _ in first]


def _requeue() -> None:
    """Ends this job and has Slurm start it again, unless it was cancelled."""
    import submitit

    # A job in another state, such as a cancelled one, must not come back.
    if query_queue().get(submitit.JobEnvironment().job_id) == "RUNNING":
        signal.raise_signal(
            signal.SIGTERM
        )  # for submitit's handler, which is installed again: it requeues and exits


def query_queue() -> dict[str, str]:
    """Returns the state (PENDING, RUNNING, COMPLETING, ...) of each queued job of this user, by id.

    Raises:
      UserError: squeue fails.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise UserError(
            f"squeue: {error.strerror}; run this command on a login node of the cluster"
        ) from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue: {' '.join(error.stderr.split())}") from error
    return dict(line.split() for line in output.splitlines())


def run_on_slurm(make: MakeExecutor, folder: Path, runs: Sequence[Run], tasks: Sequence[Task]) -> None:
    """Submits a job for each run, unless an earlier call has one in the queue, and waits for all of them.

    Args:
      folder: the sweep's folder.

    Raises:
      UserError: Slurm rejects the jobs.
      Interrupted: SIGTERM or Ctrl-C was received; the jobs continue.
    """
    with (
        SignalQueue() as signals
    ):  # held back, so that none comes between the submission and the write of jobs.json
        jobs = _submit_missing(make, folder / "slurm" / "jobs.json", runs, tasks)
        try:
            _wait(jobs, folder / "slurm", tasks, signals)
        except Interrupted:
            ids = _array_ids(job_id for _, job_id in jobs)
            logging.info(
                "the jobs continue; rerun the same command to wait for them, or end them: scancel %s", ids
            )
            raise


def _submit_missing(
    make: MakeExecutor, file: Path, runs: Sequence[Run], tasks: Sequence[Task]
) -> list[tuple[Run, str]]:
    """Returns each run with the id of its job, after submitting the runs without a job; `file` records the ids."""
    # A job counts only while it is in the queue: ids of jobs that ended stay in the file.
    known, queued = _read_job_ids(file), query_queue()
    jobs = {str(run): known[str(run)] for run in runs if known.get(str(run)) in queued}
    if jobs:
        logging.info("%d of %d runs have jobs since an earlier call", len(jobs), len(runs))
    new = [run for run in runs if str(run) not in jobs]
    if new:
        ids = _submit(make(file.parent), [SlurmJob(run, tasks) for run in new])
        jobs |= dict(zip(map(str, new), ids, strict=True))
        atomic.write_json(file, known | jobs)
        logging.info("%d runs submitted: %s", len(new), _array_ids(ids))
    return [(run, jobs[str(run)]) for run in runs]


def _read_job_ids(file: Path) -> dict[str, str]:
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise UserError(
            f"{file} is not valid JSON: scancel the jobs of this sweep, then delete the file"
        ) from error


def _submit(executor: "submitit.Executor", calls: Sequence[SlurmJob]) -> list[str]:
    """Submits the calls as one array; returns the ids of their jobs."""
    from submitit.core.utils import FailedJobError

    try:
        return [job.job_id for job in executor.submit_array(calls)]
    except FailedJobError as error:
        raise UserError(f"--slurm: {' '.join(str(error).split())}") from error


def _array_ids(job_ids: Iterable[str]) -> str:
    """Returns the ids without indices within arrays: `12 15` for `12_0`, `12_1` and `15`."""
    return " ".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))


def _wait(jobs: Sequence[tuple[Run, str]], folder: Path, tasks: Sequence[Task], signals: SignalQueue) -> None:
    """Waits until none of the jobs is in the queue; logs the outcome of each, and periodically the states of the others."""
    queued, reported_at = [*jobs], time.monotonic()
    states = dict.fromkeys((job_id for _, job_id in jobs), "PENDING")
    while queued:
        _sleep(signals)
        # A failing squeue must not look like an empty queue, at which all jobs would count as ended.
        states = _query_or_keep(states)
        for run, job_id in [job for job in queued if job[1] not in states]:
            queued.remove((run, job_id))
            outcome = _describe_end(run, job_id, folder, tasks)
            logging.info("%s, %d of %d", outcome, len(jobs) - len(queued), len(jobs))
        if time.monotonic() - reported_at > PROGRESS_SECONDS:
            reported_at = time.monotonic()
            _log_states([(run, states[job_id]) for run, job_id in queued])


def _sleep(signals: SignalQueue) -> None:
    """Sleeps for QUERY_SECONDS. Raises Interrupted if a signal is received."""
    deadline = time.monotonic() + QUERY_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        for signum in signals.take():
            raise Interrupted(signum)


def _query_or_keep(before: dict[str, str]) -> dict[str, str]:
    """Returns `query_queue()`, or the states `before`, with a warning, if the query fails."""
    try:
        return query_queue()
    except UserError as error:
        logging.warning("%s", error)
        return before


def _describe_end(run: Run, job_id: str, folder: Path, tasks: Sequence[Task]) -> str:
    """Returns the outcome of a run after its job has left the queue."""
    if not remaining_modes(run, tasks):
        return f"{run} done"
    return f"{run} failed: {run.last_error()} (log of its job: {folder / f'{job_id}_0_log.out'})"


def _log_states(jobs: Sequence[tuple[Run, str]]) -> None:
    counts = Counter(state.lower() for _, state in jobs)
    logging.info("jobs: %s", ", ".join(f"{count} {state}" for state, count in counts.items()))
    for run, state in jobs:
        if state == "RUNNING":
            logging.info("%s: %s", run, read_last_line(run.log))
