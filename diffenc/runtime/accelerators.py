"""Peak rates of matrix multiplication on accelerators: from their makers' data sheets, or measured on this device."""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from diffenc.runtime.matmul_precision import matmul_precision, products_of_float32

FULL_PRECISION = "float32 at full precision"  # products of float32 that no rounding is allowed in


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts devices.

    Attributes:
      kinds: JAX's names for it (`device_kind`).
      tflops: peak rates in 10^12 FLOPs per second, without sparsity, by the format in which products are computed.
      memory: bytes; the smallest of several sizes.
    """

    kinds: tuple[str, ...]
    tflops: Mapping[str, float]
    memory: float

    def computed_in(self, operands: str) -> str:
        """Returns the format in which products of `operands`, a dtype or FULL_PRECISION, are computed."""
        if operands == "float32":
            setting = jax.config.values["jax_default_matmul_precision"]
            # Products of float32 may be computed in a shorter format, and then at a higher rate.
            operands = products_of_float32(str(setting or "default"), self.kinds[0])
        return operands if operands in self.tflops else "float32"  # which what is not in the table is at best

    def peak(self, operands: str) -> float:
        """Returns the peak rate for `operands`, in FLOPs per second."""
        return self.tflops[self.computed_in(operands)] * 1e12


def _tensor_cores(
    bfloat16: float, tfloat32: float, float32: float, gigabytes: int, *kinds: str
) -> Accelerator:
    """Returns an NVIDIA GPU of Ampere or later, on which JAX multiplies float32 as TensorFloat-32 by default."""
    tflops = {
        "bfloat16": bfloat16, "float16": bfloat16, "tfloat32": tfloat32, "float32": float32,
    }  # fmt: skip
    return Accelerator(kinds, tflops, gigabytes * 1e9)


def _before_ampere(float16: float, float32: float, gigabytes: int, *kinds: str) -> Accelerator:
    """Returns an older NVIDIA GPU, with tensor cores for float16 only; bfloat16 is computed as float32."""
    return Accelerator(kinds, {"float16": float16, "float32": float32}, gigabytes * 1e9)


def _tpu(bfloat16: float, gibibytes: int, *kinds: str) -> Accelerator:
    """Returns a TPU, on which JAX by default rounds factors to bfloat16, and takes six bfloat16 products at full precision."""
    tflops = {"bfloat16": bfloat16, "bfloat16_3x": bfloat16 / 3, "float32": bfloat16 / 6}
    return Accelerator(kinds, tflops, gibibytes * 2.0**30)


# From NVIDIA's data sheets (from Ampere on they also state twice these rates "with sparsity"), and Google Cloud's page of
# each TPU.
ACCELERATORS: dict[str, Accelerator] = {
    "b200": _tensor_cores(2250.0, 1125.0, 75.0, 180, "NVIDIA B200"),
    "gb200": _tensor_cores(2500.0, 1250.0, 80.0, 186, "NVIDIA GB200"),
    "h200": _tensor_cores(989.0, 494.5, 67.0, 141, "NVIDIA H200"),
    "h100": _tensor_cores(989.0, 494.5, 67.0, 80, "NVIDIA H100 80GB HBM3"),
    "h100_pcie": _tensor_cores(756.5, 378.0, 51.2, 80, "NVIDIA H100 PCIe"),
    "a100": _tensor_cores(
        312.0, 156.0, 19.5, 40,
        "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe",
    ),
    "l40s": _tensor_cores(362.0, 183.0, 91.6, 48, "NVIDIA L40S"),
    "l4": _tensor_cores(121.0, 60.0, 30.3, 24, "NVIDIA L4"),
    "v100": _before_ampere(125.0, 15.7, 16, "Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"),
    "t4": _before_ampere(65.0, 8.1, 16, "Tesla T4"),
    "tpu_v2": _tpu(45 / 2, 8, "TPU v2"),  # a device is one of a chip's two cores
    "tpu_v3": _tpu(123 / 2, 16, "TPU v3"),  # likewise
    "tpu_v4": _tpu(275.0, 32, "TPU v4"),
    "tpu_v5e": _tpu(197.0, 16, "TPU v5 lite", "TPU v5e"),
    "tpu_v5p": _tpu(459.0, 95, "TPU v5", "TPU v5p"),
    "tpu_v6e": _tpu(918.0, 32, "TPU v6 lite", "TPU v6e"),
    "tpu_v7": _tpu(2307 / 2, 96, "TPU7x"),  # a device is one of a chip's two chiplets
}  # fmt: skip

PRODUCTS = 4  # between two looks at the clock, so that starting one hides behind another


def find_accelerator(device_kind: str) -> str | None:
    """Returns the key in ACCELERATORS of a device with JAX's name `device_kind`; None if it is not in the table."""
    return next((name for name, one in ACCELERATORS.items() if device_kind in one.kinds), None)


def matmul_precision_of(accelerator: str | None) -> str:
    """Returns the format in which an accelerator of the table computes products of float32; None = this device."""
    if accelerator is None:
        return matmul_precision()
    return ACCELERATORS[accelerator].computed_in("float32")


def measure_flops(dtype: str, size: int | None = None, seconds: float = 0.5) -> float:
    """Returns FLOPs per second of products of two random `size` x `size` matrices on one device: the best of several tries.

    Devices of a CPU backend share one processor, so the rate of one device alone is divided by their number.

    Args:
      dtype: dtype of the matrices, or FULL_PRECISION.
      size: None = large enough to fill the device.
      seconds: approximate duration of the measurement.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    # Random, because multiplying constants takes less power, so that a GPU would run at a higher clock.
    plain, precision = ("float32", "highest") if dtype == FULL_PRECISION else (dtype, None)
    factors = [jax.random.normal(jax.random.key(side), (size, size), plain) for side in (0, 1)]
    multiply = jax.jit(partial(jnp.matmul, precision=precision))
    # The first call compiles, outside of the measurement.
    multiply(*factors).block_until_ready()
    end, best = time.perf_counter() + seconds, 0.0
    while not best or time.perf_counter() < end:
        began = time.perf_counter()
        jax.block_until_ready([multiply(*factors) for _ in range(PRODUCTS)])
        # 2 n^3: n^3 multiplications and as many additions. The best, not the mean: disturbances only slow down.
        best = max(best, PRODUCTS * 2 * size**3 / (time.perf_counter() - began))
    return best / (jax.local_device_count() if jax.default_backend() == "cpu" else 1)
