"""Estimates the speed of a run from its FLOPs, at the device's rate for each number format."""

from typing import Any, NamedTuple

import jax

from diffenc.config.experiment import Experiment
from diffenc.runtime import accelerators
from diffenc.tools.planning.flops import Contraction, Work


class Peak(NamedTuple):
    """Peak FLOP/s of one device by dtype, and their source."""

    flops: dict[str, float]
    source: str


def find_peak(experiment: Experiment, dtypes: list[str]) -> Peak:
    """Returns the peak bound in `plan`, else the one stated for the accelerator, else, if it is unknown, a measured one."""
    settings, kind = experiment.plan, jax.devices()[0].device_kind
    if settings.peak_tflops is not None:
        return Peak(dict.fromkeys(dtypes, settings.peak_tflops * 1e12), "plan.peak_tflops")
    name = settings.accelerator or accelerators.find_accelerator(kind)
    if name is None:
        return Peak({dtype: accelerators.measure_flops(dtype) for dtype in dtypes}, f"measured on {kind}")
    known = accelerators.ACCELERATORS[name]
    # float32 may be computed in a coarser format with a higher peak, which the source should mention.
    rounded = [
        f"{dtype} in {known.computed_in(dtype)}" for dtype in dtypes if known.computed_in(dtype) not in dtype
    ]
    source = f"stated for {name}" + (f", {', '.join(rounded)}" if rounded else "")
    return Peak({dtype: known.peak(dtype) for dtype in dtypes}, source)


def flops_by_operands(work: Work) -> dict[str, int]:
    """Returns FLOPs by dtype; those of float32 in full precision under `accelerators.FULL_PRECISION`."""
    full = work.where(is_full_precision).by_dtype.get("float32", 0)
    totals = work.by_dtype
    rest = totals.get("float32", 0) - full
    return {
        **{dtype: count for dtype, count in totals.items() if dtype != "float32"},
        **({"float32": rest} if rest else {}),
        **({accelerators.FULL_PRECISION: full} if full else {}),
    }


def time_at_peak(experiment: Experiment, work: Work) -> tuple[Peak, float]:
    """Returns the peak, and the seconds that one device takes for `work` at the peak."""
    counts = flops_by_operands(work)
    peak = find_peak(experiment, list(counts))
    # Times add up, each format at its own rate: bfloat16 and
    # full-precision float32 differ by an order of magnitude.
    return peak, sum(number / peak.flops[operands] for operands, number in counts.items())


def is_full_precision(one: Contraction) -> bool:
    """Returns whether float32 operands must not be rounded, which takes an accelerator several times as long."""
    precision = dict(one.params)["precision"]  # of both operands, of each, or None
    return jax.lax.Precision.HIGHEST in (precision if isinstance(precision, tuple) else (precision,))


def estimate_speed(experiment: Experiment, work: Work, devices: int) -> dict[str, Any] | None:
    """Returns the speed at `plan.share` of the peak and the duration of the run; None without any contractions.

    Args:
      work: contractions of one device's share of a step.
    """
    if not work.flops:
        return None
    peak, seconds_at_peak = time_at_peak(experiment, work)
    seconds = seconds_at_peak / experiment.plan.share
    days = experiment.steps * seconds / 86400
    return {
        "peak": peak.flops,
        "source": peak.source,
        "share": experiment.plan.share,
        "steps_per_second": 1 / seconds,
        "images_per_second": experiment.batch_size / seconds,
        "days": days,
        "device_hours": 24 * days * devices,
    }
