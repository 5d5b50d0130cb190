"""The model on the path that `evaluate.stochasticity` names, which may be another than that of training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from diffenc.config.experiment import Experiment
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.interfaces import FittedStochasticity
from diffenc.registry import selector_of
from diffenc.workdir import fitted_paths


def measured_model(
    experiment: Experiment, workdir: Path | None, step: int | None
) -> tuple[Model, dict[str, Any]]:
    """Returns the model whose bound is measured, and the origin of a fitted path, an entry of the record.

    Args:
      workdir: where a fitted path is read from, for the checkpoint of `step`.

    Raises:
      UserError: the path has parameters, which were not trained, or it was not fitted.
    """
    model, chosen = experiment.model, experiment.evaluate.stochasticity
    if chosen is None or chosen == model.stochasticity:
        return model, {}
    if isinstance(chosen, FittedStochasticity):
        fit = fitted_paths.load_path(workdir, step)
        bound = chosen.given(fit["log_snr"], fit["eta_2"])
        return dataclasses.replace(model, stochasticity=bound), {"path_of": fit["path_of"]}
    if jax.tree.leaves(jax.eval_shape(chosen.init, jax.random.key(0))):
        raise UserError(
            f"evaluate.stochasticity = {selector_of(type(chosen))}: it has parameters, which this run did not train; bind "
            "@stochasticity.fitted(), or another without parameters"
        )
    return dataclasses.replace(model, stochasticity=chosen), {}
