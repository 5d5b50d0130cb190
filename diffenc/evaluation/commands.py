"""--mode=evaluate and --mode=sample: measure a trained run, and draw images from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from rich.console import Console
from rich.table import Table

from diffenc.config.experiment import Experiment
from diffenc.core.parameters import count_parameters
from diffenc.data.sources import describe_images
from diffenc.errors import UserError
from diffenc.evaluation.evaluation_record import KEYS, describe_path, errors_table, evaluation_record
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.image_grid import check_channels, save_png
from diffenc.evaluation.restore_params import restore_ema, restore_for_bound
from diffenc.evaluation.sample_images import ImageSampler, sample_file_name
from diffenc.files import atomic
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir.measurements import save_measurement
from diffenc.workdir.mirror import display_name, on_local_copy


@on_local_copy
def evaluate(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measures bits/dim, prints a table and writes evaluation.{json,npz}; returns the record, the content of the JSON.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint.
    """
    mesh = data_mesh(experiment.mesh)
    ema, step = restore_for_bound(experiment, workdir, mesh, experiment.evaluate.step)
    evaluator = Evaluator(experiment, mesh, workdir, step)
    terms = evaluator.measure(ema, Progress("evaluation", evaluator.num_batches))
    record = evaluation_record(experiment, terms, step, count_parameters(ema), evaluator.fitted_on)
    publish_record(workdir, "evaluation", record, terms.arrays(), evaluation_table(record))
    return record


@on_local_copy
def sample(experiment: Experiment, workdir: Path) -> Path:
    """Draws a grid of images into the workdir's samples/; returns the path of the PNG.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint; or the images cannot be shown.
    """
    check_channels(experiment.dataset.image_shape[-1])  # before they are drawn
    mesh, settings = data_mesh(experiment.mesh), experiment.sampling
    ema, step = restore_ema(experiment, workdir, mesh, settings.step)
    sampler = ImageSampler(
        *(experiment.model, experiment.dataset, settings, mesh, workdir, step),
        trained_at=experiment.num_timesteps,
    )
    images = sampler.draw(ema, Progress("samples", sampler.num_stretches))
    # Every process takes part in drawing, the main process alone writes.
    path = workdir / "samples" / sample_file_name(settings, step)
    main_process_only(save_png)(path, images, experiment.dataset.num_levels)
    location = f"{display_name(workdir)}/{path.relative_to(workdir)}"
    logging.info("%d images of %d steps in %s", settings.num, settings.num_timesteps, location)
    return path


@main_process_only
def publish_record(
    workdir: Path, name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], table: Table
) -> None:
    """Prints a measurement and writes it to the workdir (see `diffenc.workdir.measurements.save_measurement`).

    A read-only workdir is left unchanged, with a warning.

    Raises:
      UserError: writing failed for another reason.
    """
    Console(soft_wrap=True).print(table)  # first: the measurement may have taken hours
    try:
        number = save_measurement(workdir, name, record, arrays)
    except UserError as error:
        # Workdirs without write permission may be measured: the table
        # was printed, so a record that cannot be kept is no failure.
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in atomic.READ_ONLY:
            raise
        logging.warning("nothing was written: %s is read-only", display_name(workdir))
        return
    logging.info("in %s/%s.json, kept as number %d", display_name(workdir), name, number)


def evaluation_table(record: Mapping[str, Any]) -> Table:
    """Returns an evaluation as a table: bits/dim and both errors of each term."""
    images = f"{record['num_images']} images, {record['passes']} pass(es)"
    chain = "".join(f", {record[key]} {key}" for key in ("times", "variance") if key in record)
    title = f"{describe_images(record)}, {images}, T {record['T']}{chain}{describe_path(record)}, step {record['step']}"
    return errors_table(record, KEYS, title, f"pixels {record['fingerprint'][:16]}")
