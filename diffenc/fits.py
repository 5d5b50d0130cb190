"""What was fitted to a trained run without training it: files in WORKDIR/fits.

A fit belongs to a chain: T, where its times come from, and, where they were fitted, the variance they were
fitted for. A bound holds for any times and variances, so a fit to an older checkpoint is still a valid one.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from diffenc import atomic
from diffenc.chain import EQUAL, Chain, build, equal_times
from diffenc.errors import UserError
from diffenc.interfaces import LogSNR, Params, Schedule, Times, Variance
from diffenc.registry import variances
from diffenc.settings import Evaluate, Sample

FOLDER = "fits"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a chain is built from once the schedule's parameters are known.

    Attributes:
      times: 0 = t_0 < ... < t_T = 1.
      excess: E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step; None if it was not measured.
      variance: sigma_P^2 of the steps.
    """

    times: Float[np.ndarray, " steps_plus_one"]
    excess: Float[np.ndarray, " steps"] | None = None
    variance: Variance = EQUAL

    def chain(self, schedule: Schedule, params: Params) -> Chain:
        """The chain under `params`, those of the schedule.

        Raises:
          UserError: the variance needs `excess`, and it is None.
        """

        def log_snr_at(t: Times) -> LogSNR:
            return schedule.apply(params, t)

        return build(log_snr_at, self.times, self.variance, self.excess)


def path(workdir: Path, steps: int, times: str, variance: Variance) -> Path:
    """Where the fit of such a chain is filed; equal times do not depend on the variance."""
    suffix = "" if times == "equal" else f"_{times}_{variance_name(variance)}"
    return workdir / FOLDER / f"T{steps}{suffix}.json"


def variance_name(variance: Variance) -> str:
    """The name a variance is registered under."""
    return variances.name_of(type(variance)) or type(variance).__name__


def save(target: Path, times: Float[np.ndarray, "..."], record: dict[str, Any]) -> None:
    """File a fit: its times, and whatever `record` says of them.

    Raises:
      UserError: the disk refused.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {**record, "steps": len(times) - 1, "times": times.tolist()}
    atomic.write_text(target, atomic.to_json(content, indent=1) + "\n")


def load(file: Path) -> dict[str, Any]:
    """A fit, with `times` and, where it has them, `excess` and `excess_se` as float64 arrays.

    Raises:
      UserError: the file is not a fit.
    """
    try:
        content = json.loads(file.read_text())
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
    return content | {"times": times} | arrays


def plan(workdir: Path, settings: Evaluate | Sample, checkpoint_step: int | None = None) -> Plan:
    """The plan that the settings of an evaluation or of sampling ask for.

    Raises:
      UserError: its times were to be fitted, and are not.
    """
    file = path(workdir, settings.steps, settings.times, settings.variance)
    if not file.is_file():
        if settings.times == "equal":
            return Plan(equal_times(settings.steps), None, settings.variance)
        raise UserError(
            f"no times are fitted for T = {settings.steps} and variance.{variance_name(settings.variance)} "
            f"({file} is not there): run the same command with --mode=fit_schedule --steps={settings.steps} first"
        )
    fit = load(file)
    if checkpoint_step is not None and fit.get("step") != checkpoint_step:
        logging.warning(
            "%s was fitted at step %s, not %d: fit again for the best bound",
            file,
            fit.get("step"),
            checkpoint_step,
        )
    return Plan(fit["times"], fit.get("excess"), settings.variance)
