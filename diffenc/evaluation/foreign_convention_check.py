"""Warns if a denoiser's loss exceeds that of the best constant, and names the convention that would explain it.

The best constant is E x as an estimate of x, or 0 as an estimate of eps, whichever is better at a noise level: a trained network
beats it everywhere if its outputs are interpreted in the convention of its training. The bound is valid in either case.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from diffenc.core.pixels import Levels
from diffenc.evaluation.batches import PassDraws
from diffenc.evaluation.foreign_bound import ForeignModel, LossRatios
from diffenc.evaluation.foreign_conventions import PROCESSES, TARGETS, PixelRange, reversed_time
from diffenc.evaluation.foreign_denoiser import DenoiserCall
from diffenc.evaluation.loss_over_log_snr import LossDraws
from diffenc.interfaces import Condition, LogSNR, Parameterization

MAX_BINS = 8
DRAWS_PER_BIN = 16
SHARE = 0.01  # of the diffusion loss that may lie above that of the best constant without a warning
SIGMAS = 3.0
BETTER = 0.9  # another reading has less than this of the loss as it was read, and of the best constant's
# Targets with a sign that differs between codes. The score is left out: read as a negative score, the output of an eps-network
# is multiplied by b, so an eps-network that is poor at low noise, where b is small, would look like a negative score.
SIGNED = ("eps", "v")
REVERSED = "a time that runs from noise (t = 0) to data (t = 1)"
RANGES = ((-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5))

PerDraw = Float[np.ndarray, " draws"]


class Excess(NamedTuple):
    """The range in which the loss is above that of the best constant.

    Attributes:
      log_snr: the range of noise levels, (low, high).
      ratio: the loss over that of the best constant, in this range.
    """

    log_snr: tuple[float, float]
    ratio: float


class Reading(NamedTuple):
    """A convention that a denoiser may have been trained in.

    Attributes:
      name: in words.
      ratio: its loss over that of the best constant, in the range of excess.
    """

    name: str
    ratio: float


def find_excess(draws: LossDraws, constant: PerDraw) -> Excess | None:
    """Returns the range in which the loss exceeds that of the best constant by more than its noise; None if the excess is small.

    Args:
      constant: the loss of the best constant at each draw.
    """
    loss = np.asarray(draws.diffusion, np.float64)
    # Reported by a warning of its own.
    if not np.isfinite(loss).all():
        return None
    # By bins of log_snr: a denoiser may be read wrongly and still beat the constant on average.
    above = [one for one in _bins(np.asarray(draws.log_snr)) if _excess(loss[one], constant[one]) > 0]
    total = sum(_excess(loss[one], constant[one]) for one in above)
    if not above or total <= SHARE * abs(loss.sum()):
        return None
    chosen = np.concatenate(above)
    log_snr = np.asarray(draws.log_snr)[chosen]
    ratio = float(loss[chosen].sum() / constant[chosen].sum())
    return Excess((float(log_snr.min()), float(log_snr.max())), ratio)


def _bins(log_snr: PerDraw) -> list[Int[np.ndarray, " n"]]:
    """Returns the indices of draws, in bins of equally many neighbours."""
    order = np.argsort(log_snr, kind="stable")
    return np.array_split(order, int(np.clip(len(order) // DRAWS_PER_BIN, 1, MAX_BINS)))


def _excess(loss: PerDraw, constant: PerDraw) -> float:
    """Returns the excess of the sum of `loss` over that of `constant`, less SIGMAS standard errors of it."""
    gap = loss - constant
    return float(gap.sum() - SIGMAS * gap.std() * np.sqrt(len(gap)))


def likely_reading(
    model: ForeignModel,
    denoise: DenoiserCall,
    predicts: str | Parameterization,
    levels: Levels,
    pass_draws: PassDraws,
    labels: Condition | None,
    own_noise_level: bool,
    log_snr: tuple[float, float],
) -> Reading | None:
    """Returns the convention in which the denoiser's loss is lowest; None if it is no better in the range of excess.

    Other targets are tried on the same outputs; other processes and pixels need calls of their own, on one batch.

    Args:
      own_noise_level: whether the noise level is the process's default, not the user's `time` or the index of a step.
      log_snr: the range of excess.
    """
    # not compiled: all variants share their operations, and each would be compiled by itself
    readings: dict[str, LossRatios] = {}
    for name, other in _inputs(model, own_noise_level):
        made = other.noisy_inputs(levels, pass_draws, other.equal_chain())
        try:
            out = denoise(made.z, made.noise_level, labels)
        # The unnamed variant is the given convention, which the
        # denoiser was called in before: its errors are raised.
        except Exception:  # the user's code, called with noise levels that it need not know
            if not name:
                raise
            continue
        estimates = _estimates(model, other, predicts)
        # In the units of this variant's pixels, as the denoiser's errors are.
        variance = jnp.var(other.images(levels))
        # The same draws for all readings: their ratios differ by the reading, not by noise.
        ratios = other.loss_ratios(
            tuple(estimates.values()), levels, pass_draws, out, variance, jnp.asarray(log_snr)
        )
        readings |= {
            ", ".join(filter(None, (estimate, name))): LossRatios(*map(float, both))
            for estimate, both in zip(estimates, ratios, strict=True)
        }
    given = readings.pop("")
    better = {
        name: ratios
        for name, ratios in readings.items()
        # Better where the loss was too high, and better overall:
        # a reading that fits one range by chance is not named.
        if ratios.within < min(BETTER * given.within, 1.0) and ratios.overall < min(BETTER, given.overall)
    }
    if not better:
        return None
    # By the overall loss: several conventions may agree within a range of noise levels.
    name = min(better, key=lambda reading: better[reading].overall)
    return Reading(name, float(better[name].within))


def _inputs(model: ForeignModel, own_noise_level: bool) -> Iterator[tuple[str, ForeignModel]]:
    """Yields the model and its variants with other inputs, each with its name; the name of the given inputs is empty."""
    ours = model.pixels.low, model.pixels.high
    # Ranges close to the given one are no other convention.
    ranges = [ours, *(other for other in RANGES if not np.allclose(other, ours, atol=0.1))]
    levels_of_noise = {}
    for key, process in PROCESSES.items():
        # A user's own noise level may hold for any process; the default is another one for each.
        renamed = "" if process == model.process else f"process = {key!r}"
        levels_of_noise[renamed] = process, process.noise_level if own_noise_level else model.noise_level
    if own_noise_level:
        flow = PROCESSES["flow"]
        renamed = REVERSED if flow == model.process else f"process = 'flow', {REVERSED}"
        levels_of_noise[renamed] = flow, reversed_time
    for (renamed, (process, level)), pixel_range in itertools.product(levels_of_noise.items(), ranges):
        rescaled = "" if pixel_range == ours else f"pixel_range = {pixel_range}"
        pixels = PixelRange(*pixel_range, model.pixels.num_levels)
        changed = dataclasses.replace(model, process=process, pixels=pixels, noise_level=level)
        yield ", ".join(filter(None, (renamed, rescaled))), changed


def _estimates(
    model: ForeignModel, other: ForeignModel, predicts: str | Parameterization
) -> dict[str, Parameterization]:
    """Returns the possible targets of the outputs of `other`, a variant of `model`, by name; the name of `predicts` is empty."""
    same = other.process == model.process
    estimates = {"": model.target} if same else {}
    for name in TARGETS:
        target = other.process.target(name)
        if not (same and name == predicts):
            estimates[f"predicts = {name!r}"] = target
        if name in SIGNED:
            estimates[f"predicts = {name!r} with its sign changed"] = negative(target)
    return estimates


@functools.cache
def negative(target: Parameterization) -> Parameterization:
    """Returns the parameterization of the estimate's negative."""

    def target_of_negative(log_snr: LogSNR) -> tuple[LogSNR, LogSNR]:
        p, q = target(log_snr)
        return -p, -q

    return target_of_negative


def warning_text(excess: Excess, reading: Reading | None) -> str:
    """Returns the warning: the range in which the loss is too high, and the likely convention."""
    low, high = excess.log_snr
    likely = (
        "no other convention that was tried explains it; see time and pixel_range, and the log_snr that it was trained at"
        if reading is None
        else f"this looks like {reading.name}: read so, its loss is {reading.ratio:.2g} of that"
    )
    return (
        f"between log_snr {low:.3g} and {high:.3g} the denoiser's loss is {excess.ratio:.3g} times that of the best constant "
        f"(the bound is valid all the same); {likely}"
    )
