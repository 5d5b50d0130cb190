"""What is told of the machine, beside figures that were measured on it."""

import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("diffenc", "jax", "jaxlib", "dm-haiku", "optax", "numpy", "tensorstore", "grain")


def versions() -> dict[str, str]:
    """Of the packages that speed and memory depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def cpu_model() -> str:
    """As Linux names it; elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
