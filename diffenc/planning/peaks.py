"""How fast an accelerator multiplies matrices at best: as its maker states it, or as measured here."""

import dataclasses
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from diffenc.devices.matmul_precision import matmul_precision, products_of_float32


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts devices.

    Attributes:
      kinds: JAX's names for it.
      tflops: 10^12 FLOPs a second, dense, by the dtype of the operands.
      memory: bytes; of several sizes the smallest.
    """

    kinds: tuple[str, ...]
    tflops: Mapping[str, float]
    memory: float


def _gpu(bfloat16: float, gigabytes: int, *kinds: str) -> Accelerator:
    """By default JAX multiplies float32 there as TF32, at half the rate."""
    tflops = {"bfloat16": bfloat16, "float16": bfloat16, "float32": bfloat16 / 2}
    return Accelerator(kinds, tflops, gigabytes * 1e9)


def _tpu(bfloat16: float, gigabytes: int, *kinds: str) -> Accelerator:
    """By default JAX rounds the factors to bfloat16 there, float32 or not."""
    return Accelerator(kinds, {"bfloat16": bfloat16, "float32": bfloat16}, gigabytes * 1e9)


# Data sheets of NVIDIA (dense, without sparsity) and Google Cloud's pages of each TPU.
ACCELERATORS: dict[str, Accelerator] = {
    "h200": _gpu(989.0, 141, "NVIDIA H200"),
    "h100": _gpu(989.0, 80, "NVIDIA H100 80GB HBM3"),
    "a100": _gpu(
        312.0, 40, "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"
    ),
    "l40s": _gpu(362.0, 48, "NVIDIA L40S"),
    "tpu_v3": _tpu(123 / 2, 16, "TPU v3"),  # a device is one of a chip's two cores
    "tpu_v4": _tpu(275.0, 32, "TPU v4"),
    "tpu_v5e": _tpu(197.0, 16, "TPU v5 lite", "TPU v5e"),
    "tpu_v5p": _tpu(459.0, 95, "TPU v5", "TPU v5p"),
    "tpu_v6e": _tpu(918.0, 32, "TPU v6 lite", "TPU v6e"),
}  # fmt: skip

PRODUCTS = 4  # between two looks at the clock, so that starting one hides behind another


def stated(device_kind: str) -> str | None:
    """The key of ACCELERATORS for JAX's name of a device; None if it is not there."""
    return next((name for name, one in ACCELERATORS.items() if device_kind in one.kinds), None)


def matmul_precision_of(accelerator: str | None) -> str:
    """Returns what products of float32 are computed in on an accelerator of the table; None = on this device."""
    if accelerator is None:
        return matmul_precision()
    setting = jax.config.values["jax_default_matmul_precision"]
    return products_of_float32(str(setting or "default"), ACCELERATORS[accelerator].kinds[0])


def measured(dtype: str, size: int | None = None, seconds: float = 0.5) -> float:
    """FLOPs a second in products of two random `size` x `size` matrices on one device: the best of several tries.

    Devices of a CPU backend share one processor, so each is taken to have its part of what one alone reaches.

    Args:
      size: None = large enough to fill the device.
      seconds: about how long to try.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    # Random, because multiplying constants takes less power, and so a GPU does it at a higher clock.
    factors = [jax.random.normal(jax.random.key(side), (size, size), dtype) for side in (0, 1)]
    multiply = jax.jit(jnp.matmul)
    multiply(*factors).block_until_ready()
    end, best = time.perf_counter() + seconds, 0.0
    while not best or time.perf_counter() < end:
        began = time.perf_counter()
        jax.block_until_ready([multiply(*factors) for _ in range(PRODUCTS)])
        best = max(best, PRODUCTS * 2 * size**3 / (time.perf_counter() - began))
    return best / (jax.local_device_count() if jax.default_backend() == "cpu" else 1)
