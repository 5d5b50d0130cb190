"""Numbers as text, with the digits that their standard errors justify."""

import dataclasses
import math
from collections.abc import Sequence

MISSING = "-"
MOST_PLACES = 10  # beyond them a mean over images in float64 says nothing
PLACES = 4  # of a mean whose error is not known
# Networks compute in float32: six decimal digits survive it (FLT_DIG), and errors below its resolution are rounding.
FLOAT32_DIGITS = 6
FLOAT32_RESOLUTION = 1e-7


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number and its standard error as text, the same in every output.

    Attributes:
      mean: the rounded number.
      error: the rounded standard error; None if it is unknown.
    """

    mean: str
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.mean} ± {MISSING if self.error is None else self.error}"


class Digits(str):
    """A rounded number as text, without its error."""


def round_to_error(mean: float, error: float | None = None) -> Figure:
    """Returns `mean` to the second significant digit of its standard error, and to no more digits than float32 has.

    An error below float32's resolution of `mean` is rounding, and shown as 0. NaN is shown as nan.
    """
    if not math.isfinite(mean):
        return Figure(str(mean))
    if error is None or not math.isfinite(error):
        return Figure(_digits(mean, _own_places(mean)))
    if not is_resolved(mean, error):
        return Figure(_digits(mean, _own_places(mean)), "0")
    # An error of exponent e has its second significant digit at the decimal place 1 - e.
    places = min(max(1 - _exponent(error), 0), _most_places(mean))
    return Figure(_digits(mean, places), _digits(error, max(places, 1 - _exponent(error))))


def is_resolved(mean: float, error: float) -> bool:
    """Returns whether an error of `mean` is more than the rounding of float32."""
    return bool(error > 0 and not error <= FLOAT32_RESOLUTION * abs(mean))  # also of a mean that is NaN


def format_estimate(
    mean: float | None,
    error: float | None,
    upper: float | None,
    monte_carlo: float | None,
    at_most: str = "<= ",
    missing: str = MISSING,
) -> tuple[str, str, str]:
    """Returns a mean (None: not finite), its error over images and its Monte-Carlo error as text.

    Each has the digits that the errors justify (`format_with_errors`).

    Args:
      error: over images; None where it is not resolved: `upper` then takes its place, with the prefix `at_most`.
      missing: the text for an unknown error.
    """
    text, over_images, draws = format_with_errors(
        math.nan if mean is None else mean, [upper if error is None else error, monte_carlo]
    )
    bound = at_most if error is None and over_images is not None else ""
    return text, bound + (over_images or missing), draws or missing


def format_with_errors(mean: float, errors: Sequence[float | None]) -> tuple[str, *tuple[str | None, ...]]:
    """Returns `mean` to the second significant digit of its smallest error, and each error to its own second digit.

    Unknown errors are None. Errors below float32's resolution are "0", and do not count in rounding the mean.
    """
    known = [
        error for error in errors if error is not None and math.isfinite(error) and is_resolved(mean, error)
    ]
    shown = (None if error is None or not math.isfinite(error) else _error(mean, error) for error in errors)
    return round_to_error(mean, min(known, default=None)).mean, *shown


def _error(mean: float, error: float) -> str:
    return round_to_error(error, error).mean if is_resolved(mean, error) else "0"


def format_digits(value: float | None, error: float | None = None) -> str:
    """Returns `value` alone, with the digits that `round_to_error` gives it; MISSING if it is None."""
    return MISSING if value is None else Digits(round_to_error(value, error).mean)


def _own_places(value: float) -> int:
    """Returns the decimal places without an error: PLACES, or two significant digits of a small value."""
    return PLACES if value == 0 else min(max(PLACES, 1 - _exponent(value)), _most_places(value))


def _most_places(value: float) -> int:
    """Returns the decimal places beyond which float32 has no digits of `value`."""
    return max(min(MOST_PLACES, FLOAT32_DIGITS - 1 - _exponent(value)), 0)


def _digits(value: float, places: int) -> str:
    """Returns `value` with `places` decimal places, as 1.6e-5 where it is small and has digits left."""
    exponent = _exponent(value) if value else 0
    if exponent < -4 and places + exponent >= 0:
        digits, power = f"{value:.{places + exponent}e}".split("e")
        return f"{digits}e{int(power)}"
    # A small negative value would round to "-0.00", with a sign that its digits do not support.
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _exponent(value: float) -> int:
    """Returns the power of ten of `value`'s first digit after rounding to two digits; 0 for 0."""
    return int(f"{value:.1e}".split("e")[1])
