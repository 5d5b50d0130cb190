"""The number format in which a device computes products of float32: matrix products and convolutions.

JAX's setting alone does not determine it: "default" is float32 on a CPU, TF32 on an NVIDIA GPU since Ampere, bfloat16 on a TPU.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp

# JAX's names of its three levels (jax.lax.Precision).
LEVELS = {
    **dict.fromkeys(("default", "fastest", "bfloat16"), "default"),
    **dict.fromkeys(("high", "tensorfloat32", "bfloat16_3x"), "high"),
    **dict.fromkeys(("highest", "float32"), "highest"),
}
FLOAT32 = {"default": "float32", "high": "float32", "highest": "float32"}
TF32 = {"default": "tfloat32", "high": "tfloat32", "highest": "float32"}
TPU = {"default": "bfloat16", "high": "bfloat16_3x", "highest": "float32"}

# Names of GPUs of Turing and older, which have no TF32.
BEFORE_AMPERE = re.compile(r"\b[KMP]\d{1,3}\b|V100|\bT4\b|GTX|TITAN|Quadro|RTX 20|Tesla [CKMPV]")
FORMATS = {
    "F16": "float16",
    "BF16": "bfloat16",
    "TF32": "tfloat32",
    "F32": "float32",
    "F64": "float32",
}  # F64: of factors in float32


def matmul_precision() -> str:
    """Returns the format of products of the default floats on this device: "float32", "tfloat32", "bfloat16_3x", ..."""
    if jnp.zeros(()).dtype == jnp.float64:
        return "float64"
    device = jax.devices()[0]
    setting = jax.config.values["jax_default_matmul_precision"]
    # Compute capability 8 is Ampere, the first with TF32; the variable turns TF32 off in cuBLAS and cuDNN.
    without_tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0" or _capability(device) < 8
    return products_of_float32(str(setting or "default"), device.device_kind, without_tf32)


def products_of_float32(setting: str, kind: str, without_tf32: bool = False) -> str:
    """Returns the format in which a device computes products of float32.

    Args:
      setting: value of `jax_default_matmul_precision`: the name of a level, or of an algorithm such as "TF32_TF32_F32_X3",
        which convolutions ignore. Any other text is returned unchanged, so that the function is idempotent.
      kind: JAX's name of the device (`device_kind`).
      without_tf32: whether an NVIDIA GPU lacks TF32, or has it turned off; also inferred from `kind`.
    """
    levels = _levels(kind, without_tf32)
    if levels is None:
        # Unknown device: with its name in the result, records of two such devices do not seem comparable.
        return f"{setting} of {kind}" if setting in LEVELS or _format(setting) else setting
    if setting in LEVELS:
        return levels[LEVELS[setting]]
    algorithm = _format(setting)
    if algorithm is None:
        return setting
    if levels is FLOAT32 and algorithm != "float16":  # a CPU computes the others in float32
        return "float32"
    # Algorithms apply to matrix products only; convolutions stay at the device's default.
    return algorithm if algorithm == levels["default"] else f"{algorithm}, convolutions {levels['default']}"


def _levels(kind: str, without_tf32: bool) -> dict[str, str] | None:
    """Returns the formats of JAX's three levels on a device; None if they are not known."""
    if kind.lower() == "cpu":
        return FLOAT32
    if kind.startswith("TPU"):
        return TPU
    if kind.startswith(("NVIDIA", "Tesla", "Quadro", "GeForce", "TITAN")):
        return FLOAT32 if without_tf32 or BEFORE_AMPERE.search(kind) else TF32
    return None


def _format(algorithm: str) -> str | None:
    """Returns the format to which a `jax.lax.DotAlgorithmPreset` rounds the factors: BF16_BF16_F32_X3 -> bfloat16_3x."""
    found = re.fullmatch(r"([A-Z]+\d+)_\1_[A-Z]*\d+(?:_X(\d))?", algorithm)
    if found is None or found[1] not in FORMATS:
        return None
    return FORMATS[found[1]] + (f"_{found[2]}x" if found[2] else "")


def _capability(device: Any) -> float:
    """Returns the compute capability of an NVIDIA GPU; infinity for devices without one."""
    try:
        return float(getattr(device, "compute_capability", "inf"))
    except (TypeError, ValueError):  # a name, as AMD's
        return float("inf")
