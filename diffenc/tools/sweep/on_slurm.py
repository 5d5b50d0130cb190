"""A sweep's runs as jobs of a Slurm cluster, one each, through submitit. They go on without the program that waits.

What is kept in OUTPUT/slurm: jobs.json says which job a run has; scripts, pickles and Slurm's own logs are submitit's.
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
from diffenc.tools.sweep.job_pool import Job, last_line, shares, work_through
from diffenc.tools.sweep.runs import Run, Task, left

if TYPE_CHECKING:
    import submitit

TIME = 24 * 60  # minutes of a job, unless options say otherwise
SAVE = 120  # seconds before its end in which a job is told
ASK = 10.0  # seconds between two questions to Slurm
TELL = 60.0  # seconds between two lines on how far the jobs are
POLL = 0.2  # seconds until Ctrl-C is heeded
CHOSEN = (
    *("array", "error", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output"),
    *("parsable", "signal", "wrap"),
)  # options of sbatch that this module and submitit rely on
SETUP = (
    "export SUBMITIT_PREEMPT_SIGNAL=TERM",  # one signal says all: cancelled, preempted, out of time
    "if [[ $SLURM_CPUS_PER_TASK ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi",  # srun forgets it
)

# Slurm sends SIGTERM to all processes of a job, or to the first alone, and again while a run saves.
SPARED = ("sh", "-c", "trap '' TERM; exec \"$@\"", "sh")

Options = Mapping[str, str | bool]
MakeExecutor = Callable[[Path], "submitit.Executor"]  # of the folder that submitit writes to


def parse_options(text: str) -> dict[str, str | bool]:
    """Options of sbatch as on its command line, `--partition=gpu --time=24:00:00`; True for one without a value.

    Raises:
      UserError: one is not in the long form with "=", or is the sweep's own to choose.
    """
    found: dict[str, str | bool] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--slurm={text}: {error}") from error
    for word in words:
        match = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.+))?", word, re.DOTALL)
        if not match:
            raise UserError(f"--slurm: {word}: give options of sbatch in full, as --slurm='--partition=gpu'")
        if match[1] in CHOSEN:
            raise UserError(f"--slurm: --{match[1]} is chosen by the sweep: leave it out")
        found[match[1]] = match[2] or True
    return found


def executor_of(options: Options, at_a_time: int | None) -> MakeExecutor:
    """Submits to Slurm; of one sweep `at_a_time` jobs may run, None for as many as Slurm starts.

    Raises:
      UserError: submitit is not installed, or this is no machine of a Slurm cluster.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--slurm takes submitit: pip install 'diffenc[slurm]'") from error
    if submitit.SlurmExecutor.affinity() < 0:
        raise UserError("--slurm: there is no srun here; call it where jobs are submitted")
    own = {"requeue": True, "signal": f"TERM@{SAVE}"}

    def make(folder: Path) -> submitit.Executor:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=sys.maxsize)
        executor.update_parameters(
            job_name="diffenc", time=TIME, setup=[*SETUP], stderr_to_stdout=True,
            array_parallelism=at_a_time or sys.maxsize, additional_parameters={**own, **options},
        )  # fmt: skip
        return executor

    return make


@dataclasses.dataclass(frozen=True)
class Follow:
    """What a job does: bring a run through its tasks, as on this machine. Saved when told to stop, and requeued."""

    run: Run
    tasks: Sequence[Task]

    def __call__(self) -> None:
        statuses = [0]
        commands = [[*SPARED, *self.run.command(mode)] for mode in left(self.run, self.tasks)]
        jobs = [Job(str(self.run), commands, self.run.log)] if commands else []
        try:
            work_through(
                jobs, shares(1), lambda name, status, seconds: statuses.append(status), FirstSignal()
            )
        except Interrupted:
            _requeue()
        sys.exit(statuses[-1])

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """What submitit runs when the job starts again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class FirstSignal(SignalQueue):
    """The first signal, as SIGINT, and no other: a run may have had the SIGTERM, and takes that for the same request."""

    def __init__(self):
        super().__init__()
        self._told = False

    def take(self) -> list[int]:
        first = super().take()[:1] if not self._told else []
        self._told |= bool(first)
        return [signal.SIGINT for _ in first]


def _requeue() -> None:
    """End this job, to be started again: unless it is told to stop because it was cancelled."""
    import submitit

    if queue().get(submitit.JobEnvironment().job_id) == "RUNNING":
        signal.raise_signal(signal.SIGTERM)  # submitit's own handler has it again, which requeues and exits


def queue() -> dict[str, str]:
    """The state of each job of this user that waits or runs, by id: PENDING, RUNNING, COMPLETING, ...

    Raises:
      UserError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise UserError(f"squeue: {error.strerror}; call it where jobs are submitted") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue: {' '.join(error.stderr.split())}") from error
    return dict(line.split() for line in said.splitlines())


