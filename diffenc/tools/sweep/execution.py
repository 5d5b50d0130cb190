"""The runs of a sweep, brought through what they lack."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from absl import logging

from diffenc.errors import UserError
from diffenc.runtime.progress import format_duration
from diffenc.tools.sweep.job_pool import Job, shares, work_through
from diffenc.tools.sweep.runs import TASKS, Run, Task, left, runs_of
from diffenc.tools.sweep.variants import Variant
from diffenc.workdir import claim

Execute = Callable[[Sequence[Run], Sequence[Task]], None]


def perform(
    folder: Path,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    tasks: Sequence[Task] = TASKS,
    execute: Execute | None = None,
) -> list[Run]:
    """Bring every variant, with every seed, through `tasks`, and run nothing that is done; returns all runs.

    One that fails does not stop the others: see `check_done`.

    Args:
      folder: of the sweep; made if need be.
      execute: runs those that are not done, by default one after the other on this machine.

    Raises:
      UserError: a config is at fault, or another process works in `folder`; then nothing was run.
      Interrupted: SIGTERM or Ctrl-C came; runs in training are saved.
    """
    runs = runs_of(folder, variants, seeds)
    with claim.claim(folder, "--output"):
        missing = [run for run in runs if left(run, tasks)]
        logging.info("%d of %d runs are done, in %s", len(runs) - len(missing), len(runs), folder)
        if missing:
            (execute or partial(here, 1))(missing, tasks)
    return runs


def here(jobs: int, runs: Sequence[Run], tasks: Sequence[Task]) -> None:
    """On this machine, `jobs` at a time."""
    ended = 0

    def say(name: str, status: int, seconds: float) -> None:
        nonlocal ended
        ended += 1
        how = "done" if status == 0 else f"ended with status {status}"
        logging.info("%s %s after %s, %d of %d", name, how, format_duration(seconds), ended, len(runs))

    each = [Job(str(run), [run.command(mode) for mode in left(run, tasks)], run.log) for run in runs]
    work_through(each, shares(jobs), say)


def check_done(runs: Sequence[Run], tasks: Sequence[Task] = TASKS) -> None:
    """Raise UserError, with what each wrote last, if runs are not done."""
    failed = [run for run in runs if left(run, tasks)]
    if failed:
        told = "; ".join(f"{run}: {run.failure()}" for run in failed)
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the same command tries them again: {told}"
        )
