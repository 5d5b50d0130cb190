"""Formats of the numbers and names on the page."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from diffenc.evaluation.measurement_text import NO_VALUE, typeset_minus
from diffenc.evaluation.saved_records import finite_number
from diffenc.evaluation.uncertainty_format import Figure, round_to_error


def format_count(value: Any) -> str:
    """Formats an integer with thousands separators; anything else as str does."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return NO_VALUE if value is None else str(value)


def format_figure(mean: float | None, error: float | None = None) -> Figure:
    """Rounds `mean` to the second digit of its error, with a typographic minus sign."""
    if mean is None:
        return Figure("not finite")
    figure = round_to_error(mean, error)
    return Figure(typeset_minus(figure.mean), figure.error)


def format_mean_over_seeds(mean: float, error: float, records: Sequence[Mapping[str, Any]]) -> Figure:
    """Formats the mean of runs' bits/dim and its error over seeds.

    Two seeds may agree by chance to more digits than each evaluation resolves. So the mean has no more digits than the most
    precise of `records`, the evaluations that it averages.
    """
    errors = [
        finite_number(record.get(f"bpd_{kind}")) for record in records for kind in ("se", "se_upper", "mc_se")
    ]
    precision = max(error, min(filter(None, errors), default=0.0))
    return Figure(format_figure(mean, precision).mean, format_figure(error, error).error)


def format_p(value: float | None) -> str:
    """Formats p with two significant digits, or as "< 0.0001"."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def format_p_equation(value: float | None) -> str:
    """Formats "p = 0.59" or "p < 0.0001" with non-breaking spaces."""
    text = format_p(value)
    return ("p " if text.startswith("<") else "p = ").replace(" ", "\u00a0") + text.replace(" ", "\u00a0")


def shorten_digest(fingerprint: Any) -> str:
    """Returns the first 16 digits of a digest."""
    return str(fingerprint)[:16]


def mode_command(workdir: str, mode: str, *bindings: str) -> str:
    """Returns the command that executes `mode` for a run."""
    words = ["python", "-m", "diffenc.run", f"--workdir={workdir}", f"--mode={mode}"]
    # Quoted: commands are meant to be copied into a shell, and a workdir's name may contain anything.
    return shlex.join([*words, *(f"--gin_bindings={binding}" for binding in bindings)])


def train_command(workdir: str) -> str:
    """Returns the command that resumes a run; a finished run only writes its records again."""
    return shlex.join(["python", "-m", "diffenc.run", f"--workdir={workdir}"])
