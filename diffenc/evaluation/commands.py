"""What can be done with a trained run: measure it, and draw from it. Each reads a workdir's checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from diffenc.checkpoint import checkpoints
from diffenc.checkpoint.restore import Check, Restored, accept_any_metadata
from diffenc.config.experiment import FREE_TO_MEASURE, Experiment
from diffenc.core.parameters import count_parameters
from diffenc.data.sources import describe_images, train_identity
from diffenc.errors import UserError
from diffenc.evaluation.evaluator import KEYS, Evaluator, errors_table, evaluation_record
from diffenc.evaluation.image_grid import save_png
from diffenc.evaluation.precision_check import check_precision
from diffenc.evaluation.sample_images import ImageSampler, sample_file_name
from diffenc.files import atomic, temporaries
from diffenc.files.stores import PathLike
from diffenc.interfaces import Params
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.param_sharding import abstract_params
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.workdir.config_check import CONFIG, check_config, check_data, expected_metadata
from diffenc.workdir.measurements import save_measurement
from diffenc.workdir.mirror import checkpoint_location, display_name, on_local_copy


def restore_ema(experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None) -> tuple[Params, int]:
    """The averaged parameters of a checkpoint, and its step; `step` None = the newest.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint.
    """
    restored = restore_checked(experiment, workdir, mesh, step)
    return jax.tree.map(to_default_precision, restored.tree["ema"]), restored.step


def restore_for_bound(
    experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None
) -> tuple[Params, int]:
    """As `restore_ema`, for a measurement of the bound. Raises also where float32 has too few digits for it."""
    ema, step = restore_ema(experiment, workdir, mesh, step)
    check_precision(experiment.model, ema["schedule"])
    return ema, step


def restore_checked(experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None) -> Restored:
    """A checkpoint with the averaged parameters alone, as "ema", in the precision they were trained in.

    Raises:
      UserError: as `restore_ema`.
    """
    if not (workdir / CONFIG).is_file() and not checkpoints.Checkpoints(checkpoint_location(workdir)).found:
        raise UserError(f"{workdir} holds no run: train first, or name its --workdir")
    check_config(experiment, workdir, FREE_TO_MEASURE)
    main_process_only(temporaries.sweep_folder)(workdir, checkpoints.FOLDER)
    wanted = expected_metadata(experiment, workdir, display_name(workdir), FREE_TO_MEASURE)
    restored = read_ema(experiment, checkpoint_location(workdir), mesh, step, wanted.check)
    wanted.warn_unchecked(restored)
    check_data(train_identity(experiment.dataset), restored, workdir)
    return restored


def read_ema(
    experiment: Experiment, place: PathLike, mesh: Mesh, step: int | None, check: Check = accept_any_metadata
) -> Restored:
    """The same of whatever run has its checkpoints at `place`. Raises as `Checkpoints.restore`."""
    with jax.enable_x64(False):  # checkpoints are float32, whatever they are read for
        abstract = {
            "ema": abstract_params(experiment.model, experiment.dataset.image_shape, mesh, experiment.mesh)
        }
        return checkpoints.restore_from(place, abstract, step, check)


def to_default_precision(leaf: Array) -> Array:
    """`leaf`, of the default precision if it is of floats."""
    return leaf.astype(jnp.zeros(()).dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@on_local_copy
def evaluate(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measure bits/dim, print a table, file it in the workdir; returns what evaluation.json says.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint.
    """
    mesh = data_mesh(experiment.mesh)
    ema, step = restore_for_bound(experiment, workdir, mesh, experiment.evaluate.step)
    evaluator = Evaluator(experiment, mesh, workdir, step)
    measured = evaluator.measure(ema, Progress("evaluation", evaluator.num_batches))
    num_params = count_parameters(ema)
    figures = evaluation_record(experiment, measured, step, num_params, evaluator.of)
    publish_record(workdir, "evaluation", figures, measured.arrays(), evaluation_table(figures))
    return figures


@on_local_copy
def sample(experiment: Experiment, workdir: Path) -> Path:
    """Draw a grid of images into the workdir's samples/; returns the PNG's path.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.sample
    ema, step = restore_ema(experiment, workdir, mesh, settings.step)
    sampler = ImageSampler(experiment, mesh, workdir, step)
    images = sampler.draw(ema, Progress("samples", sampler.num_stretches))
    path = workdir / "samples" / sample_file_name(settings, step)
    main_process_only(save_png)(path, images, experiment.dataset.num_levels)
    where = f"{display_name(workdir)}/{path.relative_to(workdir)}"
    logging.info("%d images of %d steps in %s", settings.num, settings.num_timesteps, where)
    return path


@main_process_only
def publish_record(
    workdir: Path, name: str, figures: dict[str, Any], arrays: Mapping[str, np.ndarray], shown: Table
) -> None:
    """Print a measurement, and file it in the workdir (see `diffenc.workdir.measurements.save_measurement`) unless that is read-only.

    Raises:
      UserError: the disk refused for another reason.
    """
    Console(soft_wrap=True).print(shown)
    try:
        number = save_measurement(workdir, name, figures, arrays)
    except UserError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in atomic.READ_ONLY:
            raise
        logging.warning("nothing was filed, for %s is read-only", display_name(workdir))
        return
    logging.info("in %s/%s.json, kept as number %d", display_name(workdir), name, number)


def evaluation_table(figures: dict[str, Any]) -> Table:
    """An evaluation as a table: bits/dim and both errors of each term."""
    images = f"{figures['num_images']} images, {figures['passes']} pass(es)"
    chain = "".join(f", {figures[key]} {key}" for key in ("times", "variance") if key in figures)
    title = f"{describe_images(figures)}, {images}, T {figures['T']}{chain}, step {figures['step']}"
    return errors_table(figures, KEYS, title, f"pixels {figures['fingerprint'][:16]}")
