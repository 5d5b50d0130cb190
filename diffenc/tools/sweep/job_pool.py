"""A pool of subprocesses on this machine: several jobs at a time, each on its share of cores or GPUs."""

import itertools
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from absl import logging

from diffenc.errors import UserError
from diffenc.runtime.gpus import visible_gpus
from diffenc.runtime.parent_death import tie_to_parent
from diffenc.runtime.progress import format_duration
from diffenc.runtime.signals import Interrupted, SignalQueue

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 60.0  # between two progress reports


class Job(NamedTuple):
    """Commands to run in sequence.

    Attributes:
      log: file to which their standard output and error are appended.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path


class Share(NamedTuple):
    """A share of the machine for one job. `cores`: CPU affinity, empty for all; `env`: the environment."""

    cores: frozenset[int]
    env: dict[str, str]


OnJobEnd = Callable[[str, int, float], None]  # name, exit status of the last command, seconds


class RunningJob:
    """A job in progress: its commands run in sequence, the first from the start."""

    def __init__(self, job: Job, share: Share):
        self.job, self.share = job, share
        self.started_at = time.monotonic()
        self._remaining = deque(job.commands)
        self._status_if_cut_short = 0
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = job.log.open("ab")
        self._start_next()

    def poll(self) -> int | None:
        """Starts the next command when one has ended; returns the exit status at the end, 128 + N for signal N."""
        status = self._process.poll()
        if status is None:
            return None
        if status == 0 and self._remaining:
            self._start_next()
            return None
        self._file.close()
        return (status if status >= 0 else 128 - status) or self._status_if_cut_short

    def send(self, signum: int) -> None:
        """Sends a signal to the current command, and drops the commands not yet started."""
        # Even if the current command ends with status 0, the job is unfinished when commands were dropped.
        self._status_if_cut_short = 128 + signum if self._remaining else 0
        self._remaining.clear()
        self._process.send_signal(signum)

    def kill(self) -> None:
        """Kills the current command and waits for its end."""
        self._process.kill()
        self._process.wait()

    def _start_next(self) -> None:
        # In a process group of its own, so that Ctrl-C in the terminal reaches the command only once, through `send`.
        self._process = subprocess.Popen(
            tie_to_parent(self._remaining.popleft(), self.share.cores), env=self.share.env, stdin=subprocess.DEVNULL,
            stdout=self._file, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip


def read_last_line(log: Path) -> str:
    """Returns the last line of a log that is not blank; empty if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        # The end alone: logs of long runs may be large.
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def run_jobs(
    jobs: Sequence[Job], shares: Sequence[Share], on_end: OnJobEnd, signals: SignalQueue | None = None
) -> None:
    """Runs all jobs, as many at a time as there are `shares`; a job that fails does not stop the others.

    The first SIGTERM or Ctrl-C is forwarded to the running jobs; a second one kills them.

    Args:
      signals: collects the signals; by default a new `SignalQueue`.

    Raises:
      Interrupted: a signal was received, and no job runs any more.
    """
    waiting, free, running = deque(jobs), deque(shares), list[RunningJob]()
    reported_at, stopped_by = time.monotonic(), 0
    with signals or SignalQueue() as signals:
        try:
            while running or (waiting and not stopped_by):
                # A polling loop: one thread handles subprocesses, signals and progress.
                while waiting and free and not stopped_by:
                    running.append(RunningJob(waiting.popleft(), free.popleft()))
                time.sleep(POLL_SECONDS)
                for signum in signals.take():
                    for job in running:
                        job.kill() if stopped_by else job.send(signum)
                    stopped_by = signum
                running = [job for job in running if not _release_if_ended(job, free, on_end)]
                if time.monotonic() - reported_at > PROGRESS_SECONDS:
                    reported_at = time.monotonic()
                    _log_progress(running, len(waiting))
        # Also on an exception: no job outlives the pool.
        finally:
            for job in running:
                job.kill()
    if stopped_by:
        raise Interrupted(stopped_by)


def _release_if_ended(running: RunningJob, free: deque[Share], on_end: OnJobEnd) -> bool:
    status = running.poll()
    if status is None:
        return False
    free.append(running.share)
    on_end(running.job.name, status, time.monotonic() - running.started_at)
    return True


def _log_progress(running: Sequence[RunningJob], num_waiting: int) -> None:
    for one in running:
        elapsed = format_duration(time.monotonic() - one.started_at)
        logging.info("%s, for %s: %s", one.job.name, elapsed, read_last_line(one.job.log))
    if num_waiting:
        logging.info("%d waiting", num_waiting)


def split_machine(count: int, env: dict[str, str] | None = None) -> list[Share]:
    """Divides the GPUs of this machine, or else its cores, into `count` shares as evenly as possible.

    Raises:
      UserError: there are fewer GPUs, or fewer cores, than shares.
    """
    env = dict(os.environ if env is None else env)
    gpus = visible_gpus(env)
    if gpus:
        _require_enough(count, len(gpus), "GPUs")
        parts = ([*gpus[first::count]] for first in range(count))
        return [Share(frozenset(), env | {"CUDA_VISIBLE_DEVICES": ",".join(part)}) for part in parts]
    if count == 1 or not hasattr(os, "sched_setaffinity"):
        return [Share(frozenset(), env) for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    _require_enough(count, len(cores), "cores")
    bounds = [len(cores) * number // count for number in range(count + 1)]
    return [Share(frozenset(cores[first:last]), env) for first, last in itertools.pairwise(bounds)]


def _require_enough(count: int, available: int, unit: str) -> None:
    if count > available:
        raise UserError(f"--jobs={count}: this machine has {available} {unit}; use at most {available}")
