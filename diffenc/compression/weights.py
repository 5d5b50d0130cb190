"""The parameters for decoding a stream, from a run or an export of it. The data set is not needed."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffenc.checkpoint.checkpoints import FOLDER as CHECKPOINTS
from diffenc.config.experiment import Experiment
from diffenc.evaluation.restore_params import restore_without_data, to_default_precision
from diffenc.export import weights
from diffenc.export.loading import abstract_names, unflatten_named
from diffenc.interfaces import Params
from diffenc.parallel.sharding import replicated


def restore_weights(
    experiment: Experiment, workdir: Path, mesh: Mesh, step: int | None
) -> tuple[Params, int]:
    """Returns the averaged parameters in `workdir`, the folder of a run or of an export, and their step.

    Args:
      step: the checkpoint of a run; None = the newest. Ignored for an export, which has one step.

    Raises:
      UserError: the folder has no weights, or those of another config.
    """
    file = workdir / weights.FILE
    if file.is_file() and not (workdir / CHECKPOINTS).exists():
        arrays = weights.read(file, abstract_names(experiment))
        named = {name: to_default_precision(jnp.asarray(array)) for name, array in arrays.items()}
        params = jax.device_put(unflatten_named(experiment, named), replicated(mesh))
        return params, weights.read_metadata(file).step
    restored = restore_without_data(experiment, workdir, mesh, step)
    return jax.tree.map(to_default_precision, restored.tree["ema"]), restored.step
