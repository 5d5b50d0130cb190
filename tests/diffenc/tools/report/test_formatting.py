"""Numbers as they are shown, rounded by hand."""

import shlex

import pytest

from diffenc.evaluation.measurement_text import format_measurement
from diffenc.tools.report import formatting


@pytest.mark.parametrize(
    ("record", "digits"),
    [
        ({"a": 1.5852779, "a_se": 0.0199, "a_mc_se": 0.006053}, ("1.5853", "0.020", "0.0061")),
        ({"a": 1.5852779, "a_se": 0.0199}, ("1.585", "0.020", "–")),
        ({"a": 0.000234214, "a_se": 4.683e-7, "a_mc_se": 0.0}, ("0.00023421", "4.7e-7", "0")),
        ({"a": 1.585, "a_se": None, "a_se_upper": 0.0199, "a_mc_se": 0.006}, ("1.5850", "≤ 0.020", "0.0060")),
        ({"a": 1.585, "a_se": 0.01, "a_se_upper": 0.0199}, ("1.585", "0.010", "–")),
        ({"a": 1.25}, ("1.2500", "–", "–")),
        ({"a": None, "a_se": 0.1}, ("not finite", "0.10", "–")),
        ({"a": -1.25, "a_se": 0.1}, ("−1.25", "0.10", "–")),
    ],
)
def test_a_figure_and_its_errors(record, digits):
    assert format_measurement(record, "a") == digits


@pytest.mark.parametrize(
    ("p", "text"), [(0.0312, "0.031"), (1.0, "1"), (2e-5, "< 0.0001"), (None, "–"), (float("nan"), "–")]
)
def test_p_values(p, text):
    assert formatting.format_p(p) == text


def test_p_is_stated_with_one_sign():
    assert formatting.format_p_equation(0.0375) == "p\u00a0=\u00a00.037"
    assert formatting.format_p_equation(1e-7) == "p\u00a0<\u00a00.0001"


def test_commands_can_be_pasted():
    made = formatting.mode_command("runs/it's mine", "figures", 'figures.only = ("a",)')
    assert shlex.split(made) == ["python", "-m", "diffenc.run", "--workdir=runs/it's mine", "--mode=figures", '--gin_bindings=figures.only = ("a",)']  # fmt: skip


def test_a_mean_over_seeds_has_no_more_digits_than_a_run():
    """Seeds that agree to 0.00091 by chance, measured to 0.0057 at best: four places, not five."""
    records = [{"bpd_se": 0.02, "bpd_mc_se": 0.0061}, {"bpd_se": 0.02, "bpd_mc_se": 0.0057}]
    assert str(formatting.format_mean_over_seeds(1.584371, 0.000912, records)) == "1.5844 ± 0.00091"
    assert str(formatting.format_mean_over_seeds(1.60142, 0.0219, records)) == "1.601 ± 0.022"
    assert (
        str(formatting.format_mean_over_seeds(1.584371, 0.000912, [{"bpd_se": None}, {}]))
        == "1.58437 ± 0.00091"
    )
