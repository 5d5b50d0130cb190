"""Checks and overrides of JAX settings, mostly from environment variables, under which the programs cannot run."""

import glob
import importlib.util
import os
from importlib import metadata

import jax
import jax.numpy as jnp
from absl import logging

from diffenc.errors import UserError
from diffenc.runtime.matmul_precision import LEVELS

GUARDS = tuple(
    f"jax_transfer_guard{way}" for way in ("", "_host_to_device", "_device_to_host", "_device_to_device")
)
# Overridden settings: by name, the values that are overridden, the replacement, and the reason for the log.
OFF = {
    "jax_numpy_dtype_promotion": (("strict",), "standard", "the loss adds integers to floats"),
    **dict.fromkeys(
        GUARDS, (("disallow", "disallow_explicit"), "allow", "it stays on around the train step")
    ),
}
# Packages that can compile for devices absent from this machine (--mode=plan), with the paths that show such a device.
COMPILERS = {
    "libtpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
    "jax_cuda12_plugin": ("/dev/nvidia*", "/dev/dxg"),
    "jax_cuda13_plugin": ("/dev/nvidia*", "/dev/dxg"),
}
GOOGLE = "0x1ae0"  # of the PCI devices of TPU hosts
# Environment variables that select a device or plugin explicitly.
WANTED = ("TPU_NAME", "JAX_FORCE_TPU_INIT", "PJRT_NAMES_AND_LIBRARY_PATHS")


def override_settings() -> None:
    """Overrides settings under which the programs cannot run, and logs each. Must be called before JAX has a backend."""
    for name, (values, instead, why) in OFF.items():
        if jax.config.values[name] in values:
            logging.warning("%s = %s is off here: %s", name, jax.config.values[name], why)
            jax.config.update(name, instead)


def pass_over_compilers() -> None:
    """Selects the CPU platform if libtpu or the CUDA plugin is installed, but this machine has no such device.

    Otherwise JAX initialises every installed plugin to find its devices, which takes seconds and prints errors. Does nothing if
    a platform was chosen, or if a device or another plugin may be present. Must be called before JAX has a backend. (JAX
    loads the CUDA plugin's library in any case.)
    """
    installed = [name for name in COMPILERS if importlib.util.find_spec(name)]
    if not installed or jax.config.values["jax_platforms"] or any(name in os.environ for name in WANTED):
        return
    of_compilers = {f"xla_cuda{version}" for version in (12, 13)}
    if {each.name for each in metadata.entry_points(group="jax_plugins")} - of_compilers:
        return
    if not any(map(_may_be_here, installed)):
        jax.config.update("jax_platforms", "cpu")


def _may_be_here(compiler: str) -> bool:
    if any(glob.glob(pattern) for pattern in COMPILERS[compiler]):
        return True
    return compiler == "libtpu" and any(map(_is_googles, glob.glob("/sys/bus/pci/devices/*/vendor")))


def _is_googles(vendor_file: str) -> bool:
    try:
        with open(vendor_file) as file:
            return file.read().strip() == GOOGLE
    except OSError:
        return True  # it may be


def train_in_float32() -> None:
    """Turns x64 off, and logs that: checkpoints are float32."""
    if jax.config.values["jax_enable_x64"]:
        logging.warning("jax_enable_x64 is off here: training is in float32")
        jax.config.update("jax_enable_x64", False)


def check_backend() -> None:
    """Raises UserError if JAX finds no device of the selected platform, or if it does not support the matmul precision."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX has no device to compute on (JAX_PLATFORMS, or the driver): {error}") from None
    setting = jax.config.values["jax_default_matmul_precision"]
    if setting is None or setting in LEVELS:
        return
    square = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        # Backends refuse unsupported DotAlgorithm presets only when
        # they compile: an error here is better than minutes into a run.
        jax.jit(jnp.matmul).lower(square, square).compile()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"JAX_DEFAULT_MATMUL_PRECISION={setting}: {error}") from None
