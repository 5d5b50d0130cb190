"""What is kept of a run of the study, and what the tables read from it besides its evaluation."""

import json
import os
import re
from pathlib import Path

import numpy as np
from absl import logging

from diffenc.files import atomic
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.provenance import ENVIRONMENT
from diffenc.workdir.writers import METRICS
from experiments.learned import Learned, LearnedChain, read_learned

CHECKPOINTS = "checkpoints"
LEARNED = "learned.json"
POINTS = 41  # log-SNRs at which the path's noise is kept
PLACES = 6  # decimal places of what is kept, beyond those of float32


def complete_record(workdir: Path, has_learned: bool) -> None:
    """Makes the record of an evaluated run fit to be kept in a repository, without its checkpoints.

    Args:
      has_learned: whether the run learns its path, its times or its variances, which are then kept.
    """
    omit_folders(workdir / CONFIG)
    if has_learned and (workdir / CHECKPOINTS).is_dir() and not (workdir / LEARNED).exists():
        keep_learned(workdir)


def omit_folders(config: Path) -> None:
    """Leaves out where the files lie that a config was read from."""
    text = config.read_text(encoding="utf-8")
    shorter = re.sub(r"^(# Read from .*) \([~/].*; SHA", r"\1 (SHA", text, flags=re.MULTILINE)
    if shorter != text:
        atomic.write_text(config, shorter)


def keep_learned(workdir: Path) -> None:
    """Writes the learned path and chain of each checkpoint of a run to LEARNED."""
    found = []
    for step in sorted(
        int(folder.name) for folder in (workdir / CHECKPOINTS).iterdir() if folder.name.isdigit()
    ):
        learned = read_learned("", workdir, step, POINTS)
        values = {"log_snr": learned.log_snr, "eta_squared": learned.eta_squared}
        if learned.chain is not None:
            values |= {"stops": learned.chain.log_snr, "w": learned.chain.w}
        found.append({"step": step, **{key: np.round(each, PLACES).tolist() for key, each in values.items()}})
    atomic.write_text(workdir / LEARNED, json.dumps(found) + "\n")
    logging.info("wrote %s", os.path.relpath(workdir / LEARNED))


def kept_learned(workdir: Path, label: str) -> dict[int, Learned]:
    """Returns the learned path and chain that were kept of a run, by step; none if nothing was kept."""
    file = workdir / LEARNED
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return {each["step"]: _learned(label, {key: np.array(each[key]) for key in each}) for each in kept}


def _learned(label: str, values: dict[str, np.ndarray]) -> Learned:
    chain = LearnedChain(values["stops"], values["w"]) if "stops" in values else None
    return Learned(label, values["log_snr"], values["eta_squared"], chain)


def training_rows(workdir: Path) -> list[dict[str, float]]:
    """Returns the metrics of training, of every hundredth step; not those of evaluations while it trains."""
    lines = (workdir / METRICS).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "steps_per_second" in row]


def training_hours(workdir: Path) -> float:
    """Returns how long a run trained, from its steps per second; without compilation and evaluation."""
    rows = training_rows(workdir)
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(sum(steps / [row["steps_per_second"] for row in rows])) / 3600


def code_history(workdir: Path) -> str:
    """Returns the commits of diffenc that trained a run, as `A to step 1,000, then B`; a + marks changes without commit."""
    file = workdir / ENVIRONMENT
    if not file.is_file():
        return "not recorded"
    starts = json.loads(file.read_text(encoding="utf-8"))["starts"]
    commits = [_shorten(start.get("commit")) for start in starts]
    parts = [
        f"{commit} to step {later['step']:,}" for commit, later in zip(commits, starts[1:], strict=False)
    ]
    return ", then ".join([*parts, commits[-1]])


def _shorten(commit: str | None) -> str:
    return "not recorded" if commit is None else commit[:9] + "+" * commit.endswith("+")
