"""Evaluates a run without a trace in its workdir, whose newest evaluation is that which reports and tables take."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffenc.checkpoint.checkpoints import FOLDER as CHECKPOINTS
from diffenc.config.experiment import Experiment
from diffenc.evaluation.commands import evaluate

NOT_NEEDED = shutil.ignore_patterns(
    CHECKPOINTS, "export", "bounds", "samples", "figures", "plugins", "compress*", "evaluation*", "events*", ".lock"
)  # fmt: skip


def evaluate_copy(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Returns the record of an evaluation of the run in `workdir`, measured in a copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(workdir, Path(folder, workdir.name), ignore=NOT_NEEDED)
        (copy / CHECKPOINTS).symlink_to((workdir / CHECKPOINTS).resolve())  # large, and only read
        return evaluate(experiment, copy)
