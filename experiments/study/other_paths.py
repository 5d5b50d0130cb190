"""Trained networks measured on another path than that of their training: what a path does to the bound of the same network."""

import dataclasses
from typing import Any

from diffenc.files.record_checksum import write_record
from diffenc.tools.sweep.runs import Run, is_trained
from experiments.evaluate_copy import evaluate_copy
from experiments.study.parts import OtherPath, Part


def measure_other_paths(part: Part, runs: list[Run]) -> None:
    """Measures those of a part's runs that were trained here on the other paths that it names, as far as they are missing."""
    for other in part.other_paths:
        for run in runs:
            record = run.workdir / f"{other.record_name}.json"
            if run.variant.name == other.arm and not record.exists() and is_trained(run):
                write_record(record, _measure(run, other))


def _measure(run: Run, other: OtherPath) -> dict[str, Any]:
    settings = dataclasses.replace(run.experiment.evaluate, stochasticity=other.path)
    return evaluate_copy(dataclasses.replace(run.experiment, evaluate=settings), run.workdir)
