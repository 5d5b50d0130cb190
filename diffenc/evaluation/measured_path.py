"""The model on the path that `evaluate.stochasticity` names, which may differ from the path of training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import logging

from diffenc.config.experiment import Experiment
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.interfaces import FittedStochasticity
from diffenc.registry import selector_of
from diffenc.workdir import fitted_paths


def measured_model(
    experiment: Experiment, workdir: Path | None, step: int | None
) -> tuple[Model, dict[str, Any]]:
    """Returns the model of the measured bound, and the origin of a fitted path, an entry of the record.

    Args:
      workdir: the folder of the fitted path, for the checkpoint of `step`.

    Raises:
      UserError: the path has parameters (which were not trained), it was not fitted, or the model serves one path alone.
    """
    model, chosen = experiment.model, experiment.evaluation.stochasticity
    if chosen is None:
        return model, {}
    check_other_path(experiment)
    if isinstance(chosen, FittedStochasticity) and chosen.is_open:
        fit = fitted_paths.load_path(workdir, step)
        bound = chosen.given(fit["log_snr"], fit["eta_2"])
        return dataclasses.replace(model, stochasticity=bound), {"path_of": fit["path_of"]}
    # Shapes suffice to see whether the path has parameters; nothing is computed.
    if jax.tree.leaves(jax.eval_shape(chosen.init, jax.random.key(0))):
        raise UserError(
            f"evaluate.stochasticity = {selector_of(type(chosen))}: it has parameters, which this run did not train; bind "
            "@stochasticity.fitted(), or another without parameters"
        )
    return dataclasses.replace(model, stochasticity=chosen), {}


def check_other_path(experiment: Experiment) -> None:
    """Raises UserError if the errors of value and slope depend on the path: such a model serves the path of training alone."""
    mean = experiment.model.generative_mean
    if mean.learns_value:
        raise UserError(
            f"{selector_of(type(mean))} takes its slope from the sum that was trained on one path: measure it on that; for "
            "another, bind Model.stochasticity in training"
        )
    if experiment.num_timesteps:
        raise UserError(
            f"evaluate.stochasticity: the run was trained at T = {experiment.num_timesteps}, and its network serves those steps "
            "on their path alone; unbind it, or bind Model.stochasticity in training"
        )


def warn_if_fitted_on_another(fitted_on: dict[str, Any], path_of: dict[str, Any]) -> None:
    """Warns if times or variances were fitted on another fitted path than the measured one."""
    # None, on either side, stands for a path that was not fitted.
    fitted = [origin.get("path") for key, origin in fitted_on.items() if key in ("times_of", "excess_of")]
    current = path_of.get("path_of", {}).get("digest")
    if any(digest != current for digest in fitted):
        logging.warning(
            "times or variances were fitted on another path than fits/path.json now has: fit them again for the best bound"
        )
