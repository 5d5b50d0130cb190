"""Measurements as text, for pages and model cards."""

import math
from collections.abc import Mapping
from typing import Any

from diffenc.evaluation.records import finite_number
from diffenc.evaluation.uncertainty_format import format_with_errors

NO_VALUE = "–"
MINUS = "−"


def format_measurement(record: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    """A figure of an evaluation, to the second digit of its smaller error, and both errors to their own second.

    Of an error over images that is not resolved, its upper bound.
    """
    mean, se, upper, mc_se = (
        finite_number(record.get(f"{key}{kind}")) for kind in ("", "_se", "_se_upper", "_mc_se")
    )
    errors = [upper if se is None else se, mc_se]
    text, over_images, monte_carlo = format_with_errors(math.nan if mean is None else mean, errors)
    at_most = "≤ " if se is None and over_images is not None else ""
    return (
        "not finite" if mean is None else typeset_minus(text),
        at_most + (over_images or NO_VALUE),
        monte_carlo or NO_VALUE,
    )


def typeset_minus(text: str) -> str:
    """Returns `text` with minus signs in place of hyphens."""
    return text.replace("-", MINUS)
