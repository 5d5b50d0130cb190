"""--mode=figures: figures of a trained run, written to WORKDIR/figures/ as PNG and PDF with their data."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffenc.config.experiment import Experiment
from diffenc.data import sources
from diffenc.errors import UserError, nearest
from diffenc.evaluation import plots
from diffenc.evaluation.restore_params import restore_ema
from diffenc.files import atomic, record_checksum
from diffenc.parallel import collectives
from diffenc.parallel.distributed import is_main
from diffenc.parallel.sharding import data_mesh
from diffenc.safe_io import safe_npz
from diffenc.tools.figures import class_changes, encoded_images, loss, norms, samples, schedule, spectra
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record
from diffenc.workdir.mirror import display_name, on_local_copy

FOLDER = "figures"
MAX_BYTES = 1 << 30  # limit of the unpacked data of a figure


class FigureKind(NamedTuple):
    """A figure of any run.

    Attributes:
      measure: returns the figure's data.
      plot: (data, title) -> picture.
      metadata: all inputs of the data; data with unchanged metadata are not measured again.
    """

    measure: Callable[[FigureInputs], FigureRecord]
    plot: Callable[[FigureRecord, str], plots.Figure]
    metadata: Callable[[FigureInputs], Record] = lambda subject: subject.images_metadata


FIGURES: dict[str, FigureKind] = {
    "heat_maps": FigureKind(encoded_images.measure_heat_maps, encoded_images.plot_heat_maps),
    "encoded": FigureKind(encoded_images.measure_encoded_images, encoded_images.plot_encoded_images),
    "schedule": FigureKind(
        schedule.measure_schedule, schedule.plot_schedule, lambda subject: subject.model_metadata
    ),
    "spectra": FigureKind(spectra.measure_spectra, spectra.plot_spectra),
    "classes": FigureKind(class_changes.measure_class_changes, class_changes.plot_class_changes),
    "encoder_norms": FigureKind(norms.measure_norms, norms.plot_norms),
    "loss": FigureKind(loss.measure_loss, loss.plot_loss, loss.loss_metadata),
    "samples": FigureKind(samples.measure_samples, samples.plot_samples, samples.samples_metadata),
}


@on_local_copy
def figures(experiment: Experiment, workdir: Path) -> dict[str, Record]:
    """Writes WORKDIR/figures/NAME.{png,pdf,json}, and .npz where there are arrays; returns the main process's records.

    Raises:
      UserError: no such figure, image or checkpoint, or no run of this config in the workdir.
    """
    kinds = choose_figures(experiment.figures.only)
    mesh = data_mesh(experiment.mesh)
    params, step = restore_ema(experiment, workdir, mesh, experiment.evaluate.step)
    subject = FigureInputs(experiment, workdir, mesh, params, step)
    metadata = {name: kind.metadata(subject) for name, kind in kinds.items()}
    stored: dict[str, FigureRecord | None] = {}
    if is_main():
        stored = {name: read_figure(workdir / FOLDER / name, metadata[name]) for name in kinds}
    # measuring computes on the devices of all processes, so all must know which figures are missing
    missing = collectives.broadcast_int_list(
        index for index, name in enumerate(kinds) if not stored.get(name)
    )
    records = {}
    for index, (name, kind) in enumerate(kinds.items()):
        data = kind.measure(subject) if index in missing else stored.get(name)
        if data is not None and is_main():
            records[name] = publish_figure(workdir, name, kind, data, metadata[name])
    return records


def choose_figures(only: tuple[str, ...]) -> Mapping[str, FigureKind]:
    """Returns the figures of these names, in the order of FIGURES; all of them for no name.

    Raises:
      UserError: there is no such figure.
    """
    for name in only:
        if name not in FIGURES:
            near = nearest(name, FIGURES)
            raise UserError(
                f"figures.only: no figure is called {name!r}; nearest: {near}; there are {', '.join(FIGURES)}"
            )
    return {name: kind for name, kind in FIGURES.items() if name in only or not only}


def read_figure(target: Path, metadata: Record) -> FigureRecord | None:
    """Returns the data of the figure `target` (a path without suffix), if they are intact and have this metadata."""
    try:
        record = record_checksum.read_intact(target.with_suffix(".json"))
        if record is None:
            return None
        arrays = target.with_suffix(".npz").read_bytes() if record["npz"] else b""
    except (OSError, KeyError):
        return None
    # Through JSON and back, as the stored one has been: tuples become lists, NaN null.
    if record.get("of") != json.loads(atomic.to_json(metadata)) or record["npz"] != _digest(arrays):
        return None
    return FigureRecord(record, _read_arrays(arrays, target) if arrays else {})


def _read_arrays(data: bytes, target: Path) -> dict[str, np.ndarray]:
    return safe_npz.load(io.BytesIO(data), f"{target}.npz", None, MAX_BYTES)


def publish_figure(
    workdir: Path, name: str, kind: FigureKind, data: FigureRecord, metadata: Record
) -> Record:
    """Plots a figure and writes it with its data; returns the record, the content of its JSON."""
    arrays = atomic.encode_npz(data.arrays) if data.arrays else b""
    data = data._replace(record={**data.record, "of": metadata, "npz": _digest(arrays)})
    title = _title(metadata)
    note = data.record.get("note")
    figure = plots.make_statement(f"{title}: {name}", note) if note else kind.plot(data, title)
    text = atomic.to_json(record_checksum.with_checksum(data.record), indent=1) + "\n"
    files = {".json": text.encode(), ".npz": arrays}  # the first is replaced last: see `_write`
    files |= plots.render_files(figure)
    _write(workdir / FOLDER / name, files)
    if not arrays:
        (workdir / FOLDER / f"{name}.npz").unlink(missing_ok=True)  # left by other settings
    logging.info("%s/%s/%s.png%s", display_name(workdir), FOLDER, name, f": {note}" if note else "")
    return data.record


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """Writes all files or none: every file is on the disk in full before any is put in place, the first of them last."""
    contents = {target.with_suffix(suffix): content for suffix, content in files.items() if content}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The record, first in `files`, holds the checksum of the arrays: replaced last, it never stands beside older ones.
        with atomic.replace_files(reversed(contents)) as temporaries:
            for temporary, content in zip(temporaries, reversed(contents.values()), strict=True):
                temporary.write_bytes(content)
    except OSError as error:
        raise atomic.write_error(target.with_suffix(".json"), error) from error


def _digest(data: bytes) -> str:
    """Returns the SHA-256 of `data`; "" for no data, so that a record without arrays is recognised."""
    return hashlib.sha256(data).hexdigest() if data else ""


def _title(metadata: Record) -> str:
    images = sources.describe_images(metadata) if "split" in metadata else metadata["dataset"]
    return plots.escape_dollars(f"{images}, step {metadata['step']}")
