"""The arguments of `diffenc.bound`, checked: a message names the one that does not fit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from diffenc import registry
from diffenc.config.settings import require
from diffenc.core.discretization import EQUAL
from diffenc.data.array_dataset import ArrayDataset, DatasetSpec, check_images, check_labels
from diffenc.errors import UserError
from diffenc.evaluation.foreign_bound import DECODERS, LEVELS, NORMAL, log_snrs_of
from diffenc.evaluation.foreign_conventions import PixelRange, Process
from diffenc.interfaces import EXCESS, LearnedVariance, LogSNR, PerExample, Variance, requires

ArrayInput = Any  # anything that numpy converts to an array; checked with a readable message
MAX_LEVELS = 256  # of uint8

NoiseLevelOf = Callable[[LogSNR], PerExample]


@dataclasses.dataclass(frozen=True)
class GivenLabels:
    """The conditioning of a foreign denoiser: labels are passed on unchanged."""

    label: str = "label"
    drop: float = 0.0

    def __call__(self, labels: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        return labels


def given_dataset(name: str, images: ArrayInput, labels: ArrayInput, num_levels: int) -> ArrayDataset:
    """Returns `images` and `labels`, where None stands for no labels, as a data set.

    Raises:
      UserError: the images are no uint8 levels [N, H, W, C] below `num_levels`, or the labels are not one integer per image.
    """
    require(2 <= num_levels <= MAX_LEVELS, f"num_levels = {num_levels}: must be from 2 to {MAX_LEVELS}")
    levels = np.asarray(images)
    require(
        levels.ndim == 4,
        f"{name} are of shape {list(levels.shape)}: they must be uint8 levels of shape [N, H, W, C]",
    )
    given = None if labels is None else np.asarray(labels)
    # No number of classes is declared here: the largest label implies it. Labels of
    # another type are left to `check_labels`, which refuses them with a message.
    classes = int(given.max(initial=0)) + 1 if given is not None and given.dtype.kind in "iu" else 1
    spec = DatasetSpec(name, (levels.shape[1], levels.shape[2], levels.shape[3]), num_levels, classes)
    checked_levels = check_images(levels, spec)
    return ArrayDataset(checked_levels, check_labels(given, len(levels), classes, False), spec)


def check_pixel_range(pixel_range: tuple[float, float], num_levels: int) -> PixelRange:
    """Returns the range of a denoiser's pixels. Raises UserError unless it rises."""
    low, high = _pair("pixel_range", pixel_range)
    require(
        low < high, f"pixel_range = {pixel_range!r}: the value of level 0 must be below that of the top level"
    )
    return PixelRange(low, high, num_levels)


def _pair(name: str, value: ArrayInput) -> tuple[float, float]:
    """Returns the two numbers of an argument. Raises UserError if it has others."""
    try:
        first, second = map(float, value)
    except (TypeError, ValueError):
        raise UserError(f"{name} = {value!r}: must be two numbers") from None
    return first, second


def resolve_log_snrs(
    log_snr: tuple[float, float] | None, alphas_cumprod: ArrayInput, process: Process
) -> tuple[float, ...]:
    """Returns lambda_max and lambda_min, or those of T discrete times.

    Raises:
      UserError: both are given, the ends do not fall, or alphas_cumprod do not fall from below 1 to above 0.
    """
    if alphas_cumprod is None:
        high, low = _pair("log_snr", process.log_snr if log_snr is None else log_snr)
        require(
            -np.inf < low < high < np.inf,
            f"log_snr = {log_snr!r}: must be (lambda_max, lambda_min), finite, the larger first",
        )
        return high, low
    require(
        log_snr is None,
        "log_snr and alphas_cumprod are both given: alphas_cumprod has the log_snr of each time; leave log_snr out",
    )
    try:
        given = np.asarray(alphas_cumprod, np.float64)
    except (TypeError, ValueError):
        # An empty array fails the check below, with the message that states the requirement.
        given = np.zeros(0)
    falls = (
        given.ndim == 1 and len(given) > 1 and (np.diff(given) < 0).all() and given[-1] > 0 and given[0] < 1
    )
    require(
        bool(falls),
        "alphas_cumprod must be at least two numbers that fall from below 1 to above 0: the products of 1 - beta, the "
        "least noise first",
    )
    return log_snrs_of(given)


def resolve_noise_level(
    time: NoiseLevelOf | None, alphas_cumprod: ArrayInput, process: Process
) -> NoiseLevelOf | None:
    """Returns log_snr -> the noise level that the denoiser is given; None where the noise level is the index of the step."""
    require(time is None or callable(time), f"time = {time!r}: must be a function of log_snr")
    if time is not None:
        return time
    return process.noise_level if alphas_cumprod is None else None


def resolve_decoder(decoder: str | None, alphas_cumprod: ArrayInput) -> str:
    """Returns the decoder. Raises UserError if there is none of that name."""
    if decoder is None:
        return LEVELS if alphas_cumprod is None else NORMAL
    require(decoder in DECODERS, f"decoder = {decoder!r}: must be one of {', '.join(map(repr, DECODERS))}")
    return decoder


def resolve_variance(
    variance: str | Variance, alphas_cumprod: ArrayInput, fit_images: ArrayInput, decoder: str
) -> Variance:
    """Returns the variances of the reverse steps, a plugin.

    Raises:
      UserError: a variance other than q's in continuous time, a fitted variance without images to fit on, `fit_images` without
        anything to fit, or a learned variance.
    """
    # A name may be that of a plugin that is not imported yet.
    if isinstance(variance, str):
        registry.discover()
        variance = registry.variances[variance]()
    require(
        not isinstance(variance, LearnedVariance),
        "variance = 'learned': it belongs to a training of this code; take 'fitted', with fit_images",
    )
    require(
        alphas_cumprod is not None or variance == EQUAL,
        f"variance = {registry.variances.spell(variance)!r} needs discrete time, for in continuous time any but 'equal' makes "
        "the bound infinite: give alphas_cumprod",
    )
    require(
        fit_images is not None or not requires(variance, EXCESS),
        f"variance = {registry.variances.spell(variance)!r} is fitted: give fit_images, others than those that are measured",
    )
    require(
        fit_images is None or requires(variance, EXCESS) or decoder == NORMAL,
        "fit_images are given and nothing is fitted on them: give variance = 'fitted' or decoder = 'normal'",
    )
    return variance


def overlap_warning(measured: ArrayDataset, fitted: ArrayDataset) -> str | None:
    """Returns a warning if measured images are among the images to fit on; else None."""
    # Exact duplicates only, found by their bytes in linear time.
    known = {image.tobytes() for image in fitted.images}
    count = sum(image.tobytes() in known for image in measured.images)
    if count == 0:
        return None
    return f"{count} of the {len(measured.images)} measured images are among fit_images: the bound is too optimistic"


def check_fit_labels(labels: ArrayInput, fit_labels: ArrayInput, fit_images: ArrayInput) -> None:
    """Raises UserError unless images to fit on have labels exactly if the measured ones do."""
    if fit_images is not None and (labels is None) != (fit_labels is None):
        raise UserError("fit_labels: give them together with labels and fit_images, or none of them")
