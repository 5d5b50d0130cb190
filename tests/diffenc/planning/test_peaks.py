"""Peaks of accelerators, stated and measured."""

import itertools
import types

import jax
import numpy as np
import pytest

from diffenc.planning import peaks


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


@pytest.mark.parametrize("devices", [1, 4])
def test_the_measured_peak_is_the_best_of_several_tries(monkeypatch, devices):
    # the clock at the start; then by try: before, after, and to see whether there is time for another
    passed = itertools.accumulate([0, *(0, 4, 0), *(0, 2, 0), *(0, 8, 100)])
    monkeypatch.setattr(peaks, "time", types.SimpleNamespace(perf_counter=lambda: next(passed)))
    monkeypatch.setattr(peaks.jax, "local_device_count", lambda: devices)  # of one processor
    assert peaks.measured("float32", 8, seconds=10.0) == peaks.PRODUCTS * 2 * 8**3 / 2 / devices


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_multiplied_is_random(monkeypatch, dtype):
    seen: list[tuple[jax.Array, jax.Array]] = []

    def multiply(lhs, rhs):
        seen.append((lhs, rhs))
        return lhs

    monkeypatch.setattr(peaks.jax, "jit", lambda _: multiply)
    peaks.measured(dtype, 64, seconds=0.0)
    lhs, rhs = (np.asarray(side, np.float64) for side in seen[-1])
    assert {str(side.dtype) for side in seen[-1]} == {dtype}
    for side in (lhs, rhs):  # the error of the mean of 4096 is 1/64, that of their deviation 1/90
        assert (side.mean(), side.std()) == (pytest.approx(0, abs=0.07), pytest.approx(1, abs=0.06))
    assert abs(np.corrcoef(lhs.ravel(), rhs.ravel())[0, 1]) < 0.07


def test_a_peak_is_measured():
    assert 1e6 < peaks.measured("bfloat16", 64, seconds=0.0) < 1e18
    assert jax.default_backend() == "cpu"
