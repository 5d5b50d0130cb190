"""Times and variances of reverse chains fitted to a trained run, in files of WORKDIR/fits.

A fit belongs to a chain: T, the kind of times and, if the times are fitted, the variance for which they were fitted. The
bound holds for any times and variances, so a fit to another checkpoint is valid, but not optimal.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.config.settings import ResolvedEvaluate, ResolvedSample, settings_name
from diffenc.core.discretization import EQUAL, Chain, equal_times, make_chain, require_excess, variance_given
from diffenc.errors import UserError
from diffenc.files import atomic, record_checksum
from diffenc.interfaces import (
    EXCESS,
    FittedStochasticity,
    LogSNR,
    Params,
    Schedule,
    Times,
    Variance,
    requires,
)
from diffenc.parallel.distributed import main_process_only
from diffenc.registry import stochasticities, variances

FOLDER = "fits"
MAX_SPELLING = 80  # characters of a plugin in a file name
MEASURED_PATH = "measured_path"  # of records: the path measured on, where it is not that of training
NO_WORKDIR = "fits and curves stay in the run's workdir: load that, on a disk"


@dataclasses.dataclass(frozen=True)
class FittedChain:
    """A reverse chain except for the schedule's parameters.

    Attributes:
      times: 0 = t_0 < ... < t_T = 1.
      excess: E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step; None if not measured or not needed.
      variance: sigma_P^2 of the steps.
      of: origins of fitted times and excess (see `fit_origin`), by key of the record.
    """

    times: Float[np.ndarray, " steps_plus_one"]
    excess: Float[np.ndarray, " steps"] | None = None
    variance: Variance = EQUAL
    of: dict[str, Any] = dataclasses.field(default_factory=dict)

    def chain(self, schedule: Schedule, params: Params) -> Chain:
        """Returns the chain under a model's `params`: those of the schedule and of a learned variance are used.

        Raises:
          UserError: the variance requires `excess`, which is None.
        """

        def log_snr_at(t: Times) -> LogSNR:
            return schedule.apply(params["schedule"], t)

        return make_chain(log_snr_at, self.times, variance_given(self.variance, params), self.excess)

    def check(self) -> None:
        """Raises UserError if the variance requires `excess`, which is None. For use before anything is compiled."""
        require_excess(self.variance, self.excess, len(self.times) - 1)


def fit_path(workdir: Path, settings: ResolvedEvaluate | ResolvedSample) -> Path:
    """Returns the file of the fit for these settings; for equal times it does not depend on the variance.

    Fits for a path other than that of training have separate files.
    """

    def spell(text: str) -> str:  # without parentheses and commas, which are awkward in file names
        name = re.sub(r"[^\w.=-]+", "_", text).strip("_")
        # File systems limit names to 255 bytes; a digest keeps long spellings distinct.
        return name if len(name) <= MAX_SPELLING else hashlib.sha256(text.encode()).hexdigest()[:16]

    suffix = (
        "" if settings.times == "equal" else f"_{settings.times}_{spell(variances.spell(settings.variance))}"
    )
    path = settings.stochasticity if isinstance(settings, ResolvedEvaluate) else None
    on_path = "" if path is None else f"_on_{spell(stochasticities.spell(path))}"
    return workdir / FOLDER / f"T{settings.num_timesteps}{suffix}{on_path}.json"


def fit_origin(experiment: Experiment, step: int) -> dict[str, Any]:
    """Returns everything on which a fit to the checkpoint of `step` depends, except T, variance and path."""
    settings = dataclasses.asdict(experiment.fit)
    del settings["head_steps"]  # no fit depends on it but that of a second head, which states it
    # Resolved, so that 0 and the explicit batch size of training are the same origin.
    settings["batch_size"] = experiment.fit.batch_size or experiment.batch_size
    precision = network_precision(experiment)
    return {
        "step": step,
        "fit": settings,
        "config_hash": serialize.config_hash(experiment),
        "precision": precision,
    }


def measured_path(experiment: Experiment) -> dict[str, str]:
    """Returns the entry of a record or an origin for the path of measurement; empty if it is that of training."""
    path = experiment.evaluation.stochasticity
    return {} if path is None else {MEASURED_PATH: stochasticities.spell(path)}


def path_origin(experiment: Experiment, path_of: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of an origin for the path of the fit; empty if it is that of training.

    Args:
      path_of: the origin of a fitted path; {} for any other path.
    """
    digest = path_of.get("path_of", {}).get("digest")
    return measured_path(experiment) | ({} if digest is None else {"path": digest})


