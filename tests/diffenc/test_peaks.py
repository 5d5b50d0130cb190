"""Peaks of accelerators, stated and measured."""

import itertools
import types

import jax
import pytest

from diffenc import peaks


@pytest.mark.parametrize(
    ("kind", "name", "float32"),
    [
        ("NVIDIA H200", "h200", 494.5),
        ("NVIDIA H100 80GB HBM3", "h100", 494.5),
        ("NVIDIA A100-SXM4-40GB", "a100", 156),
        ("TPU v4", "tpu_v4", 275),
        ("TPU v5 lite", "tpu_v5e", 197),
        ("TPU v3", "tpu_v3", 61.5),
    ],
)
def test_a_device_is_known_by_its_name(kind, name, float32):
    assert peaks.stated(kind) == name
    assert peaks.ACCELERATORS[name].tflops["float32"] == float32


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v9"])
def test_what_is_not_known_is_not_guessed(kind):
    assert peaks.stated(kind) is None


def test_no_two_share_a_name():
    kinds = [kind for one in peaks.ACCELERATORS.values() for kind in one.kinds]
    assert len(set(kinds)) == len(kinds)


def test_the_measured_peak_is_the_best_of_several_tries(monkeypatch):
    # the clock at the start; then by try: before, after, and to see whether there is time for another
    passed = itertools.accumulate([0, *(0, 4, 0), *(0, 2, 0), *(0, 8, 100)])
    monkeypatch.setattr(peaks, "time", types.SimpleNamespace(perf_counter=lambda: next(passed)))
    assert peaks.measured("float32", 8, seconds=10.0) == peaks.PRODUCTS * 2 * 8**3 / 2


def test_a_peak_is_measured():
    assert 1e6 < peaks.measured("bfloat16", 64, seconds=0.0) < 1e18
    assert jax.default_backend() == "cpu"
