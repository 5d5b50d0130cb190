"""What was fitted to a trained run without training it: files in WORKDIR/fits.

A fit belongs to a chain: T, where its times come from, and, where they were fitted, the variance they were
fitted for. A bound holds for any times and variances, so a fit to an older checkpoint is still a valid one.
"""

import dataclasses
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
from diffenc.interfaces import EXCESS, LogSNR, Params, Schedule, Times, Variance, requires
from diffenc.parallel.distributed import main_process_only
from diffenc.registry import variances

FOLDER = "fits"
NOT_HERE = "fits and curves stay in the run's workdir: load that, on a disk"  # of a model that has no workdir


@dataclasses.dataclass(frozen=True)
class FittedChain:
    """What a chain is built from once the schedule's parameters are known.

    Attributes:
      times: 0 = t_0 < ... < t_T = 1.
      excess: E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step; None if it was not measured, or is not needed.
      variance: sigma_P^2 of the steps.
      of: what times and excess were fitted on, where they were (see `origin`).
    """

    times: Float[np.ndarray, " steps_plus_one"]
    excess: Float[np.ndarray, " steps"] | None = None
    variance: Variance = EQUAL
    of: dict[str, Any] = dataclasses.field(default_factory=dict)

    def chain(self, schedule: Schedule, params: Params) -> Chain:
        """The chain under a model's `params`, of which the schedule's and a learned variance's matter.

        Raises:
          UserError: the variance needs `excess`, and it is None.
        """

        def log_snr_at(t: Times) -> LogSNR:
            return schedule.apply(params["schedule"], t)

        return make_chain(log_snr_at, self.times, variance_given(self.variance, params), self.excess)

    def check(self) -> None:
        """Raises UserError if the variance requires `excess`, and it is None: before anything is compiled."""
        require_excess(self.variance, self.excess, len(self.times) - 1)


def path(workdir: Path, steps: int, times: str, variance: Variance) -> Path:
    """Where the fit of such a chain is filed; equal times do not depend on the variance."""
    spelt = re.sub(r"[^\w.=-]+", "_", variances.spell(variance)).strip("_")
    suffix = "" if times == "equal" else f"_{times}_{spelt}"
    return workdir / FOLDER / f"T{steps}{suffix}.json"


def origin(experiment: Experiment, step: int) -> dict[str, Any]:
    """All that a fit to the checkpoint of `step` depends on, its T and variance aside."""
    settings = dataclasses.asdict(experiment.fit)
    settings["batch_size"] = experiment.fit.batch_size or experiment.batch_size
    precision = network_precision(experiment)
    return {
        "step": step,
        "fit": settings,
        "config_hash": serialize.config_hash(experiment),
        "precision": precision,
    }


def refuse_untrained(settings: ResolvedEvaluate | ResolvedSample) -> None:
    """Raise UserError if settings that training would use ask for what is fitted to a trained run."""
    name = settings_name(settings)
    for field, fitted in (
        ("times", settings.times != "equal"),
        ("variance", requires(settings.variance, EXCESS)),
    ):
        if fitted:
            raise UserError(
                f"{name}.{field}: what is fitted belongs to a trained run; train without it, or with "
                f"Experiment.{name}_every = 0, and bind it for --mode={name}"
            )


def save(target: Path, times: Float[np.ndarray, "..."], record: dict[str, Any]) -> dict[str, Any]:
    """File a fit: its times, and whatever `record` says of them. Returns what `load` then gives.

    Raises:
      UserError: the disk refused.
    """
    content = record_checksum.with_checksum({**record, "steps": len(times) - 1, "times": times.tolist()})
    text = atomic.to_json(content, indent=1) + "\n"
    _write(target, text)
    return _parsed(text, target)


@main_process_only
def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(target, text)


def load(file: Path) -> dict[str, Any]:
    """A fit, with `times` and, where it has them, `excess` and `excess_se` as float64 arrays.

    Raises:
      UserError: the file is not a fit.
    """
    return _parsed(file.read_bytes(), file)


def _parsed(text: str | bytes, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
        if record_checksum.is_broken(content):
            raise ValueError(record_checksum.BROKEN)
        times = np.asarray(content["times"], np.float64)
        arrays = {
            key: np.asarray(content[key], np.float64) for key in ("excess", "excess_se") if key in content
        }
        sound = times.ndim == 1 and len(times) == content["steps"] + 1 and bool(np.all(np.diff(times) > 0))
        sound &= all(
            array.shape == (len(times) - 1,) and bool(np.all(array >= 0)) for array in arrays.values()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a fit ({type(error).__name__}: {error}): delete it and fit again"
        ) from error
    if not sound or times[0] != 0 or times[-1] != 1:
        raise UserError(f"{file} is not a fit (its times or figures do not match): delete it and fit again")
    return record_checksum.strip_checksum(content) | {"times": times} | arrays


def plan(
    workdir: Path | None, settings: ResolvedEvaluate | ResolvedSample, checkpoint_step: int | None = None
) -> FittedChain:
    """The plan that the settings of an evaluation or of sampling ask for, from the fits in `workdir`.

    Raises:
      UserError: times or variances were to be fitted, and are not.
    """
    needed = settings.times != "equal" or requires(settings.variance, EXCESS)
    if needed and workdir is None:
        chosen = f"times = {settings.times!r}, variance.{variances.spell(settings.variance)}"
        raise UserError(f"{chosen}: {NOT_HERE}")
    file = path(workdir or Path(), settings.num_timesteps, settings.times, settings.variance)
    if needed and file.is_file():
        fit = load(file)
        warn_if_old(file, fit, checkpoint_step)
        of = {key: fit[key] for key in ("times_of", "excess_of") if key in fit}
        return FittedChain(fit["times"], fit.get("excess"), settings.variance, of)
    if settings.times != "equal":
        spelt = variances.spell(settings.variance)
        raise UserError(
            f"no times are fitted for T = {settings.num_timesteps} and variance.{spelt} ({file} is not there): run "
            f"--mode=fit_schedule --num_timesteps={settings.num_timesteps} first, with that variance bound to evaluate.variance"
        )
    return FittedChain(equal_times(settings.num_timesteps), None, settings.variance)


def warn_if_old(file: Path, fit: dict[str, Any], checkpoint_step: int | None) -> None:
    """Log a line if a fit is of another checkpoint: its bound holds, but a better one may be had."""
    steps = {fit[key]["step"] for key in ("times_of", "excess_of") if key in fit}
    if checkpoint_step is not None and steps - {checkpoint_step}:
        logging.warning(
            "%s was fitted at step %s, not %d: fit again for the best bound",
            file,
            " and ".join(map(str, sorted(steps))),
            checkpoint_step,
        )
