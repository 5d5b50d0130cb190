"""The diffusion loss against λ, as --mode=diagnose measures it."""

import json
from pathlib import Path

from diffenc.data.sources import subsample
from diffenc.evaluation import diagnose, plots
from diffenc.evaluation.evaluator import circumstances, image_metadata
from diffenc.files import atomic, record_checksum
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record
from diffenc.workdir import loss_curves


def loss_metadata(subject: FigureInputs) -> Record:
    experiment, settings = subject.experiment, subject.experiment.diagnose
    images = subsample(experiment.dataset.source(settings.split), settings.num_images, settings.seed)
    how = image_metadata(experiment, settings, len(images)) | circumstances(experiment, settings)
    return {**how, "step": subject.step, "bins": settings.bins}


def measure_loss(subject: FigureInputs) -> FigureRecord:
    """What diagnostics/loss.json says if it is of the same; else it is measured, and that file left alone."""
    wanted = loss_metadata(subject)
    record = read_loss_record(loss_curves.path(subject.workdir), wanted)
    return FigureRecord(
        record or diagnose.loss_record(subject.experiment, subject.mesh, subject.params) | wanted
    )


def read_loss_record(file: Path, wanted: Record) -> Record | None:
    """The record in `file`, if that is what `wanted` asks for."""
    record = record_checksum.read_intact(file)
    if record is None or not isinstance(record.get("loss"), list):
        return None
    record["bins"] = len(record["loss"])
    asked = json.loads(atomic.to_json(wanted))
    return record if asked == {key: record.get(key) for key in asked} else None


def plot_loss(numbers: FigureRecord, title: str) -> plots.Figure:
    return diagnose.plot_loss(numbers.record)