def refuse_fits(settings: ResolvedEvaluate | ResolvedSample) -> None:
    """Raises UserError if settings for use during training need a fit, which only a trained run can have."""
    name = settings_name(settings)
    path = settings.stochasticity if isinstance(settings, ResolvedEvaluate) else None
    for field, is_fitted in (
        ("times", settings.times != "equal"),
        ("variance", requires(settings.variance, EXCESS)),
        ("stochasticity", isinstance(path, FittedStochasticity) and path.is_open),
    ):
        if is_fitted:
            raise UserError(
                f"{name}.{field}: fits need a trained run; train without this binding, or with "
                f"Experiment.{name}_every = 0, and bind it only for --mode={name}"
            )


def save_fit(file: Path, times: Float[np.ndarray, "..."], record: dict[str, Any]) -> dict[str, Any]:
    """Writes a fit of `times` with the other keys of `record`; returns it as `load_fit` would.

    Raises:
      UserError: a value is not finite, or a failed write.
    """
    if not all(np.isfinite(values).all() for values in (times, record.get("excess", 0.0))):
        raise UserError("nothing was fitted: the loss of this model is not finite")
    content = record_checksum.with_checksum({**record, "steps": len(times) - 1, "times": times.tolist()})
    text = atomic.to_json(content, indent=1) + "\n"
    # Only the main process writes; all parse the text, as the file may not be visible to the others yet.
    _write(file, text)
    return _parse(text, file)


@main_process_only
def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(file, text)


def load_fit(file: Path) -> dict[str, Any]:
    """Reads a fit, with float64 arrays `times` and, if measured, `excess` and `excess_se`.

    Raises:
      UserError: the file is not a fit.
    """
    return _parse(file.read_bytes(), file)


def _parse(text: str | bytes, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
        if record_checksum.is_broken(content):
            raise ValueError(record_checksum.BROKEN)
        times = np.asarray(content["times"], np.float64)
        arrays = {
            key: np.asarray(content[key], np.float64) for key in ("excess", "excess_se") if key in content
        }
        # Increasing times are required for lambda_s > lambda_t; NaN fails each of these comparisons.
        valid = times.ndim == 1 and len(times) == content["steps"] + 1 and bool(np.all(np.diff(times) > 0))
        valid &= all(
            array.shape == (len(times) - 1,) and bool(np.all(array >= 0)) for array in arrays.values()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a fit ({type(error).__name__}: {error}): delete it and fit again"
        ) from error
    if not valid or times[0] != 0 or times[-1] != 1:
        raise UserError(f"{file} is not a fit (its times and values do not match): delete it and fit again")
    return record_checksum.strip_checksum(content) | {"times": times} | arrays


def find_chain(
    workdir: Path | None, settings: ResolvedEvaluate | ResolvedSample, checkpoint_step: int | None = None
) -> FittedChain:
    """Returns the chain for settings of evaluation or sampling, from the fits in `workdir` if it needs one.

    An `excess` that was not measured is None, since --mode=fit_variance starts from such a chain.

    Raises:
      UserError: fitted times are set, but there is no such fit, or no workdir.
    """
    needed = settings.times != "equal" or requires(settings.variance, EXCESS)
    if needed and workdir is None:
        chosen = f"times = {settings.times!r}, variance.{variances.spell(settings.variance)}"
        raise UserError(f"{chosen}: {NO_WORKDIR}")
    file = fit_path(workdir or Path(), settings)
    if needed and file.is_file():
        fit = load_fit(file)
        warn_if_old(file, fit, checkpoint_step)
        of = {key: fit[key] for key in ("times_of", "excess_of") if key in fit}
        return FittedChain(fit["times"], fit.get("excess"), settings.variance, of)
    if settings.times != "equal":
        spelling = variances.spell(settings.variance)
        raise UserError(
            f"no times are fitted for T = {settings.num_timesteps} and variance.{spelling} ({file} is not there): run "
            f"--mode=fit_schedule --num_timesteps={settings.num_timesteps} first, with that variance bound to evaluate.variance"
        )
    return FittedChain(equal_times(settings.num_timesteps), None, settings.variance)


def warn_if_old(file: Path, fit: dict[str, Any], checkpoint_step: int | None) -> None:
    """Warns if a fit is of another checkpoint: the bound holds, but a new fit may improve it."""
    steps = {fit[key]["step"] for key in ("times_of", "excess_of") if key in fit}
    if checkpoint_step is not None and steps - {checkpoint_step}:
        logging.warning(
            "%s was fitted at step %s, not %d: fit again for the best bound",
            file,
            " and ".join(map(str, sorted(steps))),
            checkpoint_step,
        )