def on_slurm(make: MakeExecutor, folder: Path, runs: Sequence[Run], tasks: Sequence[Task]) -> None:
    """As jobs of a cluster, one for each run; those of an earlier call that wait or run are not submitted again.

    Args:
      folder: of the sweep.

    Raises:
      UserError: Slurm refuses the jobs.
      Interrupted: SIGTERM or Ctrl-C came; the jobs go on.
    """
    with SignalQueue() as signals:  # none may come between the submission and the note of it
        jobs = _submitted(make, folder / "slurm" / "jobs.json", runs, tasks)
        try:
            _wait(jobs, folder / "slurm", tasks, signals)
        except Interrupted:
            arrays = _arrays(name for _, name in jobs)
            logging.info(
                "the jobs go on, and the same command waits for them; to end them: scancel %s", arrays
            )
            raise


def _submitted(
    make: MakeExecutor, file: Path, runs: Sequence[Run], tasks: Sequence[Task]
) -> list[tuple[Run, str]]:
    """Each run and the id of its job, of which `file` keeps note."""
    known, alive = _read(file), queue()
    jobs = {str(run): known[str(run)] for run in runs if known.get(str(run)) in alive}
    if jobs:
        logging.info("%d of %d runs have jobs since an earlier call", len(jobs), len(runs))
    new = [run for run in runs if str(run) not in jobs]
    if new:
        names = _submit(make(file.parent), [Follow(run, tasks) for run in new])
        jobs |= dict(zip(map(str, new), names, strict=True))
        atomic.write_json(file, known | jobs)
        logging.info("%d runs submitted: %s", len(new), _arrays(names))
    return [(run, jobs[str(run)]) for run in runs]


def _read(file: Path) -> dict[str, str]:
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file} is no JSON: scancel what runs of this sweep, and remove it") from error


def _submit(executor: "submitit.Executor", calls: Sequence[Follow]) -> list[str]:
    """The ids of their jobs."""
    from submitit.core.utils import FailedJobError

    try:
        return [job.job_id for job in executor.submit_array(calls)]
    except FailedJobError as error:
        raise UserError(f"--slurm: {' '.join(str(error).split())}") from error


def _arrays(names: Iterable[str]) -> str:
    """`12_0`, `12_1` and `15` are `12 15`."""
    return " ".join(dict.fromkeys(name.partition("_")[0] for name in names))


def _wait(jobs: Sequence[tuple[Run, str]], folder: Path, tasks: Sequence[Task], signals: SignalQueue) -> None:
    """Until none of them is in the queue any more; says how each ended, and now and then what the others do."""
    going, states, told = [*jobs], dict.fromkeys((name for _, name in jobs), "PENDING"), time.monotonic()
    while going:
        _pause(signals)
        states = _asked(states)
        for run, name in [each for each in going if each[1] not in states]:
            going.remove((run, name))
            logging.info("%s, %d of %d", _how(run, name, folder, tasks), len(jobs) - len(going), len(jobs))
        if time.monotonic() - told > TELL:
            told = time.monotonic()
            _tell([(run, states[name]) for run, name in going])


def _pause(signals: SignalQueue) -> None:
    """For ASK seconds. Raises Interrupted if a signal comes."""
    until = time.monotonic() + ASK
    while time.monotonic() < until:
        time.sleep(POLL)
        for signum in signals.take():
            raise Interrupted(signum)


def _asked(before: dict[str, str]) -> dict[str, str]:
    """`queue()`; what it was `before` while Slurm does not answer."""
    try:
        return queue()
    except UserError as error:
        logging.warning("%s", error)
        return before


def _how(run: Run, name: str, folder: Path, tasks: Sequence[Task]) -> str:
    """How it ended, now that its job is gone."""
    if not left(run, tasks):
        return f"{run} done"
    return f"{run} failed: {run.failure()} (its job: {folder / f'{name}_0_log.out'})"


def _tell(going: Sequence[tuple[Run, str]]) -> None:
    counts = Counter(state.lower() for _, state in going)
    logging.info("jobs: %s", ", ".join(f"{count} {state}" for state, count in counts.items()))
    for run, state in going:
        if state == "RUNNING":
            logging.info("%s: %s", run, last_line(run.log))
