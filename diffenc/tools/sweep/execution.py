"""Execution of the unfinished tasks of a sweep's runs."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from absl import logging

from diffenc.errors import UserError
from diffenc.runtime.progress import format_duration
from diffenc.tools.sweep.job_pool import Job, run_jobs, split_machine
from diffenc.tools.sweep.runs import TASKS, Run, Task, make_runs, remaining_modes
from diffenc.tools.sweep.variants import Variant
from diffenc.workdir import claim

Execute = Callable[[Sequence[Run], Sequence[Task]], None]


def run_sweep(
    folder: Path,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    tasks: Sequence[Task] = TASKS,
    execute: Execute | None = None,
) -> list[Run]:
    """Executes `tasks` for every variant with every seed, skipping those already done; returns all runs.

    A run that fails does not stop the others; `require_done` raises for it afterwards.

    Args:
      folder: the sweep's folder; created if absent.
      execute: executes the runs that are not done; by default one at a time on this machine.

    Raises:
      UserError: a config is invalid, or another process is using `folder`; nothing was run.
      Interrupted: SIGTERM or Ctrl-C was received; runs in training have saved a checkpoint.
    """
    runs = make_runs(folder, variants, seeds)
    # Pending runs are determined under the lock: otherwise two sweeps in one folder would start the same runs.
    with claim.claim(folder, "--output"):
        # From the files on disk, not from a record of earlier
        # calls: a run is done if its results are there.
        pending = [run for run in runs if remaining_modes(run, tasks)]
        logging.info("%d of %d runs are done, in %s", len(runs) - len(pending), len(runs), folder)
        if pending:
            (execute or partial(run_locally, 1))(pending, tasks)
    return runs


def run_locally(jobs: int, runs: Sequence[Run], tasks: Sequence[Task]) -> None:
    """Executes the runs on this machine, `jobs` at a time."""
    num_ended = 0

    def log_end(name: str, status: int, seconds: float) -> None:
        nonlocal num_ended
        num_ended += 1
        outcome = "done" if status == 0 else f"ended with status {status}"
        logging.info(
            "%s %s after %s, %d of %d", name, outcome, format_duration(seconds), num_ended, len(runs)
        )

    pending = [
        Job(str(run), [run.command(mode) for mode in remaining_modes(run, tasks)], run.log) for run in runs
    ]
    run_jobs(pending, split_machine(jobs), log_end)


def require_done(runs: Sequence[Run], tasks: Sequence[Task] = TASKS) -> None:
    """Raises UserError, with the last error of each, if runs are not done."""
    failed = [run for run in runs if remaining_modes(run, tasks)]
    if failed:
        errors = "; ".join(f"{run}: {run.last_error()}" for run in failed)
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; rerun the same command to retry them: {errors}"
        )
