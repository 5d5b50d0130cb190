"""Runs on this machine: several at a time, each on its share of it, the others in a queue."""

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
from diffenc.runtime.parent_death import tie_to_parent
from diffenc.runtime.progress import format_duration
from diffenc.runtime.signals import Interrupted, SignalQueue
from experiments.launch.local import visible_gpus

POLL = 0.2  # seconds between two looks
TELL = 60.0  # seconds between two lines on how far the runs are


class Job(NamedTuple):
    """Commands to be run one after the other.

    Attributes:
      log: the file that all they write is added to.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path


class Share(NamedTuple):
    """What of the machine a job gets."""

    cores: frozenset[int]
    env: dict[str, str]


Ended = Callable[[str, int, float], None]  # name, exit status of the last command, seconds


class RunningJob:
    """A job under way."""

    def __init__(self, job: Job, share: Share):
        self.job, self.share = job, share
        self.since = time.monotonic()
        self._left = deque(job.commands)
        self._cut_short = 0
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = job.log.open("ab")
        self._start_next()

    def ended(self) -> int | None:
        """The exit status once nothing of it runs or is to be run; 128 + N if signal N ended it."""
        status = self._process.poll()
        if status is None:
            return None
        if status == 0 and self._left:
            self._start_next()
            return None
        self._file.close()
        return (status if status >= 0 else 128 - status) or self._cut_short

    def send(self, signum: int) -> None:
        """To what runs; nothing more is started."""
        self._cut_short = 128 + signum if self._left else 0
        self._left.clear()
        self._process.send_signal(signum)

    def kill(self) -> None:
        """For when all else is lost: it is dead when this returns."""
        self._process.kill()
        self._process.wait()

    def _start_next(self) -> None:
        # in a process group of its own: the terminal's Ctrl-C reaches it through us alone
        self._process = subprocess.Popen(
            tie_to_parent(self._left.popleft(), self.share.cores), env=self.share.env, stdin=subprocess.DEVNULL,
            stdout=self._file, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip


def last_line(log: Path) -> str:
    """What was written to it last; empty if nothing was."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def work_through(
    jobs: Sequence[Job], shares: Sequence[Share], ended: Ended, signals: SignalQueue | None = None
) -> None:
    """Run all jobs, as many at a time as there are `shares`; one that fails does not stop the others.

    SIGTERM and Ctrl-C are passed on to what runs, once; a second one kills it.

    Args:
      signals: what gathers them.

    Raises:
      Interrupted: one of them came, and nothing runs any more.
    """
    waiting, free, going = deque(jobs), deque(shares), list[RunningJob]()
    told, stopped = time.monotonic(), 0
    with signals or SignalQueue() as signals:
        try:
            while going or (waiting and not stopped):
                while waiting and free and not stopped:
                    going.append(RunningJob(waiting.popleft(), free.popleft()))
                time.sleep(POLL)
                for signum in signals.take():
                    for each in going:
                        each.kill() if stopped else each.send(signum)
                    stopped = signum
                going = [each for each in going if not _finish(each, free, ended)]
                if time.monotonic() - told > TELL:
                    told = time.monotonic()
                    _tell(going, len(waiting))
        finally:
            for each in going:
                each.kill()
    if stopped:
        raise Interrupted(stopped)


def _finish(each: RunningJob, free: deque[Share], ended: Ended) -> bool:
    status = each.ended()
    if status is None:
        return False
    free.append(each.share)
    ended(each.job.name, status, time.monotonic() - each.since)
    return True


def _tell(going: Sequence[RunningJob], waiting: int) -> None:
    for each in going:
        spent = format_duration(time.monotonic() - each.since)
        logging.info("%s, for %s: %s", each.job.name, spent, last_line(each.job.log))
    if waiting:
        logging.info("%d waiting", waiting)


def shares(count: int, env: dict[str, str] | None = None) -> list[Share]:
    """This machine in `count` parts: GPUs where there are any, else cores, as evenly as they go.

    Raises:
      UserError: there are fewer GPUs, or fewer cores, than parts.
    """
    env = dict(os.environ if env is None else env)
    gpus = visible_gpus(env)
    if gpus:
        _enough(count, len(gpus), "GPUs")
        parts = ([*gpus[first::count]] for first in range(count))
        return [Share(frozenset(), env | {"CUDA_VISIBLE_DEVICES": ",".join(part)}) for part in parts]
    if count == 1 or not hasattr(os, "sched_setaffinity"):
        return [Share(frozenset(), env) for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    _enough(count, len(cores), "cores")
    edges = [len(cores) * number // count for number in range(count + 1)]
    return [Share(frozenset(cores[first:last]), env) for first, last in itertools.pairwise(edges)]


def _enough(count: int, there: int, what: str) -> None:
    if count > there:
        raise UserError(f"--jobs={count}: there are {there} {what}; take fewer")
