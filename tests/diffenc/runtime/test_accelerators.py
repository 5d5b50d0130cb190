"""Peaks of accelerators, stated and measured."""

import itertools
import types

import jax
import numpy as np
import pytest

from diffenc.runtime import accelerators


# Vendors' data sheets, dense: bfloat16, what float32 is by default, float32 at full precision; TFLOP/s.
@pytest.mark.parametrize(
    ("kind", "name", "bfloat16", "float32", "full"),
    [
        ("NVIDIA B200", "b200", 2250, 1125, 75),
        ("NVIDIA GB200", "gb200", 2500, 1250, 80),
        ("NVIDIA H200", "h200", 989.0, 494.5, 67.0),
        ("NVIDIA H100 80GB HBM3", "h100", 989.0, 494.5, 67.0),
        ("NVIDIA H100 PCIe", "h100_pcie", 756.5, 378, 51.2),
        ("NVIDIA A100-SXM4-40GB", "a100", 312, 156, 19.5),
        ("NVIDIA L40S", "l40s", 362, 183, 91.6),
        ("NVIDIA L4", "l4", 121, 60, 30.3),
        ("Tesla V100-SXM2-16GB", "v100", 15.7, 15.7, 15.7),  # no bfloat16, no TensorFloat-32
        ("Tesla T4", "t4", 8.1, 8.1, 8.1),
        ("TPU v2", "tpu_v2", 22.5, 22.5, 3.75),  # half a chip; six products of bfloat16 for one of float32
        ("TPU v3", "tpu_v3", 61.5, 61.5, 10.25),
        ("TPU v4", "tpu_v4", 275, 275, 275 / 6),
        ("TPU v5 lite", "tpu_v5e", 197, 197, 197 / 6),
        ("TPU v5p", "tpu_v5p", 459, 459, 76.5),
        ("TPU v6 lite", "tpu_v6e", 918, 918, 153),
        ("TPU7x", "tpu_v7", 1153.5, 1153.5, 192.25),
    ],
)
def test_a_device_is_known_by_its_name(kind, name, bfloat16, float32, full):
    assert accelerators.find_accelerator(kind) == name
    found = [
        accelerators.ACCELERATORS[name].peak(operands) / 1e12
        for operands in ("bfloat16", "float32", accelerators.FULL_PRECISION)
    ]
    assert found == pytest.approx([bfloat16, float32, full])


def test_float16_has_tensor_cores_before_ampere_too():
    assert [accelerators.ACCELERATORS[name].peak("float16") / 1e12 for name in ("v100", "t4", "a100")] == [
        125,
        65,
        312,
    ]


def test_every_accelerator_is_among_those_checked():
    assert len(accelerators.ACCELERATORS) == 17


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 NVL", "TPU v9"])
def test_what_is_not_known_is_not_guessed(kind):
    assert accelerators.find_accelerator(kind) is None


def test_no_two_share_a_name():
    kinds = [kind for one in accelerators.ACCELERATORS.values() for kind in one.kinds]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("devices", [1, 4])
def test_the_measured_peak_is_the_best_of_several_tries(monkeypatch, devices):
    # the clock at the start; then by try: before, after, and to see whether there is time for another
    passed = itertools.accumulate([0, *(0, 4, 0), *(0, 2, 0), *(0, 8, 100)])
    monkeypatch.setattr(accelerators, "time", types.SimpleNamespace(perf_counter=lambda: next(passed)))
    monkeypatch.setattr(accelerators.jax, "local_device_count", lambda: devices)  # of one processor
    assert (
        accelerators.measure_flops("float32", 8, seconds=10.0)
        == accelerators.PRODUCTS * 2 * 8**3 / 2 / devices
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_multiplied_is_random(monkeypatch, dtype):
    seen: list[tuple[jax.Array, jax.Array]] = []

    def multiply(lhs, rhs):  # compiled, whatever its precision
        seen.append((lhs, rhs))
        return lhs

    monkeypatch.setattr(accelerators.jax, "jit", lambda _: multiply)
    accelerators.measure_flops(dtype, 64, seconds=0.0)
    lhs, rhs = (np.asarray(side, np.float64) for side in seen[-1])
    assert {str(side.dtype) for side in seen[-1]} == {dtype}
    for side in (lhs, rhs):  # the error of the mean of 4096 is 1/64, that of their deviation 1/90
        assert (side.mean(), side.std()) == (pytest.approx(0, abs=0.07), pytest.approx(1, abs=0.06))
    assert abs(np.corrcoef(lhs.ravel(), rhs.ravel())[0, 1]) < 0.07


def test_a_peak_is_measured():
    assert 1e6 < accelerators.measure_flops("bfloat16", 64, seconds=0.0) < 1e18
    assert jax.default_backend() == "cpu"
