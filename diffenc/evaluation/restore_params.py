"""Averaged parameters of a trained run, read from a checkpoint that must belong to the experiment."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from diffenc.checkpoint import checkpoints
from diffenc.checkpoint.restore import Check, Restored, accept_any_metadata
from diffenc.config.experiment import FREE_TO_MEASURE, Experiment
from diffenc.data.sources import train_identity
from diffenc.errors import UserError
from diffenc.evaluation.precision_check import check_precision
from diffenc.files import temporaries
from diffenc.files.stores import PathLike
from diffenc.interfaces import Params
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.param_sharding import abstract_params
from diffenc.workdir.config_check import CONFIG, check_config, check_data, expected_metadata
from diffenc.workdir.mirror import checkpoint_location, display_name


def restore_ema(experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None) -> tuple[Params, int]:
    """Returns the averaged parameters of a checkpoint, and its step; `step` None = the newest.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint.
    """
    restored = restore_checked(experiment, workdir, mesh, step)
    return jax.tree.map(to_default_precision, restored.tree["ema"]), restored.step


def restore_for_bound(
    experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None
) -> tuple[Params, int]:
    """Returns the same as `restore_ema`, after a check that float32 suffices for an estimate of the bound.

    Raises:
      UserError: as `restore_ema`; or float32 has too few digits for the bound.
    """
    ema, step = restore_ema(experiment, workdir, mesh, step)
    check_precision(experiment.model, ema["schedule"])
    return ema, step


def restore_checked(experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None) -> Restored:
    """Returns a checkpoint's averaged parameters alone, as "ema", in the precision of training.

    Raises:
      UserError: as `restore_ema`.
    """
    # The metadata that identifies the training data comes with the checkpoint, so this check is the last.
    restored = restore_without_data(experiment, workdir, mesh, step)
    check_data(train_identity(experiment.dataset), restored, workdir)
    return restored


def restore_without_data(experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None) -> Restored:
    """Returns the same as `restore_checked`, without the check of the data set, which need not be present.

    Raises:
      UserError: as `restore_ema`.
    """
    if not (workdir / CONFIG).is_file() and not checkpoints.Checkpoints(checkpoint_location(workdir)).found:
        raise UserError(f"{workdir} holds no run: train first, or name its --workdir")
    # The run's config first, then each checkpoint's own metadata, both before any array is read.
    check_config(experiment, workdir, FREE_TO_MEASURE)
    # Temporaries of an interrupted save; one process removes them for all.
    main_process_only(temporaries.sweep_folder)(workdir, checkpoints.FOLDER)
    wanted = expected_metadata(experiment, workdir, display_name(workdir), FREE_TO_MEASURE)
    restored = read_ema(
        checkpoint_location(workdir),
        experiment,
        mesh,
        step,
        wanted.check,
    )
    wanted.warn_unchecked(restored)
    return restored


def read_ema(
    location: PathLike,
    experiment: Experiment,
    mesh: Mesh,
    step: int | None,
    check: Check = accept_any_metadata,
) -> Restored:
    """Returns the averaged parameters of a checkpoint in the folder or store `location`, as "ema".

    Raises:
      UserError: as `Checkpoints.restore`.
    """
    with jax.enable_x64(False):  # checkpoints are float32, whatever precision is used after
        abstract = {"ema": abstract_params(experiment, mesh)}
        return checkpoints.restore_from(location, abstract, step, check)


def to_default_precision(leaf: Array) -> Array:
    """Returns `leaf` in the default precision (float64 with --x64) if it has a floating-point type."""
    return leaf.astype(jnp.zeros(()).dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
