"""The diffusion loss over λ, measured as by --mode=diagnose."""

import json
from pathlib import Path

from diffenc.config.settings import Diagnose
from diffenc.evaluation import diagnose, plots
from diffenc.evaluation.batches import resolve_batch_size, select_images
from diffenc.evaluation.evaluation_record import image_metadata, pass_metadata, run_metadata
from diffenc.files import atomic, record_checksum
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record
from diffenc.workdir import loss_curves


def loss_metadata(subject: FigureInputs) -> Record:
    """Returns all inputs that the loss depends on."""
    experiment, settings = subject.experiment, _settings(subject)
    model, dataset = experiment.model, experiment.dataset
    return {
        **image_metadata(dataset, model, settings.split, len(select_images(dataset, settings))),
        **pass_metadata(settings),
        **run_metadata(experiment),
        "step": subject.step,
        "bins": settings.bins,
    }


def measure_loss(subject: FigureInputs) -> FigureRecord:
    """Returns diagnostics/loss.json if it has the same metadata; else measures the loss without changing that file."""
    metadata, experiment = loss_metadata(subject), subject.experiment
    record = read_loss_record(loss_curves.curve_path(subject.workdir), metadata)
    if record is None:
        measured = diagnose.loss_record(
            experiment.model, experiment.dataset, _settings(subject), subject.mesh, subject.params
        )
        record = measured | metadata
    return FigureRecord(record)


def read_loss_record(file: Path, metadata: Record) -> Record | None:
    """Returns the record in `file`, if it is intact and has this metadata."""
    record = record_checksum.read_intact(file)
    if record is None or not isinstance(record.get("loss"), list):
        return None
    record["bins"] = len(record["loss"])
    # Through JSON and back, like the stored record: tuples become lists, NaN null.
    as_stored = json.loads(atomic.to_json(metadata))
    return record if as_stored == {key: record.get(key) for key in as_stored} else None


def plot_loss(data: FigureRecord, title: str) -> plots.Figure:
    """Plots the loss per unit of log-SNR. `title` is not used: the record has one of its own."""
    return diagnose.plot_loss(data.record)


def _settings(subject: FigureInputs) -> Diagnose:
    return resolve_batch_size(subject.experiment.diagnose, subject.experiment.batch_size)
