"""Settings of JAX, mostly from its environment variables, that these programs cannot run under, or cannot run at all."""

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
# What is turned off, by setting: the values that are, what is set instead, and why.
OFF = {
    "jax_numpy_dtype_promotion": (("strict",), "standard", "the loss adds integers to floats"),
    **dict.fromkeys(
        GUARDS, (("disallow", "disallow_explicit"), "allow", "it stays on around the train step")
    ),
}
# Compilers for devices that need not be here (--mode=plan), by package: what shows that a device is, or is wanted.
COMPILERS = {
    "libtpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
    "jax_cuda12_plugin": ("/dev/nvidia*", "/dev/dxg"),
    "jax_cuda13_plugin": ("/dev/nvidia*", "/dev/dxg"),
}
GOOGLE = "0x1ae0"  # of the PCI devices of TPU hosts
WANTED = ("TPU_NAME", "JAX_FORCE_TPU_INIT", "PJRT_NAMES_AND_LIBRARY_PATHS")


def override_settings() -> None:
    """Turn off settings that the programs cannot run under, with a line in the log for each. Before JAX has a backend."""
    for name, (values, instead, why) in OFF.items():
        if jax.config.values[name] in values:
            logging.warning("%s = %s is off here: %s", name, jax.config.values[name], why)
            jax.config.update(name, instead)


def pass_over_compilers() -> None:
    """Have JAX compute on the CPU where it would try libtpu or its CUDA plugin, and this machine has no such device.

    JAX initialises each that is installed, to find out: seconds, and lines of errors. Does nothing where a platform was
    chosen, any device or another plugin may be there. Before JAX has a backend. (The CUDA plugin's library is loaded all
    the same, by JAX itself.)
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
    """Turn x64 off, with a line in the log: checkpoints are float32."""
    if jax.config.values["jax_enable_x64"]:
        logging.warning("jax_enable_x64 is off here: training is in float32")
        jax.config.update("jax_enable_x64", False)


def check_backend() -> None:
    """Raise UserError if JAX finds no device of the platform it is told, or that cannot multiply as it is told."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX has no device to compute on (JAX_PLATFORMS, or the driver): {error}") from None
    setting = jax.config.values["jax_default_matmul_precision"]
    if setting is None or setting in LEVELS:
        return
    square = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        # Backends refuse some presets of DotAlgorithm only when
        # they compile: better here than minutes into a run.
        jax.jit(jnp.matmul).lower(square, square).compile()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"JAX_DEFAULT_MATMUL_PRECISION={setting}: {error}") from None
