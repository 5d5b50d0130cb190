"""Digits against roundings by hand."""

import math
import re

import numpy as np
import pytest

from diffenc.evaluation.uncertainty_format import format_digits, format_with_errors, round_to_error


@pytest.mark.parametrize(
    ("mean", "error", "shown"),
    [
        (2.64123, 0.00345, ("2.6412", "0.0034")),
        (0.37, 0.0996, ("0.37", "0.10")),  # the error rounds up to another power of ten
        (0.0100123, 4.1e-6, ("0.0100123", "4.1e-6")),
        (1.6e-5, 2e-8, ("1.6000e-5", "2.0e-8")),
        (1.6e-5, 0.004, ("0.0000", "0.0040")),
        (-1e-5, 0.004, ("0.0000", "0.0040")),  # no minus zero
        (-0.021, 0.0067, ("-0.0210", "0.0067")),
        (0.0045, 0.0, ("0.0045", "0")),
        (1234.5, 123.4, ("1234", "123")),
        (2.5, None, ("2.5000", None)),
        (1.6e-5, None, ("1.6e-5", None)),
        (0.0, None, ("0.0000", None)),
        (math.nan, 0.1, ("nan", None)),
        (math.inf, None, ("inf", None)),
        (2.5, math.nan, ("2.5000", None)),
        (0.0006904515, 1.9e-11, ("0.00069", "0")),  # less than the rounding of float32 is no error
        (2.5, 2.4e-7, ("2.5000", "0")),
        (2.512345678, 2.6e-6, ("2.51235", "2.6e-6")),  # float32 has six digits
        (0.0006904517, 1e-10, ("0.000690452", "1.0e-10")),
        (12345.678, None, ("12345.7", None)),
    ],
)
def test_digits(mean, error, shown):
    figure = round_to_error(mean, error)
    assert (figure.mean, figure.error) == shown


def test_rounding_loses_less_than_a_twentieth_of_the_error():
    random = np.random.default_rng(0)
    for exponent in range(-4, 2):
        for _ in range(50):
            mean, error = random.normal(), random.uniform(1, 10) * 10.0**exponent
            figure = round_to_error(mean, error)
            assert abs(float(figure.mean) - mean) <= 0.0501 * error
            assert float(figure.error or "nan") == pytest.approx(error, rel=0.051)
            if exponent < 0:
                shown = re.sub(r"^0\.0*|\.", "", figure.error.split("e")[0])  # pyright: ignore[reportOptionalMemberAccess]
                assert len(shown) == 2


@pytest.mark.parametrize(
    ("mean", "errors", "shown"),
    [
        (1.5852779, (0.0199, 0.006053), ("1.5853", "0.020", "0.0061")),
        (0.0006904515, (4.7e-7, 1.9e-11), ("0.00069045", "4.7e-7", "0")),  # the second is rounding
        (2.5, (None, 0.012), ("2.500", None, "0.012")),
        (2.5, (math.nan, None), ("2.5000", None, None)),
    ],
)
def test_a_mean_has_the_digits_of_its_smallest_error(mean, errors, shown):
    assert format_with_errors(mean, errors) == shown


def test_digits_alone():
    assert format_digits(-0.0123, 0.1) == "-0.01"
    assert format_digits(None) == "-"
