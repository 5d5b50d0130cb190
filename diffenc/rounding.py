"""Figures as they are shown: with the digits that their standard errors leave them."""

import dataclasses
import math

MISSING = "-"
MOST_PLACES = 10  # beyond them a mean over images in float64 says nothing
PLACES = 4  # of a mean whose error is not known


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number as it is shown, wherever it is shown.

    Attributes:
      mean: its digits.
      error: those of its standard error; None where it is not known.
    """

    mean: str
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.mean} ± {MISSING if self.error is None else self.error}"


class Digits(str):
    """A number by itself, as it is shown."""


def rounded(mean: float, error: float | None = None) -> Figure:
    """`mean` to the second significant digit of its standard error; NaN stays visible as nan."""
    if not math.isfinite(mean):
        return Figure(str(mean))
    if error is None or not math.isfinite(error):
        return Figure(_digits(mean, _own_places(mean)))
    if error == 0:
        return Figure(_digits(mean, _own_places(mean)), "0")
    places = min(max(1 - _exponent(error), 0), MOST_PLACES)
    return Figure(_digits(mean, places), _digits(error, max(places, 1 - _exponent(error))))


def digits(value: float | None, error: float | None = None) -> str:
    """`value` alone, with the digits that `rounded` gives it; MISSING if it is None."""
    return MISSING if value is None else Digits(rounded(value, error).mean)


def _own_places(value: float) -> int:
    """Decimal places where no error says how many: PLACES, or two significant digits of what is small."""
    return PLACES if value == 0 else min(max(PLACES, 1 - _exponent(value)), MOST_PLACES)


def _digits(value: float, places: int) -> str:
    """`value` with so many decimal places, as 1.6e-5 where it is small and has digits left."""
    exponent = _exponent(value) if value else 0
    if exponent < -4 and places + exponent >= 0:
        digits, power = f"{value:.{places + exponent}e}".split("e")
        return f"{digits}e{int(power)}"
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _exponent(value: float) -> int:
    """The power of ten of `value`'s first digit, once it is rounded to two."""
    return int(f"{value:.1e}".split("e")[1])
