"""Measurements as text, for pages and model cards."""

from collections.abc import Mapping
from typing import Any

from diffenc.evaluation.saved_records import finite_number
from diffenc.evaluation.uncertainty_format import format_estimate

NO_VALUE = "–"
MINUS = "−"


def format_measurement(record: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    """Returns an estimate of an evaluation and both its errors as text, with typographic signs (`format_estimate`)."""
    mean, *errors = (finite_number(record.get(f"{key}{kind}")) for kind in ("", "_se", "_se_upper", "_mc_se"))
    text, over_images, monte_carlo = format_estimate(mean, *errors, at_most="≤ ", missing=NO_VALUE)
    return "not finite" if mean is None else typeset_minus(text), over_images, monte_carlo


def typeset_minus(text: str) -> str:
    """Returns `text` with minus signs in place of hyphens."""
    return text.replace("-", MINUS)
