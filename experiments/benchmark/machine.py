"""Describes the machine of a measurement."""

import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("diffenc", "jax", "jaxlib", "dm-haiku", "optax", "numpy", "tensorstore", "grain")


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that affect speed and memory."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def cpu_model() -> str:
    """Returns the name of the CPU, from /proc/cpuinfo on Linux, else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
