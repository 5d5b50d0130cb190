"""Numbers and names as the page shows them."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from diffenc.evaluation.formatting import NO_VALUE, typeset_minus
from diffenc.evaluation.records import finite_number
from diffenc.evaluation.uncertainty_format import Figure, round_to_error


def count(value: Any) -> str:
    """1,500; what is no whole number as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return NO_VALUE if value is None else str(value)


def figure(mean: float | None, error: float | None = None) -> Figure:
    """`mean` to the second digit of its error, with a minus sign for people."""
    if mean is None:
        return Figure("not finite")
    found = round_to_error(mean, error)
    return Figure(typeset_minus(found.mean), found.error)


def over_seeds(mean: float, error: float, records: Sequence[Mapping[str, Any]]) -> Figure:
    """The mean of runs' bits/dim and its error over seeds.

    Two seeds may agree by chance to more digits than each was measured to, so the mean has no more than the most
    precise of `records`, the evaluations that it is of.
    """
    errors = [
        finite_number(record.get(f"bpd_{kind}")) for record in records for kind in ("se", "se_upper", "mc_se")
    ]
    coarse = max(error, min(filter(None, errors), default=0.0))
    return Figure(figure(mean, coarse).mean, figure(error, error).error)


def p_value(value: float | None) -> str:
    """Two digits; below 0.0001 no more than that."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def p_stated(value: float | None) -> str:
    """p = 0.59, or p < 0.0001, that no line is broken in."""
    text = p_value(value)
    return ("p " if text.startswith("<") else "p = ").replace(" ", "\u00a0") + text.replace(" ", "\u00a0")


def short(fingerprint: Any) -> str:
    """The beginning of a digest."""
    return str(fingerprint)[:16]


def command(place: str, mode: str, *bindings: str) -> str:
    """What one types to have a run do `mode`."""
    words = ["python", "-m", "diffenc.run", f"--workdir={place}", f"--mode={mode}"]
    return shlex.join([*words, *(f"--gin_bindings={binding}" for binding in bindings)])


def train_command(place: str) -> str:
    """What one types to go on with a run; a finished one only writes its records."""
    return shlex.join(["python", "-m", "diffenc.run", f"--workdir={place}"])
