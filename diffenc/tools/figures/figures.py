"""The figures of a trained run: --mode=figures. WORKDIR/figures/ has each as PNG and PDF, beside its numbers."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from diffenc.config.experiment import Experiment
from diffenc.config.names import nearest
from diffenc.data import sources
from diffenc.errors import UserError
from diffenc.evaluation import plots
from diffenc.evaluation.commands import restore_ema
from diffenc.files import atomic, record_checksum
from diffenc.parallel import collectives
from diffenc.parallel.distributed import is_main
from diffenc.parallel.sharding import data_mesh
from diffenc.tools.figures import class_changes, encoded_images, loss, norms, samples, schedule, spectra
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record
from diffenc.workdir.mirror import display_name, on_local_copy

FOLDER = "figures"


class FigureKind(NamedTuple):
    """A figure that can be had of any run.

    Attributes:
      measure: its numbers.
      draw: a picture of these, under a title that says of what they are.
      of: all that the numbers depend on; where it is the same they are not measured again.
    """

    measure: Callable[[FigureInputs], FigureRecord]
    draw: Callable[[FigureRecord, str], plots.Figure]
    of: Callable[[FigureInputs], Record] = lambda subject: subject.images_of


FIGURES: dict[str, FigureKind] = {
    "heat_maps": FigureKind(encoded_images.measure_heat_maps, encoded_images.plot_heat_maps),
    "encoded": FigureKind(encoded_images.measure_encoded_images, encoded_images.plot_encoded_images),
    "schedule": FigureKind(
        schedule.measure_schedule, schedule.plot_schedule, lambda subject: subject.model_of
    ),
    "spectra": FigureKind(spectra.measure_spectra, spectra.plot_spectra),
    "classes": FigureKind(class_changes.measure_class_changes, class_changes.plot_class_changes),
    "encoder_norms": FigureKind(norms.measure_norms, norms.plot_norms),
    "loss": FigureKind(loss.measure_loss, loss.plot_loss, loss.loss_metadata),
    "samples": FigureKind(samples.measure_samples, samples.plot_samples, samples.samples_metadata),
}


@on_local_copy
def figures(experiment: Experiment, workdir: Path) -> dict[str, Record]:
    """File WORKDIR/figures/NAME.{png,pdf,json}, and .npz where there are arrays; returns the main process's records.

    Raises:
      UserError: no such figure or image, no run there, one of another config, or no such checkpoint.
    """
    kinds = choose_figures(experiment.figures.only)
    mesh = data_mesh(experiment.mesh)
    params, step = restore_ema(experiment, workdir, mesh, experiment.evaluate.step)
    subject = FigureInputs(experiment, workdir, mesh, params, step)
    of = {name: kind.of(subject) for name, kind in kinds.items()}
    here = {name: read_figure(workdir / FOLDER / name, of[name]) for name in kinds} if is_main() else {}
    missing = collectives.broadcast_int_list(place for place, name in enumerate(kinds) if not here.get(name))
    result = {}
    for place, (name, kind) in enumerate(kinds.items()):
        numbers = kind.measure(subject) if place in missing else here.get(name)
        if numbers is not None and is_main():
            result[name] = publish_figure(workdir, name, kind, numbers, of[name])
    return result


def choose_figures(only: tuple[str, ...]) -> Mapping[str, FigureKind]:
    """The figures of these names, in the table's order; all of them for none.

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


def read_figure(target: Path, of: Record) -> FigureRecord | None:
    """The numbers beside the figure `target` (a path without its suffix), if they are whole and of just this."""
    try:
        record = record_checksum.read_intact(target.with_suffix(".json"))
        if record is None:
            return None
        arrays = target.with_suffix(".npz").read_bytes() if record["npz"] else b""
    except (OSError, KeyError):
        return None
    if record.get("of") != json.loads(atomic.to_json(of)) or record["npz"] != _digest(arrays):
        return None
    return FigureRecord(record, dict(np.load(io.BytesIO(arrays))) if arrays else {})


def publish_figure(workdir: Path, name: str, kind: FigureKind, numbers: FigureRecord, of: Record) -> Record:
    """Draw a figure, and file it with its numbers; returns what its JSON says."""
    arrays = atomic.encode_npz(numbers.arrays) if numbers.arrays else b""
    numbers = numbers._replace(record={**numbers.record, "of": of, "npz": _digest(arrays)})
    title = _title(of)
    note = numbers.record.get("note")
    figure = plots.make_statement(f"{title}: {name}", note) if note else kind.draw(numbers, title)
    text = atomic.to_json(record_checksum.with_checksum(numbers.record), indent=1) + "\n"
    files = {".json": text.encode(), ".npz": arrays}  # the first takes its place last: see `_write`
    files |= plots.render_files(figure)
    _write(workdir / FOLDER / name, files)
    if not arrays:
        (workdir / FOLDER / f"{name}.npz").unlink(missing_ok=True)  # of other settings
    logging.info("%s/%s/%s.png%s", display_name(workdir), FOLDER, name, f": {note}" if note else "")
    return numbers.record


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """All of the files or none: each is on the disk in full before any takes its place, the first last."""
    found = {target.with_suffix(suffix): content for suffix, content in files.items() if content}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replace_files(reversed(found)) as temporaries:
            for temporary, content in zip(temporaries, reversed(found.values()), strict=True):
                temporary.write_bytes(content)
    except OSError as error:
        raise atomic.write_error(target.with_suffix(".json"), error) from error


def _digest(data: bytes) -> str:
    """SHA-256 of `data`; of nothing "", so that a record without arrays says so."""
    return hashlib.sha256(data).hexdigest() if data else ""


def _title(of: Record) -> str:
    subject = sources.describe_images(of) if "split" in of else of["dataset"]
    return plots.escape_dollars(f"{subject}, step {of['step']}")
