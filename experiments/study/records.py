"""What is kept of a run of the study, and what the tables read from it besides its evaluation."""

import json
import math
import os
import re
from collections.abc import Sequence
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np
from absl import logging

from diffenc.checkpoint import meta
from diffenc.checkpoint.checkpoints import FOLDER
from diffenc.config.serialize import config_hash
from diffenc.errors import UserError
from diffenc.evaluation.saved_records import parse_record, terms_by_pass
from diffenc.files import atomic, stores
from diffenc.files.record_checksum import write_record
from diffenc.tools.sweep.runs import Run, is_evaluated
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.provenance import ENVIRONMENT, parse_starts
from diffenc.workdir.writers import METRICS
from experiments.learned import Learned, LearnedChain, read_learned

LEARNED = "learned.json"
UNKNOWN = "not recorded"
RESTORE = "restore it from the repository, or make the run again in an empty folder"
ROW = ("step", "bpd", "steps_per_second")
POINTS = 41  # log-SNRs at which the path's noise is kept
WINDOW = 1_000  # steps, over which the slope of the training loss is fitted
PLACES = 6  # decimal places of what is kept


def check_record(run: Run) -> None:
    """Requires that the evaluation in a run's folder is whole, and of this run.

    Raises:
      UserError: it was changed, or is of another run.
    """
    file = run.workdir / "evaluation.json"
    record = parse_record(file.read_bytes(), file, RESTORE)
    if record.get("config_hash") != config_hash(run.experiment) or not is_evaluated(run):
        raise UserError(
            f"{file}: is not of the last step of this arm and seed, with the study's settings; {RESTORE}"
        )
    terms = file.with_suffix(".npz")
    if not terms.is_file():
        raise UserError(f"{terms}: is missing; {RESTORE}")
    if record["bpd"] is not None:  # that of a run that diverged
        terms_by_pass(terms.read_bytes(), record, terms)


def complete_record(workdir: Path, has_learned: bool) -> None:
    """Makes the record of an evaluated run fit to be kept in a repository, without its checkpoints.

    Args:
      has_learned: whether the run learns its path, its times or its variances, which are then kept.
    """
    omit_folders(workdir / CONFIG)
    steps = _checkpoints(workdir)
    if has_learned and steps and steps != list(kept_learned(workdir)):
        keep_learned(workdir, steps)


def _checkpoints(workdir: Path) -> list[int]:
    found = meta.list_checkpoints(stores.open_store(workdir / FOLDER))
    return sorted(name.step for name, committed in found.items() if committed)


def omit_folders(config: Path) -> None:
    """Leaves out where the files lie that a config was read from."""
    text = config.read_text(encoding="utf-8")
    shorter = re.sub(r"^(# Read from .*) \([~/].*; SHA", r"\1 (SHA", text, flags=re.MULTILINE)
    if shorter != text:
        atomic.write_text(config, shorter)


def keep_learned(workdir: Path, steps: Sequence[int]) -> None:
    """Writes the learned path and chain of checkpoints of a run to LEARNED."""
    found = []
    for step in steps:
        learned = read_learned(workdir, step, POINTS)
        values = {"log_snr": learned.log_snr, "eta_squared": learned.eta_squared}
        if learned.chain is not None:
            values |= {"stops": learned.chain.log_snr, "w": learned.chain.w}
        found.append({"step": step, **{key: np.round(each, PLACES).tolist() for key, each in values.items()}})
    write_record(workdir / LEARNED, {"checkpoints": found})
    logging.info("wrote %s", os.path.relpath(workdir / LEARNED))


def kept_learned(workdir: Path) -> dict[int, Learned]:
    """Returns the learned path and chain that were kept of a run, by step; none if nothing was kept.

    Raises:
      UserError: the file was changed.
    """
    file = workdir / LEARNED
    kept = parse_record(file.read_bytes(), file, RESTORE)["checkpoints"] if file.is_file() else []
    return {each["step"]: _learned({key: np.array(each[key]) for key in each}) for each in kept}


def _learned(values: dict[str, np.ndarray]) -> Learned:
    chain = LearnedChain(values["stops"], values["w"]) if "stops" in values else None
    return Learned(values["log_snr"], values["eta_squared"], chain)


def training_rows(workdir: Path) -> list[dict[str, float]]:
    """Returns the metrics of training, each the mean over the steps since the row before; not those of evaluations while it trains.

    Raises:
      UserError: there are none, or steps do not rise, or a value is missing or not finite.
    """
    file = workdir / METRICS
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if "steps_per_second" in row]
        steps, *values = np.array([[float(row[key]) for key in ROW] for row in rows]).T
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: no metrics of a training ({error}); {RESTORE}") from None
    if not (np.diff(steps, prepend=0) > 0).all() or not np.isfinite(values).all() or (values[1] <= 0).any():
        raise UserError(
            f"{file}: steps do not rise, or {ROW[1]} or {ROW[2]} is not that of a training; {RESTORE}"
        )
    return rows


def training_slope(workdir: Path) -> float:
    """Returns by how many bits/dim the loss of training batches rises in 100 steps: least squares over the last WINDOW steps.

    NaN of a run with a single row there.
    """
    steps, losses = np.array([(row["step"], row["bpd"]) for row in training_rows(workdir)]).T
    last = steps > steps[-1] - WINDOW  # a row is the mean since the row before
    if last.sum() < 2:
        return math.nan
    return float(100 * np.polyfit(steps[last], losses[last], 1)[0])


def mean_losses(workdir: Path) -> tuple[float, float]:
    """Returns the mean loss of training batches, bits/dim, over the first and over the last WINDOW steps; NaN without a row there."""
    rows = training_rows(workdir)
    steps, losses = np.array([(row["step"], row["bpd"]) for row in rows]).T
    weights = np.diff(steps, prepend=0)  # a row is the mean since the row before
    parts = steps <= WINDOW, steps > steps[-1] - WINDOW
    first, last = (
        float(np.average(losses[part], weights=weights[part])) if part.any() else math.nan for part in parts
    )
    return first, last


def training_hours(workdir: Path) -> float:
    """Returns how long a run trained, from its steps per second; without compilation and evaluation."""
    rows = training_rows(workdir)
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(sum(steps / [row["steps_per_second"] for row in rows])) / 3600


def code_history(workdir: Path) -> str:
    """Returns the commits of diffenc that trained a run, as `A to step 1,000, then B`; a + marks changes without commit.

    Raises:
      UserError: the file was changed.
    """
    file = workdir / ENVIRONMENT
    starts = parse_starts(parse_record(file.read_bytes(), file, RESTORE)) if file.is_file() else []
    commits = [(_shorten(start.get("commit")), start["step"]) for start in starts]
    # A run that goes on has a new entry for other packages too.
    changes = [next(same) for _, same in groupby(commits, itemgetter(0))]
    ends = (f" to step {step:,}" for _, step in changes[1:])
    return (
        ", then ".join(commit + end for (commit, _), end in zip_longest(changes, ends, fillvalue=""))
        or UNKNOWN
    )


def _shorten(commit: str | None) -> str:
    return UNKNOWN if commit is None else commit[:9] + "+" * commit.endswith("+")
