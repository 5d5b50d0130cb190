"""A trained model with the second head that --mode=fit_ode fitted to it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from diffenc.config.experiment import Experiment
from diffenc.core.model import Model
from diffenc.core.parameters import abstract_arrays, name_leaves
from diffenc.core.value_head import ValueHead
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import to_default_precision
from diffenc.interfaces import Params
from diffenc.workdir.second_heads import ORIGIN, head_file, load_head


def with_value_head(model: Model) -> Model:
    """Returns the model with a second network, of the architecture of its first."""
    return dataclasses.replace(model, generative_mean=ValueHead(model.generative_mean, model.network))


def with_head_params(params: Params, head: Params) -> Params:
    """Returns the parameters of `with_value_head`'s model."""
    return {**params, "generative_mean": {"mean": params.get("generative_mean", {}), "head": head}}


def abstract_head(model: Model, image_shape: tuple[int, ...]) -> Params:
    """Returns shapes and dtypes of the second network's parameters, in float32."""
    # Heads are stored in float32, as checkpoints are, whatever the precision of the measurement.
    with jax.enable_x64(False):
        z, log_snr = jnp.zeros((1, *image_shape)), jnp.zeros((1,))
        return abstract_arrays(lambda: model.network.init(jax.random.key(0), z, log_snr))


def take_up_head(
    experiment: Experiment, workdir: Path, params: Params, step: int
) -> tuple[Model, Params, dict[str, Any]]:
    """Returns the model of the ODE, its parameters, and the origin of a fitted second head, an entry of the record.

    `likelihood.value` selects whether a second head is used; if None, a head that was fitted to the checkpoint of `step` is.

    Raises:
      UserError: a head is required and was not fitted, its files are damaged, or another path than that of training is measured.
    """
    model, wanted = experiment.model, experiment.likelihood.value
    if wanted == "model":
        return model, params, {}
    abstract = abstract_head(model, experiment.dataset.image_shape)
    found = load_head(workdir, name_leaves(abstract))
    # By default a head serves the checkpoint it was fitted to: its shift belongs to that network's value.
    if found is None or (wanted is None and found[1]["step"] != step):
        if found is not None:
            logging.warning(
                "%s was fitted at step %s, not %d, and is left aside: run --mode=fit_ode again, or bind "
                'likelihood.value = "fitted"',
                *(head_file(workdir), found[1]["step"], step),
            )
        if wanted == "fitted":
            raise UserError(
                f'likelihood.value = "fitted": {head_file(workdir)} is not there; run the same command with --mode=fit_ode first'
            )
        return model, params, {}
    if experiment.evaluation.stochasticity is not None:
        raise UserError(
            "evaluate.stochasticity: a fitted second head takes its slope from the sum that was trained on one path; unbind it, or "
            'bind likelihood.value = "model"'
        )
    arrays, origin = found
    leaves = [to_default_precision(jnp.asarray(arrays[name])) for name in name_leaves(abstract)]
    # `name_leaves` keeps the order of the tree's leaves, which unflatten needs.
    head = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    return with_value_head(model), with_head_params(params, head), {ORIGIN: origin}
